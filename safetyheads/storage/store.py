"""What is already known?

A folder of readings, one small safetensors file a key, written so that a run killed at any moment leaves only whole
files. The folder's name carries the fingerprint of everything that determines the numbers: readings of another model,
template, prompt set, ablation, metric or version are never found, let alone mixed in. Each file carries a checksum, so
that what a disk or a copy did to it is noticed. Several processes may use one store: a key that two of them write
is written with the same bytes.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from safetyheads.storage.files import writable_folder, write_whole

MANIFEST = "provenance.json"
"""The file of a store that says what its readings are of."""


def fingerprint(provenance: dict[str, Any]) -> str:
    """SHA-256 of a manifest, independent of the order of its keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    True
    """
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def store_name(provenance: dict[str, Any]) -> str:
    """The name of the folder of a store."""
    return fingerprint(provenance)[:16]


def differences(one: Any, other: Any, field: str = "") -> list[str]:
    """Where two manifests differ, a line a field.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 and 3']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other})
        return [
            line
            for name in names
            for line in differences(
                one.get(name), other.get(name), f"{field}.{name}" if field else name
            )
        ]
    return [] if one == other else [f"{field}: {one} and {other}"]


def as_bytes(tensor: Tensor) -> UInt8[Tensor, " byte"]:
    """A tensor's bytes, in the order of its numbers; no copy is made where they lie in that order."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.stride(0) != 1:  # one number may have any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def layer_key(layer: int) -> str:
    """The key of one layer's readings."""
    return f"layer{layer:03d}"


def layer_readings(
    store: Mapping[str, Tensor] | None, layer: int, count: int
) -> Float[Tensor, "variant *reading"] | None:
    """The readings of a layer's `count` variants, or None where they are not there; another count is warned of."""
    known = None if store is None else store.get(layer_key(layer))
    if known is None or (known.ndim and len(known) == count):
        return known
    warnings.warn(
        f"the stored {layer_key(layer)} has shape {list(known.shape)} and should have {count} rows; "
        "it is computed again, the other readings of this store stay",
        stacklevel=2,
    )
    return None


class Store(MutableMapping[str, Tensor]):
    """Tensors by key in `folder/<fingerprint>`; a damaged file counts as not there, with a warning that names it."""

    folder: Path
    """Where the files are."""
    provenance: dict[str, Any]
    """What determines the readings."""

    def __init__(self, folder: str | Path, provenance: dict[str, Any]) -> None:
        self.provenance = provenance
        self.fingerprint = fingerprint(provenance)
        self.folder = writable_folder(Path(folder) / store_name(provenance))
        manifest = _no_folder(self.folder / MANIFEST)
        content = json.dumps(provenance, indent=2, sort_keys=True).encode()
        if not manifest.is_file() or manifest.read_bytes() != content:
            write_whole(manifest, content)

    @classmethod
    def reading(cls, folder: str | Path) -> "Store":
        """A store that is there already, to be read; nothing is written when it is opened.

        Raises FileNotFoundError if there is none, ValueError if its manifest is damaged.
        """
        store = cls.__new__(cls)
        store.folder = Path(folder)
        manifest = _no_folder(store.folder / MANIFEST)
        try:
            store.provenance = json.loads(manifest.read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} is not a folder of readings: no {MANIFEST}"
            ) from error
        except ValueError:
            store.provenance = {}
        store.fingerprint = fingerprint(store.provenance)
        if store.folder.name != store_name(store.provenance):
            raise ValueError(
                f"{manifest} is damaged or was edited: it does not fit the folder's name; "
                "run the same command again, which writes it anew"
            )
        return store

    def __getitem__(self, key: str) -> Tensor:
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise KeyError(key) from error
        try:
            value = load(data)["readings"]
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            if header["__metadata__"]["sha256"] == self._checksum(key, value):
                return value
            problem = "its checksum is another"
        except (SafetensorError, KeyError) as error:
            problem = str(error)
        warnings.warn(
            f"{path} is damaged ({problem}) and counts as not there: a run computes it again. "
            "The other readings of this store stay",
            stacklevel=3,
        )
        raise KeyError(key)

    def __setitem__(self, key: str, value: Tensor) -> None:
        from safetensors.torch import save

        value = value.contiguous()
        write_whole(
            self._path(key), save({"readings": value}, {"sha256": self._checksum(key, value)})
        )

    def __delitem__(self, key: str) -> None:
        try:
            self._path(key).unlink()
        except FileNotFoundError as error:
            raise KeyError(key) from error

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, key: str) -> Path:
        return _no_folder(self.folder / f"{key}.safetensors")

    def _checksum(self, key: str, value: Tensor) -> str:
        """SHA-256 over the store, the key, the shape and the bytes: a file under another's name is noticed too."""
        digest = hashlib.sha256(
            f"{self.fingerprint} {key} {value.dtype} {tuple(value.shape)}".encode()
        )
        digest.update(as_bytes(value).numpy().tobytes())
        return digest.hexdigest()


def _no_folder(path: Path) -> Path:
    """The path of a file, or a ValueError if a folder stands in its place."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, and a file of readings belongs in its place; move it away or remove it, "
            "and run the same command again"
        )
    return path
