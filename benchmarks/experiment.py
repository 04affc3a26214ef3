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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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
from safetyheads.evidence.carriers import judge_effects
from safetyheads.heads import Head, heads_like
from safetyheads.inputs import SIDES, Side, prepare, prepare_pairs
from safetyheads.interventions.ablating import mean_z
from safetyheads.interventions.ablations import Ablation, InterchangeAblation, as_ablation
from safetyheads.interventions.named import all_active
from safetyheads.judges import KeywordJudge
from safetyheads.metrics import refusal_tokens
from safetyheads.probes.behaviour.generation import generate
from safetyheads.probes.behaviour.utility import measure_utility
from safetyheads.probes.directions.direction import refusal_direction
from safetyheads.probes.single_heads import Together
from safetyheads.stats import (
    benjamini_hochberg,
    bootstrap_interval,
    disjoint_halves,
    permutation_p,
    spearman,
)
from safetyheads.storage.store import Store

UA = "undifferentiated_attention"
JBB, MALICIOUS, ADVBENCH = "jailbreakbench", "malicious_instruct", "advbench"
UNSAFE, SAFE, BENIGN = "xstest, unsafe", "xstest, safe", "jailbreakbench, benign"
LONGEST = 44
"""Tokens that a prompt of the selection may have, the template's with it: what is padded is paid for."""
ABLATIONS = {
    "zero": as_ablation("zero"),
    UA: as_ablation(UA),
    "interchange": InterchangeAblation(),
    "mean": as_ablation("mean"),
    "resample": as_ablation("resample"),
}
SWAPS = {
    "interchange": (InterchangeAblation(), "harmful"),
    "interchange (sufficiency)": (InterchangeAblation(), "harmless"),
    "interchange (same_side)": (InterchangeAblation("same_side"), "harmful"),
    "interchange (stranger)": (InterchangeAblation("stranger"), "harmful"),
}
"""What is lent to the heads of the named groups, and on which side: both ways, and the two controls."""
NEW_TOKENS = 12
DRAWS = 10


class Setting(NamedTuple):
    """What differs between the models: as much as the processor's time allows."""

    model: str
    pairs: int
    """Matched pairs that choose the heads."""
    first: int
    """Of these, the ones that all heads are run on."""
    ends: int
    """Heads of each end of a ranking that are run on the others too."""
    each: int
    """Held-out prompts of each set."""
    harmful: dict[str, slice]
    """Where they are looked for."""
    harmless: dict[str, slice]
    layer: int
    """Where a direction is read."""
    longest: int
    """Tokens that a held-out prompt may have."""
    fewer: Mapping[str, int] = MappingProxyType({})
    """Pairs that all heads are run on under ablations which the processor's time did not reach for."""
    before: int = 9
    """Conditions of zero ablation and undifferentiated attention that come before interchange."""

    def swept_on(self, ablation: str) -> int:
        """Pairs that all heads are run on."""
        return self.fewer.get(ablation, self.first)


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
STEPS = (("zero", UA), ("zero", UA, "interchange"), tuple(ABLATIONS))
"""Rankings whose conditions come before the next sweep."""
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
    decisive: bool = False
    """Whether harmless prompts are asked too, and the model's use for anything else is measured."""


class Experiment:
    """The model, the prompts, and what the folder already holds."""

    def __init__(self, setting: Setting, data: Path, folder: Path, minutes: float) -> None:
        self.setting, self.folder = setting, folder
        self.end = time.monotonic() + 60 * minutes
        for name in ("sweeps", "cells"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.model = load_model(setting.model)
        pairs = load_prompts(JBB, path=data)
        places = sorted(self._short(pairs.harmful, LONGEST) & self._short(pairs.harmless, LONGEST))
        chosen = _rows(pairs, places).limit(setting.pairs)
        self.first = chosen.limit(setting.first)
        others = [n for n, text in enumerate(chosen.harmful) if text not in self.first.harmful]
        self.others = _rows(chosen, others)
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
                name: tuple(texts[n] for n in sorted(self._short(texts, setting.longest)))[
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

    def _short(self, texts: Sequence[str], longest: int) -> set[int]:
        lengths = tokenize(list(texts), self.model.tokenizer).lengths
        return set((lengths <= longest).nonzero().flatten().tolist())

    def in_time(self) -> None:
        """Raise OutOfTime where the minutes are over."""
        if time.monotonic() > self.end:
            raise OutOfTime

    # Selection -------------------------------------------------------------------------------------------------------

    def swept(self, name: str) -> Tensor:
        """Refusal shift and Ships of every head on each pair, [metric, head, prompt]; the ends of the ranking that the
        first pairs give are run on the others too, and the other heads are NaN there."""
        first = self.swept_whole(name)
        heads = [Head(*divmod(n, self.model.n_heads)) for n in self.ends(name, first)]
        return torch.cat([first, self._part(name, self.others, heads)], -1)

    def swept_whole(self, name: str) -> Tensor:
        """The same of the first pairs, on which all heads are run."""
        return self._part(name, self.first.limit(self.setting.swept_on(name)))

    def _part(self, name: str, pairs: PromptSet, heads: Sequence[Head] | None = None) -> Tensor:
        file = self.folder / "sweeps" / f"{name}{' of ends' if heads else ''}.pt"
        if not file.exists():
            self.in_time()
            start = time.process_time()
            torch.save(self._sweep(pairs, ABLATIONS[name], heads), file)
            print(f"{file.stem}: {time.process_time() - start:.0f} s of processor", flush=True)
        return torch.load(file)

    def _sweep(
        self,
        pairs: PromptSet,
        ablation: Ablation,
        heads: Sequence[Head] | None = None,
        side: Side = "harmful",
    ) -> Tensor:
        execution = Execution(store=self.folder / "store", progress=False)
        both = "pairs" in ablation.needs
        inputs = prepare_pairs(self.model, pairs) if both else prepare(self.model, pairs, side=side)
        metric = RefusalShift() if both else Together((RefusalShift(), Ships()), ((), ()))
        measurement = measure(inputs, ablation, metric)
        heads = measurement.heads() if heads is None else heads
        if both:  # the prompts of the other side lend and are not run themselves
            about = {"side": side, "heads": [str(head) for head in heads]}
            store = Store(self.folder / "store", measurement.manifest(execution, **about))
            rows = range(len(pairs)) if side == "harmful" else range(len(pairs), 2 * len(pairs))
            found = Rounds(measurement, execution, store)(heads, rows)[None]
        else:
            readings = run(measurement, measurement.variants(heads), execution).readings
            found = torch.stack(readings.split(len(inputs.batch), -1))
        per = self.model.n_heads
        whole = torch.full((len(found), self.model.n_layers * per, len(pairs)), torch.nan)
        whole[:, [head.layer * per + head.head for head in heads]] = found.float().cpu()
        return whole

    def ends(self, name: str, found: Tensor) -> list[int]:
        """The first and the last heads by the refusal shift, and half as many of the first by Ships."""
        count, means = self.setting.ends, found[..., : self.setting.swept_on(name)].mean(-1)
        order = means[0].argsort(stable=True).tolist()
        places = {*order[:count], *order[-count:]}
        if len(means) > 1:
            places |= set(means[1].argsort(descending=True, stable=True)[: count // 2].tolist())
        return sorted(places)

    def named(self) -> dict[str, tuple[Head, ...]]:
        """The groups of five that zero ablation and undifferentiated attention name, and the one that opposes."""
        found = {
            ablation: heads
            for _, ablation, heads, decisive in itertools.islice(self.conditions(STEPS[0]), 3)
            if heads and decisive
        }
        opposes = next(c for c in self.conditions(STEPS[0]) if "raising" in c.name)
        return {**found, "opposing": opposes.heads}

    def swapped(self, name: str) -> Tensor:
        """Refusal shift by a swap of the heads in these groups only, [head, pair], on all pairs."""
        file = self.folder / "sweeps" / f"{name} of named.pt"
        if not file.exists():
            self.in_time()
            heads = sorted(set(sum(self.named().values(), ())))
            ablation, side = SWAPS[name]
            torch.save(self._sweep(self.whole(), ablation, heads, side), file)
        return torch.load(file)[0]

    def specific(self) -> tuple[Tensor, Tensor]:
        """Refusal shift under zero ablation, [head, pair], on the harmful and on the harmless prompts of the pairs that
        had no part in choosing the heads that are run here."""
        harmful = self.swept("zero")[0, :, self.setting.first :]
        file = self.folder / "sweeps" / "zero, harmless.pt"
        if not file.exists():
            self.in_time()
            heads = [
                Head(*divmod(n, self.model.n_heads)) for n in self.ends("zero", self.swept("zero"))
            ]
            torch.save(self._sweep(self.others, ABLATIONS["zero"], heads, "harmless")[0], file)
        return harmful, torch.load(file)

    def scores(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Of each ablation, [metric, head, prompt]."""
        return {name: self.swept(name) for name in names}

    def scaling(self) -> float:
        """The largest difference of scaling contribution to zero ablation in one layer [nat]."""
        file = self.folder / "sweeps" / "scaling.json"
        if not file.exists():
            self.in_time()
            heads = [Head(self.model.n_layers // 2, head) for head in range(self.model.n_heads)]
            scaled = self._sweep(self.first, as_ablation("scaling_contribution"), heads)
            apart = scaled - self.swept("zero")[..., : self.setting.first]
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
        zero, own = tops["zero", "refusal_shift"], tops[UA, "refusal_shift"]
        swapped = tops.get(("interchange", "refusal_shift"))
        matched = {
            name: self.matched(heads, scores[name][1, :, : self.setting.first].mean(-1))
            for name, heads in (("zero", zero), (UA, own))
        }
        yield Condition("untouched", "", (), True)
        yield Condition("zero, refusal_shift, top 5", "zero", zero, True)
        yield Condition(f"{UA}, refusal_shift, top 5", UA, own, True)
        yield Condition(f"{UA}, refusal_shift, top 5", "zero", own)
        yield Condition("zero, raising, top 5", "zero", ranked("zero", 0, 1))
        for draw, name in itertools.product(range(DRAWS), (UA, "zero")):
            if draw == 2 and swapped:
                yield Condition("interchange, refusal_shift, top 5", "zero", swapped, True)
                yield Condition("interchange, refusal_shift, top 5", "harmless mean", swapped)
                yield Condition("zero, refusal_shift, top 5", "harmless mean", zero)
            if draw == 4:
                yield Condition("direction", "direction", (Head(self.setting.layer, 0),), True)
            yield Condition(f"{name}, random {draw}", name, matched[name][draw])
        for size, name in itertools.product((1, 3), ("zero", UA)):
            yield Condition(
                f"{name}, refusal_shift, top {size}", name, tops[name, "refusal_shift"][:size]
            )
        for (name, metric), heads in tops.items():
            yield Condition(f"{name}, {metric}, top 5", "zero", heads)
        if swapped:
            yield Condition("interchange, raising, top 5", "zero", ranked("interchange", 0, 1))
        yield Condition(f"{UA}, raising, top 5", UA, ranked(UA, 0, 1))

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
        key = f"{dataset} | {condition.ablation} | {names}"
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
            found = refusal_direction(self.model, self.whole(), layer, progress=False)
            stack = (found.ablated(),)
        elif condition.ablation == "harmless mean":
            stack = (AblateHeads(condition.heads, as_ablation("mean"), self.means()),)
        else:
            stack = (AblateHeads(condition.heads, as_ablation(condition.ablation)),)
        with all_active(stack, self.model):
            yield

    def whole(self) -> PromptSet:
        """All pairs that choose the heads."""
        parts = (self.first, self.others)
        sides = (sum((getattr(part, side) for part in parts), ()) for side in SIDES)
        return PromptSet(JBB, *sides, paired=True)

    def means(self) -> Tensor:
        """Every head's mean output over the selection's harmless prompts: interchange, for what is no pair."""
        file = self.folder / "harmless mean.pt"
        if not file.exists():
            texts = list(self.whole().harmless)
            torch.save(mean_z(self.model, tokenize(texts, self.model.tokenizer)), file)
        return torch.load(file)

    def useful(self, condition: Condition) -> list[float]:
        """What is left of the model's use: cross-entropy of held-out prose [nat a token], right answers of 40."""
        names = " ".join(map(str, sorted(condition.heads)))
        key = f"utility | {condition.ablation} | {names}"
        file = self.folder / "cells" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            self.in_time()
            with self._active(condition):
                found = measure_utility(self.model, progress=False)
            loss, right = (found.losses["baseline"].mean(), found.correct["baseline"].sum())
            file.write_text(json.dumps({"key": key, "utility": [float(loss), int(right)]}))
        return json.loads(file.read_text())["utility"]

    def record(self) -> dict[str, Any]:
        """What there is, small: every head's mean scores, and a letter an answer."""
        self.end = time.monotonic()  # nothing new is run
        found = {name: self._there(lambda n=name: self.swept(n)) for name in ABLATIONS}
        scores = {name: some for name, some in found.items() if some is not None}
        swept = {name: self._there(lambda n=name: self.swept_whole(n)) for name in ABLATIONS}
        swept = {name: some for name, some in swept.items() if some is not None}
        done, conditions, useful = set(), [], []
        for rankings in STEPS:
            for condition in self.conditions([n for n in rankings if n in scores]):
                heads = " ".join(map(str, condition.heads))
                for dataset in self.asked:
                    key = (condition.name, condition.ablation, dataset)
                    answers = self._there(lambda c=condition, d=dataset: self.cell(d, c))
                    if answers and key not in done:
                        done.add(key)
                        said = "".join(LETTERS[answer["verdict"]] for answer in answers)
                        conditions.append([*key, heads, said])
                if use := self._there(lambda c=condition: self.useful(c)):
                    useful.append([condition.name, condition.ablation, *use])
        metrics = ("refusal_shift", "ships")
        return {
            "model": self.setting.model,
            "heads": [self.model.n_layers, self.model.n_heads],
            "pairs": {name: some.shape[-1] for name, some in swept.items()},
            "pairs of ends": self.setting.pairs,
            "prompts": {name: len(texts) for name, texts in (self.harmful | self.harmless).items()},
            "scores": {
                name: {
                    metric: [round(v, 4) for v in values.mean(-1).tolist()]
                    for metric, values in zip(metrics, some, strict=False)
                }
                for name, some in swept.items()
            },
            "ends": {
                name: {
                    str(Head(*divmod(n, self.model.n_heads))): round(v, 4)
                    for n, v in enumerate(some[0].mean(-1).tolist())
                    if v == v
                }
                for name, some in scores.items()
            },
            "correlations": correlations(swept),
            "told by a pair": self.told(),
            "interchange of named": self._there(self.effects),
            "specificity": specificities(self._there(self.specific), self.model.n_heads),
            "scaling less zero, largest": self._there(self.scaling),
            "tokens": NEW_TOKENS,
            "answers": conditions,
            "utility": [list(row) for row in dict.fromkeys(map(tuple, useful))],
        }

    def told(self) -> dict[str, str]:
        """What zero ablation and undifferentiated attention together say of the first ten heads of each."""
        swept = {n: self.swept_whole(n)[0] for n in STEPS[0]}
        per = self.model.n_heads
        labels = [str(Head(*divmod(n, per))) for n in range(len(swept["zero"]))]
        judged = judge_effects(swept, labels, "refusal_shift")
        return {
            name: judged.note([labels[n] for n in some.mean(-1).argsort()[:10].tolist()])
            for name, some in swept.items()
        }

    def effects(self) -> list[list[Any]]:
        """Of the named groups: heads, ablation, the sum of what each head does alone [nat] with its 95 % interval over
        pairs, p by flipping signs, and pairs; swaps beside zero ablation and undifferentiated attention, and what a
        harmless partner takes away beyond another harmful prompt."""
        shown = {name: self.swept(name)[0] for name in STEPS[0]}
        swaps = {name: self._there(lambda n=name: self.swapped(n)) for name in SWAPS}
        shown |= {name: some for name, some in swaps.items() if some is not None}
        if {"interchange", "interchange (same_side)"} <= shown.keys():
            beyond = shown["interchange"] - shown["interchange (same_side)"]
            shown["interchange less same side"] = beyond
        rows = []
        for name, heads in self.named().items():
            places = [head.layer * self.model.n_heads + head.head for head in heads]
            for ablation, scores in shown.items():
                effect = scores[places].double().sum(0)
                effect = effect[effect.isfinite()]  # on the other pairs only the ends were run
                low, high = bootstrap_interval(effect)
                numbers = (effect.mean(), low, high, permutation_p(effect))
                rounded = [float(f"{float(x):.3g}") for x in numbers]
                rows.append([name, " ".join(map(str, heads)), ablation, *rounded, len(effect)])
        return rows

    def ask(self, names: Sequence[str], count: int | None = None) -> None:
        """Answers under the first of the conditions that these rankings give."""
        for condition in itertools.islice(self.conditions(names), count):
            for n, dataset in enumerate(self.asked):
                if n == 0 or condition.decisive:
                    self.cell(dataset, condition)

    def _there(self, made: Callable[[], Any]) -> Any:
        """What is in the folder already, or None."""
        with contextlib.suppress(OutOfTime, FileNotFoundError):
            return made()
        return None

    def run(self) -> None:
        """All steps, in the order of what they tell."""
        self.ask(STEPS[0], self.setting.before)
        self.swapped("interchange")
        if self.setting.fewer:  # a sweep of interchange takes long
            self.ask(STEPS[0])
        self.specific()
        for name in SWAPS:
            self.swapped(name)
        for names in STEPS[1:]:
            self.ask(names)
        for condition in self.conditions(STEPS[1]):
            if condition.decisive:
                self.useful(condition)
        self.scaling()
        print("all is done", flush=True)


def _rows(prompts: PromptSet, rows: Sequence[int]) -> PromptSet:
    sides = (tuple(side[n] for n in rows) for side in (prompts.harmful, prompts.harmless))
    named = tuple(prompts.categories[n] for n in rows) if prompts.categories else ()
    return PromptSet(prompts.name, *sides, categories=named, paired=True)


def specificities(sides: tuple[Tensor, Tensor] | None, per: int) -> list[list[Any]]:
    """How much more each head's loss lowers refusal of harmful prompts than of their harmless partners.

    A row a head: name, shift on harmful and on harmless prompts, the second less the first with its 95 % interval, p by
    flipping signs, q over these heads, pairs.
    """
    if sides is None:
        return []
    places = sides[0][:, 0].isfinite().nonzero().flatten()
    harmful, harmless = (side[places].double() for side in sides)
    apart = harmless - harmful
    low, high = bootstrap_interval(apart)
    p = permutation_p(apart)
    numbers = (
        harmful.mean(-1),
        harmless.mean(-1),
        apart.mean(-1),
        low,
        high,
        p,
        benjamini_hochberg(p),
    )
    rows = torch.stack([some.double() for some in numbers], -1).tolist()
    names = [str(Head(*divmod(n, per))) for n in places.tolist()]
    return [
        [name, *(float(f"{v:.3g}") for v in row), apart.shape[-1]]
        for name, row in zip(names, rows, strict=True)
    ]


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
