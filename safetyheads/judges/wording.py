"""Which words does a text use, whatever its typography, and in which scripts?"""

import re
import unicodedata
from collections import Counter

_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´′＇"), "'")
_QUOTES = dict.fromkeys(map(ord, "“”„«»"), '"')


def fold(text: str) -> str:
    """Lower case, one kind of apostrophe and quote, no emphasis marks; lines stay.

    >>> fold("**I’m** sorry,\\n“but”")
    'i\\'m sorry,\\n"but"'
    """
    # Before NFKC, which makes a space and a combining mark of an acute accent.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES | _QUOTES)).lower()
    return re.sub(r"[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}", "", text)


def normalise(text: str) -> str:
    """A folded text with single spaces.

    >>> normalise("**I’m**  sorry,\\n“but”")
    'i\\'m sorry, "but"'
    """
    return " ".join(fold(text).split())


_CJK = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "KATAKANA-HIRAGANA"}


def scripts(text: str) -> set[str]:
    """The writing systems with at least two letters in a text; those of East Asia count as one."""
    if text.isascii():
        return {"LATIN"} if sum(map(str.isalpha, text)) >= 2 else set()
    names = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    found = {name for name, count in names.items() if count >= 2}
    return {"CJK" if name in _CJK else name for name in found}


_COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        about after also been before being between could does doing down each every from give have here into
        just know like make many more most much need only other over please really said same should some
        such tell than that their them then there these they this those through under very want well were
        what when where which while will with would your write explain describe create list short
        """,
    )
)


def topics(text: str) -> set[str]:
    """The first five letters of the words that carry a subject."""
    words = re.findall(r"[^\W\d_]{4,}", normalise(text))
    return {word[:5] for word in words if word not in _COMMON}


def first_words(text: str, count: int) -> str:
    """The first words of a text; a sign of Chinese counts as half a word."""
    end = 0
    for word in re.finditer(r"\S+", text[: 12 * count]):
        count -= 1 + sum(c > "\u3000" for c in word.group()) // 2
        end = word.end()
        if count <= 0:
            break
    return text[:end]


def any_of(*patterns: str) -> re.Pattern[str]:
    """A pattern that finds what any of several finds."""
    return re.compile("|".join(patterns))


SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=。)")
"""Where one sentence ends and the next begins."""
