"""How sharp is the border that a walk crosses, how wide, and how long was it quiet before?

Plain functions of curves, which know no model. A curve is the distance of a walk's readings from where it begins, a
number a step, at equal distances along the way. Every number is of finite differences: it belongs to its number of
steps, and with n steps no sharpness can be above n - 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Curves = Float[Tensor, "prompt step"]
OK, SAME, NOT_FINITE = "", "ends alike", "not finite"
"""Why a curve is invalid: its ends are read alike, or it holds what is no number."""
ALIKE = 1e-4
"""Ends are alike if nearer than this share of what ends are apart on average: rounding then makes the curve."""
STILL = 1e-5
"""A walk shorter than this share of the activation's norm goes nowhere: rounding is all there is of it."""


def validity(
    from_start: Curves, to_end: Curves, moved: Float[Tensor, " prompt"] | None = None
) -> tuple[str, ...]:
    """Why each curve is invalid; empty for one that is valid.

    `moved` is the length of each walk over the norm of where it begins: one that goes nowhere has ends alike.
    """
    finite = (from_start.isfinite() & to_end.isfinite()).all(-1)
    length = from_start[:, -1]
    apart = length > ALIKE * length[finite].mean()
    if moved is not None:
        apart &= moved > STILL
    return tuple(
        (OK if far else SAME) if known else NOT_FINITE
        for far, known in zip(apart.tolist(), finite.tolist(), strict=True)
    )


def relative_distance(from_start: Curves, to_end: Curves) -> Curves:
    """d(t) = |z - z_A| / (|z - z_A| + |z - z_B|): 0 at the start, 1 at the end, and 1 - d is the way back's."""
    return from_start / (from_start + to_end)


def sharpness(from_start: Curves) -> Float[Tensor, " prompt"]:
    """The steepest step of distance over the whole distance, times the number of steps: 1 for a straight line.

    max_t d'(t) / d(1) of Janiak et al. (arXiv:2409.17113), as their code takes it: the largest first difference.

    >>> line, jump = torch.arange(11.0), (torch.arange(11) > 4).float()
    >>> sharpness(torch.stack([line, jump])).tolist()
    [1.0, 10.0]
    """
    share = from_start.double() / from_start[:, -1:].double()
    return (share.diff(dim=-1).amax(-1) * (share.shape[1] - 1)).float()


def steepest(from_start: Curves) -> Int[Tensor, " prompt"]:
    """The step at which the distance grows most, counted from 1: it ends there.

    Giglemiani et al. (arXiv:2409.15019) call this number the max slope (MS); of a logistic curve it is the midpoint.
    """
    return from_start.diff(dim=-1).nan_to_num(-torch.inf).argmax(-1) + 1


def first_above(
    curves: Curves, level: float | Float[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """Where each curve first reaches a level, as a share of the way, between steps by a straight line; NaN if never."""
    level = torch.as_tensor(level, dtype=torch.float64).expand(len(curves))[:, None]
    wide = curves.double()
    reached = wide >= level
    at = reached.long().argmax(-1, keepdim=True)
    before = (at - 1).clamp_min(0)
    low, high = wide.gather(1, before), wide.gather(1, at)
    rise = torch.where(at > 0, (level - low) / (high - low), 0.0)
    share = (before + rise) / (curves.shape[1] - 1)
    return share.where(reached.any(-1, keepdim=True), torch.nan)[:, 0].float()


def transition_width(
    relative: Curves, low: float = 0.1, high: float = 0.9
) -> Float[Tensor, " prompt"]:
    """From where d(t) first leaves `low` to where it last comes to `high`, as a share of the way; 0.8 for a line.

    The way back has the same width, also where the curve does not rise throughout.

    >>> round(transition_width(torch.linspace(0, 1, 11)[None]).item(), 6)
    0.8
    """
    leaves = first_above(relative, low)
    comes = 1 - first_above(1 - relative.flip(-1), 1 - high)
    return comes - leaves


def area(relative: Curves) -> Float[Tensor, " prompt"]:
    """The area under d(t), by trapezoids: 0.5 for a straight line, less for a border that lies late."""
    return torch.trapezoid(relative.double(), dim=-1).float() / (relative.shape[1] - 1)


def response_exponent(
    from_start: Curves, along: Curves, small: float = 0.1
) -> Float[Tensor, " prompt"]:
    """p in |change of the output| ~ step^p, a least-squares line through the logarithms over the first part of the way.

    `along` is the distance walked, `small` the share of it that counts as small. An output that is smooth and answers
    in first order has p = 1 as a distance and 2 as a KL; a plateau has more. NaN with fewer than three steps there.
    """
    steps = from_start.shape[1]
    last = int(small * (steps - 1) + 1e-9)
    if last < 3:
        return torch.full((len(from_start),), torch.nan)
    x, y = (t[:, 1 : last + 1].double().log() for t in (along, from_start))
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    slope = (x * y).sum(-1) / x.square().sum(-1)
    return slope.where(slope.isfinite(), torch.nan).float()


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of a number over valid curves."""

    low: float
    median: float
    high: float
    valid: int
    """Of how many curves."""


def quartiles(values: Float[Tensor, " prompt"], valid: Bool[Tensor, " prompt"]) -> Quartiles:
    """Median and quartiles over the valid curves whose number is one; NaN where there is none.

    >>> quartiles(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([True, True, True, False]))
    Quartiles(low=1.5, median=2.0, high=2.5, valid=3)
    """
    some = values[valid & ~values.isnan()].double()
    if not len(some):
        return Quartiles(torch.nan, torch.nan, torch.nan, 0)
    low, median, high = torch.quantile(
        some, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    ).tolist()
    return Quartiles(low, median, high, len(some))
