"""Is a head's score more than chance, and more than the same head scores on harmless prompts?

Everything here is computed from the readings that one sweep saved: no head is run again for a statistic. A large KL
alone finds heads that matter for everything. So a head is compared with itself on harmless prompts (`specificity`),
with relabelled prompts, the other heads of its layer and a network of random weights (`null_band`), and its rank with
its rank on other prompts (`rank_stability`, `power_curve`).

A score that is a number a prompt (Ships, RefusalShift) is resampled as such. Generalized Ships is one angle a dataset:
its readings are Gram matrices over the prompts, so a smaller prompt set is a sub-matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.heads import HeadScores
from safetyheads.metrics import GeneralizedShips
from safetyheads.stats import (
    Agreement,
    benjamini_hochberg,
    bootstrap_interval,
    disjoint_halves,
    jaccard_at_k,
    permutation_p,
    permuted_means,
    spearman,
)
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

NULLS = ("labels", "layer", "random_init")
BAND_RESAMPLES = 4000
"""Relabellings from which the band of chance is read."""
POWER_COLUMNS = [
    *("ranking", "prompts", "against", "k"),
    *("spearman", "spearman_low", "spearman_high", "overlap", "overlap_low", "overlap_high"),
]


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
    both sets are resampled apart, and the p-value deals their labels anew. Estimated scores (a screened run) get no
    statistic and do not count among the tests. A generalized Ships angle is tested through each prompt's jackknife
    influence on it (`prompt_scores`). With `n_permutations` random rearrangements no p-value falls below their inverse.

    Raises ValueError for sides that do not belong together, fewer than two prompts, or no score that is exact.
    """
    paired = are_paired(harmful, harmless) if paired is None else paired
    _check_sides(harmful, harmless, paired)
    tested = exact_heads(harmful) & exact_heads(harmless)
    if not tested.any():
        raise ValueError(
            "every score is an estimate, and estimates enter no statistic; score with method='exact'"
        )
    sign = 1.0 if harmful.largest_first else -1.0
    first = sign * prompt_scores(harmful)[tested]
    second = sign * prompt_scores(harmless)[tested]
    n_prompts = first.shape[-1], second.shape[-1]
    sample = (first - second,) if paired else (first, second)
    values = first.mean(-1) - second.mean(-1)
    low, high = bootstrap_interval(
        *sample, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    error = sum((part.var(-1) / part.shape[-1] for part in sample), torch.zeros_like(values)).sqrt()
    chunks, _ = permuted_means(*sample, n_resamples=min(n_permutations, BAND_RESAMPLES), seed=seed)
    null = torch.cat(list(chunks)).sort(0).values
    chance = null[math.ceil((1 + confidence) / 2 * (len(null) - 1))]
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
        n_prompts=n_prompts,
        confidence=confidence,
    )


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
        if _n_prompts(side) < least:
            return False
    return True


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
    n = _n_prompts(scores, harmless)
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

    n = _n_prompts(scores, harmless)
    if sizes is None:
        least = 2 if scores.per_prompt is not None else _gram_metric(scores).rank + 1
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
    return pandas.DataFrame(rows, columns=POWER_COLUMNS)


# Scores of prompts and of prompt sets ---------------------------------------------------------------------------------


def prompt_scores(scores: HeadScores) -> Float[Tensor, "layer head prompt"]:
    """One number a prompt whose mean is the head's score.

    For Gram readings it is the score plus the prompt's jackknife influence, (n - 1) (mean of the scores with one prompt
    left out - the score without this prompt), which makes the bootstrap a linear one: n scores instead of thousands.
    """
    if scores.per_prompt is not None:
        return scores.per_prompt.double()
    n = _n_prompts(scores)
    others = torch.tensor([[m for m in range(n) if m != left_out] for left_out in range(n)])
    without = score_subsets(scores, others).T.reshape(*scores.values.shape, n)
    influence = (n - 1) * (without.mean(-1, keepdim=True) - without)
    return scores.values.double()[..., None] + influence


def score_subsets(
    scores: HeadScores, prompts: Int[Tensor, "resample size"]
) -> Float[Tensor, "resample item"]:
    """The scores of all heads (flattened) on subsets of the prompts, from the saved readings."""
    if scores.per_prompt is not None:
        flat = scores.per_prompt.double().flatten(0, 1)
        weights = torch.zeros(len(prompts), flat.shape[1], dtype=torch.float64)
        weights.scatter_add_(1, prompts, torch.full(prompts.shape, 1 / prompts.shape[1]).double())
        return weights @ flat.T
    metric = _gram_metric(scores)
    counts = torch.nn.functional.one_hot(prompts, _n_prompts(scores)).sum(1).double()
    parts = []
    for grams in _present(scores.readings).flatten(0, 1).split(64):
        found = _leading_angles(grams, counts.sqrt(), metric) if metric.rank == 1 else None
        if found is None:
            rows = [metric.score(grams[:, :, some][..., some])[0].double() for some in prompts]
            found = torch.stack(rows)
        parts.append(found)
    return torch.cat(parts, 1)


def _leading_angles(
    grams: Float[Tensor, "item 3 prompt prompt"],
    weights: Float[Tensor, "resample prompt"],
    metric: GeneralizedShips,
) -> Float[Tensor, "resample item"] | None:
    """Rank-one angles of all resamples at once, by power iteration from the whole set's vector; None if it stalls.

    Repeating a prompt c times leaves a matrix's singular values and right vectors as weighting its row by sqrt(c) does.
    """
    base, cross, ablated = grams.double().unbind(1)
    w = weights.T
    vectors = []
    for gram in (base, ablated):
        x = torch.linalg.eigh(gram)[1][..., -1:] * w
        x = x / x.norm(dim=1, keepdim=True)
        for _ in range(300):
            before, x = x, w * (gram @ (w * x))
            x = x / x.norm(dim=1, keepdim=True)
            if (x - before).abs().max() < 1e-12:
                break
        else:
            return None
        vectors.append(x)
    u, v = vectors
    if metric.space == "right":
        s, t = ((x * (w * (g @ (w * x)))).sum(1).sqrt() for x, g in ((u, base), (v, ablated)))
        cosine = (u * (w * (cross @ (w * v)))).sum(1).abs() / (s * t)
        chord = (2 - 2 * cosine.clamp(max=1.0)).sqrt()
    else:
        chord = (u - (u * v).sum(1, keepdim=True).sign() * v).norm(dim=1)
    return torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1.0))).T


def are_paired(harmful: HeadScores, harmless: HeadScores) -> bool:
    """Whether prompt n of both sides belong together, by what their prompt set said."""
    sets = [side.provenance.get("prompts", {}) for side in (harmful, harmless)]
    return all(s.get("paired", False) for s in sets) and sets[0].get("name") == sets[1].get("name")


def exact_heads(scores: HeadScores) -> Bool[Tensor, "layer head"]:
    """Which scores were run exactly; all, unless the run was screened."""
    exact: Tensor | None = getattr(scores, "exact", None)
    return torch.ones(scores.values.shape, dtype=torch.bool) if exact is None else exact


def _agreement(
    scores: HeadScores,
    harmless: HeadScores | None,
    sets: tuple[Tensor, Tensor],
    paired: bool | None,
    k: int,
) -> Agreement:
    if harmless is not None:
        paired = are_paired(scores, harmless) if paired is None else paired
        _check_sides(scores, harmless, paired)
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


def _n_prompts(*sides: HeadScores | None) -> int:
    """Prompts of the side that has fewest."""
    counts = []
    for scores in sides:
        if scores is None:
            continue
        if scores.per_prompt is None and scores.readings is None:
            raise ValueError(
                f"these scores of {scores.metric} hold nothing a prompt, so nothing can be resampled; "
                "use a metric whose per_prompt or readings are kept"
            )
        held = scores.per_prompt if scores.per_prompt is not None else scores.readings
        counts.append(_present(held).shape[-1])
    return min(counts)


def _gram_metric(scores: HeadScores) -> GeneralizedShips:
    made_by = scores.provenance.get("metric", {})
    if "space" not in made_by or "rank" not in made_by:
        raise ValueError(
            f"the readings of {scores.metric} cannot be scored again: their provenance names no generalized Ships"
        )
    return GeneralizedShips(space=made_by["space"], rank=made_by["rank"])


def _check_sides(harmful: HeadScores, harmless: HeadScores, paired: bool) -> None:
    for name in ("ablation", "metric"):
        one, other = getattr(harmful, name), getattr(harmless, name)
        if one != other:
            raise ValueError(f"the {name} is {one} on one side and {other} on the other; give one")
    if harmful.values.shape != harmless.values.shape:
        raise ValueError(
            f"one side has {tuple(harmful.values.shape)} layers and heads, the other "
            f"{tuple(harmless.values.shape)}; give scores of one model"
        )
    n, m = _n_prompts(harmful), _n_prompts(harmless)
    if paired and n != m:
        raise ValueError(
            f"{n} harmful and {m} harmless prompts are no pairs; give as many of each, or paired=False"
        )


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


def _present(some: Tensor | None) -> Tensor:
    if some is None:
        raise ValueError("these scores hold nothing a prompt, so nothing can be resampled")
    return some
