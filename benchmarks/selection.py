"""Which heads does each ablation name, and do the ablations agree? The sweeps of `experiment.py`, and their statistics.

All heads are swept on a few matched pairs of JailbreakBench, the ends of each ranking on more. A sweep is a file of the
folder, [metric, head, pair]; what is there is not run again.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from found import BOTH, UA
from torch import Tensor

from safetyheads import PromptSet, RefusalShift, Ships, tokenize
from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.rounds import Rounds
from safetyheads.engine.run import run
from safetyheads.evidence.carriers import judge_effects
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import SIDES, Side, prepare, prepare_pairs
from safetyheads.interventions.ablations import Ablation, InterchangeAblation, as_ablation
from safetyheads.probes.behaviour.controls import matched_heads, moved_by
from safetyheads.probes.single_heads import Together
from safetyheads.stats import (
    benjamini_hochberg,
    bootstrap_interval,
    disjoint_halves,
    permutation_p,
    spearman,
)
from safetyheads.storage.store import Store

JBB = "jailbreakbench"
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


class OutOfTime(Exception):
    """The minutes of this run are over; what is done is saved."""


class Steps:
    """What is done already, in the files of a folder, and how long this run may go on."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.end = folder, time.monotonic() + 60 * minutes

    def once(self, name: str, make: Callable[[], Any], about: str = "") -> Any:
        """What a file holds, a tensor or JSON; it is made where it is not there, and what that cost is said.

        Raises OutOfTime where it is not there and the minutes are over.
        """
        file = self.folder / name
        load = torch.load if file.suffix == ".pt" else lambda path: json.loads(path.read_text())
        if not file.exists():
            if time.monotonic() > self.end:
                raise OutOfTime
            start, found = time.process_time(), make()
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".pt":
                torch.save(found, file)
            else:
                file.write_text(json.dumps(found))
            print(f"{time.process_time() - start:.0f} s: {about or file.stem}", flush=True)
        return load(file)


class Selection:
    """The pairs that choose the heads, and what is swept on them."""

    def __init__(
        self, setting: Setting, model: Any, pairs: PromptSet, folder: Path, steps: Steps
    ) -> None:
        self.setting, self.model, self.folder, self.steps = setting, model, folder, steps
        fits = [short(texts, model, LONGEST) for texts in (pairs.harmful, pairs.harmless)]
        chosen = _rows(pairs, sorted(fits[0] & fits[1])).limit(setting.pairs)
        self.first = chosen.limit(setting.first)
        others = [n for n, text in enumerate(chosen.harmful) if text not in self.first.harmful]
        self.others = _rows(chosen, others)
        self.chosen = chosen

    def whole(self) -> PromptSet:
        """All pairs that choose the heads."""
        parts = (self.first, self.others)
        sides = (sum((getattr(part, side) for part in parts), ()) for side in SIDES)
        return PromptSet(JBB, *sides, paired=True)

    def swept(self, name: str) -> Tensor:
        """Refusal shift and Ships of every head on each pair, [metric, head, prompt]; the ends of the ranking that the
        first pairs give are run on the others too, and the other heads are NaN there."""
        first = self.swept_whole(name)
        heads = [self.head(n) for n in self.ends(name, first)]
        return torch.cat([first, self._part(name, self.others, heads)], -1)

    def swept_whole(self, name: str) -> Tensor:
        """The same of the first pairs, on which all heads are run."""
        return self._part(name, self.first.limit(self.setting.swept_on(name)))

    def _part(self, name: str, pairs: PromptSet, heads: Sequence[Head] | None = None) -> Tensor:
        name, ablation = f"sweeps/{name}{' of ends' if heads else ''}.pt", ABLATIONS[name]
        return self.steps.once(name, lambda: self._sweep(pairs, ablation, heads))

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

    def ranked(self, name: str, *, metric: int = 0, sign: float = -1) -> tuple[Head, ...]:
        """The five heads that an ablation names: by the refusal shift those whose loss lowers it most."""
        values = (sign * self.swept(name)[metric].mean(-1)).nan_to_num(-torch.inf)
        order = values.argsort(descending=True, stable=True)[:5].tolist()
        return tuple(self.head(n) for n in order)

    def named(self) -> dict[str, tuple[Head, ...]]:
        """The groups of five that zero ablation and undifferentiated attention name, and the one that opposes."""
        return {name: self.ranked(name) for name in BOTH} | {
            "opposing": self.ranked("zero", sign=1)
        }

    def matched(self, name: str) -> list[tuple[Head, ...]]:
        """Random groups of the layers of an ablation's first five, whose single heads together move the output nearest
        to what these do."""
        nearest = matched_heads(self.ranked(name), self._ships(name), DRAWS)
        return [tuple(sorted(some)) for some in nearest]

    def moved(self, name: str, groups: Sequence[Sequence[Head]]) -> list[float]:
        """How far the heads of each group, each ablated alone, move the output in all: Ships on the first pairs."""
        ships = self._ships(name)
        return [moved_by(some, ships) for some in groups]

    def _ships(self, name: str) -> HeadScores:
        values = self.swept(name)[1, :, : self.setting.first].mean(-1)
        grid = values.view(self.model.n_layers, self.model.n_heads)
        return HeadScores(grid, None, name, "ships", "nat")

    def head(self, place: int) -> Head:
        """The head at a place of the scores."""
        return Head(*divmod(place, self.model.n_heads))

    def swapped(self, name: str) -> Tensor:
        """Refusal shift by a swap of the heads in these groups only, [head, pair], on all pairs."""
        ablation, side = SWAPS[name]
        heads = sorted(set(sum(self.named().values(), ())))
        made = lambda: self._sweep(self.whole(), ablation, heads, side)  # noqa: E731
        return self.steps.once(f"sweeps/{name} of named.pt", made)[0]

    def specific(self) -> tuple[Tensor, Tensor]:
        """Refusal shift under zero ablation, [head, pair], on the harmful and on the harmless prompts of the pairs that
        had no part in choosing the heads that are run here."""
        harmful = self.swept("zero")[0, :, self.setting.first :]
        heads = [self.head(n) for n in self.ends("zero", self.swept("zero"))]
        made = lambda: self._sweep(self.others, ABLATIONS["zero"], heads, "harmless")[0]  # noqa: E731
        return harmful, self.steps.once("sweeps/zero, harmless.pt", made)

    def scaling(self) -> float:
        """The largest difference of scaling contribution to zero ablation in one layer [nat]."""

        def apart() -> float:
            heads = [Head(self.model.n_layers // 2, head) for head in range(self.model.n_heads)]
            scaled = self._sweep(self.first, as_ablation("scaling_contribution"), heads)
            found = scaled - self.swept("zero")[..., : self.setting.first]
            return found.nan_to_num().abs().max().item()

        return self.steps.once("sweeps/scaling.json", apart)

    def summary(self) -> dict[str, Any]:
        """What the folder holds of the sweeps, small: every head's mean scores and the statistics of this module."""
        found = {name: there(lambda n=name: self.swept(n)) for name in ABLATIONS}
        scores = {name: some for name, some in found.items() if some is not None}
        swept = {name: there(lambda n=name: self.swept_whole(n)) for name in ABLATIONS}
        swept = {name: some for name, some in swept.items() if some is not None}
        metrics = ("refusal_shift", "ships")
        return {
            "pairs": {name: some.shape[-1] for name, some in swept.items()},
            "pairs of ends": self.setting.pairs,
            "scores": {
                name: {
                    metric: [round(v, 4) for v in values.mean(-1).tolist()]
                    for metric, values in zip(metrics, some, strict=False)
                }
                for name, some in swept.items()
            },
            "ends": {
                name: {
                    str(self.head(n)): round(v, 4)
                    for n, v in enumerate(some[0].mean(-1).tolist())
                    if v == v
                }
                for name, some in scores.items()
            },
            "moved": {
                name: [
                    round(v, 4) for v in self.moved(name, [self.ranked(name), *self.matched(name)])
                ]
                for name in BOTH
            },
            "correlations": correlations(swept),
            "told by a pair": self.told(),
            "interchange of named": there(self.effects),
            "specificity": specificities(there(self.specific), self.model.n_heads),
            "scaling less zero, largest": there(self.scaling),
        }

    def told(self) -> dict[str, str]:
        """What zero ablation and undifferentiated attention together say of the first ten heads of each."""
        swept = {n: self.swept_whole(n)[0] for n in BOTH}
        labels = [str(self.head(n)) for n in range(len(swept["zero"]))]
        judged = judge_effects(swept, labels, "refusal_shift")
        return {
            name: judged.note([labels[n] for n in some.mean(-1).argsort()[:10].tolist()])
            for name, some in swept.items()
        }

    def effects(self) -> list[list[Any]]:
        """Of the named groups: heads, ablation, the sum of what each head does alone [nat] with its 95 % interval over
        pairs, p by flipping signs, and pairs; swaps beside zero ablation and undifferentiated attention, and what a
        harmless partner takes away beyond another harmful prompt."""
        shown = {name: self.swept(name)[0] for name in BOTH}
        swaps = {name: there(lambda n=name: self.swapped(n)) for name in SWAPS}
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


def there(made: Callable[[], Any]) -> Any:
    """What is in the folder already, or None."""
    with contextlib.suppress(OutOfTime, FileNotFoundError):
        return made()
    return None


def short(texts: Sequence[str], model: Any, longest: int) -> set[int]:
    """Which of these have at most so many tokens, the template's with them."""
    lengths = tokenize(list(texts), model.tokenizer).lengths
    return set((lengths <= longest).nonzero().flatten().tolist())


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
