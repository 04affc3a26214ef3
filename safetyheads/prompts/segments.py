"""Which tokens of a prompt are the system's, the jailbreak template's, the user's, and the assistant's header?"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from safetyheads.prompts.tokens import TokenBatch

SYSTEM, TEMPLATE, USER, HEADER = "system", "jailbreak template", "user", "assistant header"
SEGMENTS = (SYSTEM, TEMPLATE, USER, HEADER)
"""The parts of a prompt: all that stands before the user's text (BOS and the turn's own header too); what all jailbreak
prompts share, or filler; the request; what the chat template writes after it."""


class Segment(NamedTuple):
    """A part of a prompt, in token positions."""

    name: str
    start: int
    stop: int
    """The first position after it."""


def shared_template(prompts: Sequence[str]) -> tuple[int, int]:
    """How many characters all prompts share at their start and at their end, in whole words; 0 and 0 for one prompt.

    >>> shared_template(["You are a sailor. Tell me A. Go!", "You are a sailor. Sing B. Go!"])
    (18, 4)
    """
    if len(set(prompts)) < 2:
        return 0, 0
    prefix = _common_start(prompts)
    suffix = _common_start([prompt[::-1] for prompt in prompts])[::-1]
    start = max((n + 1 for n, letter in enumerate(prefix) if letter.isspace()), default=0)
    blanks = [n for n, letter in enumerate(suffix) if letter.isspace()]
    shortest = min(map(len, prompts))
    return start, min(len(suffix) - blanks[0] if blanks else 0, shortest - start)


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # these two share what all share
    different = (n for n, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1)
    return first[: next(different, len(first))]


def find_segments(
    batch: TokenBatch,
    prompts: Sequence[str],
    tokenizer: Any,
    requests: Sequence[str] | None = None,
) -> list[tuple[Segment, ...]]:
    """The segments of each tokenised prompt, in order; none where they cannot be told.

    `prompts` are the users' texts that `batch` was made of. `requests` are the requests inside them; without it, what
    all prompts share at their start and end is taken for the jailbreak template. A token belongs to the segment of
    its last character. Character offsets are needed, so a slow tokenizer gives no segments.
    """
    if not getattr(tokenizer, "is_fast", False):
        return [()] * len(batch)
    before, after = shared_template(prompts) if requests is None else (0, 0)
    found: list[tuple[Segment, ...]] = []
    for row, prompt in enumerate(prompts):
        text, user = batch.texts[row], prompt.strip()
        begin = text.rfind(user)
        if requests is None:
            inner = before - (len(prompt) - len(prompt.lstrip())), len(user) - after
        else:
            at = user.rfind(requests[row].strip())
            inner = at, at + len(requests[row].strip())
        if begin < 0 or not 0 <= inner[0] <= inner[1] <= len(user):
            found.append(())
            continue
        ends = [begin, begin + inner[0], begin + inner[1], begin + len(user), len(text)]
        names = (SYSTEM, TEMPLATE, USER, TEMPLATE, HEADER)
        found.append(_in_tokens(_last_characters(batch, row, tokenizer), names, ends))
    return found


def _last_characters(batch: TokenBatch, row: int, tokenizer: Any) -> list[int]:
    """The index of the last character of each token of a prompt."""
    encoded = tokenizer(
        batch.texts[row],
        add_special_tokens=batch.template != "chat",
        return_offsets_mapping=True,
        padding=False,
        truncation=False,
        verbose=False,
    )
    ends = [int(end) - 1 for _, end in encoded["offset_mapping"]]
    length = int(batch.lengths[row])
    # `tokenize` may have put a BOS in front, or taken what was appended away.
    return [-1] * (length - len(ends)) + ends[:length]


def _in_tokens(
    last: Sequence[int], names: Sequence[str], ends: Sequence[int]
) -> tuple[Segment, ...]:
    bounds = [0]
    for end in ends:
        bounds.append(sum(character < end for character in last))
    bounds[-1] = len(last)
    return tuple(
        Segment(name, start, stop)
        for name, start, stop in zip(names, bounds, bounds[1:], strict=False)
        if stop > start
    )


def typical_segments(
    segments: Sequence[tuple[Segment, ...]], length: int | None = None
) -> tuple[Segment, ...]:
    """The median boundaries of many prompts' segments, cut at `length`; of the prompts with the commonest sequence.

    >>> one, two = (Segment("system", 0, 4), Segment("user", 4, 9)), (Segment("system", 0, 4), Segment("user", 4, 7))
    >>> typical_segments([one, two, two])[-1]
    Segment(name='user', start=4, stop=7)
    """
    sequences = [tuple(part.name for part in parts) for parts in segments if parts]
    if not sequences:
        return ()
    usual = statistics.mode(sequences)
    alike = [parts for parts in segments if tuple(part.name for part in parts) == usual]
    typical = []
    for n, name in enumerate(usual):
        start = int(statistics.median_low([parts[n].start for parts in alike]))
        stop = int(statistics.median_low([parts[n].stop for parts in alike]))
        if length is not None:
            stop = min(stop, length)
        if stop > start:
            typical.append(Segment(name, start, stop))
    return tuple(typical)
