"""What do a few prompts say of a head's mean score over all of them?

Prompts are a random sample of those that are there, without replacement: a head's mean over n of N is unbiased, and its
variance falls to nothing as n reaches N (the finite-population factor 1 - n/N). Few prompts give a poor variance of a
single head; hundreds of heads together give a good one. As limma does for genes (Smyth 2004,
doi:10.2202/1544-6115.1027, with the trend of Sartor et al. 2006, doi:10.1186/1471-2105-7-538), each head's variance is
moderated toward what heads of its size have: the log variances are a line in the log size with a scatter, part of it
their chi-square noise, and the rest becomes the prior's degrees of freedom. The size is the geometric mean of positive
scores, else the root mean square.

Scores that are all positive (a divergence) are skewed: their logarithms are modelled. An interval is one of the prompts
that were not run, predicted from those that were (Royall 1970, doi:10.1093/biomet/57.2.377): of logarithms by mean plus
half the variance (Cox's estimate of a log-normal mean; Zhou & Gao 1997). Its quantiles come from made-up heads
(`pivots`), not from Student's t.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.special import digamma, polygamma

from safetyheads.screening.pivots import Population, standard

MOST_PRIOR = 200.0
"""Prompts that the other heads may count for, at most."""
NEARLY_NONE = 1e-2
"""Of positive scores: what is this small beside the mean counts as this large."""
LEAST = 1e-12
"""Beside the largest, what counts as nothing."""
BINS, FARTHEST = 100, (0.0005, 0.9995)
"""Of the heads' sizes, and the quantiles where they end."""


@dataclass(frozen=True, eq=False)
class Means:
    """Every head's mean over all prompts, by the prompts that it was run on."""

    mean: Float[ndarray, " head"]
    """Unbiased."""
    error: Float[ndarray, " head"]
    """Its standard error; 0 where all prompts were run."""
    count: Int[ndarray, " head"]
    """Prompts run."""
    prompts: int
    seen: Float[ndarray, " head"]
    """Mean over the prompts run."""
    expected: Float[ndarray, " head"]
    """Mean over the others, as expected; the logarithm where scores are positive."""
    variance: Float[ndarray, " head"]
    """Of a head's scores; of their logarithms where scores are positive."""
    population: Population

    def interval(
        self, level: float = 0.95
    ) -> tuple[Float[ndarray, " head"], Float[ndarray, " head"]]:
        """Lower and upper end, each head's own; the mean lies within."""
        low, high = self.mean.copy(), self.mean.copy()
        for some, drawn in self._drawn:
            ends = np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2), axis=1)
            if self.population.positive:
                ends = np.exp(ends)
            low[some], high[some] = np.minimum(low[some], ends[0]), np.maximum(high[some], ends[1])
        return low, high

    def above(self, border: float) -> Float[ndarray, " head"]:
        """Each head's chance that its mean over all prompts is above a border.

        A head is one of many, and few are large: what its own prompts leave open is weighed by how many heads have such
        means (empirical Bayes, Robbins 1956; Efron 2010, Large-Scale Inference, chapter 1).
        """
        chance = np.where(self.mean > border, 1.0, 0.0)
        if not self._drawn:
            return chance
        known = self.mean[self.count == self.prompts]
        if self.population.positive:
            known, border = np.log(known), float(np.log(border))
        made = self._drawn[0][1].shape[1]
        sizes = np.concatenate([np.repeat(known, made), *(one.ravel() for _, one in self._drawn)])
        low, high = np.quantile(sizes, FARTHEST)
        edges = np.linspace(low, max(high, *known, low + 1e-12 * (1 + abs(low))), BINS + 1)
        many = np.convolve(np.histogram(sizes, edges)[0], (0.25, 0.5, 0.25), "same")
        for some, drawn in self._drawn:
            weights = many[np.clip(np.searchsorted(edges, drawn) - 1, 0, BINS - 1)]
            above = (weights * (drawn > border)).sum(1)
            chance[some] = above / np.maximum(weights.sum(1), 1e-300)
        return chance

    @cached_property
    def _drawn(self) -> list[tuple[Bool[ndarray, " head"], Float[ndarray, "some made"]]]:
        """Of heads that lack the same number of prompts: what their means over all may be, in order; logarithms."""
        counts = np.unique(self.count[self.count < self.prompts]).tolist()
        pivots = self.population.pivots(counts, self.prompts)
        found = []
        for count in counts:
            some, share = self.count == count, count / self.prompts
            error = self.population.errors(self.variance[some], self.count[some], self.prompts)
            others = self.expected[some][:, None] + error[:, None] * pivots[count]
            seen = share * self.seen[some][:, None]
            if self.population.positive:
                found.append((some, np.log(seen + (1 - share) * np.exp(others))))
            else:
                found.append((some, seen + (1 - share) * others))
        return found


def means(
    scores: Float[ndarray, "head prompt"],
    ran: Bool[ndarray, "head prompt"],
    covariate: Float[ndarray, "head prompt"] | None = None,
) -> Means:
    """Estimate every head's mean over all prompts from those that it was run on, at least two.

    `covariate` is something known of every head and prompt: with it the estimate is the regression estimator (Cochran,
    Sampling Techniques, 7.1; prediction-powered inference with a fitted weight, arXiv:2311.01453), with one slope for
    all heads, fitted on all that was run: of a useless covariate it is next to 0.
    """
    count, prompts = ran.sum(1), scores.shape[1]
    if prompts == 1:
        return _of_one(scores[:, 0])
    kept = np.where(ran, scores, 0.0)
    seen = kept.sum(1) / count
    positive = bool((scores[ran] > 0).all())
    mean, fitted = seen, np.zeros_like(kept)
    if covariate is not None:
        mean, fitted = _regressed(kept, ran, seen, covariate)
        if positive and (mean <= 0).any():  # a correction may not change the sign
            mean = np.where(mean <= 0, seen, mean)
    left = np.where(ran, scores - fitted, 0.0)
    if positive:
        left = np.log(np.maximum(np.where(ran, scores, 1.0), NEARLY_NONE * mean[:, None]))
    centred = _centred(left, ran)
    ahead = np.zeros_like(mean)
    if positive and covariate is not None and (covariate > 0).all():
        centred, ahead = _less_explained(centred, ran, np.log(covariate))
    own = (centred**2).sum(1) / (count - 1)
    # The mean of logarithms says nothing of their spread, as the mean of scores does; and a head whose scores cancel
    # in a few prompts is no small one.
    logs = np.where(ran, left, 0.0).sum(1) / count
    size = np.exp(logs) if positive else np.sqrt(mean**2 + own / count)
    variance, typical, prior = moderated(own, count - 1, size)
    population = Population(typical, prior, standard(centred, ran, own), positive)
    variance = population.capped(variance)
    share = count / prompts
    if positive:
        expected = logs + ahead + variance / 2
        spread = np.expm1(variance) * mean**2
    else:
        expected = seen + (mean - seen) / np.maximum(1 - share, 1 / prompts)
        spread = variance
    error = np.sqrt(spread / count * (1 - share))
    return Means(mean, error, count, prompts, seen, expected, variance, population)


def _of_one(scores: Float[ndarray, " head"]) -> Means:
    """Of one prompt in all, every mean is known."""
    none, every = np.zeros_like(scores), np.ones(len(scores), int)
    population = Population(none, MOST_PRIOR, none, positive=False)
    return Means(scores, none, every, 1, scores, scores, none, population)


def _less_explained(
    centred: Float[ndarray, "head prompt"],
    ran: Bool[ndarray, "head prompt"],
    covariate: Float[ndarray, "head prompt"],
) -> tuple[Float[ndarray, "head prompt"], Float[ndarray, " head"]]:
    """Residuals less what a covariate explains, and how much more it promises of the prompts not run."""
    beside = _centred(covariate, ran)
    slope = (centred * beside).sum() / max((beside**2).sum(), 1e-300)
    before = np.where(ran, covariate, 0.0).sum(1) / ran.sum(1)
    others = np.where(ran, 0.0, np.exp(slope * (covariate - before[:, None]))).sum(1)
    missing = (~ran).sum(1)
    ahead = np.log(np.where(missing > 0, others, 1.0) / np.maximum(missing, 1))
    return centred - slope * beside, ahead


def _centred(
    values: Float[ndarray, "head prompt"], ran: Bool[ndarray, "head prompt"]
) -> Float[ndarray, "head prompt"]:
    """What was run, less each head's mean of it; 0 elsewhere."""
    mean = np.where(ran, values, 0.0).sum(1) / ran.sum(1)
    return np.where(ran, values - mean[:, None], 0.0)


def _regressed(
    kept: Float[ndarray, "head prompt"],
    ran: Bool[ndarray, "head prompt"],
    first: Float[ndarray, " head"],
    covariate: Float[ndarray, "head prompt"],
) -> tuple[Float[ndarray, " head"], Float[ndarray, "head prompt"]]:
    """The regression estimate of each head, and what the covariate explains of each score.

    Where both are positive, of their relative sizes: a head that moves much, varies much.
    """
    count = ran.sum(1)
    relative = bool((kept[ran] > 0).all() and (covariate > 0).all())
    whole = covariate.mean(1)
    scale_x, scale_y = (whole, first) if relative else (np.ones_like(whole),) * 2
    x, y = covariate / scale_x[:, None], kept / scale_y[:, None]
    seen = np.where(ran, x, 0.0).sum(1) / count
    dx, dy = _centred(x, ran), _centred(y, ran)
    weight = (1 / np.maximum((dy**2).sum(1) / (count - 1), 1e-300)) if not relative else 1.0
    weight = np.broadcast_to(weight, count.shape)[:, None]
    slope = (weight * dx * dy).sum() / max((weight * dx * dx).sum(), 1e-300)
    coefficient = slope * scale_y / scale_x
    return first + slope * scale_y * (whole / scale_x - seen), coefficient[:, None] * covariate


class Moderated(NamedTuple):
    """Variances, and what they were moderated toward."""

    variance: Float[ndarray, " head"]
    typical: Float[ndarray, " head"]
    """What a head of its size has."""
    prior: float
    """Degrees of freedom that this counts for."""


def moderated(
    variance: Float[ndarray, " head"], freedom: Int[ndarray, " head"], size: Float[ndarray, " head"]
) -> Moderated:
    """Variances moderated toward the line that they make with the heads' size.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> equal = rng.chisquare(3, 500) / 3
    >>> new, _, prior = moderated(equal, np.full(500, 3), np.ones(500))
    >>> bool(prior > 50), bool(new.std() < 0.2 * equal.std())
    (True, True)
    """
    variance = np.maximum(variance, LEAST * variance.max() + 1e-300)
    half = freedom / 2
    logs = np.log(variance) - digamma(half) + np.log(half)
    x = np.log(np.maximum(size, 1e-6 * size.max() + 1e-300))
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    if np.ptp(x) < 1e-9:
        design = design[:, :1]
    noise = polygamma(1, half)
    weights = np.sqrt(1 / (noise + 0.1))
    line: Any = np.linalg.lstsq(design * weights[:, None], logs * weights, rcond=None)[0]
    fitted = design @ line
    left = (logs - fitted) ** 2 * len(logs) / max(1, len(logs) - design.shape[1])
    beyond = np.average(left - noise, weights=weights**2)
    prior = MOST_PRIOR
    if beyond > 0:
        prior = min(MOST_PRIOR, 2 * _inverse_trigamma(float(beyond)))
    target = np.exp(fitted + digamma(prior / 2) - np.log(prior / 2))
    return Moderated((freedom * variance + prior * target) / (freedom + prior), target, prior)


def _inverse_trigamma(value: float) -> float:
    """Where the trigamma function has a value, by Newton's method (Smyth 2004, appendix)."""
    at = 0.5 + 1 / value
    for _ in range(50):
        here = float(polygamma(1, at))
        step = here * (1 - here / value) / float(polygamma(2, at))
        at += step
        if abs(step) < 1e-9 * at:
            break
    return at
