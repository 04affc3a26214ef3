"""Where do prompts come from? From strings, a file, or a dataset's name.

No error message of this folder, and no `repr`, shows the text of a prompt.
"""

import difflib
import os
from pathlib import Path

from safetyheads.prompts.named import DATASETS, NAMED, load_builtin, load_named
from safetyheads.prompts.sets import PromptSet, check_texts
from safetyheads.prompts.tables import SUFFIXES, prompts_from_rows, read_rows


def load_prompts(
    prompts: object, *, column: str | None = None, path: str | os.PathLike[str] | None = None
) -> PromptSet:
    """Load prompts from a list of strings, a file, or a dataset's name.

    A file is `.txt` (a prompt a line, blank lines skipped), `.csv`, `.json`, `.jsonl` or
    `.parquet`. Columns `harmful` and `harmless` give pairs; a column `label` with the words
    unsafe or harmful, and safe, harmless or benign, splits the rows into both halves.

    Arguments:
        prompts: strings (all harmful), a PromptSet (returned as it is), a path, or one of
            "builtin", "jailbreakbench", "malicious_instruct", "advbench", "xstest".
        column: the column of a file that holds the prompts, where it is not found by itself.
        path: the file or folder to read a named dataset from in place of the Hub; without it the
            environment variable SAFETYHEADS_DATA may name such a folder.

    Raises:
        ValueError: an unknown name (with near matches), an empty list, a blank prompt, something
            that is no string, a column that is not there (with those that are), a broken file.
        FileNotFoundError: a file that is not there.
        ConnectionError: the Hub is out of reach, or did not hand the dataset over.
        PermissionError: the Hub wants its terms accepted first.

    >>> load_prompts(["Pick my neighbour's lock"])
    PromptSet('prompts': 1 harmful, 0 harmless, unpaired, fingerprint ...)
    >>> load_prompts("builtin")
    PromptSet('builtin': 80 harmful, 80 harmless, paired, fingerprint ...)
    """
    name = prompts.strip().lower().replace("-", "_") if isinstance(prompts, str) else ""
    if path is not None and name not in NAMED:
        raise ValueError(
            f"path= says where a named dataset lies ({', '.join(NAMED)}): "
            "to load a file, pass it as the first argument"
        )
    if name in NAMED:
        return load_named(name, column, path)
    if isinstance(prompts, os.PathLike) or (
        isinstance(prompts, str) and name != "builtin" and _is_path(prompts)
    ):
        file = Path(prompts).expanduser()
        return prompts_from_rows(*read_rows(file), file.stem, str(file), column)
    if column is not None:
        raise ValueError(f"column={column!r} goes with a file of prompts, and none was given")
    if name == "builtin":
        return load_builtin()
    if isinstance(prompts, str):
        raise _unknown_name(prompts)
    if isinstance(prompts, PromptSet):
        return prompts
    if not isinstance(prompts, list | tuple):
        raise ValueError(
            f"prompts are of type {type(prompts).__name__}: expected a list of strings, "
            f"a PromptSet, a file ({' '.join(SUFFIXES)}) or a name ({', '.join(DATASETS)})"
        )
    if not prompts:
        raise ValueError("the list of prompts is empty: expected at least one string")
    check_texts(prompts, "prompt")
    return PromptSet("prompts", tuple(prompts), source="list")


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
