"""Is it more than chance? Intervals, p-values, false discovery rates and rank stability of any numbers.

Plain functions of tensors; none knows a model. The last axis is what is resampled (prompts), all axes before it are
carried along (heads), and every head sees the same resamples, so that what the heads share stays shared.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 2**22
"""Numbers that a loop over resamples holds at once."""


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
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share between 0 and 1, such as 0.95")
    reach = math.sqrt(n_prompts / (n_prompts - 1)) * _t_quantile(
        (1 + confidence) / 2, n_prompts - 1
    )
    tail = torch.special.ndtr(torch.tensor(-reach, dtype=torch.float64)).item()
    ordered, last = draws.sort(0).values, len(draws) - 1

    def at(share: float) -> Tensor:
        low = math.floor(share * last)
        return torch.lerp(ordered[low], ordered[min(low + 1, last)], share * last - low)

    return at(tail), at(1 - tail)


def permutation_p(
    values: Float[Tensor, "*batch prompt"],
    against: Float[Tensor, "*batch other"] | None = None,
    *,
    alternative: str = "two-sided",
    n_resamples: int = 30_000,
    seed: int = 0,
) -> Float[Tensor, "*batch"]:
    """The p-value of a mean over prompts, by flipping signs (paired differences) or permuting labels (two sets).

    Alone, `values` are paired differences, and under the null a pair's two members could be swapped. With `against`,
    two independent sets whose labels could be dealt anew. All rearrangements are used where there are no more than
    `n_resamples`; else that many random ones, and the p-value is (1 + as extreme) / (1 + drawn), never 0.
    `alternative` is "two-sided", "greater" (the mean of `values` is larger) or "less".

    >>> permutation_p(torch.tensor([1.0, 2.0, 3.0])).item()  # 2 of the 8 sign patterns are as extreme
    0.25
    """
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(
            f'alternative is {alternative!r}; it must be "two-sided", "greater" or "less"'
        )
    observed = values.double().mean(-1)
    if against is not None:
        observed = observed - against.double().mean(-1)
    sign = -1.0 if alternative == "less" else 1.0
    size = observed.abs() if alternative == "two-sided" else sign * observed
    # Sums in another order differ by rounding: what ties with the observed value counts as extreme.
    scale = values.double().abs().amax(-1)
    if against is not None:
        scale = torch.maximum(scale, against.double().abs().amax(-1))
    threshold = size - 1e-12 * scale
    extreme, drawn = torch.zeros_like(observed), 0
    chunks, exact = permuted_means(values, against, n_resamples=n_resamples, seed=seed)
    for means in chunks:
        means = means.abs() if alternative == "two-sided" else sign * means
        extreme += (means >= threshold).sum(0)
        drawn += len(means)
    return extreme / drawn if exact else (extreme + 1) / (drawn + 1)


def permuted_means(
    values: Float[Tensor, "*batch prompt"],
    against: Float[Tensor, "*batch other"] | None = None,
    *,
    n_resamples: int = 30_000,
    seed: int = 0,
) -> tuple[Iterator[Float[Tensor, "resample *batch"]], bool]:
    """The means that `permutation_p` counts, in chunks, and whether they are all rearrangements there are."""
    _check_sample(values)
    pooled = values.double()
    if against is None:
        weights, exact = _sign_flips(pooled.shape[-1], n_resamples, seed)
    else:
        _check_sample(against)
        pooled = torch.cat([pooled, against.double()], -1)
        weights, exact = _relabellings(values.shape[-1], against.shape[-1], n_resamples, seed)
    flat = pooled.reshape(-1, pooled.shape[-1]).T
    parts = weights.split(max(1, CHUNK // flat.shape[1]))
    return ((some @ flat).reshape(-1, *pooled.shape[:-1]) for some in parts), exact


def _sign_flips(n: int, most: int, seed: int) -> tuple[Float[Tensor, "resample prompt"], bool]:
    exact = 2**n <= most
    if exact:
        bits = torch.arange(2**n)[:, None] >> torch.arange(n) & 1
    else:
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(0, 2, (most, n), generator=generator)
    return (1.0 - 2.0 * bits.double()) / n, exact


def _relabellings(
    n: int, m: int, most: int, seed: int
) -> tuple[Float[Tensor, "resample prompt"], bool]:
    exact = math.comb(n + m, n) <= most
    if exact:
        chosen = torch.tensor(list(combinations(range(n + m), n)))
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(most, n + m, generator=generator).argsort(-1)[:, :n]
    weights = torch.full((len(chosen), n + m), -1.0 / m, dtype=torch.float64)
    return weights.scatter(1, chosen, 1.0 / n), exact


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


# Many tests ----------------------------------------------------------------------------------------------------------


def benjamini_hochberg(p: Float[Tensor, "*test"]) -> Float[Tensor, "*test"]:
    """q-values over all tests together (Benjamini and Hochberg 1995): the false discovery rate at which each passes.

    NaN marks a test that was not made: it stays NaN and does not count. Raises ValueError for p outside 0 and 1.

    >>> benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03])).tolist()
    [0.029..., 0.039..., 0.039...]
    """
    made: Bool[Tensor, " test"] = ~p.flatten().isnan()
    tested = p.flatten()[made]
    if (tested < 0).any() or (tested > 1).any():
        raise ValueError(
            f"p-values lie between 0 and 1, and {tested.min():.3g} to {tested.max():.3g} came"
        )
    order = tested.argsort(descending=True, stable=True)
    n = len(tested)
    stepped = tested[order] * n / torch.arange(n, 0, -1, dtype=p.dtype)
    q = p.flatten().clone()
    found = torch.empty_like(tested)
    found[order] = stepped.cummin(0).values.clamp(max=1.0) if n else stepped
    q[made] = found
    return q.reshape(p.shape)


# Ranks ---------------------------------------------------------------------------------------------------------------


def spearman(
    first: Float[Tensor, "*batch item"], second: Float[Tensor, "*batch item"]
) -> Float[Tensor, "*batch"]:
    """Spearman's rank correlation over the last axis, ties sharing their mean rank; NaN where all values are equal.

    >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])).item(), 9)
    0.5
    """
    a, b = (_mean_ranks(t.double()) for t in (first, second))
    a, b = (t - t.mean(-1, keepdim=True) for t in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def _mean_ranks(values: Float[Tensor, "*batch item"]) -> Float[Tensor, "*batch item"]:
    ordered = values.contiguous().sort(-1).values
    left = torch.searchsorted(ordered, values.contiguous())
    right = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (left + right + 1).double() / 2


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


class Agreement(NamedTuple):
    """How well rankings from different prompts agree, a number a split."""

    spearman: Float[Tensor, " resample"]
    """Rank correlation over all items."""
    jaccard: Float[Tensor, " resample"]
    """Overlap of the top k."""


def split_half_stability(
    scores: Float[Tensor, "item prompt"],
    *,
    size: int | None = None,
    k: int = 10,
    largest: bool = True,
    n_resamples: int = 200,
    seed: int = 0,
) -> Agreement:
    """How well the rankings by the mean score over two disjoint random sets of `size` prompts agree.

    `size` is by default half of the prompts. Raises ValueError if two such sets do not fit.

    >>> scores = torch.arange(50.0)[:, None] * torch.ones(50, 20)
    >>> round(split_half_stability(scores).spearman.mean().item(), 9)
    1.0
    """
    halves = disjoint_halves(scores.shape[-1], size, n_resamples, seed)
    first, second = (scores.double()[:, half].mean(-1).T for half in halves)
    return Agreement(spearman(first, second), jaccard_at_k(first, second, k, largest=largest))


def disjoint_halves(
    n_prompts: int, size: int | None = None, n_resamples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random pairs of disjoint sets of prompt numbers, each [resample, size]."""
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
    agreement of zero or less.

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
    _check_rate(hits, trials, confidence)
    z = _normal_quantile((1 + confidence) / 2)
    rate = hits / trials
    centre = rate + z**2 / (2 * trials)
    reach = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    low, high = (centre - reach) / (1 + z**2 / trials), (centre + reach) / (1 + z**2 / trials)
    return 0.0 if hits == 0 else low, 1.0 if hits == trials else high


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a rate: never below its nominal coverage, hence wide.

    >>> [round(end, 4) for end in clopper_pearson(0, 10)]
    [0.0, 0.3085]
    """
    _check_rate(hits, trials, confidence)
    tail = (1 - confidence) / 2

    def solve(low_hits: int, goal: float) -> float:
        """The rate at which `low_hits` or fewer come up with probability `goal`, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if _binomial_cdf(low_hits, trials, middle) > goal:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    return (
        0.0 if hits == 0 else solve(hits - 1, 1 - tail),
        1.0 if hits == trials else solve(hits, tail),
    )


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement of two judges beyond chance (Cohen 1960): 1 full, 0 as by chance; NaN if both only ever say one word.

    >>> cohen_kappa(["refuse", "comply", "refuse", "comply"], ["refuse", "comply", "comply", "comply"])
    0.5
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"the judges gave {len(first)} and {len(second)} labels; "
            "give one label an item from each, and at least one item"
        )
    n = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(list(first).count(label) * list(second).count(label) for label in {*first}) / n**2
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)


def _binomial_cdf(hits: int, trials: int, rate: float) -> float:
    terms = (
        math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
        if trials < 500
        else math.exp(_log_binomial(k, trials, rate))
        for k in range(hits + 1)
    )
    return math.fsum(terms)


def _log_binomial(hits: int, trials: int, rate: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return ways + hits * math.log(rate) + (trials - hits) * math.log1p(-rate)


def _t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t: with t = sqrt(freedom) tan(angle), the angle's density is cos(angle)^(freedom - 1)."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 100_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(angle.cos().clamp_min(0.0) ** (freedom - 1), angle)
    place = int(torch.searchsorted(mass / mass[-1], share))
    left = mass[place - 1] / mass[-1]
    part = (share - left) / (mass[place] / mass[-1] - left)
    found = angle[place] + part * (angle[place + 1] - angle[place])
    return math.sqrt(freedom) * math.tan(found.item())


def _normal_quantile(share: float) -> float:
    return torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).item()


def _check_rate(hits: int, trials: int, confidence: float) -> None:
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(
            f"{hits} of {trials} is not a rate; give 0 to `trials` hits and at least one trial"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share between 0 and 1, such as 0.95")
