"""Where does a model look when it reads a jailbreak, and where when it reads a plain request?

After "Jailbreaking Leaves a Trace" (arXiv:2602.11495), whose figure shows log attention of benign and of jailbreak
prompts and their difference, query token against key token, for one layer a model. How its maps were computed is not
stated; here all of it is a parameter (`Grid`), and the defaults are: mean over heads, then over prompts, then the
natural logarithm, floored at e^-10; difference = jailbreak - benign.

`attention_maps` makes the three maps of one layer; `compare_captures` makes them from two captures at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.activations.patterns import checked_heads, checked_layers
from safetyheads.inputs import Inputs, Source, prepare_both
from safetyheads.models.opening import load_model
from safetyheads.probes.attention.capture import Asked, AttentionCapture, captured
from safetyheads.probes.attention.grid import PUBLISHED, Grid, as_grid
from safetyheads.prompts import Segment
from safetyheads.storage.results import load_result, old_record, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Log attention of two sets of prompts in one layer, and its difference; what `plot_attention_maps` draws."""

    benign: Float[Tensor, "query key"]
    """Log attention; NaN where fewer than `min_prompts` have the pair."""
    jailbreak: Float[Tensor, "query key"]
    difference: Float[Tensor, "query key"]
    """jailbreak - benign: positive where the jailbreak prompts attend more; NaN where either is."""
    benign_counts: Int[Tensor, "query key"]
    """How many prompts have the pair."""
    jailbreak_counts: Int[Tensor, "query key"]
    model: str
    layer: int
    heads: tuple[int, ...] | None
    """The heads that were averaged; None for all."""
    names: tuple[str, str]
    """What figures call the two sets."""
    log: str | int
    """Base of the logarithm: "e" or 10."""
    floor: float
    """Attention that is less counts as this much."""
    order: str
    """log_of_mean or mean_of_log, over prompts."""
    min_prompts: int
    benign_segments: tuple[Segment, ...]
    """Typical parts of the prompts, in tokens."""
    jailbreak_segments: tuple[Segment, ...]
    provenance: dict[str, Any]

    @property
    def mask(self) -> Bool[Tensor, "query key"]:
        """The pairs that at least `min_prompts` of both sets have."""
        return (self.benign_counts >= self.min_prompts) & (
            self.jailbreak_counts >= self.min_prompts
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A long table, a row a pair that either set has: query, key, benign, jailbreak, difference and both counts."""
        import pandas

        columns = ("benign", "jailbreak", "difference", "benign_counts", "jailbreak_counts")
        query, key = (~(self.benign.isnan() & self.jailbreak.isnan())).nonzero(as_tuple=True)
        return pandas.DataFrame(
            {"query": query, "key": key} | {c: getattr(self, c)[query, key] for c in columns}
        )

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "AttentionMaps":
        """Read what `save` wrote, in this version or one before.

        Raises FileNotFoundError where there is nothing, ValueError for what is damaged, of another kind or newer.
        """
        return load_result(cls, folder, old_record("maps"))


def attention_maps(
    model: Any,
    benign: Source,
    jailbreak: Source,
    layer: int,
    *,
    grid: Grid = PUBLISHED,
    heads: Sequence[int] | None = None,
    names: tuple[str, str] = ("Benign", "Jailbreak"),
    template: str | None = None,
    progress: bool | None = None,
) -> AttentionMaps:
    """Log attention of benign and of jailbreak prompts in one layer, and the difference jailbreak - benign.

    Arguments:
        model: whatever `load_model` takes.
        benign, jailbreak: whatever `load_prompts` takes, or TokenBatches of the model's tokenizer. Of a benign set
            with harmless prompts these are taken, else its harmful ones.
        layer: the layer, from 0; nothing above it is run.
        grid: tokens on each axis, logarithm, floor, and what is left blank.
        heads: the heads to average; all by default.
        names: what figures call the two sets.
        template: as for `tokenize`.
        progress: whether to show bars; by default where standard error is a terminal.

    Raises ValueError for no prompts or a single one, prompts shorter than the grid (unless `short` is "blank"), a layer
    or head that the model does not have, a layer without attention, or sets of another tokenizer or of two templates.
    """
    grid = as_grid(grid)
    model = load_model(model)
    asked = Asked(checked_layers(model, layer), checked_heads(model, heads))
    plain, attack = prepare_both(model, benign, jailbreak, template=template, names=names)
    for inputs, name in zip((plain, attack), names, strict=True):
        _check_filled(inputs, grid, name)
    captures = (
        captured(plain, asked, grid, requests=plain.texts or None, progress=progress),
        captured(attack, asked, grid, progress=progress),
    )
    return compare_captures(
        *captures,
        layer=layer,
        log=grid.log,
        order=grid.order,
        min_prompts=grid.min_prompts,
        names=names,
    )


def _check_filled(inputs: Inputs, grid: Grid, name: str) -> None:
    lengths, few = inputs.batch.lengths, grid.min_prompts
    filling = int((lengths >= grid.length).sum())
    if grid.short == "error" and filling < few:
        raise ValueError(
            f"{filling} of the {len(lengths)} {name} prompts fill the grid of {grid.length} tokens (they have "
            f"{int(lengths.min())} to {int(lengths.max())}): give longer prompts, "
            f'Grid(length={int(lengths.sort().values[-min(few, len(lengths))])}), or Grid(short="blank") '
            "to leave the rest of the grid blank"
        )


def compare_captures(
    benign: AttentionCapture,
    jailbreak: AttentionCapture,
    *,
    layer: int,
    head: int | None = None,
    log: str | int = "e",
    order: str = "log_of_mean",
    min_prompts: int = 2,
    names: tuple[str, str] = ("Benign", "Jailbreak"),
) -> AttentionMaps:
    """The maps of one layer from two captures; of one `head`, where they kept heads apart.

    Raises ValueError for captures of different models, tokenizers, templates, heads, grids or floors, or without this
    layer or head.
    """
    Grid(log=log, order=order, min_prompts=min_prompts)
    for key in ("model", "tokenizer", "template", "heads", "per_head", "length", "floor"):
        ours, theirs = (capture.provenance[key] for capture in (benign, jailbreak))
        if ours != theirs:
            shown = (ours["name"], theirs["name"]) if key == "model" else (ours, theirs)
            raise ValueError(
                f"the two sets were captured with different {key}: {str(shown[0])[:60]!r} and {str(shown[1])[:60]!r}; "
                "capture both in the same way"
            )
    if layer not in benign.layers or layer not in jailbreak.layers:
        both = sorted(set(benign.layers) & set(jailbreak.layers))
        raise ValueError(f"layer {layer} was not captured in both sets; these were: {both}")
    per_head = benign.provenance["per_head"]
    if per_head != (head is not None) or (head is not None and head not in benign.heads):
        raise ValueError(
            f"head is {head!r}, and the captures "
            + (
                f"kept the heads {list(benign.heads)} apart: name one of them"
                if per_head
                else "averaged their heads: leave it out, or capture with per_head=True"
            )
        )
    at = 0 if head is None else benign.heads.index(head)
    scale = Grid(log=log).scale
    logs, counts = [], []
    for capture in (benign, jailbreak):
        row = capture.layers.index(layer)
        counts.append(capture.counts[row])
        values = (
            capture.mean[row, at].clamp_min(capture.floor).log()
            if order == "log_of_mean"
            else capture.mean_log[row, at]
        )
        logs.append((values / scale).masked_fill(counts[-1] < min_prompts, torch.nan))
    all_heads = len(benign.heads) == benign.provenance["model"]["n_heads"]
    return AttentionMaps(
        benign=logs[0],
        jailbreak=logs[1],
        difference=logs[1] - logs[0],
        benign_counts=counts[0],
        jailbreak_counts=counts[1],
        model=benign.provenance["model"]["name"],
        layer=layer,
        heads=(head,) if head is not None else None if all_heads else benign.heads,
        names=names,
        log=log,
        floor=benign.floor,
        order=order,
        min_prompts=min_prompts,
        benign_segments=benign.segments,
        jailbreak_segments=jailbreak.segments,
        provenance={
            "benign": benign.provenance,
            "jailbreak": jailbreak.provenance,
            "difference": "jailbreak - benign",
        },
    )
