"""How does a result, a frozen value of fields, become a record and the same value again?

The fields' types say it: tensors go into the record's tensors, tables into its tables, everything else into its values;
results within results are taken apart in the same way. Nothing is unpickled: a record can be opened whoever wrote it.
"""

import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from safetyheads.storage.records import Record, is_record, read_record, write_record

if TYPE_CHECKING:
    import pandas

Result = TypeVar("Result")


def kind_of(result: type) -> str:
    """What a record calls a class of results.

    >>> kind_of(Record)
    'record'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", result.__name__).lower()


def save_result(result: Any, folder: str | Path) -> Path:
    """Write a result, a dataclass or a named tuple, as a record; what `load_result` reads."""
    tensors: dict[str, Tensor] = {}
    tables: dict[str, pandas.DataFrame] = {}
    values = {name: _apart(v, name, tensors, tables) for name, v in _fields(result).items()}
    return write_record(
        folder, kind=kind_of(type(result)), tensors=tensors, values=values, tables=tables
    )


def load_result(
    result: type[Result],
    folder: str | Path,
    old: Callable[[Path], Record] | None = None,
) -> Result:
    """Read a result that `save_result` wrote, of this very class.

    `old` reads the folder of a version that wrote no records.

    Raises FileNotFoundError where there is none, ValueError for what `read_record` refuses and for fields of another
    version.
    """
    folder = Path(folder)
    if old is not None and not is_record(folder) and (folder / "manifest.json").is_file():
        record = old(folder)
    else:
        record = read_record(folder, kind_of(result))
    return _whole(result, record.values, record, str(folder))


def old_record(stem: str) -> Callable[[Path], Record]:
    """What reads the folders of 0.1 and 0.2: `<stem>.safetensors` and `manifest.json`."""

    def read(folder: Path) -> Record:
        from safetensors import SafetensorError, safe_open

        path = folder / f"{stem}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there, and {folder / 'manifest.json'} is: copy the whole folder, or save again"
            )
        written = (folder / "manifest.json").read_bytes()
        try:
            with safe_open(path, framework="pt") as file:
                belongs_to = (file.metadata() or {}).get("manifest_sha256")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(written)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{folder} is damaged ({str(error)[:80]}); save it again") from error
        if belongs_to not in (None, hashlib.sha256(written).hexdigest()):
            raise ValueError(
                f"{folder} holds {path.name} of one save and manifest.json of another (was it killed "
                "in between, or edited?); save it again"
            )
        values |= {name: {"tensor": name} for name in tensors}
        return Record(stem, "before records", tensors, values, {})

    return read


def _fields(result: Any) -> dict[str, Any]:
    found = {name: getattr(result, name) for name in _own(result)}
    if (
        "provenance" in found
    ):  # the order of a manifest's keys means nothing: two equal ones give the same bytes
        found["provenance"] = _in_order(found["provenance"])
    return found


def _in_order(manifest: Any) -> Any:
    if isinstance(manifest, dict):
        return {key: _in_order(manifest[key]) for key in sorted(manifest)}
    if isinstance(manifest, list | tuple):
        return type(manifest)(map(_in_order, manifest))
    return manifest


def _own(result: Any) -> list[str]:
    """The names of a result's fields."""
    if dataclasses.is_dataclass(result):
        return [field.name for field in dataclasses.fields(result)]
    return list(result._fields)


def _is_table(value: Any) -> bool:
    import pandas

    return isinstance(value, pandas.DataFrame)


def _apart(
    value: Any, place: str, tensors: dict[str, Tensor], tables: "dict[str, pandas.DataFrame]"
) -> Any:
    """A value without its tensors and tables, which go under their place: `harmful.0.values`."""

    def inner(one: Any, name: object) -> Any:
        return _apart(one, f"{place}.{name}", tensors, tables)

    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if _is_table(value):
        tables[place] = value
        return {"table": place}
    if dataclasses.is_dataclass(value) or hasattr(value, "_asdict"):
        return {name: inner(one, name) for name, one in _fields(value).items()}
    if isinstance(value, tuple | list):
        return type(value)(inner(one, n) for n, one in enumerate(value))
    if isinstance(value, dict):
        return {key: inner(one, key) for key, one in value.items()}
    return value


def _whole(result: type[Result], values: Any, record: Record, where: str) -> Result:
    """A result from the values of its fields, by their types."""
    import pandas

    hints = get_type_hints(result, localns={"pandas": pandas})
    own = _own(result)
    if isinstance(values, list | tuple):  # as versions before records wrote named tuples
        values = dict(zip(own, values, strict=True))
    strange = sorted(set(values) - set(own))
    if strange:
        raise ValueError(
            f"{where} holds a {result.__name__} with {', '.join(strange)}, which this version does not know (it was "
            f"written by safetyheads {record.written_by}): open it with that version"
        )
    try:
        return result(**{n: _typed(hints[n], v, record, where) for n, v in values.items()})
    except TypeError as error:
        raise ValueError(
            f"{where} holds a {result.__name__} that lacks a field ({error}; it was written by safetyheads "
            f"{record.written_by}): open it with that version, or save it again"
        ) from error


def _typed(hint: Any, value: Any, record: Record, where: str) -> Any:
    """A value as its type says."""
    if isinstance(value, Mapping) and len(value) == 1:
        if "tensor" in value and value["tensor"] in record.tensors:
            return record.tensors[value["tensor"]]
        if "table" in value and value["table"] in record.tables:
            return record.tables[value["table"]]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        inner = [one for one in arguments if one is not type(None)]
        return _typed(inner[0], value, record, where) if len(inner) == 1 else value
    if origin is tuple:
        if arguments[-1:] == (...,):
            arguments = arguments[:1] * len(value)
        return tuple(_typed(one, v, record, where) for one, v in zip(arguments, value, strict=True))
    if origin is dict:
        return {key: _typed(arguments[1], one, record, where) for key, one in value.items()}
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")):
        return _whole(hint, value, record, where)
    return value
