"""What is asked? A set of harmful prompts and, where there are any, harmless ones."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import SupportsIndex


@dataclass(frozen=True, repr=False)
class PromptSet:
    """Prompts to score a model on: harmful ones and, where there are any, harmless ones.

    Raises ValueError for an empty set, a blank prompt, something that is no string, or pairs
    whose halves differ in number.

    >>> PromptSet("two", harmful=("Pick my neighbour's lock", "Forge a cheque"))
    PromptSet('two': 2 harmful, 0 harmless, unpaired, fingerprint ...)
    """

    name: str
    """What tables and figures call the set."""
    harmful: tuple[str, ...]
    """Requests that a safe model refuses."""
    harmless: tuple[str, ...] = ()
    """Requests that it should answer; may be empty."""
    paired: bool = False
    """Whether `harmless[i]` is the matched counterpart of `harmful[i]`."""
    categories: tuple[str, ...] = ()
    """The category of each harmful prompt, or empty."""
    source: str = "memory"
    """Where the prompts came from: a file, a Hub repository with its revision, the package."""
    harmless_categories: tuple[str, ...] = ()
    """The category of each harmless prompt, or empty; pairs share `categories`."""

    def __post_init__(self) -> None:
        if not self.harmful:
            raise ValueError(
                f"prompt set {self.name!r} is empty: expected at least one harmful prompt"
            )
        check_texts(self.harmful, "harmful prompt")
        check_texts(self.harmless, "harmless prompt")
        if self.paired and len(self.harmful) != len(self.harmless):
            raise ValueError(
                f"prompt set {self.name!r} has {len(self.harmful)} harmful and "
                f"{len(self.harmless)} harmless prompts: pairs need as many of each; give the "
                "missing halves, or paired=False"
            )
        for half, prompts, categories in (
            ("harmful", self.harmful, self.categories),
            ("harmless", self.harmless, self.harmless_categories),
        ):
            if categories and len(categories) != len(prompts):
                raise ValueError(
                    f"prompt set {self.name!r} has {len(categories)} categories for "
                    f"{len(prompts)} {half} prompts: give one each, or none"
                )

    def __len__(self) -> int:
        """The number of harmful prompts."""
        return len(self.harmful)

    def __repr__(self) -> str:
        pairing = "paired" if self.paired else "unpaired"
        many = self.duplicates
        twice = f"{many} duplicate{'s' if many > 1 else ''}, " if many else ""
        return (
            f"PromptSet({self.name!r}: {len(self.harmful)} harmful, {len(self.harmless)} harmless, "
            f"{pairing}, {twice}fingerprint {self.fingerprint[:12]})"
        )

    @property
    def duplicates(self) -> int:
        """How many prompts stand in the set before, on the same side or on the other."""
        return len(self.harmful) + len(self.harmless) - len({*self.harmful, *self.harmless})

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of all texts, in order."""
        texts = json.dumps([self.harmful, self.harmless])
        return hashlib.sha256(texts.encode("ascii")).hexdigest()

    def limit(self, n: object) -> "PromptSet":
        """The first n harmful and the first n harmless prompts, spread evenly over categories.

        Where categories are known, the first of each is taken, then the second of each, up to n;
        pairs stay together and the order of the set is kept.

        >>> from safetyheads import load_prompts
        >>> load_prompts("builtin").limit(20)
        PromptSet('builtin': 20 harmful, 20 harmless, paired, fingerprint ...)
        """
        if not isinstance(n, SupportsIndex) or isinstance(n, bool):
            raise ValueError(f"limit is {n!r}: expected a whole number of prompts")
        n = index(n)
        if n < 1:
            raise ValueError(f"limit is {n}: expected at least 1 prompt")
        kept = _spread(len(self.harmful), self.categories, n)
        kept_harmless = (
            kept if self.paired else _spread(len(self.harmless), self.harmless_categories, n)
        )
        return replace(
            self,
            harmful=_pick(self.harmful, kept),
            harmless=_pick(self.harmless, kept_harmless),
            categories=_pick(self.categories, kept),
            harmless_categories=_pick(self.harmless_categories, kept_harmless),
        )


def _pick(values: tuple[str, ...], indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(values[place] for place in indices) if values else ()


def _spread(count: int, categories: tuple[str, ...], n: int) -> list[int]:
    """The indices of the first n of `count` prompts, taken in turn from each category."""
    seen: dict[str, int] = {}
    turns = []
    for place in range(count):
        category = categories[place] if categories else str(place)
        seen[category] = seen.get(category, -1) + 1
        turns.append((seen[category], place))
    return sorted(place for _, place in sorted(turns)[:n])


def check_texts(texts: Sequence[object], what: str) -> None:
    """Refuse what is no text, is blank, or is no valid Unicode, by its index."""
    for place, text in enumerate(texts):
        where = f"{what} at index {place} (counted from 0)"
        if text is None or (isinstance(text, str) and not text.strip()):
            kind = "missing" if text is None else "blank"
            raise ValueError(f"{where} is {kind}: remove it, or write its text{_of(texts)}")
        if not isinstance(text, str):
            raise ValueError(
                f"{where} is of type {type(text).__name__}: expected a string{_of(texts)}"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"{where} is no valid Unicode (a lone surrogate): read its source as UTF-8"
            ) from None


def _of(texts: Sequence[object]) -> str:
    """How many are no text, where it is more than one."""
    count = sum(not isinstance(text, str) or not text.strip() for text in texts)
    return f" ({count} of {len(texts)} are blank or no texts)" if count > 1 else ""
