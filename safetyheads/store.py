"""What is already known?

A folder of readings, one small safetensors file a key, written so that a run killed at any moment leaves only whole
files. The folder's name carries the fingerprint of everything that determines the numbers: readings of another model,
template, prompt set, ablation, metric or version are never found, let alone mixed in.
"""

import hashlib
import json
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from torch import Tensor

from safetyheads.heads import writable_folder


def fingerprint(provenance: dict[str, Any]) -> str:
    """SHA-256 of a manifest, independent of the order of its keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    True
    """
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


class Store(MutableMapping[str, Tensor]):
    """Tensors by key in `folder/<fingerprint>`; a file that cannot be read counts as not there."""

    def __init__(self, folder: str | Path, provenance: dict[str, Any]) -> None:
        self.folder = writable_folder(Path(folder) / fingerprint(provenance)[:16])
        manifest = self.folder / "provenance.json"
        if not manifest.exists():
            self._write(manifest, json.dumps(provenance, indent=2, sort_keys=True).encode())

    def __getitem__(self, key: str) -> Tensor:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self._path(key))["readings"]
        except (FileNotFoundError, SafetensorError, KeyError) as error:
            raise KeyError(key) from error

    def __setitem__(self, key: str, value: Tensor) -> None:
        from safetensors.torch import save

        self._write(self._path(key), save({"readings": value.contiguous()}))

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
        return self.folder / f"{key}.safetensors"

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """Whole or not at all: written beside its place under this process's name, then renamed."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
