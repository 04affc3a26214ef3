"""What does the residual stream hold on harmful and on harmless prompts, at the end of each prompt?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.activations.states import Kept, capture_states
from safetyheads.inputs import Inputs, prepare
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.prompts import TokenBatch, load_prompts

MOST_POSITIONS = 8
"""Positions of the template's end that are looked at where none are named."""


@dataclass(frozen=True, eq=False)
class Sides:
    """What enters some layers at some positions, on harmful and on harmless prompts."""

    harmful: Float[Tensor, "layer prompt pos d_model"] = field(repr=False)
    harmless: Float[Tensor, "layer other pos d_model"] = field(repr=False)
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    """Counted from the end of each prompt, its template included: -1 is the last token."""
    paired: bool
    """Whether prompt n of both sides belong together."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def at(
        self, position: int, layer: int
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, "other d_model"]]:
        """The states of both sides at one place, by its position and layer."""
        p, n = self.positions.index(position), self.layers.index(layer)
        return self.harmful[n, :, p], self.harmless[n, :, p]

    def mean_differences(self) -> Float[Tensor, "pos layer d_model"]:
        """Mean over the harmful prompts less mean over the harmless ones, in float64."""
        places = [
            [
                self.harmful[n, :, p].double().mean(0) - self.harmless[n, :, p].double().mean(0)
                for n in range(len(self.layers))
            ]
            for p in range(len(self.positions))
        ]
        return torch.stack([torch.stack(row) for row in places])


def read_sides(
    model: Any,
    prompts: Any,
    *,
    layers: Sequence[int] | int | None = None,
    positions: Sequence[int] | int | None = -1,
    template: str | None = None,
    progress: bool | None = None,
) -> Sides:
    """Read both sides of a prompt set in one pass each: all places at once, a few prompts at a time.

    `layers` are all but the first by default: what enters that one is an embedding. `positions` count from the end;
    None stands for the tokens that all prompts end with, which are the template's, at most `MOST_POSITIONS`.

    Memory: 4 bytes for each of prompts x layers x positions x d_model numbers.

    Raises ValueError for a side without prompts, a layer or position that is not there, and what `load_model`,
    `load_prompts` and `tokenize` raise.
    """
    opened, found = load_model(model), load_prompts(prompts)
    sides = [
        prepare(opened, found, side="harmful", template=template),
        prepare(opened, found, side="harmless", template=template),
    ]
    chosen = checked_layers(opened, layers)
    ends = (
        template_end([side.batch for side in sides])
        if positions is None
        else checked_positions(sides, positions)
    )
    states = [_captured(opened, side, chosen, ends, progress) for side in sides]
    about = {
        **sides[0].provenance,
        "prompts": [side.provenance["prompts"] for side in sides],
        "tokens": [side.batch.fingerprint for side in sides],
    }
    return Sides(states[0], states[1], chosen, ends, found.paired, about)


def _captured(
    model: HookedModel,
    side: Inputs,
    layers: tuple[int, ...],
    positions: tuple[int, ...],
    progress: bool | None,
) -> Float[Tensor, "layer prompt pos d_model"]:
    length = -min(positions)
    kept = Kept(layers, ("resid_pre",), length, "end")
    label = f"states, {side.label}"
    states = capture_states(model, side.batch, kept, label=label, progress=progress)[0]
    if not states.isfinite().all():
        raise ValueError(
            f"the residual stream of {model.name} holds numbers that are not finite; load the model in float32"
        )
    if len(positions) == length:
        return states
    return states[:, :, [length + position for position in positions]]


def checked_layers(model: HookedModel, layers: Sequence[int] | int | None) -> tuple[int, ...]:
    """Some layers in order, by default all but the first; ValueError for one that the model lacks."""
    if layers is None:
        layers = range(min(1, model.n_layers - 1), model.n_layers)
    asked = [layers] if isinstance(layers, int) else sorted(set(layers))
    outside = [layer for layer in asked if not 0 <= layer < model.n_layers]
    if outside or not asked:
        raise ValueError(
            f"layers are {list(asked)}; {model.name} has layers 0-{model.n_layers - 1}: name some of them"
        )
    return tuple(asked)


def checked_positions(sides: Sequence[Inputs], positions: Sequence[int] | int) -> tuple[int, ...]:
    """Some positions from the end, in order; ValueError for one that a prompt lacks."""
    asked = [positions] if isinstance(positions, int) else sorted(set(positions))
    shortest = min(int(side.batch.lengths.min()) for side in sides)
    if not asked or asked[0] < -shortest or asked[-1] >= 0:
        raise ValueError(
            f"positions are {list(asked)}; they count from each prompt's end, -1 for its last token, and the shortest "
            f"prompt has {shortest}: give some of -{shortest} to -1"
        )
    return tuple(asked)


def template_end(batches: Sequence[TokenBatch]) -> tuple[int, ...]:
    """The positions, from the end, of the tokens that all prompts end with: at least the last, at most 8."""
    rows = [
        row[:length]
        for batch in batches
        for row, length in zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
    ]
    shared = 0
    while (
        shared < min(MOST_POSITIONS, *map(len, rows))
        and len({row[-1 - shared] for row in rows}) == 1
    ):
        shared += 1
    return tuple(range(-max(shared, 1), 0))
