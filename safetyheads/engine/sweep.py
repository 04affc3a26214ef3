"""How are thousands of interventions run exactly, at a fraction of the cost of a forward pass each?

1. The prompts are sorted by length into chunks; each chunk's clean residual stream is carried up the model
   one block at a time, so that layer l's heads start from the exact input of layer l and nothing below it is
   run again.
2. At layer l one clean pass gives every head's z and v. The ablations are closed forms on these, so the
   ablated layer's attention is not run again: what the head's change adds through W_O is added to the cached
   attention output.
3. From there on, many (head, prompt) rows share each forward pass. Attention is causal: the prefix that a
   chunk's prompts share (the chat template's beginning) is run once a head, and its keys and values serve
   all prompts of the chunk.
4. In the last block only the last real token goes through the MLP; it alone is normed and unembedded, and what
   a metric keeps of it is all that is stored.
5. The blocks above the ablated layer run without the bridge's hook points, on the model's own weights, the
   prompts laid end to end without padding, with PyTorch's fused attention where the architecture allows it.

A pass may ablate several heads, in several layers, and some heads may be ablated in all of them (`given`): the clean
stream then carries these, and what lies above the layer where a pass starts is ablated in flight, on the bridge's own
attention in the layers concerned.

Memory holds one layer of clean activations, one residual stream a prompt and one batch of rows: it does not grow with
layers or heads, and vocabulary enters only through the rows of one batch. Before a sweep trusts any of this, it runs
one undisturbed pass and one ablated head against the model's own forward pass (`_find_kernel`); the
next slower kernel is taken where one disagrees, and where all do, plain hooked forward passes, with a warning.
"""

import random
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.engine.measurement import Measurement
from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.interventions.ablations import Ablation, HeadActs, ZeroAblation
from safetyheads.metrics import LastToken, Metric, kl_divergence
from safetyheads.models.attention import AttentionActs
from safetyheads.models.blocks import Blocks
from safetyheads.models.editing import ZEdit, editing, replacing_z
from safetyheads.models.hooked import HookedModel
from safetyheads.models.packing import Packing
from safetyheads.models.replaying import BlockCall, SharedPrefix, mask_of
from safetyheads.prompts import TokenBatch
from safetyheads.storage.store import layer_key, layer_readings

TOKENS_A_PASS = {"cpu": 1536, "cuda": 16384}
"""Tokens in one forward pass, unless the caller bounds the rows: where matrix multiplications are at their fastest."""
PROMPTS_A_CHUNK = 64
"""Prompts of similar length that are swept together, at most."""
LOOK_TOKENS = 4096
"""Tokens of one clean pass that keeps every head's activations."""


Variant = AblateHead | AblateHeads
"""What a pass disturbs."""


class Swept(NamedTuple):
    """What a sweep returns."""

    readings: Float[Tensor, "variant *reading"]
    """What the metric keeps of each variant, in the order of the interventions."""
    exact_resume: bool
    """Whether passes were resumed at the ablated layer; False if whole hooked passes had to be used."""


@torch.inference_mode()
def sweep(
    measurement: Measurement,
    variants: Sequence[Variant],
    *,
    rows: int | None = None,
    store: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Swept:
    """Run every variant on every prompt and keep what the metric reads.

    What the measurement has given is ablated in every pass, besides the variant's own; the baseline is the model
    untouched all the same. Mean and resample ablation take their reference from the untouched model too.

    `rows` bounds the (variant, prompt) rows in one forward pass, and with it the memory; by default a pass has about
    `TOKENS_A_PASS` tokens. `store` gets the readings of each finished layer and is asked before one is run. `progress`
    is called with the number of rows just finished.

    Raises ValueError if the logits are not finite, or a variant names a head that the model does not have or that is
    given.
    """
    model, batch = measurement.inputs.model, measurement.inputs.batch
    given, metric = measurement.given, measurement.metric
    if not variants:
        raise ValueError("there are no variants to run; give at least one")
    for variant in variants:
        _require_heads(model, variant, given)
    groups = layout(batch, rows, model.device.type)
    longest = batch.select(groups[-1].prompts[-2:])
    kernel = _find_kernel(model, longest, variants[len(variants) // 2], given)
    calls: _Calls = {}

    def start() -> list[_Chunk]:
        return [_Chunk(model, batch, *group, kernel, calls) for group in groups]

    chunks = start()
    baseline = _in_order(chunks, [chunk.take_baseline(metric) for chunk in chunks])
    if given is not None or any(isinstance(v, AblateHeads) for v in variants):
        references = _references(start(), [*variants, *([given] if given else [])])
        for chunk in chunks:
            chunk.given, chunk.references = given, references
    readings: dict[int, Tensor] = {}
    for layer in range(max(v.first_layer for v in variants) + 1):
        numbers = [n for n, v in enumerate(variants) if v.first_layer == layer]
        known = layer_readings(store, layer, len(numbers)) if numbers else None
        if known is None and numbers:
            edits = [variants[n] for n in numbers]
            known = _sweep_layer(chunks, edits, metric, baseline, progress)
            if store is not None:
                store[layer_key(layer)] = known
        elif known is not None:
            progress(len(numbers) * len(batch))
        for chunk in chunks:
            chunk.advance()
        readings.update(zip(numbers, known if known is not None else [], strict=True))
    return Swept(torch.stack([readings[n] for n in range(len(variants))]), kernel != "plain")


def _sweep_layer(
    chunks: "list[_Chunk]",
    edits: list[Variant],
    metric: Metric,
    baseline: Tensor,
    progress: Callable[[int], object],
) -> Float[Tensor, "variant *reading"]:
    """The readings of all interventions on one layer, at which all chunks stand."""
    layer, needs = edits[0].first_layer, _needs(edits)
    reference = chunks[0].references.get(layer) or _Reference(chunks, layer, needs)
    parts = []
    for chunk in chunks:
        acts = chunk.look(layer, scores="scores" in needs)
        untouched = chunk.untouched()
        read: list[Tensor] = []
        for some in _evenly(edits, chunk.width):
            if chunk.kernel == "plain":
                last = _joined([chunk.run_plainly(edit, acts, reference) for edit in some])
            else:
                changes = torch.stack([chunk.change(acts, edit, reference) for edit in some])
                last = LastToken(chunk.resume(some, acts, changes), chunk.model.unembed)
            read.append(chunk.read(metric, last, untouched, some))
            progress(len(some) * len(chunk.prompts))
        parts.append(torch.cat(read).transpose(0, 1))
        chunk.settle()
    return metric.gather(_in_order(chunks, parts).transpose(0, 1), baseline).cpu()


_Calls = dict[tuple[int, int], tuple[list[BlockCall], list[BlockCall]]]
"""What the model passes to its blocks, by the prompts' length and the shared prefix's."""


class Group(NamedTuple):
    """Prompts that are swept together, and how many variants of them share a forward pass."""

    prompts: list[int]
    width: int


def layout(batch: TokenBatch, rows: int | None = None, device: str = "cpu") -> list[Group]:
    """The prompts sorted by length, in groups: of at most `rows` rows a pass, or of about `TOKENS_A_PASS` tokens."""
    order = batch.lengths.argsort(stable=True).tolist()
    budget = TOKENS_A_PASS.get(device, TOKENS_A_PASS["cuda"])
    size = rows or max(1, budget // int(batch.lengths.max() - batch.prefix_length))
    size = min(size, PROMPTS_A_CHUNK)
    groups = []
    for start in range(0, len(order), size):
        prompts = order[start : start + size]
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        tokens = prefix + len(prompts) * (part.ids.shape[1] - prefix)
        groups.append(Group(prompts, max(1, rows // len(prompts) if rows else budget // tokens)))
    return groups


class _Chunk:
    """Prompts of similar length, and how far up the model their clean residual stream has been carried."""

    def __init__(
        self,
        model: HookedModel,
        batch: TokenBatch,
        prompts: Sequence[int],
        width: int,
        kernel: str,
        calls: _Calls,
    ) -> None:
        self.model, self.prompts, self.width, self.kernel = model, prompts, width, kernel
        part = batch.select(prompts)
        real = torch.arange(part.ids.shape[1]) < part.lengths[:, None]
        # A pad token may lie outside the embedding; what stands there never matters.
        self.ids = part.ids.where(real, 0).to(model.device)
        self.lengths = part.lengths.to(model.device)
        # Sharing pays only where several prompts share.
        self.prefix = part.prefix_length if len(prompts) > 1 else 0
        self.layer = 0
        self.resid = Blocks(model).embed(self.ids)
        self.given: AblateHeads | None = None
        self.references: dict[int, _Reference] = {}

        def recorded(prefix: int) -> tuple[list[BlockCall], list[BlockCall]]:
            shape = self.ids.shape[1], prefix
            if shape not in calls:
                calls[shape] = Blocks(model).record(self.ids[:1], prefix)
            return calls[shape]

        self.calls = recorded(0)[1]
        self.prefix_calls, self.suffix_calls = recorded(self.prefix) if self.prefix else ([], [])
        self.packings: dict[int, tuple[Packing, list[BlockCall]]] = {}
        self.acts: AttentionActs | None = None
        self.next: Tensor | None = None

    # Clean ---------------------------------------------------------------------------------------------------------

    def look(self, layer: int, *, scores: bool) -> AttentionActs:
        """The clean block at the layer where this chunk stands: what all heads compute, and what comes of it with the
        given heads ablated."""
        given = self.given if layer in _layers(self.given) else None
        scores = scores or (given is not None and "scores" in given.ablation.needs)
        if self.acts is None or (scores and self.acts.scores is None):
            call = self.calls[layer]
            parts = [
                Blocks(self.model).look(layer, resid, call, scores=scores)
                for resid in self.resid.split(max(1, LOOK_TOKENS // self.resid.shape[1]))
            ]
            self.acts = acts = parts[0] if len(parts) == 1 else _stacked(parts)
            if given is not None:
                reference = self.references.get(layer)
                out = acts.attn_out + self.change(acts, given, reference, layer)
                post = Blocks(self.model).run(layer, self.resid, call, attn_out=out)
                self.acts = acts._replace(attn_out=out, resid_post=post)
        return self.acts

    def settle(self) -> None:
        """Keep of the clean block only what the next one starts from."""
        if self.acts is not None:
            self.next, self.acts = self.acts.resid_post, None

    def advance(self) -> None:
        """Carry the clean residual stream through one more block."""
        if self.next is None and self.layer in _layers(self.given):
            self.look(self.layer, scores=False)
        self.settle()
        if self.next is None:
            self.next = Blocks(self.model).run(self.layer, self.resid, self.calls[self.layer])
        self.layer, self.resid, self.next = self.layer + 1, self.next, None

    def take_baseline(self, metric: Metric) -> Tensor:
        """Read the undisturbed outputs, resumed like the ablated rows.

        In half precision they run at the ablated rows' width too, so that kernel noise cancels; in float32 a KL feels
        that noise to second order only (on two CPUs' threads the widths agree to the bit).
        """
        if self.kernel == "plain":
            self._plain = self._run_whole()
        else:
            width = 1 if self.resid.dtype == torch.float32 else self.width
            rows = self.resid.expand(width, *self.resid.shape)
            self._state = self._run_from(0, rows, None)[: len(self.prompts)].clone()
        untouched = self.untouched()
        if untouched.log_probs.isnan().any():
            raise ValueError(
                f"{self.model.name} gives NaN logits on the untouched prompts; check the weights, "
                "or load the model in float32 (half precision can overflow)"
            )
        return metric.read(untouched, untouched)

    def untouched(self) -> LastToken:
        """The undisturbed outputs; of a resumed pass only the states are kept, since a vocabulary is large."""
        if self.kernel == "plain":
            return self._plain
        return LastToken(self._state, self.model.unembed)

    # Ablated -------------------------------------------------------------------------------------------------------

    def change(
        self, acts: AttentionActs, edit: Variant, reference: "_Reference | None", layer: int = -1
    ) -> Float[Tensor, "prompt pos d_model"]:
        """What ablating the variant's heads at its first layer, or another, adds to that layer's attention output."""
        layer = edit.first_layer if layer < 0 else layer
        writes = [
            Blocks(self.model).write(
                layer,
                head.head,
                self.ablated_z(acts, edit, reference, head) - acts.z[:, :, head.head],
            )
            for head in edit.heads
            if head.layer == layer
        ]
        return writes[0] if len(writes) == 1 else torch.stack(writes).sum(0)

    def ablated_z(
        self,
        acts: AttentionActs,
        edit: Variant,
        reference: "_Reference | None",
        head: Head | None = None,
    ) -> Float[Tensor, "prompt pos d_head"]:
        """What replaces z of a head of the variant, by default its first."""
        head = edit.heads[0] if head is None else head
        return self._ablated(
            edit,
            head,
            reference,
            z=acts.z[:, :, head.head],
            v=acts.v[:, :, head.head // (self.model.n_heads // acts.v.shape[2])],
            visible=acts.visible.expand(len(acts.z), -1, -1),
            scores=acts.scores[:, head.head] if acts.scores is not None else None,
        )

    def _ablated(
        self, edit: Variant, head: Head, reference: "_Reference | None", **acts: Any
    ) -> Float[Tensor, "row query d_head"]:
        """What replaces z of one head, of all tokens or of those of a pass in flight."""
        needs = edit.ablation.needs
        mean = donor = None
        if reference is not None and "mean" in needs:
            mean = reference.mean[head.head]
        if reference is not None and "donor" in needs:
            end = acts["v"].shape[1]
            donor = reference.donor(self.prompts, end, edit.ablation, head.head)
            donor = donor[:, end - acts["z"].shape[1] :]
            # Within the prefix, which the prompts share, a row stands for all prompts.
            donor = donor[:1] if end <= self.prefix else donor
            donor = donor.repeat(len(acts["z"]) // len(donor), 1, 1)
        softcap = self.model.score_softcap
        return edit.ablation(HeadActs(**acts, softcap=softcap, mean=mean, donor=donor))

    def in_flight(self, edit: Variant, above: int, part: tuple[int, int] = (0, 1)) -> list[ZEdit]:
        """The ablations of the variant's heads above a layer, for `models.editing.editing`."""
        scores = "scores" in edit.ablation.needs
        return [
            ZEdit(
                *head,
                partial(self._ablated, edit, head, self.references.get(head.layer)),
                scores,
                part,
            )
            for head in edit.heads
            if head.layer > above
        ]

    def resume(
        self,
        edits: Sequence[Variant],
        acts: AttentionActs,
        changes: Float[Tensor, "variant prompt pos d_model"],
    ) -> Float[Tensor, "row d_model"]:
        """The last token's final state of every (edit, prompt) row, run from the ablated layer on."""
        layer = edits[0].first_layer
        flying = self.in_flight(self.given, layer) if self.given else []
        for n, edit in enumerate(edits):
            flying += self.in_flight(edit, layer, part=(n, len(edits)))
        resid = self.resid.expand(len(edits), *self.resid.shape)
        with editing(self.model, flying):
            bridged = frozenset(edit.layer for edit in flying)
            return self._run_from(layer, resid, acts.attn_out + changes, bridged)

    def _run_from(
        self,
        layer: int,
        resid: Float[Tensor, "variant prompt pos d_model"],
        attn_out: Float[Tensor, "variant prompt pos d_model"] | None,
        bridged: frozenset[int] = frozenset(),
    ) -> Float[Tensor, "row d_model"]:
        """The last token's final states, run from a layer on; `bridged` layers need their hook points."""
        model, cut = self.model, self.prefix
        if cut and attn_out is not None and not _same_for_all_prompts(attn_out[:, :, :cut]):
            cut = 0  # an ablation that looks at the whole prompt leaves no prefix to share
        if self.kernel == "packed" and not bridged:
            return self._run_packed(layer, resid, attn_out, cut)
        kernel = "sdpa" if self.kernel == "packed" else self.kernel
        tail = resid[:, :, cut:].flatten(0, 1)
        tail_out = None if attn_out is None else attn_out[:, :, cut:].flatten(0, 1)
        head, head_out = tail, tail_out
        if cut:
            head = resid[:, 0, :cut]
            head_out = None if attn_out is None else attn_out[:, 0, :cut]
        calls = self.suffix_calls if cut else self.calls
        top = model.n_layers - 1
        for at in range(layer, top):
            run = partial(Blocks(model).run, kernel="bridge" if at in bridged else kernel)
            cache = SharedPrefix() if cut else None
            if cut:
                head = run(at, head, self.prefix_calls[at], cache=cache, attn_out=head_out)
            tail = run(at, tail, calls[at], cache=cache, attn_out=tail_out)
            head_out = tail_out = None
        # Of the last block all tokens' keys and values are needed, and the rest for one token.
        run = partial(Blocks(model).run, kernel=kernel)
        if tail_out is None:
            attend = partial(Blocks(model).attend, kernel="bridge" if top in bridged else kernel)
            cache = SharedPrefix() if cut else None
            if cut:
                attend(top, head, self.prefix_calls[top], cache=cache)
            tail_out = attend(top, tail, calls[top], cache=cache)
        last, last_out = (self._at_last(t, cut)[:, None] for t in (tail, tail_out))
        return model.final_norm(run(top, last, calls[top], attn_out=last_out)[:, 0])

    def _run_packed(
        self,
        layer: int,
        resid: Float[Tensor, "variant prompt pos d_model"],
        attn_out: Float[Tensor, "variant prompt pos d_model"] | None,
        cut: int,
    ) -> Float[Tensor, "row d_model"]:
        """The same, all prompts of a variant laid end to end."""
        model, top = self.model, self.model.n_layers - 1
        packing, calls = self._packed(cut)
        run = partial(Blocks(model).run, kernel="packed")
        packed = packing.pack(resid)
        packed_out = None if attn_out is None else packing.pack(attn_out)
        for at in range(layer, top):
            packed = run(at, packed, calls[at], attn_out=packed_out)
            packed_out = None
        if packed_out is None:
            packed_out = Blocks(model).attend(top, packed, calls[top], kernel="packed")
        last, last_out = (t[:, packing.last].flatten(0, 1)[:, None] for t in (packed, packed_out))
        return model.final_norm(run(top, last, calls[top], attn_out=last_out)[:, 0])

    def _packed(self, cut: int) -> tuple[Packing, list[BlockCall]]:
        """How this chunk's prompts are packed behind `cut` shared tokens, and the blocks' calls for that."""
        if cut not in self.packings:
            firsts: Sequence[BlockCall | None] = (
                self.prefix_calls if cut else [None] * len(self.calls)
            )
            rests = self.suffix_calls if cut else self.calls
            # Layers may differ in their masks (sliding windows), not in where the tokens stand.
            by_mask: dict[tuple[int, ...], Packing] = {}
            calls = []
            for first, rest in zip(firsts, rests, strict=True):
                both = [call for call in (first, rest) if call is not None]
                masks = tuple(id(mask_of((*call.args, *call.kwargs.values()))) for call in both)
                if masks not in by_mask:
                    by_mask[masks] = Packing(self.lengths - cut, cut, first, rest)
                calls.append(by_mask[masks].call(first, rest))
            self.packings[cut] = next(iter(by_mask.values())), calls
        return self.packings[cut]

    def read(
        self, metric: Metric, ablated: LastToken, untouched: LastToken, edits: Sequence[Variant]
    ) -> Float[Tensor, "variant prompt *state"]:
        """What the metric keeps of each row."""
        copies = len(edits)
        rows = metric.read(ablated, untouched.repeated(copies)).unflatten(0, (copies, -1))
        if rows.isnan().any():
            broken = [
                str(head)
                for edit, row in zip(edits, rows, strict=True)
                if row.isnan().any()
                for head in edit.heads
            ]
            raise ValueError(
                f"ablating {', '.join(broken)} of {self.model.name} gives NaN logits; load the model in float32"
            )
        return rows

    def run_plainly(self, edit: Variant, acts: AttentionActs, reference: "_Reference") -> LastToken:
        """The same rows of one variant by one plain hooked forward pass."""
        if isinstance(edit, AblateHead) and self.given is None:
            z = self.ablated_z(acts, edit, reference)
            with replacing_z(self.model, *edit.head, lambda _: z):
                return self._run_whole()
        flying = self.in_flight(edit, -1) + (self.in_flight(self.given, -1) if self.given else [])
        with editing(self.model, flying):
            return self._run_whole()

    def _run_whole(self) -> LastToken:
        """The model's own forward pass to its own logits, whatever it does between final norm and logits."""
        states, logits = (self._at_last(t, 0) for t in self.model.states_and_logits(self.ids))
        return LastToken(states, lambda _: logits)

    def _at_last(self, rows: Float[Tensor, "row pos d"], cut: int) -> Float[Tensor, "row d"]:
        last = (self.lengths - 1 - cut).repeat(len(rows) // len(self.lengths))
        return rows[torch.arange(len(rows), device=rows.device), last]


class _Reference:
    """What an ablation may need to know of the other prompts at one layer: the mean of z, or another prompt's z."""

    def __init__(self, chunks: Sequence[_Chunk], layer: int, needs: frozenset[str]) -> None:
        if not needs & {"mean", "donor"}:
            return
        looks = [chunk.look(layer, scores="scores" in needs).z for chunk in chunks]
        longest = max(z.shape[1] for z in looks)
        padded = [torch.nn.functional.pad(z, (0, 0, 0, 0, 0, longest - z.shape[1])) for z in looks]
        self.z: Float[Tensor, "prompt pos head d_head"] = _in_order(chunks, padded)
        self.lengths: Int[Tensor, " prompt"] = _in_order(chunks, [c.lengths for c in chunks])
        self.prefix = _shared_prefix(chunks)
        self.positions = torch.arange(longest, device=self.lengths.device)
        real = self.positions < self.lengths[:, None]
        self.mean: Float[Tensor, "head d_head"] = self.z[real].mean(0)

    def donor(
        self, prompts: Sequence[int], end: int, ablation: Ablation, head: int
    ) -> Float[Tensor, "prompt pos d_head"]:
        """The head's z on the prompts that lend to these, aligned as `ResampleAblation` says, up to a position."""
        cycle = list(range(len(self.lengths)))
        random.Random(getattr(ablation, "seed", 0)).shuffle(cycle)
        lender = {borrower: cycle[n - 1] for n, borrower in enumerate(cycle)}
        lenders = torch.tensor([lender[p] for p in prompts], device=self.lengths.device)
        own = torch.tensor(list(prompts), device=self.lengths.device)
        positions = self.positions[:end]
        shift = (self.lengths[lenders] - self.lengths[own])[:, None]
        source = (positions + shift).clamp_min(self.prefix)
        source = source.minimum(self.lengths[lenders, None] - 1)
        borrowed = self.z[lenders[:, None], source, head]
        # Over the shared prefix the lender's z is the borrower's own.
        return torch.where(positions[:, None] < self.prefix, self.z[own, :end, head], borrowed)


def _references(chunks: Sequence[_Chunk], variants: Sequence[Variant]) -> dict[int, _Reference]:
    """What ablations may need to know of the untouched model, at every layer, if they need anything."""
    needs = _needs(variants)
    if not needs & {"mean", "donor"}:
        return {}
    references = {}
    for layer in range(chunks[0].model.n_layers):
        references[layer] = _Reference(chunks, layer, needs)
        for chunk in chunks:
            chunk.advance()
    return references


def _layers(variant: Variant | None) -> set[int]:
    return set() if variant is None else {head.layer for head in variant.heads}


def _needs(variants: Sequence[Variant]) -> frozenset[str]:
    return frozenset[str]().union(*(variant.ablation.needs for variant in variants))


def _evenly(edits: Sequence[Variant], most: int) -> list[Sequence[Variant]]:
    """In runs of at most `most`, as equal as can be: a pass with few rows is as slow as one with many."""
    parts = -(-len(edits) // most)
    size = -(-len(edits) // parts)
    return [edits[start : start + size] for start in range(0, len(edits), size)]


def _in_order(chunks: Sequence[_Chunk], parts: Sequence[Tensor]) -> Tensor:
    """Rows that were read chunk by chunk, in the order of the prompts."""
    prompts = torch.tensor([prompt for chunk in chunks for prompt in chunk.prompts])
    rows = torch.cat(list(parts))
    return rows[prompts.argsort().to(rows.device)]


def _shared_prefix(chunks: Sequence[_Chunk]) -> int:
    """How many tokens all prompts have in common, short of the shortest one's last."""
    first = chunks[0].ids[0]
    shortest = min(int(chunk.lengths.min()) for chunk in chunks) - 1
    same = [
        int((chunk.ids[:, :shortest] == first[:shortest]).all(0).long().cumprod(0).sum())
        for chunk in chunks
    ]
    return min(same)


def _stacked(parts: Sequence[AttentionActs]) -> AttentionActs:
    """The clean passes of several prompts as one."""
    fields: dict[str, Any] = {
        name: None if tensors[0] is None else torch.cat(tensors)
        for name, tensors in zip(AttentionActs._fields, zip(*parts, strict=True), strict=True)
    }
    return AttentionActs(**{**fields, "visible": parts[0].visible})


def _joined(parts: Sequence[LastToken]) -> LastToken:
    """Several last tokens as one."""
    log_probs = torch.cat([part.log_probs for part in parts])
    return LastToken(torch.cat([part.state for part in parts]), lambda _: log_probs)


def _same_for_all_prompts(attn_out: Float[Tensor, "variant prompt pos d_model"]) -> bool:
    """Whether the prompts' shared prefix is still shared; rows of one batch differ by rounding only."""
    spread = (attn_out - attn_out[:, :1]).abs().max()
    return bool(spread <= 256 * torch.finfo(attn_out.dtype).eps * attn_out.abs().max())


def _require_heads(model: HookedModel, variant: Variant, given: AblateHeads | None) -> None:
    for head in (*variant.heads, *(given.heads if given else ())):
        model.require_head(*head)
    if given and (twice := set(variant.heads) & set(given.heads)):
        raise ValueError(
            f"{', '.join(map(str, sorted(twice)))} is ablated already, as given; leave it out of the variants"
        )


def _find_kernel(
    model: HookedModel, batch: TokenBatch, edit: Variant, given: AblateHeads | None
) -> str:
    """The fastest of the model's kernels with which resuming gives what the model's own forward pass gives,
    undisturbed and with a variant ablated; "plain" if there is none."""
    if "donor" in edit.ablation.needs and len(batch.lengths) == 1:
        edit, given = AblateHeads(edit.heads, ZeroAblation()), None
    prompts, calls = range(len(batch.lengths)), _Calls()
    chunk = _Chunk(model, batch, prompts, 1, "plain", calls)
    chunk.given = given
    if given is not None or isinstance(edit, AblateHeads):
        bare = _Chunk(model, batch, prompts, 1, "plain", calls)
        chunk.references = _references([bare], [edit, *([given] if given else [])])
    for _ in range(edit.first_layer):
        chunk.advance()
    acts = chunk.look(edit.first_layer, scores=True)
    reference = chunk.references.get(edit.first_layer)
    reference = reference or _Reference([chunk], edit.first_layer, edit.ablation.needs)
    change = chunk.change(acts, edit, reference)[None]
    expected = chunk._run_whole().log_probs, chunk.run_plainly(edit, acts, reference).log_probs
    if expected[0].isnan().any():
        return Blocks(model).kernels[0]  # reported with the baseline
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.5
    for kernel in Blocks(model).kernels:
        chunk.kernel = kernel
        start = Blocks(model).embed(chunk.ids)[None]
        got = chunk._run_from(0, start, None), chunk.resume([edit], acts, change)
        worst = max(
            kl_divergence(plain, LastToken(state, model.unembed).log_probs).max().item()
            for plain, state in zip(expected, got, strict=True)
        )
        attended = all(p.attended for _, calls in chunk.packings.values() for _, _, p in calls if p)
        if worst <= tolerance**2 and (kernel != "packed" or attended):
            return kernel
    warnings.warn(
        f"{model.name}: resuming at a layer differs from the model's own forward pass (KL {worst:.2g} nat); "
        "every head is run by plain hooked forward passes instead, which is exact and slow",
        stacklevel=3,
    )
    return "plain"
