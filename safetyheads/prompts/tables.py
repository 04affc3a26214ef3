"""How do the rows of a table become prompts? Which column holds them, and which says what they are."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Literal

from safetyheads.prompts.labels import (
    Columns,
    find_label,
    is_missing,
    is_plain,
    listed,
    names_texts,
    shown,
    side_of_name,
    words_of,
)
from safetyheads.prompts.reading import Table, read_values
from safetyheads.prompts.sets import PromptSet, check_texts
from safetyheads.prompts.shapes import table_of
from safetyheads.prompts.turns import CHAT_COLUMNS, first_user_turn

TEXT_COLUMNS = (
    *("prompt", "prompts", "goal", "instruction", "query", "question", "request"),
    *("text", "input", "behavior", "behaviour", "user_prompt", "user_input", "prompt_text"),
    *("question_text", "user_message", "user", "human", "message", "content"),
)
"""The names of columns that hold prompts, the first that there is counts."""
CATEGORY_COLUMNS = ("category", "categories", "type", "semantic_category", "harm_category")
"""The names of columns that hold categories."""

_REQUESTS = ("prompt", "goal", "instruction", "query", "question", "request", "behavior")
_BESIDE = ("input", "context", "context_string", "passage")
_TEXTS = frozenset({*TEXT_COLUMNS, *CHAT_COLUMNS})
_HEADERS = frozenset(
    {*TEXT_COLUMNS, *CATEGORY_COLUMNS, *CHAT_COLUMNS, *_BESIDE, "label", "labels", "id", "index"}
    | {"harmful", "harmless", "benign", "safe", "unsafe", "is_safe", "is_harmful", "target"}
)


@dataclass(frozen=True)
class Asked:
    """What a caller says about a file: the columns of prompts and labels, and the encoding of its text."""

    column: str | None = None
    label: str | Literal[False] | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Sides:
    """The prompts of one file, by side."""

    harmful: tuple[str, ...]
    harmless: tuple[str, ...] = ()
    paired: bool = False
    categories: tuple[str, ...] = ()
    harmless_categories: tuple[str, ...] = ()
    told_by: str | None = None
    """The column that says which prompt is on which side; None where all are on one, unsaid."""


def read_table(file: Path, encoding: str | None = None) -> Table:
    """The rows of a file, and the names of their columns."""
    return table_of(_lines(read_values(file, encoding, _HEADERS)), file, _HEADERS)


def plain_values(given: object) -> object:
    """Lists for what holds values in another way: a tuple, an array, a column or a table of pandas, a generator."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        return given.to_dict("records")
    if hasattr(given, "tolist"):
        return given.tolist()
    return list(given) if isinstance(given, tuple | Iterator) else given


def holds_rows(given: object) -> bool:
    """Whether these are rows with named columns, or an object of lists, and no texts."""
    rows = given if isinstance(given, list) else [given]
    return bool(rows) and all(isinstance(row, dict) for row in rows)


def rows_of(given: object) -> Table:
    """Such rows, read as those of a file of JSON."""
    return table_of(given, Path("the table"), _HEADERS)


def read_sides(file: str | os.PathLike[str], asked: Asked) -> Sides:
    """The prompts of a file, by side."""
    place = Path(file).expanduser()
    return sides_of(read_table(place, asked.encoding), str(place), asked)


def as_set(sides: Sides, name: str, source: str) -> PromptSet:
    """The set of a file's prompts; ValueError where none is harmful."""
    if not sides.harmful:
        raise ValueError(
            f"{source}: the column {shown(sides.told_by)} calls every row harmless, and at least one harmful "
            "prompt is needed; give this file as harmless= beside a harmful one, or pass its prompts as a list"
        )
    return PromptSet(
        name,
        sides.harmful,
        sides.harmless,
        sides.paired,
        sides.categories,
        source,
        sides.harmless_categories,
    )


def first_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column of the first of these names that there is, in any case and with any separator."""
    of_name = {_plain_name(column): column for column in reversed(list(columns))}
    return next((of_name[name] for name in names if name in of_name), None)


def sides_of(table: Table, source: str, asked: Asked) -> Sides:
    """The prompts of a table, by side.

    Raises ValueError where the column of prompts, or the side of a row, cannot be told.
    """
    columns: Columns = {name: [row.get(name) for row in table.rows] for name in table.columns}
    if asked.column is None and (halves := _halves(columns, source)):
        return halves
    asked_label = asked.label and (first_column(columns, [_plain_name(asked.label)]) or asked.label)
    label = find_label(
        columns if asked.label else _without_texts(columns, asked), asked_label, source
    )
    column = _text_column(columns, asked.column, label[0] if label else None, source)
    texts = _texts(columns, column, f"{source}: prompt", join=asked.column is None)
    kinds = _kinds(columns, label[0] if label else None)
    is_harmful, told_by = (label[1], label[0]) if label else ([True] * len(texts), None)
    if told_by is None and asked.column is None and names_texts(column):
        is_harmful, told_by = [bool(side_of_name(column))] * len(texts), column
    is_harmless = [not harmful for harmful in is_harmful]
    return Sides(
        _strings(compress(texts, is_harmful)),
        _strings(compress(texts, is_harmless)),
        False,
        _strings(compress(kinds, is_harmful)),
        _strings(compress(kinds, is_harmless)),
        told_by,
    )


def _lines(found: object) -> object:
    """Lines of text are prompts, but a first line that is a column's name."""
    if isinstance(found, list) and len(found) > 1 and found[0] in ("prompt", "goal", "instruction"):
        return found[1:]
    return found


def _plain_name(name: str) -> str:
    return "_".join(words_of(name))


def _strings(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


# --- which column -----------------------------------------------------------------------------


def _halves(columns: Columns, source: str) -> Sides | None:
    """Pairs, where one column holds harmful texts and another harmless ones."""
    sides = {n: side_of_name(n) for n, c in columns.items() if _holds_sided(n, c, beside=False)}
    harmful, harmless = ([name for name, s in sides.items() if s is side] for side in (True, False))
    if not harmless:
        return None
    if len(harmful) == len(harmless) == 1:
        kinds = _strings(_kinds(columns, None))
        texts = [
            _strings(_texts(columns, name, f"{source}: {side} prompt", join=False))
            for name, side in ((harmful[0], "harmful"), (harmless[0], "harmless"))
        ]
        return Sides(texts[0], texts[1], True, kinds, (), harmful[0])
    if not harmful and first_column(columns, (*TEXT_COLUMNS, *CHAT_COLUMNS)) is None:
        return None
    raise ValueError(
        f"{source}: the column {shown(harmless[0])} holds harmless texts, and one column of harmful texts was expected "
        f"beside it, called harmful; its columns are {listed(columns)}: rename one, or name the prompts with column="
    )


def _holds_texts(cells: Sequence[object]) -> bool:
    """Whether a column holds texts or conversations: something that is no flag, number or label."""
    return any(not is_missing(cell) and not is_plain(cell) for cell in cells)


def _without_texts(columns: Columns, asked: Asked) -> Columns:
    """The columns among which a label may be: those that hold no prompts."""
    texts = {
        name for name in columns if _plain_name(name) in _TEXTS and _holds_texts(columns[name])
    }
    sided = {name for name in columns if _holds_sided(name, columns[name], beside=bool(texts))}
    return {n: c for n, c in columns.items() if n not in {*texts, *sided, asked.column}}


def _holds_sided(name: str, cells: Sequence[object], beside: bool) -> bool:
    """Whether a column holds prompts of one side; beside a column of prompts, single words are labels."""
    held = [cell for cell in cells if not is_missing(cell)]
    if not names_texts(name) or any(map(is_plain, held)):
        return False
    return not beside or any(not isinstance(cell, str) or " " in cell.strip() for cell in held)


def _free(cells: Sequence[object]) -> bool:
    """Whether cells are free text, with blanks in it."""
    held = [cell for cell in cells if not is_missing(cell)]
    return (
        bool(held)
        and all(isinstance(c, str) and " " in c.strip() for c in held)
        and _holds_texts(held)
    )


def _text_column(columns: Columns, asked: str | None, label: str | None, source: str) -> str:
    if asked is not None:
        found = asked if asked in columns else first_column(columns, [_plain_name(asked)])
        if found is not None:
            return found
    else:
        texts = [name for name in columns if name != label and _holds_texts(columns[name])]
        _refuse_alike(texts, source)
        sided = [name for name in texts if _holds_sided(name, columns[name], beside=False)]
        found = first_column(texts, (*TEXT_COLUMNS, *CHAT_COLUMNS)) or next(iter(sided), None)
        if found is None:
            found = first_column((c for c in columns if c != label), TEXT_COLUMNS)
        free = [name for name in texts if _free(columns[name]) and len(name) <= 30]
        if found is None and label is not None and len(free) == 1 and " " not in free[0].strip():
            found = free[0]
        if found is not None:
            return found
    wanted = f"a column {asked!r}" if asked else f"one of {', '.join(TEXT_COLUMNS[:8])}"
    advice = "pass one of them" if asked else "name the one that holds the prompts with column="
    # A long "column" is the first prompt of a file without a header: not to be shown.
    if any(len(column) > 30 or " " in column for column in columns):
        advice += "; if the file has no header line, add one"
    raise ValueError(
        f"{source}: expected {wanted}, and its columns are {listed(list(columns))}: {advice}"
    )


def _refuse_alike(names: Sequence[str], source: str) -> None:
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(_plain_name(name), name)
        if other != name and _plain_name(name) in TEXT_COLUMNS:
            raise ValueError(
                f"{source}: the columns {shown(other)} and {shown(name)} have one name: say which holds the prompts "
                "with column="
            )


def _kinds(columns: Columns, label: str | None) -> Sequence[object]:
    name = first_column((c for c in columns if c != label), CATEGORY_COLUMNS)
    kinds = columns[name] if name else []
    known = all(isinstance(kind, str) and kind.strip() for kind in kinds)
    return kinds if known else []  # some are missing: none are known


# --- its texts --------------------------------------------------------------------------------


def _texts(columns: Columns, column: str, what: str, join: bool) -> list[str]:
    of_turns = _plain_name(column) in CHAT_COLUMNS
    cells = [first_user_turn(cell, of_turns) for cell in columns[column]]
    empty = [index for index, cell in enumerate(cells) if cell is None]
    if empty and of_turns:
        raise ValueError(
            f"{what} at index {empty[0]} (counted from 0): its conversation has no user turn in text, as "
            f"{len(empty)} of {len(cells)}: remove them"
        )
    check_texts(cells, what)
    texts = [str(cell) for cell in cells]
    return _joined(columns, column, texts, what) if join else texts


def _joined(columns: Columns, column: str, texts: list[str], what: str) -> list[str]:
    """An instruction with its input, a question with its context: a blank line between, as Alpaca writes them."""
    if _plain_name(column) not in _REQUESTS:
        return texts
    beside = [name for name in columns if _plain_name(name) in _BESIDE and name != column]
    for name in beside:
        cells = [None if is_missing(cell) else cell for cell in columns[name]]
        new = [
            c for c, text in zip(cells, texts, strict=True) if c is not None and str(c) not in text
        ]
        if any(not isinstance(cell, str) for cell in new) or (
            new and _plain_name(column) == "prompt" and "input" in words_of(name)
        ):
            raise ValueError(
                f"{what}: beside the column {shown(column)} stands {shown(name)}, and whether it belongs to the prompt "
                f"cannot be told: join them into one column, or say column={column!r} to leave it out"
            )
        texts = [
            text if cell is None or str(cell) in text else f"{text}\n\n{cell}"
            for cell, text in zip(cells, texts, strict=True)
        ]
    return texts
