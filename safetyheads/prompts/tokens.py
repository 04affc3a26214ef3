"""What does the model read? Templates, and prompts as tokens.

`render` writes each prompt into a template; `tokenize` renders and turns the texts into a right-padded `TokenBatch`,
with one BOS.
"""

import difflib
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safetyheads.prompts.chat import Chat, render_chat
from safetyheads.prompts.sets import check_texts

TEMPLATES: Mapping[str, str | None] = MappingProxyType(
    {"chat": None, "bare": "{q}", "query": "## Query:{q}\n## Answer:"}
)
"""The named templates; None stands for the tokenizer's own chat template."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenBatch:
    """Prompts as tokens, right padded: with a causal mask, padding changes nothing before it."""

    ids: Int[Tensor, "prompt pos"]
    """Token ids; from `lengths[i]` on, row i is padding."""
    lengths: Int[Tensor, " prompt"]
    """The number of real tokens of each row."""
    texts: tuple[str, ...]
    """The rendered prompts."""
    template: str
    """The template's name, or the template itself where it has none."""
    thinking: str = ""
    """What a chat template's thoughts were kept out by: a switch such as "enable_thinking=False", an empty thought."""

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.texts)

    def __repr__(self) -> str:
        prompts, width = self.ids.shape
        return (
            f"TokenBatch({prompts} prompts, {int(self.lengths.min())} to {width} tokens, "
            f"template {self.template!r}, {self.thinking and self.thinking + ', '}"
            f"fingerprint {self.fingerprint[:12]})"
        )

    @property
    def prefix_length(self) -> int:
        """How many tokens all prompts share from the start; always below the shortest length."""
        before_last = self.ids[:, : int(self.lengths.min()) - 1]
        shared = (before_last == before_last[:1]).all(dim=0)
        return int(shared.long().cumprod(dim=0).sum())

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the lengths and of the real tokens; padding does not count."""
        digest = hashlib.sha256(repr(self.lengths.tolist()).encode("ascii"))
        for row, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True):
            digest.update(repr(row[:length]).encode("ascii"))
        return digest.hexdigest()

    def select(self, indices: Sequence[int]) -> "TokenBatch":
        """The prompts at these indices, in this order, trimmed to the longest of them."""
        count = len(self)
        if not len(indices):
            raise ValueError(f"no indices given: expected at least one of 0 to {count - 1}")
        outside = [int(index) for index in indices if not 0 <= index < count]
        if outside:
            raise ValueError(f"no prompt at index {outside[0]}: expected 0 to {count - 1}")
        rows = torch.as_tensor([int(index) for index in indices], device=self.ids.device)
        lengths = self.lengths[rows]
        return TokenBatch(
            self.ids[rows, : int(lengths.max())],
            lengths,
            tuple(self.texts[int(index)] for index in indices),
            self.template,
            self.thinking,
        )


def default_template(tokenizer: Any) -> str:
    """The template for this tokenizer's model: "chat" where it has a chat template, else "bare"."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "bare"


def render(
    prompts: Sequence[object], template: str | None = None, tokenizer: Any = None
) -> list[str]:
    """Write each prompt into a template.

    Arguments:
        prompts: the prompts, strings.
        template: "chat", "bare", "query" or any string with {q}, where the prompt goes; None takes
            the tokenizer's default.
        tokenizer: the model's tokenizer; only "chat" and None need it.

    A chat template that thinks before it answers is switched off, or given an empty thought.

    Raises ValueError for no prompts, a blank one, a template without {q}, and for "chat" with a
    tokenizer that has no chat template, or one that does not write the prompt.

    >>> render(["How are you?"], "query")
    ['## Query:How are you?\\n## Answer:']
    """
    return _write(prompts, template, tokenizer).texts


def _write(prompts: Sequence[object], template: str | None, tokenizer: Any) -> Chat:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise ValueError(
            f"prompts are of type {type(prompts).__name__}: expected a list of strings "
            "(of a PromptSet, its .harmful or its .harmless)"
        )
    if not prompts:
        raise ValueError("the list of prompts is empty: expected at least one string")
    check_texts(prompts, "prompt")
    texts = [str(prompt) for prompt in prompts]
    template = default_template(tokenizer) if template is None else template
    if template == "chat":
        return _write_chat(texts, tokenizer)
    pattern = TEMPLATES.get(template) or template
    if "{q}" not in pattern:
        near = difflib.get_close_matches(pattern.lower(), TEMPLATES, n=1)
        raise ValueError(
            f"template {template[:60]!r} has no {{q}}, which is where the prompt goes"
            + (f"; did you mean {near[0]!r}? Use " if near else ": use ")
            + f"{', '.join(map(repr, TEMPLATES))} or a string with {{q}}"
        )
    return Chat([pattern.replace("{q}", text) for text in texts], "")


def _write_chat(texts: list[str], tokenizer: Any) -> Chat:
    if default_template(tokenizer) != "chat":
        raise ValueError(
            "template='chat' was asked for and the tokenizer has no chat template (a base model?): "
            "use template='bare' or template='query', or set tokenizer.chat_template"
        )
    return render_chat(texts, tokenizer)


def tokenize(
    prompts: Sequence[object],
    tokenizer: Any,
    template: str | None = None,
    *,
    max_length: int | None = None,
) -> TokenBatch:
    """Render prompts and turn them into tokens, with the model's own tokenizer and one BOS.

    A chat template usually writes BOS itself: one is added only where the tokenizer adds one to
    plain text and the rendered text lacks it. Other templates get what the tokenizer adds in
    front (for some models nothing), and never what it adds at the end.

    Arguments:
        prompts: the prompts, strings.
        tokenizer: a Hugging Face tokenizer.
        template: as for `render`; None takes the tokenizer's default.
        max_length: the model's context, in tokens; None for no limit.

    Raises ValueError for what `render` refuses, for a row that starts with two BOS, and for a row
    that is longer than `max_length` or has no tokens, and for different prompts with the same tokens.
    """
    template = default_template(tokenizer) if template is None else template
    texts, thinking = _write(prompts, template, tokenizer)
    chat = template == "chat"
    bos, appended = _specials(tokenizer)
    rows = _encode(tokenizer, texts, add_special_tokens=not chat)
    for index, row in enumerate(rows):
        if chat:
            if bos is not None and row[:1] != [bos]:
                row.insert(0, bos)
        elif appended and row[-len(appended) :] == appended:
            del row[-len(appended) :]
        _check_row(index, row, tokenizer, chat, max_length)
    _check_alike(rows, prompts)
    lengths = [len(row) for row in rows]
    pad = getattr(tokenizer, "pad_token_id", None)
    ids = torch.full((len(rows), max(lengths)), 0 if pad is None else pad, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return TokenBatch(
        ids, torch.tensor(lengths, dtype=torch.int64), tuple(texts), template, thinking
    )


def _encode(tokenizer: Any, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    # Both are said, because a tokenizer may carry padding and truncation of its own.
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, padding=False, truncation=False, verbose=False
    )
    return [list(row) for row in encoded["input_ids"]]


def _specials(tokenizer: Any) -> tuple[int | None, list[int]]:
    """The BOS that the tokenizer puts before plain text (None: it puts none), and what it appends.

    The model of a tokenizer may know a BOS that is never used (Qwen, GPT-2), or one that a chat
    template uses to begin every turn (SmolLM2): only what the tokenizer does counts.
    """
    dressed = _encode(tokenizer, ["x"], add_special_tokens=True)[0]
    plain = _encode(tokenizer, ["x"], add_special_tokens=False)[0]
    bos = getattr(tokenizer, "bos_token_id", None)
    adds_bos = bos is not None and dressed[:1] == [bos] and plain[:1] != [bos]
    starts = range(len(dressed) - len(plain) + 1)
    start = next((i for i in starts if dressed[i : i + len(plain)] == plain), None)
    appended = dressed[start + len(plain) :] if start is not None and plain else []
    return (bos if adds_bos else None), appended


def _check_alike(rows: Sequence[Sequence[int]], prompts: Sequence[object]) -> None:
    """Refuse different prompts that the model could not tell apart; blanks and letters' forms may be lost."""
    first: dict[tuple[int, ...], int] = {}
    for place, row in enumerate(rows):
        other = first.setdefault(tuple(row), place)
        if other != place and _letters(prompts[other]) != _letters(prompts[place]):
            raise ValueError(
                f"the prompts at index {other} and {place} differ, and their tokens are the same: does this tokenizer "
                "belong to the model, and know the words of the prompts?"
            )


def _letters(prompt: object) -> str:
    return "".join(unicodedata.normalize("NFKC", str(prompt)).casefold().split())


def _check_row(
    index: int, row: list[int], tokenizer: Any, chat: bool, max_length: int | None
) -> None:
    if not row:
        raise ValueError(
            f"the prompt at index {index} has no tokens: does this tokenizer belong to the model?"
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and row[0] == bos and bos in row[1:]:
        between = row[1 : row.index(bos, 1)]
        if not between or not str(tokenizer.decode(between)).strip():
            who = (
                "the chat template writes BOS twice, or the prompt begins with it"
                if chat
                else "the tokenizer adds BOS, and the template or the prompt writes it too"
            )
            raise ValueError(
                f"the prompt at index {index} starts with two BOS tokens "
                f"({tokenizer.bos_token!r}): {who}; remove the text of BOS, one is enough"
            )
    if max_length is not None and len(row) > max_length:
        raise ValueError(
            f"the prompt at index {index} has {len(row)} tokens (template included) and the limit "
            f"is {max_length}: shorten or remove it"
        )
