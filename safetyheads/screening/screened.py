"""How are the heads that matter run exactly, and the rest left at an estimate?

An estimate never stands for an exact score: `HeadScores.exact` tells them apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.heads import Audit, Head
from safetyheads.metrics import Metric
from safetyheads.screening.audit import Screened, choose, judge


class ScreenedScores(NamedTuple):
    """What a screened run knows of every head; NaN where a head was not run, except in `values`."""

    values: Float[Tensor, "layer head"]
    per_prompt: Float[Tensor, "layer head prompt"] | None
    readings: Float[Tensor, "layer head *reading"]
    exact: Bool[Tensor, "layer head"]
    audit: Audit


def score_screened(
    estimates: Float[Tensor, "layer head"],
    metric: Metric,
    method: Screened,
    run_exactly: Callable[[Sequence[Head]], Float[Tensor, "variant *reading"]],
) -> ScreenedScores:
    """Run the heads exactly that a screen and its audit ask for, and judge the others by them.

    `run_exactly` gives the metric's readings of some heads; it is called once, and again for as long as some head's
    chance of a place in the top is above `method.widen`.

    Raises ValueError for an included head that the model does not have, or a top larger than the model.
    """
    n_layers, n_heads = estimates.shape
    for head in method.include:
        if head.layer >= n_layers or head.head >= n_heads:
            raise ValueError(
                f"{head} is not in this model: it has layers 0-{n_layers - 1} and heads 0-{n_heads - 1}"
            )
    choice = choose(estimates, method, largest_first=metric.largest_first)
    wanted = torch.zeros(n_layers * n_heads, dtype=torch.bool)
    wanted[choice.best] = True
    wanted[choice.audit] = True
    wanted[[head.layer * n_heads + head.head for head in method.include]] = True
    ran = torch.zeros_like(wanted)
    found: list[Tensor] = []
    places: list[int] = []
    while (wanted & ~ran).any():
        new = (wanted & ~ran).nonzero().flatten().tolist()
        found.append(run_exactly([Head(*divmod(place, n_heads)) for place in new]))
        places += new
        ran |= wanted
        readings = torch.cat(found)
        values, per_prompt = metric.score(readings)
        scores = _on_grid(values, places, estimates)
        judged = judge(
            estimates,
            scores,
            ran.reshape(estimates.shape),
            choice,
            method,
            largest_first=metric.largest_first,
        )
        wanted = ran | (judged.chance > method.widen).flatten()
    return ScreenedScores(
        values=judged.values,
        per_prompt=None if per_prompt is None else _on_grid(per_prompt, places, estimates),
        readings=_on_grid(readings, places, estimates),
        exact=ran.reshape(estimates.shape),
        audit=judged.audit,
    )


def _on_grid(
    rows: Float[Tensor, "variant *rest"], places: Sequence[int], like: Float[Tensor, "layer head"]
) -> Float[Tensor, "layer head *rest"]:
    """Rows at their places among all heads, NaN elsewhere."""
    grid = torch.full((like.numel(), *rows.shape[1:]), torch.nan, dtype=rows.dtype)
    grid[list(places)] = rows
    return grid.unflatten(0, tuple(like.shape))
