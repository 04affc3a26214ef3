"""Does a ranking rise above what it gives where there is nothing to find?

Methods of interpretability find structure in networks that have learnt nothing (Méloux et al., "The Dead Salmons of AI
Interpretability", arXiv:2512.18792). A ranking is therefore made again where its finding cannot be: on a copy of the
model with random weights, with the labels harmful and harmless dealt anew within each pair, and on halves of the
prompts. What the most fortunate head reaches there is the noise ceiling. A head below it is called not established; so
is one that does as much on harmless prompts, and every head of a model that does not refuse.
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
    score_subsets,
)
from safetyheads.evidence.stability import rank_stability
from safetyheads.heads import Head, HeadScores
from safetyheads.stats import TIE, disjoint_halves, rearranged, wilson_interval
from safetyheads.storage.results import load_result, save_result

REFUSES = 0.05
"""A model refuses where the lower end of Wilson's interval of its refusals is above this."""
SPECIFIC = 0.5
"""The share of a head's effect on harmful prompts that must be missing on harmless ones."""
LEAST = 5
"""Pairs below which no order of labels is rarer than one in twenty."""


@dataclass(frozen=True, eq=False, repr=False)
class Gate:
    """How far a ranking rises above chance, head by head and as a whole."""

    specificity: Float[Tensor, "layer head"]
    """How much more the head matters on harmful prompts than on harmless ones, in the metric's unit."""
    share: Float[Tensor, "layer head"]
    """The same as a share of its score on harmful prompts."""
    p: Float[Tensor, "layer head"]
    """How often the most fortunate of all heads reaches as much with labels dealt anew: right for all heads together
    (Westfall and Young 1993)."""
    error: Float[Tensor, "layer head"]
    """Standard error of the specificity."""
    labels_ceiling: float
    """What the most fortunate head stays below with labels dealt anew, but for `level` of the time [the unit]."""
    random_ceiling: float
    """What the most fortunate head of the copy with random weights reaches [standard errors]: the scores of such a copy
    have another scale."""
    repeats: Float[Tensor, "layer head"]
    """How often the head is among as many first heads, ranked on one half of the prompts."""
    halves: tuple[float, float, float]
    """Rank correlation of the scores on two halves of the prompts: mean and central 95 % over splits."""
    random_halves: tuple[float, float, float]
    """The same of the copy with random weights: that a ranking repeats does not make it a finding."""
    refusals: tuple[int, int] | None
    """On how many harmful prompts the untouched model begins with a refusal, and of how many; None where the tokenizer
    has no single token for one."""
    top: tuple[Head, ...]
    """The first heads of the ranking, by their scores."""
    unit: str
    level: float
    """The chance of calling any head established where none is."""

    @property
    def refuses(self) -> bool:
        """Whether the untouched model refuses at all, as far as its first token tells."""
        return self.refusals is None or wilson_interval(*self.refusals)[0] > REFUSES

    @property
    def reach(self) -> float:
        """The highest rank correlation that a perfect measure could have with this ranking: the root of the halves'
        reliability, stepped up to all prompts (Spearman and Brown)."""
        r = max(self.halves[0], 0.0)
        return math.sqrt(2 * r / (1 + r))

    @property
    def noise_ceiling(self) -> Float[Tensor, "layer head"]:
        """What each head's specificity must rise above, in the metric's unit."""
        return (self.error * self.random_ceiling).clamp_min(self.labels_ceiling)

    @property
    def above(self) -> Bool[Tensor, "layer head"]:
        """Which heads rise above the noise ceiling."""
        return (self.p <= self.level) & (self.specificity > self.error * self.random_ceiling)

    @property
    def established(self) -> Bool[Tensor, "layer head"]:
        """Which heads pass: above the ceiling, more for harm than for anything, on most halves of the prompts too, of a
        model that refuses."""
        return self.above & (self.share > SPECIFIC) & (self.repeats > 0.5) & self.refuses

    @property
    def named(self) -> tuple[Head, ...]:
        """The ranking's first heads that are established."""
        return tuple(head for head in self.top if self.established[head])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no head of the top is established; empty where one is."""
        if self.named:
            return ()
        why = []
        if not self.refuses and self.refusals is not None:
            why.append(
                f"the model begins {self.refusals[0]} of {self.refusals[1]} answers with a refusal"
            )
        above = [head for head in self.top if self.above[head]]
        best = max(above or self.top, key=lambda head: float(self.specificity[head]))
        value, ceiling = float(self.specificity[best]), float(self.noise_ceiling[best])
        if not above:
            why.append(
                f"{best} is the most specific by {value:.2g} {self.unit}, and the noise ceiling is {ceiling:.2g}"
            )
        elif not self.share[best] > SPECIFIC:
            why.append(
                f"of what {best} does, {float(self.share[best]):.0%} is missing on harmless prompts"
            )
        elif not self.repeats[best] > 0.5:
            why.append(f"{best} is in the top on {float(self.repeats[best]):.0%} of halves only")
        return tuple(why)

    def __str__(self) -> str:
        if reasons := self.reasons:
            return f"not established: {'; '.join(reasons)}"
        names = ", ".join(map(str, self.named))
        ceiling = float(self.noise_ceiling[self.named[0]])
        return (
            f"{len(self.named)} of the top {len(self.top)} established ({names}), above a noise ceiling of "
            f"{ceiling:.2g} {self.unit}; no measure can agree with this ranking by more than {self.reach:.2f}"
        )

    def __repr__(self) -> str:
        return f"Gate({self})"

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Gate":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def gate_ranking(
    scores: tuple[HeadScores, HeadScores],
    random: tuple[HeadScores, HeadScores],
    *,
    refusals: tuple[int, int] | None = None,
    top_k: int = 10,
    level: float = 0.05,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Gate:
    """Set a ranking beside the same ranking where there is nothing to find.

    `scores` are those on the harmful and the harmless prompts of matched pairs, `random` the same of a copy with random
    weights (`random_copy`). `refusals` is on how many harmful prompts the untouched model begins with a refusal, of how
    many (`first_token_refusals`). `rank_safety_heads(..., null='gate')` does all of this.

    The labels' ceiling is one of the largest mean difference over all heads, not of the largest t: a head that does
    next to nothing does it very regularly.

    Raises ValueError for prompts that are no pairs, fewer than five of them, and estimated scores.
    """
    differences = _differences(scores)
    specificity = differences.mean(-1)
    chance = rearranged(differences, n_resamples=n_resamples, seed=seed)
    maxima = torch.cat([draws.flatten(1).amax(-1) for draws in chance.draws]).sort().values
    p = 1 - torch.searchsorted(maxima, specificity - TIE * chance.scale) / len(maxima)
    if not chance.exact:
        p = (p * len(maxima) + 1) / (len(maxima) + 1)
    theirs = _differences(random)
    in_errors = (theirs.mean(-1) / _error(theirs)).nan_to_num(0.0)
    end = math.ceil((1 - level) * len(maxima)) - 1
    order = scores[0].ranks.flatten().argsort()[:top_k].tolist()
    return Gate(
        specificity=specificity,
        share=specificity / scores[0].values.double().abs(),
        p=p,
        error=_error(differences),
        labels_ceiling=float(maxima[end]),
        random_ceiling=float(in_errors.max()),
        repeats=_repeats(scores[0], top_k, seed),
        halves=_halves(scores[0], seed),
        random_halves=_halves(random[0], seed),
        refusals=refusals,
        top=tuple(Head(*divmod(n, specificity.shape[1])) for n in order),
        unit=scores[0].unit,
        level=level,
    )


def _differences(scores: tuple[HeadScores, HeadScores]) -> Float[Tensor, "layer head pair"]:
    """How much more each head matters on the harmful prompt of each pair, in the ranking's direction."""
    harmful, harmless = scores
    if not are_paired(harmful, harmless):
        raise ValueError(
            "the gate deals the labels anew within each pair, and these prompts are not matched one to one; give a "
            "paired set, such as 'builtin' or 'jailbreakbench'"
        )
    check_sides(harmful, harmless, True)
    if not (exact_heads(harmful) & exact_heads(harmless)).all():
        raise ValueError(
            "some scores are estimates, which enter no statistic; score with method='exact'"
        )
    sign = 1.0 if harmful.largest_first else -1.0
    found = sign * (prompt_scores(harmful) - prompt_scores(harmless))
    if found.shape[-1] < LEAST:
        raise ValueError(
            f"there are {found.shape[-1]} pairs; with fewer than {LEAST} no order of labels is rare enough to tell"
        )
    return found


def _error(differences: Float[Tensor, "layer head pair"]) -> Float[Tensor, "layer head"]:
    return differences.std(-1) / math.sqrt(differences.shape[-1])


def _halves(scores: HeadScores, seed: int) -> tuple[float, float, float]:
    found = rank_stability(scores, k=1, seed=seed).spearman.nan_to_num(0.0)
    low, high = found.quantile(torch.tensor([0.025, 0.975]).to(found)).tolist()
    return found.mean().item(), low, high


def _repeats(scores: HeadScores, top_k: int, seed: int) -> Float[Tensor, "layer head"]:
    halves = torch.cat(disjoint_halves(n_prompts(scores), seed=seed))
    found = score_subsets(scores, halves)
    first = found.argsort(dim=-1, descending=scores.largest_first, stable=True)[:, :top_k]
    counts = torch.zeros_like(found).scatter(-1, first, 1.0).mean(0)
    return counts.reshape(scores.values.shape)
