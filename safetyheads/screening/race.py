"""Which heads are worth another prompt?

All heads run on a few prompts drawn at random. A head whose upper bound lies below the lower bounds of `top_k` others
cannot reach the top any more, as far as one can tell, and drops out; the others get more prompts, until the last ones
have all of them (Hoeffding races: Maron & Moore 1993; best-arm identification: Kalyanakrishnan et al. 2012, Audibert &
Bubeck 2010). What is left is exact, and what dropped out has an unbiased estimate with an interval (`intervals`).
Where a race errs is known, too: the chance that some head that dropped out belongs to the top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from safetyheads.heads import Head, Race, parse_heads
from safetyheads.screening.intervals import Means, means

Run = Callable[[Sequence[Head], Sequence[int]], Float[Tensor, "variant prompt"]]
"""Scores of some heads on some prompts, both in the order given."""


@dataclass(frozen=True)
class Raced:
    """How heads are raced: pass it as `method`, or the word "raced" for the defaults.

    >>> Raced(top_k=5).first
    2

    Raises ValueError for numbers that make no race.
    """

    top_k: int = 10
    """The top that is looked for."""
    caution: float = 1.8
    """How many standard errors a head's upper bound lies above its mean, and a rival's lower bound below: with more,
    fewer heads of the top are lost, and more are run for nothing."""
    first: int = 2
    """Prompts that every head is run on."""
    growth: float = 1.41
    """How many times the prompts of one round those of the next are."""
    covariate: bool = False
    """Whether a linear estimate of every head and prompt (`screen_heads`) sharpens the means; its passes backward cost
    about a twentieth of an exact sweep of a small model."""
    include: tuple[Head, ...] = ()
    """Heads that are run on all prompts whatever happens."""
    seed: int = 0
    """Of the order of the prompts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "include", parse_heads(self.include))
        for name, low in (("top_k", 1), ("first", 2)):
            if (number := getattr(self, name)) < low:
                raise ValueError(f"{name} is {number}; it must be at least {low}")
        if not self.caution > 0:
            raise ValueError(f"caution is {self.caution}; it must be above 0")
        if not self.growth > 1:
            raise ValueError(f"growth is {self.growth}; it must be above 1")

    def rounds(self, count: int) -> list[int]:
        """How many of `count` prompts each round ends with; the last but one is well below all of them.

        >>> Raced().rounds(16)
        [2, 3, 4, 6, 8, 11, 16]
        >>> Raced().rounds(64)[-2:]
        [44, 64]
        """
        ends: list[int] = []
        end = float(self.first)
        while round(end) <= 0.8 * count:
            if not ends or round(end) > ends[-1]:
                ends.append(round(end))
            end *= self.growth
        return [*ends, count]


def expected_passes(method: Raced, heads: int, count: int, start: int = 0) -> list[int]:
    """About how many (head, prompt) pairs each round to come will run, with so many heads left after `start` prompts.

    What is left after n prompts was read off races of SmolLM2's 270 heads on 64 prompts (docs/racing.md).

    >>> expected_passes(Raced(), 100, 4), sum(expected_passes(Raced(), 270, 64)) < 0.25 * 270 * 64
    ([200, 100, 72], True)
    """
    passes, ran = [], start
    for end in method.rounds(count):
        if end <= start:
            continue
        share = 1.0 if ran == start else _left(ran) / _left(start)
        left = max(heads * share, min(heads, 1.2 * method.top_k + len(method.include)))
        passes.append(round(left * (end - ran)))
        ran = end
    return passes


def _left(ran: int) -> float:
    """Share of all heads that are left after so many prompts."""
    return min(1.0, (2.4 / max(ran, 1)) ** 1.5)


class RacedScores(NamedTuple):
    """What a race knows of every head; NaN where a head was not run."""

    values: Float[Tensor, "layer head"]
    """Exact where all prompts were run, else the estimate."""
    per_prompt: Float[Tensor, "layer head prompt"]
    exact: Bool[Tensor, "layer head"]
    prompts_run: Int[Tensor, "layer head"]
    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    race: Race


def race(
    run: Run,
    shape: tuple[int, int],
    order: Sequence[int],
    method: Raced,
    *,
    largest_first: bool = True,
    covariate: Float[Tensor, "layer head prompt"] | None = None,
    before: Callable[[int, int], object] = lambda heads, start: None,
) -> RacedScores:
    """Race the heads of a model of `shape` layers and heads over prompts in a random `order`.

    `covariate` is known of every head and prompt. `before` is called with how many heads are left and how many prompts
    they have run, before each round. At the end no estimate stands among the top: a head that dropped out and whose
    mean is above the border is run on what it lacks.

    Raises ValueError for a top larger than the model, an included head that it does not have, or scores that are not
    finite.
    """
    track = _Track(shape, order, method, 1.0 if largest_first else -1.0, covariate)
    rounds, alive, start = [], np.ones(track.heads, bool), 0
    for end in method.rounds(len(order)):
        before(int(alive.sum()), start)
        track.add(run, alive, order[start:end])
        rounds.append((end, int(alive.sum())))
        start = end
        if end < len(order):
            alive = track.survivors(alive)
    while (late := track.above_the_border()).any():
        for missing in track.lacking(late):
            track.add(run, missing.heads, missing.prompts)
        rounds.append((len(order), int(late.sum())))
    return track.result(rounds)


class _Missing(NamedTuple):
    heads: Bool[ndarray, " head"]
    prompts: list[int]


class _Track:
    """Who has run what, and what came out, larger being better."""

    def __init__(
        self,
        shape: tuple[int, int],
        order: Sequence[int],
        method: Raced,
        sign: float,
        covariate: Tensor | None,
    ) -> None:
        self.shape, self.order, self.method, self.sign = shape, order, method, sign
        self.heads = shape[0] * shape[1]
        if method.top_k > self.heads:
            raise ValueError(f"top_k is {method.top_k}, and the model has {self.heads} heads")
        self.always = np.zeros(self.heads, bool)
        for head in method.include:
            if head.layer >= shape[0] or head.head >= shape[1]:
                raise ValueError(
                    f"{head} is not in this model: it has layers 0-{shape[0] - 1} and heads 0-{shape[1] - 1}"
                )
            self.always[head.layer * shape[1] + head.head] = True
        self.scores = np.full((self.heads, len(order)), np.nan)
        self.covariate = None
        if covariate is not None:
            self.covariate = sign * covariate.double().numpy().reshape(self.heads, -1)

    @property
    def ran(self) -> Bool[ndarray, "head prompt"]:
        return np.asarray(~np.isnan(self.scores))

    @property
    def done(self) -> Bool[ndarray, " head"]:
        return np.asarray(self.ran.all(1))

    def add(self, run: Run, heads: Bool[ndarray, " head"], prompts: Sequence[int]) -> None:
        """Run some heads on some prompts."""
        places = heads.nonzero()[0]
        found = run([Head(*divmod(int(place), self.shape[1])) for place in places], prompts)
        if not torch.isfinite(found).all():
            raise ValueError(
                "some scores are infinite, and a race compares means; use method='exact'"
            )
        self.scores[np.ix_(places, np.asarray(prompts))] = self.sign * found.double().numpy()

    def means(self) -> Means:
        """Every head's mean over all prompts."""
        return means(self.scores, self.ran, self.covariate)

    def survivors(self, alive: Bool[ndarray, " head"]) -> Bool[ndarray, " head"]:
        """Those of the heads alive that may still reach the top."""
        found, k = self.means(), self.method.top_k
        margin = self.method.caution * found.error
        border = np.sort((found.mean - margin)[alive])[-k]
        best = np.argsort(-np.where(alive, found.mean, -np.inf), kind="stable")[:k]
        kept = alive & ((found.mean + margin >= border) | self.always)
        kept[best] = True
        return kept

    def above_the_border(self) -> Bool[ndarray, " head"]:
        """Heads that have not run all prompts, and whose mean would be among the top."""
        mean = self.means().mean
        border = np.sort(mean[self.done])[-self.method.top_k]
        return ~self.done & (mean >= border)

    def lacking(self, heads: Bool[ndarray, " head"]) -> list[_Missing]:
        """What these heads have not run: those that lack the same prompts together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        ran = self.ran
        for place in heads.nonzero()[0]:
            missing = tuple(prompt for prompt in self.order if not ran[place, prompt])
            groups.setdefault(missing, []).append(int(place))
        found = []
        for prompts, places in groups.items():
            mask = np.zeros(self.heads, bool)
            mask[places] = True
            found.append(_Missing(mask, list(prompts)))
        return found

    def result(self, rounds: list[tuple[int, int]]) -> RacedScores:
        """The scores with the sign that they came with, and what to think of them."""
        found, done = self.means(), self.done
        low, high = found.interval()
        border = np.sort(found.mean[done])[-self.method.top_k]
        chance = float(np.prod(1 - found.above(border)[~done]))
        if self.sign < 0:
            low, high = -high, -low

        def grid(values: ndarray) -> Tensor:
            return torch.from_numpy(values.reshape(*self.shape, *values.shape[1:])).float()

        per_prompt = grid(self.sign * self.scores)
        # An exact score is what the metric makes of the readings themselves.
        values = torch.where(
            torch.from_numpy(done.reshape(self.shape)),
            per_prompt.mean(-1),
            grid(self.sign * found.mean),
        )
        return RacedScores(
            values=values,
            per_prompt=per_prompt,
            exact=torch.from_numpy(done.reshape(self.shape)),
            prompts_run=torch.from_numpy(self.ran.sum(1).reshape(self.shape)),
            low=torch.where(torch.from_numpy(done.reshape(self.shape)), values, grid(low)),
            high=torch.where(torch.from_numpy(done.reshape(self.shape)), values, grid(high)),
            race=Race(
                top_k=self.method.top_k,
                heads=self.heads,
                run=int(done.sum()),
                prompts=self.scores.shape[1],
                passes=int(self.ran.sum()),
                rounds=tuple(rounds),
                chance=chance,
            ),
        )


def random_order(count: int, categories: Sequence[str], seed: int) -> list[int]:
    """All prompts in a random order, the categories taken in turn, so that the first few are spread over them.

    >>> order = random_order(5, ["a", "a", "a", "b", "b"], seed=0)
    >>> sorted(order), sorted("aaabb"[prompt] for prompt in order[:2])
    ([0, 1, 2, 3, 4], ['a', 'b'])
    """
    random = np.random.default_rng(seed)
    waiting: dict[str, list[int]] = {}
    for prompt in random.permutation(count).tolist():
        waiting.setdefault(categories[prompt] if categories else "", []).append(prompt)
    order: list[int] = []
    while len(order) < count:
        for name in random.permutation(sorted(waiting)).tolist():
            if waiting[name]:
                order.append(waiting[name].pop())
    return order
