"""What is put in the place of one head's output?

Ablations of one query head, written as functions from what the head computes before W_O to what is put in its place.
All positions of the prompt are ablated, as in Zhou et al. 2025 (arXiv:2410.13708, Eq. 7 and 8). Under grouped-query
attention every ablation acts on one query head and leaves the keys and values that it shares alone.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.choices import chosen

Lenders = Callable[[Sequence[int]], Sequence[int]]
"""From prompts to the prompts that lend to them, both by their number in the batch."""


class HeadActs(NamedTuple):
    """What one head has before W_O, on a batch of rows; the optional fields are there when
    `Ablation.needs` names them."""

    z: Float[Tensor, "row query d_head"]
    """The head's output: its attention pattern times its values."""
    v: Float[Tensor, "row key d_head"]
    """The values it reads; grouped-query heads of one group share them. With a cache there are more keys than
    queries."""
    visible: Bool[Tensor, "row query key"]
    """Which keys each query may see, from the model's own mask (padding and sliding windows included)."""
    scores: Float[Tensor, "row query key"] | None = None
    """Attention scores before the softmax, after QK-norm and rotary embedding, any softcap undone."""
    sink: Float[Tensor, ""] | None = None
    """The learned score with which the head's sink joins the softmax, where the model has sinks (gpt-oss)."""
    softcap: float | None = None
    """The bound of tanh soft-capping on the scores, or None (Gemma-2 has 50)."""
    mean: Float[Tensor, " d_head"] | None = None
    """Mean of `z` over all real tokens of all prompts."""
    donor: Callable[[Lenders], Float[Tensor, "row query d_head"]] | None = None
    """The same head's `z` on another prompt, aligned token by token, by what says who lends to whom."""


@runtime_checkable
class Ablation(Protocol):
    """A frozen value that is also a function: the head's activations in, what replaces `z` out."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> frozenset[str]: ...
    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]: ...


@dataclass(frozen=True)
class UndifferentiatedAttention:
    """Attend to all visible tokens alike (Ships, Eq. 7): softmax(epsilon q k^T / sqrt(d_head)) v.

    epsilon = 0 is the limit and has a closed form: the mean of the visible values (for causal attention, a running
    mean). A learned attention sink is no query's and stays as it is: it takes its share of the softmax at any epsilon.
    epsilon > 0 scales the query where the paper's code does, and after QK-norm where the model has one (before
    it, the norm would undo the scaling). The paper's text has epsilon = 1e-5; its code has 1e-4, 1e-5 and 1e-10.

    >>> v = torch.tensor([[[2.0], [4.0]]]); causal = torch.tensor([[[True, False], [True, True]]])
    >>> UndifferentiatedAttention()(HeadActs(z=v, v=v, visible=causal)).flatten().tolist()
    [2.0, 3.0]
    """

    epsilon: float = 0.0
    """Factor on the query."""
    name: ClassVar[str] = "undifferentiated_attention"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _epsilon(self.epsilon, "query"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"values", "scores"} if self.epsilon else {"values"})

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        scores = torch.zeros_like(acts.visible, dtype=torch.float32)
        if self.epsilon:
            scores = _given(acts.scores, self).float() * self.epsilon
            if acts.softcap:
                scores = acts.softcap * torch.tanh(scores / acts.softcap)
        # A query that sees nothing is padding; whatever it gets must be a number.
        hidden = ~acts.visible & acts.visible.any(-1, keepdim=True)
        scores = scores.masked_fill(hidden, -torch.inf)
        if acts.sink is not None:
            scores = torch.cat([scores, acts.sink.float().expand(*scores.shape[:2], 1)], -1)
        pattern = scores.softmax(-1)[..., : acts.v.shape[1]]
        return pattern.to(acts.v.dtype) @ acts.v


@dataclass(frozen=True)
class ScalingContribution:
    """Scale the head's output by epsilon before W_O (Ships, Eq. 8).

    >>> z = torch.ones(1, 1, 2); itself = torch.ones(1, 1, 1, dtype=torch.bool)
    >>> ScalingContribution(0.5)(HeadActs(z, z, itself)).tolist()
    [[[0.5, 0.5]]]
    """

    epsilon: float = 1e-5
    """Factor on the head's output."""
    name: ClassVar[str] = "scaling_contribution"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _epsilon(self.epsilon, "head's output"))

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        return acts.z * self.epsilon


@dataclass(frozen=True)
class ZeroAblation:
    """Replace the head's output by zero: what scaling contribution is in the limit."""

    name: ClassVar[str] = "zero"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        return torch.zeros_like(acts.z)


@dataclass(frozen=True)
class MeanAblation:
    """Replace the head's output by its mean over all real tokens of the prompts that are scored.

    The mean is over data. The paper's code has a "mean mask" that averages over the heads of a layer: a
    different thing.
    """

    name: ClassVar[str] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"mean"})

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        return _given(acts.mean, self).expand_as(acts.z)


@dataclass(frozen=True)
class ResampleAblation:
    """Replace the head's output by the same head's output on another of the prompts.

    Which prompt lends to which is a cycle drawn from `seed`. Tokens are aligned from the start over the prefix that all
    prompts share, and from the end after it, so that a template's tokens meet their own kind; where the other prompt is
    shorter, its first token after the prefix is repeated.
    """

    seed: int = 0
    """Seed of the assignment of prompts to prompts."""
    name: ClassVar[str] = "resample"
    needs: ClassVar[frozenset[str]] = frozenset({"donor"})

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    def lenders(self, prompts: Sequence[int]) -> list[int]:
        """Who lends to each of these prompts."""
        return _cycle(prompts, self.seed)

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        return _given(acts.donor, self)(self.lenders)


Lender = Literal["partner", "stranger", "same_side"]


@dataclass(frozen=True)
class InterchangeAblation:
    """Replace the head's output by the same head's output on the other prompt of a matched pair.

    On a harmful prompt the head then says what it says on the harmless one (is it needed?), and the other way round
    (does it suffice?); `score_interchange` runs both in one sweep. Tokens are aligned as by `ResampleAblation`, from
    the end of the template and of the request. arXiv:2604.04385 aligns them from the start and cuts the longer prompt,
    so that templates and last tokens do not meet; that was not followed.
    """

    lender: Lender = "partner"
    """Who lends: the matched prompt; as controls, another pair's prompt of the other side ("stranger"), or another
    prompt of the same side ("same_side")."""
    seed: int = 0
    """Seed of the assignment of pairs to pairs, where another pair lends."""
    needs: ClassVar[frozenset[str]] = frozenset({"donor", "pairs"})

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        if self.lender not in get_args(Lender):
            raise ValueError(
                f"lender is {self.lender!r}; it must be one of {', '.join(get_args(Lender))}"
            )

    @property
    def name(self) -> str:
        return "interchange" if self.lender == "partner" else f"interchange ({self.lender})"

    def lenders(self, prompts: Sequence[int]) -> list[int]:
        """Who lends to each prompt of a batch that has all harmful prompts first, then their partners in order."""
        pairs, odd = divmod(len(prompts), 2)
        if odd or list(prompts) != list(range(len(prompts))):
            return _cycle(
                prompts, self.seed
            )  # a sweep checks itself on a few prompts first, which are no pairs
        first = list(range(pairs)) if self.lender == "partner" else _cycle(range(pairs), self.seed)
        other = [n + pairs for n in first]
        return first + other if self.lender == "same_side" else other + first

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        return _given(acts.donor, self)(self.lenders)


def _cycle(prompts: Sequence[int], seed: int) -> list[int]:
    """Each prompt's lender, in a cycle through all of them that is drawn at random."""
    places = list(range(len(prompts)))
    random.Random(seed).shuffle(places)
    lender = {borrower: places[n - 1] for n, borrower in enumerate(places)}
    return [prompts[lender[n]] for n in range(len(prompts))]


def _check_seed(seed: Any) -> None:
    if type(seed) is not int:
        raise ValueError(f"seed is {seed!r}; it must be a whole number")


def _given(value: Any, ablation: Ablation) -> Any:
    if value is None:
        raise ValueError(f"{ablation} needs HeadActs.{', '.join(ablation.needs)}, which is None")
    return value


def _epsilon(epsilon: Any, scaled: str) -> float:
    number = isinstance(epsilon, Real) and not isinstance(epsilon, bool)
    if not number or not math.isfinite(epsilon) or epsilon < 0:
        raise ValueError(
            f"epsilon is {epsilon!r}; it scales the {scaled} and must be a finite number >= 0"
        )
    return epsilon if isinstance(epsilon, int) else float(epsilon)


ABLATIONS: dict[str, Callable[[], Ablation]] = {
    kind.name: kind
    for kind in (
        UndifferentiatedAttention,
        ScalingContribution,
        ZeroAblation,
        MeanAblation,
        ResampleAblation,
    )
}
"""The ablations that a name stands for, with their defaults."""


def as_ablation(value: Ablation | str | Mapping[str, Any]) -> Ablation:
    """An ablation, the one of a name, or the one that a manifest describes.

    >>> as_ablation("zero"), as_ablation(ScalingContribution(0.5))
    (ZeroAblation(), ScalingContribution(epsilon=0.5))

    Raises ValueError for a name that is none, with near ones, a class, or anything else.
    """
    is_one = lambda given: isinstance(given, Ablation)  # noqa: E731
    return chosen("ablation", value, ABLATIONS, is_one, "ZeroAblation()")


def as_ablations(values: Any) -> tuple[Ablation, ...]:
    """Several ablations, or one for a list of one, each as `as_ablation` takes it.

    >>> as_ablations("zero")
    (ZeroAblation(),)

    Raises ValueError if there is none.
    """
    several = isinstance(values, list | tuple)
    found = tuple(as_ablation(value) for value in (values if several else [values]))
    if not found:
        raise ValueError(
            "ablations is empty; give at least one, such as UndifferentiatedAttention()"
        )
    return found


def describe(value: Any) -> dict[str, Any]:
    """Name and fields of an ablation or a metric, for a manifest, which is JSON and has lists for tuples.

    >>> describe(ScalingContribution())
    {'name': 'scaling_contribution', 'epsilon': 1e-05}
    """
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}
    return {"name": value.name, **fields}
