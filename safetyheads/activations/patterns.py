"""How are the attention patterns of many prompts read, a batch at a time?

What the probes of attention share: prompts become tokens or an error that says why not, passes of prompts of similar
length, and each prompt's pattern without its padding.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import PromptSet, TokenBatch, load_prompts, tokenize

TOKENS_A_PASS = 1024
"""Tokens of one forward pass over several prompts."""

Source = PromptSet | TokenBatch | Sequence[str] | str | Path
"""Where prompts come from: what `load_prompts` takes, or tokens."""
Side = tuple[list[str], TokenBatch]
"""The users' texts (none where a TokenBatch came) and their tokens."""


def tokenized(model: HookedModel, prompts: Source, template: str | None, side: str) -> Side:
    """One side of a set of prompts, "harmful" or "harmless", in the model's tokens."""
    if isinstance(prompts, TokenBatch):
        check_tokenizer(model, prompts)
        return [], prompts
    found = load_prompts(prompts)
    texts = list(getattr(found, side))
    return texts, tokenize(texts, model.tokenizer, template)


def two_sets(
    model: HookedModel, benign: Any, jailbreak: Any, template: str | None, names: Sequence[str]
) -> tuple[Side, Side]:
    """Both sets in tokens, or an error that says which one cannot be compared."""
    sides: list[Side] = []
    for prompts, name in zip((benign, jailbreak), names, strict=True):
        if isinstance(prompts, list | tuple) and not prompts:
            raise ValueError(f"there are no {name} prompts; give at least 2")
        side = "harmful"
        if not isinstance(prompts, TokenBatch):
            prompts = load_prompts(prompts)
            side = "harmless" if not sides and prompts.harmless else side
        texts, batch = tokenized(model, prompts, template, side)
        if len(batch) < 2:
            raise ValueError(
                f"there is 1 {name} prompt; a mean over prompts needs at least 2 (capture_attention takes one)"
            )
        sides.append((texts, batch))
    if sides[0][1].template != sides[1][1].template:
        ours, theirs = (batch.template[:60] for _, batch in sides)
        raise ValueError(
            f"the {names[0]} prompts are in the template {ours!r} and the {names[1]} prompts in {theirs!r}: the "
            "difference would show the template; tokenize both with the same"
        )
    return sides[0], sides[1]


def check_tokenizer(model: HookedModel, batch: TokenBatch) -> None:
    """A batch that another tokenizer made is refused: its text, in tokens, must end its own first row."""
    row = batch.ids[0, : int(batch.lengths[0])].tolist()
    encoded = model.tokenizer(batch.texts[0], add_special_tokens=False, verbose=False)["input_ids"]
    if row[-len(encoded) :] != list(encoded):
        raise ValueError(
            f"these prompts were tokenized by another tokenizer than {model.name}'s; tokenize both sets with "
            "model.tokenizer"
        )


def describe_tokenizer(tokenizer: Any) -> str:
    """What tells two tokenizers apart, for a manifest."""
    sample = tokenizer("The quick brown fox, 1492.", add_special_tokens=False)["input_ids"]
    return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens, {list(sample)}"


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

        model.visit_patterns(ids, layers, read)


def passes(
    model: HookedModel, batch: TokenBatch, length: int, label: str, progress: bool | None
) -> Iterator[tuple[list[int], Int[Tensor, "row pos"], Int[Tensor, " row"]]]:
    """Indices, tokens and lengths of prompts of similar length, in passes of `TOKENS_A_PASS`, cut at `length`."""
    from tqdm.auto import tqdm

    lengths = batch.lengths.clamp_max(length)
    if int(lengths.max()) > model.context:
        raise ValueError(
            f"a prompt has {int(lengths.max())} tokens (template included) and {model.name} takes {model.context}: "
            f"shorten it, or pass length={model.context}"
        )
    order = lengths.argsort(stable=True).tolist()
    bar = tqdm(
        total=len(order),
        desc=label,
        unit="prompt",
        disable=None if progress is None else not progress,
    )
    with bar:
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
            bar.update(rows)
