"""What is read at the end of a walk, and how far apart are two readings?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.choices import not_a_class, unknown
from safetyheads.metrics import kl_divergence
from safetyheads.models.hooked import HookedModel


@runtime_checkable
class Reading(Protocol):
    """A distance between what two steps of a walk come to."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    def layer(self, model: HookedModel) -> int:
        """What leaves this block is read."""
        ...

    def between(
        self,
        model: HookedModel,
        states: Float[Tensor, "step d_model"],
        reference: Float[Tensor, " d_model"],
    ) -> Float[Tensor, " step"]:
        """How far each state is from a reference, both as they leave the block, in float64."""
        ...


@dataclass(frozen=True)
class FinalNorm:
    """The Euclidean distance of the residual streams after the final norm.

    Janiak et al. (arXiv:2409.17113) speak of the last layer's residual stream, and their code reads the last of Hugging
    Face's hidden states, which for Llama, OLMo, Qwen2 and GPT-2 is after the final norm: the code is followed.
    """

    name = "post_norm"
    unit = "1"

    def layer(self, model: HookedModel) -> int:
        return model.n_layers - 1

    def between(
        self,
        model: HookedModel,
        states: Float[Tensor, "step d_model"],
        reference: Float[Tensor, " d_model"],
    ) -> Float[Tensor, " step"]:
        normed = model.normed(torch.cat([states, reference[None]])).double()
        return (normed[:-1] - normed[-1]).norm(dim=-1)


@dataclass(frozen=True)
class Residual:
    """The Euclidean distance of the residual streams that leave a block."""

    at: int | None = None
    """The block; None: the last one, before the final norm."""
    unit = "1"

    @property
    def name(self) -> str:
        return "pre_norm" if self.at is None else f"layer {self.at}"

    def layer(self, model: HookedModel) -> int:
        return model.n_layers - 1 if self.at is None else self.at

    def between(
        self,
        model: HookedModel,
        states: Float[Tensor, "step d_model"],
        reference: Float[Tensor, " d_model"],
    ) -> Float[Tensor, " step"]:
        return (states.double() - reference.double()).norm(dim=-1)


@dataclass(frozen=True)
class NextToken:
    """KL(reference || step) of the next token's distributions."""

    name = "next_token"
    unit = "nat"

    def layer(self, model: HookedModel) -> int:
        return model.n_layers - 1

    def between(
        self,
        model: HookedModel,
        states: Float[Tensor, "step d_model"],
        reference: Float[Tensor, " d_model"],
    ) -> Float[Tensor, " step"]:
        logits = model.unembed(model.final_norm(torch.cat([states, reference[None]])))
        log_probs = logits.double().log_softmax(-1)
        return kl_divergence(log_probs[-1:].expand_as(log_probs[:-1]), log_probs[:-1])


READINGS: Mapping[str, Reading] = {
    reading.name: reading for reading in (FinalNorm(), Residual(), NextToken())
}
"""By name: "post_norm", "pre_norm", "next_token"."""


def as_reading(value: Any) -> Reading:
    """A reading, from one, from its name, or from the number of a block; ValueError for anything else."""
    not_a_class("read", value)
    if isinstance(value, Reading):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Residual(value)
    if value not in READINGS:
        raise unknown("read", value, READINGS, "Residual(3)")
    return READINGS[value]
