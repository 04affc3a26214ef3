"""How is a result kept, and how is it known that what is read is what was written?

A record is a folder. `record.json` says what kind of result it is, holds its values, and names its parts with their
checksums: `tensors-<hash>.safetensors`, and a parquet file a table. It is written last and whole, and parts carry their
own hash in their name: a save that is killed at any moment leaves the record that was there before, or none.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from safetyheads.storage.files import writable_folder, write_whole

if TYPE_CHECKING:
    import pandas

RECORD = "record.json"
"""The file of a record that names the others."""
FORMAT = 1
"""Of the records that this version writes, and the newest that it reads."""
_PART = re.compile(r"^(tensors|table-.+)-[0-9a-f]{12}\.(safetensors|parquet)$")


class Record(NamedTuple):
    """What a folder holds."""

    kind: str
    """What it is a result of, such as `head_scores`."""
    written_by: str
    """The version of the library."""
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    tables: dict[str, "pandas.DataFrame"]


def write_record(
    folder: str | Path,
    *,
    kind: str,
    tensors: Mapping[str, Tensor] | None = None,
    values: Mapping[str, Any] | None = None,
    tables: Mapping[str, "pandas.DataFrame"] | None = None,
) -> Path:
    """Write a record into a folder, made if it is not there, in place of the record that is there.

    `values` are numbers, strings, booleans, None, and lists, tuples and dictionaries by string of them. Other files of
    the folder stay.

    Raises ValueError for a value of another type, PermissionError where nothing can be written.

    >>> import tempfile
    >>> folder = write_record(tempfile.mkdtemp(), kind="example", values={"low": -math.inf, "heads": (3, 7)})
    >>> read_record(folder).values
    {'low': -inf, 'heads': (3, 7)}
    """
    written = {name: _plain(value, name) for name, value in (values or {}).items()}
    folder = writable_folder(folder)
    parts: dict[str, str] = {}

    def write_part(stem: str, data: bytes, suffix: str) -> None:
        digest = hashlib.sha256(data).hexdigest()
        name = f"{stem}-{digest[:12]}.{suffix}"
        write_whole(folder / name, data)
        parts[name] = digest

    if tensors:
        write_part("tensors", _tensor_bytes(tensors), "safetensors")
    names = {}
    for n, (name, table) in enumerate((tables or {}).items()):
        buffer = io.BytesIO()
        table.to_parquet(buffer)
        write_part(f"table-{n}", buffer.getvalue(), "parquet")
        names[name] = list(parts)[-1]
    content = {
        "format": FORMAT,
        "kind": kind,
        "safetyheads": version("safetyheads"),
        "parts": parts,
        "tables": names,
        "values": written,
    }
    content["sha256"] = _checksum(content)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / RECORD, text.encode())
    for path in folder.iterdir():
        if _PART.match(path.name) and path.name not in parts:
            path.unlink(missing_ok=True)
    return folder


def read_record(folder: str | Path, kind: str | None = None) -> Record:
    """Read what `write_record` wrote; `kind` says which it must be.

    Raises FileNotFoundError where there is no record, ValueError for one that is damaged, incomplete, of another kind,
    or from a newer version.
    """
    folder = Path(folder)
    content = _read_index(folder)
    if kind is not None and content["kind"] != kind:
        raise ValueError(
            f"{folder} holds a record of kind {content['kind']}, and one of kind {kind} is read: open it with the "
            "class that saved it, or name another folder"
        )
    for name, digest in content["parts"].items():
        _check_part(folder / name, digest)
    tensors: dict[str, Tensor] = {}
    for name in content["parts"]:
        if name.endswith(".safetensors"):
            from safetensors.torch import load_file

            tensors |= load_file(folder / name)
    tables = {}
    for name, file in content["tables"].items():
        import pandas

        tables[name] = pandas.read_parquet(folder / file)
    values = {name: _meant(value) for name, value in content["values"].items()}
    return Record(content["kind"], content["safetyheads"], tensors, values, tables)


def is_record(folder: str | Path) -> bool:
    """Whether there is a record in the folder, whatever its state."""
    return (Path(folder) / RECORD).is_file()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is not there; give a folder that a result's save() wrote"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: it is no JSON ({str(error)[:80]}); save the result again"
        ) from error
    if not isinstance(content, dict) or "format" not in content or "kind" not in content:
        raise ValueError(f"{path} is no record of this library: it names no format and no kind")
    if not isinstance(content["format"], int) or content["format"] > FORMAT:
        raise ValueError(
            f"{path} has the format {content['format']} of safetyheads {content.get('safetyheads')}, and this version "
            f"({version('safetyheads')}) reads up to {FORMAT}: update safetyheads"
        )
    if content.pop("sha256", None) != _checksum(content):
        raise ValueError(
            f"{path} is damaged or was edited: its checksum is another; save the result again"
        )
    return content


def _check_part(path: Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} is incomplete: {path.name} is missing; copy the whole folder, or save the result again"
        ) from error
    if found != digest:
        raise ValueError(
            f"{path} is damaged: its checksum is another (a copy that was cut short?); copy it again, or save the "
            "result again"
        )


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """One safetensors file, in which no two tensors may share memory."""
    from safetensors.torch import save

    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        own[name] = value.clone() if place in seen else value
        seen.add(place)
    return save(own)


def _plain(value: Any, place: str) -> Any:
    """As JSON has it; what JSON lacks (tuples, infinities, nan) in an object of one key."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, list):
        return [_plain(one, f"{place}[{n}]") for n, one in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_plain(one, f"{place}[{n}]") for n, one in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        inner = {key: _plain(one, f"{place}.{key}") for key, one in value.items()}
        return {"dict": inner} if set(inner) & {"float", "tuple", "dict"} else inner
    raise ValueError(
        f"{place} is a {type(value).__name__}, which a record cannot hold: expected numbers, strings, booleans, None, "
        "and lists, tuples or dictionaries by string of them"
    )


def _meant(value: Any) -> Any:
    """What `_plain` was given."""
    if isinstance(value, list):
        return [_meant(one) for one in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"float": str(number), **rest} if not rest:
            return float(number)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_meant(one) for one in items)
        case {"dict": dict(inner), **rest} if not rest:
            return {key: _meant(one) for key, one in inner.items()}
    return {key: _meant(one) for key, one in value.items()}
