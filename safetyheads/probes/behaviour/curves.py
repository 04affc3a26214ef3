"""How do refusal and attack success change as the top heads of a ranking are ablated, beside random heads?

The experiment of Zhou et al. (arXiv:2410.13708, Fig. 4 and Tables 1 and 5): the top heads are ablated, one to five of
them, here beside as many random heads of the same layers. An ablation of random heads is no neutral control: what it
writes may move the outcome by itself, so that it is compared with the untouched model too.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import Head, HeadScores, parse_heads
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import (
    Ablation,
    UndifferentiatedAttention,
    as_ablation,
    describe,
)
from safetyheads.interventions.named import BASELINE
from safetyheads.judges.verdicts import VERDICTS
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.answers import Behaviour, measure_behaviour
from safetyheads.probes.behaviour.controls import (
    how_far,
    mean_over,
    moved_by,
    nearest_draws,
    random_heads,
    require_ships,
)
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.stats import benjamini_hochberg, bootstrap_interval, permutation_p
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

CONTROL = f"random - {BASELINE}"
COMPARED = [("top", "random"), ("top", BASELINE), ("random", BASELINE)]
COMPARED += [("opposing", "random"), ("opposing", BASELINE)]


class Arm(NamedTuple):
    """A set of heads that was ablated, and how it was chosen."""

    arm: str
    """"top" of the ranking, "opposing" heads from its other end, or "random" heads of the same layers."""
    size: int
    """How many heads."""
    seed: int
    """Which random draw; 0 for the ranking's."""
    heads: tuple[Head, ...]
    moved: float = math.nan
    """How far these heads, each ablated alone, move the output in all [nat]; NaN where that was not given."""


@dataclass(frozen=True)
class RefusalCurve:
    """Behaviour against the number of ablated heads: the ranking's beside random ones of the same layers."""

    behaviour: Behaviour
    """All answers; `groups` names its interventions."""
    groups: dict[str, Arm]
    """What each intervention ablates."""
    ablation: str
    """What was done to the heads."""

    def to_frame(self, judge: str | None = None) -> "pandas.DataFrame":
        """`Behaviour.rates` with the columns ablation, arm, size, seed, heads, moved (`Arm.moved`) and control_moves.

        The baseline has size 0. `control_moves` says of a dataset, side, verdict and size whether the random heads of
        that size move the rate away from the untouched model's (q of `differences` at most 0.05).
        """
        table = self.behaviour.rates(judge)
        groups = [self.groups.get(name, Arm(BASELINE, 0, 0, ())) for name in table["intervention"]]
        tested = self.differences(judge)
        moving = tested[(tested["compared"] == CONTROL) & (tested["q"] <= 0.05)]
        asked = ["dataset", "side", "verdict", "size"]
        moves = set(moving[asked].itertuples(index=False, name=None))
        table = table.assign(size=[group.size for group in groups])
        return table.assign(
            moved=[group.moved for group in groups],
            control_moves=[row in moves for row in table[asked].itertuples(index=False, name=None)],
            ablation=self.ablation,
            arm=[group.arm for group in groups],
            seed=[group.seed for group in groups],
            heads=[" ".join(map(str, group.heads)) for group in groups],
        )

    def differences(self, judge: str | None = None) -> "pandas.DataFrame":
        """How far each arm goes beyond another: a row a dataset, side, verdict, size and comparison.

        Columns dataset, side, verdict, size, compared, difference, low, high, p, q, n, draws. `compared` is
        "top - random", "top - baseline", "random - baseline" and, where they were asked, the same of "opposing".
        `difference` is the one rate minus the other, paired by prompt, with the mean over the random draws; `low` and
        `high` its 95 % bootstrap interval over prompts, `p` a two-sided sign-flip permutation p-value, `q`
        Benjamini and Hochberg's over all rows. The random draws (`draws` of them) are taken as given. Tested once for
        each judge; what comes back is the caller's own.
        """
        if judge not in self._compared:
            self._compared[judge] = self._compare(judge)
        return self._compared[judge].copy()

    @cached_property
    def _compared(self) -> "dict[str | None, pandas.DataFrame]":
        return {}

    def _compare(self, judge: str | None) -> "pandas.DataFrame":
        import pandas

        said = self.behaviour.verdicts(judge)
        sizes = sorted({group.size for group in self.groups.values()})
        tables = []
        for dataset, side in dict.fromkeys((dataset, side) for dataset, side, _ in said):
            rows, paired = [], []
            for verdict, size in itertools.product(VERDICTS, sizes):
                hits = self._hits(said, (dataset, side), verdict, size)
                draws = len(hits.get("random", []))
                for first, second in COMPARED:
                    if first in hits and second in hits and len(hits[first][0]) > 1:
                        means = [torch.stack(hits[arm]).mean(0) for arm in (first, second)]
                        rows.append((dataset, side, verdict, size, f"{first} - {second}", draws))
                        paired.append(means[0] - means[1])
            if paired:
                names = ["dataset", "side", "verdict", "size", "compared", "draws"]
                made = pandas.DataFrame(rows, columns=names)
                tables.append(made.assign(**_tested(torch.stack(paired))))
        columns = ["dataset", "side", "verdict", "size", "compared"]
        columns += ["difference", "low", "high", "p", "q", "n", "draws"]
        if not tables:
            return pandas.DataFrame(columns=columns)
        table = pandas.concat(tables, ignore_index=True)
        q = benjamini_hochberg(torch.tensor(table["p"].to_numpy()))
        return table.assign(q=q.numpy())[columns]

    def _hits(
        self,
        said: Mapping[tuple[str, str, str], Sequence[str]],
        asked: tuple[str, str],
        verdict: str,
        size: int,
    ) -> dict[str, list[Tensor]]:
        """On which prompts each group of an arm got the verdict, as 0 and 1."""
        hits: dict[str, list[Tensor]] = {}
        arms = {BASELINE: BASELINE} | {n: g.arm for n, g in self.groups.items() if g.size == size}
        for name, arm in arms.items():
            if (given := said.get((*asked, name))) is not None:
                hits.setdefault(arm, []).append(torch.tensor([float(v == verdict) for v in given]))
        return hits

    @property
    def control_note(self) -> str | None:
        """What the random heads do to refusals by themselves, in a sentence; None where there are none."""
        table = self.differences()
        control = table[(table["compared"] == CONTROL) & (table["verdict"] == "refuse")]
        if control.empty:
            return None
        moving, match = control[control["q"] <= 0.05], self._match()
        if moving.empty:
            draws = control["draws"].max()
            return f"{draws} draws of random heads leave refusals where they were{match}"
        parts = [
            f"{row.difference:+.0%} on {row.dataset}, {row.side} ({row.size} heads)"
            for row in moving.itertuples()
        ]
        said = f"the control is not neutral: random heads move refusals by {', '.join(parts)}"
        return f"{said}{match}"

    def _match(self) -> str:
        """How far random heads move the output, beside the top ones: a poor match is no fair control."""
        size = max(group.size for group in self.groups.values())
        moved: dict[str, list[float]] = {}
        for group in self.groups.values():
            if group.size == size and math.isfinite(group.moved):
                moved.setdefault(group.arm, []).append(group.moved)
        if not {"top", "random"} <= moved.keys():
            return ""
        random = sum(moved["random"]) / len(moved["random"])
        return f"; {size} of them move the output by {random:.2g} nat, the top ones by {moved['top'][0]:.2g}"

    def save(self, folder: str | Path, *, texts: bool = False) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it.

        `texts` is as for `Behaviour.save`.
        """
        behaviour = self.behaviour if texts else self.behaviour.without_texts()
        return save_result(replace(self, behaviour=behaviour), folder)

    @classmethod
    def load(cls, folder: str | Path) -> "RefusalCurve":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def _tested(paired: Float[Tensor, "row prompt"]) -> dict[str, Any]:
    """The mean of each row's differences with its interval and test."""
    low, high = bootstrap_interval(paired)
    numbers = {"difference": paired.mean(-1), "low": low, "high": high, "p": permutation_p(paired)}
    return {**{name: some.tolist() for name, some in numbers.items()}, "n": paired.shape[1]}


def refusal_under_ablation(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    ranking: HeadScores | Sequence[Head | str],
    *,
    ablation: Ablation | str | None = None,
    sizes: Sequence[int] = (1, 2, 3, 4, 5),
    random_seeds: Sequence[int] = tuple(range(10)),
    moved: HeadScores | bool = True,
    opposing: bool = False,
    **options: Any,
) -> RefusalCurve:
    """Measure refusal and attack success before and after ablating the top heads, beside random heads.

    `ranking` is `HeadScores` or heads, best first; rank on other prompts than these. `ablation` is what is done to the
    heads, `UndifferentiatedAttention()` by default; mean ablation writes the mean over these prompts. `sizes` are the
    numbers of heads ablated together. For each of `random_seeds`, each top head is matched by a random head of its
    layer that is not among the top ones; a larger group holds the smaller. Of many such draws those are taken whose
    heads, each alone, move the output most nearly as far as the top heads do: `moved` is every head's Ships under this
    ablation, or True, and it is measured on the first of the prompts for the heads of these layers; with False the
    draws are matched on the layer only. (Where the layers have fewer different draws, all are taken.) `opposing` asks
    the heads from the other end of the ranking too (`HeadScores.opposing`), in a third arm. `options` are those of
    `measure_behaviour`.

    Raises ValueError for a ranking shorter than the largest size, a layer with too few other heads, `moved` of another
    ablation or metric, a ranking without another end, and what `measure_behaviour` refuses.
    """
    model, prompts = load_model(model), load_prompts(prompts)
    ablation = UndifferentiatedAttention() if ablation is None else as_ablation(ablation)
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes is {list(sizes)}: give different numbers of at least 1")
    heads = _best(ranking, max(sizes))
    arms = {"top": heads}
    if opposing:
        arms["opposing"] = _other_end(ranking, max(sizes))
    if isinstance(moved, HeadScores):
        require_ships(moved, ablation)
    draws = {seed: random_heads(heads, model.n_heads, seed) for seed in random_seeds}
    if moved is True and draws:
        asked = {name: options[name] for name in ("template", "progress") if name in options}
        moved = how_far(model, prompts, sum(arms.values(), ()), ablation, **asked)
    how = moved if isinstance(moved, HeadScores) else None
    if how is not None:
        nearest = nearest_draws(heads, how, seed=next(iter(draws), 0))
        draws = dict(zip(draws, nearest, strict=False))

    def arm(name: str, size: int, seed: int, some: Sequence[Head]) -> Arm:
        return Arm(name, size, seed, tuple(some[:size]), _moved(some[:size], how))

    groups: dict[str, Arm] = {}
    for size in sizes:
        groups |= {f"{name} {size}": arm(name, size, 0, some) for name, some in arms.items()}
        for seed, drawn in draws.items():
            groups[f"random {size}, seed {seed}"] = arm("random", size, seed, drawn)
    mean = mean_over(model, prompts, options.get("template")) if "mean" in ablation.needs else None
    interventions = {name: AblateHeads(g.heads, ablation, mean) for name, g in groups.items()}
    behaviour = measure_behaviour(model, prompts, {BASELINE: None, **interventions}, **options)
    provenance = {**behaviour.provenance, "ablation": describe(ablation)}
    return RefusalCurve(replace(behaviour, provenance=provenance), groups, ablation.name)


def _best(ranking: HeadScores | Sequence[Any], count: int) -> tuple[Head, ...]:
    if isinstance(ranking, HeadScores):
        table = ranking.top(min(count, ranking.values.numel()))
        heads = [Head(int(n), int(h)) for n, h in zip(table["layer"], table["head"], strict=True)]
    else:
        heads = list(parse_heads(ranking))
    if len(heads) < count or len(set(heads)) < len(heads):
        raise ValueError(
            f"the ranking has {len(set(heads))} different heads and {len(heads)} in all; "
            f"the largest size asks for {count}, each once"
        )
    return tuple(heads[:count])


def _other_end(ranking: HeadScores | Sequence[Any], count: int) -> tuple[Head, ...]:
    if not isinstance(ranking, HeadScores):
        raise ValueError(
            "opposing heads stand at the other end of HeadScores; give them as the ranking"
        )
    labels = ranking.opposing(count)["label"]
    if len(labels) < count:
        raise ValueError(
            f"{len(labels)} heads move {ranking.metric} the other way, and the largest size asks for {count}"
        )
    return parse_heads(list(labels))


def _moved(heads: Sequence[Head], how: HeadScores | None) -> float:
    """How far heads move the output; NaN where that was not measured in their layers."""
    return math.nan if how is None else moved_by(heads, how)
