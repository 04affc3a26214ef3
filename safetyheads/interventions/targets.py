"""Where does a walk through activation space lead? To another prompt, to nowhere in particular, along a direction.

A target says for each prompt's activation where its walk ends; a way (`paths.py`) says how it goes there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.interventions.site import digest
from safetyheads.stats import matched_normals

Capture = Callable[[Any], Tensor]
"""From prompts to what enters the walk's layer at their last tokens: [prompt, d_model]."""


@runtime_checkable
class Target(Protocol):
    """Where walks end; one that knows a single layer says so as `layer`."""

    @property
    def name(self) -> str: ...

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        """The end of each prompt's walk, from where they begin."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a manifest says of it."""
        ...


@dataclass(frozen=True)
class NextPrompt:
    """Each prompt's walk ends at the next prompt's activation, the last one's at the first's.

    Janiak et al. (arXiv:2409.17113) pair consecutive prompts so, without the last: with prompts of no order the pairs
    are of unrelated texts.
    """

    name = "next prompt"

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        """The states, each prompt's one place on; ValueError for a lone prompt."""
        if len(states) < 2:
            raise ValueError(
                "there is 1 prompt, and its walk should end at the next one's activation; give at least 2 prompts, or "
                "TowardPrompts(...)"
            )
        return states.roll(-1, 0)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass(frozen=True)
class TowardPrompts:
    """Each prompt's walk ends at the activation of a prompt of its own: the matched harmful one, for instance."""

    prompts: Any
    """As many as there are walks, in their order: strings, or a TokenBatch."""
    name = "matched prompt"

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        """The matched prompts' states; ValueError where there are more or fewer than walks."""
        ends = capture(self.prompts)
        if len(ends) != len(states):
            raise ValueError(
                f"{len(states)} prompts walk toward {len(ends)}; give one to walk toward for each"
            )
        return ends

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "count": len(self.prompts)}


@dataclass(frozen=True)
class RandomDirection:
    """Each walk ends at a draw from a normal distribution with the mean and covariance of the prompts' activations.

    What real activations share, their mean, their few wide axes, is then in the draw; what makes them real is not
    (arXiv:2409.15019 and 2410.12555 compare with this and not with a direction of no shape).
    """

    seed: int = 0
    name = "random"

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        return matched_normals(states, len(states), seed=self.seed).to(states)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed}


@dataclass(frozen=True, eq=False)
class AlongDirection:
    """Each walk adds one vector, whole at its end: a refusal direction, for instance.

    Raises ValueError for a vector that is no direction, or a length that is not positive.
    """

    direction: Float[Tensor, " d_model"] = field(repr=False)
    """Of any length; only where it points counts."""
    length: float
    """How far the walk goes, in the units of the residual stream."""
    name: str = "direction"
    """What tables call it."""

    def __post_init__(self) -> None:
        good = self.direction.ndim == 1 and self.direction.isfinite().all()
        if not (good and self.direction.any() and 0 < self.length < float("inf")):
            raise ValueError(
                f"a direction of shape {list(self.direction.shape)} and a length of {self.length} came; give one axis "
                "of finite numbers that are not all zero, and a positive length, finite"
            )

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        if len(self.direction) != states.shape[1]:
            raise ValueError(
                f"the direction has {len(self.direction)} numbers, and the residual stream {states.shape[1]}"
            )
        unit = torch.nn.functional.normalize(self.direction.to(states), dim=0)
        return states + self.length * unit

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "direction": digest(self.direction), "length": self.length}
