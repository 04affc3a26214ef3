"""From which parts of a prompt do given heads read: the system text, the request, the jailbreak's own tokens?"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safetyheads.activations.patterns import each_pattern
from safetyheads.heads import Head, parse_heads
from safetyheads.inputs import Inputs, prepare_both
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.attention.divergence import lengthened
from safetyheads.prompts import PromptSet, Segment, TokenBatch, find_segments

if TYPE_CHECKING:
    import pandas


@torch.inference_mode()
def attention_by_segment(
    model: Any,
    benign: PromptSet | Sequence[str] | str | Path,
    jailbreak: PromptSet | Sequence[str] | str | Path,
    heads: Sequence[Head | str | tuple[int, int]],
    *,
    template: str | None = None,
    progress: bool | None = None,
) -> "pandas.DataFrame":
    """How much attention do given heads take from each part of the prompt, and how much goes to the jailbreak's tokens?

    The query is the last token, where safety heads are scored. `heads` are in order of rank, such as
    `ranking.top()["label"]`. The two sets should hold the same requests, plain and in a jailbreak template; a third,
    the plain ones behind as much neutral prose, shows what length does.

    Returns a table, a row a head, set and segment: label, layer, head, rank (place in `heads`), prompts ("benign",
    "lengthened", "jailbreak"), segment, share [1] (mean over prompts), tokens (mean number), even_share (what attention
    spread evenly over all tokens gives), other_heads (mean share of the layer's heads that are not in `heads`). The
    first token, which heads attend to when they have nothing to do, is a segment of its own.

    Raises ValueError for what `attention_maps` refuses, heads that are not there, or a tokenizer that does not say
    which characters a token covers.
    """
    import pandas

    model = load_model(model)
    chosen = parse_heads(heads)
    if not chosen:
        raise ValueError("there are no heads; give at least one, such as L3H7")
    for head in chosen:
        model.require_head(*head)
    layers = tuple(sorted({head.layer for head in chosen}))
    plain, attack = prepare_both(model, benign, jailbreak, template=template)
    sets: dict[str, tuple[Inputs, Sequence[str] | None]] = {
        "benign": (plain, plain.texts),
        "lengthened": (lengthened(plain, attack, template), plain.texts),
        "jailbreak": (attack, None),
    }
    rows: list[dict[str, Any]] = []
    for name, (inputs, requests) in sets.items():
        spans = find_segments(inputs.batch, inputs.texts, model.tokenizer, requests)
        if not all(spans):
            raise ValueError(
                f"the segments of the {name} prompts cannot be told: this needs a fast tokenizer and a "
                "chat template that leaves the user's text as it is"
            )
        rows += _segment_rows(model, inputs.batch, spans, chosen, layers, name, progress)
    return pandas.DataFrame(rows)


FIRST = "first token"


def _segment_rows(
    model: HookedModel,
    batch: TokenBatch,
    spans: Sequence[tuple[Segment, ...]],
    chosen: Sequence[Head],
    layers: Sequence[int],
    name: str,
    progress: bool | None,
) -> Iterator[dict[str, Any]]:
    shares: dict[tuple[int, str], Tensor] = {}
    tokens: dict[str, float] = {}
    # The first token apart from the segment that it is in.
    parted = [
        [Segment(FIRST, 0, 1), *(p._replace(start=max(p.start, 1)) for p in parts if p.stop > 1)]
        for parts in spans
    ]
    for parts in parted:
        for part in parts:
            size = (part.stop - part.start) / len(batch)
            tokens[part.name] = tokens.get(part.name, 0.0) + size

    def add(layer: int, row: int, pattern: Tensor, visible: Tensor) -> None:
        last = pattern[:, -1].cpu()
        for part in parted[row]:
            share = last[:, part.start : part.stop].sum(-1) / len(batch)
            key = layer, part.name
            shares[key] = shares.get(key, torch.zeros(())) + share

    each_pattern(model, batch, layers, int(batch.lengths.max()), add, name, progress)
    length = batch.lengths.double().mean().item()
    for rank, head in enumerate(chosen, start=1):
        others = [h for h in range(model.n_heads) if Head(head.layer, h) not in chosen]
        for segment, count in tokens.items():
            share = shares[head.layer, segment]
            yield {
                "label": str(head),
                "layer": head.layer,
                "head": head.head,
                "rank": rank,
                "prompts": name,
                "segment": segment,
                "share": share[head.head].item(),
                "tokens": count,
                "even_share": count / length,
                "other_heads": share[others].mean().item() if others else math.nan,
            }
