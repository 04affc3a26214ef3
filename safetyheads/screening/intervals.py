"""What do a few prompts say of a head's mean score over all of them?

Prompts are a random sample of those that are there, without replacement: a head's mean over n of N is unbiased, and its
variance falls to nothing as n reaches N (the finite-population factor 1 - n/N). Few prompts give a poor variance of a
single head; hundreds of heads together give a good one. As limma does for genes (Smyth 2004,
doi:10.2202/1544-6115.1027, with the trend of Sartor et al. 2006, doi:10.1186/1471-2105-7-538), each head's variance is
moderated toward what heads of its size have: the log variances are a line in log |mean| with a scatter, part of it
their chi-square noise, and the rest becomes the prior's degrees of freedom.

Scores that are all positive (a divergence) are skewed: their logarithms are taken for normal, the variance is theirs,
and the interval is one of the mean's logarithm.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.special import digamma, polygamma
from scipy.stats import t as student

MOST_PRIOR = 200.0
"""Prompts that the other heads may count for, at most."""
NEARLY_NONE, MOST_VARIANCE = 1e-2, 3.0
"""Of positive scores: what is this small beside the mean counts as this large, and logarithms vary by this at most."""
LEAST = 1e-12
"""Beside the largest, what counts as nothing."""


@dataclass(frozen=True, eq=False)
class Means:
    """Every head's mean over all prompts, by the prompts that it was run on."""

    mean: Float[ndarray, " head"]
    error: Float[ndarray, " head"]
    """Its standard error; 0 where all prompts were run."""
    freedom: Float[ndarray, " head"]
    """Degrees of freedom of the error."""
    positive: bool
    """Whether scores are positive, and the interval is one of the logarithm."""

    def interval(
        self, level: float = 0.95
    ) -> tuple[Float[ndarray, " head"], Float[ndarray, " head"]]:
        """Lower and upper end, each head's own."""
        quantile = student.ppf(0.5 + level / 2, self.freedom)
        if not self.positive:
            return self.mean - quantile * self.error, self.mean + quantile * self.error
        centre, spread = self._logarithm
        return np.exp(centre - quantile * spread), np.exp(centre + quantile * spread)

    def above(self, border: float) -> Float[ndarray, " head"]:
        """Each head's chance that its mean over all prompts is above a border."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.positive:
                centre, spread = self._logarithm
                steps = (np.log(max(border, 1e-300)) - centre) / spread
            else:
                steps = (border - self.mean) / self.error
        known = np.where(self.mean > border, 1.0, 0.0)
        return np.where(self.error > 0, student.sf(steps, self.freedom), known)

    @property
    def _logarithm(self) -> tuple[Float[ndarray, " head"], Float[ndarray, " head"]]:
        """Centre and spread of the mean's logarithm."""
        variance = np.log1p((self.error / self.mean) ** 2)
        return np.log(self.mean) + variance / 2, np.sqrt(variance)


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
    count = ran.sum(1)
    kept = np.where(ran, scores, 0.0)
    first = kept.sum(1) / count
    positive = bool((scores[ran] > 0).all())
    mean, fitted = first, np.zeros_like(kept)
    if covariate is not None:
        mean, fitted = _regressed(kept, ran, first, covariate)
        if positive and (mean <= 0).any():  # a correction may not change the sign
            mean = np.where(mean <= 0, first, mean)
    left = np.where(ran, scores - fitted, 0.0)
    if positive:
        left = np.log(np.maximum(np.where(ran, scores, 1.0), NEARLY_NONE * mean[:, None]))
    centred = _centred(left, ran)
    if positive and covariate is not None and (covariate > 0).all():
        beside = _centred(np.log(covariate), ran)
        centred = centred - (centred * beside).sum() / max((beside**2).sum(), 1e-300) * beside
    variance, prior = moderated((centred**2).sum(1) / (count - 1), count - 1, np.abs(mean))
    if positive:
        variance = np.expm1(np.minimum(variance, MOST_VARIANCE)) * mean**2
    share = 1 - count / scores.shape[1]
    error = np.sqrt(variance / count * share)
    return Means(mean, error, count - 1 + prior, positive)


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


def moderated(
    variance: Float[ndarray, " head"], freedom: Int[ndarray, " head"], size: Float[ndarray, " head"]
) -> tuple[Float[ndarray, " head"], float]:
    """Variances moderated toward the line that they make with the heads' size, and the degrees of freedom of that line.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> equal = rng.chisquare(3, 500) / 3
    >>> new, prior = moderated(equal, np.full(500, 3), np.ones(500))
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
    return (freedom * variance + prior * target) / (freedom + prior), prior


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
