"""What can one do to a forward pass?

Ablations of one query head, written as functions from what the head computes before W_O to what is put in its place.
All positions of the prompt are ablated, as in Zhou et al. 2025 (arXiv:2410.13708, Eq. 7 and 8). Under grouped-query
attention every ablation acts on one query head and leaves the keys and values that it shares alone.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.choices import described, not_a_class, unknown
from safetyheads.heads import Head, parse_heads
from safetyheads.models.hooked import HookedModel, ZEdit
from safetyheads.prompts import TokenBatch


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
    softcap: float | None = None
    """The bound of tanh soft-capping on the scores, or None (Gemma-2 has 50)."""
    mean: Float[Tensor, " d_head"] | None = None
    """Mean of `z` over all real tokens of all prompts."""
    donor: Float[Tensor, "row query d_head"] | None = None
    """The same head's `z` on another prompt, aligned token by token."""


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
    mean). epsilon > 0 scales the query where the paper's code does, and after QK-norm where the model has one (before
    it, the norm would undo the scaling). The paper's text has epsilon = 1e-5; its code has 1e-4, 1e-5 and 1e-10.

    >>> v = torch.tensor([[[2.0], [4.0]]]); causal = torch.tensor([[[True, False], [True, True]]])
    >>> UndifferentiatedAttention()(HeadActs(z=v, v=v, visible=causal)).flatten().tolist()
    [2.0, 3.0]
    """

    epsilon: float = 0.0
    """Factor on the query."""
    name: ClassVar[str] = "undifferentiated_attention"

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon, "query")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scores"} if self.epsilon else ())

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        scores = torch.zeros_like(acts.visible, dtype=torch.float32)
        if self.epsilon:
            scores = _given(acts.scores, self).float() * self.epsilon
            if acts.softcap:
                scores = acts.softcap * torch.tanh(scores / acts.softcap)
        # A query that sees nothing is padding; whatever it gets must be a number.
        hidden = ~acts.visible & acts.visible.any(-1, keepdim=True)
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
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
        _check_epsilon(self.epsilon, "head's output")

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
        if type(self.seed) is not int:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number")

    def __call__(self, acts: HeadActs) -> Float[Tensor, "row query d_head"]:
        return _given(acts.donor, self)


def _given(value: Tensor | None, ablation: Ablation) -> Tensor:
    if value is None:
        raise ValueError(f"{ablation} needs HeadActs.{', '.join(ablation.needs)}, which is None")
    return value


def _check_epsilon(epsilon: Any, scaled: str) -> None:
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not number or not math.isfinite(epsilon) or epsilon < 0:
        raise ValueError(
            f"epsilon is {epsilon!r}; it scales the {scaled} and must be a finite number >= 0"
        )


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
    not_a_class("ablation", value)
    if isinstance(value, Mapping):
        return described("ablation", value, ABLATIONS)
    if isinstance(value, Ablation):
        return value
    if isinstance(value, str) and value in ABLATIONS:
        return ABLATIONS[value]()
    raise unknown("ablation", value, ABLATIONS, "ZeroAblation()")


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


@dataclass(frozen=True)
class AblateHead:
    """One head under one ablation: a variant of the forward pass that a sweep runs."""

    head: Head
    ablation: Ablation

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", parse_heads([self.head])[0])
        object.__setattr__(self, "ablation", as_ablation(self.ablation))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The head, as a group of one."""
        return (self.head,)

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        return self.head.layer

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """As `AblateHeads.active`."""
        with AblateHeads((self.head,), self.ablation).active(model):
            yield


@dataclass(frozen=True)
class AblateHeads:
    """Several heads under one ablation, all at once.

    Raises ValueError if there is no head, or one comes twice.
    """

    heads: tuple[Head, ...]
    """Heads, or their names."""
    ablation: Ablation
    """What is done to them, or its name."""
    mean: Float[Tensor, "layer head d_head"] | None = field(default=None, compare=False, repr=False)
    """What `mean_z` gives: what mean ablation writes while the heads are ablated in flight."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "ablation", as_ablation(self.ablation))
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError(
                f"the heads are {', '.join(map(str, self.heads)) or 'none'}; "
                "name at least one, and each only once"
            )

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        return min(head.layer for head in self.heads)

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """Within the context, every forward pass of the model has these heads ablated, in generation too.

        All positions are ablated: a prompt's and, with a cache, each token generated after it.

        Raises ValueError for a head that the model does not have, for mean ablation without `mean`, and for
        an ablation that needs another prompt, since a lone forward pass has none.
        """
        with model.editing_z(self.edits(model)):
            yield

    def edits(self, model: HookedModel, part: tuple[int, int] = (0, 1)) -> list[ZEdit]:
        """What `HookedModel.editing_z` takes; `part` says in which rows of a pass the heads are ablated."""
        needs = self.ablation.needs
        if "donor" in needs:
            raise ValueError(
                f"{self.ablation} borrows from another prompt, and a forward pass in flight has none to borrow from; "
                "take zero, mean, scaling or undifferentiated attention"
            )
        if "mean" in needs and self.mean is None:
            raise ValueError(
                f"{self.ablation} needs the heads' mean; give AblateHeads(..., mean=mean_z(model, batch))"
            )

        def edit_of(head: Head) -> ZEdit:
            mean = None if self.mean is None else self.mean[head]

            def edit(**acts: Any) -> Tensor:
                return self.ablation(HeadActs(**acts, softcap=model.score_softcap, mean=mean))

            return ZEdit(*head, edit, scores="scores" in needs, part=part)

        return [edit_of(head) for head in self.heads]


@torch.inference_mode()
def mean_z(model: HookedModel, batch: TokenBatch) -> Float[Tensor, "layer head d_head"]:
    """Every head's mean output over all real tokens of the prompts, on the model untouched."""
    real = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    ids, real = batch.ids.where(real, 0).to(model.device), real.to(model.device)
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, device=model.device)
    for rows in torch.arange(len(ids)).split(16):
        resid, calls = model.embed(ids[rows]), model.record_calls(ids[:1])[1]
        for layer, call in enumerate(calls):
            acts = model.run_block_clean(layer, resid, call, scores=False)
            resid = acts.resid_post
            total[layer] += acts.z[real[rows]].float().sum(0)
    return (total / real.sum()).to(model.dtype)


@dataclass(frozen=True)
class BypassLayers:
    """Whole layers left out: what enters a block goes on to the next one unchanged, h_{l+1} = h_l.

    "Jailbreaking Leaves a Trace" (arXiv:2602.11495) does this to the layers where a prompt looks like a jailbreak.

    Raises ValueError if no layer is named, or one lies below 0.
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 0:
            raise ValueError(
                f"the layers are {', '.join(map(str, self.layers)) or 'none'}; "
                "name at least one, counted from 0"
            )

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        return min(self.layers)

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """Within the context, every forward pass of the model leaves these layers out, in generation too.

        The blocks still run, so that a cache of keys and values stays whole; only their output is dropped.

        Raises ValueError for a layer that the model does not have.
        """
        if max(self.layers) >= model.n_layers:
            raise ValueError(
                f"layer {max(self.layers)} is not in {model.name}: it has layers 0-{model.n_layers - 1}"
            )
        with model.bypassing(self.layers):
            yield


@runtime_checkable
class Intervention(Protocol):
    """Anything that can be switched on: `AblateHead`, `AblateHeads`, `BypassLayers`, or your own."""

    def active(self, model: HookedModel) -> contextlib.AbstractContextManager[None]: ...


BASELINE = "baseline"
"""The name of the untouched model among named interventions."""


def named_interventions(interventions: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Each name with the list of what is switched on for it, from one intervention, several, or None for none.

    The untouched model comes first, as "baseline", where no value is None or empty.

    >>> list(named_interventions({"L3H7": AblateHead(Head(3, 7), ZeroAblation())}))
    ['baseline', 'L3H7']
    """
    named: dict[str, list[Any]] = {}
    for name, value in (interventions or {}).items():
        several = isinstance(value, Sequence) and not isinstance(value, Intervention)
        stack = [] if value is None else list(value) if several else [value]
        for one in stack:
            if not isinstance(one, Intervention):
                raise ValueError(
                    f"intervention {name!r} is or holds a {type(one).__name__}, which has no active(model): "
                    "give AblateHeads(...), several interventions in a list, or None for the untouched model"
                )
        named[str(name)] = stack
    if any(not stack for stack in named.values()):
        return named
    if BASELINE in named:
        raise ValueError(
            f"{BASELINE!r} names the untouched model: give another name to that intervention"
        )
    return {BASELINE: [], **named}


@contextlib.contextmanager
def all_active(interventions: Sequence[Any], model: HookedModel) -> Iterator[None]:
    """Within the context, all of these interventions are switched on."""
    with contextlib.ExitStack() as open_ones:
        for intervention in interventions:
            open_ones.enter_context(intervention.active(model))
        yield


def describe(value: Any) -> dict[str, Any]:
    """Name and fields of an ablation or a metric, for a manifest.

    >>> describe(ScalingContribution())
    {'name': 'scaling_contribution', 'epsilon': 1e-05}
    """
    return {"name": value.name, **asdict(value)}
