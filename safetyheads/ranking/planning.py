"""What will a ranking cost, before anything is run?"""

from dataclasses import dataclass
from pathlib import Path

from safetyheads.engine.cost import (
    calibrate,
    cost_of,
    fewer_rows,
    free_memory,
    peak_memory,
    screen_seconds,
)
from safetyheads.engine.execution import HERE, Execution
from safetyheads.ranking.study import Study
from safetyheads.screening.audit import as_method
from safetyheads.storage.results import load_result, save_result


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
    paces = [calibrate(run, rows) for run in runs]
    costs = [cost_of(run, rows, share, pace) for run, pace in zip(runs, paces, strict=True)]
    free = free_memory(model.device)
    memory = max(peak_memory(run, rows) for run in runs)
    fitting = [
        n for n in fewer_rows(rows, runs) if max(peak_memory(r, n) for r in runs) <= 0.9 * free
    ]
    seconds = sum(cost.seconds for cost in costs)
    if screened is not None:
        # The ablations of a side share one screen.
        each_side = slice(None, None, len(opened.harmful))
        for run, pace in zip(runs[each_side], paces[each_side], strict=True):
            seconds += screen_seconds(run, screened.directions, pace)
    return Plan(
        model=model.name,
        heads=round(n_heads * share),
        prompts=len(prompts.harmful) + len(prompts.harmless),
        variants=round(share * n_heads * sum(len(run.inputs.batch) for run in runs)),
        passes=sum(cost.passes for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        seconds=seconds,
        peak_memory=memory,
        weights=model.weights_size,
        free_memory=free,
        rows=rows,
        fitting_rows=max(fitting, default=None),
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
