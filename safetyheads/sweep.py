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
4. Only the last real token of each row is normed and unembedded, and what a metric keeps of it is all that
   is stored.

Memory holds one layer of clean activations and one batch of rows: it does not grow with layers or heads, and
vocabulary enters only through the rows of one batch. Before a sweep trusts any of this, it runs one undisturbed
pass and one ablated head against the model's own forward pass (`_agrees`); where they disagree, every head is
run by plain hooked forward passes instead, with a warning.
"""

import random
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.interventions import AblateHead, HeadActs, ZeroAblation
from safetyheads.metrics import LastToken, Metric, kl_divergence
from safetyheads.model import AttentionActs, HookedModel, SharedPrefix
from safetyheads.prompts import TokenBatch

DEFAULT_ROWS = 32
"""(head, prompt) rows in one forward pass, unless the caller chooses."""
PROMPTS_A_CHUNK = 16
"""Prompts of similar length that are swept together."""


class Swept(NamedTuple):
    """What a sweep returns."""

    readings: Float[Tensor, "variant *reading"]
    """What the metric keeps of each variant, in the order of the interventions."""
    exact_resume: bool
    """Whether passes were resumed at the ablated layer; False if plain hooked passes had to be used."""


@torch.inference_mode()
def sweep(
    model: HookedModel,
    batch: TokenBatch,
    interventions: Sequence[AblateHead],
    metric: Metric,
    *,
    rows: int = DEFAULT_ROWS,
    store: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Swept:
    """Run every intervention on every prompt and keep what the metric reads.

    `rows` bounds the (head, prompt) rows in one forward pass, and with it the memory. `store` gets the readings of each
    finished layer and is asked before one is run. `progress` is called with the number of rows just finished.

    Raises ValueError if the logits are not finite, or an intervention names a head that the model does not have.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; a forward pass needs at least one row")
    if not interventions:
        raise ValueError("there are no interventions to run; give at least one")
    for intervention in interventions:
        _require_head(model, intervention)
    groups = _chunks(batch, min(rows, PROMPTS_A_CHUNK))
    exact = _agrees(model, batch.select(groups[-1][-2:]), interventions[len(interventions) // 2])
    chunks = [_Chunk(model, batch, group, rows) for group in groups]
    baseline = _in_order(chunks, [chunk.take_baseline(metric, exact) for chunk in chunks])
    readings: dict[int, Tensor] = {}
    for layer in range(max(i.first_layer for i in interventions) + 1):
        variants = [n for n, i in enumerate(interventions) if i.first_layer == layer]
        key = f"layer{layer:03d}"
        known = store.get(key) if store is not None and variants else None
        if known is None and variants:
            edits = [interventions[n] for n in variants]
            known = _sweep_layer(model, chunks, edits, metric, baseline, exact, progress)
            if store is not None:
                store[key] = known
        elif known is not None:
            progress(len(variants) * len(batch.lengths))
        for chunk in chunks:
            chunk.advance()
        readings.update(zip(variants, known if known is not None else [], strict=True))
    return Swept(torch.stack([readings[n] for n in range(len(interventions))]), exact)


def _sweep_layer(
    model: HookedModel,
    chunks: "list[_Chunk]",
    edits: list[AblateHead],
    metric: Metric,
    baseline: Tensor,
    exact: bool,
    progress: Callable[[int], object],
) -> Float[Tensor, "variant *reading"]:
    """The readings of all interventions on one layer, at which all chunks stand."""
    needs = frozenset[str]().union(*(edit.ablation.needs for edit in edits))
    reference = _Reference(chunks, edits[0].first_layer, needs)
    parts = []
    for chunk in chunks:
        acts = chunk.look(edits[0].first_layer, scores="scores" in needs)
        read: list[Tensor] = []
        for start in range(0, len(edits), chunk.width):
            some = edits[start : start + chunk.width]
            z = [chunk.ablated_z(acts, edit, reference) for edit in some]
            if exact:
                last = LastToken(chunk.resume(some, acts, z), chunk.model.unembed)
            else:
                last = _joined([chunk.run_plainly(e, new) for e, new in zip(some, z, strict=True)])
            read.append(chunk.read(metric, last, some))
            progress(len(some) * len(chunk.prompts))
        parts.append(torch.cat(read).transpose(0, 1))
    return metric.gather(_in_order(chunks, parts).transpose(0, 1), baseline).cpu()


class _Chunk:
    """Prompts of similar length, and how far up the model their clean residual stream has been carried."""

    def __init__(
        self, model: HookedModel, batch: TokenBatch, prompts: Sequence[int], rows: int
    ) -> None:
        self.model = model
        self.prompts = prompts
        part = batch.select(prompts)
        real = torch.arange(part.ids.shape[1]) < part.lengths[:, None]
        # A pad token may lie outside the embedding; what stands there never matters.
        self.ids = part.ids.where(real, 0).to(model.device)
        self.lengths = part.lengths.to(model.device)
        # Sharing pays only where several prompts share.
        self.prefix = part.prefix_length if len(prompts) > 1 else 0
        self.width = max(1, rows // len(prompts))
        self.layer = 0
        self.resid = model.embed(self.ids)
        _, self.calls = model.record_calls(self.ids[:1])
        if self.prefix:
            self.prefix_calls, self.suffix_calls = model.record_calls(self.ids[:1], self.prefix)
        self.acts: AttentionActs | None = None

    # Clean ---------------------------------------------------------------------------------------------------------

    def look(self, layer: int, *, scores: bool) -> AttentionActs:
        """The clean block at the layer where this chunk stands."""
        if self.acts is None or (scores and self.acts.scores is None):
            call = self.calls[layer]
            self.acts = self.model.run_block_clean(layer, self.resid, call, scores=scores)
        return self.acts

    def advance(self) -> None:
        """Carry the clean residual stream through one more block."""
        if self.acts is not None:
            self.resid = self.acts.resid_post
        else:
            self.resid = self.model.run_block(self.layer, self.resid, self.calls[self.layer])
        self.layer, self.acts = self.layer + 1, None

    def take_baseline(self, metric: Metric, exact: bool) -> Tensor:
        """Read the undisturbed outputs, resumed like the ablated rows.

        In half precision they run at the ablated rows' width too, so that kernel noise cancels; in float32 a KL feels
        that noise to second order only (on two CPUs' threads the widths agree to the bit).
        """
        if exact:
            width = 1 if self.resid.dtype == torch.float32 else self.width
            rows = self.resid.expand(width, *self.resid.shape)
            states = self._run_from(0, rows, None)[: len(self.prompts)]
            self.baseline = LastToken(states, self.model.unembed)
        else:
            self.baseline = self._run_whole()
        if self.baseline.log_probs.isnan().any():
            raise ValueError(
                f"{self.model.name} gives NaN logits on the untouched prompts; check the weights, "
                "or load the model in float32 (half precision can overflow)"
            )
        return metric.read(self.baseline, self.baseline)

    # Ablated -------------------------------------------------------------------------------------------------------

    def ablated_z(
        self, acts: AttentionActs, edit: AblateHead, reference: "_Reference"
    ) -> Float[Tensor, "prompt pos d_head"]:
        """What replaces z of one head."""
        head = edit.head.head
        group = self.model.n_heads // acts.v.shape[2]
        needs = edit.ablation.needs
        return edit.ablation(
            HeadActs(
                z=acts.z[:, :, head],
                v=acts.v[:, :, head // group],
                visible=acts.visible.expand(len(acts.z), -1, -1),
                scores=acts.scores[:, head] if acts.scores is not None else None,
                softcap=self.model.score_softcap,
                mean=reference.mean[head] if "mean" in needs else None,
                donor=reference.donor(self.prompts, acts.z, edit) if "donor" in needs else None,
            )
        )

    def resume(
        self, edits: Sequence[AblateHead], acts: AttentionActs, z: Sequence[Tensor]
    ) -> Float[Tensor, "row d_model"]:
        """The last token's final state of every (edit, prompt) row, run from the ablated layer on."""
        layer = edits[0].first_layer
        attn_out = torch.stack(
            [
                acts.attn_out
                + self.model.write(layer, edit.head.head, new - acts.z[:, :, edit.head.head])
                for edit, new in zip(edits, z, strict=True)
            ]
        )
        return self._run_from(layer, self.resid.expand(len(edits), *self.resid.shape), attn_out)

    def _run_from(
        self,
        layer: int,
        resid: Float[Tensor, "variant prompt pos d_model"],
        attn_out: Float[Tensor, "variant prompt pos d_model"] | None,
    ) -> Float[Tensor, "row d_model"]:
        model, cut = self.model, self.prefix
        if cut and attn_out is not None and not _same_for_all_prompts(attn_out[:, :, :cut]):
            cut = 0  # an ablation that looks at the whole prompt leaves no prefix to share
        tail = resid[:, :, cut:].flatten(0, 1)
        tail_out = None if attn_out is None else attn_out[:, :, cut:].flatten(0, 1)
        if not cut:
            for at in range(layer, model.n_layers):
                tail = model.run_block(at, tail, self.calls[at], attn_out=tail_out)
                tail_out = None
            return model.final_norm(self._at_last(tail, 0))
        head = resid[:, 0, :cut]
        head_out = None if attn_out is None else attn_out[:, 0, :cut]
        for at in range(layer, model.n_layers):
            cache = SharedPrefix()
            head = model.run_block(at, head, self.prefix_calls[at], cache=cache, attn_out=head_out)
            tail = model.run_block(at, tail, self.suffix_calls[at], cache=cache, attn_out=tail_out)
            head_out = tail_out = None
        return model.final_norm(self._at_last(tail, cut))

    def read(
        self, metric: Metric, ablated: LastToken, edits: Sequence[AblateHead]
    ) -> Float[Tensor, "variant prompt *state"]:
        """What the metric keeps of each row."""
        copies = len(edits)
        baseline = LastToken(self.baseline.state.repeat(copies, 1), self.model.unembed)
        # The baseline's log-probabilities are known: repeat them rather than unembed again.
        baseline.__dict__["log_probs"] = self.baseline.log_probs.repeat(copies, 1)
        rows = metric.read(ablated, baseline).unflatten(0, (copies, -1))
        if rows.isnan().any():
            broken = [str(e.head) for e, r in zip(edits, rows, strict=True) if r.isnan().any()]
            raise ValueError(
                f"ablating {', '.join(broken)} of {self.model.name} gives NaN logits; load the model in float32"
            )
        return rows

    def run_plainly(self, edit: AblateHead, z: Float[Tensor, "prompt pos d_head"]) -> LastToken:
        """The same rows of one edit by one plain hooked forward pass."""
        with self.model.replacing_z(*edit.head, lambda _: z):
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
        self, prompts: Sequence[int], z: Float[Tensor, "prompt pos head d_head"], edit: AblateHead
    ) -> Float[Tensor, "prompt pos d_head"]:
        """The head's z on the prompts that lend to these, aligned as `ResampleAblation` says."""
        cycle = list(range(len(self.lengths)))
        random.Random(getattr(edit.ablation, "seed", 0)).shuffle(cycle)
        lender = {borrower: cycle[n - 1] for n, borrower in enumerate(cycle)}
        lenders = torch.tensor([lender[p] for p in prompts], device=self.lengths.device)
        own = torch.tensor(list(prompts), device=self.lengths.device)
        positions = self.positions[: z.shape[1]]
        shift = (self.lengths[lenders] - self.lengths[own])[:, None]
        source = (positions + shift).clamp_min(self.prefix)
        source = source.minimum(self.lengths[lenders, None] - 1)
        borrowed = self.z[lenders[:, None], source, edit.head.head]
        # Over the shared prefix the lender's z is the borrower's own.
        return torch.where(positions[:, None] < self.prefix, z[:, :, edit.head.head], borrowed)


def _chunks(batch: TokenBatch, size: int) -> list[list[int]]:
    """Indices of the prompts, sorted by length, in groups of at most `size`."""
    order = batch.lengths.argsort(stable=True).tolist()
    return [order[start : start + size] for start in range(0, len(order), size)]


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


def _joined(parts: Sequence[LastToken]) -> LastToken:
    """Several last tokens as one."""
    log_probs = torch.cat([part.log_probs for part in parts])
    return LastToken(torch.cat([part.state for part in parts]), lambda _: log_probs)


def _same_for_all_prompts(attn_out: Float[Tensor, "variant prompt pos d_model"]) -> bool:
    """Whether the prompts' shared prefix is still shared; rows of one batch differ by rounding only."""
    spread = (attn_out - attn_out[:, :1]).abs().max()
    return bool(spread <= 256 * torch.finfo(attn_out.dtype).eps * attn_out.abs().max())


def _require_head(model: HookedModel, edit: AblateHead) -> None:
    layer, head = edit.head
    if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
        raise ValueError(
            f"{edit.head} is not in {model.name}: it has layers 0-{model.n_layers - 1} "
            f"and heads 0-{model.n_heads - 1}"
        )


def _agrees(model: HookedModel, batch: TokenBatch, edit: AblateHead) -> bool:
    """Whether resuming gives what the model's own forward pass gives, undisturbed and with one head ablated."""
    chunk = _Chunk(model, batch, range(len(batch.lengths)), len(batch.lengths))
    plain = chunk._at_last(model.logits(chunk.ids), 0).float().log_softmax(-1)
    if plain.isnan().any():
        return True  # reported with the baseline
    resumed = chunk._run_from(0, chunk.resid[None], None)
    for _ in range(edit.first_layer):
        chunk.advance()
    acts = chunk.look(edit.first_layer, scores=True)
    lone = "donor" in edit.ablation.needs and len(batch.lengths) == 1
    swap = AblateHead(edit.head, ZeroAblation()) if lone else edit
    z = chunk.ablated_z(acts, swap, _Reference([chunk], edit.first_layer, swap.ablation.needs))
    pairs = [
        (plain, LastToken(resumed, model.unembed).log_probs),
        (
            chunk.run_plainly(swap, z).log_probs,
            LastToken(chunk.resume([swap], acts, [z]), model.unembed).log_probs,
        ),
    ]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.5
    worst = max(kl_divergence(expected, got).max().item() for expected, got in pairs)
    if worst <= tolerance**2:
        return True
    warnings.warn(
        f"{model.name}: resuming at a layer differs from the model's own forward pass (KL {worst:.2g} nat); "
        "every head is run by plain hooked forward passes instead, which is exact and slow",
        stacklevel=3,
    )
    return False
