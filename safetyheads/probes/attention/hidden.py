"""How long is the residual stream at each layer and token? The companion of the attention maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.activations.patterns import passes
from safetyheads.inputs import Inputs, Source, prepare_both
from safetyheads.models.blocks import Blocks
from safetyheads.models.watching import watch_states
from safetyheads.probes.attention.capture import segments_of
from safetyheads.probes.attention.grid import PUBLISHED, Grid, as_grid
from safetyheads.prompts import Segment
from safetyheads.storage.results import load_result, save_result


@dataclass(frozen=True, eq=False)
class HiddenMagnitudes:
    """Log length of the residual stream of two sets of prompts, and its difference; row 0 is the embedding."""

    benign: Float[Tensor, "layer pos"]
    """Mean over prompts of the logarithm of the Euclidean norm; NaN where too few have the position."""
    jailbreak: Float[Tensor, "layer pos"]
    difference: Float[Tensor, "layer pos"]
    """jailbreak - benign."""
    model: str
    names: tuple[str, str]
    log: str | int
    benign_segments: tuple[Segment, ...]
    jailbreak_segments: tuple[Segment, ...]
    provenance: dict[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HiddenMagnitudes":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


@torch.inference_mode()
def hidden_magnitudes(
    model: Any,
    benign: Source,
    jailbreak: Source,
    *,
    grid: Grid = PUBLISHED,
    names: tuple[str, str] = ("Benign", "Jailbreak"),
    template: str | None = None,
    progress: bool | None = None,
) -> HiddenMagnitudes:
    """The magnitude of the residual stream after each layer at each token: the companion of the attention maps.

    The states are those before the final norm; layer 0 is the embedding. Arguments and errors are those of
    `attention_maps`; of `grid` the length, the logarithm and `min_prompts` count, and positions that too few prompts
    reach are blank.
    """
    grid = as_grid(grid)
    plain, attack = prepare_both(model, benign, jailbreak, template=template, names=names)
    means = [_magnitudes(inputs, grid, progress) for inputs in (plain, attack)]
    return HiddenMagnitudes(
        benign=means[0],
        jailbreak=means[1],
        difference=means[1] - means[0],
        model=plain.model.name,
        names=names,
        log=grid.log,
        benign_segments=segments_of(plain, grid.length, plain.texts),
        jailbreak_segments=segments_of(attack, grid.length),
        provenance={
            "benign": plain.provenance,
            "jailbreak": attack.provenance,
            "length": grid.length,
            "min_prompts": grid.min_prompts,
            "difference": "jailbreak - benign",
        },
    )


def _magnitudes(inputs: Inputs, grid: Grid, progress: bool | None) -> Float[Tensor, "layer pos"]:
    """The mean over prompts of the logarithm of each state's length, NaN where too few prompts have the position."""
    model = inputs.model
    total = torch.zeros(model.n_layers + 1, grid.length)
    counts = torch.zeros(grid.length)
    for _, rows, lengths in passes(model, inputs.batch, grid.length, "hidden states", progress):
        real = torch.arange(rows.shape[1]) < lengths[:, None]

        def add(layer: int, states: Tensor, real: Tensor = real) -> None:
            norms = states.float().norm(dim=-1).cpu().clamp_min(1e-30).log() / grid.scale
            total[layer, : real.shape[1]] += (norms * real).sum(0)

        def read(name: str, layer: int, states: Tensor, _start: int, add: Any = add) -> None:
            if name == "resid_post":
                add(layer + 1, states)

        add(0, Blocks(model).embed(rows))
        watch_states(model, rows, range(model.n_layers), read)
        counts[: real.shape[1]] += real.sum(0)
    return (total / counts).masked_fill(counts < grid.min_prompts, torch.nan)
