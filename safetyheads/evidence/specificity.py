"""Is a head's score more than chance, and more than the same head scores on harmless prompts?

Everything here is computed from the readings that one sweep saved: no head is run again for a statistic. A large KL
alone finds heads that matter for everything. So a head is compared with itself on harmless prompts (`specificity`),
and with relabelled prompts, the other heads of its layer and a network of random weights (`null_band`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.evidence.resampling import (
    are_paired,
    check_sides,
    exact_heads,
    n_prompts,
    prompt_scores,
)
from safetyheads.heads import HeadScores
from safetyheads.stats import (
    TIE,
    benjamini_hochberg,
    bootstrap_interval,
    permutation_p,
    rearranged,
)
from safetyheads.storage.results import load_result, save_result

NULLS = ("labels", "layer", "random_init")
BAND_RESAMPLES = 4000
"""Relabellings from which the band of chance is read."""


@dataclass(frozen=True, eq=False)
class Specificity:
    """How much more each head matters on the harmful prompts than on the harmless ones.

    Positive values matter more on the harmful prompts, in the direction in which the metric ranks: harmful - harmless,
    and harmless - harmful for a refusal shift, whose strongest heads are the most negative. NaN marks a head whose
    score is an estimate: it is not tested.
    """

    values: Float[Tensor, "layer head"]
    """The difference, in the unit of the scores."""
    low: Float[Tensor, "layer head"]
    """Lower end of the bootstrap interval over prompts."""
    high: Float[Tensor, "layer head"]
    """Upper end of the bootstrap interval over prompts."""
    error: Float[Tensor, "layer head"]
    """Standard error."""
    p: Float[Tensor, "layer head"]
    """Two-sided permutation p-value of the difference being chance."""
    q: Float[Tensor, "layer head"]
    """Benjamini-Hochberg q-value over all heads."""
    chance: Float[Tensor, "layer head"]
    """Where the central `confidence` of the difference under rearranged labels ends, above."""
    paired: bool
    """Whether each harmful prompt was compared with its own harmless counterpart."""
    n_prompts: tuple[int, int]
    """How many prompts, harmful and harmless."""
    confidence: float
    """Of the interval and of `chance`."""

    @property
    def test(self) -> str:
        """What the p-value rearranges: `sign flips` of pairs, or `label permutation` of two sets."""
        return "sign flips" if self.paired else "label permutation"

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Specificity":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


@dataclass(frozen=True, eq=False)
class NullBand:
    """How specific a head looks where there is nothing to find, and which heads do not rise above that."""

    null: str
    """`labels`, `layer` or `random_init`."""
    high: Float[Tensor, "layer head"]
    """Upper end of the band, in the unit of the scores."""
    inside: Bool[Tensor, "layer head"]
    """Heads that do not rise above the band, and those that could not be tested."""

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "NullBand":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def specificity(
    harmful: HeadScores,
    harmless: HeadScores,
    *,
    paired: bool | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    n_permutations: int = 30_000,
    seed: int = 0,
) -> Specificity:
    """Compare every head's score on harmful prompts with its own score on harmless ones.

    `paired` says that prompt n of both sides belong together (by default what the prompt set said), which cancels most
    noise: the interval is then a bootstrap over pairs, and the p-value flips the signs of their differences. Otherwise
    both sets are resampled apart, and the p-value deals their labels anew (Welch's t, so that sets of unequal size and
    spread may be compared). Estimated scores (a screened run) get no
    statistic and do not count among the tests. A generalized Ships angle is tested through each prompt's jackknife
    influence on it (`prompt_scores`). With `n_permutations` random rearrangements no p-value falls below their inverse.

    Raises ValueError for sides that do not belong together, fewer than two prompts, or no score that is exact.
    """
    paired = are_paired(harmful, harmless) if paired is None else paired
    check_sides(harmful, harmless, paired)
    tested = exact_heads(harmful) & exact_heads(harmless)
    if not tested.any():
        raise ValueError(
            "every score is an estimate, and estimates enter no statistic; score with method='exact'"
        )
    sign = 1.0 if harmful.largest_first else -1.0
    first = sign * prompt_scores(harmful)[tested]
    second = sign * prompt_scores(harmless)[tested]
    sample = (first - second,) if paired else (first, second)
    values = sample[0].mean(-1) if paired else first.mean(-1) - second.mean(-1)
    low, high = bootstrap_interval(
        *sample, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    error = sum((part.var(-1) / part.shape[-1] for part in sample), torch.zeros_like(values)).sqrt()
    chance = _end_of_chance(sample, error, confidence, min(n_permutations, BAND_RESAMPLES), seed)
    p = permutation_p(*sample, n_resamples=n_permutations, seed=seed)
    p = _on_grid(p, tested)
    return Specificity(
        values=_on_grid(values, tested),
        low=_on_grid(low, tested),
        high=_on_grid(high, tested),
        error=_on_grid(error, tested),
        p=p,
        q=benjamini_hochberg(p),
        chance=_on_grid(chance, tested),
        paired=paired,
        n_prompts=(first.shape[-1], second.shape[-1]),
        confidence=confidence,
    )


def _end_of_chance(
    sample: tuple[Float[Tensor, "tested _"], ...],
    error: Float[Tensor, " tested"],
    confidence: float,
    n_resamples: int,
    seed: int,
) -> Float[Tensor, " tested"]:
    """Where the central `confidence` of the difference under rearranged labels ends, above.

    At a few pairs the observed order of signs is among those at the end itself: sums that differ by rounding alone
    are one there.
    """
    found = rearranged(*sample, n_resamples=n_resamples, seed=seed)
    null = torch.cat(list(found.draws)).sort(0).values
    end = null[math.ceil((1 + confidence) / 2 * (len(null) - 1))] + TIE * found.scale
    # Of two sets Welch's t is rearranged, which is in standard errors.
    return end if len(sample) == 1 else end * error


def least_p(n: int, m: int | None = None, *, n_resamples: int = 30_000) -> float:
    """The smallest two-sided p-value that `permutation_p` can give for n pairs, or for sets of n and m.

    >>> least_p(6), least_p(4, 4)
    (0.03125, 0.02857142857142857)
    """
    ways = 2**n if m is None else math.comb(n + m, n)
    if ways > n_resamples:
        return 1 / (n_resamples + 1)
    # With equal sides, exchanging them is as extreme.
    return (1 if m is not None and m != n else 2) / ways


def null_band(
    found: Specificity, *, null: str = "labels", random: Specificity | None = None
) -> NullBand:
    """How specific heads look where nothing is there to find; a head above the band stands out from it.

    - `labels`: the same scores with harmful and harmless rearranged at random, for each head its own band;
    - `layer`: the other heads of the same layer. Few heads a layer give a coarse band: of 14, one always leads;
    - `random_init`: `random`, the specificity of a copy of the model with random weights. Words alone make harmful and
      harmless prompts differ, so a network that has learnt nothing is not at zero. Its scores have another scale, so
      specificity is compared in standard errors, over all its heads.

    The band ends where a share of (1 + confidence) / 2 of the null lies below. Raises ValueError for an unknown null,
    or `random_init` without `random`.
    """
    tail = (1 + found.confidence) / 2
    if null == "labels":
        high = found.chance
    elif null == "layer":
        high = _above_the_others(found.values, tail)
    elif null == "random_init":
        if random is None:
            raise ValueError(
                "the random_init null needs the specificity of a random copy of the model as `random`; "
                "rank_safety_heads(..., null='random_init') scores one"
            )
        steps = random.values / random.error.clamp_min(torch.finfo(torch.float64).tiny)
        high = found.error * steps[~steps.isnan()].quantile(tail)
    else:
        raise ValueError(f"null is {null!r}; it must be one of {', '.join(NULLS)}")
    return NullBand(null, high, ~(found.values > high))


def comparable(harmful: HeadScores, harmless: HeadScores | None) -> bool:
    """Whether `specificity` can compare these: both sides hold readings of enough prompts, and exact scores."""
    if harmless is None or not (exact_heads(harmful) & exact_heads(harmless)).any():
        return False
    for side in (harmful, harmless):
        least = 2
        if side.per_prompt is None:
            if side.readings is None or "rank" not in side.provenance.get("metric", {}):
                return False
            least = 2 + int(side.provenance["metric"]["rank"])
        if n_prompts(side) < least:
            return False
    return True


def _above_the_others(
    values: Float[Tensor, "layer head"], share: float
) -> Float[Tensor, "layer head"]:
    """For each head the quantile of the other heads of its layer; NaN is left out."""
    highs = torch.full_like(values, torch.nan)
    for layer, row in enumerate(values):
        for head in range(len(row)):
            others = torch.cat([row[:head], row[head + 1 :]])
            if len(others):
                highs[layer, head] = others.nanquantile(share)
    return highs


def _on_grid(some: Float[Tensor, " tested"], tested: Tensor) -> Float[Tensor, "layer head"]:
    full = torch.full(tested.shape, torch.nan, dtype=torch.float64)
    full[tested] = some.double()
    return full
