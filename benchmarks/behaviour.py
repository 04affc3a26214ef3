"""Which ranking finds heads whose removal really lowers refusal? Qwen2.5-Coder-0.5B-Instruct, held-out prompts.

    python benchmarks/behaviour.py --data DATA --folder FOLDER --minutes 7

Heads are selected on one half of JailbreakBench (one pair a category of the even rows), and behaviour is measured on
the other half and on MaliciousInstruct. Two sweeps a side keep the final states, from which every metric is read. Each
step is saved in the folder: run the command again until it says that all is done; `--report` writes the tables and the
figure of what there is. `--data` is a folder with the files of the named datasets. No answer is kept, only verdicts and
hashes.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas
import torch

from safetyheads import (
    GeneralizedShips,
    RefusalShift,
    ScalingContribution,
    Ships,
    UndifferentiatedAttention,
    load_model,
    load_prompts,
    measure_utility,
    plot_refusal_under_ablation,
    tokenize,
    write_image,
)
from safetyheads.engine.measurement import measure
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.judges import KeywordJudge, judged
from safetyheads.metrics import LastToken, refusal_tokens
from safetyheads.probes.behaviour.answers import Answer, Behaviour
from safetyheads.probes.behaviour.controls import random_heads
from safetyheads.probes.behaviour.curves import Arm, RefusalCurve
from safetyheads.probes.behaviour.generation import Decoding, generate

MODEL = "qwen2.5-coder-0.5b-instruct"
ABLATIONS = {a.name: a for a in (UndifferentiatedAttention(), ScalingContribution())}
SHORT = {"undifferentiated_attention": "ua", "scaling_contribution": "sc"}
METRICS = {
    "ships": Ships(),
    "generalized_ships(left)": GeneralizedShips(),
    "generalized_ships(right)": GeneralizedShips(space="right"),
    "refusal_shift": RefusalShift(),
}
CANDIDATES = 24  # heads of each ranking that also run on the harmless prompts
NEW_TOKENS = 16
HELD_OUT = 24
SEEDS = (0, 1, 2)
JUDGES = (KeywordJudge(),)


@dataclass(frozen=True)
class States:
    """A reading that is the whole final state, so that every metric can be computed afterwards."""

    name: ClassVar[str] = "states"
    unit: ClassVar[str] = "1"
    largest_first: ClassVar[bool] = True

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "States":
        return self

    def read(self, ablated: LastToken, baseline: LastToken) -> torch.Tensor:
        return ablated.state

    def gather(self, rows: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
        return rows

    def score(self, readings: torch.Tensor) -> tuple[torch.Tensor, None]:
        return readings.norm(dim=-1).mean(-1), None


class OutOfTime(Exception):
    """The minutes of this run are over; what is done is saved."""


class Experiment:
    """The model, the prompts, and what the folder already holds."""

    def __init__(self, data: Path, folder: Path, minutes: float) -> None:
        self.folder, self.end = folder, time.monotonic() + 60 * minutes
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        self.model = load_model(MODEL)
        self.jailbreakbench = load_prompts("jailbreakbench", path=data)
        malicious = load_prompts("malicious_instruct", path=data)
        self.selected = self._selection()
        odd = range(1, len(self.jailbreakbench), 2)
        turns = sorted(odd, key=lambda row: (row % 10, row))[:HELD_OUT]  # ten rows a category
        self.asked = {
            ("jailbreakbench", side): [getattr(self.jailbreakbench, side)[row] for row in turns]
            for side in ("harmful", "harmless")
        }
        self.asked["malicious_instruct", "harmful"] = list(malicious.harmful[::4][:HELD_OUT])

    def _selection(self) -> list[int]:
        """The first even row of each category whose pair has at most 46 tokens each."""
        pairs = self.jailbreakbench
        lengths = torch.stack(
            [tokenize(t, self.model.tokenizer).lengths for t in (pairs.harmful, pairs.harmless)]
        ).amax(0)
        found: dict[str, int] = {}
        for row in range(0, len(pairs), 2):
            if lengths[row] <= 46:
                found.setdefault(pairs.categories[row], row)
        return sorted(found.values())

    def in_time(self, seconds: float) -> None:
        if time.monotonic() + seconds > self.end:
            raise OutOfTime

    # Selection -------------------------------------------------------------------------------------------------------

    def swept(self, side: str, ablation: str, heads: list[Head]) -> dict[str, Any]:
        """Final states under each head's ablation on the selection half, [variant, prompt, d_model], and without."""
        file = self.folder / f"{side}-{SHORT[ablation]}.pt"
        if not file.exists():
            self.in_time(1.5 * len(heads))
            texts = [getattr(self.jailbreakbench, side)[row] for row in self.selected]
            batch = tokenize(texts, self.model.tokenizer)
            with torch.inference_mode():
                states = self.model.states_and_logits(batch.ids)[0]
            edits = [AblateHead(head, ABLATIONS[ablation]) for head in heads]
            start = time.monotonic()
            measurement = measure(prepare(self.model, batch), metric=States())
            readings = sweep(measurement, edits).readings
            base = states[torch.arange(len(batch)), batch.lengths - 1]
            places = [tuple(head) for head in heads]
            torch.save({"heads": places, "states": readings, "base": base}, file)
            print(f"{file.name}: {len(heads)} heads, {time.monotonic() - start:.0f} s", flush=True)
        return torch.load(file)

    @torch.inference_mode()
    def scores(self, side: str, ablation: str, heads: list[Head]) -> dict[str, dict[Head, float]]:
        """Every metric of every head swept on one side."""
        swept = self.swept(side, ablation, heads)
        file = self.folder / f"scores-{side}-{SHORT[ablation]}.json"
        if not file.exists():
            texts = tokenize(
                [getattr(self.jailbreakbench, side)[row] for row in self.selected],
                self.model.tokenizer,
            ).texts
            base = LastToken(swept["base"], self.model.unembed)
            found = {}
            for name, metric in METRICS.items():
                metric = metric.prepare(self.model.tokenizer, texts)
                rows = [
                    metric.read(LastToken(s, self.model.unembed), base) for s in swept["states"]
                ]
                values, _ = metric.score(metric.gather(torch.stack(rows), metric.read(base, base)))
                found[name] = values.tolist()
            file.write_text(json.dumps(found))
        places = [Head(*place) for place in swept["heads"]]
        found = json.loads(file.read_text())
        return {name: dict(zip(places, values, strict=True)) for name, values in found.items()}

    def rankings(self) -> dict[tuple[str, str], list[Head]]:
        """The first heads of every (ablation, metric), best first."""
        every = [
            Head(layer, head)
            for layer in range(self.model.n_layers)
            for head in range(self.model.n_heads)
        ]
        found: dict[tuple[str, str], list[Head]] = {}
        for ablation in ABLATIONS:
            harmful = self.scores("harmful", ablation, every)
            ranked = {}
            for name, values in harmful.items():
                down = METRICS[name].largest_first
                ranked[name] = sorted(values, key=lambda h: -values[h] if down else values[h])
                found[ablation, name] = ranked[name][:5]
            some = {h for name in ("ships", "refusal_shift") for h in ranked[name][:CANDIDATES]}
            harmless = self.scores("harmless", ablation, sorted(some))
            for name in ("ships", "refusal_shift"):
                gap = {h: harmful[name][h] - harmless[name][h] for h in some}
                down = METRICS[name].largest_first
                order = sorted(gap, key=lambda h: -gap[h] if down else gap[h])
                found[ablation, f"{name} specificity"] = order[:5]
                if name == "ships":
                    # Harmless Ships is at least 0, so a head outside `some` has at most its harmful score.
                    bound = harmful[name][ranked[name][CANDIDATES]]
                    exact = gap[order[4]] >= bound
                    print(f"{ablation}: the top 5 by ships specificity are exact: {exact}")
        return found

    # Behaviour -------------------------------------------------------------------------------------------------------

    def cell(
        self, dataset: str, side: str, ablation: str, heads: Sequence[Head]
    ) -> list[dict[str, Any]]:
        """The judged answers of one half of a dataset with these heads ablated."""
        names = " ".join(map(str, sorted(heads)))
        key = f"{dataset} {side} {SHORT[ablation] if heads else 'none'} {names}"
        file = self.folder / "cells" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            self.in_time(20)
            start = time.monotonic()
            texts = self.asked[dataset, side]
            batch = tokenize(texts, self.model.tokenizer)
            refusal = refusal_tokens(self.model.tokenizer, RefusalShift().openings, batch.texts[0])
            if heads:
                with AblateHeads(tuple(sorted(heads)), ABLATIONS[ablation]).active(self.model):
                    made = generate(self.model, batch, Decoding(NEW_TOKENS), refusal=refusal)
            else:
                made = generate(self.model, batch, Decoding(NEW_TOKENS), refusal=refusal)
            said = [self.model.tokenizer.decode(t, skip_special_tokens=True) for t in made.tokens]
            verdicts = [judged(judge, texts, said) for judge in JUDGES]
            answers = [
                asdict(
                    Answer(
                        dataset,
                        side,
                        n,
                        "",
                        tuple(given[n] for given in verdicts),
                        made.refusal_log_odds[n],
                        len(made.tokens[n]),
                        made.ended[n],
                        hashlib.sha256(text.encode()).hexdigest()[:16],
                    )
                )
                for n, text in enumerate(said)
            ]
            file.write_text(json.dumps({"key": key, "answers": answers}))
            print(f"{time.monotonic() - start:.0f} s: {key}", flush=True)
        return json.loads(file.read_text())["answers"]

    def curve(
        self,
        asked: Sequence[tuple[str, str]],
        ablation: str,
        ranking: Sequence[Head],
        sizes: Sequence[int],
        seeds: Sequence[int],
    ) -> RefusalCurve:
        """What `refusal_under_ablation` gives, from saved cells."""
        groups = {"baseline": Arm("baseline", 0, 0, ())}
        for size in sizes:
            groups[f"top {size}"] = Arm("top", size, 0, tuple(ranking[:size]))
            for seed in seeds:
                heads = random_heads(ranking, self.model.n_heads, seed)[:size]
                groups[f"random {size}, seed {seed}"] = Arm("random", size, seed, heads)
        answers = []
        for (dataset, side), (name, group) in itertools.product(asked, groups.items()):
            for answer in self.cell(dataset, side, ablation, group.heads):
                answer = {**answer, "intervention": name, "verdicts": tuple(answer["verdicts"])}
                answers.append(Answer(**answer))
        behaviour = Behaviour(tuple(answers), tuple(j.name for j in JUDGES), self.model.name)
        return RefusalCurve(behaviour, {n: g for n, g in groups.items() if g.heads}, ablation)

    def refusal(self, ablation: str, heads: Sequence[Head]) -> float:
        """Refusal rate on the held-out half of JailbreakBench."""
        answers = self.cell("jailbreakbench", "harmful", ablation, heads)
        return sum(a["verdicts"][0] == "refuse" for a in answers) / len(answers)

    def winner(self, rankings: dict[tuple[str, str], list[Head]]) -> tuple[str, str]:
        """The ranking with the lowest mean refusal over the sizes 1, 3 and 5 on the held-out half."""
        return min(
            rankings,
            key=lambda name: sum(
                self.refusal(name[0], rankings[name][:size]) for size in (1, 3, 5)
            ),
        )

    def run(self) -> None:
        """All steps, in the order of what they tell."""
        rankings = self.rankings()
        for name, heads in rankings.items():
            print(*name, *heads)
        asked = list(self.asked)
        for dataset, side in asked[::2]:
            self.cell(dataset, side, "undifferentiated_attention", ())
        for size in (3, 5, 1):
            for (ablation, _), heads in rankings.items():
                self.refusal(ablation, heads[:size])
        best = self.winner(rankings)
        print("winner on the held-out half:", *best)
        self.curve([asked[2]], best[0], rankings[best], (5, 3, 1), SEEDS[:1])
        for (ablation, _), heads in rankings.items():
            self.refusal(ablation, random_heads(heads, self.model.n_heads, 0)[:3])
        self.curve([asked[0], asked[2]], best[0], rankings[best], (5, 3, 1, 2, 4), SEEDS)
        self.curve([asked[1]], best[0], rankings[best], (3, 5), SEEDS[:1])
        self.utility(best[0], rankings[best])

    def utility(self, ablation: str, ranking: Sequence[Head]) -> pandas.DataFrame:
        """Cross-entropy and multiple choice with the first 3 and 5 heads ablated, and 5 random ones."""
        file = self.folder / "utility.csv"
        if not file.exists():
            self.in_time(150)
            groups = {
                "top 3": ranking[:3],
                "top 5": ranking[:5],
                "random 5, seed 0": random_heads(ranking, self.model.n_heads, 0),
            }
            kind = ABLATIONS[ablation]
            named = {name: AblateHeads(tuple(heads), kind) for name, heads in groups.items()}
            measure_utility(self.model, named).to_frame().to_csv(file, index=False)
        return pandas.read_csv(file)

    def report(self) -> None:
        """Tables of what there is, and the figure of the winner."""
        self.end = time.monotonic()  # nothing new is run
        rankings = self.rankings()
        rows = []
        for ((ablation, metric), heads), size in itertools.product(rankings.items(), (1, 3, 5)):
            random = random_heads(heads, self.model.n_heads, 0)[:size]
            row = {
                "ablation": SHORT[ablation],
                "metric": metric,
                "heads": " ".join(map(str, heads[:size])),
            }
            for arm, group in (("top", heads[:size]), ("random", random)):
                for dataset, side in list(self.asked)[::2]:
                    with contextlib.suppress(OutOfTime):
                        answers = self.cell(dataset, side, ablation, group)
                        said = [a["verdicts"][0] for a in answers]
                        for verdict in ("refuse", "comply", "degenerate"):
                            row[f"{arm} {dataset[:2]} {verdict}"] = said.count(verdict)
            rows.append(row)
        table = pandas.DataFrame(rows)
        table.to_csv(self.folder / "rankings.csv", index=False)
        print(table.to_string())
        best = self.winner(rankings)
        asked = [list(self.asked)[n] for n in (0, 2)]
        curve = self.curve(asked, best[0], rankings[best], (1, 2, 3, 4, 5), SEEDS)
        curve.to_frame().to_csv(self.folder / "curve.csv", index=False)
        print(curve.differences().to_string())
        print(curve.behaviour.agreement().query("intervention == 'all'").to_string())
        harmless = self.curve([list(self.asked)[1]], best[0], rankings[best], (3, 5), SEEDS[:1])
        print(harmless.to_frame().query("verdict in ('refuse', 'degenerate')").to_string())
        print(self.utility(best[0], rankings[best]).to_string())
        note = f"Heads ranked by {best[1]} on {len(self.selected)} pairs of the other half of JailbreakBench."
        figure = plot_refusal_under_ablation(curve.to_frame(), note=note)
        write_image(figure, self.folder / "behaviour.png")


def main() -> None:
    """Go on with the experiment, or report it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    experiment = Experiment(options.data, options.folder, options.minutes)
    try:
        experiment.report() if options.report else experiment.run()
    except OutOfTime:
        print("out of time: run the same command again to go on")
    else:
        print("all is done")


if __name__ == "__main__":
    main()
