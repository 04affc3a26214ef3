"""How does a model answer many prompts at once, as it would answer each alone?

A batch runs with the KV cache, behind the prefix that its prompts share, with padding on the left.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.metrics import refusal_log_odds
from safetyheads.models.going_on import cache_fault
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import TokenBatch


@dataclass(frozen=True)
class Decoding:
    """How an answer is drawn from the model.

    Raises ValueError for a setting out of range.

    >>> Decoding(max_new_tokens=24).is_greedy
    True
    """

    max_new_tokens: int = 32
    """The longest answer; 24 tokens tell a refusal."""
    top_k: int | None = None
    """Each token is drawn from so many of the most likely; None takes the most likely."""
    temperature: float | int = 1.0
    """Logits are divided by it before a token is drawn."""
    seed: int = 0
    """Of the random numbers, which depend on it and the prompt's place in its batch and on nothing else."""

    def __post_init__(self) -> None:
        whole = (
            ("max_new_tokens", self.max_new_tokens, "at least 1"),
            ("top_k", self.top_k, "at least 1, or None for the most likely token"),
        )
        for name, value, wanted in whole:
            if (value is not None or name != "top_k") and not (type(value) is int and value >= 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of {wanted}")
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < math.inf):
            raise ValueError(
                f"temperature is {self.temperature!r}; it must be a number above 0 (top_k=None answers without chance)"
            )
        if type(self.seed) is not int:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number")

    @property
    def is_greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.top_k is None

    def choose(self, log_probs: Float[Tensor, " d_vocab"], stream: random.Random) -> int:
        """The next token."""
        if self.top_k is None:
            return int(log_probs.argmax())
        best = log_probs.topk(min(self.top_k, len(log_probs)))
        shares = (best.values / self.temperature).softmax(-1).cumsum(-1)
        place = int((shares < stream.random()).sum())
        return int(best.indices[min(place, len(shares) - 1)])


GREEDY = Decoding()
"""The most likely token at every step, 32 of them."""


def as_decoding(value: Decoding) -> Decoding:
    """A decoding; ValueError for anything else."""
    if isinstance(value, Decoding):
        return value
    hint = f"Decoding({value})" if isinstance(value, int) else "Decoding(max_new_tokens=32)"
    raise ValueError(f"decoding is {value!r}; give {hint}")


class Generated(NamedTuple):
    """The answers to a batch of prompts, in its order."""

    tokens: tuple[tuple[int, ...], ...]
    """The tokens of each answer, without the one that ended it."""
    ended: tuple[bool, ...]
    """Whether the model ended the answer itself, before `max_new_tokens`."""
    refusal_log_odds: tuple[float, ...]
    """Log-odds that the first token begins a refusal, in nats; NaN where no refusal tokens were given."""


@torch.inference_mode()
def generate(
    model: HookedModel,
    batch: TokenBatch,
    decoding: Decoding = GREEDY,
    *,
    rows: int = 32,
    refusal: Sequence[int] = (),
    progress: Callable[[int], object] = lambda answers: None,
) -> Generated:
    """Answer every prompt of a batch with the KV cache: the same tokens as one prompt at a time without a cache.

    `rows` prompts run together; those that have ended leave. `refusal` are the tokens whose log-odds are read at the
    first step. `progress` is called with the number of answers just finished.

    Raises ValueError for no rows, for logits that are not finite, and for a model that goes on from a cache in
    another way than from the whole prompt.
    """
    if type(rows) is not int or rows < 1:
        raise ValueError(
            f"rows is {rows!r}; a forward pass needs at least one row, in whole numbers"
        )
    if fault := cache_fault(model):
        raise ValueError(fault)
    order = batch.lengths.argsort(stable=True).tolist()
    answers = {n: _Answer([], random.Random(f"{decoding.seed} {n}")) for n in range(len(order))}
    for start in range(0, len(order), rows):
        some = order[start : start + rows]
        _answer(model, batch.select(some), [answers[n] for n in some], decoding, refusal, progress)
    found = [answers[n] for n in range(len(order))]
    return Generated(
        tuple(tuple(answer.tokens) for answer in found),
        tuple(answer.ended for answer in found),
        tuple(answer.odds for answer in found),
    )


@dataclass
class _Answer:
    """An answer on its way."""

    tokens: list[int]
    stream: random.Random
    ended: bool = False
    odds: float = math.nan


def _answer(
    model: HookedModel,
    batch: TokenBatch,
    alive: list[_Answer],
    decoding: Decoding,
    refusal: Sequence[int],
    progress: Callable[[int], object],
) -> None:
    """Fill the answers to prompts that run together, a token a step."""
    cache, ids, real = after_prefix(model, batch)
    for step in range(decoding.max_new_tokens):
        log_probs = model.next_logits(ids, real, cache).double().log_softmax(-1)
        if not log_probs.amax(-1).isfinite().all():
            raise ValueError(
                f"{model.name} gives logits that are not finite; load the model in float32"
            )
        if step == 0 and refusal:
            for answer, odds in zip(alive, refusal_log_odds(log_probs, refusal), strict=True):
                answer.odds = float(odds)
        chosen = [decoding.choose(row, a.stream) for a, row in zip(alive, log_probs, strict=True)]
        for answer, token in zip(alive, chosen, strict=True):
            answer.ended = token in model.end_tokens
            answer.tokens += [] if answer.ended else [token]
        stay = [place for place, answer in enumerate(alive) if not answer.ended]
        progress(len(alive) - len(stay))
        if not stay or step == decoding.max_new_tokens - 1:
            progress(len(stay))
            return
        kept = torch.tensor(stay, device=real.device)
        if len(stay) < len(alive):
            cache.batch_select_indices(kept)
        alive = [alive[place] for place in stay]
        ids = torch.tensor([[chosen[place]] for place in stay], device=real.device)
        real = torch.nn.functional.pad(real[kept], (0, 1), value=True)


def after_prefix(
    model: HookedModel, part: TokenBatch
) -> tuple[Any, Int[Tensor, "row pos"], Bool[Tensor, "row key"]]:
    """A cache with what the prompts share, run once; the tokens that are left to run; and which tokens count.

    Rows are padded on the left, so that sliding windows, which count places in the cache, are right. The cache of a row
    is the shared prefix, shifted by the row's padding: what falls off its end is run again with the row's own tokens.
    """
    from transformers import DynamicCache

    count, width = part.ids.shape
    lengths = part.lengths.to(model.device)
    places = torch.arange(width, device=model.device) - (width - lengths)[:, None]
    real = places >= 0
    ids = part.ids.to(model.device).gather(1, places.clamp_min(0)).where(real, 0)
    cut = part.prefix_length
    if count == 1 or cut == 0:
        return DynamicCache(), ids, real
    prefix = DynamicCache()
    whole = torch.ones(1, cut, dtype=torch.bool, device=model.device)
    model.next_logits(part.ids[:1, :cut].to(model.device), whole, prefix)
    shared = DynamicCache()
    source = places[:, :cut].clamp_min(0)
    for layer, stored in enumerate(prefix.layers):
        keys, values = (
            rearrange(t[0][:, source], "kv row pos d_head -> row kv pos d_head")
            for t in (stored.keys, stored.values)
        )
        shared.update(keys.contiguous(), values.contiguous(), layer)
    return shared, ids[:, cut:], real
