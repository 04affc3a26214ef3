"""What if the model could not write, or had to write, along one direction of its residual stream?

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (arXiv:2406.11717): a direction is ablated
by projecting it out of what enters the first block and of all that is written after it (Eq. 4), and added at one layer
(Eq. 3). As in their code, what attention writes is projected where the attention module gives it (before the norm that
Gemma-2 puts after it), so that the MLP of the same block reads a stream without it; what the MLP writes is projected
where it leaves the block, which is the same wherever no norm stands between.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import Head
from safetyheads.interventions.site import Site, Start, digest, edited
from safetyheads.models.hooked import HookedModel
from safetyheads.models.streams import StreamEdit, editing_stream


@dataclass(frozen=True, eq=False)
class AblateDirection:
    """A direction projected out of the residual stream, at every position and layer from a first one on.

    Raises ValueError for a vector that is no direction: not one axis, not finite, or zero.
    """

    direction: Float[Tensor, " d_model"] = field(repr=False)
    """Of any length; only where it points counts."""
    first_layer: int = 0
    """What enters this layer is the first that has no part of it."""

    def __post_init__(self) -> None:
        _require_vector(self.direction)
        if not self.direction.any():
            raise ValueError("the direction is zero, and points nowhere")

    @property
    def heads(self) -> tuple[Head, ...]:
        return ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def label(self) -> str:
        return f"ablating a direction from layer {self.first_layer} on"

    def describe(self) -> dict[str, Any]:
        return {"ablate_direction": digest(self.direction), "first_layer": self.first_layer}

    def project(self, states: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The states less their part along the direction, in float32 or better."""
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        unit = torch.nn.functional.normalize(self.direction.to(wide), dim=0)
        return (wide - (wide @ unit)[..., None] * unit).to(states.dtype)

    def start(self, site: Site) -> Start:
        return Start(self.project(site.resid), stream_edits=self._above(site.model))

    def in_flight(self, site: Site) -> Start:
        return Start(site.resid, stream_edits=self.edits(site.model))

    def edits(self, model: HookedModel) -> tuple[StreamEdit, ...]:
        """What `editing_stream` takes."""
        _require_size(self.direction, model)
        return (StreamEdit(self.first_layer, "resid_pre", self.project), *self._above(model))

    def _above(self, model: HookedModel) -> tuple[StreamEdit, ...]:
        _require_size(self.direction, model)
        return tuple(
            StreamEdit(layer, place, self.project)
            for layer in range(self.first_layer, model.n_layers)
            for place in ("attn_out", "resid_post")
        )

    @contextlib.contextmanager
    def plainly(self, site: Site) -> Iterator[None]:
        with edited(site, self.in_flight(site)):
            yield

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """Within the context, every forward pass of the model has the direction ablated, in generation too."""
        with editing_stream(model, self.edits(model)):
            yield


@dataclass(frozen=True, eq=False)
class AddDirection:
    """A vector added to what enters one layer, at every position.

    Raises ValueError for what is no vector of finite numbers.
    """

    vector: Float[Tensor, " d_model"] = field(repr=False)
    """What is added, as long as it is."""
    layer: int

    def __post_init__(self) -> None:
        _require_vector(self.vector)

    @property
    def first_layer(self) -> int:
        return self.layer

    @property
    def heads(self) -> tuple[Head, ...]:
        return ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def label(self) -> str:
        return f"adding a vector at layer {self.layer}"

    def describe(self) -> dict[str, Any]:
        return {"add_direction": digest(self.vector), "layer": self.layer}

    def add(self, states: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The states and the vector."""
        return states + self.vector.to(states)

    def start(self, site: Site) -> Start:
        _require_size(self.vector, site.model)
        return Start(self.add(site.resid))

    def in_flight(self, site: Site) -> Start:
        return Start(site.resid, stream_edits=self.edits(site.model))

    def edits(self, model: HookedModel) -> tuple[StreamEdit, ...]:
        """What `editing_stream` takes."""
        _require_size(self.vector, model)
        return (StreamEdit(self.layer, "resid_pre", self.add),)

    @contextlib.contextmanager
    def plainly(self, site: Site) -> Iterator[None]:
        with edited(site, self.in_flight(site)):
            yield

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """Within the context, every forward pass of the model has the vector added, in generation too."""
        with editing_stream(model, self.edits(model)):
            yield


def _require_vector(vector: Tensor) -> None:
    if vector.ndim != 1 or not vector.isfinite().all():
        raise ValueError(
            f"a direction is one axis of finite numbers, and one of shape {list(vector.shape)} came, "
            f"{int((~vector.isfinite()).sum())} of its numbers not finite"
        )


def _require_size(vector: Tensor, model: HookedModel) -> None:
    if len(vector) != model.d_model:
        raise ValueError(
            f"the direction has {len(vector)} numbers, and the residual stream of {model.name} has {model.d_model}"
        )
