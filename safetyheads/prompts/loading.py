"""Where do prompts come from? From strings, a file, or a dataset's name.

No error message of this folder, and no `repr`, shows the text of a prompt.
"""

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from safetyheads.prompts.labels import shown, words_of
from safetyheads.prompts.named import DATASETS, NAMED, load_builtin, load_named
from safetyheads.prompts.reading import SUFFIXES
from safetyheads.prompts.sets import PromptSet, check_texts
from safetyheads.prompts.tables import (
    Asked,
    Sides,
    as_set,
    first_column,
    holds_rows,
    plain_values,
    read_table,
    rows_of,
    sides_of,
)


def load_prompts(
    prompts: object,
    *,
    harmless: object = None,
    column: str | None = None,
    label: str | Literal[False] | None = None,
    encoding: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> PromptSet:
    """Load prompts from a list of strings, a file, or a dataset's name.

    A file is text (a prompt a line, blank lines skipped), a table (`.csv`, `.tsv`, `.parquet`) or JSON (`.json`,
    `.jsonl`). Columns `harmful` and `harmless` give pairs; a column such as `label`, `is_safe` or `prompt_harm_label`
    splits the rows into both halves. docs/prompts.md lists what is recognised; what may be a label and cannot be read
    is refused.

    Arguments:
        prompts: strings (all harmful), rows (a data frame, dicts; read as those of a file), a PromptSet (returned as
            it is), a path, or one of
            "builtin", "jailbreakbench", "malicious_instruct", "advbench", "xstest".
        harmless: harmless prompts beside them: strings, a file, a name, or a PromptSet, of which the harmless half
            counts where there is one. A file's rows that are labelled harmful are left out.
        column: the column of a file that holds the prompts, where it is not found by itself; taken as it is, without
            an input or a context that stands beside it.
        label: the column that says which prompts are harmful, where it is not found by itself: the words harmful and
            harmless, or 1 and 0; False says that all of them are.
        encoding: that of a text file; by default UTF-8, or what its byte-order mark says.
        path: the file or folder to read a named dataset from in place of the Hub; without it the
            environment variable SAFETYHEADS_DATA may name such a folder.

    Raises:
        ValueError: an unknown name (with near matches), an empty list, a blank prompt, something
            that is no string, a column that is not there (with those that are), a broken file, a label that cannot
            be read.
        FileNotFoundError: a file that is not there.
        ConnectionError: the Hub is out of reach, or did not hand the dataset over.
        PermissionError: the Hub wants its terms accepted first.

    >>> load_prompts(["Pick my neighbour's lock"])
    PromptSet('prompts': 1 harmful, 0 harmless, unpaired, fingerprint ...)
    >>> load_prompts("builtin")
    PromptSet('builtin': 80 harmful, 80 harmless, paired, fingerprint ...)
    >>> load_prompts(["Pick my neighbour's lock"], harmless=["Oil my neighbour's lock"])
    PromptSet('prompts': 1 harmful, 1 harmless, unpaired, fingerprint ...)
    """
    asked = Asked(column, label, encoding)
    found = _load(prompts, asked, path)
    return found if harmless is None else _beside(found, harmless, asked)


def _load(prompts: object, asked: Asked, path: str | os.PathLike[str] | None) -> PromptSet:
    name = prompts.strip().lower().replace("-", "_") if isinstance(prompts, str) else ""
    if path is not None and name not in NAMED:
        raise ValueError(
            f"path= says where a named dataset lies ({', '.join(NAMED)}): "
            "to load a file, pass it as the first argument"
        )
    if name in NAMED:
        return load_named(name, asked, path)
    if (file := _file(prompts)) is not None:
        sides = sides_of(read_table(file, asked.encoding), str(file), asked)
        return as_set(sides, file.stem, str(file))
    prompts = plain_values(prompts)
    if holds_rows(prompts):
        return as_set(sides_of(rows_of(prompts), "the table", asked), "prompts", "table")
    for option, value in vars(asked).items():
        if value is not None:
            raise ValueError(f"{option}={value!r} goes with a file of prompts, and none was given")
    if name == "builtin":
        return load_builtin()
    if isinstance(prompts, str):
        raise _unknown_name(prompts)
    if isinstance(prompts, PromptSet):
        return prompts
    if not isinstance(prompts, list):
        raise ValueError(
            f"prompts are of type {type(prompts).__name__}: expected a list of strings, "
            f"a PromptSet, a file ({' '.join(SUFFIXES)}) or a name ({', '.join(DATASETS)})"
        )
    if not prompts:
        raise ValueError("the list of prompts is empty: expected at least one string")
    check_texts(prompts, "prompt")
    return PromptSet("prompts", tuple(prompts), source="list")


def _beside(found: PromptSet, harmless: object, asked: Asked) -> PromptSet:
    """A set with harmless prompts from somewhere else."""
    if found.harmless:
        raise ValueError(
            f"harmless= was given, and {found.name!r} has {len(found.harmless)} harmless prompts already: leave it out"
        )
    sides, source = _harmless_sides(harmless, asked)
    return replace(
        found,
        harmless=sides.harmless,
        harmless_categories=sides.harmless_categories,
        source=f"{found.source}, harmless: {source}",
    )


def _harmless_sides(given: object, asked: Asked) -> tuple[Sides, str]:
    """The harmless prompts of what was given as harmless; where nothing says which these are, all of them."""
    file = _file(given)
    if file is None:
        other = _load(given, Asked(), None)
        sides = Sides(
            other.harmful,
            other.harmless,
            categories=other.categories,
            harmless_categories=other.harmless_categories,
        )
        return (sides if other.harmless else _turned(sides)), other.source
    table = read_table(file, asked.encoding)

    def if_there(name: str) -> str | None:
        return first_column(table.columns, ["_".join(words_of(name))])

    column = if_there(asked.column) if asked.column else None
    label = if_there(asked.label) if asked.label else asked.label
    sides = sides_of(table, str(file), Asked(column, label))
    if sides.told_by is not None and not sides.harmless:
        raise ValueError(
            f"{str(file)!r} was given as harmless=, and its column {shown(sides.told_by)} calls every row harmful: "
            "was it meant to be the first argument?"
        )
    return (sides if sides.told_by is not None else _turned(sides)), str(file)


def _turned(sides: Sides) -> Sides:
    return replace(sides, harmless=sides.harmful, harmless_categories=sides.categories)


def _file(given: object) -> Path | None:
    """The file that a path, or a text that looks like one, names."""
    if isinstance(given, os.PathLike):
        return Path(given).expanduser()
    if (
        isinstance(given, str)
        and given.strip().lower().replace("-", "_") not in DATASETS
        and _is_path(given)
    ):
        return Path(given).expanduser()
    return None


def _is_path(text: str) -> bool:
    looks_like = Path(text).suffix.lower() in SUFFIXES or (
        any(mark in text for mark in ("/", os.sep)) and not any(map(str.isspace, text))
    )
    try:
        return looks_like or (text.strip() != "" and Path(text).exists())
    except (OSError, ValueError):  # a text too long for a file name
        return looks_like


def _unknown_name(text: str) -> ValueError:
    near = difflib.get_close_matches("_".join(text.lower().split()), DATASETS, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    known = f"{hint} Known names: {', '.join(DATASETS)}; files: {' '.join(SUFFIXES)}"
    if len(text) > 60 or len(text.split()) != 1:  # a prompt rather than a name: not to be shown
        return ValueError(
            f"got one text of {len(text)} characters that is neither a dataset's name nor a file: "
            f"put a single prompt into a list, [text].{known}"
        )
    return ValueError(f"unknown dataset {text!r}.{known}; or pass a list of strings")
