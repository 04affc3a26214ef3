"""How is a pass run from some layer to the last token, as fast as this model allows?

From the layer where variants start, many (variant, prompt) rows share each forward pass. Attention is causal: the
prefix that the prompts share (the chat template's beginning) is run once a variant, and its keys and values serve all
prompts. In the last block only the last real token goes through the MLP; it alone is normed and unembedded.

- `Packed`: the blocks without hook points, on the model's own weights, the prompts laid end to end without
  padding, with PyTorch's fused attention;
- `Padded`: the same on padded rows, with fused or eager attention, or with the hook points in place;
- `Whole`: the model's own forward pass, one variant at a time: what the others must agree with.

Heads that are rewritten in flight need the hook points, in the layers concerned.
"""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.engine.climb import Group, Rows, climb, references_of
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.prefixes import Prefixes
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.site import Site, Start, Variant
from safetyheads.metrics import LastToken, kl_divergence
from safetyheads.models.blocks import Blocks
from safetyheads.models.editing import editing
from safetyheads.models.hooked import HookedModel
from safetyheads.models.packing import Packing
from safetyheads.models.replaying import BlockCall, mask_of
from safetyheads.models.streams import StreamEdit


@runtime_checkable
class Kernel(Protocol):
    """A way to run passes."""

    def baseline(self, rows: Rows) -> LastToken:
        """The undisturbed outputs, run as the variants are."""
        ...

    def finish(
        self,
        rows: Rows,
        site: Site,
        variants: Sequence[Variant],
        given: AblateHeads | None,
        prefixes: Prefixes | None = None,
    ) -> LastToken:
        """The outputs of every (variant, prompt) row, with what is given ablated in all of them.

        `prefixes` has what these variants' prefixes left behind, if they were run before, and gets it otherwise.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """The model's own forward pass, a variant at a time, to its own logits, whatever it does between final norm and
    logits."""

    def baseline(self, rows: Rows) -> LastToken:
        states, logits = (rows.at_last(t) for t in rows.model.states_and_logits(rows.ids))
        return LastToken(states, lambda _: logits)

    def finish(
        self,
        rows: Rows,
        site: Site,
        variants: Sequence[Variant],
        given: AblateHeads | None,
        prefixes: Prefixes | None = None,
    ) -> LastToken:
        parts = []
        for variant in variants:
            with ExitStack() as stack:
                # What is done to heads comes before what is done to the stream that they write into.
                if given is not None:
                    stack.enter_context(given.plainly(site))
                stack.enter_context(variant.plainly(site))
                parts.append(self.baseline(rows))
        log_probs = torch.cat([part.log_probs for part in parts])
        return LastToken(torch.cat([part.state for part in parts]), lambda _: log_probs)


@dataclass(frozen=True)
class Padded:
    """Passes from the layer of a site on, the prompts as padded rows."""

    attention: str
    """ "sdpa", "eager" or "hooked": how attention is run where no head is rewritten in flight."""

    def baseline(self, rows: Rows) -> LastToken:
        """In half precision at the variants' width too, so that kernel noise cancels; in float32 a KL feels that noise
        to second order only (on two CPUs' threads the widths agree to the bit)."""
        resid = Blocks(rows.model).embed(rows.ids)
        width = 1 if resid.dtype == torch.float32 else rows.width
        states = self._run(rows, 0, resid.expand(width, *resid.shape), None, _Edits([], width))
        return LastToken(states[: len(rows.prompts)].clone(), rows.model.unembed)

    def finish(
        self,
        rows: Rows,
        site: Site,
        variants: Sequence[Variant],
        given: AblateHeads | None,
        prefixes: Prefixes | None = None,
    ) -> LastToken:
        starts = [variant.start(site) for variant in variants]
        if len({start.attn_out is None for start in starts}) > 1:
            # Some have run the attention already, others have not: each kind on its own.
            apart = [self.finish(rows, site, [variant], given) for variant in variants]
            return LastToken(torch.cat([one.state for one in apart]), rows.model.unembed)
        resid = (
            site.resid.expand(len(starts), *site.resid.shape)
            if all(start.resid is site.resid for start in starts)
            else torch.stack([start.resid for start in starts])
        )
        outs = [start.attn_out for start in starts if start.attn_out is not None]
        flying = [
            edit._replace(part=(n, len(starts))) for n, s in enumerate(starts) for edit in s.z_edits
        ]
        if given is not None:
            # What is given at the site's own layer is in its attention output, unless attention is run again.
            above = site.layer if outs else site.layer - 1
            flying += [e for e in given.in_flight(site).z_edits if e.layer > above]
        edits = _Edits(starts, len(starts), frozenset(edit.layer for edit in flying))
        with editing(rows.model, flying):
            out = torch.stack(outs) if outs else None
            kept = prefixes if not flying and _shared(rows, resid, out) else None
            state = self._run(rows, site.layer, resid, out, edits, kept)
        return LastToken(state, rows.model.unembed)

    def _run(
        self,
        rows: Rows,
        layer: int,
        resid: Float[Tensor, "variant prompt pos d_model"],
        attn_out: Float[Tensor, "variant prompt pos d_model"] | None,
        edits: "_Edits",
        prefixes: Prefixes | None = None,
    ) -> Float[Tensor, "row d_model"]:
        """The last token's final states, run from a layer on; `prefixes` only where the prefix is shared."""
        model = rows.model
        cut, top = _shared(rows, resid, attn_out), model.n_layers - 1
        prefixes = Prefixes() if prefixes is None else prefixes
        first = cut if not prefixes.known else 0
        calls = rows.suffix_calls if cut else rows.calls
        fold = partial(rearrange, pattern="variant prompt pos d -> (variant prompt) pos d")
        resid = resid.to(Blocks(model).device(layer))
        tail, tail_out = fold(resid[:, :, cut:]), None
        head, head_out = (resid[:, 0, :cut] if first else tail), None
        if attn_out is not None:
            tail_out = fold(attn_out[:, :, cut:])
            head_out = attn_out[:, 0, :cut] if first else tail_out
        last = rows.lengths - 1 - cut
        for at in range(layer, top + 1):
            kernel = "hooked" if at in edits.hooked else self.attention
            cache = prefixes.at(at) if cut else None
            if at > layer or attn_out is None:
                if first:
                    head = edits.at(at, "resid_pre", head)
                tail = edits.at(at, "resid_pre", tail, last)
            if at == top or edits.wants(at, "attn_out"):
                # Of the last block all tokens' keys and values are needed, and the rest for one token.
                attend = partial(Blocks(model).attend, kernel=kernel)
                if tail_out is None:
                    if first:
                        head_out = attend(at, head, rows.prefix_calls[at], cache=cache)
                    tail_out = attend(at, tail, calls[at], cache=cache)
                if first and head_out is not None:
                    head_out = edits.at(at, "attn_out", head_out)
                tail_out = edits.at(at, "attn_out", tail_out, last)
            if at == top:
                break
            run = partial(Blocks(model).run, kernel=kernel)
            if first:
                head = run(at, head, rows.prefix_calls[at], cache=cache, attn_out=head_out)
                head = edits.at(at, "resid_post", head)
            tail = run(at, tail, calls[at], cache=cache, attn_out=tail_out)
            tail = edits.at(at, "resid_post", tail, last)
            head_out = tail_out = None
        ends = [rows.at_last(t, cut)[:, None] for t in (tail, tail_out) if t is not None]
        return self._end(rows, calls[top], ends, edits)

    def _end(
        self, rows: Rows, call: BlockCall, ends: Sequence[Tensor], edits: "_Edits"
    ) -> Float[Tensor, "row d_model"]:
        """The last block for the last tokens alone, and the final norm."""
        model, top = rows.model, rows.model.n_layers - 1
        resid, attn_out = ends
        kernel = "packed" if call.packing is not None else self.attention
        out = Blocks(model).run(top, resid, call, attn_out=attn_out, kernel=kernel)
        return model.final_norm(
            edits.at(top, "resid_post", out, torch.zeros_like(rows.lengths))[:, 0]
        )


@dataclass(frozen=True)
class Packed(Padded):
    """Passes from the layer of a site on, the prompts laid end to end without padding."""

    attention: str = "sdpa"

    def _run(
        self,
        rows: Rows,
        layer: int,
        resid: Float[Tensor, "variant prompt pos d_model"],
        attn_out: Float[Tensor, "variant prompt pos d_model"] | None,
        edits: "_Edits",
        prefixes: Prefixes | None = None,
    ) -> Float[Tensor, "row d_model"]:
        if edits.hooked:
            return super()._run(rows, layer, resid, attn_out, edits)
        model, top = rows.model, rows.model.n_layers - 1
        known = prefixes is not None and prefixes.known
        packings, calls = packed_calls(rows, _shared(rows, resid, attn_out), known=known)
        run = partial(Blocks(model).run, kernel="packed")
        packed = packings[layer].pack(resid.to(Blocks(model).device(layer)))
        packed_out = None if attn_out is None else packings[layer].pack(attn_out)
        last = packings[layer].last
        for at in range(layer, top + 1):
            cache = None if prefixes is None else prefixes.at(at)
            if at > layer or attn_out is None:
                packed = edits.at(at, "resid_pre", packed, last)
            if at == top or edits.wants(at, "attn_out"):
                if packed_out is None:
                    attend = partial(Blocks(model).attend, kernel="packed")
                    packed_out = attend(at, packed, calls[at], cache=cache)
                packed_out = edits.at(at, "attn_out", packed_out, last)
            if at == top:
                break
            packed = run(at, packed, calls[at], cache=cache, attn_out=packed_out)
            packed = edits.at(at, "resid_post", packed, last)
            packed_out = None
        outs = [packed, packed_out] if packed_out is not None else []
        ends = [
            rearrange(t[:, last.to(t.device)], "variant prompt d -> (variant prompt) 1 d")
            for t in outs
        ]
        return self._end(rows, calls[top], ends, edits)


class _Edits:
    """What the variants of a pass rewrite in the residual stream, and in which layers heads are rewritten."""

    def __init__(
        self, starts: Sequence[Start], width: int, hooked: frozenset[int] = frozenset()
    ) -> None:
        self.width, self.hooked = width, hooked
        self.by_place: dict[tuple[int, str], list[tuple[int, StreamEdit]]] = {}
        for n, start in enumerate(starts):
            for edit in start.stream_edits:
                self.by_place.setdefault((edit.layer, edit.place), []).append((n, edit))

    def wants(self, layer: int, place: str) -> bool:
        """Whether a variant rewrites what stands at this place."""
        return (layer, place) in self.by_place

    def at(
        self,
        layer: int,
        place: str,
        states: Float[Tensor, "row pos d_model"],
        last: Int[Tensor, " prompt"] | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """The states at a place with what the variants put there; the rows of a variant stand together.

        `last` says where each prompt's last token stands: in a row of its own, or in the variant's one row of all
        prompts. Without it these are tokens before any last one.
        """
        if not self.wants(layer, place):
            return states
        states, each = states.clone(), len(states) // self.width
        last = None if last is None else last.to(states.device)
        for n, edit in self.by_place[layer, place]:
            own = states[n * each : (n + 1) * each]
            if not edit.last:
                own.copy_(edit.edit(own))
            elif last is not None:
                rows = torch.arange(each, device=states.device)
                where = (rows, last) if each == len(last) else (torch.zeros_like(last), last)
                own[where] = edit.edit(own[where])
        return states


def packed_calls(
    rows: Rows, cut: int, *, known: bool = False
) -> tuple[list[Packing], list[BlockCall]]:
    """How prompts are packed behind `cut` shared tokens, which were run before if `known`, and the calls of the
    blocks, one each a layer."""
    if (cut, known) not in rows.packings:
        none = [None] * len(rows.calls)
        firsts: Sequence[BlockCall | None] = rows.prefix_calls if cut and not known else none
        rests = rows.suffix_calls if cut else rows.calls
        packed, behind = (0, cut) if known else (cut, 0)
        # Layers may differ in their masks (sliding windows) and in where they lie, not in where the tokens stand.
        by_mask: dict[tuple[Any, ...], Packing] = {}
        packings, calls = [], []
        for layer, (first, rest) in enumerate(zip(firsts, rests, strict=True)):
            both = [call for call in (first, rest) if call is not None]
            device = Blocks(rows.model).device(layer)
            masks = (device, *(id(mask_of((*c.args, *c.kwargs.values()))) for c in both))
            if masks not in by_mask:
                lengths = rows.lengths.to(device) - cut
                by_mask[masks] = Packing(lengths, packed, first, rest, behind)
            packings.append(by_mask[masks])
            calls.append(by_mask[masks].call(first, rest))
        rows.packings[cut, known] = packings, calls
    return rows.packings[cut, known]


def _shared(rows: Rows, resid: Tensor, attn_out: Tensor | None) -> int:
    """How many tokens may be run once for all prompts: none where a variant looks at the whole prompt."""
    written = [] if attn_out is None else [attn_out]
    if resid.stride(0):  # not the clean stream, expanded
        written.append(resid)
    cut = rows.prefix
    return cut if cut and all(_same_for_all_prompts(t[:, :, :cut]) for t in written) else 0


def _same_for_all_prompts(states: Float[Tensor, "variant prompt pos d_model"]) -> bool:
    """Whether the prompts' shared prefix is still shared; rows of one batch differ by rounding only."""
    spread = (states - states[:, :1]).abs().max()
    return bool(spread <= 256 * torch.finfo(states.dtype).eps * states.abs().max())


def kernels_of(model: HookedModel) -> list[Kernel]:
    """The ways in which passes of this model may be resumed, fastest first."""
    return [Packed() if name == "packed" else Padded(name) for name in Blocks(model).kernels]


def fastest(
    measurement: Measurement, groups: Sequence[Rows], variants: Sequence[Variant]
) -> Kernel:
    """The fastest kernel that gives what the model's own forward pass gives, undisturbed and with a variant of each
    kind, on the two longest prompts; `Whole()`, with a warning, if there is none."""
    model, batch, given = measurement.inputs.model, measurement.inputs.batch, measurement.given
    tail = list(groups[-1].prompts[-2:])
    # A variant may borrow from another prompt, which need not share its rows.
    others = [list(groups[-2].prompts[-1:])] if len(tail) == 1 and len(groups) > 1 else []
    known = {shape: made for some in groups for shape, made in some.recorded.items()}
    shared = groups[-1].prefix if len(tail) > 1 else 0
    checked = [
        Rows.of(model, batch, Group(prompts, 1), known, shared if prompts is tail else 0)
        for prompts in (*others, tail)
    ]
    rows, whole = checked[-1], Whole()
    baseline = whole.baseline(rows).log_probs
    kernels = kernels_of(model)
    if baseline.isnan().any():
        return kernels[0]  # reported with the baseline
    kinds: dict[type, list[Variant]] = {}
    for variant in variants:
        kinds.setdefault(type(variant), []).append(variant)
    chosen = [some[len(some) // 2] for some in kinds.values()]
    references = references_of(checked, chosen, given)
    sites = [
        list(climb(checked, {v.first_layer: v.needs}, given, references))[-1][1] for v in chosen
    ]
    plain = [
        whole.finish(rows, site, [variant], given).log_probs
        for site, variant in zip(sites, chosen, strict=True)
    ]
    numbers = [
        not one.isnan().any() for one in plain
    ]  # what gives none is reported when it is read
    compared = list(compress(zip(sites, chosen, plain, strict=True), numbers))
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.5
    for kernel in kernels:
        got = [(baseline, kernel.baseline(rows))]
        got += [(p, kernel.finish(rows, site, [v], given)) for site, v, p in compared]
        worst = max(kl_divergence(p, last.log_probs).max().item() for p, last in got)
        calls = [call for _, calls in rows.packings.values() for call in calls]
        attended = all(call.packing.attended for call in calls if call.packing)
        if worst <= tolerance**2 and (attended or kernel != Packed()):
            return kernel
    warnings.warn(
        f"{model.name}: resuming at a layer differs from the model's own forward pass (KL {worst:.2g} nat); "
        "every variant is run by plain hooked forward passes instead, which is exact and slow",
        stacklevel=3,
    )
    return whole
