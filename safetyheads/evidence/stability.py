"""Do other prompts rank the heads alike, and how many prompts does a ranking need?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.evidence.resampling import (
    are_paired,
    check_sides,
    exact_heads,
    gram_metric,
    n_prompts,
    score_subsets,
)
from safetyheads.heads import HeadScores
from safetyheads.stats import disjoint_halves, jaccard_at_k, spearman

if TYPE_CHECKING:
    import pandas

COLUMNS = [
    *("ranking", "prompts", "against", "k"),
    *("spearman", "spearman_low", "spearman_high", "overlap", "overlap_low", "overlap_high"),
]
"""The columns of a power curve."""


class Agreement(NamedTuple):
    """How well rankings from different prompts agree, a number a split."""

    spearman: Float[Tensor, " resample"]
    """Rank correlation over all items."""
    jaccard: Float[Tensor, " resample"]
    """Overlap of the top k."""


def rank_stability(
    scores: HeadScores,
    harmless: HeadScores | None = None,
    *,
    paired: bool | None = None,
    size: int | None = None,
    k: int = 10,
    n_resamples: int = 200,
    seed: int = 0,
) -> Agreement:
    """How well two rankings from disjoint random halves of the prompts agree: Spearman, and overlap of the top k.

    Without `harmless` heads rank by score, with it by specificity, on the same places of both sides. `size` prompts
    make a set; half of them by default.

    Raises ValueError for estimated scores and for too few prompts.
    """
    n = n_prompts(scores, harmless)
    halves = disjoint_halves(n, size, n_resamples, seed)
    return _agreement(scores, harmless, halves, paired, k)


def power_curve(
    scores: HeadScores,
    harmless: HeadScores | None = None,
    *,
    paired: bool | None = None,
    sizes: Sequence[int] | None = None,
    k: int = 10,
    n_resamples: int = 200,
    seed: int = 0,
) -> "pandas.DataFrame":
    """How the ranking settles with the number of prompts: a table with a row for each size and comparison.

    Columns: ranking (`score` or `specificity`), prompts (a set's size), against (`other prompts`: two disjoint sets, or
    `all prompts`: a set against all, which it is a part of), k, and the mean and the central 95 % over the draws of
    spearman and of overlap (Jaccard of the top k). The arguments are those of `rank_stability`; `sizes` are by default
    powers of two and the largest that fits.
    """
    import pandas

    n = n_prompts(scores, harmless)
    if sizes is None:
        least = 2 if scores.per_prompt is not None else gram_metric(scores).rank + 1
        sizes = sorted({*(2**p for p in range(12) if least <= 2**p <= n // 2), n // 2})
    rows = []
    for size in sizes:
        halves = disjoint_halves(n, size, n_resamples, seed)
        for against, pair in (
            ("other prompts", halves),
            ("all prompts", (halves[0], torch.arange(n)[None])),
        ):
            found = _agreement(scores, harmless, pair, paired, k)
            numbers = [
                number
                for sample in found
                for number in (
                    sample.mean().item(),
                    *sample.quantile(torch.tensor([0.025, 0.975]).to(sample)).tolist(),
                )
            ]
            ranking = "score" if harmless is None else "specificity"
            rows.append((ranking, size, against, k, *numbers))
    return pandas.DataFrame(rows, columns=COLUMNS)


def _agreement(
    scores: HeadScores,
    harmless: HeadScores | None,
    sets: tuple[Tensor, Tensor],
    paired: bool | None,
    k: int,
) -> Agreement:
    if harmless is not None:
        paired = are_paired(scores, harmless) if paired is None else paired
        check_sides(scores, harmless, paired)
    for side in (scores, harmless):
        if side is not None and not exact_heads(side).all():
            raise ValueError(
                f"{int((~exact_heads(side)).sum())} of {side.values.numel()} scores are estimates, whose ranks "
                "say nothing about prompts; score with method='exact'"
            )
    first, second = (score_subsets(scores, some) for some in sets)
    if harmless is not None:
        first, second = (
            part - score_subsets(harmless, some)
            for part, some in zip((first, second), sets, strict=True)
        )
    second = second.expand(first.shape)
    return Agreement(
        spearman(first, second), jaccard_at_k(first, second, k, largest=scores.largest_first)
    )
