"""Which heads step in when others are gone?

A group is ablated, and every other head is ablated besides. What a head then does more than it did alone is the growth
of its effect; heads that grow stand in for the group (arXiv:2607.01940, where the growth after the primary heads are
removed finds the backups of name movers). Ablating a backup alone does little, so a ranking of single heads misses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement, measure
from safetyheads.engine.run import run
from safetyheads.heads import Head, parse_heads
from safetyheads.inputs import Side, Source, prepare
from safetyheads.interventions.ablations import Ablation
from safetyheads.interventions.site import Variant
from safetyheads.metrics import Metric, RefusalShift
from safetyheads.stats import bootstrap_interval
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Backups:
    """How much more every head does once a group is gone; NaN for the group itself."""

    group: tuple[Head, ...]
    """The heads that were ablated."""
    alone: Float[Tensor, "layer head"]
    """What each head does with the group in place."""
    without: Float[Tensor, "layer head"]
    """What it does besides, once the group is gone: both ablated, less the group ablated."""
    low: Float[Tensor, "layer head"]
    """Lower end of the interval of the growth, by bootstrap over prompts."""
    high: Float[Tensor, "layer head"]
    """Upper end."""
    group_score: float
    """What ablating the group does."""
    ablation: str
    """What was done to the heads."""
    metric: str
    """What was measured."""
    unit: str
    """Unit of all scores."""
    confidence: float
    """Of the interval of each head."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the numbers."""

    @property
    def growth(self) -> Float[Tensor, "layer head"]:
        """How the effect of each head grows when the group is gone."""
        return self.without - self.alone

    def to_frame(self) -> "pandas.DataFrame":
        """A row a head outside the group, the largest growth (in size) first: layer, head, label, alone, without,
        growth, low, high, ablation, metric, unit."""
        import pandas

        n_layers, n_heads = self.alone.shape
        heads = [Head(la, he) for la in range(n_layers) for he in range(n_heads)]
        heads = [head for head in heads if head not in self.group]
        grids = {
            "alone": self.alone,
            "without": self.without,
            "growth": self.growth,
            "low": self.low,
            "high": self.high,
        }
        table = pandas.DataFrame(
            {
                "layer": [head.layer for head in heads],
                "head": [head.head for head in heads],
                "label": [str(head) for head in heads],
                **{name: [grid[head].item() for head in heads] for name, grid in grids.items()},
                "ablation": self.ablation,
                "metric": self.metric,
                "unit": self.unit,
            }
        )
        order = table["growth"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order].reset_index(drop=True)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Backups":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def find_backups(
    model: Any,
    prompts: Source,
    group: Sequence[Head | str],
    *,
    ablation: Ablation | str = "mean",
    metric: Metric | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    execution: Execution = HERE,
) -> Backups:
    """Sweep all heads with a group in place and with the group ablated, and report how each head's effect grows.

    `model`, `prompts`, `side`, `template` and `execution` are those of `score_heads`. `ablation` is a value or a name,
    by default mean ablation, which takes away what a head says and writes nothing new. `metric` is one that scores each
    prompt, by default `RefusalShift()`, whose log-odds add where heads act apart: growth zero means no interaction.
    `seed` draws the bootstrap. Two sweeps.

    Raises ValueError for a group that is empty, twice the same head or not in the model, for fewer than two prompts, a
    metric without a score for each prompt, and what `load_model` and `load_prompts` raise.
    """
    heads = parse_heads(group)
    if not heads or len(set(heads)) < len(heads):
        raise ValueError(
            f"the group is {', '.join(map(str, heads)) or 'empty'}; give at least one head, each once"
        )
    inputs = prepare(model, prompts, side=side, template=template)
    measurement = measure(inputs, ablation, RefusalShift() if metric is None else metric)
    for head in heads:
        inputs.model.require_head(*head)
    given = measurement.group(heads)
    others = [head for head in measurement.heads() if head not in heads]
    alone = _per_prompt(measurement, [*measurement.variants(others), given], execution)
    settled = replace(measurement, given=given)
    both = _per_prompt(settled, settled.variants(others), execution)
    alone, of_group = alone[:-1], alone[-1]
    without = both - of_group
    low, high = bootstrap_interval(without - alone, confidence=confidence, seed=seed)
    size = (inputs.model.n_layers, inputs.model.n_heads)

    def on_grid(values: Float[Tensor, " head"]) -> Float[Tensor, "layer head"]:
        grid = torch.full(size, torch.nan, dtype=torch.float64)
        for head, value in zip(others, values, strict=True):
            grid[head] = value
        return grid

    return Backups(
        group=heads,
        alone=on_grid(alone.mean(-1)),
        without=on_grid(without.mean(-1)),
        low=on_grid(low),
        high=on_grid(high),
        group_score=of_group.mean().item(),
        ablation=given.ablation.name,
        metric=measurement.metric.name,
        unit=measurement.metric.unit,
        confidence=confidence,
        provenance=settled.manifest(execution),
    )


def _per_prompt(
    measurement: Measurement, variants: Sequence[Variant], execution: Execution
) -> Float[Tensor, "variant prompt"]:
    swept = run(measurement, variants, execution)
    scores = measurement.metric.score(swept.readings)[1]
    if scores is None:
        raise ValueError(
            f"{measurement.metric.name} gives no score for each prompt; take RefusalShift() or Ships()"
        )
    return scores.double().cpu()
