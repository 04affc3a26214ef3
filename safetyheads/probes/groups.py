"""Which heads carry safety together?

Sahara (Zhou et al., "On the Role of Attention Heads in Large Language Model Safety", ICLR 2025, arXiv:2410.13708,
Algorithm 1): heads are added one by one, each time the one whose ablation, together with those found before, moves the
output furthest from the untouched model's (not from the step before, as in the paper's code); the first of equals wins.
Any ablation and metric will do; the paper's are undifferentiated attention and generalized Ships.

Greedy search is blind to heads that stand in for each other, and finds a group in anything. So beside the group stand
the same number of random heads of the same layers, the interaction of each pair, how much the parts sum up to more or
less than the whole, and what the model does with nothing but the group.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.measurement import Run, heads_of, prepare_run
from safetyheads.engine.sweep import Variant, sweep
from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHead, AblateHeads, Ablation
from safetyheads.metrics import Metric
from safetyheads.prompts import PromptSet
from safetyheads.storage.files import writable_folder, write_whole
from safetyheads.storage.store import Store

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
        """Write group.safetensors and manifest.json, for `load`, and group.csv and pairs.csv, for other programs."""
        from safetensors.torch import save

        folder = writable_folder(folder)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        write_whole(folder / "group.safetensors", save(tensors))
        rest = {name: getattr(self, name) for name in _PLAIN}
        manifest = json.dumps(rest, indent=2, sort_keys=True) + "\n"
        write_whole(folder / "manifest.json", manifest.encode())
        write_whole(folder / "group.csv", self.to_frame().to_csv(index=False).encode())
        write_whole(folder / "pairs.csv", self.pair_frame().to_csv(index=False).encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "HeadGroup":
        """Read what `save` wrote; a missing file is a FileNotFoundError that names it."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("group.safetensors", "manifest.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is not there; give a folder that HeadGroup.save wrote"
                )
        fields: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        for name in ("heads", "pair_heads"):
            fields[name] = tuple(Head(*head) for head in fields[name])
        fields.update(load_file(folder / "group.safetensors"))
        return cls(**fields)


_TENSORS = ("scores", "candidates", "null", "pairs", "only_null")
_PLAIN = (
    *("heads", "pair_heads", "only", "everything", "ablation", "metric", "unit"),
    *("largest_first", "provenance"),
)


def search_heads(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    *,
    steps: int = 3,
    ablation: Ablation | None = None,
    metric: Metric | None = None,
    side: str = "harmful",
    template: str | None = None,
    samples: int = 20,
    pair_heads: int = 6,
    seed: int = 0,
    rows: int | None = None,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadGroup:
    """Search greedily for the heads whose joint ablation matters most (sahara).

    `model`, `prompts`, `ablation`, `metric`, `side`, `template`, `rows` and `progress` are those of `score_heads`.
    `steps` is the size of the group; each step runs every head once. `samples` is the number of random groups, drawn
    from the same layers by `seed`, of every size. `pair_heads` is how many heads are tried in pairs: the group, filled
    up with the heads that score most alone. `store` names a folder where finished layers are kept: a search that was
    killed goes on from there.

    Raises ValueError if `steps` or `samples` is not positive, or `steps` leaves no head over, and what `score_heads`
    raises.
    """
    run = prepare_run(model, prompts, ablation, metric, side, template, rows)
    everyone = heads_of(range(run.model.n_layers), run.model)
    if not 1 <= steps < len(everyone):
        raise ValueError(
            f"steps is {steps}; {run.model.name} has {len(everyone)} heads: take from 1 to one less"
        )
    if samples < 1:
        raise ValueError(f"samples is {samples}; a null needs at least one random group")
    passes = sum(len(everyone) - step for step in range(steps)) + samples * (steps + 1) + 2
    passes += max(pair_heads, steps) * (max(pair_heads, steps) - 1) // 2
    with _bar(passes * len(run.batch.lengths), f"groups, {run.label}", progress) as bar:
        scorer = _Scorer(run, store, bar.update)
        group, candidates = _search(scorer, everyone, steps)
        alone = candidates[0]
        order = _best_first(alone, run.metric)
        tried = tuple(dict.fromkeys([*group, *(everyone[n] for n in order)]))
        tried = tried[: max(pair_heads, steps)]
        pairs = list(combinations(range(len(tried)), 2))
        drawn = list(_random_groups(group, run.model.n_heads, samples, seed))
        kept = [tuple(head for head in everyone if head not in g) for g in (group, *drawn)]
        groups = [
            *(tuple(g[:size]) for size in range(1, steps + 1) for g in drawn),
            *((tried[a], tried[b]) for a, b in pairs),
            *kept,
            tuple(everyone),
        ]
        scores = scorer.groups(groups)
    null, joint, only, everything = scores.split([steps * samples, len(pairs), samples + 1, 1])
    together = torch.diag(torch.stack([alone[head] for head in tried]))
    for (a, b), score in zip(pairs, joint, strict=True):
        together[a, b] = together[b, a] = score
    return HeadGroup(
        heads=tuple(group),
        scores=torch.stack([candidates[n][head] for n, head in enumerate(group)]),
        candidates=candidates,
        null=null.reshape(steps, samples),
        pair_heads=tried,
        pairs=together,
        only=only[0].item(),
        everything=everything.item(),
        only_null=only[1:].clone(),
        ablation=run.ablation.name,
        metric=run.metric.name,
        unit=run.metric.unit,
        largest_first=run.metric.largest_first,
        provenance={
            **run.provenance,
            "search": {"steps": steps, "samples": samples, "seed": seed, "pair_heads": pair_heads},
            "engine": "resumed" if scorer.exact else "plain",
        },
    )


def score_groups(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    groups: Sequence[Sequence[Head | str]],
    *,
    ablation: Ablation | None = None,
    metric: Metric | None = None,
    side: str = "harmful",
    template: str | None = None,
    rows: int | None = None,
    progress: bool | None = None,
) -> Float[Tensor, " group"]:
    """Score groups of heads, each ablated all at once: a group on prompts that the search did not see, say.

    `groups` holds heads or their names, such as `[["L3H7"], ["L3H7", "L5H1"]]`; the other arguments are those of
    `score_heads`. Returns the scores in the metric's unit.

    Raises ValueError for an empty group or one that names a head twice, and what `score_heads` raises.
    """
    run = prepare_run(model, prompts, ablation, metric, side, template, rows)
    parsed = [tuple(Head.parse(head) for head in group) for group in groups]
    with _bar(len(parsed) * len(run.batch.lengths), f"groups, {run.label}", progress) as bar:
        return _Scorer(run, None, bar.update).groups(parsed)


class _Scorer:
    """Scores sets of heads on the prompts of a run."""

    def __init__(
        self, run: Run, store: str | Path | None, progress: Callable[[int], object]
    ) -> None:
        self.run, self.store, self.progress = run, store, progress
        self.exact = True

    def groups(self, groups: Sequence[tuple[Head, ...]]) -> Float[Tensor, " group"]:
        """Each group ablated at once."""
        named = [[list(head) for head in group] for group in groups]
        return self._score(
            [AblateHeads(group, self.run.ablation) for group in groups], None, {"groups": named}
        )

    def with_given(
        self, heads: Sequence[Head], given: Sequence[Head]
    ) -> Float[Tensor, " candidate"]:
        """Each head ablated together with all that are given."""
        ablation = self.run.ablation
        variants = [AblateHead(head, ablation) for head in heads]
        group = AblateHeads(tuple(given), ablation) if given else None
        return self._score(variants, group, {"given": [list(head) for head in given]})

    def _score(
        self, variants: Sequence[Variant], given: AblateHeads | None, what: dict[str, Any]
    ) -> Float[Tensor, " variant"]:
        run = self.run
        swept = sweep(
            run.model,
            run.batch,
            variants,
            run.metric,
            given=given,
            rows=run.rows,
            store=None if self.store is None else Store(self.store, {**run.provenance, **what}),
            progress=self.progress,
        )
        self.exact = self.exact and swept.exact_resume
        return run.metric.score(swept.readings)[0].float().cpu()


def _search(
    scorer: _Scorer, everyone: Sequence[Head], steps: int
) -> tuple[list[Head], Float[Tensor, "step layer head"]]:
    """The group, and the score of every candidate at every step."""
    model = scorer.run.model
    group: list[Head] = []
    candidates = torch.full((steps, model.n_layers, model.n_heads), torch.nan)
    for step in range(steps):
        left = [head for head in everyone if head not in group]
        scores = scorer.with_given(left, group)
        for head, score in zip(left, scores, strict=True):
            candidates[step][head] = score
        group.append(left[_best_first(scores, scorer.run.metric)[0]])
    return group, candidates


def _best_first(scores: Float[Tensor, "*head"], metric: Metric) -> list[int]:
    """Positions in the flattened scores, the one that counts most first; the first of equals first."""
    return scores.flatten().argsort(descending=metric.largest_first, stable=True).tolist()


def _random_groups(
    group: Sequence[Head], n_heads: int, samples: int, seed: int
) -> Iterator[tuple[Head, ...]]:
    """Random heads of the same layers, one for each of the group, none twice; the group's own only where a layer has
    too few others."""
    generator = torch.Generator().manual_seed(seed)
    layers = sorted({head.layer for head in group})
    for _ in range(samples):
        queues = {}
        for layer in layers:
            order = torch.randperm(n_heads, generator=generator).tolist()
            heads = [Head(layer, n) for n in order]
            queues[layer] = iter(sorted(heads, key=lambda head: head in group))
        yield tuple(next(queues[head.layer]) for head in group)


def _bar(total: int, label: str, shown: bool | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="pass", disable=None if shown is None else not shown)
