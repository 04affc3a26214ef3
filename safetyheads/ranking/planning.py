"""What will a ranking cost, before anything is run?"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from safetyheads.engine.cost import (
    calibrate,
    cost_of,
    fewer_rows,
    free_memory,
    peak_memory,
    screen_seconds,
)
from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.probes.single_heads import DIRECTIONS, SCREEN_COST
from safetyheads.ranking.study import Opened, Study
from safetyheads.screening.audit import Screened
from safetyheads.screening.methods import as_method
from safetyheads.screening.race import Raced, expected_passes
from safetyheads.storage.results import load_result, save_result

QUICK = 1e12
"""Operations that are done before one has read how long they take."""
SAID = 60.0
"""Seconds from which on a ranking says what it takes."""


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
    screen runs exactly at least; an audit that finds large errors widens it. For a race the passes are what such races
    take, which depends on how far apart the heads are. Executors divide the time by the number of
    workers, at best.

    Raises what `rank` raises for its input.
    """
    opened, rows, method = study.open(), execution.rows, as_method(study.method)
    runs = [*opened.harmful, *opened.harmless]
    model, prompts = opened.model, opened.prompts
    n_heads = model.n_layers * model.n_heads
    shares = [_share(method, run, run in opened.harmful) for run in runs]
    paces = [calibrate(run, rows) for run in runs]
    costs = [
        cost_of(run, rows, share.work, pace)
        for run, share, pace in zip(runs, shares, paces, strict=True)
    ]
    free = free_memory(model.device)
    memory = max(peak_memory(run, rows) for run in runs)
    fitting = [
        n for n in fewer_rows(rows, runs) if max(peak_memory(r, n) for r in runs) <= 0.9 * free
    ]
    seconds = sum(cost.seconds for cost in costs)
    if isinstance(method, Screened) or (method is not None and method.covariate):
        directions = method.directions if isinstance(method, Screened) else DIRECTIONS
        # The ablations of a side share one screen.
        each_side = slice(None, None, len(opened.harmful))
        for run, pace in zip(runs[each_side], paces[each_side], strict=True):
            seconds += screen_seconds(run, directions, pace)
    return Plan(
        model=model.name,
        heads=round(n_heads * shares[0].heads),
        prompts=len(prompts.harmful) + len(prompts.harmless),
        variants=round(
            sum(
                share.passes * n_heads * len(run.inputs.batch)
                for share, run in zip(shares, runs, strict=True)
            )
        ),
        passes=sum(cost.passes for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        seconds=seconds,
        peak_memory=memory,
        weights=model.weights_size,
        free_memory=free,
        rows=rows,
        fitting_rows=max(fitting, default=None),
    )


def say_cost(study: Study, opened: Opened, execution: Execution) -> None:
    """Say on standard error what a ranking takes, where it takes more than a minute."""
    runs, method = [*opened.harmful, *opened.harmless], as_method(study.method)
    if (
        execution.progress is False
        or execution.executor is not None
        or _operations(runs, method) < QUICK
    ):
        return
    pace = calibrate(runs[0], execution.rows, times=1)

    def seconds(method: Raced | Screened | None) -> float:
        shares = [_share(method, run, run in opened.harmful).work for run in runs]
        pairs = zip(runs, shares, strict=True)
        return sum(cost_of(run, execution.rows, share, pace).seconds for run, share in pairs)

    takes = seconds(method)
    if takes < SAID:
        return
    name = "exact" if method is None else type(method).__name__.lower()
    text = f"{opened.model.name}, {name}: about {_clock(takes)} on this machine as it is now"
    raced = seconds(Raced(top_k=study.top_k))
    if method is None and raced < 0.7 * takes:
        text += f'; method="raced" gives the exact top {study.top_k} in about {_clock(raced)}'
    sys.stderr.write(text + "\n")


def passes_of(study: Study, opened: Opened) -> float:
    """About what the bars of a ranking's parts will add up to, in ablated prompts."""
    method = as_method(study.method)
    total = 0.0
    for side, harmful in ((opened.harmful, True), (opened.harmless, False)):
        for run in side:
            heads = run.inputs.model.n_layers * run.inputs.model.n_heads
            total += _share(method, run, harmful).passes * heads * len(run.inputs.batch)
        screened = isinstance(method, Screened) and method.directions
        raced = isinstance(method, Raced) and method.covariate and harmful and DIRECTIONS
        if side and (directions := screened or raced):
            total += SCREEN_COST * len(side[0].inputs.batch) * (2 + directions)
    return total * (2 if study.null in ("random_init", "gate") else 1)


def _operations(runs: Sequence[Measurement], method: Raced | Screened | None) -> float:
    """About how many multiplications and additions runs take, without a calibration."""
    total = 0.0
    for run in runs:
        model, batch = run.inputs.model, run.inputs.batch
        rest = float(batch.lengths.sum()) - len(batch) * batch.prefix_length
        weights = model.weights_size / torch.finfo(model.dtype).bits * 8
        share = _share(method, run, harmful=True).work
        total += weights * (batch.prefix_length + rest) * model.n_layers * model.n_heads * share
    return total


def _clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> _clock(83.4)
    '1:23'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


class _Share(NamedTuple):
    """How much of an exact sweep a run is."""

    heads: float
    """Of all heads, those that are run at all."""
    passes: float
    """Of all (head, prompt) pairs."""
    work: float
    """Of all tokens: a head that is run on few prompts runs the prefix that they share all the same."""


def _share(method: Raced | Screened | None, run: Measurement, harmful: bool) -> _Share:
    """What is run, as far as it is known beforehand."""
    if method is None:
        return _Share(1.0, 1.0, 1.0)
    if isinstance(method, Screened):
        share = min(1.0, method.share + method.audit)
        return _Share(share, share, share)
    model, batch = run.inputs.model, run.inputs.batch
    heads, count = model.n_layers * model.n_heads, len(batch)
    if not harmful:
        share = min(1.0, (1.2 * method.top_k + len(method.include)) / heads)
        return _Share(share, share, share)
    prefix = batch.prefix_length if count > 1 else 0
    rest = float(batch.lengths.float().mean()) - prefix
    passes = sum(expected_passes(method, heads, count)) / (heads * count)
    return _Share(1.0, passes, (prefix + rest * count * passes) / (prefix + rest * count))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
