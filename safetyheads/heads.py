"""Which head, and what came out of scoring it?

`Head` names one query head; `HeadScores` holds one score for every head of a model, with the table, the top of the
ranking and the files that other programs read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.storage.records import Record
from safetyheads.storage.results import load_result, old_record, save_result

if TYPE_CHECKING:
    import pandas

COLUMNS = ["layer", "head", "label", "ablation", "metric", "score", "unit", "rank", "kind"]
_LABEL = re.compile(r"^L(\d+)H(\d+)$|^(\d+)-(\d+)$")


class Head(NamedTuple):
    """One query head: layer and head, both counted from 0.

    >>> str(Head(3, 7)), Head.parse("L3H7"), Head.parse("3-7") == Head.parse((3, 7))
    ('L3H7', Head(layer=3, head=7), True)
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: Union[str, tuple[Any, Any], "Head"]) -> "Head":
        """Read `L3H7`, the papers' `3-7` (layer first), or a pair; anything else is a ValueError."""
        if (
            isinstance(text, tuple)
            and len(text) == 2
            and all(isinstance(n, Integral) for n in text)
        ):
            layer, head = (int(n) for n in text)
            if layer >= 0 and head >= 0:
                return cls(layer, head)
        elif isinstance(text, str) and (match := _LABEL.match(text.strip())):
            layer, head = (int(n) for n in match.groups() if n is not None)
            return cls(layer, head)
        raise ValueError(
            f"{text!r} does not name a head; write L3H7, 3-7 or (3, 7): layer first, both from 0"
        )


def parse_heads(heads: Any) -> tuple[Head, ...]:
    """Heads or their names, in order; one alone stands for a list of one, a table for its column `label`.

    >>> parse_heads(["L3H7", (5, 1)]) == (Head(3, 7), Head(5, 1)), parse_heads("L3H7")
    (True, (Head(layer=3, head=7),))

    Raises ValueError for what names no head.
    """
    if isinstance(heads, str | Head):
        heads = [heads]
    if "label" in getattr(heads, "columns", ()):
        heads = heads["label"]
    try:
        return tuple(h if isinstance(h, Head) else Head.parse(h) for h in heads)
    except TypeError:
        raise ValueError(
            f"heads is {heads!r}; give heads or their names in a list, such as ['L3H7', 'L5H1']"
        ) from None


def heads_like(heads: Sequence[Head], n_heads: int, seed: int) -> Iterator[tuple[Head, ...]]:
    """Draws without end of random heads of the same layers, one for each, none twice in a draw; the heads themselves
    come only where a layer has too few others.

    `n_heads` is how many heads a layer has.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = sorted({head.layer for head in heads})
    while True:
        queues = {}
        for layer in layers:
            order = torch.randperm(n_heads, generator=generator).tolist()
            drawn = [Head(layer, n) for n in order]
            queues[layer] = iter(sorted(drawn, key=lambda head: head in heads))
        yield tuple(next(queues[head.layer]) for head in heads)


@dataclass(frozen=True)
class Audit:
    """How much of the top a screened run is likely to have missed."""

    top_k: int
    """The top that is meant."""
    heads: int
    """Heads of the model."""
    run: int
    """Heads run exactly."""
    audited: int
    """Of these, heads drawn at random from those that the screen would have left out."""
    beaten: int
    """Audited heads whose exact score beats the k-th of the heads that the screen chose."""
    recall: float
    """Expected share of the true top k among the heads run exactly, by the error model of `screening.judge`."""
    recall_low: float
    """Lower end of the 95 % interval of that share."""
    recall_high: float
    """Upper end."""
    missed_at_most: int
    """With 95 % confidence and no model at all, from the random sample alone: heads not run whose score beats the
    k-th. Small samples leave it large."""

    def __str__(self) -> str:
        if self.run == self.heads:
            return f"all {self.heads} heads run exactly"
        return (
            f"{self.run} of {self.heads} heads run exactly, the others estimated; recall of the top {self.top_k}: "
            f"{self.recall:.2f} ({self.recall_low:.2f} to {self.recall_high:.2f})"
        )


@dataclass(frozen=True)
class Race:
    """How a race of heads went, and how sure its top is."""

    top_k: int
    """The top that is meant."""
    heads: int
    """Heads of the model."""
    run: int
    """Heads run on all prompts, whose scores are exact."""
    prompts: int
    """Prompts that there are."""
    passes: int
    """(head, prompt) pairs that were run."""
    rounds: tuple[tuple[int, int], ...]
    """How many prompts each round ended with, and how many heads were in it."""
    chance: float
    """The chance that the top is the exact one: that no head which dropped out belongs to it."""

    def __str__(self) -> str:
        if self.run == self.heads:
            return f"all {self.heads} heads run on all {self.prompts} prompts"
        return (
            f"{self.run} of {self.heads} heads run on all {self.prompts} prompts, the others on "
            f"{self.rounds[0][0]} or more; {self.passes / (self.heads * self.prompts):.2f} of all pairs; the top "
            f"{self.top_k} is the exact one with a chance of {self.chance:.2f}"
        )


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One score for every query head of a model, under one ablation and one metric."""

    values: Float[Tensor, "layer head"]
    """The score, in `unit`."""
    per_prompt: Float[Tensor, "layer head prompt"] | None
    """The score of each prompt, or None where the metric is one number for a whole dataset."""
    ablation: str
    """What was done to the head, such as `undifferentiated_attention`."""
    metric: str
    """What was measured, such as `ships`."""
    unit: str
    """Unit of the scores: `nat`, `deg` or `1`."""
    largest_first: bool = True
    """Whether rank 1 is the largest score; a refusal shift ranks its most negative score first."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the numbers: model, template, prompts, ablation, metric and versions."""
    readings: Float[Tensor, "layer head *reading"] | None = None
    """What the score was computed from, where that is more than the score (Gram matrices), so statistics can follow."""
    exact: Bool[Tensor, "layer head"] | None = None
    """Which scores are exact; None: all. The others are estimates, and their `per_prompt` and `readings` are NaN."""
    estimates: Float[Tensor, "layer head"] | None = None
    """What a screen said of every head, before calibration; None where there was no screen."""
    audit: Audit | None = None
    """What a screened run may have missed; None where there was no screen."""
    prompts_run: Int[Tensor, "layer head"] | None = None
    """On how many prompts each head was run in a race; None where there was no race."""
    low: Float[Tensor, "layer head"] | None = None
    """Lower end of the 95 % interval of the score over all prompts, in a race; the score itself where it is exact."""
    high: Float[Tensor, "layer head"] | None = None
    """Upper end."""
    race: Race | None = None
    """How the race went; None where there was none."""

    @property
    def ranks(self) -> Int[Tensor, "layer head"]:
        """Rank of every head, 1 first; equal scores rank in the order of layer and head, heads without one last."""
        worst = -torch.inf if self.largest_first else torch.inf
        scores = self.values.flatten().nan_to_num(worst, posinf=torch.inf, neginf=-torch.inf)
        order = scores.argsort(descending=self.largest_first, stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(1, order.numel() + 1)
        return ranks.reshape(self.values.shape)

    def to_frame(self) -> "pandas.DataFrame":
        """A long table, a row a head, best first: layer, head, label, ablation, metric, score, unit, rank, kind.

        `kind` is "exact" for a score that was measured and "estimated" for one that a screen or a race estimated. A
        race adds prompts_run, low and high.
        """
        import pandas

        n_layers, n_heads = self.values.shape
        ranks, exact = self.ranks, self.exact
        rows = [
            (
                layer,
                head,
                str(Head(layer, head)),
                self.ablation,
                self.metric,
                self.values[layer, head].item(),
                self.unit,
                int(ranks[layer, head]),
                "exact" if exact is None or exact[layer, head] else "estimated",
            )
            for layer in range(n_layers)
            for head in range(n_heads)
        ]
        table = pandas.DataFrame(rows, columns=COLUMNS)
        raced = {"prompts_run": self.prompts_run, "low": self.low, "high": self.high}
        for name, grid in raced.items():
            if grid is not None:
                table[name] = grid.flatten().tolist()
        return table.sort_values("rank", ignore_index=True)

    def top(self, k: int = 10) -> "pandas.DataFrame":
        """The k highest-ranked heads, as rows of `to_frame`."""
        if type(k) is not int or not 1 <= k <= self.values.numel():
            raise ValueError(
                f"k is {k!r}; ask for between 1 and {self.values.numel()} heads, as many as there are"
            )
        return self.to_frame().head(k)

    def opposing(self, k: int = 10) -> "pandas.DataFrame":
        """The heads at the other end, whose loss moves the metric the other way: at most k, the strongest first.

        They are rows of `to_frame`, with ranks counted from that end. A screen's linear estimates may have the wrong
        sign, and are left out; a race's are unbiased. Raises ValueError for a metric without a sign.
        """
        table = self.to_frame()
        if self.audit is not None:
            table = table[table["kind"] == "exact"]
        if not (table["score"] < 0).any() and self.largest_first:
            raise ValueError(
                f"{self.metric} is never negative, so that no head opposes; take a metric with a sign, RefusalShift()"
            )
        other = table["score"] < 0 if self.largest_first else table["score"] > 0
        found = table[other].iloc[::-1].head(k).reset_index(drop=True)
        return found.assign(rank=range(1, len(found) + 1))

    def score(self, head: Union[str, tuple[Any, Any], "Head"]) -> float:
        """The exact score of one head; ValueError for one that the model does not have or that was only estimated."""
        layer, index = Head.parse(head)
        n_layers, n_heads = self.values.shape
        if layer >= n_layers or index >= n_heads:
            raise ValueError(
                f"{Head(layer, index)} is not in this model: it has layers 0-{n_layers - 1} and heads 0-{n_heads - 1}"
            )
        value = self.values[layer, index].item()
        if self.exact is not None and not self.exact[layer, index]:
            raise ValueError(
                f"{Head(layer, index)} was not run: its score is estimated at {value:.4g} {self.unit}; read "
                '`values` for estimates, or score with method="exact"'
            )
        return value

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there, whole or not at all; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HeadScores":
        """Read what `save` wrote, in this version or one before.

        Raises FileNotFoundError where there is nothing, ValueError for what is damaged, of another kind or newer.
        """
        return load_result(cls, folder, _old)


def _old(folder: Path) -> Record:
    """The scores of versions that wrote no records, which left out what was None."""
    record = old_record("scores")(folder)
    return record._replace(values={"per_prompt": None, **record.values})
