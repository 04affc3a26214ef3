"""What does a measurement cost, before anything is run?

The passes and tokens of a sweep follow from the prompts' lengths alone. Its time follows from a short calibration:
one pass through the top layers and one through the last, of the widest group of prompts, which takes about as long as
one forward pass of a small model. Its memory follows from the sizes of what one pass holds.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from safetyheads.engine.climb import LOOK_TOKENS, Rows, climb, layout, needs_of
from safetyheads.engine.kernels import kernels_of
from safetyheads.engine.measurement import Measurement
from safetyheads.heads import Head
from safetyheads.interventions.site import Site, Start
from safetyheads.models.hooked import HookedModel

CALIBRATED_LAYERS = 3
"""How many layers the longer of the two timed passes runs."""


@dataclass(frozen=True)
class Cost:
    """What the sweep of one measurement takes."""

    passes: int
    tokens: int
    seconds: float


class Pace(NamedTuple):
    """How fast this machine is, on one run's widest passes."""

    look: float
    """Seconds of a clean layer for `LOOK_TOKENS` tokens."""
    top: float
    """Seconds of a pass through the top layer."""
    block: float
    """Seconds that a pass takes longer for each layer that it starts below the top."""
    tokens: int
    """Tokens of such a pass."""


def cost_of(run: Measurement, rows: int | None, share: float, pace: Pace) -> Cost:
    """Passes, tokens and time of one ablation on one side, for a share of the work on every layer's heads."""
    model, batch = run.inputs.model, run.inputs.batch
    groups = layout(batch, rows, model.device.type)
    per_layer = model.n_heads
    seconds = fixed = 0.0
    passes = tokens = 0
    for prompts, width in groups:
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        one = prefix + len(prompts) * (part.ids.shape[1] - prefix)
        count = -(-per_layer // width)
        passes += model.n_layers * count
        tokens += model.n_layers * per_layer * one
        # A pass from layer l on: the top layer's cost, and a block for each layer from l to the one below the top.
        work = per_layer * one / pace.tokens
        seconds += work * model.n_layers * (pace.top + pace.block * (model.n_layers - 1) / 2)
        whole = len(prompts) * part.ids.shape[1]
        fixed += model.n_layers * pace.look * whole / LOOK_TOKENS
        fixed += (pace.top + pace.block * (model.n_layers - 1)) * one / pace.tokens
    return Cost(max(1, round(share * passes)), round(share * tokens), share * seconds + fixed)


@dataclass(frozen=True)
class _Untouched:
    """A variant that changes nothing, and takes as long as one that does."""

    first_layer: int
    heads: ClassVar[tuple[Head, ...]] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"acts"})
    label: ClassVar[str] = "nothing"

    def start(self, site: Site) -> Start:
        return Start(site.resid, None if site.acts is None else site.acts.attn_out)

    def describe(self) -> dict[str, Any]:
        return {}

    def in_flight(self, site: Site) -> Start:
        return Start(site.resid)

    def plainly(self, site: Site) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@torch.inference_mode()
def calibrate(run: Measurement, rows: int | None, times: int = 3) -> Pace:
    """Time a clean layer, a pass through the top layer and one through the top `CALIBRATED_LAYERS`; the fastest of
    several `times`."""
    model, batch = run.inputs.model, run.inputs.batch
    groups = layout(batch, rows, model.device.type)
    widest = max(groups, key=lambda g: g.width * len(g.prompts))
    some = Rows.of(model, batch, widest, {})
    top = model.n_layers - 1
    low = max(0, top + 1 - CALIBRATED_LAYERS)
    kernel = kernels_of(model)[0]
    # Every layer's heads do the same work, wherever their stream comes from: that of the lowest layer serves all.
    variants = run.variants([Head(0, head % model.n_heads) for head in range(widest.width)])

    def clean() -> Site:
        site = next(climb([some], {0: needs_of(variants)}))[1]
        for variant in variants:
            variant.start(site)
        return site

    site = clean()
    base = kernel.baseline(some)

    def finish(layer: int) -> None:
        untouched = [_Untouched(layer)] * len(variants)
        last = kernel.finish(some, site._replace(layer=layer), untouched, None)
        run.metric.read(last, base.repeated(len(variants)))

    whole = len(some.prompts) * some.ids.shape[1]
    look = _seconds(clean, model, times) * LOOK_TOKENS / whole
    short = _seconds(lambda: finish(top), model, times)
    long = _seconds(lambda: finish(low), model, times)
    tokens = widest.width * (some.prefix + len(some.prompts) * (some.ids.shape[1] - some.prefix))
    return Pace(look, short, max(0.0, long - short) / max(1, top - low), tokens)


def _seconds(run: Any, model: HookedModel, times: int) -> float:
    """The fastest of several runs; the first one sets things up."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        best = min(best, time.perf_counter() - start)
    return best


def screen_seconds(run: Measurement, directions: int, pace: Pace) -> float:
    """A screen is one clean pass, and for each direction one back, which costs two."""
    whole, passes = float(run.inputs.batch.lengths.sum()), 2 + 2 * directions
    blocks = passes * pace.block * whole / pace.tokens + pace.look * whole / LOOK_TOKENS
    return run.inputs.model.n_layers * blocks


def peak_memory(run: Measurement, rows: int | None) -> int:
    """Bytes that a sweep holds beyond the weights, at its widest."""
    model, batch = run.inputs.model, run.inputs.batch
    size = torch.finfo(model.dtype).bits // 8
    width = 6 * model.d_model + 3 * model.d_mlp + 3 * model.d_head * model.n_heads
    worst = 0
    for prompts, variants in layout(batch, rows, model.device.type):
        part = batch.select(prompts)
        prefix, length = (part.prefix_length if len(prompts) > 1 else 0), part.ids.shape[1]
        lines = variants * len(prompts)
        tokens = variants * prefix + lines * (length - prefix)
        # The pass itself; keys and values of the prefix, repeated for every row; its logits and what is made of them.
        inside = tokens * width * size + 4 * lines * length * model.d_head * model.n_heads * size
        logits = 6 * lines * model.d_vocab * 4
        # The clean pass keeps scores and pattern of all heads.
        looked = max(1, min(len(prompts), LOOK_TOKENS // length))
        clean = looked * length * (width + 3 * model.n_heads * length) * size
        kept = len(prompts) * length * (3 * model.d_model + 2 * model.d_head * model.n_heads) * size
        worst = max(worst, max(inside + logits, clean) + kept)
    streams = 2 * int(batch.lengths.sum()) * model.d_model * size
    return worst + streams


def fewer_rows(rows: int | None, runs: Sequence[Measurement]) -> list[int]:
    """Rows a pass that could be asked for instead: powers of two below what runs now."""
    now = rows or max(
        group.width * len(group.prompts)
        for run in runs
        for group in layout(run.inputs.batch, None, run.inputs.model.device.type)
    )
    return [2**power for power in range(now.bit_length()) if 2**power <= now]


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the model is."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
