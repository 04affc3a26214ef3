"""Which direction of the residual stream is refusal's? One vector, where it comes from, and what may be done with
it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.interventions.directions import AblateDirection, AddDirection
from safetyheads.models.opening import load_model
from safetyheads.probes.directions.decomposition import Place, decompose
from safetyheads.probes.directions.sides import read_sides
from safetyheads.storage.results import load_result, save_result

MEAN_DIFFERENCE = "mean difference"


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of the residual stream, found on what enters one layer.

    Raises ValueError for what is no vector of finite numbers, or is zero.
    """

    vector: Float[Tensor, " d_model"] = field(repr=False)
    """As long as the mean difference at its place, in the units of the stream."""
    layer: int
    """It was found on what enters this layer."""
    position: int
    """At this position, counted from the prompt's end."""
    source: str
    """How it was found."""
    model: str
    """On which model."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """What determines it."""

    def __post_init__(self) -> None:
        AblateDirection(self.vector)

    @property
    def length(self) -> float:
        """Its norm, in the units of the stream."""
        return float(self.vector.double().norm())

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The vector of length 1, in float64."""
        return torch.nn.functional.normalize(self.vector.double(), dim=0)

    def ablated(self, first_layer: int = 0) -> AblateDirection:
        """The intervention that keeps the model from writing along it, from a layer on; everywhere by default."""
        return AblateDirection(self.vector, first_layer)

    def added(self, factor: float = 1.0) -> AddDirection:
        """The intervention that adds it where it was found, at every position."""
        return AddDirection(factor * self.vector, self.layer)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Direction":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def refusal_direction(
    model: Any,
    prompts: Any,
    layer: int,
    *,
    position: int = -1,
    component: int | None = None,
    template: str | None = None,
    progress: bool | None = None,
) -> Direction:
    """Find the direction in which states on harmful prompts differ from those on harmless ones, at one place.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take; the set needs both sides. What enters
    `layer` is read at `position`, counted from the prompt's end. By default the direction is the difference of the
    two means (arXiv:2406.11717); `component` k, from 1, takes the k-th singular vector of the pairs' uncentred
    differences (arXiv:2504.18872) instead, as long as the mean difference.

    Raises ValueError for sides that do not differ there, a place that is not there, fewer pairs than components, and
    what `load_model` and `load_prompts` raise.
    """
    opened = load_model(model)
    sides = read_sides(
        opened, prompts, layers=layer, positions=position, template=template, progress=progress
    )
    harmful, harmless = sides.at(position, layer)
    mean = harmful.double().mean(0) - harmless.double().mean(0)
    source = MEAN_DIFFERENCE
    if component is not None:
        place = Place.of(harmful, harmless, 1)
        pairs = len(place.pairs[0])
        if not 1 <= component < pairs:
            raise ValueError(
                f"component is {component}, and there are {pairs} pairs; ask for one of 1 to {pairs - 1}"
            )
        found = decompose(place.differences("uncentred"), component).right[-1]
        mean, source = found * mean.norm(), f"component {component}"
    if not mean.any():
        raise ValueError(
            f"harmful and harmless prompts are the same on average at position {position} of what enters layer "
            f"{layer}: there is no direction; give sides that differ, or a higher layer"
        )
    return Direction(mean.float(), layer, position, source, opened.name, sides.provenance)
