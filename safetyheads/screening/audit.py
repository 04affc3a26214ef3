"""Which heads are worth an exact run, and how many that matter are missed?

The best heads by estimate are run exactly, and so is a random sample of the others; from how far the estimates were off
on the heads that were run, `judge` says what to expect of the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.heads import Audit, Head, parse_heads

DRAWS = 2000
"""Draws of the error model."""


@dataclass(frozen=True)
class Screened:
    """How heads are screened: pass it as `method`, or the word "screened" for the defaults.

    >>> Screened(share=0.2).directions
    4
    """

    top_k: int = 10
    """The top whose recall is estimated."""
    share: float = 0.1
    """Share of all heads that are run exactly because their estimate is among the best; at least `top_k` heads."""
    audit: float = 0.04
    """Share of all heads drawn at random from the others and run exactly too."""
    widen: float = 0.2
    """Heads whose chance of a place in the top is larger than this, by the audited error, are run exactly as well."""
    directions: int = 4
    """Passes backward."""
    include: tuple[Head, ...] = ()
    """Heads that are run exactly whatever their estimate."""
    seed: int = 0
    """Seed of the sample."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "include", parse_heads(self.include))
        for name, low in (("top_k", 1), ("directions", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and at most 1")
        if not 0 <= self.audit <= 1:
            raise ValueError(f"audit is {self.audit}; it must be between 0 and 1")
        if not 0 < self.widen <= 1:
            raise ValueError(
                f"widen is {self.widen}; it must be above 0 and at most 1, which never widens"
            )

    def only(self, heads: Sequence[Head]) -> "Screened":
        """The same with these heads run exactly, the fewest others, and no search beyond them."""
        return replace(self, include=tuple(heads), share=1e-9, audit=0.0, widen=1.0)


class Choice(NamedTuple):
    """Heads that a screen sends to the exact sweep."""

    best: Int[Tensor, " chosen"]
    """By estimate, best first; indices into the flattened grid of heads."""
    audit: Int[Tensor, " audited"]
    """Drawn at random from the others."""


def choose(
    estimates: Float[Tensor, "layer head"], method: Screened, *, largest_first: bool = True
) -> Choice:
    """The heads with the best estimates, and a random sample of the others."""
    flat = estimates.flatten()
    if method.top_k > len(flat):
        raise ValueError(f"top_k is {method.top_k}, and the model has {len(flat)} heads")
    order = flat.argsort(descending=largest_first, stable=True)
    best = min(len(flat), max(method.top_k, math.ceil(method.share * len(flat))))
    rest = order[best:]
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(method.seed))
    # Two at least, so that there is something to judge by.
    count = min(len(rest), max(2, round(method.audit * len(flat)))) if method.audit else 0
    return Choice(order[:best], rest[draw[:count]].sort().values)


class Judged(NamedTuple):
    """What the heads that were run say of the others."""

    values: Float[Tensor, "layer head"]
    """Exact scores where there are, calibrated estimates elsewhere."""
    chance: Float[Tensor, "layer head"]
    """Each head's chance of a score above the k-th exact one; 0 where it was run."""
    audit: Audit


def judge(
    estimates: Float[Tensor, "layer head"],
    scores: Float[Tensor, "layer head"],
    exact: Bool[Tensor, "layer head"],
    choice: Choice,
    method: Screened,
    *,
    largest_first: bool = True,
) -> Judged:
    """Calibrate the estimates of heads that were not run, and estimate how many of the top k are among them.

    `scores` are read where `exact` is true. The error model: score on estimate is a straight line with normal
    errors, of logarithms unless an estimate is negative, fitted to all heads that were run (they were chosen by
    estimate or at random, never by score, which leaves the line unbiased); the parameters' uncertainty is in the
    draws. Beside it stands a bound without any model, from the audit sample alone: see `Audit.missed_at_most`.
    """
    sign, signed = 1.0 if largest_first else -1.0, bool((estimates < 0).any())

    def scale(values: Tensor) -> Tensor:
        values = values.flatten().double()
        # A score of nearly nothing is rounding, and its logarithm must not bend the line.
        return sign * values if signed else values.clamp_min(1e-6 * values.max()).log()

    ran = exact.flatten()
    x, y = scale(estimates), scale(scores.nan_to_num())
    best = y[ran].topk(method.top_k).values
    fitted, draws = _regress(x[ran], y[ran], x[~ran], method.seed)
    back = sign * fitted if signed else fitted.exp()
    values, chance = scores.flatten().double(), torch.zeros(len(x), dtype=torch.float64)
    values[~ran], chance[~ran] = back, (draws > best[-1]).double().mean(0)
    # In each draw: how many of the k best of all heads are among the k best that were run.
    rivals = draws.topk(min(method.top_k, draws.shape[1])).values
    everyone = torch.cat([best.expand(len(draws), -1), rivals], dim=1)
    recalls = (everyone.topk(method.top_k).indices < method.top_k).double().mean(1)
    low, high = recalls.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    kth = y[choice.best].topk(method.top_k).values[-1]
    beaten = int((y[choice.audit] > kth).sum())
    rest = len(x) - len(choice.best)
    widened = int(ran.sum()) - len(choice.best) - len(choice.audit)
    audit = Audit(
        top_k=method.top_k,
        heads=len(x),
        run=int(ran.sum()),
        audited=len(choice.audit),
        beaten=beaten,
        recall=recalls.mean().item(),
        recall_low=low,
        recall_high=high,
        missed_at_most=min(
            most_in_population(rest, len(choice.audit), beaten) - beaten,
            rest - len(choice.audit) - widened,
        ),
    )
    shape = estimates.shape
    return Judged(values.reshape(shape).float(), chance.reshape(shape).float(), audit)


def _regress(
    x: Float[Tensor, " known"],
    y: Float[Tensor, " known"],
    x_new: Float[Tensor, " unknown"],
    seed: int,
) -> tuple[Float[Tensor, " unknown"], Float[Tensor, "draw unknown"]]:
    """A line's prediction of new values, and draws of them: Bayesian linear regression with a flat prior."""
    generator = torch.Generator().manual_seed(seed)
    design = torch.stack([torch.ones_like(x), x], dim=1)
    inverse = torch.linalg.pinv(design.mT @ design)
    weights = inverse @ design.mT @ y
    freedom = max(1, len(x) - 2)
    spread = ((y - design @ weights).square().sum() / freedom).sqrt()
    new = torch.stack([torch.ones_like(x_new), x_new], dim=1)

    chi_square = (
        torch.randn(DRAWS, freedom, generator=generator, dtype=torch.float64).square().sum(1)
    )
    scales = spread * (freedom / chi_square).sqrt()[:, None]
    root = torch.linalg.eigh(inverse)
    half = root.eigenvectors * root.eigenvalues.clamp_min(0).sqrt()
    normal = torch.randn(DRAWS, 2, generator=generator, dtype=torch.float64)
    lines = (weights + scales * (normal @ half.mT)) @ new.mT
    noise = torch.randn(DRAWS, len(x_new), generator=generator, dtype=torch.float64)
    return new @ weights, lines + scales * noise


def most_in_population(population: int, sample: int, hits: int, confidence: float = 0.95) -> int:
    """The largest number of hits in a population with which so few in a random sample are not yet implausible.

    The exact one-sided hypergeometric bound (Clopper and Pearson's, without replacement): with more hits in the
    population, `hits` or fewer in the sample have a chance of less than 1 - confidence.

    >>> most_in_population(100, 50, 0), most_in_population(100, 100, 3), most_in_population(100, 0, 0)
    (4, 3, 100)
    """
    everything = math.comb(population, sample)
    most = hits
    for count in range(hits, population - (sample - hits) + 1):
        few = sum(
            math.comb(count, n) * math.comb(population - count, sample - n)
            for n in range(min(hits, count) + 1)
        )
        if few < (1 - confidence) * everything:
            break
        most = count
    return most
