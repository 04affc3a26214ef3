"""What do we ask the model? Prompt sets, their loaders, templates and tokens.

Three steps, each a function from values to a value:

1. `load_prompts` turns strings, a file or a dataset's name into a `PromptSet`.
2. `render` writes each prompt into a template.
3. `tokenize` renders and turns the texts into a right-padded `TokenBatch`, with one BOS.

No error message and no `repr` of this module shows the text of a prompt.
"""

import csv
import difflib
import hashlib
import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

DATA_FOLDER_VARIABLE = "SAFETYHEADS_DATA"
"""The environment variable that names a folder with the files of the named datasets."""

TEMPLATES: Mapping[str, str | None] = MappingProxyType(
    {"chat": None, "bare": "{q}", "query": "## Query:{q}\n## Answer:"}
)
"""The named templates; None stands for the tokenizer's own chat template."""


# --- prompt sets ------------------------------------------------------------------------------


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
        _check_texts(self.harmful, "harmful prompt")
        _check_texts(self.harmless, "harmless prompt")
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
        return (
            f"PromptSet({self.name!r}: {len(self.harmful)} harmful, {len(self.harmless)} harmless, "
            f"{pairing}, fingerprint {self.fingerprint[:12]})"
        )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of all texts, in order."""
        texts = json.dumps([self.harmful, self.harmless])
        return hashlib.sha256(texts.encode("ascii")).hexdigest()

    def limit(self, n: int) -> "PromptSet":
        """The first n harmful and the first n harmless prompts, spread evenly over categories.

        Where categories are known, the first of each is taken, then the second of each, up to n;
        pairs stay together and the order of the set is kept.

        >>> load_prompts("builtin").limit(20)
        PromptSet('builtin': 20 harmful, 20 harmless, paired, fingerprint ...)
        """
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
    return tuple(values[index] for index in indices) if values else ()


def _spread(count: int, categories: tuple[str, ...], n: int) -> list[int]:
    """The indices of the first n of `count` prompts, taken in turn from each category."""
    seen: dict[str, int] = {}
    turns = []
    for index in range(count):
        category = categories[index] if categories else str(index)
        seen[category] = seen.get(category, -1) + 1
        turns.append((seen[category], index))
    return sorted(index for _, index in sorted(turns)[:n])


def _check_texts(texts: Sequence[object], what: str) -> None:
    for index, text in enumerate(texts):
        where = f"{what} at index {index} (counted from 0)"
        if not isinstance(text, str):
            raise ValueError(f"{where} is of type {type(text).__name__}: expected a string")
        if not text.strip():
            raise ValueError(f"{where} is blank: remove it, or write its text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"{where} is no valid Unicode (a lone surrogate): read its source as UTF-8"
            ) from None


# --- loading ----------------------------------------------------------------------------------


class _Part(NamedTuple):
    """One file of a named dataset."""

    stem: str
    """Its name in a local folder, without the suffix."""
    hub_patterns: tuple[str, ...]
    """Its name in the Hub's repository: the first pattern that matches counts."""


class _Dataset(NamedTuple):
    repository: str
    parts: tuple[_Part, ...]
    """The harmful part, and the matched harmless part where that is a file of its own."""
    needs_harmless: bool = False
    """Whether the only part has to hold harmless prompts too."""


_PARQUET = ("data/train-*.parquet", "*.parquet", "*.csv")
_NAMED = {
    "jailbreakbench": _Dataset(
        "JailbreakBench/JBB-Behaviors",
        (
            _Part("jailbreakbench_harmful", ("data/harmful-behaviors.csv",)),
            _Part("jailbreakbench_benign", ("data/benign-behaviors.csv",)),
        ),
    ),
    "malicious_instruct": _Dataset(
        "walledai/MaliciousInstruct", (_Part("malicious_instruct", _PARQUET),)
    ),
    "advbench": _Dataset("walledai/AdvBench", (_Part("advbench", _PARQUET),)),
    "xstest": _Dataset(
        "Paul/XSTest",
        (_Part("xstest", ("xstest_prompts.csv", "xstest*.csv", "*.csv", "data/*.parquet")),),
        needs_harmless=True,
    ),
}
DATASETS = ("builtin", *_NAMED)
"""The names that `load_prompts` knows."""

_SUFFIXES = (".txt", ".csv", ".json", ".jsonl", ".parquet")
_TEXT_COLUMNS = (
    *("prompt", "prompts", "goal", "instruction", "query", "question", "request"),
    *("text", "input", "harmful"),
)
_HARMLESS_COLUMNS = ("harmless", "benign")
_CATEGORY_COLUMNS = ("category", "categories", "type")
_HARMFUL_LABELS = frozenset({"harmful", "unsafe"})
_HARMLESS_LABELS = frozenset({"harmless", "benign", "safe"})


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
    if path is not None and name not in _NAMED:
        raise ValueError(
            f"path= says where a named dataset lies ({', '.join(_NAMED)}): "
            "to load a file, pass it as the first argument"
        )
    if name in _NAMED:
        return _load_named(name, column, path)
    if isinstance(prompts, os.PathLike) or (
        isinstance(prompts, str) and name != "builtin" and _is_path(prompts)
    ):
        file = Path(prompts).expanduser()
        return _from_rows(*_read_rows(file), file.stem, str(file), column)
    if column is not None:
        raise ValueError(f"column={column!r} goes with a file of prompts, and none was given")
    if name == "builtin":
        return _load_builtin()
    if isinstance(prompts, str):
        raise _unknown_name(prompts)
    if isinstance(prompts, PromptSet):
        return prompts
    if not isinstance(prompts, list | tuple):
        raise ValueError(
            f"prompts are of type {type(prompts).__name__}: expected a list of strings, "
            f"a PromptSet, a file ({' '.join(_SUFFIXES)}) or a name ({', '.join(DATASETS)})"
        )
    if not prompts:
        raise ValueError("the list of prompts is empty: expected at least one string")
    _check_texts(prompts, "prompt")
    return PromptSet("prompts", tuple(prompts), source="list")


def _is_path(text: str) -> bool:
    looks_like = Path(text).suffix.lower() in _SUFFIXES or (
        any(mark in text for mark in ("/", os.sep)) and not any(map(str.isspace, text))
    )
    try:
        return looks_like or (text.strip() != "" and Path(text).exists())
    except (OSError, ValueError):  # a text too long for a file name
        return looks_like


def _unknown_name(text: str) -> ValueError:
    near = difflib.get_close_matches("_".join(text.lower().split()), DATASETS, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    known = f"{hint} Known names: {', '.join(DATASETS)}; files: {' '.join(_SUFFIXES)}"
    if len(text) > 60 or len(text.split()) != 1:  # a prompt rather than a name: not to be shown
        return ValueError(
            f"got one text of {len(text)} characters that is neither a dataset's name nor a file: "
            f"put a single prompt into a list, [text].{known}"
        )
    return ValueError(f"unknown dataset {text!r}.{known}; or pass a list of strings")


def _load_builtin() -> PromptSet:
    file = resources.files("safetyheads").joinpath("data", "builtin.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    columns = list(rows[0])
    return _from_rows(rows, columns, "builtin", "the safetyheads package", None)


def _load_named(name: str, column: str | None, path: str | os.PathLike[str] | None) -> PromptSet:
    dataset = _NAMED[name]
    files, source = _locate(name, dataset, path)
    if len(files) == 2:
        return _load_matched((files[0], files[1]), name, source, column)
    harmful = _from_rows(*_read_rows(files[0]), name, source, column)
    if dataset.needs_harmless and not harmful.harmless:
        raise ValueError(
            f"{files[0]} has no harmless prompts: {name} needs a column 'label' with the words "
            "safe and unsafe"
        )
    return harmful


def _locate(
    name: str, dataset: _Dataset, path: str | os.PathLike[str] | None
) -> tuple[list[Path], str]:
    """The files of a named dataset, and what to record as their source."""
    asked, how = path, f"path={os.fspath(path)!r}" if path is not None else ""
    if asked is None and os.environ.get(DATA_FOLDER_VARIABLE):
        asked = os.environ[DATA_FOLDER_VARIABLE]
        how = f"{DATA_FOLDER_VARIABLE}={asked!r}"
    if asked is None:
        folder = _hub_folder(name, dataset)
        source = f"hub:{dataset.repository}@{folder.name}"
        return [_find_in_snapshot(folder, part) for part in dataset.parts], source
    place = Path(asked).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{how}: no such file or folder; {_how_to_give(name, dataset)}")
    if place.is_file():
        # A pair of files: the harmless half is looked for beside the harmful one.
        others = [_find_in_folder(place.parent, part, how) for part in dataset.parts[1:]]
        return [place, *others], str(place)
    return [_find_in_folder(place, part, how) for part in dataset.parts], str(place)


def _how_to_give(name: str, dataset: _Dataset) -> str:
    wanted = " and ".join(f"{part.stem}.csv" for part in dataset.parts)
    return (
        f"load_prompts({name!r}, path=...) and {DATA_FOLDER_VARIABLE} take a folder with {wanted} "
        f"(or {', '.join(s for s in _SUFFIXES if s != '.csv')}); path= takes a file too"
    )


def _find_in_folder(folder: Path, part: _Part, how: str) -> Path:
    for suffix in (".csv", *_SUFFIXES):
        if (folder / (part.stem + suffix)).is_file():
            return folder / (part.stem + suffix)
    raise FileNotFoundError(
        f"{how}: expected a file {part.stem}.csv (or {', '.join(_SUFFIXES)}) in {str(folder)!r}, "
        "and there is none"
    )


def _find_in_snapshot(folder: Path, part: _Part) -> Path:
    for pattern in part.hub_patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} files of the Hub's repository match {pattern!r} and one was "
                f"expected: pass path= with a file of {part.stem}"
            )
        if found:
            return found[0]
    raise FileNotFoundError(f"no file {' or '.join(part.hub_patterns)} in {str(folder)!r}")


# --- the Hub ----------------------------------------------------------------------------------


def _hub_folder(name: str, dataset: _Dataset) -> Path:
    """The local snapshot of a dataset's repository: from the Hub's cache, else downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    patterns = [pattern for part in dataset.parts for pattern in part.hub_patterns]

    def snapshot(local_files_only: bool) -> Path:
        folder = huggingface_hub.snapshot_download(
            dataset.repository,
            repo_type="dataset",
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
        for part in dataset.parts:
            _find_in_snapshot(Path(str(folder)), part)
        return Path(str(folder))

    try:
        return snapshot(local_files_only=True)
    except FileNotFoundError:  # not cached
        pass
    comes_from = f"{name!r} comes from the Hub ({dataset.repository})"
    remedy = f"{_how_to_give(name, dataset)}. 'builtin' needs no network"
    if not _hub_answers():
        raise ConnectionError(f"{comes_from}, which is out of reach: {remedy}")
    try:
        return snapshot(local_files_only=False)
    except GatedRepoError as error:
        raise PermissionError(
            f"{comes_from}, which wants its terms accepted: do that at "
            f"https://huggingface.co/datasets/{dataset.repository} and log in "
            f"(`hf auth login`), or: {remedy}"
        ) from error
    except ValueError:
        raise
    except Exception as error:
        raise ConnectionError(
            f"{comes_from}, which did not hand it over ({type(error).__name__}): {remedy}"
        ) from error


def _hub_answers(seconds: float = 4.0) -> bool:
    """Whether the Hub answers one request within some seconds (its own client retries for long)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.put(True)
        except urllib.error.HTTPError as error:  # 403 and 407 are what a proxy says that blocks it
            answers.put(error.code < 500 and error.code not in (403, 407))
        except (OSError, ValueError, http.client.HTTPException):
            answers.put(False)

    # A thread, because a name server that does not answer ignores the timeout.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


# --- files ------------------------------------------------------------------------------------

Row = Mapping[str, object]


def _read_rows(file: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file, and the names of their columns."""
    if not file.exists():
        raise FileNotFoundError(f"no such file of prompts: {str(file)!r}")
    if file.is_dir():
        raise ValueError(
            f"{str(file)!r} is a folder: pass one of its files, or a dataset's name with "
            f"path={str(file)!r}"
        )
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"{str(file)!r} has the suffix {suffix!r}: expected one of {' '.join(_SUFFIXES)}"
        )
    try:
        rows, columns = _READERS[suffix](file)
    except UnicodeDecodeError:
        raise ValueError(f"{str(file)!r} is not UTF-8 text: save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is not valid {suffix}: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from None
    if not rows:
        raise ValueError(f"{str(file)!r} is empty: expected at least one prompt")
    return rows, columns


def _read_txt(file: Path) -> tuple[list[Row], list[str]]:
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    return [{"prompt": line.strip()} for line in lines if line.strip()], ["prompt"]


def _read_csv(file: Path) -> tuple[list[Row], list[str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"{str(file)!r}, line {reader.line_num}: {error}") from None
        columns = list(reader.fieldnames or ())
    for index, row in enumerate(rows):
        if None in row:
            raise ValueError(
                f"{str(file)!r}: row {index} has more cells than the header's {len(columns)}: "
                "quote the cells that hold a comma"
            )
    return list(rows), columns


def _read_json(file: Path) -> tuple[list[Row], list[str]]:
    found = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(found, dict):
        found = _rows_of_columns(file, found)
    return _rows_of_values(file, found)


def _read_jsonl(file: Path) -> tuple[list[Row], list[str]]:
    values = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(
                    error.msg, "\n" * (number - 1) + line, number - 1 + error.pos
                ) from None
    return _rows_of_values(file, values)


def _read_parquet(file: Path) -> tuple[list[Row], list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{str(file)!r} needs pyarrow: `pip install pyarrow`, or save it as .csv or .jsonl"
        ) from error
    try:
        table = parquet.read_table(file)
    except pyarrow.ArrowInvalid:
        raise ValueError(f"{str(file)!r} is no valid .parquet file: fetch it again") from None
    return table.to_pylist(), table.column_names


_READERS = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _rows_of_columns(file: Path, columns: Mapping[str, object]) -> list[dict[str, object]]:
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    if not lists or len({len(values) for values in lists.values()}) != 1:
        raise ValueError(
            f"{str(file)!r} holds an object: expected its values to be lists of one length, "
            "such as {'harmful': [...], 'harmless': [...]}, or a list of strings or of objects"
        )
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _rows_of_values(file: Path, values: object) -> tuple[list[Row], list[str]]:
    if not isinstance(values, list):
        raise ValueError(
            f"{str(file)!r} holds a {type(values).__name__}: expected a list of strings or objects"
        )
    if all(isinstance(value, dict) for value in values):
        return values, list(dict.fromkeys(key for value in values for key in value))
    if any(isinstance(value, dict) for value in values):
        raise ValueError(f"{str(file)!r} mixes strings and objects: use one of the two")
    return [{"prompt": value} for value in values], ["prompt"]


def _from_rows(
    rows: Sequence[Row], columns: Sequence[str], name: str, source: str, column: str | None
) -> PromptSet:
    def cells(of: str) -> list[object]:
        return [row.get(of) for row in rows]

    category_column = _first_column(columns, _CATEGORY_COLUMNS)
    kinds = cells(category_column) if category_column else []
    if not all(isinstance(kind, str) and kind.strip() for kind in kinds):
        kinds = []  # some are missing: none are known
    harmful_column = _first_column(columns, ("harmful",))
    harmless_column = _first_column(columns, _HARMLESS_COLUMNS)
    if column is None and harmful_column and harmless_column:
        harmful, harmless = cells(harmful_column), cells(harmless_column)
        _check_texts(harmful, f"{source}: harmful prompt")
        _check_texts(harmless, f"{source}: harmless prompt")
        return PromptSet(name, _strings(harmful), _strings(harmless), True, _strings(kinds), source)
    texts = cells(_text_column(columns, column, source))
    _check_texts(texts, f"{source}: prompt")
    label_column = _first_column(columns, ("label",))
    is_harmful = _split(cells(label_column), source) if label_column else [True] * len(texts)
    is_harmless = [not harmful for harmful in is_harmful]
    return PromptSet(
        name,
        _strings(compress(texts, is_harmful)),
        _strings(compress(texts, is_harmless)),
        False,
        _strings(compress(kinds, is_harmful)),
        source,
        _strings(compress(kinds, is_harmless)),
    )


def _strings(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _split(labels: Sequence[object], source: str) -> list[bool]:
    """Whether each row is harmful, by its label; labels about something else are ignored."""
    words = [str(label).strip().lower() for label in labels]
    strange = sorted(set(words) - _HARMFUL_LABELS - _HARMLESS_LABELS)
    if len(strange) == len(set(words)):
        return [True] * len(words)
    if strange:
        raise ValueError(
            f"{source}: the column 'label' has {len(strange)} words besides "
            f"{', '.join(sorted(_HARMFUL_LABELS | _HARMLESS_LABELS))}, such as "
            f"{strange[0][:30]!r}: use these only, or rename the column"
        )
    if not _HARMFUL_LABELS.intersection(words):
        raise ValueError(
            f"{source}: the column 'label' calls every row harmless, and at least one harmful "
            "prompt is needed; to score harmless prompts, pass them as a list"
        )
    return [word in _HARMFUL_LABELS for word in words]


def _first_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in names if name in lowered), None)


def _text_column(columns: Sequence[str], asked: str | None, source: str) -> str:
    if asked is not None and asked in columns:
        return asked
    found = _first_column(columns, [asked.lower()] if asked else _TEXT_COLUMNS)
    if found is not None:
        return found
    # A long "column" is the first prompt of a file without a header: not to be shown.
    shown = [
        column if len(column) <= 30 else f"<a name of {len(column)} characters>"
        for column in columns
    ]
    wanted = f"a column {asked!r}" if asked else f"one of {', '.join(_TEXT_COLUMNS)}"
    advice = "pass one of them" if asked else "name the one that holds the prompts with column="
    if any(len(column) > 30 for column in columns):
        advice += "; if the file has no header line, add one"
    raise ValueError(
        f"{source}: expected {wanted}, and its columns are {', '.join(shown) or 'none'}: {advice}"
    )


def _load_matched(
    files: tuple[Path, Path], name: str, source: str, column: str | None
) -> PromptSet:
    """Join a harmful and a harmless file on their column Index, in the order of the first."""
    tables, indices = [_read_rows(file) for file in files], []
    for file, (rows, columns) in zip(files, tables, strict=True):
        index_column = _first_column(columns, ("index",))
        if index_column is None:
            raise ValueError(f"{str(file)!r} has no column 'Index' to match its rows by")
        indices.append([str(row.get(index_column)).strip() for row in rows])
    ours, theirs = indices
    if sorted(ours) != sorted(theirs) or len(set(ours)) != len(ours):
        alone = sorted(set(ours) ^ set(theirs))[:5]
        raise ValueError(
            f"{str(files[0])!r} ({len(ours)} rows) and {str(files[1])!r} ({len(theirs)} rows) do "
            "not match: expected each Index once in both"
            + (f", and only one has {', '.join(alone)}" if alone else "")
        )
    (harmful_rows, harmful_columns), (harmless_rows, harmless_columns) = tables
    row_of = dict(zip(theirs, harmless_rows, strict=True))
    harmful = _from_rows(harmful_rows, harmful_columns, name, source, column)
    harmless = _from_rows([row_of[i] for i in ours], harmless_columns, name, source, column)
    return replace(
        harmful,
        harmless=harmless.harmful,
        paired=True,
        harmless_categories=harmless.categories,
    )


# --- templates and tokens ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class TokenBatch:
    """Prompts as tokens, right padded: with a causal mask, padding changes nothing before it."""

    ids: Int[Tensor, "prompt pos"]
    """Token ids; from `lengths[i]` on, row i is padding."""
    lengths: Int[Tensor, " prompt"]
    """The number of real tokens of each row."""
    texts: tuple[str, ...]
    """The rendered prompts."""
    template: str
    """The template's name, or the template itself where it has none."""

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.texts)

    def __repr__(self) -> str:
        prompts, width = self.ids.shape
        return (
            f"TokenBatch({prompts} prompts, {int(self.lengths.min())} to {width} tokens, "
            f"template {self.template!r}, fingerprint {self.fingerprint[:12]})"
        )

    @property
    def prefix_length(self) -> int:
        """How many tokens all prompts share from the start; always below the shortest length."""
        before_last = self.ids[:, : int(self.lengths.min()) - 1]
        shared = (before_last == before_last[:1]).all(dim=0)
        return int(shared.long().cumprod(dim=0).sum())

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the lengths and of the real tokens; padding does not count."""
        digest = hashlib.sha256(repr(self.lengths.tolist()).encode("ascii"))
        for row, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True):
            digest.update(repr(row[:length]).encode("ascii"))
        return digest.hexdigest()

    def select(self, indices: Sequence[int]) -> "TokenBatch":
        """The prompts at these indices, in this order, trimmed to the longest of them."""
        count = len(self)
        if not len(indices):
            raise ValueError(f"no indices given: expected at least one of 0 to {count - 1}")
        outside = [int(index) for index in indices if not 0 <= index < count]
        if outside:
            raise ValueError(f"no prompt at index {outside[0]}: expected 0 to {count - 1}")
        rows = torch.as_tensor([int(index) for index in indices], device=self.ids.device)
        lengths = self.lengths[rows]
        return TokenBatch(
            self.ids[rows, : int(lengths.max())],
            lengths,
            tuple(self.texts[int(index)] for index in indices),
            self.template,
        )


def default_template(tokenizer: Any) -> str:
    """The template for this tokenizer's model: "chat" where it has a chat template, else "bare"."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "bare"


def render(
    prompts: Sequence[object], template: str | None = None, tokenizer: Any = None
) -> list[str]:
    """Write each prompt into a template.

    Arguments:
        prompts: the prompts, strings.
        template: "chat", "bare", "query" or any string with {q}, where the prompt goes; None takes
            the tokenizer's default.
        tokenizer: the model's tokenizer; only "chat" and None need it.

    Raises ValueError for no prompts, a blank one, a template without {q}, and for "chat" with a
    tokenizer that has no chat template.

    >>> render(["How are you?"], "query")
    ['## Query:How are you?\\n## Answer:']
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise ValueError(
            f"prompts are of type {type(prompts).__name__}: expected a list of strings "
            "(of a PromptSet, its .harmful or its .harmless)"
        )
    if not prompts:
        raise ValueError("the list of prompts is empty: expected at least one string")
    _check_texts(prompts, "prompt")
    texts = [str(prompt) for prompt in prompts]
    template = default_template(tokenizer) if template is None else template
    if template == "chat":
        return _render_chat(texts, tokenizer)
    pattern = TEMPLATES.get(template) or template
    if "{q}" not in pattern:
        near = difflib.get_close_matches(pattern.lower(), TEMPLATES, n=1)
        raise ValueError(
            f"template {template[:60]!r} has no {{q}}, which is where the prompt goes"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" Use {', '.join(map(repr, TEMPLATES))} or a string with {{q}}"
        )
    return [pattern.replace("{q}", text) for text in texts]


def _render_chat(texts: list[str], tokenizer: Any) -> list[str]:
    if default_template(tokenizer) != "chat":
        raise ValueError(
            "template='chat' was asked for and the tokenizer has no chat template (a base model?): "
            "use template='bare' or template='query', or set tokenizer.chat_template"
        )
    rendered = []
    for index, text in enumerate(texts):
        turns = [{"role": "user", "content": text}]
        try:
            rendered.append(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:
            raise ValueError(
                f"the tokenizer's chat template failed on the prompt at index {index} "
                f"({type(error).__name__}): use template='bare', template='query' or a string "
                "with {q}"
            ) from error
    return rendered


def tokenize(
    prompts: Sequence[object],
    tokenizer: Any,
    template: str | None = None,
    *,
    max_length: int | None = None,
) -> TokenBatch:
    """Render prompts and turn them into tokens, with the model's own tokenizer and one BOS.

    A chat template usually writes BOS itself: one is added only where the tokenizer adds one to
    plain text and the rendered text lacks it. Other templates get what the tokenizer adds in
    front (for some models nothing), and never what it adds at the end.

    Arguments:
        prompts: the prompts, strings.
        tokenizer: a Hugging Face tokenizer.
        template: as for `render`; None takes the tokenizer's default.
        max_length: the model's context, in tokens; None for no limit.

    Raises ValueError for what `render` refuses, for a row that starts with two BOS, and for a row
    that is longer than `max_length` or has no tokens.
    """
    template = default_template(tokenizer) if template is None else template
    texts = render(prompts, template, tokenizer)
    chat = template == "chat"
    bos, appended = _specials(tokenizer)
    rows = _encode(tokenizer, texts, add_special_tokens=not chat)
    for index, row in enumerate(rows):
        if chat:
            if bos is not None and row[:1] != [bos]:
                row.insert(0, bos)
        elif appended and row[-len(appended) :] == appended:
            del row[-len(appended) :]
        _check_row(index, row, tokenizer, chat, max_length)
    lengths = [len(row) for row in rows]
    pad = getattr(tokenizer, "pad_token_id", None)
    ids = torch.full((len(rows), max(lengths)), 0 if pad is None else pad, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return TokenBatch(ids, torch.tensor(lengths, dtype=torch.int64), tuple(texts), template)


def _encode(tokenizer: Any, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    # Both are said, because a tokenizer may carry padding and truncation of its own.
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, padding=False, truncation=False, verbose=False
    )
    return [list(row) for row in encoded["input_ids"]]


def _specials(tokenizer: Any) -> tuple[int | None, list[int]]:
    """The BOS that the tokenizer puts before plain text (None: it puts none), and what it appends.

    The model of a tokenizer may know a BOS that is never used (Qwen, GPT-2), or one that a chat
    template uses to begin every turn (SmolLM2): only what the tokenizer does counts.
    """
    dressed = _encode(tokenizer, ["x"], add_special_tokens=True)[0]
    plain = _encode(tokenizer, ["x"], add_special_tokens=False)[0]
    bos = getattr(tokenizer, "bos_token_id", None)
    adds_bos = bos is not None and dressed[:1] == [bos] and plain[:1] != [bos]
    starts = range(len(dressed) - len(plain) + 1)
    start = next((i for i in starts if dressed[i : i + len(plain)] == plain), None)
    appended = dressed[start + len(plain) :] if start is not None and plain else []
    return (bos if adds_bos else None), appended


def _check_row(
    index: int, row: list[int], tokenizer: Any, chat: bool, max_length: int | None
) -> None:
    if not row:
        raise ValueError(
            f"the prompt at index {index} has no tokens: does this tokenizer belong to the model?"
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and row[0] == bos and bos in row[1:]:
        between = row[1 : row.index(bos, 1)]
        if not between or not str(tokenizer.decode(between)).strip():
            who = (
                "the chat template writes BOS twice, or the prompt begins with it"
                if chat
                else "the tokenizer adds BOS, and the template or the prompt writes it too"
            )
            raise ValueError(
                f"the prompt at index {index} starts with two BOS tokens "
                f"({tokenizer.bos_token!r}): {who}; remove the text of BOS, one is enough"
            )
    if max_length is not None and len(row) > max_length:
        raise ValueError(
            f"the prompt at index {index} has {len(row)} tokens (template included) and the limit "
            f"is {max_length}: shorten or remove it"
        )
