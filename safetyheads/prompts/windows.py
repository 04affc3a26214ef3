"""Which short pieces of running text are read? Windows of so many tokens, as they stand in a text."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from safetyheads.prompts.tokens import TokenBatch


def text_windows(
    texts: Sequence[str], tokenizer: Any, *, length: int = 10, count: int = 1000, seed: int = 0
) -> TokenBatch:
    """Draw windows of a number of tokens out of texts, one a text at most, without BOS or template.

    Only windows that are read back from their own text token by token are taken. Texts are drawn in an order of the
    seed; `count` is how many windows there are at most.

    Raises ValueError for one string in the place of several, a length or count below 1, and where not one window of
    the length is found.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of them, such as its paragraphs")
    if length < 1 or count < 1:
        raise ValueError(f"length is {length} and count {count}; both must be at least 1")
    drawn = random.Random(seed)
    order = list(range(len(texts)))
    drawn.shuffle(order)
    rows: list[list[int]] = []
    pieces: list[str] = []
    for number in order:
        if len(rows) == count:
            break
        tokens = tokenizer(texts[number], add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) < length:
            continue
        start = drawn.randrange(len(tokens) - length + 1)
        window = list(tokens[start : start + length])
        piece = tokenizer.decode(window)
        again = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        if list(again) == window and window not in rows:
            rows.append(window)
            pieces.append(piece)
    if not rows:
        raise ValueError(
            f"none of {len(texts)} texts has a window of {length} tokens that is read back from its own text; give "
            "longer texts, or a smaller length"
        )
    lengths = torch.full((len(rows),), length)
    return TokenBatch(torch.tensor(rows), lengths, tuple(pieces), "bare")
