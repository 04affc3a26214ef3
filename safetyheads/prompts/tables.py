"""How do the rows of a file become prompts?"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path

from safetyheads.prompts.sets import PromptSet, check_texts

SUFFIXES = (".txt", ".csv", ".json", ".jsonl", ".parquet")
_TEXT_COLUMNS = (
    *("prompt", "prompts", "goal", "instruction", "query", "question", "request"),
    *("text", "input", "harmful"),
)
_HARMLESS_COLUMNS = ("harmless", "benign")
_CATEGORY_COLUMNS = ("category", "categories", "type")
_HARMFUL_LABELS = frozenset({"harmful", "unsafe"})
_HARMLESS_LABELS = frozenset({"harmless", "benign", "safe"})


Row = Mapping[str, object]


def read_rows(file: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file, and the names of their columns."""
    if not file.exists():
        raise FileNotFoundError(f"no such file of prompts: {str(file)!r}")
    if file.is_dir():
        raise ValueError(
            f"{str(file)!r} is a folder: pass one of its files, or a dataset's name with "
            f"path={str(file)!r}"
        )
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{str(file)!r} has the suffix {suffix!r}: expected one of {' '.join(SUFFIXES)}"
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


def prompts_from_rows(
    rows: Sequence[Row], columns: Sequence[str], name: str, source: str, column: str | None
) -> PromptSet:
    """Find the columns of prompts, labels and categories, and make a set of them."""

    def cells(of: str) -> list[object]:
        return [row.get(of) for row in rows]

    category_column = first_column(columns, _CATEGORY_COLUMNS)
    kinds = cells(category_column) if category_column else []
    if not all(isinstance(kind, str) and kind.strip() for kind in kinds):
        kinds = []  # some are missing: none are known
    harmful_column = first_column(columns, ("harmful",))
    harmless_column = first_column(columns, _HARMLESS_COLUMNS)
    if column is None and harmful_column and harmless_column:
        harmful, harmless = cells(harmful_column), cells(harmless_column)
        check_texts(harmful, f"{source}: harmful prompt")
        check_texts(harmless, f"{source}: harmless prompt")
        return PromptSet(name, _strings(harmful), _strings(harmless), True, _strings(kinds), source)
    texts = cells(_text_column(columns, column, source))
    check_texts(texts, f"{source}: prompt")
    label_column = first_column(columns, ("label",))
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


def first_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column of the first of these names that there is, in any case."""
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in names if name in lowered), None)


def _text_column(columns: Sequence[str], asked: str | None, source: str) -> str:
    if asked is not None and asked in columns:
        return asked
    found = first_column(columns, [asked.lower()] if asked else _TEXT_COLUMNS)
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
