"""How does the output change along a way through activation space?

A path leads from one activation to another, at one layer and at each prompt's last token; what stands there is replaced
by a point of the path, and the model goes on from it (Janiak et al., "Characterizing stable regions in the residual
stream of LLMs", arXiv:2409.17113, interpolate so). Each step is a variant of its own.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
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

    @property
    def layer(self) -> int:
        """What enters this layer is walked in."""
        ...

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
        _require_ends(self.start, self.end)

    def steps(self, count: int) -> list[Step]:
        """Points at equal distances, both ends among them; ValueError for fewer than two."""
        return [
            Step(self.layer, torch.lerp(self.start, self.end, share), share)
            for share in _shares(count)
        ]


@dataclass(frozen=True, eq=False)
class FixedSteps:
    """From one activation straight toward another in steps of one size, so that all prompts go equally far.

    X(n) = A + n s (B - A) / |B - A|, the absolute steps of Giglemiani et al. (arXiv:2409.15019), whose size is 0.5 in
    GPT-2: the size belongs to a model's own scale. The last step may lie before B or beyond it.

    Raises ValueError for ends of different shape or a size that is not positive.
    """

    layer: int
    """What enters this layer is walked in."""
    start: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Where each prompt begins, in the order of the batch."""
    end: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Toward what it goes; where that is the start itself, the points are no numbers."""
    size: float
    """How long a step is, in the units of the residual stream."""

    def __post_init__(self) -> None:
        _require_ends(self.start, self.end)
        if not self.size > 0:
            raise ValueError(f"size is {self.size}; a step has a positive length")

    def steps(self, count: int) -> list[Step]:
        """The start and `count` - 1 steps of the size; ValueError for fewer than two."""
        ahead = self.end - self.start
        unit = ahead / ahead.norm(dim=-1, keepdim=True)
        return [
            Step(self.layer, self.start + round(share * (count - 1)) * self.size * unit, share)
            for share in _shares(count)
        ]


@dataclass(frozen=True, eq=False)
class Arc:
    """From one activation to another along the sphere: the direction turns evenly, the norm changes evenly.

    Both are taken from a centre, by default the origin. A straight line between two activations of about one norm is
    shorter than both on its way, and a norm before the next block undoes that; an arc asks for the direction alone.

    Raises ValueError for ends of different shape, and for ends that lie opposite each other, where no way is shortest.
    """

    layer: int
    """What enters this layer is walked in."""
    start: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Where each prompt begins, in the order of the batch."""
    end: Float[Tensor, "prompt d_model"] = field(repr=False)
    """Where it ends."""
    centre: Float[Tensor, " d_model"] | None = field(default=None, repr=False)
    """From where directions and norms are taken; None: the origin."""

    def __post_init__(self) -> None:
        _require_ends(self.start, self.end)
        (first, last), _ = self._directions()
        if ((first + last).norm(dim=-1) < 1e-6).any():
            raise ValueError(
                "an arc's ends lie opposite each other from its centre, and no way between them is shortest; take a "
                "straight line, or another centre"
            )

    def _directions(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Units and norms of both ends, from the centre, in float64."""
        ends = [end.double() - self._centre for end in (self.start, self.end)]
        norms = [end.norm(dim=-1, keepdim=True) for end in ends]
        units = [end / norm.clamp_min(1e-300) for end, norm in zip(ends, norms, strict=True)]
        return (units[0], units[1]), (norms[0], norms[1])

    @property
    def _centre(self) -> Tensor:
        return torch.zeros(()) if self.centre is None else self.centre.double()

    def steps(self, count: int) -> list[Step]:
        """Points at equal angles, both ends among them; ValueError for fewer than two."""
        (first, last), (short, long) = self._directions()
        angle = 2 * torch.asin(((first - last).norm(dim=-1, keepdim=True) / 2).clamp(max=1.0))
        made = []
        for share in _shares(count):
            # For ends in one direction both weights tend to those of a straight line.
            near, far = (
                torch.where(angle > 1e-6, torch.sin(s * angle) / torch.sin(angle), torch.tensor(s))
                for s in (1 - share, share)
            )
            turned = torch.lerp(short, long, share) * (near * first + far * last)
            points = (self._centre + turned).to(self.start.dtype)
            ends = {0.0: self.start, 1.0: self.end}
            made.append(Step(self.layer, ends.get(share, points), share))
        return made


def _shares(count: int) -> list[float]:
    if not isinstance(count, Integral) or count < 2:
        raise ValueError(
            f"count is {count!r}; a line has two ends, so give a whole number of steps, at least 2"
        )
    shares: list[float] = torch.linspace(0.0, 1.0, count, dtype=torch.float64).tolist()
    return shares


def _require_ends(start: Tensor, end: Tensor) -> None:
    if start.shape != end.shape or start.ndim != 2:
        raise ValueError(
            f"a line leads from {list(start.shape)} to {list(end.shape)}; give both ends as [prompt, d_model]"
        )
