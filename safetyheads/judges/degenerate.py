"""Is an answer empty, a loop, or no language?"""

import itertools
import re
from collections.abc import Sequence

from safetyheads.judges.wording import normalise, scripts

_VOWELS = frozenset("aeiouy")
_ITEM = re.compile(r"\n+|(?:^|(?<=\s))(?:\d{1,3}[.)]|[-•*])\s")


def is_degenerate(text: str, shortest: int = 2) -> bool:
    """Whether an answer is empty, a loop, or no language.

    Four rules: fewer than `shortest` letters and digits (a single digit may be an answer); half of the text is one
    stretch of up to 80 characters said over and over; few different words, unless they are items that each bring a new
    one; mostly symbols, vowelless words, or three scripts in one breath.

    >>> is_degenerate("the cat and the cat and the cat and the cat and the"), is_degenerate("4")
    (True, False)
    """
    items = [words for item in _ITEM.split(text) if (words := _words(item))]
    capitals = set(re.findall(r"\b[A-Z]{2,}\b", text))
    breaths = [] if text.isascii() else re.split(r"[,.;:!?()|\n、。]", text)
    text = normalise(text)
    if _count(text) < shortest and not text.strip(" .").isdigit():
        return True
    words = _words(text)
    few = len(words) >= 20 and len(set(words)) < 0.3 * len(words)
    return (
        _loops(text)
        or (len(items) >= 3 and _loops(" ".join(itertools.chain(*items))))
        or (few and not _itemises(items))
        or _symbols(text)
        or _unpronounceable([word for word in words if word.upper() not in capitals])
        or any(len(scripts(breath)) >= 3 for breath in breaths)
    )


def _count(text: str) -> int:
    """How many letters and digits a text has."""
    return len(re.sub(r"[\W_]+", "", text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _itemises(items: Sequence[Sequence[str]]) -> bool:
    """Whether a text is a list, most of whose items bring a word that none before had."""
    seen: set[str] = set()
    new = 0
    for words in items:
        new += not seen.issuperset(words)
        seen.update(words)
    return len(items) >= 3 and new >= 0.8 * len(items)


def _symbols(text: str) -> bool:
    """Whether most of a text is neither letters nor digits; a rule drawn across a table counts once."""
    visible = "".join(text.split())
    if _count(visible) >= 12:
        visible = re.sub(r"([-=_|#~+])(?:\1|[|:])+", r"\1", visible)
    return len(visible) >= 12 and _count(visible) < 0.5 * len(visible)


def _loops(text: str) -> bool:
    """Whether half of a text repeats one stretch: four times, or three times if it is long."""
    shingles = {text[at : at + 12] for at in range(len(text))}
    if (
        len(shingles) > 0.5 * len(text) + 100
    ):  # a stretch said over and over has few; spares what follows
        return False
    import numpy

    letters = numpy.array([*map(ord, text)], dtype=numpy.uint32)
    least = max(16, 0.5 * len(text))
    for period in range(1, min(80, len(text) // 3) + 1):
        same = letters[period:] == letters[:-period]
        if numpy.count_nonzero(same) + period < least:
            continue
        breaks = numpy.flatnonzero(numpy.concatenate([[True], ~same, [True]]))
        longest = int(numpy.diff(breaks).max()) - 1
        if longest + period >= least and longest / period + 1 >= (3 if period >= 20 else 4):
            return True
    return False


def _unpronounceable(words: Sequence[str]) -> bool:
    """Whether most of the longer Latin words have no vowel."""
    longer = [word for word in words if len(word) >= 4 and word.isascii()]
    vowelless = sum(_VOWELS.isdisjoint(word) for word in longer)
    return len(longer) >= 3 and vowelless > 0.5 * len(longer)
