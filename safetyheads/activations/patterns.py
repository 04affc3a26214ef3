"""How are the attention patterns of many prompts read, a batch at a time?

What the probes of attention share: passes of prompts of similar length, and each prompt's pattern without its padding.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from safetyheads.models.hooked import HookedModel
from safetyheads.models.watching import watch_patterns
from safetyheads.progress import bar
from safetyheads.prompts import TokenBatch

TOKENS_A_PASS = 1024
"""Tokens of one forward pass over several prompts."""


def checked_layers(model: HookedModel, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    """One layer, some or all, in order; ValueError for one that the model does not have."""
    asked = (
        range(model.n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    )
    if not asked:
        raise ValueError("layers is empty; name at least one, or None for all")
    for layer in asked:
        if not 0 <= layer < model.n_layers:
            raise ValueError(
                f"layer {layer} is not in {model.name}: it has layers 0-{model.n_layers - 1}"
            )
    return tuple(sorted(set(asked)))


def checked_heads(model: HookedModel, heads: Sequence[int] | None) -> tuple[int, ...]:
    """Some heads of each layer or all, in order; ValueError for one that the model does not have."""
    asked = tuple(range(model.n_heads)) if heads is None else tuple(sorted(set(heads)))
    wrong = [head for head in asked if not 0 <= head < model.n_heads]
    if wrong or not asked:
        raise ValueError(
            f"heads is {list(asked)}; {model.name} has the heads 0-{model.n_heads - 1} in each layer"
        )
    return asked


def each_pattern(
    model: HookedModel,
    batch: TokenBatch,
    layers: Sequence[int],
    length: int,
    add: Callable[[int, int, Tensor, Tensor], None],
    label: str,
    progress: bool | None,
) -> None:
    """Call `add(layer, prompt, pattern [head, query, key], visible [query, key])` for every prompt, padding cut off."""
    for prompts, ids, lengths in passes(model, batch, length, label, progress):

        def read(
            layer: int,
            patterns: Tensor,
            visible: Tensor,
            prompts: Sequence[int] = prompts,
            sizes: Sequence[int] = lengths.tolist(),
        ) -> None:
            for row, (prompt, n) in enumerate(zip(prompts, sizes, strict=True)):
                add(layer, prompt, patterns[row, :, :n, :n].float(), visible[:n, :n])

        watch_patterns(model, ids, layers, read)


def passes(
    model: HookedModel, batch: TokenBatch, length: int, label: str, progress: bool | None
) -> Iterator[tuple[list[int], Int[Tensor, "row pos"], Int[Tensor, " row"]]]:
    """Indices, tokens and lengths of prompts of similar length, in passes of `TOKENS_A_PASS`, cut at `length`."""
    lengths = batch.lengths.clamp_max(length)
    if int(lengths.max()) > model.context:
        raise ValueError(
            f"a prompt has {int(lengths.max())} tokens (template included) and {model.name} takes {model.context}: "
            f"shorten it, or pass length={model.context}"
        )
    order = lengths.argsort(stable=True).tolist()
    with bar(len(order), label, "prompt", progress) as shown:
        while order:
            # Sorted by length: the last row of a pass is its longest.
            rows = 1
            while rows < len(order) and (rows + 1) * int(lengths[order[rows]]) <= TOKENS_A_PASS:
                rows += 1
            chosen, order = order[:rows], order[rows:]
            sizes = lengths[chosen]
            ids = batch.ids[chosen, : int(sizes.max())]
            real = torch.arange(ids.shape[1]) < sizes[:, None]
            # A pad token may lie outside the embedding; what stands there never matters.
            yield chosen, ids.where(real, 0), sizes
            shown.update(rows)
