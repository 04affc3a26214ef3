"""Is an answer empty, a loop, or no language?"""

import re
from collections.abc import Sequence

from safetyheads.judges.wording import normalise, scripts


def is_degenerate(text: str, shortest: int = 2) -> bool:
    """Whether an answer is empty, a loop, or no language.

    Four rules: fewer than `shortest` letters and digits (a single digit may be an answer); half of the text is one
    stretch of up to 80 characters said over and over; few different words; mostly symbols, vowelless words, or three
    scripts at once.

    >>> is_degenerate("the cat and the cat and the cat and the cat and the"), is_degenerate("4")
    (True, False)
    """
    text = normalise(text)
    alphanumeric = [c for c in text if c.isalnum()]
    if len(alphanumeric) < shortest and not text.strip(" .").isdigit():
        return True
    visible = [c for c in text if not c.isspace()]
    words = re.findall(r"[^\W\d_]+", text)
    return (
        _loops(text)
        or (len(words) >= 20 and len(set(words)) < 0.3 * len(words))
        or (len(visible) >= 12 and len(alphanumeric) < 0.5 * len(visible))
        or _unpronounceable(words)
        or len(scripts(text)) >= 3
    )


def _loops(text: str) -> bool:
    """Whether half of a text repeats one stretch: four times, or three times if it is long."""
    for period in range(1, min(80, len(text) // 3) + 1):
        longest = run = 0
        for here, there in zip(text, text[period:], strict=False):
            run = run + 1 if here == there else 0
            longest = max(longest, run)
        stretch, times = longest + period, longest / period + 1
        if stretch >= max(16, 0.5 * len(text)) and times >= (3 if period >= 20 else 4):
            return True
    return False


def _unpronounceable(words: Sequence[str]) -> bool:
    """Whether most of the longer Latin words have no vowel."""
    longer = [word for word in words if len(word) >= 4 and word.isascii()]
    vowelless = sum(not re.search("[aeiouy]", word) for word in longer)
    return len(longer) >= 3 and vowelless > 0.5 * len(longer)
