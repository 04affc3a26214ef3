"""Which ablation's ranking predicts what a model does without its heads? A sweep of all heads, then held-out answers.

    python benchmarks/experiment.py --model sibling --data DATA --folder FOLDER --minutes 8
    python benchmarks/experiment.py --model sibling --data DATA --folder FOLDER --record benchmarks/records/sibling.json

All heads are swept on a few matched pairs of JailbreakBench under zero, mean and resample ablation, undifferentiated
attention and interchange (scaling contribution is zero but for 1e-5; one layer checks it), and the ends of each ranking
on more pairs: of `sibling`, the SmolLM2-135M that was taught to refuse, or of `qwen`. Groups that each ranking names,
groups of the opposite sign, random groups of the same layers and a direction are then taken away while the model
answers prompts that had no part in the choice. Each step is saved in the folder: run the command again until it says
that all is done. No answer is kept, only verdicts and hashes.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas
from selection import (
    ABLATIONS,
    BOTH,
    DRAWS,
    JBB,
    SWAPS,
    UA,
    OutOfTime,
    Selection,
    Setting,
    Steps,
    short,
    there,
)
from torch import Tensor

from safetyheads import AblateHeads, Decoding, RefusalShift, load_model, load_prompts, tokenize
from safetyheads.heads import Head
from safetyheads.interventions.ablating import mean_z
from safetyheads.interventions.ablations import as_ablation
from safetyheads.interventions.named import all_active
from safetyheads.judges import KeywordJudge
from safetyheads.metrics import refusal_tokens
from safetyheads.probes.behaviour.generation import generate
from safetyheads.probes.behaviour.utility import measure_utility
from safetyheads.probes.directions.direction import refusal_direction

MALICIOUS, ADVBENCH = "malicious_instruct", "advbench"
UNSAFE, SAFE, BENIGN = "xstest, unsafe", "xstest, safe", "jailbreakbench, benign"
NEW_TOKENS = 12

SETTINGS = {
    "qwen": Setting(
        "qwen2.5-coder-0.5b-instruct",
        **{"pairs": 44, "first": 12, "ends": 10, "layer": 12, "longest": 44, "each": 10},
        harmful={
            JBB: slice(None),
            MALICIOUS: slice(1, None, 3),
            ADVBENCH: slice(None, None, 7),
            UNSAFE: slice(None, None, 5),
        },
        harmless={BENIGN: slice(None), SAFE: slice(None, None, 5)},
        fewer={"mean": 6, "interchange": 6, "resample": 6},
        before=26,
    ),
    "sibling": Setting(
        "smollm2-135m-ssft",  # it learnt from AdvBench
        **{"pairs": 40, "first": 8, "ends": 16, "layer": 22, "longest": 60, "each": 24},
        harmful={
            JBB: slice(None, None, 2),
            MALICIOUS: slice(1, None, 3),
            UNSAFE: slice(None, None, 5),
        },
        harmless={BENIGN: slice(1, None, 2), SAFE: slice(None, None, 5)},
    ),
}
STEPS = (BOTH, (*BOTH, "interchange"), tuple(ABLATIONS))
"""Rankings whose conditions come before the next sweep."""
LETTERS = {"refuse": "r", "comply": "c", "deflect": "d", "degenerate": "b"}
"""Verdicts in a record."""
Tops = dict[tuple[str, str], tuple[Head, ...]]
"""The first five heads by an ablation and a metric."""


class Condition(NamedTuple):
    """What is done while the model answers."""

    name: str
    ablation: str
    """What is done to the heads; "" for the untouched model, "direction" for a direction."""
    heads: tuple[Head, ...] = ()
    decisive: bool = False
    """Whether harmless prompts are asked too, and the model's use for anything else is measured."""


class Experiment:
    """The model, the held-out prompts, and what the folder already holds."""

    def __init__(self, setting: Setting, data: Path, folder: Path, minutes: float) -> None:
        self.setting, self.steps = setting, Steps(folder, minutes)
        self.model = load_model(setting.model)
        pairs = load_prompts(JBB, path=data)
        self.selection = Selection(setting, self.model, pairs, folder, self.steps)
        chosen = self.selection.chosen
        table = pandas.read_csv(data / "xstest.csv").groupby("label")["prompt"].apply(list)
        apart = {
            JBB: [text for text in pairs.harmful if text not in chosen.harmful],
            BENIGN: [text for text in pairs.harmless if text not in chosen.harmless],
            MALICIOUS: load_prompts(MALICIOUS, path=data).harmful,
            ADVBENCH: load_prompts(ADVBENCH, path=data).harmful,
            UNSAFE: table["unsafe"],
            SAFE: table["safe"],
        }
        self.harmful, self.harmless = (
            {
                name: tuple(texts[n] for n in sorted(short(texts, self.model, setting.longest)))[
                    : setting.each
                ]
                for name, where in some.items()
                if (texts := apart[name][where])
            }
            for some in (setting.harmful, setting.harmless)
        )

    @property
    def asked(self) -> dict[str, tuple[str, ...]]:
        """The held-out prompts: all harmful sets together, and each harmless one."""
        return {", ".join(self.harmful): sum(self.harmful.values(), ()), **self.harmless}

    def conditions(self, names: Sequence[str]) -> Iterator[Condition]:
        """All conditions that these ablations' rankings ask for, in the order of what they tell."""
        ranked = self.selection.ranked
        tops: Tops = {(name, "refusal_shift"): ranked(name) for name in names}
        tops |= {(name, "ships"): ranked(name, metric=1, sign=1) for name in BOTH}
        zero, own = tops["zero", "refusal_shift"], tops[UA, "refusal_shift"]
        swapped = tops.get(("interchange", "refusal_shift"))
        matched = {name: self.selection.matched(name) for name in BOTH}
        yield Condition("untouched", "", (), True)
        yield Condition("zero, refusal_shift, top 5", "zero", zero, True)
        yield Condition(f"{UA}, refusal_shift, top 5", UA, own, True)
        yield Condition(f"{UA}, refusal_shift, top 5", "zero", own)
        yield Condition("zero, raising, top 5", "zero", ranked("zero", sign=1))
        for draw, name in itertools.product(range(DRAWS), (UA, "zero")):
            if draw == 2 and swapped:
                yield Condition("interchange, refusal_shift, top 5", "zero", swapped, True)
                yield Condition("interchange, refusal_shift, top 5", "harmless mean", swapped)
                yield Condition("zero, refusal_shift, top 5", "harmless mean", zero)
            if draw == 4:
                yield Condition("direction", "direction", (Head(self.setting.layer, 0),), True)
            yield Condition(f"{name}, random {draw}", name, matched[name][draw])
        yield from self._smaller(tops, (1, 3))
        for (name, metric), heads in tops.items():
            yield Condition(f"{name}, {metric}, top 5", "zero", heads)
        if swapped:
            yield Condition("interchange, raising, top 5", "zero", ranked("interchange", sign=1))
        yield Condition(f"{UA}, raising, top 5", UA, ranked(UA, sign=1))
        yield from self._smaller(tops, (2, 4))

    def _smaller(self, tops: Tops, sizes: Sequence[int]) -> Iterator[Condition]:
        for size, name in itertools.product(sizes, BOTH):
            heads = tops[name, "refusal_shift"][:size]
            yield Condition(f"{name}, refusal_shift, top {size}", name, heads)

    def cell(self, dataset: str, condition: Condition) -> list[dict[str, Any]]:
        """The judged answers to one set under one condition."""
        key, file = _key(dataset, condition)
        made = lambda: {"key": key, "answers": self._answers(dataset, condition)}  # noqa: E731
        return self.steps.once(file, made, f"{condition.name}, {key}")["answers"]

    def _answers(self, dataset: str, condition: Condition) -> list[dict[str, Any]]:
        texts = self.asked[dataset]
        batch = tokenize(texts, self.model.tokenizer)
        refusal = refusal_tokens(self.model.tokenizer, RefusalShift().openings, batch.texts[0])
        with self._active(condition):
            made = generate(
                self.model, batch, Decoding(NEW_TOKENS), rows=len(texts), refusal=refusal
            )
        said = [self.model.tokenizer.decode(t, skip_special_tokens=True) for t in made.tokens]
        verdicts = KeywordJudge()(texts, said)
        return [
            {
                "verdict": verdict,
                "odds": odds,
                "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
            }
            for verdict, odds, text in zip(verdicts, made.refusal_log_odds, said, strict=True)
        ]

    @contextlib.contextmanager
    def _active(self, condition: Condition) -> Iterator[None]:
        if not condition.ablation:
            yield
            return
        if condition.ablation == "direction":
            layer = condition.heads[0].layer
            found = refusal_direction(self.model, self.selection.whole(), layer, progress=False)
            stack = (found.ablated(),)
        elif condition.ablation == "harmless mean":
            stack = (AblateHeads(condition.heads, as_ablation("mean"), self.means()),)
        else:
            stack = (AblateHeads(condition.heads, as_ablation(condition.ablation)),)
        with all_active(stack, self.model):
            yield

    def means(self) -> Tensor:
        """Every head's mean output over the selection's harmless prompts: interchange, for what is no pair."""
        texts = list(self.selection.whole().harmless)
        made = lambda: mean_z(self.model, tokenize(texts, self.model.tokenizer))  # noqa: E731
        return self.steps.once("harmless mean.pt", made)

    def useful(self, condition: Condition) -> list[float]:
        """What is left of the model's use: cross-entropy of held-out prose [nat a token], right answers of 40."""
        key, file = _key("utility", condition)

        def measured() -> dict[str, Any]:
            with self._active(condition):
                found = measure_utility(self.model, progress=False)
            loss, right = found.losses["baseline"].mean(), found.correct["baseline"].sum()
            return {"key": key, "utility": [float(loss), int(right)]}

        return self.steps.once(file, measured, f"{condition.name}, {key}")["utility"]

    def record(self) -> dict[str, Any]:
        """What there is, small: every head's mean scores, and a letter an answer."""
        self.steps.end = time.monotonic()  # nothing new is run
        swept = self.selection.summary()
        done, conditions, useful = set(), [], []
        for rankings in STEPS:
            for condition in self.conditions([n for n in rankings if n in swept["ends"]]):
                heads = " ".join(map(str, condition.heads))
                for dataset in self.asked:
                    key = (condition.name, condition.ablation, dataset)
                    answers = there(lambda c=condition, d=dataset: self.cell(d, c))
                    if answers and key not in done:
                        done.add(key)
                        said = "".join(LETTERS[answer["verdict"]] for answer in answers)
                        conditions.append([*key, heads, said])
                if use := there(lambda c=condition: self.useful(c)):
                    useful.append([condition.name, condition.ablation, *use])
        return {
            "model": self.setting.model,
            "heads": [self.model.n_layers, self.model.n_heads],
            "prompts": {name: len(texts) for name, texts in (self.harmful | self.harmless).items()},
            **swept,
            "tokens": NEW_TOKENS,
            "answers": conditions,
            "utility": [list(row) for row in dict.fromkeys(map(tuple, useful))],
        }

    def ask(self, names: Sequence[str], count: int | None = None) -> None:
        """Answers under the first of the conditions that these rankings give."""
        for condition in itertools.islice(self.conditions(names), count):
            for n, dataset in enumerate(self.asked):
                if n == 0 or condition.decisive:
                    self.cell(dataset, condition)

    def use(self, names: Sequence[str]) -> None:
        """What is left of the model's use under the decisive of these conditions."""
        for condition in self.conditions(names):
            if condition.decisive:
                self.useful(condition)

    def run(self) -> None:
        """All steps, in the order of what they tell."""
        selection = self.selection
        self.ask(BOTH, self.setting.before)
        if self.setting.fewer:  # a sweep of interchange takes long
            self.ask(BOTH)
        selection.specific()
        self.use(BOTH)
        for name in SWAPS:
            selection.swapped(name)
        for names in STEPS[1:]:
            self.ask(names)
        self.use(STEPS[1])
        selection.scaling()
        print("all is done", flush=True)


def _key(asked: str, condition: Condition) -> tuple[str, str]:
    """What a cell is, whatever its condition is called, and the file that holds it."""
    key = f"{asked} | {condition.ablation} | {' '.join(map(str, sorted(condition.heads)))}"
    return key, f"cells/{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def main() -> None:
    """Go on with the experiment for some minutes."""
    parser = argparse.ArgumentParser(
        description="Which ranking predicts what a model does without its heads?"
    )
    parser.add_argument("--model", choices=SETTINGS, default="qwen")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--record", type=Path, help="write what there is, and run nothing")
    options = parser.parse_args()
    setting = SETTINGS[options.model]
    experiment = Experiment(setting, options.data, options.folder, options.minutes)
    sizes = ", ".join(f"{name} {len(texts)}" for name, texts in experiment.asked.items())
    print(f"{setting.pairs} pairs; held out: {sizes}", flush=True)
    if options.record:
        options.record.write_text(json.dumps(experiment.record(), separators=(",", ":")) + "\n")
        return
    with contextlib.suppress(OutOfTime):
        experiment.run()


if __name__ == "__main__":
    main()
