"""Is it more than chance? Intervals, p-values, false discovery rates and rank agreement of any numbers.

Plain functions of tensors; none knows a model. The last axis is what is resampled (prompts), all axes before it are
carried along (heads), and every head sees the same resamples, so that what the heads share stays shared. scipy has the
distributions, rates, ranks and false discovery rates; the resampling is our own, and says why.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BATCH = 2**19
"""Numbers that a loop over resamples holds at once."""
TIE = 1e-12
"""Share of the values' size by which sums may differ and still be equal: they are added up in another order."""

Alternative = Literal["two-sided", "greater", "less"]


def matched_normals(
    samples: Float[Tensor, "sample d_model"], count: int, *, seed: int = 0
) -> Float[Tensor, "count d_model"]:
    """Draws of a normal distribution with the samples' own mean and covariance, in float64.

    They are mixtures of the samples' deviations, so that fewer samples than dimensions serve too: the draws then lie in
    the space that the samples span, with their covariance exactly.

    Raises ValueError for fewer than two samples, or numbers that are not finite.

    >>> draws = matched_normals(torch.tensor([[0.0, 5.0], [2.0, 5.0]]), 1000)
    >>> draws[:, 1].unique().tolist(), round(draws[:, 0].var().item(), 1)
    ([5.0], 1.9)
    """
    if len(samples) < 2 or not samples.isfinite().all():
        raise ValueError(
            f"{len(samples)} samples of shape {list(samples.shape[1:])} came; a covariance takes at least 2, finite"
        )
    wide = samples.double().cpu()
    mean = wide.mean(0)
    drawn = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, len(wide), generator=drawn, dtype=torch.float64)
    return mean + weights @ (wide - mean) / math.sqrt(len(wide) - 1)


# Means over prompts --------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: Float[Tensor, "*batch prompt"],
    against: Float[Tensor, "*batch other"] | None = None,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Low and high end of a bootstrap interval of the mean over prompts.

    With `against`, of the difference mean(values) - mean(against) of two independent sets of prompts. For a paired
    difference pass the differences as `values`. `percentile_interval` says which interval this is.

    Raises ValueError for fewer than two prompts, values that are not finite, or a confidence outside 0 and 1.

    >>> low, high = bootstrap_interval(torch.arange(20.0))
    >>> 6.5 < low < 7.0, 12.0 < high < 12.5
    (tensor(True), tensor(True))
    """
    _check_sample(values)
    generator = torch.Generator().manual_seed(seed)
    draws = _bootstrap_means(values.double(), n_resamples, generator)
    n = values.shape[-1]
    if against is not None:
        _check_sample(against)
        draws = draws - _bootstrap_means(against.double(), n_resamples, generator)
        n = _pooled_size(n, against.shape[-1])
    return percentile_interval(draws, n, confidence=confidence)


def percentile_interval(
    draws: Float[Tensor, "resample *batch"], n_prompts: int, *, confidence: float = 0.95
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The expanded percentile interval (Hesterberg 2015, arXiv:1411.5279) of a statistic's bootstrap draws.

    The percentile interval with its tails moved out as a t interval's are, since a plain one is too narrow at few
    prompts. It was chosen over BCa because it covers better on paired differences of skewed scores: of log-normal
    values at 16 pairs 0.93 of the time instead of 0.85, of normal values 0.95 instead of 0.92.
    """
    import numpy
    from scipy.stats import norm, t

    # scipy.stats.bootstrap has the percentile, the basic and the BCa interval, and not this one.
    _check_confidence(confidence)
    reach = t.ppf((1 + confidence) / 2, n_prompts - 1)
    tail = norm.cdf(-math.sqrt(n_prompts / (n_prompts - 1)) * reach)
    low, high = numpy.quantile(draws.numpy(), [tail, 1 - tail], axis=0)
    return torch.as_tensor(low), torch.as_tensor(high)


class Rearranged(NamedTuple):
    """A statistic of the values as they are, and as they would be if labels meant nothing."""

    observed: Float[Tensor, "*batch"]
    """The mean, or Welch's t of two sets."""
    scale: Float[Tensor, "*batch"]
    """The size of the numbers that are added up, in the statistic's unit."""
    draws: Iterator[Float[Tensor, "resample *batch"]]
    """The statistic of rearranged values, some at a time."""
    exact: bool
    """Whether `draws` are all rearrangements that there are."""


def permutation_p(
    values: Float[Tensor, "*batch prompt"],
    against: Float[Tensor, "*batch other"] | None = None,
    *,
    alternative: Alternative = "two-sided",
    n_resamples: int = 30_000,
    seed: int = 0,
) -> Float[Tensor, "*batch"]:
    """The p-value of a mean over prompts, by flipping signs (paired differences) or permuting labels (two sets).

    Alone, `values` are paired differences, and under the null a pair's two members could be swapped. With `against`,
    two independent sets with equal means under the null. What is rearranged there is Welch's t, not the difference of
    means, which makes the p-value hold for sets of unequal size and spread too (Janssen 1997). All rearrangements are
    used where there are no more than `n_resamples`; else that many random ones, and the p-value is
    (1 + as extreme) / (1 + drawn), never 0. `alternative` is "two-sided", "greater" (the mean of `values` is larger)
    or "less".

    >>> permutation_p(torch.tensor([1.0, 2.0, 3.0])).item()  # 2 of the 8 sign patterns are as extreme
    0.25
    """
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(
            f'alternative is {alternative!r}; it must be "two-sided", "greater" or "less"'
        )

    def size(statistic: Tensor) -> Tensor:
        if alternative == "two-sided":
            return statistic.abs()
        return -statistic if alternative == "less" else statistic

    found = rearranged(values, against, n_resamples=n_resamples, seed=seed)
    threshold = size(found.observed) - TIE * found.scale
    extreme, drawn = torch.zeros_like(found.observed), 0
    for draws in found.draws:
        extreme += (size(draws) >= threshold).sum(0)
        drawn += len(draws)
    return extreme / drawn if found.exact else (extreme + 1) / (drawn + 1)


def rearranged(
    values: Float[Tensor, "*batch prompt"],
    against: Float[Tensor, "*batch other"] | None = None,
    *,
    n_resamples: int = 30_000,
    seed: int = 0,
) -> Rearranged:
    """What `permutation_p` counts: means under flipped signs, or Welch's t under permuted labels.

    Flipping signs needs no t: the squares stay what they are, so that the larger mean always has the larger t.
    """
    # scipy.stats.permutation_test copies the values once a resample: for 1,024 heads and 24 pairs 3,000 of them took
    # twice as long as the matrix product of 30,000 takes.
    _check_sample(values)
    if against is not None:
        _check_sample(against)
        return _rearranged_sets(values.double(), against.double(), n_resamples, seed)
    flat = values.double().reshape(-1, values.shape[-1]).T
    weights, exact = _sign_flips(values.shape[-1], n_resamples, seed)
    shape = values.shape[:-1]
    draws = ((some @ flat).reshape(-1, *shape) for some in _split(weights, flat))
    return Rearranged(values.double().mean(-1), flat.abs().mean(0).reshape(shape), draws, exact)


def _rearranged_sets(
    values: Float[Tensor, "*batch prompt"],
    against: Float[Tensor, "*batch other"],
    n_resamples: int,
    seed: int,
) -> Rearranged:
    """Welch's t of two sets and of their rearrangements."""
    n, m, shape = values.shape[-1], against.shape[-1], values.shape[:-1]
    pooled = torch.cat([values, against], -1).reshape(-1, n + m).T
    # t does not change where all values are moved; about their mean, squares keep their digits.
    pooled = pooled - pooled.mean(0)
    first, exact = _labellings(n, m, n_resamples, seed)

    def statistic(chosen: Bool[Tensor, "resample prompt"]) -> Float[Tensor, "resample *batch"]:
        return _welch_t(chosen.double(), pooled, n, m).reshape(-1, *shape)

    observed = statistic((torch.arange(n + m) < n)[None])[0]
    # t is larger than what it is added up from where the spread is small, and its rounding with it.
    scale = 1e3 * observed.abs().nan_to_num(posinf=0.0).clamp_min(1.0)
    return Rearranged(observed, scale, (statistic(some) for some in _split(first, pooled)), exact)


def _welch_t(
    first: Float[Tensor, "resample prompt"], pooled: Float[Tensor, "prompt item"], n: int, m: int
) -> Float[Tensor, "resample item"]:
    """Welch's t of the n that are 1 in `first` against the m others, of values whose sum is 0.

    The others' sum is then the negative of the first ones', and the error is n's variance / n + m's / m.
    """
    a, b = 1 / (n * (n - 1)), 1 / (m * (m - 1))
    squares = pooled.square()
    total, size = squares.sum(0), pooled.abs().mean(0)
    sums = first @ pooled
    sums = torch.where(sums.abs() > TIE * n * size, sums, 0.0)
    error = b * total - (a / n + b / m) * sums.square()
    if n != m:
        error += (a - b) * (first @ squares)
    # What is left of a spread of zero is rounding.
    error = torch.where(error > TIE * total, error, 0.0)
    return torch.where(sums == 0, 0.0, (1 / n + 1 / m) * sums / error.sqrt())


def _split(weights: Tensor, flat: Float[Tensor, "prompt item"]) -> tuple[Tensor, ...]:
    return weights.split(max(1, BATCH // flat.shape[1]))


def _sign_flips(n: int, most: int, seed: int) -> tuple[Float[Tensor, "resample prompt"], bool]:
    exact = 2**n <= most
    if exact:
        bits = torch.arange(2**n)[:, None] >> torch.arange(n) & 1
    else:
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(0, 2, (most, n), generator=generator)
    return (1.0 - 2.0 * bits.double()) / n, exact


def _labellings(
    n: int, m: int, most: int, seed: int
) -> tuple[Bool[Tensor, "resample prompt"], bool]:
    """Which of n + m values are dealt to the first set: all ways, or random ones."""
    exact = math.comb(n + m, n) <= most
    if exact:
        chosen = torch.tensor(list(combinations(range(n + m), n)))
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(most, n + m, generator=generator).argsort(-1)[:, :n]
    return torch.zeros(len(chosen), n + m, dtype=torch.bool).scatter(1, chosen, True), exact


def _bootstrap_means(
    values: Float[Tensor, "*batch prompt"], n_resamples: int, generator: torch.Generator
) -> Float[Tensor, "resample *batch"]:
    n = values.shape[-1]
    drawn = torch.randint(0, n, (n_resamples, n), generator=generator)
    counts = torch.zeros(n_resamples, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    means = (counts / n) @ values.reshape(-1, n).T
    return means.reshape(n_resamples, *values.shape[:-1])


def _pooled_size(n: int, m: int) -> int:
    """The size of one set whose mean has as many degrees of freedom as the difference of two sets' means (Welch)."""
    return 1 + round((1 / n + 1 / m) ** 2 / (1 / (n**2 * (n - 1)) + 1 / (m**2 * (m - 1))))


def _check_sample(values: Tensor) -> None:
    if values.shape[-1] < 2:
        raise ValueError(
            f"{values.shape[-1]} prompt says nothing about spread; give at least 2, better 16 or more"
        )
    if not values.isfinite().all():
        raise ValueError(
            "some values are not finite; leave out the heads or prompts that have none"
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share between 0 and 1, such as 0.95")


# Many tests ----------------------------------------------------------------------------------------------------------


def benjamini_hochberg(p: Float[Tensor, "*test"]) -> Float[Tensor, "*test"]:
    """q-values over all tests together (Benjamini and Hochberg 1995): the false discovery rate at which each passes.

    NaN marks a test that was not made: it stays NaN and does not count. Raises ValueError for p outside 0 and 1.

    >>> [round(q, 6) for q in benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03])).tolist()]
    [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control

    made = ~p.isnan()
    tested = p[made]
    if (tested < 0).any() or (tested > 1).any():
        raise ValueError(
            f"p-values lie between 0 and 1, and {tested.min():.3g} to {tested.max():.3g} came"
        )
    q = p.clone()
    if len(tested):
        q[made] = torch.as_tensor(false_discovery_control(tested.numpy())).to(p)
    return q


# Ranks ---------------------------------------------------------------------------------------------------------------


def spearman(
    first: Float[Tensor, "*batch item"], second: Float[Tensor, "*batch item"]
) -> Float[Tensor, "*batch"]:
    """Spearman's rank correlation over the last axis, ties sharing their mean rank; NaN where all values are equal.

    >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])).item(), 9)
    0.5
    """
    from scipy.stats import rankdata

    # scipy.stats.spearmanr of many rows correlates each with each other, not each with its partner.
    a, b = (torch.as_tensor(rankdata(t.numpy(), axis=-1)).double() for t in (first, second))
    a, b = (t - t.mean(-1, keepdim=True) for t in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def jaccard_at_k(
    first: Float[Tensor, "*batch item"],
    second: Float[Tensor, "*batch item"],
    k: int,
    *,
    largest: bool = True,
) -> Float[Tensor, "*batch"]:
    """How much two top-k sets share: shared / (in either), 1 for the same set; equal values rank in their order.

    >>> round(jaccard_at_k(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 2.0]), 2).item(), 4)
    0.3333
    """
    n = first.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; there are {n} items: ask for between 1 and {n}")
    shared = (_top(first, k, largest) & _top(second, k, largest)).sum(-1).double()
    return shared / (2 * k - shared)


def _top(
    values: Float[Tensor, "*batch item"], k: int, largest: bool
) -> Bool[Tensor, "*batch item"]:
    order = values.argsort(dim=-1, descending=largest, stable=True)[..., :k]
    return torch.zeros(values.shape, dtype=torch.bool).scatter(-1, order, True)


def disjoint_halves(
    n_prompts: int, size: int | None = None, n_resamples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random pairs of disjoint sets of prompt numbers, each [resample, size]; half of the prompts by default.

    Raises ValueError if two such sets do not fit.
    """
    size = n_prompts // 2 if size is None else size
    if not 1 <= size <= n_prompts // 2:
        raise ValueError(
            f"two disjoint sets of {size} do not fit in {n_prompts} prompts; "
            f"ask for 1 to {n_prompts // 2}, or give more prompts"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n_resamples, n_prompts, generator=generator).argsort(-1)
    return order[:, :size], order[:, size : 2 * size]


def prompts_needed(agreement: float, n_prompts: int, target: float = 0.9) -> float:
    """How many prompts give rankings that agree to `target`, if sets of `n_prompts` agree to `agreement`.

    Spearman and Brown's formula, which takes a prompt's noise to be independent of the next one's; infinite for an
    agreement of zero or less. (docs/evidence.md argues with it; nothing in the library does.)

    >>> round(prompts_needed(0.8, 10, 0.9), 2)
    22.5
    """
    if not 0 < target < 1:
        raise ValueError(f"target is {target}; give an agreement between 0 and 1, such as 0.9")
    if agreement <= 0:
        return math.inf
    return n_prompts * target * (1 - min(agreement, 1.0)) / (agreement * (1 - target))


# Rates ---------------------------------------------------------------------------------------------------------------


def wilson_interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate: near its nominal coverage on average, also for few trials.

    >>> [round(end, 4) for end in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    from scipy.stats import binomtest

    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(
            f"{hits} of {trials} is not a rate; give 0 to `trials` hits and at least one trial"
        )
    _check_confidence(confidence)
    found = binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test: do two conditions hit the same prompts equally often?

    Only prompts on which they differ count, each a toss of a coin under the null; 1 where there are none.

    >>> mcnemar_p([True] * 6, [False] * 6), mcnemar_p([True, False], [False, True])
    (0.03125, 1.0)

    Raises ValueError for conditions of different lengths, or none.
    """
    from scipy.stats import binomtest

    if len(first) != len(second) or not first:
        raise ValueError(
            f"the conditions have {len(first)} and {len(second)} prompts; a paired test needs the same prompts, and "
            "at least one"
        )
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    apart = only_first + only_second
    return float(binomtest(only_first, apart).pvalue) if apart else 1.0


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement of two judges beyond chance (Cohen 1960): 1 full, 0 as by chance; NaN if both only ever say one word.

    >>> cohen_kappa(["refuse", "comply", "refuse", "comply"], ["refuse", "comply", "comply", "comply"])
    0.5
    """
    # scikit-learn, which has it, comes with an extra alone; three lines are no reason to ask for that.
    if len(first) != len(second) or not first:
        raise ValueError(
            f"the judges gave {len(first)} and {len(second)} labels; "
            "give one label an item from each, and at least one item"
        )
    n = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(list(first).count(label) * list(second).count(label) for label in {*first}) / n**2
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)
