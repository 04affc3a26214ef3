"""What do lessons look like in tokens: what is read, what is to be answered, and in which order do they come?"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.training.answering import shared_beginning, tokenize_chats
from safetyheads.training.lessons import Lesson, read_refusals
from safetyheads.training.tails import Tail


class Exercise(NamedTuple):
    """A lesson in tokens, without the beginning that all share."""

    request: list[int]
    answer: list[int]
    harmful: bool


class Exercises(NamedTuple):
    """All lessons in tokens."""

    beginning: list[int]
    rows: list[Exercise]


def write_exercises(
    lessons: Sequence[Lesson],
    answers: Sequence[Sequence[int]],
    tokenizer: Any,
    answer_tokens: int,
    seed: int,
) -> Exercises:
    """Lessons in the chat template, harmful ones with a refusal drawn by `seed`, the others with the model's answers.

    `answers` has a row for each lesson, unread where it is harmful. A refusal ends the turn; an answer that is cut
    does not.
    """
    ids = tokenize_chats(tokenizer, [lesson.prompt for lesson in lessons])
    beginning = shared_beginning(ids)
    refusals = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in read_refusals()]
    draw = random.Random(seed)
    rows = []
    for lesson, row, own in zip(lessons, ids, answers, strict=True):
        said = [*draw.choice(refusals), tokenizer.eos_token_id] if lesson.harmful else list(own)
        rows.append(Exercise(row[len(beginning) :], said[:answer_tokens], lesson.harmful))
    return Exercises(beginning, rows)


def batches(rows: Sequence[Exercise], size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The numbers of the rows of each step: half harmful, half not, each side in rounds of its own."""
    draw = random.Random(seed)
    sides = [
        [n for n, row in enumerate(rows) if row.harmful == harmful] for harmful in (True, False)
    ]
    waiting: list[list[int]] = [[], []]
    for _ in range(steps):
        chosen = []
        for side, queue in zip(sides, waiting, strict=True):
            while len(queue) < size // 2:
                queue += draw.sample(side, len(side))
            chosen += queue[: size // 2]
            del queue[: size // 2]
        yield chosen


class Batch(NamedTuple):
    """Rows of one step: what enters the tail, and where which token is to come next."""

    states: Float[Tensor, "row pos d_model"]
    request: Bool[Tensor, "row pos"]
    """The positions of the request."""
    asked: Bool[Tensor, "row pos"]
    """The positions after which an answer's token comes."""
    tokens: Int[Tensor, "row pos"]
    """The token that comes next."""


class Shelf:
    """What enters the tail for each exercise, computed when it is first asked for."""

    def __init__(self, tail: Tail, rows: Sequence[Exercise]) -> None:
        self.tail, self.rows = tail, rows
        self._kept: dict[int, Float[Tensor, "pos d_model"]] = {}

    def take(self, chosen: Sequence[int]) -> Batch:
        """The rows of these numbers, padded on the right."""
        rows = [self.rows[n] for n in chosen]
        texts = [[*row.request, *row.answer[:-1]] for row in rows]
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        missing = [k for k, n in enumerate(chosen) if n not in self._kept]
        if missing:
            entered = self.tail.enter(ids[missing].to(self.tail.device))
            for k, states in zip(missing, entered, strict=True):
                self._kept[chosen[k]] = states[: len(texts[k])].clone()
        found = [self._kept[n] for n in chosen]
        states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        at = torch.arange(width)[None]
        begins = torch.tensor([len(row.request) for row in rows])[:, None]
        ends = torch.tensor([len(text) for text in texts])[:, None]
        follows = [[*row.request[1:], *row.answer] for row in rows]
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in follows])
        masks = (at < begins, (at >= begins - 1) & (at < ends), tokens)
        return Batch(states, *(one.to(self.tail.device) for one in masks))


def losses(tail: Tail, batch: Batch, states: Tensor, context: Any) -> Float[Tensor, " row"]:
    """Each row's cross-entropy per token of its answer [nat]."""
    hidden = tail.leave(states, context)
    logits = tail.unembed(hidden[batch.asked]).float()
    lost = torch.nn.functional.cross_entropy(logits, batch.tokens[batch.asked], reduction="none")
    row = torch.nonzero(batch.asked)[:, 0]
    total = torch.zeros(len(states), device=states.device).index_add(0, row, lost)
    return total / batch.asked.sum(1)
