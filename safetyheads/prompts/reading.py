"""What does a file of prompts hold? Its bytes as text, and the text as a table or as JSON, under any name."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetyheads.prompts.labels import shown, words_of

SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
"""The files that are read by their suffix; JSON and tables with tabs are found under any other."""

_MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

Row = Mapping[str, object]


class Table(NamedTuple):
    """Rows under names."""

    rows: Sequence[Row]
    columns: Sequence[str]


def read_values(file: Path, encoding: str | None, headers: frozenset[str]) -> object:
    """What a file holds: a Table, a list of lines, or what its JSON says.

    `encoding` is that of a text file, by default UTF-8 or what its byte-order mark says. `headers` are the names of
    columns by which a table is told from lines of text.

    Raises FileNotFoundError, and ValueError for what cannot be read, with the line.
    """
    if not file.exists():
        raise FileNotFoundError(f"no such file of prompts: {str(file)!r}")
    if file.is_dir():
        raise ValueError(
            f"{str(file)!r} is a folder: pass one of its files, or a dataset's name with "
            f"path={str(file)!r}"
        )
    raw, suffix = file.read_bytes(), file.suffix.lower()
    if raw[:4] == b"PAR1" or suffix == ".parquet":
        return _read_parquet(file)
    if raw.startswith(_PACKED):
        raise ValueError(
            f"{str(file)!r} is a compressed file or a spreadsheet: unpack it, or save it as .csv"
        )
    text = _decode(file, raw, encoding)
    if not text.strip():
        raise ValueError(f"{str(file)!r} is empty: expected at least one prompt")
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _read_json(file, text)
    if _is_json(text):
        return _read_json(file, text)
    if suffix in (".csv", ".tsv"):
        return _read_csv(file, text, _separator(text, suffix, headers))
    separator = _hidden_table(file, text, headers)
    if separator:
        return _read_csv(file, text, separator)
    if suffix == ".txt":
        return [line.strip() for line in text.split("\n") if line.strip()]
    raise ValueError(
        f"{str(file)!r} has the suffix {suffix!r}: expected one of {' '.join(SUFFIXES)}"
    )


# --- bytes ------------------------------------------------------------------------------------


def _decode(file: Path, raw: bytes, encoding: str | None) -> str:
    marked = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    try:
        text = raw.decode(encoding or marked or "utf-8")
    except LookupError:
        raise ValueError(
            f"encoding={encoding!r} is none that Python knows: expected 'utf-8', 'latin-1', 'utf-16', ..."
        ) from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        name = encoding or marked or "UTF-8"
        raise ValueError(
            f"{str(file)!r} is not {name} text at line {line}: save it as UTF-8 (`iconv -f WINDOWS-1252 -t UTF-8`), or "
            "say what it is, encoding='latin-1' or 'cp1252' for most old files of Western languages"
        ) from None
    if "\x00" in text:
        raise ValueError(
            f"{str(file)!r} holds NUL bytes: if it is UTF-16 without a mark, say encoding='utf-16-le'; if it is no "
            "text, it cannot be read"
        )
    return text.removeprefix("\ufeff")


# --- JSON -------------------------------------------------------------------------------------


def _is_json(text: str) -> bool:
    """Whether a text under another name is JSON or JSON lines; prompts may begin with a bracket too."""
    if text.lstrip()[:1] not in ("[", "{"):
        return False
    first = text.lstrip().split("\n", 1)[0]
    for part in (first, text):
        try:
            json.loads(part)
        except json.JSONDecodeError:
            continue
        return True
    return text.lstrip().startswith(('{"', '[{"', '["'))  # it means to be, and is broken


def _read_json(file: Path, text: str) -> object:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twins(file, [name for name, _ in pairs])
        return dict(pairs)

    def parse(part: str) -> object:
        return json.loads(part, object_pairs_hook=once)

    try:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        try:
            first = parse(lines[0][1])
            if len(lines) == 1:
                a_row = file.suffix.lower() in (".jsonl", ".ndjson") and not isinstance(first, list)
                return [first] if a_row else first
        except json.JSONDecodeError:
            return parse(text)
        values = [first]
        for number, line in lines[1:]:
            try:
                values.append(parse(line))
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(
                    error.msg, "\n" * (number - 1) + line, number - 1 + error.pos
                ) from None
        return values
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is not valid {file.suffix.lower() or 'JSON'}: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from None


def _refuse_twins(file: Path, names: Sequence[str]) -> None:
    twins = [name for name, times in Counter(names).items() if times > 1 and name]
    if twins:
        raise ValueError(
            f"{str(file)!r} has the column {shown(twins[0])} twice: rename or remove one, since "
            "it cannot be told which is meant"
        )


# --- tables -----------------------------------------------------------------------------------


def _read_csv(file: Path, text: str, separator: str) -> Table:
    import pandas

    _check_cells(file, text, separator)
    frame = pandas.read_csv(
        io.StringIO(text),
        sep=separator,
        header=None,
        dtype=str,
        keep_default_na=False,
        na_values=[],
    )
    cells = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    columns = [str(name or "").strip() for name in cells[0]]
    _refuse_twins(file, columns)
    rows = [dict(zip(columns, row, strict=True)) for row in cells[1:] if any(row)]
    if not rows:
        raise ValueError(f"{str(file)!r} is empty: expected at least one prompt below its header")
    return Table(rows, columns)


def _check_cells(file: Path, text: str, separator: str) -> None:
    """Refuse quotes that do not end where a cell ends, and rows that are too wide.

    The standard library's reader does it, because pandas takes an open quote's rows for one cell and says nothing.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    width, line = 0, 0
    try:
        for index, row in enumerate(filter(None, reader)):
            width = width or len(row)
            if len(row) > width:
                raise ValueError(
                    f"{str(file)!r}: row {index - 1} has more cells than the header's {width} (line {line + 1}): "
                    "quote the cells that hold a comma"
                )
            line = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{str(file)!r}: a quote in the row that begins at line {line + 1} does not end where its cell ends "
            f"({error}): close it, and write a quote inside quotes as two"
        ) from None


def _separator(text: str, suffix: str, headers: frozenset[str]) -> str:
    """What stands between the cells of the first line; a comma, unless another gives names that are known."""
    if suffix == ".tsv":
        return "\t"
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if _names(header, ",") & headers:
        return ","
    known = (mark for mark in "\t;|" if mark in header and _names(header, mark) & headers)
    return next(known, "\t" if "\t" in header and "," not in header else ",")


def _hidden_table(file: Path, text: str, headers: frozenset[str]) -> str | None:
    """The separator of a table that goes by another name; None for lines of text.

    A table begins with a line of names without blanks, of which one is known; and all its lines have as many tabs.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2:
        return None
    tabs = {line.count("\t") for line in lines}
    if len(tabs) == 1 and tabs != {0}:
        if _names(lines[0], "\t") & headers:
            return "\t"
        raise ValueError(
            f"{str(file)!r} has {tabs.pop()} tabs in every line, as a table has: give it a header with a name such as "
            "prompt, or leave the prompts alone, one a line"
        )
    plain = not any(map(str.isspace, lines[0].strip()))
    return "," if plain and "," in lines[0] and _names(lines[0], ",") & headers else None


def _names(header: str, separator: str) -> set[str]:
    return {"_".join(words_of(name)) for name in header.split(separator)}


def _read_parquet(file: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        _refuse_twins(file, parquet.read_schema(file).names)
        table = parquet.read_table(file)
    except pyarrow.ArrowInvalid:
        raise ValueError(f"{str(file)!r} is no valid .parquet file: fetch it again") from None
    if not table.num_rows:
        raise ValueError(f"{str(file)!r} is empty: expected at least one prompt")
    return Table(table.to_pylist(), table.column_names)
