"""Which heads carry safety together?

Sahara (Zhou et al., "On the Role of Attention Heads in Large Language Model Safety", ICLR 2025, arXiv:2410.13708,
Algorithm 1): heads are added one by one, each time the one whose ablation, together with those found before, moves the
output furthest from the untouched model's (not from the step before, as in the paper's code); the first of equals wins.
Any ablation and metric will do; the paper's are undifferentiated attention and generalized Ships.

Greedy search is blind to heads that stand in for each other, and finds a group in anything. So beside the group stand
the same number of random heads of the same layers, the interaction of each pair, how much the parts sum up to more or
less than the whole, and what the model does with nothing but the group.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement, measure
from safetyheads.engine.run import run
from safetyheads.heads import Head, heads_like, parse_heads
from safetyheads.inputs import Side, Source, prepare
from safetyheads.interventions.ablations import Ablation
from safetyheads.interventions.site import Variant
from safetyheads.metrics import Metric
from safetyheads.progress import whole
from safetyheads.storage.files import write_whole
from safetyheads.storage.results import load_result, old_record, save_result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = [
    *("size", "layer", "head", "label", "score", "alone", "self_repair"),
    *("null_low", "null_mean", "null_high", "p_value", "ablation", "metric", "unit"),
]
"""The columns of `HeadGroup.to_frame`."""


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """The heads that a greedy search found, and what to hold against them.

    All scores are of heads ablated together, against the untouched model, in `unit`.
    """

    heads: tuple[Head, ...]
    """In the order found."""
    scores: Float[Tensor, " step"]
    """The first head, the first two, and so on."""
    candidates: Float[Tensor, "step layer head"]
    """Every head together with those found before; NaN for the heads found before."""
    null: Float[Tensor, "step resample"]
    """As many random heads of the same layers."""
    pair_heads: tuple[Head, ...]
    """The group, and the heads that score most alone."""
    pairs: Float[Tensor, "first second"]
    """Every pair of `pair_heads`; on the diagonal each head alone."""
    only: float
    """Everything but the group: small where the group suffices."""
    everything: float
    """All heads."""
    only_null: Float[Tensor, " resample"]
    """Everything but as many random heads of the same layers."""
    ablation: str
    """What was done to the heads."""
    metric: str
    """What was measured."""
    unit: str
    """Unit of the scores."""
    largest_first: bool = True
    """Whether the largest score counts most; for a refusal shift it is the most negative."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the numbers."""

    @property
    def alone(self) -> Float[Tensor, " step"]:
        """The score of each head of the group alone."""
        return torch.stack([self.candidates[0][head] for head in self.heads])

    @property
    def self_repair(self) -> Float[Tensor, " step"]:
        """The sum of what the heads do alone, less what they do together, at every size.

        Where a larger score counts more, a negative number means that heads stand in for each other; a positive
        one that they do the same thing twice over, or that the score saturates.
        """
        return self.alone.cumsum(0) - self.scores

    @property
    def interactions(self) -> Float[Tensor, "first second"]:
        """What each pair does together beyond the sum of what its two heads do alone; zero on the diagonal."""
        alone = self.pairs.diagonal()
        return (self.pairs - alone[:, None] - alone[None, :]).fill_diagonal_(0.0)

    @property
    def p_values(self) -> Float[Tensor, " step"]:
        """How often random heads of the same layers score as much, at every size, the group itself counted in.

        The group was chosen as the best on these very prompts, which random heads were not: on prompts that the
        search did not see (`score_groups`) the comparison is fair.
        """
        sign = 1 if self.largest_first else -1
        reached = (sign * self.null >= sign * self.scores[:, None]).sum(1)
        return (reached + 1) / (self.null.shape[1] + 1)

    @property
    def necessity(self) -> float:
        """What ablating the group does, as a share of what ablating every head does [1]."""
        return self.scores[-1].item() / self.everything

    @property
    def sufficiency(self) -> float:
        """What keeping nothing but the group saves, as a share of what ablating every head does [1]; below zero where
        the rest does less harm without the group than with it."""
        return 1 - self.only / self.everything

    def to_frame(self) -> "pandas.DataFrame":
        """A row a size: size, the head added (layer, head, label), score, alone, self_repair, the null's mean and
        its 2.5 % and 97.5 % quantiles, p_value, ablation, metric, unit."""
        import pandas

        low, high = torch.quantile(self.null, torch.tensor([0.025, 0.975]), dim=1)
        table = {
            "size": range(1, len(self.heads) + 1),
            "layer": [head.layer for head in self.heads],
            "head": [head.head for head in self.heads],
            "label": [str(head) for head in self.heads],
            "score": self.scores.tolist(),
            "alone": self.alone.tolist(),
            "self_repair": self.self_repair.tolist(),
            "null_low": low.tolist(),
            "null_mean": self.null.mean(1).tolist(),
            "null_high": high.tolist(),
            "p_value": self.p_values.tolist(),
        }
        frame = pandas.DataFrame(table)
        frame["ablation"], frame["metric"], frame["unit"] = self.ablation, self.metric, self.unit
        return frame

    def pair_frame(self) -> "pandas.DataFrame":
        """A row a pair, the strongest interaction first: first, second, together, alone_first, alone_second,
        interaction, unit."""
        import pandas

        rows = [
            (
                str(self.pair_heads[a]),
                str(self.pair_heads[b]),
                self.pairs[a, b].item(),
                self.pairs[a, a].item(),
                self.pairs[b, b].item(),
                self.interactions[a, b].item(),
                self.unit,
            )
            for a, b in combinations(range(len(self.pair_heads)), 2)
        ]
        names = ["first", "second", "together", "alone_first", "alone_second", "interaction"]
        table = pandas.DataFrame(rows, columns=[*names, "unit"])
        order = table["interaction"].abs().argsort(kind="stable")[::-1]
        return table.iloc[order].reset_index(drop=True)

    def plot(self) -> "plotly.graph_objects.Figure":
        """The group-size curve with the band of random heads."""
        from safetyheads.plots.groups import plot_group_curve

        return plot_group_curve(self.to_frame())

    def save(self, folder: str | Path) -> Path:
        """Write a record, for `load`, and group.csv and pairs.csv, for people and other programs."""
        folder = save_result(self, folder)
        write_whole(folder / "group.csv", self.to_frame().to_csv(index=False).encode())
        write_whole(folder / "pairs.csv", self.pair_frame().to_csv(index=False).encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "HeadGroup":
        """Read what `save` wrote, in this version or one before.

        Raises FileNotFoundError where there is nothing, ValueError for what is damaged, of another kind or newer.
        """
        return load_result(cls, folder, old_record("group"))


@dataclass(frozen=True)
class GroupSearch:
    """How wide a search goes: pass it as `search`.

    Raises ValueError for a search without a step, a random group or a head.
    """

    steps: int = 3
    """The size of the group; each step runs every head once."""
    samples: int = 20
    """Random groups of every size, drawn from the same layers."""
    pair_heads: int = 6
    """Heads that are tried in pairs: the group, filled up with the heads that score most alone."""
    seed: int = 0
    """Seed of the random groups."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a group has at least one head")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; a null needs at least one random group")


def search_heads(
    model: Any,
    prompts: Source,
    search: GroupSearch = GroupSearch(),
    *,
    ablation: Ablation | str | None = None,
    metric: Metric | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
    execution: Execution = HERE,
) -> HeadGroup:
    """Search greedily for the heads whose joint ablation matters most (sahara).

    The other arguments are those of `score_heads`.

    Raises ValueError if the steps leave no head over, and what `score_heads` raises.
    """
    if not isinstance(search, GroupSearch):
        raise ValueError(f"search is {search!r}; give GroupSearch(steps={search!r}) or the like")
    inputs = prepare(model, prompts, side=side, template=template)
    measurement = measure(inputs, ablation, metric)
    everyone = measurement.heads()
    if search.steps >= len(everyone):
        raise ValueError(
            f"steps is {search.steps}; {inputs.model.name} has {len(everyone)} heads: take from 1 to one less"
        )
    sweeps = sum(len(everyone) - step for step in range(search.steps))
    pairs = math.comb(max(search.pair_heads, search.steps), 2)
    sweeps += search.steps * search.samples + pairs + search.samples + 2
    label = f"search, {measurement.label}"
    with whole(sweeps * len(inputs.batch), label, execution.progress):
        return _searched(measurement, search, execution)


def _searched(measurement: Measurement, search: GroupSearch, execution: Execution) -> HeadGroup:
    """The search itself, inside its one bar."""
    everyone, n_heads = measurement.heads(), measurement.inputs.model.n_heads
    scorer = _Scorer(measurement, execution)
    group, candidates = _search(scorer, search.steps)
    alone = candidates[0]
    order = _best_first(alone, measurement.metric)
    tried = tuple(dict.fromkeys([*group, *(everyone[n] for n in order)]))
    tried = tried[: max(search.pair_heads, search.steps)]
    pairs = list(combinations(range(len(tried)), 2))
    drawn = list(islice(heads_like(group, n_heads, search.seed), search.samples))
    kept = [tuple(head for head in everyone if head not in g) for g in (group, *drawn)]
    scores = scorer.groups(
        [
            *(tuple(g[:size]) for size in range(1, search.steps + 1) for g in drawn),
            *((tried[a], tried[b]) for a, b in pairs),
            *kept,
            tuple(everyone),
        ]
    )
    null, joint, only, everything = scores.split(
        [search.steps * search.samples, len(pairs), search.samples + 1, 1]
    )
    together = torch.diag(torch.stack([alone[head] for head in tried]))
    for (a, b), score in zip(pairs, joint, strict=True):
        together[a, b] = together[b, a] = score
    manifest = measurement.manifest(execution, search=asdict(search))
    return HeadGroup(
        heads=tuple(group),
        scores=torch.stack([candidates[n][head] for n, head in enumerate(group)]),
        candidates=candidates,
        null=null.reshape(search.steps, search.samples),
        pair_heads=tried,
        pairs=together,
        only=only[0].item(),
        everything=everything.item(),
        only_null=only[1:].clone(),
        ablation=manifest["ablation"]["name"],
        metric=measurement.metric.name,
        unit=measurement.metric.unit,
        largest_first=measurement.metric.largest_first,
        provenance={**manifest, "engine": "resumed" if scorer.exact else "plain"},
    )


def score_groups(
    model: Any,
    prompts: Source,
    groups: Sequence[Sequence[Head | str]],
    *,
    ablation: Ablation | str | None = None,
    metric: Metric | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
    execution: Execution = HERE,
) -> Float[Tensor, " group"]:
    """Score groups of heads, each ablated all at once: a group on prompts that the search did not see, say.

    `groups` holds heads or their names, such as `[["L3H7"], ["L3H7", "L5H1"]]`; the other arguments are those of
    `score_heads`. Returns the scores in the metric's unit.

    Raises ValueError for an empty group or one that names a head twice, a list of heads where a list of groups is
    meant, and what `score_heads` raises.
    """
    parsed = [_group(group) for group in ([groups] if isinstance(groups, str) else groups)]
    inputs = prepare(model, prompts, side=side, template=template)
    return _Scorer(measure(inputs, ablation, metric), execution).groups(parsed)


def _group(group: Any) -> tuple[Head, ...]:
    if isinstance(group, str | Head):
        raise ValueError(
            f"groups holds {str(group)!r}, which is one head: a list of groups is meant, each a list of heads: "
            f'[["{group}", ...]] for one group, [["{group}"], ...] for groups of one head'
        )
    return parse_heads(group)


class _Scorer:
    """Scores sets of heads under one measurement."""

    def __init__(self, measurement: Measurement, execution: Execution) -> None:
        self.measurement, self.execution, self.exact = measurement, execution, True

    def groups(self, groups: Sequence[tuple[Head, ...]]) -> Float[Tensor, " group"]:
        """Each group ablated at once."""
        return self._score(self.measurement, [self.measurement.group(group) for group in groups])

    def with_given(
        self, heads: Sequence[Head], given: Sequence[Head]
    ) -> Float[Tensor, " candidate"]:
        """Each head ablated together with all that are given."""
        group = self.measurement.group(given) if given else None
        measurement = replace(self.measurement, given=group)
        return self._score(measurement, measurement.variants(heads))

    def _score(
        self, measurement: Measurement, variants: Sequence[Variant]
    ) -> Float[Tensor, " variant"]:
        swept = run(measurement, variants, self.execution)
        self.exact = self.exact and swept.exact_resume
        return measurement.metric.score(swept.readings)[0].float().cpu()


def _search(scorer: _Scorer, steps: int) -> tuple[list[Head], Float[Tensor, "step layer head"]]:
    """The group, and the score of every candidate at every step."""
    measurement = scorer.measurement
    model = measurement.inputs.model
    group: list[Head] = []
    candidates = torch.full((steps, model.n_layers, model.n_heads), torch.nan)
    for step in range(steps):
        left = [head for head in measurement.heads() if head not in group]
        scores = scorer.with_given(left, group)
        for head, score in zip(left, scores, strict=True):
            candidates[step][head] = score
        group.append(left[_best_first(scores, measurement.metric)[0]])
    return group, candidates


def _best_first(scores: Float[Tensor, "*head"], metric: Metric) -> list[int]:
    """Positions in the flattened scores, the one that counts most first; the first of equals first."""
    return scores.flatten().argsort(descending=metric.largest_first, stable=True).tolist()
