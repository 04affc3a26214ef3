"""Which small change of a state makes the loss largest? Projected gradient ascent in an L2 ball.

Untargeted, after Casper et al. (arXiv:2403.05030) and their code: a random start, steps of `radius / steps` along the
normalised gradient, the norm taken over all positions of a row together, the states kept within the range of the clean
ones. Two things are otherwise: only the positions of the request are perturbed, as in Sheshadri et al.
(arXiv:2407.15549), and the radius is a share of the norm of the clean states there, so that it means the same in the
embedding and in a later layer, whose states are longer.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Loss = Callable[[Float[Tensor, "row pos d_model"]], Float[Tensor, " row"]]
"""Each row's loss, given the states that are perturbed."""


class Ascent(NamedTuple):
    """How far and in how many steps the loss is climbed."""

    radius: float
    """Of the ball, as a share of the norm of a row's clean states."""
    steps: int


def perturb(
    states: Float[Tensor, "row pos d_model"],
    where: Bool[Tensor, "row pos"],
    loss: Loss,
    ascent: Ascent,
    generator: torch.Generator,
) -> Float[Tensor, "row pos d_model"]:
    """States with a change that a row's loss rises under, of at most `ascent.radius` of their norm where `where` is.

    A row's loss depends on its own states only; what is returned carries no gradient.
    """
    clean = states.detach()
    here = where[..., None].to(clean.dtype)
    low, high = clean.amin((1, 2), keepdim=True), clean.amax((1, 2), keepdim=True)
    radius = ascent.radius * _norm(clean * here)
    change = torch.randn(clean.shape, generator=generator).to(clean) * here
    share = torch.rand(len(clean), generator=generator).to(clean)[:, None, None]
    change = change / _norm(change) * radius * share
    for _ in range(ascent.steps):
        change.requires_grad_(True)
        lost = loss((clean + change).clamp(low, high)).sum()
        (slope,) = torch.autograd.grad(lost, change)
        slope = slope * here
        with torch.no_grad():
            change = change + radius / ascent.steps * slope / _norm(slope)
            change = change * (radius / _norm(change)).clamp(max=1)
    return (clean + change.detach()).clamp(low, high)


def _norm(x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row 1 1"]:
    return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-12)
