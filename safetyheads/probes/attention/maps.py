"""Where does a model look when it reads a jailbreak, and where when it reads a plain request?

After "Jailbreaking Leaves a Trace" (arXiv:2602.11495), whose figure shows log attention of benign and of jailbreak
prompts and their difference, query token against key token, for one layer a model. How its maps were computed is not
stated; here all of it is a parameter, and the defaults are: mean over heads, then over prompts, then the natural
logarithm, floored at e^-10; difference = jailbreak - benign.

1. `capture_attention` runs the prompts up to the highest layer asked for and keeps running sums of the patterns.
2. `attention_maps` makes the three maps of one layer from the captures of two sets.
3. `hidden_magnitudes` makes the companion: how long the residual stream is, by layer and token.

Attention is causal: what a token sees does not depend on what follows, so cutting a prompt changes nothing before it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.activations.patterns import (
    Source,
    checked_heads,
    checked_layers,
    describe_tokenizer,
    each_pattern,
    passes,
    tokenized,
    two_sets,
)
from safetyheads.models.hooked import HookedModel, load_model
from safetyheads.prompts import Segment, TokenBatch, find_segments, typical_segments
from safetyheads.storage.files import writable_folder, write_whole

if TYPE_CHECKING:
    import pandas

LENGTH = 512
"""Tokens on each axis of a map, as in the published figure."""
FLOORS = {"e": math.exp(-10.0), 10: 1e-10}
"""The least attention that a map shows, by the base of its logarithm: -10 at the lower end of the colour bar."""


# --- capture ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttentionCapture:
    """Attention of some layers, its mean and spread over prompts; NaN where no prompt has the pair of tokens."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    """The heads that were looked at."""
    mean: Float[Tensor, "layer head query key"]
    """Mean over prompts; the head axis has one entry where heads were averaged [1]."""
    mean_log: Float[Tensor, "layer head query key"]
    """Mean over prompts of the natural logarithm, taken after averaging heads, if they were [nat]."""
    variance: Float[Tensor, "layer head query key"]
    """Unbiased variance over prompts; NaN for a single prompt."""
    counts: Int[Tensor, "layer query key"]
    """How many prompts have the pair: 0 above the diagonal and outside a sliding window."""
    floor: float
    """What is less counts as this much, in `mean_log`."""
    lengths: Int[Tensor, " prompt"]
    """Tokens of each prompt before it was cut to the grid."""
    segments: tuple[Segment, ...]
    """Typical parts of the prompts, cut to the grid."""
    provenance: dict[str, Any]
    """What determines the numbers."""


@torch.inference_mode()
def capture_attention(
    model: Any,
    prompts: Source,
    *,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    per_head: bool = False,
    length: int = LENGTH,
    floor: float = FLOORS["e"],
    template: str | None = None,
    side: str | None = None,
    progress: bool | None = None,
) -> AttentionCapture:
    """Run prompts up to the highest layer asked for and keep mean, mean logarithm and variance of the attention.

    Patterns are added up as they come and never stacked: memory holds four maps a layer asked for (and head, with
    `per_head`) and one batch, whatever the number of prompts.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take, or a TokenBatch of the model's own
    tokenizer; `side` says which prompts of a set ("harmful", the default, or "harmless"). `layers` are all by default.
    `heads` restricts to some; they are averaged unless `per_head`. Prompts are cut after `length` tokens. `template` is
    as for `tokenize`.

    Raises ValueError for layers or heads that the model does not have, a layer without attention, no prompts, prompts
    that exceed the model's context, or a TokenBatch of another tokenizer.
    """
    model = load_model(model)
    texts, batch = tokenized(model, prompts, template, side or "harmful")
    return _capture(model, texts, batch, layers, heads, per_head, length, floor, None, progress)


def _capture(
    model: HookedModel,
    texts: Sequence[str],
    batch: TokenBatch,
    layers: int | Sequence[int] | None,
    heads: Sequence[int] | None,
    per_head: bool,
    length: int,
    floor: float,
    requests: Sequence[str] | None,
    progress: bool | None,
) -> AttentionCapture:
    asked = checked_layers(model, layers)
    kept_heads = checked_heads(model, heads)
    if length < 2:
        raise ValueError(f"length is {length}; a map needs at least 2 tokens on its axes")
    if not 0 < floor < 1:
        raise ValueError(f"floor is {floor}; it is an attention weight above 0 and below 1")
    running: dict[int, _Running] = {}
    size = min(length, int(batch.lengths.max()))
    every = len(kept_heads) == model.n_heads

    def add(layer: int, row: int, pattern: Tensor, visible: Tensor) -> None:
        some = pattern if every else pattern[list(kept_heads)]
        some = some if per_head else some.mean(0, keepdim=True)
        if layer not in running:
            running[layer] = _Running(len(some), size, floor, some.device)
        running[layer].add(some, visible)

    each_pattern(model, batch, asked, length, add, "attention", progress)
    maps = [running[layer].finish(length) for layer in asked]
    spans = find_segments(batch, texts, model.tokenizer, requests) if texts else []
    return AttentionCapture(
        layers=asked,
        heads=kept_heads,
        mean=torch.stack([m.mean for m in maps]),
        mean_log=torch.stack([m.mean_log for m in maps]),
        variance=torch.stack([m.variance for m in maps]),
        counts=torch.stack([m.counts for m in maps]),
        floor=floor,
        lengths=batch.lengths,
        segments=typical_segments(spans, length),
        provenance={
            "model": {"name": model.name, **model.provenance},
            "template": batch.template,
            "tokenizer": describe_tokenizer(model.tokenizer),
            "tokens": batch.fingerprint,
            "prompts": len(batch),
            "layers": list(asked),
            "heads": list(kept_heads),
            "model_heads": model.n_heads,
            "per_head": per_head,
            "length": length,
            "floor": floor,
            "safetyheads": version("safetyheads"),
        },
    )


class _Maps(NamedTuple):
    mean: Float[Tensor, "head query key"]
    mean_log: Float[Tensor, "head query key"]
    variance: Float[Tensor, "head query key"]
    counts: Int[Tensor, "query key"]


class _Running:
    """Mean, mean logarithm and sum of squared deviations of one layer, updated prompt by prompt (Welford)."""

    def __init__(self, n_maps: int, size: int, floor: float, device: torch.device) -> None:
        self.floor = floor
        self.mean = torch.zeros(n_maps, size, size, device=device)
        self.mean_log, self.squares = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        self.reached = torch.zeros(size, size, dtype=torch.int64, device=device)
        self.visible = torch.zeros(size, size, dtype=torch.bool, device=device)

    def add(
        self, pattern: Float[Tensor, "head query key"], visible: Bool[Tensor, "query key"]
    ) -> None:
        n = pattern.shape[-1]
        part = (slice(None), slice(n), slice(n))
        self.reached[part[1:]] += 1
        self.visible[part[1:]] |= visible
        share = 1.0 / self.reached[part[1:]]
        # A map at a time: one fits into the processor's cache, all heads together do not.
        maps = (self.mean[part], self.squares[part], self.mean_log[part])
        for one, mean, squares, mean_log in zip(pattern, *maps, strict=True):
            change = one - mean
            mean.addcmul_(change, share)
            squares.addcmul_(change, one - mean)
            mean_log += one.clamp_min(self.floor).log_().sub_(mean_log).mul_(share)

    def finish(self, length: int) -> _Maps:
        size = self.reached.shape[0]
        counts = self.reached * self.visible
        spread = torch.where(counts > 1, self.squares / (counts - 1), torch.nan)
        maps = [m.masked_fill(counts == 0, torch.nan) for m in (self.mean, self.mean_log, spread)]
        pad = (0, max(0, length - size)) * 2
        mean, mean_log, variance = (torch.nn.functional.pad(m, pad, value=torch.nan) for m in maps)
        return _Maps(
            mean.cpu(), mean_log.cpu(), variance.cpu(), torch.nn.functional.pad(counts, pad).cpu()
        )


# --- maps ---------------------------------------------------------------------------------------


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
        """Write `maps.safetensors` and `manifest.json` into a folder, made if it is not there."""
        from safetensors.torch import save

        folder = writable_folder(folder)
        tensors = {n: v.contiguous() for n, v in vars(self).items() if isinstance(v, Tensor)}
        values = {n: v for n, v in vars(self).items() if not isinstance(v, Tensor)}
        write_whole(folder / "maps.safetensors", save(tensors))
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        write_whole(folder / "manifest.json", text.encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "AttentionMaps":
        """Read what `save` wrote; a missing file is a FileNotFoundError that names it."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("maps.safetensors", "manifest.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is not there; give a folder that AttentionMaps.save wrote"
                )
        values: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        for name in ("benign_segments", "jailbreak_segments"):
            values[name] = tuple(Segment(*part) for part in values[name])
        values["names"] = tuple(values["names"])
        values["heads"] = None if values["heads"] is None else tuple(values["heads"])
        values |= load_file(folder / "maps.safetensors")
        return cls(**values)


def attention_maps(
    model: Any,
    benign: Source,
    jailbreak: Source,
    layer: int,
    *,
    length: int = LENGTH,
    log: str | int = "e",
    floor: float | None = None,
    order: str = "log_of_mean",
    heads: Sequence[int] | None = None,
    min_prompts: int = 2,
    short: str = "error",
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
        length: tokens on each axis; longer prompts are cut there.
        log: base of the logarithm, "e" or 10.
        floor: attention below it counts as it; by default what puts the least value at -10.
        order: "log_of_mean" over prompts, or "mean_of_log".
        heads: the heads to average; all by default.
        min_prompts: pairs of tokens that fewer prompts have are left blank.
        short: what to do if fewer than `min_prompts` prompts fill the grid: "error", or "blank", which leaves it so.
        names: what figures call the two sets.
        template: as for `tokenize`.
        progress: whether to show bars; by default where standard error is a terminal.

    Raises ValueError for no prompts or a single one, prompts shorter than the grid (unless "blank"), a layer or head
    that the model does not have, a layer without attention, or sets of another tokenizer or of two templates.
    """
    if log not in FLOORS:
        raise ValueError(f'log is {log!r}; the base of the logarithm is "e" or 10')
    if order not in ("log_of_mean", "mean_of_log"):
        raise ValueError(f'order is {order!r}; it must be "log_of_mean" or "mean_of_log"')
    if short not in ("error", "blank"):
        raise ValueError(f'short is {short!r}; it must be "error" or "blank"')
    if min_prompts < 1:
        raise ValueError(f"min_prompts is {min_prompts}; a pair needs at least one prompt")
    model = load_model(model)
    checked_layers(model, layer)
    sides = two_sets(model, benign, jailbreak, template, names)
    for (_, batch), name in zip(sides, names, strict=True):
        filling = int((batch.lengths >= length).sum())
        if short == "error" and filling < min_prompts:
            raise ValueError(
                f"{filling} of the {len(batch)} {name} prompts fill the grid of {length} tokens (they have "
                f"{int(batch.lengths.min())} to {int(batch.lengths.max())}): give longer prompts, "
                f'length={int(batch.lengths.sort().values[-min(min_prompts, len(batch))])}, or short="blank" '
                "to leave the rest of the grid blank"
            )
    floor = FLOORS[log] if floor is None else floor
    captures = [
        _capture(model, texts, batch, layer, heads, False, length, floor, requests, progress)
        for (texts, batch), requests in zip(sides, (sides[0][0] or None, None), strict=True)
    ]
    return compare_captures(
        *captures, layer=layer, log=log, order=order, min_prompts=min_prompts, names=names
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
    scale = 1.0 if log == "e" else math.log(10.0)
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
    all_heads = len(benign.heads) == benign.provenance["model_heads"]
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


# --- hidden states ------------------------------------------------------------------------------


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


@torch.inference_mode()
def hidden_magnitudes(
    model: Any,
    benign: Source,
    jailbreak: Source,
    *,
    length: int = LENGTH,
    log: str | int = "e",
    min_prompts: int = 2,
    names: tuple[str, str] = ("Benign", "Jailbreak"),
    template: str | None = None,
    progress: bool | None = None,
) -> HiddenMagnitudes:
    """The magnitude of the residual stream after each layer at each token: the companion of the attention maps.

    The states are those before the final norm; layer 0 is the embedding. Arguments and errors are those of
    `attention_maps`; positions that too few prompts reach are blank.
    """
    if log not in FLOORS:
        raise ValueError(f'log is {log!r}; the base of the logarithm is "e" or 10')
    model = load_model(model)
    sides = two_sets(model, benign, jailbreak, template, names)
    scale = 1.0 if log == "e" else math.log(10.0)
    means, spans = [], []
    for (texts, batch), requests in zip(sides, (sides[0][0] or None, None), strict=True):
        total = torch.zeros(model.n_layers + 1, length)
        counts = torch.zeros(length)
        for _, rows, lengths in passes(model, batch, length, "hidden states", progress):
            real = torch.arange(rows.shape[1]) < lengths[:, None]

            def add(layer: int, states: Tensor, real: Tensor = real, total: Tensor = total) -> None:
                norms = states.float().norm(dim=-1).cpu().clamp_min(1e-30).log() / scale
                total[layer, : real.shape[1]] += (norms * real).sum(0)

            add(0, model.embed(rows))
            model.visit_states(
                rows,
                range(model.n_layers),
                lambda name, layer, states, _, add=add: (
                    add(layer + 1, states) if name == "resid_post" else None
                ),
            )
            counts[: real.shape[1]] += real.sum(0)
        means.append((total / counts).masked_fill(counts < min_prompts, torch.nan))
        found = find_segments(batch, texts, model.tokenizer, requests) if texts else []
        spans.append(typical_segments(found, length))
    return HiddenMagnitudes(
        benign=means[0],
        jailbreak=means[1],
        difference=means[1] - means[0],
        model=model.name,
        names=names,
        log=log,
        benign_segments=spans[0],
        jailbreak_segments=spans[1],
        provenance={
            "model": {"name": model.name, **model.provenance},
            "template": sides[0][1].template,
            "tokens": [batch.fingerprint for _, batch in sides],
            "difference": "jailbreak - benign",
            "safetyheads": version("safetyheads"),
        },
    )
