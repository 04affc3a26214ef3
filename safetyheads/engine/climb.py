"""How is the clean residual stream carried up the model, a layer at a time?

Prompts of similar length go up together (`Rows`). `climb` runs each block once for them, and stops at every layer that
somebody wants to look at; what happens there, and whether more than the stream is looked at, it does not know.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.site import Reference, Site, Variant
from safetyheads.models.attention import AttentionActs
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.models.packing import Packing
from safetyheads.models.replaying import BlockCall
from safetyheads.prompts import TokenBatch

TOKENS_A_PASS = {"cpu": 1536, "cuda": 16384}
"""Tokens in one forward pass, unless the caller bounds the rows: where matrix multiplications are at their fastest."""
PROMPTS_TOGETHER = 64
"""Prompts of similar length that are swept together, at most."""
LOOK_TOKENS = 4096
"""Tokens of one clean pass that keeps every head's activations."""
OF_OTHERS = frozenset({"mean", "donor"})
"""What a variant may need of the other prompts."""


class Group(NamedTuple):
    """Prompts that are swept together, and how many variants of them share a forward pass."""

    prompts: list[int]
    width: int


def layout(
    batch: TokenBatch,
    rows: int | None = None,
    device: str = "cpu",
    among: Collection[int] | None = None,
) -> list[Group]:
    """The prompts sorted by length, in groups: of at most `rows` rows a pass, or of about `TOKENS_A_PASS` tokens.

    With `among`, these prompts only.
    """
    order = batch.lengths.argsort(stable=True).tolist()
    order = [prompt for prompt in order if among is None or prompt in among]
    budget = TOKENS_A_PASS.get(device, TOKENS_A_PASS["cuda"])
    size = rows or max(1, budget // int(batch.lengths.max() - batch.prefix_length))
    size = min(size, PROMPTS_TOGETHER)
    groups = []
    for start in range(0, len(order), size):
        prompts = order[start : start + size]
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        tokens = prefix + len(prompts) * (part.ids.shape[1] - prefix)
        groups.append(Group(prompts, max(1, rows // len(prompts) if rows else budget // tokens)))
    return groups


Calls = dict[tuple[int, int], tuple[list[BlockCall], list[BlockCall]]]
"""What the model passes to its blocks, by the prompts' length and the shared prefix's."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Prompts of similar length that share forward passes, and what the model passes to its blocks for them."""

    model: HookedModel
    prompts: tuple[int, ...]
    """Which prompts of the batch these are."""
    width: int
    """How many variants of them share a pass."""
    ids: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]
    prefix: int
    """How many tokens they share; sharing pays only where several prompts share."""
    calls: list[BlockCall]
    """Of each block, on whole prompts."""
    prefix_calls: list[BlockCall]
    """On the shared prefix; empty where there is none."""
    suffix_calls: list[BlockCall]
    """On what follows it."""
    packings: dict[tuple[int, bool], tuple[list[Packing], list[BlockCall]]] = field(
        default_factory=dict
    )
    """How the prompts are packed behind so many shared tokens, and whether these were run before; once somebody has
    asked."""

    @classmethod
    def of(
        cls,
        model: HookedModel,
        batch: TokenBatch,
        group: Group,
        calls: Calls,
        prefix: int | None = None,
    ) -> "Rows":
        """The rows of a group of prompts; `calls` keeps what was recorded for others of the same lengths.

        `prefix` says how many tokens they share with prompts that are run at another time; by default they share what
        they can among themselves.
        """
        prompts, width = group
        ids, lengths = token_rows(model, batch, prompts)
        if prefix is None:
            prefix = batch.select(prompts).prefix_length if len(prompts) > 1 else 0

        def recorded(prefix: int) -> tuple[list[BlockCall], list[BlockCall]]:
            shape = ids.shape[1], prefix
            if shape not in calls:
                calls[shape] = Blocks(model).record(ids[:1], prefix)
            return calls[shape]

        whole = recorded(0)[1]
        first, rest = recorded(prefix) if prefix else ([], [])
        return cls(model, tuple(prompts), width, ids, lengths, prefix, whole, first, rest)

    @property
    def recorded(self) -> Calls:
        """What was recorded for them, by length and shared prefix: for others of the same lengths."""
        length = self.ids.shape[1]
        found: Calls = {(length, 0): ([], self.calls)}
        if self.prefix:
            found[length, self.prefix] = self.prefix_calls, self.suffix_calls
        return found

    def at_last(self, rows: Float[Tensor, "row pos d"], cut: int = 0) -> Float[Tensor, "row d"]:
        """The last token of each row, of rows that lack the first `cut` tokens; any number of copies of the prompts."""
        last = (self.lengths.to(rows.device) - 1 - cut).repeat(len(rows) // len(self.lengths))
        return rows[torch.arange(len(rows), device=rows.device), last]

    def look(
        self, layer: int, resid: Float[Tensor, "prompt pos d_model"], *, scores: bool
    ) -> AttentionActs:
        """The clean block, and what all its heads compute."""
        parts = [
            Blocks(self.model).look(layer, some, self.calls[layer], scores=scores)
            for some in resid.split(max(1, LOOK_TOKENS // resid.shape[1]))
        ]
        return parts[0] if len(parts) == 1 else _stacked(parts)

    def site(
        self,
        layer: int,
        resid: Tensor,
        acts: AttentionActs | None,
        references: Mapping[int, Reference],
    ) -> Site:
        """Where these prompts stand at a layer."""
        prompts, lengths = self.prompts, self.lengths.to(resid.device)
        return Site(self.model, layer, prompts, lengths, self.prefix, resid, acts, references)


def token_rows(
    model: HookedModel, batch: TokenBatch, prompts: list[int]
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]:
    """The tokens and lengths of some prompts, where the model is."""
    part = batch.select(prompts)
    real = torch.arange(part.ids.shape[1]) < part.lengths[:, None]
    # A pad token may lie outside the embedding; what stands there never matters.
    return part.ids.where(real, 0).to(model.device), part.lengths.to(model.device)


def all_rows(
    model: HookedModel, batch: TokenBatch, rows: int | None = None, calls: Calls | None = None
) -> list[Rows]:
    """All prompts of a batch, as `layout` groups them; `calls` has what was recorded, and gets what is."""
    calls = {} if calls is None else calls
    groups = layout(batch, rows, model.device.type)
    return [Rows.of(model, batch, group, calls) for group in groups]


def climb(
    groups: Sequence[Rows],
    looked: Mapping[int, frozenset[str]],
    given: AblateHeads | None = None,
    references: Mapping[int, Reference] | None = None,
    entered: tuple[int, Sequence[Tensor]] | None = None,
) -> Iterator[tuple[Rows, Site]]:
    """Carry all prompts up to the highest layer that is looked at; at each of these, show every group's site.

    `looked` says for each layer what is needed there: nothing but the stream, "acts", "scores", and "mean" or "donor",
    which take a reference from all groups' clean passes unless `references` has one. The heads of `given` are ablated
    in the stream. `entered` has each group's stream where it enters a layer, to go on from there.
    """
    known = dict(references or {})
    if entered is None:
        entered = 0, [Blocks(rows.model).embed(rows.ids) for rows in groups]
    bottom, resids = entered
    of_given = {head.layer for head in given.heads} if given else set[int]()
    top = max(looked, default=-1)
    for layer in range(bottom, top + 1):
        needs = looked.get(layer, frozenset())
        given_here = given if layer in of_given else None
        if given_here is not None:
            needs = needs | given_here.needs
        resids = [
            resid.to(Blocks(rows.model).device(layer))
            for rows, resid in zip(groups, resids, strict=True)
        ]
        acts: list[AttentionActs | None] = [None] * len(groups)
        if needs & OF_OTHERS and layer not in known:
            acts = [
                rows.look(layer, resid, scores="scores" in needs)
                for rows, resid in zip(groups, resids, strict=True)
            ]
            known[layer] = _reference(groups, acts)
        for n, rows in enumerate(groups):
            resid, seen = resids[n], acts[n]
            acts[n] = None
            if seen is None and "acts" in needs:
                seen = rows.look(layer, resid, scores="scores" in needs)
            if seen is not None and given_here is not None:
                change = given_here.change(rows.site(layer, resid, seen, known))
                out = seen.attn_out + change
                post = Blocks(rows.model).run(layer, resid, rows.calls[layer], attn_out=out)
                seen = seen._replace(attn_out=out, resid_post=post)
            if layer in looked:
                yield rows, rows.site(layer, resid, seen, dict(known))
            if layer == top:
                continue
            resids[n] = (
                Blocks(rows.model).run(layer, resid, rows.calls[layer])
                if seen is None
                else seen.resid_post
            )
        if layer not in (references or {}):
            known.pop(layer, None)


def references_of(
    groups: Sequence[Rows],
    variants: Sequence[Variant],
    given: AblateHeads | None,
    *,
    everywhere: bool = False,
) -> dict[int, Reference]:
    """What variants may need to know of the untouched model and a climb cannot tell them: in the layers above the one
    where they start, wherever heads are given, and `everywhere` if the climb will be of some prompts only."""
    needs = needs_of([*variants, *([given] if given else [])])
    above = {head.layer for v in variants for head in v.heads if head.layer != v.first_layer}
    if not needs & OF_OTHERS or not (above or given or everywhere):
        return {}
    every = dict.fromkeys(range(groups[0].model.n_layers), needs)
    return {site.layer: site.references[site.layer] for _, site in climb(groups, every)}


def needs_of(variants: Sequence[Variant]) -> frozenset[str]:
    """What some of the variants need."""
    return frozenset[str]().union(*(variant.needs for variant in variants))


def in_order(groups: Sequence[Rows], parts: Sequence[Tensor]) -> Tensor:
    """Rows that were read group by group, in the order of the prompts."""
    prompts = torch.tensor([prompt for rows in groups for prompt in rows.prompts])
    joined = torch.cat(list(parts))
    return joined[prompts.argsort().to(joined.device)]


def _reference(groups: Sequence[Rows], acts: Sequence[AttentionActs | None]) -> Reference:
    looks = [seen.z for seen in acts if seen is not None]
    longest = max(z.shape[1] for z in looks)
    padded = [torch.nn.functional.pad(z, (0, 0, 0, 0, 0, longest - z.shape[1])) for z in looks]
    prompts = sorted(prompt for rows in groups for prompt in rows.prompts)
    lengths = in_order(groups, [rows.lengths for rows in groups]).to(looks[0].device)
    return Reference.of(in_order(groups, padded), lengths, prompts, _shared_prefix(groups))


def _shared_prefix(groups: Sequence[Rows]) -> int:
    """How many tokens all prompts have in common, short of the shortest one's last."""
    first = groups[0].ids[0]
    shortest = min(int(rows.lengths.min()) for rows in groups) - 1
    same = [
        int((rows.ids[:, :shortest] == first[:shortest]).all(0).long().cumprod(0).sum())
        for rows in groups
    ]
    return min(same)


def _stacked(parts: Sequence[AttentionActs]) -> AttentionActs:
    """The clean passes of several prompts as one."""
    fields: dict[str, Any] = {
        name: None if tensors[0] is None else torch.cat(tensors)
        for name, tensors in zip(AttentionActs._fields, zip(*parts, strict=True), strict=True)
    }
    return AttentionActs(**{**fields, "visible": parts[0].visible, "sinks": parts[0].sinks})
