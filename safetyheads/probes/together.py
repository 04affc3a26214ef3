"""How does one sweep serve several metrics?

Nearly all of a sweep's time goes into forward passes, and a metric only looks at what comes out. `score_heads_together`
runs every head once and lets all metrics read the same passes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import HeadScores
from safetyheads.metrics import LastToken, Metric
from safetyheads.models.hooked import HookedModel, load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import PromptSet, load_prompts


@dataclass(frozen=True)
class Together:
    """Several metrics as one: their readings stand side by side."""

    metrics: tuple[Metric, ...]
    """What is measured."""
    states: tuple[tuple[int, ...], ...]
    """Shape of what each metric keeps of one row."""
    readings: tuple[tuple[int, ...], ...] = ()
    """Shape of what each metric keeps of one variant; known once the prompts are."""
    unit: ClassVar[str] = ""
    largest_first: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return " + ".join(metric.name for metric in self.metrics)

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Metric":
        metrics = tuple(metric.prepare(tokenizer, texts) for metric in self.metrics)
        readings = _reading_shapes(metrics, self.states, len(texts))
        return replace(self, metrics=metrics, readings=readings)

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, "row state"]:
        parts = [metric.read(ablated, baseline) for metric in self.metrics]
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=-1)

    def gather(
        self, rows: Float[Tensor, "variant prompt state"], baseline: Float[Tensor, "prompt state"]
    ) -> Float[Tensor, "variant reading"]:
        parts = zip(
            self.metrics, _split(rows, self.states), _split(baseline, self.states), strict=True
        )
        read = [metric.gather(some, base) for metric, some, base in parts]
        return torch.cat([part.flatten(1) for part in read], dim=-1)

    def score(
        self, readings: Float[Tensor, "variant reading"]
    ) -> tuple[Float[Tensor, " variant"], None]:
        """The first metric's score: the others follow from the readings."""
        return self.metrics[0].score(_split(readings, self.readings)[0])[0], None


def _split(joined: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Undo a concatenation along the last axis."""
    parts = joined.split([math.prod(shape) for shape in shapes], dim=-1)
    return [
        part.reshape(*joined.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)
    ]


def score_heads_together(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    metrics: Sequence[Metric],
    *,
    side: str = "harmful",
    **options: Any,
) -> list[HeadScores]:
    """Score every head by several metrics in one sweep: what `score_heads` gives for each, at the price of one.

    `model`, `prompts`, `side` and `options` are those of `score_heads`.

    Raises ValueError if there are no metrics, and what `score_heads` raises.
    """
    opened, prompts = load_model(model), load_prompts(prompts)
    texts = getattr(prompts, side, ())
    if not metrics or not texts:
        raise ValueError(
            f"there are {len(metrics)} metrics and {len(texts)} {side} prompts in {prompts.name}; "
            "give at least one of each"
        )
    states = tuple(_state_shape(opened, metric, texts) for metric in metrics)
    together = Together(tuple(metrics), states)
    # An executor's workers open the model themselves, by its name.
    asked = model if options.get("executor") else opened
    swept = score_heads(asked, prompts, metric=together, side=side, **options)
    fields = swept.provenance["metric"]["metrics"]
    parts = _split(_given(swept.readings), _reading_shapes(metrics, states, len(texts)))
    scores = []
    for metric, readings, known in zip(metrics, parts, fields, strict=True):
        values, per_prompt = metric.score(readings.flatten(0, 1))
        grid = readings.shape[:2]
        scores.append(
            replace(
                swept,
                values=values.float().reshape(grid),
                per_prompt=None if per_prompt is None else per_prompt.float().reshape(*grid, -1),
                readings=readings if per_prompt is None else None,
                metric=metric.name,
                unit=metric.unit,
                largest_first=metric.largest_first,
                provenance={**swept.provenance, "metric": {"name": metric.name, **known}},
            )
        )
    return scores


def _state_shape(model: HookedModel, metric: Metric, texts: Sequence[str]) -> tuple[int, ...]:
    """Shape of what a metric keeps of one row, found by letting it read a made-up one."""
    resid = torch.zeros(1, model.d_model, dtype=model.dtype, device=model.device)
    with torch.inference_mode():
        row = LastToken(model.final_norm(resid), model.unembed)
        return tuple(metric.prepare(model.tokenizer, texts).read(row, row).shape[1:])


def _reading_shapes(
    metrics: Sequence[Metric], states: Sequence[tuple[int, ...]], n: int
) -> tuple[tuple[int, ...], ...]:
    """Shape of what each metric keeps of one variant on n prompts."""
    return tuple(
        tuple(metric.gather(torch.zeros(1, n, *state), torch.zeros(n, *state)).shape[1:])
        for metric, state in zip(metrics, states, strict=True)
    )


def _given(readings: Tensor | None) -> Tensor:
    if readings is None:
        raise RuntimeError("score_heads kept no readings of several metrics")
    return readings
