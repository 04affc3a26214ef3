"""How far from what a head's first prompts promise is its mean over the others?

A studentised bootstrap (Efron & Tibshirani 1993, section 12.5) over made-up heads: each has a variance drawn from what
the heads' variances are like (their line and its scatter), and scores from the residuals of the heads that ran on many
prompts. What its first n prompts make of the others' mean is set beside that mean, in standard errors. The quantiles of
these are an interval's; they know what Student's t does not: that scores are skewed, that a mean and its error rise
together, and that a few prompts fit a variance badly.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

MOST_VARIANCE = 3.0
"""By which logarithms vary at most."""
RICH = 8
"""From so many prompts on a head's residuals show a shape; where no head has them, scores are taken for normal."""
MADE, NUMBERS = 5_000, 4_000_000
"""Heads that are made up, and scores of them, at most."""


@dataclass(frozen=True, eq=False)
class Population:
    """What the heads' scores are like, those of one head less its mean; logarithms where scores are positive."""

    variances: Float[ndarray, " head"]
    """What a head of its size has, typically."""
    prior: float
    """Degrees of freedom of the heads' scatter about it."""
    residuals: Float[ndarray, " residual"]
    """Of variance 1."""
    positive: bool

    def errors(
        self, variance: Float[ndarray, " head"], count: Int[ndarray, " head"], of: int
    ) -> Float[ndarray, " head"]:
        """The standard error of what `count` prompts make of the mean of the others, of `of` in all."""
        others = np.expm1(variance) if self.positive else variance
        return np.sqrt(variance / count + others / (of - count))

    def pivots(self, counts: Iterable[int], of: int) -> dict[int, Float[ndarray, " made"]]:
        """After each number of prompts, the made-up heads' distances in standard errors, in order."""
        random = np.random.default_rng(0)
        made = max(1000, min(MADE, NUMBERS // of))
        typical = random.choice(self.variances, made)
        own = self.capped(typical * self.prior / random.chisquare(self.prior, made))
        scores = np.sqrt(own)[:, None] * random.choice(self.residuals, (made, of))
        raw = np.exp(scores) if self.positive else scores
        found = {}
        for count in counts:
            seen, free = scores[:, :count], count - 1
            fitted = (free * seen.var(1, ddof=1) + self.prior * typical) / (free + self.prior)
            fitted = self.capped(fitted)
            others = raw[:, count:].mean(1)
            apart = (np.log(others) - fitted / 2 if self.positive else others) - seen.mean(1)
            found[count] = np.sort(apart / self.errors(fitted, np.full(made, count), of))
        return found

    def capped(self, variance: Float[ndarray, " head"]) -> Float[ndarray, " head"]:
        """Variances of logarithms, no larger than can be."""
        return np.minimum(variance, MOST_VARIANCE) if self.positive else variance


def standard(
    centred: Float[ndarray, "head prompt"],
    ran: Bool[ndarray, "head prompt"],
    variance: Float[ndarray, " head"],
) -> Float[ndarray, " residual"]:
    """The residuals of the heads that ran on many prompts, of variance 1; normal quantiles where there are none."""
    count = ran.sum(1)
    rich = (count >= RICH) & (variance > 0)
    if not rich.any():
        return np.random.default_rng(0).normal(size=MADE)
    spread = np.sqrt(variance[rich] * (count[rich] - 1) / count[rich])
    found = (centred[rich] / spread[:, None])[ran[rich]]
    return found / np.sqrt((found**2).mean())
