"""Which ablation's ranking predicts what a model does without its heads? A sweep of all heads, then held-out answers.

    python benchmarks/experiment.py --data DATA --folder FOLDER --minutes 8
    python benchmarks/experiment.py --data DATA --folder FOLDER --record benchmarks/records/experiment.json

All heads of Qwen2.5-Coder-0.5B-Instruct are swept on matched pairs of JailbreakBench under zero, mean and resample
ablation, undifferentiated attention and interchange (scaling contribution is zero but for 1e-5; one layer checks it).
Groups that each ranking names, groups of the opposite sign, random groups of the same layers and a direction are then
taken away while the model answers prompts that had no part in the choice. Each step is saved in the folder: run the
command again until it says that all is done. No answer is kept, only verdicts and hashes.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch
from torch import Tensor

from safetyheads import (
    AblateHeads,
    Decoding,
    PromptSet,
    RefusalShift,
    Ships,
    load_model,
    load_prompts,
    tokenize,
)
from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.rounds import Rounds
from safetyheads.engine.run import run
from safetyheads.heads import Head, heads_like
from safetyheads.inputs import prepare, prepare_pairs
from safetyheads.interventions.ablating import mean_z
from safetyheads.interventions.ablations import InterchangeAblation, as_ablation
from safetyheads.interventions.named import all_active
from safetyheads.judges import KeywordJudge
from safetyheads.metrics import refusal_tokens
from safetyheads.probes.behaviour.generation import generate
from safetyheads.probes.directions.direction import refusal_direction
from safetyheads.probes.single_heads import Together
from safetyheads.stats import disjoint_halves, spearman
from safetyheads.storage.store import Store

MODEL = "qwen2.5-coder-0.5b-instruct"
BATCH = 12
"""Pairs of one sweep; several sweeps stand beside each other."""
LONGEST = 44
"""Tokens that a prompt may have, the template's 30 with it: what is padded is paid for."""
ABLATIONS = {
    "zero": as_ablation("zero"),
    "undifferentiated_attention": as_ablation("undifferentiated_attention"),
    "mean": as_ablation("mean"),
    "interchange": InterchangeAblation(),
    "resample": as_ablation("resample"),
}
FEWER = {"mean": 6, "interchange": 6, "resample": 6}
"""Pairs of a batch that these ablations get, where the processor's time does not reach for all."""
NEW_TOKENS = 12
EACH = 12
"""Held-out prompts of each set."""
HARMFUL, SAFE = "jailbreakbench, malicious_instruct, advbench", "xstest, safe"
DRAWS = 10
LAYER = 12
"""Where a direction is read, the one that docs/directions.md selects."""
UA = "undifferentiated_attention"
FIRST, SECOND = ("zero", UA, "mean"), ("interchange", "resample")
"""The rankings whose groups are taken away first, and those that wait and may be of a shortlist only."""
STEPS = ((FIRST, 9), ((*FIRST, "interchange"), None), (tuple(ABLATIONS), None))
"""Rankings, and how many of the conditions that they give come before the next sweep."""


LETTERS = {"refuse": "r", "comply": "c", "deflect": "d", "degenerate": "b"}
"""Verdicts in a record."""


class OutOfTime(Exception):
    """The minutes of this run are over; what is done is saved."""


class Condition(NamedTuple):
    """What is done while the model answers."""

    name: str
    ablation: str
    """What is done to the heads; "" for the untouched model, "direction" for a direction."""
    heads: tuple[Head, ...] = ()
    sets: tuple[str, ...] = (HARMFUL,)


class Experiment:
    """The model, the prompts, and what the folder already holds."""

    def __init__(
        self, data: Path, folder: Path, minutes: float, batches: int, shortlist: int = 0
    ) -> None:
        self.folder, self.end, self.batches = folder, time.monotonic() + 60 * minutes, batches
        self.shortlist = shortlist
        for name in ("sweeps", "cells"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.model = load_model(MODEL)
        pairs = load_prompts("jailbreakbench", path=data)
        places = self._short(pairs.harmful) & self._short(pairs.harmless)
        kept = PromptSet(
            "jailbreakbench",
            *(tuple(side[n] for n in sorted(places)) for side in (pairs.harmful, pairs.harmless)),
            categories=tuple(pairs.categories[n] for n in sorted(places)),
            paired=True,
        )
        chosen = kept.limit(batches * BATCH)
        self.pairs = [
            PromptSet(
                "jailbreakbench",
                chosen.harmful[n::batches],
                chosen.harmless[n::batches],
                paired=True,
            )
            for n in range(batches)
        ]
        table = pandas.read_csv(data / "xstest.csv")
        apart = {
            "jailbreakbench": [text for text in pairs.harmful if text not in chosen.harmful],
            "malicious_instruct": load_prompts("malicious_instruct", path=data).harmful[1::3],
            "advbench": load_prompts("advbench", path=data).harmful[::7],
            SAFE: table[table["label"] == "safe"]["prompt"].tolist()[::5],
        }
        short = {
            n: [some[k] for k in sorted(self._short(some))][:EACH] for n, some in apart.items()
        }
        harmful = [text for name in HARMFUL.split(", ") for text in short[name]]
        self.asked = {SAFE: short[SAFE], HARMFUL: harmful}

    def _short(self, texts: Sequence[str]) -> set[int]:
        lengths = tokenize(list(texts), self.model.tokenizer).lengths
        return set((lengths <= LONGEST).nonzero().flatten().tolist())

    def in_time(self) -> None:
        """Raise OutOfTime where the minutes are over."""
        if time.monotonic() > self.end:
            raise OutOfTime

    # Selection -------------------------------------------------------------------------------------------------------

    def swept(self, batch: int, name: str) -> Tensor:
        """Refusal shift and Ships of every head on each prompt of a batch, [metric, head, prompt]; NaN for heads that
        were not run."""
        file = self.folder / "sweeps" / f"{batch} {name}.pt"
        if not file.exists():
            self.in_time()
            start = time.process_time()
            pairs, heads = self.pairs[batch], None
            pairs = pairs.limit(FEWER.get(name, BATCH))
            if self.shortlist and name in SECOND:
                heads = self.shortlisted()
            torch.save(self._sweep(pairs, name, heads), file)
            print(f"{file.stem}: {time.process_time() - start:.0f} s of processor", flush=True)
        return torch.load(file)

    def shortlisted(self) -> list[Head]:
        """The first and the last heads of each of the first rankings, and as many random ones as all of these."""
        found: set[int] = set()
        for name in FIRST:
            order = self.swept(0, name)[0].mean(-1).argsort().tolist()
            found |= {*order[: self.shortlist], *order[-self.shortlist :]}
        others = torch.randperm(
            self.model.n_layers * self.model.n_heads, generator=torch.Generator().manual_seed(0)
        )
        found |= set([n for n in others.tolist() if n not in found][: len(found)])
        return [Head(*divmod(n, self.model.n_heads)) for n in sorted(found)]

    def _sweep(self, pairs: PromptSet, name: str, heads: Sequence[Head] | None = None) -> Tensor:
        ablation = ABLATIONS.get(name) or as_ablation(name)
        execution = Execution(store=self.folder / "store", progress=False)
        both = "pairs" in ablation.needs
        inputs = prepare_pairs(self.model, pairs) if both else prepare(self.model, pairs)
        metric = RefusalShift() if both else Together((RefusalShift(), Ships()), ((), ()))
        measurement = measure(inputs, ablation, metric)
        heads = measurement.heads() if heads is None else heads
        if both:  # the harmless prompts lend and are not run themselves
            about = {"side": "harmful", "heads": [str(head) for head in heads]}
            store = Store(self.folder / "store", measurement.manifest(execution, **about))
            found = Rounds(measurement, execution, store)(heads, range(len(pairs)))[None]
        else:
            readings = run(measurement, measurement.variants(heads), execution).readings
            found = torch.stack(readings.split(len(inputs.batch), -1))
        per = self.model.n_heads
        whole = torch.full((len(found), self.model.n_layers * per, len(pairs)), torch.nan)
        whole[:, [head.layer * per + head.head for head in heads]] = found.float().cpu()
        return whole

    def scores(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Of each ablation, [metric, head, prompt] over all batches."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for batch, name in itertools.product(range(self.batches), names):
            found[name].append(self.swept(batch, name))
        return {name: torch.cat(some, -1) for name, some in found.items()}

    def scaling(self) -> float:
        """The largest difference of scaling contribution to zero ablation in one layer [nat]."""
        file = self.folder / "sweeps" / "scaling.json"
        if not file.exists():
            self.in_time()
            layer, per = 12, self.model.n_heads
            heads = [Head(layer, head) for head in range(per)]
            apart = self._sweep(self.pairs[0], "scaling_contribution", heads) - self.swept(
                0, "zero"
            )
            file.write_text(json.dumps(apart.nan_to_num().abs().max().item()))
        return json.loads(file.read_text())

    # What is taken away ----------------------------------------------------------------------------------------------

    def conditions(self, names: Sequence[str]) -> Iterator[Condition]:
        """All conditions that these ablations' rankings ask for, in the order of what they tell."""
        scores = self.scores(names)

        def ranked(name: str, metric: int, sign: float) -> tuple[Head, ...]:
            values = (sign * scores[name][metric].mean(-1)).nan_to_num(-torch.inf)
            order = values.argsort(descending=True, stable=True)[:5].tolist()
            return tuple(Head(*divmod(n, self.model.n_heads)) for n in order)

        tops = {(name, "refusal_shift"): ranked(name, 0, -1) for name in names}
        tops |= {(name, "ships"): ranked(name, 1, 1) for name in names if name in ("zero", UA)}
        both = (HARMFUL, SAFE)
        zero, own = tops["zero", "refusal_shift"], tops[UA, "refusal_shift"]
        matched = {
            name: self.matched(heads, scores[name][1].mean(-1))
            for name, heads in (("zero", zero), (UA, own))
        }
        yield Condition("untouched", "")
        yield Condition("zero, refusal_shift, top 5", "zero", zero)
        yield Condition(f"{UA}, refusal_shift, top 5", UA, own)
        yield Condition(f"{UA}, refusal_shift, top 5", "zero", own)
        yield Condition("zero, raising, top 5", "zero", ranked("zero", 0, 1))
        for draw, name in itertools.product(range(DRAWS), (UA, "zero")):
            if draw == 2:
                yield from self.others(tops, ranked)
            yield Condition(f"{name}, random {draw}", name, matched[name][draw])
        yield Condition(f"{UA}, raising, top 5", UA, ranked(UA, 0, 1))
        yield Condition("direction", "direction", (Head(LAYER, 0),))
        for sets in (both,):
            yield Condition("untouched", "", sets=sets)
            yield Condition("zero, refusal_shift, top 5", "zero", zero, sets)
            yield Condition(f"{UA}, refusal_shift, top 5", UA, own, sets)
        for size, ((name, metric), heads) in itertools.product((3, 1), tops.items()):
            yield Condition(f"{name}, {metric}, top {size}", "zero", heads[:size])

    def others(
        self,
        tops: Mapping[tuple[str, str], tuple[Head, ...]],
        ranked: Callable[[str, int, float], tuple[Head, ...]],
    ) -> Iterator[Condition]:
        """The groups of the other rankings, and the first heads alone."""
        own = tops[UA, "refusal_shift"]
        yield Condition(f"{UA}, refusal_shift, top 1", UA, own[:1])
        for (name, metric), heads in tops.items():
            yield Condition(f"{name}, {metric}, top 5", "zero", heads)
            if (name, metric) in (("mean", "refusal_shift"), ("interchange", "refusal_shift")):
                yield Condition(f"{name}, {metric}, top 5", "mean", heads)
        yield Condition("zero, refusal_shift, top 1", "zero", tops["zero", "refusal_shift"][:1])
        if ("interchange", "refusal_shift") in tops:
            yield Condition("interchange, raising, top 5", "zero", ranked("interchange", 0, 1))
        for name in (UA, "zero"):
            yield Condition(f"{name}, refusal_shift, top 3", name, tops[name, "refusal_shift"][:3])

    def matched(self, heads: Sequence[Head], kl: Tensor) -> list[tuple[Head, ...]]:
        """Random groups of the same layers whose single heads together move the output nearest to what these do."""
        moved = lambda some: sum(float(kl[h.layer * self.model.n_heads + h.head]) for h in some)  # noqa: E731
        drawn = {
            tuple(sorted(some)): None
            for some in itertools.islice(heads_like(heads, self.model.n_heads, seed=0), 500)
        }
        return sorted(drawn, key=lambda some: abs(moved(some) - moved(heads)))[:DRAWS]

    # Behaviour -------------------------------------------------------------------------------------------------------

    def cell(self, dataset: str, condition: Condition) -> list[dict[str, Any]]:
        """The judged answers to one set under one condition."""
        names = " ".join(map(str, sorted(condition.heads)))
        key = f"{dataset} | {condition.ablation} | {names} | {self.batches}"
        file = self.folder / "cells" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            self.in_time()
            texts = self.asked[dataset]
            batch = tokenize(texts, self.model.tokenizer)
            refusal = refusal_tokens(self.model.tokenizer, RefusalShift().openings, batch.texts[0])
            start = time.process_time()
            with self._active(condition):
                made = generate(
                    self.model, batch, Decoding(NEW_TOKENS), rows=len(texts), refusal=refusal
                )
            said = [self.model.tokenizer.decode(t, skip_special_tokens=True) for t in made.tokens]
            verdicts = KeywordJudge()(texts, said)
            answers = [
                {
                    "verdict": verdict,
                    "odds": odds,
                    "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
                }
                for verdict, odds, text in zip(verdicts, made.refusal_log_odds, said, strict=True)
            ]
            file.write_text(json.dumps({"key": key, "answers": answers}))
            print(f"{time.process_time() - start:.0f} s: {condition.name}, {key}", flush=True)
        return json.loads(file.read_text())["answers"]

    @contextlib.contextmanager
    def _active(self, condition: Condition) -> Iterator[None]:
        if not condition.ablation:
            yield
            return
        if condition.ablation == "direction":
            layer = condition.heads[0].layer
            whole = PromptSet(
                "pairs",
                *(sum((getattr(p, s) for p in self.pairs), ()) for s in ("harmful", "harmless")),
            )
            stack = (refusal_direction(self.model, whole, layer, progress=False).ablated(),)
        else:
            mean = self.means() if condition.ablation == "mean" else None
            stack = (AblateHeads(condition.heads, as_ablation(condition.ablation), mean),)
        with all_active(stack, self.model):
            yield

    def means(self) -> Tensor:
        """Every head's mean output over the selection's harmful prompts."""
        file = self.folder / "mean.pt"
        if not file.exists():
            texts = [text for pairs in self.pairs for text in pairs.harmful]
            torch.save(mean_z(self.model, tokenize(texts, self.model.tokenizer)), file)
        return torch.load(file)

    def record(self) -> dict[str, Any]:
        """What there is, small: every head's mean scores, and a letter an answer."""
        self.end = time.monotonic()  # nothing new is run
        names = [n for n in ABLATIONS if (self.folder / "sweeps" / f"0 {n}.pt").exists()]
        scores = self.scores(names)
        done, conditions, scaling = set(), [], None
        with contextlib.suppress(OutOfTime):
            scaling = self.scaling()
        for rankings, _ in STEPS:
            with contextlib.suppress(OutOfTime):
                for condition in self.conditions([n for n in rankings if n in names]):
                    for dataset in condition.sets:
                        with contextlib.suppress(OutOfTime):
                            said = "".join(
                                LETTERS[a["verdict"]] for a in self.cell(dataset, condition)
                            )
                            if (key := (condition.name, condition.ablation, dataset)) not in done:
                                done.add(key)
                                heads = " ".join(map(str, condition.heads))
                                conditions.append([*key, heads, said])
        metrics = ("refusal_shift", "ships")
        return {
            "model": MODEL,
            "heads": [self.model.n_layers, self.model.n_heads],
            "pairs": {name: some.shape[-1] for name, some in scores.items()},
            "scores": {
                name: {
                    metric: [round(v, 4) if v == v else None for v in values.mean(-1).tolist()]
                    for metric, values in zip(metrics, some, strict=False)
                }
                for name, some in scores.items()
            },
            "correlations": correlations(scores),
            "scaling less zero, largest": scaling,
            "tokens": NEW_TOKENS,
            "answers": conditions,
        }

    def run(self) -> None:
        """All steps, in order."""
        for names, count in STEPS:
            for condition in itertools.islice(self.conditions(names), count):
                for dataset in condition.sets:
                    self.cell(dataset, condition)
        self.scaling()
        print("all is done", flush=True)


def correlations(scores: Mapping[str, Tensor], draws: int = 500) -> list[list[Any]]:
    """How alike two ablations rank the heads by the refusal shift, on the prompts that both have.

    A row a pair: names, rank correlation with its 95 % bootstrap interval over prompts, heads shared by the first ten,
    prompts, heads. An ablation beside itself is compared on two halves of its prompts, with the range over splits.
    """
    random, rows = torch.Generator().manual_seed(0), []
    for one, other in itertools.combinations_with_replacement(scores, 2):
        a, b = scores[one][0].double(), scores[other][0].double()
        n = min(a.shape[-1], b.shape[-1])
        run = a[:, 0].isfinite() & b[:, 0].isfinite()
        a, b = a[run, :n], b[run, :n]
        if one == other:
            first, second = disjoint_halves(n, n_resamples=draws)
        else:
            first = second = torch.randint(0, n, (draws, n), generator=random)
        drawn = spearman(a[:, first].mean(-1).T, b[:, second].mean(-1).T)
        low, high = drawn.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        found = drawn.mean() if one == other else spearman(a.mean(-1), b.mean(-1))
        tops = [set(x.mean(-1).argsort()[:10].tolist()) for x in (a, b)]
        numbers = [round(float(x), 3) for x in (found, low, high)]
        rows.append([one, other, *numbers, len(tops[0] & tops[1]), n, int(run.sum())])
    return rows


def main() -> None:
    """Go on with the experiment for some minutes."""
    parser = argparse.ArgumentParser(
        description="Which ranking predicts what a model does without its heads?"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batches", type=int, default=1, help=f"sweeps of {BATCH} pairs each")
    parser.add_argument("--record", type=Path, help="write what there is, and run nothing")
    what = "run interchange and resample on this many heads of each end of the others' rankings; 0 for all"
    parser.add_argument("--shortlist", type=int, default=0, help=what)
    options = parser.parse_args()
    asked = (options.minutes, options.batches, options.shortlist)
    experiment = Experiment(options.data, options.folder, *asked)
    sizes = ", ".join(f"{name} {len(texts)}" for name, texts in experiment.asked.items())
    print(f"{options.batches * BATCH} pairs; held out: {sizes}", flush=True)
    if options.record:
        options.record.write_text(json.dumps(experiment.record(), separators=(",", ":")) + "\n")
        return
    with contextlib.suppress(OutOfTime):
        experiment.run()


if __name__ == "__main__":
    main()
