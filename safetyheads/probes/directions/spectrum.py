"""Along how many directions do a model's states on harmful prompts differ from those on harmless ones?

Abbas et al., "Latent Adversarial Training Improves the Representation of Refusal" (arXiv:2504.18872): the singular
value decomposition of harmful-minus-harmless states at the last token, pair by pair. Their "explained variance" is
s^2 / sum s^2 of the differences **as they are**, not centred, as in their code: the first component is then the mean
difference, and no variance in the usual sense. Here the centred one stands beside it, and both without the few
dimensions of massive activations, which in the authors' own states of the adversarially trained model hold up to 55 %
of the sum of squares.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.models.opening import load_model, random_copy
from safetyheads.probes.directions.decomposition import (
    VERSIONS,
    Decomposed,
    Place,
    Spread,
    decompose,
    leading_plane,
    mean_share,
    participation,
    shares,
    spread_of,
)
from safetyheads.probes.directions.sides import Sides, read_sides
from safetyheads.progress import bar
from safetyheads.prompts import load_prompts
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

COMPONENTS = 10
OUTLIERS = 2


@dataclass(frozen=True)
class Resampling:
    """How often something is drawn anew, and from which seed.

    Raises ValueError for fewer than two draws.
    """

    count: int = 100
    """Draws for each interval and each band."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(
                f"count is {self.count}; an interval needs at least 2 draws, better 100"
            )


RESAMPLING = Resampling()


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The decomposed differences at some layers and positions of a model, with what chance and luck would give.

    The axis `version` is in the order of `VERSIONS`: uncentred, centred, and both without the outlier dimensions.
    """

    layers: tuple[int, ...]
    """What enters these layers."""
    positions: tuple[int, ...]
    """Counted from the end of each prompt; -1 is its last token."""
    values: Float[Tensor, "version pos layer rank"]
    """All singular values."""
    left: Float[Tensor, "version pos layer pair component"]
    """How much each pair has of each component."""
    right: Float[Tensor, "version pos layer component d_model"]
    """The components: orthonormal directions, along the mean difference rather than against it."""
    mean_difference: Float[Tensor, "pos layer d_model"]
    """Mean of the pairs' differences."""
    explained: Float[Tensor, "version pos layer component"]
    """Share of the sum of squares."""
    low: Float[Tensor, "version pos layer component"]
    """Lower end of the 95 % bootstrap interval over pairs."""
    high: Float[Tensor, "version pos layer component"]
    """Upper end."""
    repaired: Float[Tensor, "version pos layer component"]
    """Standard deviation of the share over new pairings of the same prompts."""
    chance: Float[Tensor, "version pos layer component"]
    """What 95 % of random relabellings of all prompts stay below."""
    mean_share: Float[Tensor, "trimmed pos layer"]
    """Share of the sum of squares along the mean difference, with the outlier dimensions and without."""
    mean_chance: Float[Tensor, "trimmed pos layer"]
    """What 95 % of random relabellings stay below there."""
    random: Float[Tensor, "version pos layer component"] | None
    """The share in a copy of the model with random weights; None if it was not asked for."""
    outliers: Int[Tensor, "pos layer outlier"]
    """The dimensions whose states have the largest mean square, which the trimmed versions lack."""
    outlier_share: Float[Tensor, "pos layer"]
    """The share of the differences' sum of squares in these dimensions."""
    plane: Float[Tensor, "pos layer prompt axis"]
    """Coordinates of all prompts, harmful ones first, on the first two principal components of their states."""
    plane_explained: Float[Tensor, "pos layer axis"]
    """Share of the states' variance along these."""
    n_prompts: tuple[int, int]
    """Harmful and harmless."""
    paired: bool
    """Whether the set pairs its prompts; else the n-th harmful one was taken with the n-th harmless one."""
    model: str
    """Name of the model."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the numbers."""

    def __repr__(self) -> str:
        return (
            f"Spectrum({self.model}: {self.n_pairs} pairs, layers {self.layers[0]}-{self.layers[-1]}, "
            f"positions {', '.join(map(str, self.positions))}, {self.explained.shape[-1]} components)"
        )

    @property
    def n_pairs(self) -> int:
        """Pairs of a harmful and a harmless prompt."""
        return min(self.n_prompts)

    def directions(
        self, layer: int, position: int = -1, version: str = VERSIONS[0]
    ) -> Float[Tensor, "component d_model"]:
        """The components at one place, unit vectors.

        Raises ValueError for a place or a version that is not there.
        """
        if version not in VERSIONS:
            raise ValueError(f"version is {version!r}; it must be one of {', '.join(VERSIONS)}")
        if layer not in self.layers or position not in self.positions:
            raise ValueError(
                f"there is no layer {layer}, position {position} in this spectrum: it has the layers "
                f"{', '.join(map(str, self.layers))} and the positions {', '.join(map(str, self.positions))}"
            )
        where = self.positions.index(position), self.layers.index(layer)
        return self.right[VERSIONS.index(version)][where]

    @property
    def cosines(self) -> Float[Tensor, "version pos layer component"]:
        """Of every component with the mean difference."""
        unit = torch.nn.functional.normalize(self.mean_difference.double(), dim=-1)
        return (self.right.double() * unit[None, :, :, None]).sum(-1)

    def to_frame(self) -> "pandas.DataFrame":
        """A row a version, place and component.

        Columns model, version, position, layer, component (from 1), singular_value, explained, low, high, repaired,
        chance, random, cosine (with the mean difference), participation_left (of pairs), participation_right (of
        dimensions), mean_share, mean_chance, outlier_share, n (pairs). Shares and cosines are in 1; `random` is NaN
        where there was no copy.
        """
        import pandas

        shape = self.explained.shape
        axes: tuple[Sequence[Any], ...]
        axes = (VERSIONS, self.positions, self.layers, range(1, shape[-1] + 1))
        index = pandas.MultiIndex.from_product(
            axes, names=["version", "position", "layer", "component"]
        )
        random = self.random if self.random is not None else torch.full(shape, torch.nan)
        columns = {
            "singular_value": self.values[..., : shape[-1]],
            "explained": self.explained,
            "low": self.low,
            "high": self.high,
            "repaired": self.repaired,
            "chance": self.chance,
            "random": random,
            "cosine": self.cosines,
            "participation_left": participation(self.left.mT),
            "participation_right": participation(self.right),
            "mean_share": self.mean_share[[0, 0, 1, 1], ..., None].expand(shape),
            "mean_chance": self.mean_chance[[0, 0, 1, 1], ..., None].expand(shape),
            "outlier_share": self.outlier_share[None, :, :, None].expand(shape),
        }
        table = pandas.DataFrame(
            {name: v.double().flatten().numpy() for name, v in columns.items()}, index
        ).reset_index()
        table.insert(0, "model", self.model)
        table["n"] = self.n_pairs
        return table

    def points(self) -> "pandas.DataFrame":
        """A row a prompt and place: model, position, layer, side, prompt, x, y, x_explained, y_explained.

        `x` and `y` are coordinates on the first two principal components of the states of both sides.
        """
        import pandas

        sides = ["harmful"] * self.n_prompts[0] + ["harmless"] * self.n_prompts[1]
        numbers = [*range(self.n_prompts[0]), *range(self.n_prompts[1])]
        parts = []
        for p, position in enumerate(self.positions):
            for n, layer in enumerate(self.layers):
                x, y = self.plane[p, n].T.tolist()
                table = pandas.DataFrame({"side": sides, "prompt": numbers, "x": x, "y": y})
                table["x_explained"], table["y_explained"] = self.plane_explained[p, n].tolist()
                parts.append(table.assign(model=self.model, position=position, layer=layer))
        return pandas.concat(parts, ignore_index=True)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Spectrum":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


class _Looked(NamedTuple):
    """What is found at one place."""

    found: tuple[Decomposed, ...]
    explained: Float[Tensor, "version component"]
    spread: Spread
    plane: tuple[Tensor, Tensor]
    mean: Float[Tensor, " d_model"]
    mean_share: Float[Tensor, " trimmed"]
    outliers: Int[Tensor, " outlier"]
    outlier_share: Tensor


def refusal_spectrum(
    model: Any,
    prompts: Any,
    *,
    layers: Sequence[int] | int | None = None,
    position: Sequence[int] | int = -1,
    components: int = COMPONENTS,
    n_outliers: int = OUTLIERS,
    resampling: Resampling = RESAMPLING,
    random_weights: bool = True,
    template: str | None = None,
    progress: bool | None = None,
) -> Spectrum:
    """Decompose the differences between a model's states on harmful and on harmless prompts, at every layer.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take; the set needs both sides, whose n-th
    prompts are a pair. `layers` are all but the first by default, `position` counts from the prompt's end (-1, the
    last token of the template, is the paper's). `components` are kept of each decomposition. `n_outliers` dimensions,
    those whose states have the largest mean square, are left out of the trimmed versions. `resampling` says how many
    draws an interval or a band has. `random_weights` looks at a copy of the model with random weights too, as long
    again as the model itself.

    Raises ValueError for fewer pairs than components, sides that do not differ, a layer or position that is not there,
    and what `load_model` and `load_prompts` raise.
    """
    opened, found = load_model(model), load_prompts(prompts)
    asked: dict[str, Any] = {"positions": position, "template": template, "progress": progress}
    if found.harmless:
        pairs = min(len(found.harmful), len(found.harmless))
        _require(pairs, components, n_outliers, opened.d_model)
    sides = read_sides(opened, found, layers=layers, **asked)
    made = spectrum_of(
        sides,
        components=components,
        n_outliers=n_outliers,
        resampling=resampling,
        progress=progress,
    )
    layers = sides.layers
    del sides
    random = None
    if random_weights:
        control = read_sides(random_copy(opened, resampling.seed), found, layers=layers, **asked)
        random = _shares_of(control, components, n_outliers)
    return replace(made, random=random, model=opened.name)


def spectrum_of(
    sides: Sides,
    *,
    components: int = COMPONENTS,
    n_outliers: int = OUTLIERS,
    resampling: Resampling = RESAMPLING,
    progress: bool | None = None,
) -> Spectrum:
    """What `refusal_spectrum` finds on states that are there already, without the copy of random weights.

    One layer and position is looked at at a time, in float64; beside the states it takes about 16 bytes for each of
    (harmful + harmless prompts) x d_model numbers.

    Raises ValueError as `refusal_spectrum` does.
    """
    counts = sides.harmful.shape[1], sides.harmless.shape[1]
    _require(min(counts), components, n_outliers, sides.harmful.shape[-1])
    rows = []
    total = len(sides.positions) * len(sides.layers)
    with bar(total, "spectrum", "place", progress) as shown:
        for position in sides.positions:
            for layer in sides.layers:
                place = Place.of(*sides.at(position, layer), n_outliers)
                _require_difference(place, position, layer)
                rows.append(_look(place, components, resampling))
                shown.update()
    grid = len(sides.positions), len(sides.layers)

    def over_places(values: list[Tensor]) -> Tensor:
        """[pos, layer, ...] of one value a place."""
        return torch.stack(values).unflatten(0, grid).float()

    def over_versions(values: list[Tensor]) -> Tensor:
        """[version, pos, layer, ...] of one [version, ...] a place."""
        return over_places(values).movedim(2, 0).contiguous()

    def decomposed(name: str) -> Tensor:
        return over_versions(
            [torch.stack([getattr(one, name) for one in row.found]) for row in rows]
        )

    return Spectrum(
        layers=sides.layers,
        positions=sides.positions,
        values=decomposed("values"),
        left=decomposed("left"),
        right=decomposed("right"),
        mean_difference=over_places([row.mean for row in rows]),
        explained=over_versions([row.explained for row in rows]),
        low=over_versions([row.spread.low for row in rows]),
        high=over_versions([row.spread.high for row in rows]),
        repaired=over_versions([row.spread.repaired for row in rows]),
        chance=over_versions([row.spread.chance for row in rows]),
        mean_share=over_versions([row.mean_share for row in rows]),
        mean_chance=over_versions([row.spread.mean_chance for row in rows]),
        random=None,
        outliers=torch.stack([row.outliers for row in rows]).unflatten(0, grid),
        outlier_share=over_places([row.outlier_share for row in rows]),
        plane=over_places([row.plane[0] for row in rows]),
        plane_explained=over_places([row.plane[1] for row in rows]),
        n_prompts=counts,
        paired=sides.paired,
        model=str(sides.provenance.get("model", {}).get("name", "")),
        provenance={
            **sides.provenance,
            "spectrum": {
                "components": components,
                "n_outliers": n_outliers,
                **asdict(resampling),
            },
        },
    )


def _look(place: Place, components: int, resampling: Resampling) -> _Looked:
    differences = place.differences(VERSIONS[0])
    squares, mean = differences.square().sum(0), differences.mean(0)
    del differences  # of a thousand pairs, each of these is large: one at a time
    found = tuple(decompose(place.differences(version), components) for version in VERSIONS)
    spread = spread_of(place, components, resampling.count, resampling.seed)
    grams = place.grams()
    return _Looked(
        found=found,
        explained=shares(grams, *place.pairs, components),
        spread=spread,
        plane=leading_plane(grams[0]),
        mean=mean,
        mean_share=mean_share(grams, *place.pairs),
        outliers=place.outliers,
        outlier_share=squares[place.outliers].sum() / squares.sum(),
    )


def _shares_of(
    sides: Sides, components: int, n_outliers: int
) -> Float[Tensor, "version pos layer component"]:
    """The explained shares alone."""
    found = []
    for position in sides.positions:
        for layer in sides.layers:
            place = Place.of(*sides.at(position, layer), n_outliers)
            found.append(shares(place.grams(), *place.pairs, components))
    grid = len(sides.positions), len(sides.layers)
    return torch.stack(found).unflatten(0, grid).float().movedim(2, 0).contiguous()


def _require(pairs: int, components: int, n_outliers: int, d_model: int) -> None:
    if components < 1 or pairs <= components:
        raise ValueError(
            f"{components} components were asked for and there are {pairs} pairs of a harmful and a harmless prompt, "
            f"which span {max(pairs - 1, 0)} directions about their mean; give more pairs, or lower components"
        )
    if not 0 < n_outliers < d_model - components:
        raise ValueError(
            f"n_outliers is {n_outliers}; of {d_model} dimensions leave out at least 1, and fewer than "
            f"{d_model - components}"
        )


def _require_difference(place: Place, position: int, layer: int) -> None:
    if not place.differences(VERSIONS[0]).any():
        raise ValueError(
            f"harmful and harmless prompts are the same at position {position} of what enters layer {layer}: either "
            "both sides hold the same prompts, or every prompt has the same token there and the layer has not looked "
            "at the others yet; give sides that differ, or a higher layer"
        )
