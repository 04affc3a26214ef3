"""How does the output change along a way through activation space?

A path leads from one activation to another, at one layer and at each prompt's last token; what stands there is replaced
by a point of the path, and the model goes on from it (Janiak et al., "Characterizing stable regions in the residual
stream of LLMs", arXiv:2409.17113, interpolate so). Each step is a variant of its own.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import Head
from safetyheads.interventions.site import Site, Start, digest, edited
from safetyheads.models.streams import StreamEdit


@dataclass(frozen=True, eq=False)
class Step:
    """A point in activation space, put in the place of what enters a layer at each prompt's last token."""

    layer: int
    points: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Where each prompt of the batch stands, in the order of the batch."""
    share: float
    """How far along the path this is, 0 to 1."""

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
        return f"a step of {self.share:.3g} at layer {self.layer}"

    def describe(self) -> dict[str, Any]:
        return {"step": digest(self.points), "layer": self.layer}

    def _at(self, site: Site) -> Float[Tensor, "prompt d_model"]:
        if self.points.shape[1] != site.model.d_model or len(self.points) <= max(site.prompts):
            raise ValueError(
                f"the points of the path have shape {list(self.points.shape)}; {site.model.name} takes "
                f"[prompts, {site.model.d_model}], a point for each prompt of the batch"
            )
        return self.points[list(site.prompts)].to(site.resid)

    def start(self, site: Site) -> Start:
        resid = site.resid.clone()
        resid[torch.arange(len(resid), device=resid.device), site.lengths - 1] = self._at(site)
        return Start(resid)

    def in_flight(self, site: Site) -> Start:
        points = self._at(site)
        edit = StreamEdit(self.layer, "resid_pre", lambda _: points, last=True)
        return Start(site.resid, stream_edits=(edit,))

    @contextlib.contextmanager
    def plainly(self, site: Site) -> Iterator[None]:
        with edited(site, self.in_flight(site)):
            yield


@runtime_checkable
class Path(Protocol):
    """A way through activation space."""

    def steps(self, count: int) -> list[Step]:
        """Points along it, both ends among them."""
        ...


@dataclass(frozen=True, eq=False)
class StraightLine:
    """From one activation to another in a straight line.

    Raises ValueError for ends of different shape.
    """

    layer: int
    """What enters this layer is walked in."""
    start: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Where each prompt begins, in the order of the batch."""
    end: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Where it ends."""

    def __post_init__(self) -> None:
        if self.start.shape != self.end.shape or self.start.ndim != 2:
            raise ValueError(
                f"a line leads from {list(self.start.shape)} to {list(self.end.shape)}; give both ends as [prompt, "
                "d_model]"
            )

    def steps(self, count: int) -> list[Step]:
        """Points at equal distances, both ends among them; ValueError for fewer than two."""
        if count < 2:
            raise ValueError(f"count is {count}; a line has two ends, so at least 2 steps")
        shares = torch.linspace(0.0, 1.0, count, dtype=torch.float64).tolist()
        return [
            Step(self.layer, torch.lerp(self.start, self.end, share), share) for share in shares
        ]
