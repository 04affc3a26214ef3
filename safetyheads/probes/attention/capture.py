"""Where do some prompts attend, on average and with what spread?

`capture_attention` runs the prompts up to the highest layer asked for and keeps running sums of the patterns, which are
never stacked. Attention is causal: what a token sees does not depend on what follows, so cutting a prompt changes
nothing before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.activations.patterns import checked_heads, checked_layers, each_pattern
from safetyheads.inputs import Inputs, Side, Source, describe_tokenizer, prepare
from safetyheads.probes.attention.grid import PUBLISHED, Grid, as_grid
from safetyheads.prompts import Segment, find_segments, typical_segments
from safetyheads.storage.results import load_result, save_result

UNBOUNDED = 2**31
"""No prompt is too long: what is read of it is cut to the grid."""


class Asked(NamedTuple):
    """Which attention is looked at."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    per_head: bool = False
    """Whether heads are kept apart; else they are averaged."""


@dataclass(frozen=True, eq=False)
class AttentionCapture:
    """Attention of some layers, its mean and spread over prompts; NaN where no prompt has the pair of tokens."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    """The heads that were looked at."""
    mean: Float[Tensor, "layer head query key"]
    """Mean over prompts; the head axis has one entry where heads were averaged [1]."""
    mean_log: Float[Tensor, "layer head query key"]
    """Mean over prompts of the natural logarithm, taken after averaging heads, if they were [nat]."""
    variance: Float[Tensor, "layer head query key"]
    """Unbiased variance over prompts; NaN for a single prompt."""
    counts: Int[Tensor, "layer query key"]
    """How many prompts have the pair: 0 above the diagonal and outside a sliding window."""
    floor: float
    """What is less counts as this much, in `mean_log`."""
    lengths: Int[Tensor, " prompt"]
    """Tokens of each prompt before it was cut to the grid."""
    segments: tuple[Segment, ...]
    """Typical parts of the prompts, cut to the grid."""
    provenance: dict[str, Any]
    """What determines the numbers."""

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "AttentionCapture":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def capture_attention(
    model: Any,
    prompts: Source,
    *,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    per_head: bool = False,
    grid: Grid = PUBLISHED,
    template: str | None = None,
    side: Side | None = None,
    progress: bool | None = None,
) -> AttentionCapture:
    """Run prompts up to the highest layer asked for and keep mean, mean logarithm and variance of the attention.

    Patterns are added up as they come and never stacked: memory holds four maps a layer asked for (and head, with
    `per_head`) and one batch, whatever the number of prompts.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take, or a TokenBatch of the model's own
    tokenizer; `side` says which prompts of a set ("harmful", the default, or "harmless"). `layers` are all by default.
    `heads` restricts to some; they are averaged unless `per_head`. Of `grid` the length and the floor count: prompts
    are cut after so many tokens. `template` is as for `tokenize`.

    Raises ValueError for layers or heads that the model does not have, a layer without attention, no prompts, prompts
    that exceed the model's context, or a TokenBatch of another tokenizer.
    """
    grid = as_grid(grid)
    inputs = prepare(
        model, prompts, side=side or "harmful", template=template, max_length=UNBOUNDED
    )
    asked = Asked(
        checked_layers(inputs.model, layers), checked_heads(inputs.model, heads), per_head
    )
    return captured(inputs, asked, grid, progress=progress)


@torch.inference_mode()
def captured(
    inputs: Inputs,
    asked: Asked,
    grid: Grid,
    *,
    requests: Sequence[str] | None = None,
    progress: bool | None = None,
) -> AttentionCapture:
    """`capture_attention` of what is prepared; `requests` are what the prompts ask for, where they hold more."""
    running: dict[int, _Running] = {}
    model, batch = inputs.model, inputs.batch
    size = min(grid.length, int(batch.lengths.max()))
    every = len(asked.heads) == model.n_heads

    def add(layer: int, row: int, pattern: Tensor, visible: Tensor) -> None:
        some = pattern if every else pattern[list(asked.heads)]
        some = some if asked.per_head else some.mean(0, keepdim=True)
        if layer not in running:
            running[layer] = _Running(len(some), size, grid.least, some.device)
        running[layer].add(some, visible)

    each_pattern(model, batch, asked.layers, grid.length, add, "attention", progress)
    maps = [running[layer].finish(grid.length) for layer in asked.layers]
    return AttentionCapture(
        layers=asked.layers,
        heads=asked.heads,
        mean=torch.stack([m.mean for m in maps]),
        mean_log=torch.stack([m.mean_log for m in maps]),
        variance=torch.stack([m.variance for m in maps]),
        counts=torch.stack([m.counts for m in maps]),
        floor=grid.least,
        lengths=batch.lengths,
        segments=segments_of(inputs, grid.length, requests),
        provenance={
            **inputs.provenance,
            "tokenizer": describe_tokenizer(model.tokenizer),
            "layers": list(asked.layers),
            "heads": list(asked.heads),
            "per_head": asked.per_head,
            "length": grid.length,
            "floor": grid.least,
        },
    )


def segments_of(
    inputs: Inputs, length: int, requests: Sequence[str] | None = None
) -> tuple[Segment, ...]:
    """The typical parts of the prompts, cut to `length` tokens; none where their texts are not known."""
    if not inputs.texts:
        return ()
    spans = find_segments(inputs.batch, inputs.texts, inputs.model.tokenizer, requests)
    return typical_segments(spans, length)


class _Maps(NamedTuple):
    mean: Float[Tensor, "head query key"]
    mean_log: Float[Tensor, "head query key"]
    variance: Float[Tensor, "head query key"]
    counts: Int[Tensor, "query key"]


class _Running:
    """Mean, mean logarithm and sum of squared deviations of one layer, updated prompt by prompt (Welford)."""

    def __init__(self, n_maps: int, size: int, floor: float, device: torch.device) -> None:
        self.floor = floor
        self.mean = torch.zeros(n_maps, size, size, device=device)
        self.mean_log, self.squares = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        self.reached = torch.zeros(size, size, dtype=torch.int64, device=device)
        self.visible = torch.zeros(size, size, dtype=torch.bool, device=device)

    def add(
        self, pattern: Float[Tensor, "head query key"], visible: Bool[Tensor, "query key"]
    ) -> None:
        n = pattern.shape[-1]
        part = (slice(None), slice(n), slice(n))
        self.reached[part[1:]] += 1
        self.visible[part[1:]] |= visible
        share = 1.0 / self.reached[part[1:]]
        # A map at a time: one fits into the processor's cache, all heads together do not.
        maps = (self.mean[part], self.squares[part], self.mean_log[part])
        for one, mean, squares, mean_log in zip(pattern, *maps, strict=True):
            change = one - mean
            mean.addcmul_(change, share)
            squares.addcmul_(change, one - mean)
            mean_log += one.clamp_min(self.floor).log_().sub_(mean_log).mul_(share)

    def finish(self, length: int) -> _Maps:
        size = self.reached.shape[0]
        counts = self.reached * self.visible
        spread = torch.where(counts > 1, self.squares / (counts - 1), torch.nan)
        maps = [m.masked_fill(counts == 0, torch.nan) for m in (self.mean, self.mean_log, spread)]
        pad = (0, max(0, length - size)) * 2
        mean, mean_log, variance = (torch.nn.functional.pad(m, pad, value=torch.nan) for m in maps)
        return _Maps(
            mean.cpu(), mean_log.cpu(), variance.cpu(), torch.nn.functional.pad(counts, pad).cpu()
        )
