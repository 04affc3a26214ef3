"""What does a model answer, many prompts at a time? Greedily, in its own chat template."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safetyheads.models.cache_names import cache_argument
from safetyheads.progress import bar
from safetyheads.prompts.chat import render_chat


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 24,
    rows: int = 32,
    progress: bool | None = None,
) -> list[list[int]]:
    """Each prompt's answer, in tokens without what ends it.

    `model` is a Hugging Face causal language model, `rows` how many prompts share a pass. Prompts of similar length
    go together, padded on the left; an answer does not depend on its company beyond rounding.
    """
    ids = tokenize_chats(tokenizer, prompts)
    beginning = shared_beginning(ids)
    ids = [row[len(beginning) :] for row in ids]
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    answers: list[list[int]] = [[] for _ in ids]
    ends = end_tokens(model, tokenizer)
    with bar(len(ids), "answering", "prompt", progress) as shown, torch.inference_mode():
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            told = _go_on(model, beginning, [ids[n] for n in chosen], max_new_tokens, ends)
            for n, new in zip(chosen, told, strict=True):
                answers[n] = new
            shown.update(len(chosen))
    return answers


def tokenize_chats(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Each prompt as a user's turn in the chat template, in tokens; ValueError where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, and refusals are learnt as answers in a chat: set "
            "tokenizer.chat_template to the model's own"
        )
    texts = render_chat(prompts, tokenizer).texts
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def shared_beginning(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens with which all rows begin, at least one token of each left over.

    >>> shared_beginning([[1, 2, 3], [1, 2, 4, 5]])
    [1, 2]
    """
    most = min(map(len, rows)) - 1
    first = list(rows[0])
    return first[: next((n for n in range(most) if any(r[n] != first[n] for r in rows)), most)]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer; where an answer is written, the tokenizer's own."""
    settings = getattr(model, "generation_config", None)
    told = [getattr(settings, "eos_token_id", None), tokenizer.eos_token_id]
    flat = [one for some in told for one in (some if isinstance(some, list) else [some])]
    return {int(one) for one in flat if one is not None}


def _go_on(
    model: Any, beginning: list[int], ids: list[list[int]], most: int, ends: set[int]
) -> list[list[int]]:
    from transformers import DynamicCache

    device = next(model.parameters()).device
    begun, longest = len(beginning), max(map(len, ids))
    shared = torch.tensor([beginning], device=device)
    cache, name = DynamicCache(config=model.config), cache_argument(model)
    model(input_ids=shared, use_cache=True, logits_to_keep=1, **{name: cache})
    cache.batch_repeat_interleave(len(ids))
    pads = torch.tensor([longest - len(row) for row in ids], device=device)[:, None]
    rows = [[0] * (longest - len(row)) + row for row in ids]
    tokens: Int[Tensor, "row pos"] = torch.tensor(rows, device=device)
    at = torch.arange(longest, device=device)[None]
    seen = torch.cat([torch.ones(len(ids), begun, device=device), at >= pads], 1).long()
    positions = begun + (at - pads).clamp(min=0)
    new: list[Int[Tensor, " row"]] = []
    done = torch.zeros(len(ids), dtype=torch.bool, device=device)
    while len(new) < most and not bool(done.all()):
        out = model(
            input_ids=tokens,
            attention_mask=seen,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{name: cache},
        )
        new.append(out.logits[:, -1].argmax(-1))
        for end in ends:
            done |= new[-1] == end
        tokens, positions = new[-1][:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
    answers = torch.stack(new, 1).tolist()
    return [_until(row, ends) for row in answers]


def _until(row: list[int], ends: set[int]) -> list[int]:
    stop = next((n for n, token in enumerate(row) if token in ends), len(row))
    return row[:stop]
