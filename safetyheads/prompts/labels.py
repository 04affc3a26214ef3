"""Which side is a row on? What the name of a column, and the values in it, say about harm."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STRONG = {
    **dict.fromkeys(
        _set(
            "harmful harm harmfulness toxic toxicity malicious maliciousness jailbreak jailbreaking attack injection "
            "dangerous danger hateful abusive offensive misuse violation violating flagged nsfw inappropriate illegal "
            "severity"
        ),
        True,
    ),
    **dict.fromkeys(
        _set(
            "safe harmless benign legitimate legit appropriate acceptable allowed ethical innocuous"
        ),
        False,
    ),
}
_WEAK = {
    **dict.fromkeys(_set("bad refuse refusal refused block blocked deny denied"), True),
    **dict.fromkeys(
        _set(
            "good normal regular neutral clean ok comply compliance answer answered allow permit none"
        ),
        False,
    ),
}
_NEGATIONS = _set("not non no un isnt")
_DUTIES = _set("expected expect expects should must supposed")
_MARKS = _DUTIES | _set(
    "is are be label labels labelled flag flags level annotation annotated gold score scores rating probability"
)
_NOUNS = _set(
    "harm harmfulness toxicity maliciousness danger misuse violation violating flagged nsfw severity"
)
_ASIDE = _MARKS | _set(
    "a the to prompt prompts request requests query queries question questions instruction instructions goal goals "
    "behavior behaviors behaviour behaviours input text user human content version vanilla adversarial"
)
_ANSWERS = _set(
    "response responses answer answers output outputs completion completions reply replies generation generated "
    "assistant chosen rejected refusal refused complied"
)
_KINDS = _set("type types kind kinds")
_LABELS = _KINDS | _set(
    "label labels class classes verdict safety gold truth annotation y polarity side action decision"
)
_UNRELATED = _set("jailbroken success successful succeeded adversarial verified")
_IDS = _set("id ids index idx row number nr uid uuid unnamed")
_ORIGINS = _set("source origin dataset model language lang")
_TOPICS = _set("category categories harm risk hazard topic topics violation policy")
_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
_FLAGS = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}

Columns = Mapping[str, Sequence[object]]
"""A table by its columns."""


def words_of(name: str) -> list[str]:
    """The words of a name or a label, in lower case: `isSafe`, `is_safe` and "is safe" have the same.

    >>> words_of("promptHarm_label")
    ['prompt', 'harm', 'label']
    """
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: no value, not a number, or blanks."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def side_of(text: str) -> bool | None:
    """Whether a label calls something harmful; None where it says neither.

    >>> [side_of(text) for text in ("unharmful", "not safe", "vanilla_benign", "fraud")]
    [False, True, False, None]
    """
    words = [word for word in words_of(text) if word not in _ASIDE]
    sides = [side for word in words if word not in _NEGATIONS for side in [_side_of_word(word)]]
    if len(sides) != 1 or sides[0] is None:
        return None
    return sides[0] ^ (len(words) % 2 == 0)  # each word besides the one is a negation


def _side_of_word(word: str) -> bool | None:
    sides = {**_STRONG, **_WEAK}
    if word in sides:
        return sides[word]
    stem = re.sub("^(un|non)", "", word)
    return not sides[stem] if stem != word and stem in sides else None


def side_of_name(name: str) -> bool | None:
    """Whether a column of this name says yes to harm; None where its name says neither, or is about answers."""
    return None if is_about_answers(name) else side_of(name)


def names_texts(name: str) -> bool:
    """Whether a column of this name may hold the prompts of one side: `benign_prompt` may, `is_safe` not."""
    words = set(words_of(name))
    return side_of_name(name) is not None and not words & (_MARKS | _NOUNS)


def is_about_answers(name: str) -> bool:
    """Whether a column speaks of a model's answers, and not of what is asked or expected."""
    words = set(words_of(name))
    return bool(words & _ANSWERS) and not words & (_DUTIES | {"prompt"})


def mentions_harmless(name: str) -> bool:
    """Whether a name has a word for harmlessness in it, whatever else it says."""
    return any(_STRONG.get(word) is False for word in words_of(name))


def is_plain(value: object) -> bool:
    """Whether a cell holds a flag, a number or a label, and so no text."""
    if isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and (
        value.strip().lower() in _FLAGS or side_of(value) is not None
    )


def find_label(
    table: Columns, asked: str | Literal[False] | None, source: str
) -> tuple[str, list[bool]] | None:
    """The column that says which rows are harmful, and what it says; None where there is none.

    Raises ValueError for columns that contradict each other, and for one that looks like a label and cannot be read.
    """
    if asked is False:
        return None
    if asked is not None:
        return asked, _asked(asked, table, source)
    table = {name: [_bare(cell) for cell in cells] for name, cells in table.items()}
    found = {name: sides for name, cells in table.items() if (sides := _read(name, cells))}
    if len({tuple(sides) for sides in found.values()}) > 1:
        raise ValueError(
            f"{source}: the columns {', '.join(map(repr, list(found)[:4]))} disagree about which prompts are "
            "harmful: say which one counts with label="
        )
    if found:
        return next(iter(found.items()))
    for name, cells in table.items():
        if why := _looks_like_a_label(name, cells):
            raise ValueError(
                f"{source}: the column {shown(name)} {why}: write the words harmful and harmless in it, or say "
                "label=False if every prompt of the file is harmful"
            )
    return None


def _bare(cell: object) -> object:
    """A label out of a list of labels."""
    if isinstance(cell, list) and all(isinstance(one, str) for one in cell):
        return ", ".join(cell) or None
    return cell


def shown(name: object) -> str:
    """A column's name or a label, for an error; a long one may be a prompt and is not shown."""
    text = str(name)
    return repr(text) if len(text) <= 40 else f"<a name of {len(text)} characters>"


def _read(name: str, cells: Sequence[object]) -> list[bool] | None:
    """The side of every row, where the column tells it of all of them."""
    if is_about_answers(name) or any(map(is_missing, cells)):
        return None
    words = [side_of(cell) if isinstance(cell, str) else None for cell in cells]
    if all(word is not None for word in words):
        labelled = bool(_LABELS & set(words_of(name))) or side_of_name(name) is not None
        known = labelled or _DUTIES & set(words_of(name)) or any(map(_is_strong, cells))
        return [bool(word) for word in words] if known else None
    flags, says = [_flag(cell) for cell in cells], side_of_name(name)
    if says is None or any(flag is None for flag in flags):
        return None
    return [flag is says for flag in flags]


def _is_strong(cell: object) -> bool:
    return any(re.sub("^(un|non)", "", word) in _STRONG for word in words_of(str(cell)))


def _flag(cell: object) -> bool | None:
    return _FLAGS.get(str(cell).strip().lower())


def _asked(name: str, table: Columns, source: str) -> list[bool]:
    if name not in table:
        raise ValueError(f"{source}: label={shown(name)} is none of its columns: {listed(table)}")
    cells = table[name]
    empty = sum(map(is_missing, cells))
    if empty:
        raise ValueError(
            f"{source}: {empty} of {len(cells)} rows have nothing in the column {shown(name)}: label or remove them"
        )
    sides: list[bool | None] = [*(_read(name, cells) or [])] or [side_of(str(c)) for c in cells]
    if None in sides:  # a flag whose name says nothing: yes is harmful, since it was asked for
        sides = [_flag(cell) for cell in cells]
    if None in sides:
        raise ValueError(
            f"{source}: the column {shown(name)} holds {_some(cells)}: expected the words harmful and harmless, "
            "or 1 and 0, where 1 is harmful"
        )
    return [bool(side) for side in sides]


def listed(names: Mapping[str, object] | Sequence[str]) -> str:
    """Names for an error, a dozen of them at most."""
    parts = [name if len(name) <= 30 else shown(name) for name in names]
    return ", ".join(parts[:12]) + (f" and {len(parts) - 12} more" if parts[12:] else "") or "none"


def _some(cells: Sequence[object]) -> str:
    kinds = list(dict.fromkeys(str(cell) for cell in cells))
    short = ", ".join(shown(kind) for kind in sorted(kinds)[:3])
    return f"{short} and {len(kinds) - 3} more" if kinds[3:] else short


def _looks_like_a_label(name: str, cells: Sequence[object]) -> str:
    """Why a column may say which prompts are harmful, in a way that cannot be read; empty where it does not."""
    words, held = set(words_of(name)), [cell for cell in cells if not is_missing(cell)]
    if not held or not words or words & (_UNRELATED | _IDS | _ORIGINS):
        return ""
    if any(not isinstance(cell, str | bool | int | float) or len(str(cell)) > 60 for cell in held):
        return ""  # texts, and what is no label
    says, flags = side_of_name(name), [_flag(cell) for cell in held]
    few = len({str(cell).strip().lower() for cell in held}) == 2
    if is_about_answers(name):
        told = None not in flags or None not in map(_side, held)
        return "speaks of answers, and none speaks of the prompts" if told and few else ""
    if why := _unread_words(words, held, len(cells), says is not None):
        return why
    if says is not None:
        if None not in flags:
            return _partly(len(held), len(cells))
        if all(map(_is_number, held)):
            return "holds scores, and nothing says from which on a prompt is harmful"
        return f"holds {_some(held)}, which name no side" if few else ""
    if None not in flags and (few or words & _LABELS):
        return f"holds {_some(held)} and does not say which of them is harmful; label={name!r} takes 1 and true for it"
    unread = few and words & (_LABELS - _KINDS)
    return f"holds {_some(held)}, which name no side" if unread else ""


def _unread_words(words: set[str], held: Sequence[object], rows: int, sided: bool) -> str:
    """Why words about harm are not read: some rows have none, or some say something else."""
    sides = [_side(cell) for cell in held]
    if None not in sides:
        return _partly(len(held), rows)
    strange = min(str(cell) for cell, side in zip(held, sides, strict=True) if side is None)
    mild = any(
        mentions_harmless(str(cell)) or (side is False and (_is_strong(cell) or words & _TOPICS))
        for cell, side in zip(held, sides, strict=True)
    )
    if mild or ((sided or words & _LABELS) and set(sides) != {None}):
        return f"has labels besides harmful and harmless, such as {shown(strange)}"
    return ""


def _partly(held: int, rows: int) -> str:
    return f"is a label, and {rows - held} of {rows} rows have none" if held < rows else ""


def _side(cell: object) -> bool | None:
    return side_of(cell) if isinstance(cell, str) else None


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True
