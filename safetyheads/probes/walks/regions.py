"""Are there regions of activation space in which the output hardly moves, and did training make them?

Sharpness and width of a model's walks, always beside those of a copy with random weights (Janiak et al.,
arXiv:2409.17113): a straight line has sharpness 1 and width 0.8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.walk import STEPS_A_ROW, prepare_walk
from safetyheads.inputs import Source, prepare
from safetyheads.interventions.paths import Step
from safetyheads.models.opening import load_model, random_copy
from safetyheads.probes.walks.readings import Reading, as_reading
from safetyheads.probes.walks.sensitivity import (
    Sensitivity,
    require_layer,
    states_at,
    trace_sensitivity,
)
from safetyheads.progress import bar
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

MEASURES = ("sharpness", "width", "max_slope_at", "plateau", "area", "exponent")


@dataclass(frozen=True, eq=False)
class StableRegions:
    """The walks of a model, and those of its copy with random weights on the same prompts."""

    trained: Sensitivity
    random: Sensitivity
    parameters: int
    """Of the model, embeddings included."""

    def table(self, **columns: Any) -> "pandas.DataFrame":
        """A row a model, with median and quartiles of every measure; `columns` are added to both."""
        import pandas

        rows = []
        for weights, walks in (("trained", self.trained), ("random", self.random)):
            row: dict[str, Any] = {"model": self.trained.model, "weights": weights}
            for name in MEASURES:
                q = walks.quartiles(name)
                row |= {name: q.median, f"{name}_low": q.low, f"{name}_high": q.high}
            counts = {"walks": len(walks.why_invalid), "invalid": int(walks.invalid.sum())}
            row |= {**counts, "steps": walks.n_steps, "layer": walks.layer, "read": walks.read}
            rows.append(row | {"parameters": self.parameters, **columns})
        return pandas.DataFrame(rows)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "StableRegions":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def stable_regions(model: Any, prompts: Source, *, seed: int = 0, **walk: Any) -> StableRegions:
    """Walk between consecutive prompts in a model and in its copy with random weights.

    Arguments:
        model: whatever `load_model` takes.
        prompts: as for `trace_sensitivity`; `text_windows` gives pieces of running text of one length.
        seed: of the copy's weights.
        walk: what else `trace_sensitivity` takes.

    Raises what `trace_sensitivity` raises.
    """
    opened = load_model(model)
    trained = trace_sensitivity(opened, prompts, **walk)
    random = trace_sensitivity(random_copy(opened, seed), prompts, **walk)
    distinct = {id(p): p.numel() for p in opened.hf.parameters()}
    return StableRegions(trained, random, sum(distinct.values()))


@dataclass(frozen=True, eq=False)
class RegionSlice:
    """A plane through three prompts' activations, and how far the output is from each of theirs at every point of it.

    X(alpha, beta) = A + alpha (B - A) + beta (C - P), P the point of the line AB nearest to C.
    """

    distances: Float[Tensor, "anchor beta alpha"]
    """From each anchor's own output, in its own context, over the largest of the plane: 0 to 1."""
    alphas: Float[Tensor, " alpha"]
    betas: Float[Tensor, " beta"]
    corner: float
    """alpha of the third anchor, whose beta is 1."""
    layer: int
    read: str
    model: str
    provenance: dict[str, Any]

    @property
    def colours(self) -> Float[Tensor, "beta alpha colour"]:
        """Red, green and blue: how near the output is to the first, the second and the third anchor's."""
        return (1 - self.distances).permute(1, 2, 0)

    @property
    def borders(self) -> Float[Tensor, "beta alpha"]:
        """How fast the output changes there: the length of the gradient of all three distances, per unit of the
        plane."""
        step_b, step_a = (float(axis[1] - axis[0]) for axis in (self.betas, self.alphas))
        slopes = torch.gradient(self.distances, spacing=(step_b, step_a), dim=(1, 2))
        return torch.stack(slopes).square().sum((0, 1)).sqrt()

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "RegionSlice":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


@torch.inference_mode()
def slice_regions(
    model: Any,
    prompts: Source,
    *,
    points: int = 40,
    margin: float = 0.25,
    layer: int = 1,
    read: Reading | str | int = "post_norm",
    template: str | None = None,
    progress: bool | None = None,
) -> RegionSlice:
    """Read the output on a plane through three prompts' activations.

    `points` are on each side of the grid, from -`margin` to 1 + `margin`. Each anchor's distances are measured in its
    own context: its prompt, with the plane's point in the place of its last token. Other arguments are
    `trace_sensitivity`'s.

    Raises ValueError for other than three prompts, activations on one line, and what `trace_sensitivity` raises.
    """
    inputs = prepare(model, prompts, template=template)
    opened, batch, reading = inputs.model, inputs.batch, as_reading(read)
    if len(batch) != 3 or not isinstance(points, Integral) or points < 2:
        raise ValueError(
            f"{len(batch)} prompts and {points} points a side came; a plane goes through 3, with 2 points or more"
        )
    require_layer(layer, opened)
    a, b, c = states_at(opened, batch, layer).double()
    line = b - a
    corner = float((line @ (c - a)) / line.square().sum())
    aside = c - a - corner * line
    if not aside.norm() > 1e-6 * (c - a).norm():
        raise ValueError(
            "the three activations lie on one line, or two of them are the same: no plane is theirs; give others"
        )
    axis = torch.linspace(-margin, 1 + margin, points, dtype=torch.float64)
    plane = a + axis[None, :, None] * line + axis[:, None, None] * aside
    anchors = torch.stack([a, b, c])
    steps = [Step(layer, anchors.float(), 0.0)]
    steps += [Step(layer, x.float().expand(3, -1), 1.0) for x in plane.flatten(0, 1)]
    walk = prepare_walk(opened, batch, steps, reading.layer(opened))
    distances = torch.zeros(3, points, points)
    with bar(3 * len(steps), f"slice, {inputs.label}", "point", progress) as shown:
        for prompt in range(3):
            parts = []
            for begin in range(0, len(steps), STEPS_A_ROW):  # so that the bar moves
                some = steps[begin : begin + STEPS_A_ROW]
                parts.append(next(walk.of(prompt, some).run()).states[0])
                shown.update(len(some))
            own = torch.cat(parts)
            found = reading.between(opened, own[1:], own[0]).float().cpu()
            distances[prompt] = (found / found.max()).view(points, points)
    return RegionSlice(
        distances,
        axis.float(),
        axis.float(),
        corner,
        layer,
        reading.name,
        opened.name,
        {**inputs.provenance, "layer": layer, "read": reading.name, "points": points},
    )


def regions_table(regions: Mapping[Any, StableRegions], column: str) -> "pandas.DataFrame":
    """The tables of several models under each other; `column` gets the keys, such as tokens seen in training."""
    import pandas

    tables: Sequence[pandas.DataFrame] = [r.table(**{column: key}) for key, r in regions.items()]
    return pandas.concat(tables, ignore_index=True)
