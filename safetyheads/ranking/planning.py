"""What will a run cost, before anything is run?

The passes and tokens of a sweep follow from the prompts' lengths alone. Its time follows from a short calibration:
one pass through the top layers and one through the last, of the widest group of prompts, which takes about as long as
one forward pass of a small model. Its memory follows from the sizes of what one pass holds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.sweep import LOOK_TOKENS, _Chunk, _Reference, layout
from safetyheads.heads import Head
from safetyheads.metrics import LastToken
from safetyheads.models.hooked import HookedModel
from safetyheads.ranking.study import Study
from safetyheads.screening.screened import Screened, as_method
from safetyheads.storage.results import load_result, save_result

CALIBRATED_LAYERS = 3
"""How many layers the longer of the two timed passes runs."""


@dataclass(frozen=True)
class Plan:
    """What `rank` would run for a study."""

    model: str
    """Name of the model."""
    heads: int
    """Heads that are ablated, one at a time."""
    prompts: int
    """Prompts, harmful and harmless."""
    variants: int
    """(ablation, head, prompt) triples: what plain ablation would spend one forward pass on."""
    passes: int
    """Forward passes, each from the ablated layer on, with several heads and prompts in it."""
    tokens: int
    """Tokens of all passes; a prefix that prompts share counts once a pass and head."""
    seconds: float
    """Time, from the calibration on this machine as busy as it was."""
    peak_memory: int
    """Bytes beyond the model's weights."""
    weights: int
    """Bytes of the model's weights."""
    free_memory: int
    """Bytes that were free when the plan was made, with the model already open."""
    rows: int | None
    """(head, prompt) rows of one pass that were asked for; None for as many as `TOKENS_A_PASS` says."""
    fitting_rows: int | None
    """The most rows whose peak fits into nine tenths of the free memory; None if a single row does not."""

    @property
    def fits(self) -> bool:
        """Whether the peak fits into nine tenths of the free memory."""
        return self.peak_memory <= 0.9 * self.free_memory

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        lines = [
            f"{self.model}: {self.heads} heads, {self.prompts} prompts, {self.variants:,} ablated prompts",
            f"passes       {self.passes:,}, each from the ablated layer on",
            f"tokens       {self.tokens:,}",
            f"time         {hours}:{minutes:02}:{seconds:02}",
            f"peak memory  {_gib(self.peak_memory)} beyond the weights' {_gib(self.weights)}; "
            f"{_gib(self.free_memory)} free",
        ]
        if not self.fits:
            lines.append(
                "too large: not even one row a pass fits into the free memory"
                if self.fitting_rows is None
                else f"too large for the free memory: {self.fitting_rows} rows a pass fit (--batch {self.fitting_rows})"
            )
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def plan(study: Study, execution: Execution = HERE) -> Plan:
    """Say what `rank` will cost, without running it.

    The calibration runs a few layers of one pass for each ablation. For a screened study the heads are those that the
    screen runs exactly at least; an audit that finds large errors widens it. Executors divide the time by the number of
    workers, at best.

    Raises what `rank` raises for its input.
    """
    opened, rows, screened = study.open(), execution.rows, as_method(study.method)
    runs = [*opened.harmful, *opened.harmless]
    model, prompts = opened.model, opened.prompts
    n_heads = model.n_layers * model.n_heads
    share = 1.0 if screened is None else min(1.0, screened.share + screened.audit)
    paces = [_calibrate(run, rows) for run in runs]
    costs = [_cost(run, rows, share, pace) for run, pace in zip(runs, paces, strict=True)]
    free = _free_memory(model.device)
    memory = max(peak_memory(run, rows) for run in runs)
    fitting = [n for n in _fewer(rows, runs) if max(peak_memory(r, n) for r in runs) <= 0.9 * free]
    seconds = sum(cost.seconds for cost in costs)
    if screened is not None:
        # The ablations of a side share one screen.
        each_side = slice(None, None, len(opened.harmful))
        for run, pace in zip(runs[each_side], paces[each_side], strict=True):
            seconds += _screen_seconds(run, screened, pace)
    weights = model.bridge.original_model.parameters()
    return Plan(
        model=model.name,
        heads=round(n_heads * share),
        prompts=len(prompts.harmful) + len(prompts.harmless),
        variants=round(share * n_heads * sum(len(run.inputs.batch) for run in runs)),
        passes=sum(cost.passes for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        seconds=seconds,
        peak_memory=memory,
        weights=sum(p.numel() * p.element_size() for p in {id(p): p for p in weights}.values()),
        free_memory=free,
        rows=rows,
        fitting_rows=max(fitting, default=None),
    )


@dataclass(frozen=True)
class _Cost:
    passes: int
    tokens: int
    seconds: float


class _Pace(NamedTuple):
    """How fast this machine is, on one run's widest passes."""

    look: float
    """Seconds of a clean layer for `LOOK_TOKENS` tokens."""
    top: float
    """Seconds of a pass through the top layer."""
    block: float
    """Seconds that a pass takes longer for each layer that it starts below the top."""
    tokens: int
    """Tokens of such a pass."""


def _cost(run: Measurement, rows: int | None, share: float, pace: _Pace) -> _Cost:
    """Passes, tokens and time of one ablation on one side, with `share` of every layer's heads."""
    model, batch = run.inputs.model, run.inputs.batch
    groups = layout(batch, rows, model.device.type)
    per_layer = max(1, round(share * model.n_heads))
    seconds = 0.0
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
        seconds += model.n_layers * pace.look * whole / LOOK_TOKENS
        seconds += (pace.top + pace.block * (model.n_layers - 1)) * one / pace.tokens
    return _Cost(passes, tokens, seconds)


@torch.inference_mode()
def _calibrate(run: Measurement, rows: int | None) -> _Pace:
    """Time a clean layer, a pass through the top layer and one through the top `CALIBRATED_LAYERS`."""
    model, batch = run.inputs.model, run.inputs.batch
    groups = layout(batch, rows, model.device.type)
    prompts, width = max(groups, key=lambda g: g.width * len(g.prompts))
    chunk = _Chunk(model, batch, prompts, width, model.kernels[0], {})
    edits = run.variants([Head(0, head % model.n_heads) for head in range(width)])
    needs = edits[0].ablation.needs
    low = max(0, model.n_layers - CALIBRATED_LAYERS)

    def clean() -> Any:
        chunk.acts = None
        acts = chunk.look(0, scores="scores" in needs)
        reference = _Reference([chunk], 0, needs)
        return acts, [chunk.ablated_z(acts, edit, reference) for edit in edits]

    acts, _ = clean()
    resid = chunk.resid.expand(width, *chunk.resid.shape)
    attn_out = acts.attn_out.expand(width, *acts.attn_out.shape)

    def climb(layer: int) -> None:
        last = LastToken(chunk._run_from(layer, resid, attn_out), model.unembed)
        chunk._state = last.state[: len(prompts)]
        chunk.read(run.metric, last, chunk.untouched(), edits)

    whole = len(prompts) * chunk.ids.shape[1]
    look = _seconds(clean, model) * LOOK_TOKENS / whole
    short = _seconds(lambda: climb(model.n_layers - 1), model)
    long = _seconds(lambda: climb(low), model)
    tokens = width * (chunk.prefix + len(prompts) * (chunk.ids.shape[1] - chunk.prefix))
    return _Pace(look, short, max(0.0, long - short) / max(1, model.n_layers - 1 - low), tokens)


def _seconds(run: Any, model: HookedModel) -> float:
    """The faster of two runs after a first one, which sets things up."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        best = min(best, time.perf_counter() - start)
    return best


def _screen_seconds(run: Measurement, screened: Screened, pace: _Pace) -> float:
    """A screen is one clean pass, and for each direction one back, which costs two."""
    whole, passes = float(run.inputs.batch.lengths.sum()), 2 + 2 * screened.directions
    blocks = passes * pace.block * whole / pace.tokens + pace.look * whole / LOOK_TOKENS
    return run.inputs.model.n_layers * blocks


def peak_memory(run: Measurement, rows: int | None) -> int:
    """Bytes that a sweep holds beyond the weights, at its widest."""
    model, batch = run.inputs.model, run.inputs.batch
    config: Any = model.bridge.cfg
    size = torch.finfo(model.dtype).bits // 8
    width = 6 * model.d_model + 3 * int(config.d_mlp) + 3 * model.d_head * model.n_heads
    worst = 0
    for prompts, variants in layout(batch, rows, model.device.type):
        part = batch.select(prompts)
        prefix, length = (part.prefix_length if len(prompts) > 1 else 0), part.ids.shape[1]
        lines = variants * len(prompts)
        tokens = variants * prefix + lines * (length - prefix)
        # The pass itself; keys and values of the prefix, repeated for every row; its logits and what is made of them.
        inside = tokens * width * size + 4 * lines * length * model.d_head * model.n_heads * size
        logits = 6 * lines * int(config.d_vocab) * 4
        # The clean pass keeps scores and pattern of all heads.
        looked = max(1, min(len(prompts), LOOK_TOKENS // length))
        clean = looked * length * (width + 3 * model.n_heads * length) * size
        kept = len(prompts) * length * (3 * model.d_model + 2 * model.d_head * model.n_heads) * size
        worst = max(worst, max(inside + logits, clean) + kept)
    streams = 2 * int(batch.lengths.sum()) * model.d_model * size
    return worst + streams


def _fewer(rows: int | None, runs: Sequence[Measurement]) -> list[int]:
    """Rows a pass that could be asked for instead: powers of two below what runs now."""
    now = rows or max(
        group.width * len(group.prompts)
        for run in runs
        for group in layout(run.inputs.batch, None, run.inputs.model.device.type)
    )
    return [2**power for power in range(now.bit_length()) if 2**power <= now]


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
