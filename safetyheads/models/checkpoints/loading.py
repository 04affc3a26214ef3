"""Where do a model's weights come from, and are they the right ones?

Five roads lead to a model: a known name, that of a sibling, a local folder, a `.gguf` file, a Hub id.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safetyheads.models.checkpoints.adapters import (
    WEIGHTS,
    add_adapter,
    check_adapter,
    read_adapter,
)
from safetyheads.models.checkpoints.fetching import fetch_model_file, hub_snapshot
from safetyheads.models.checkpoints.folders import (
    FolderContents,
    check_folder,
    opened_adapter,
    provenance_of,
)
from safetyheads.models.checkpoints.known import (
    KNOWN_MODELS,
    KNOWN_SIBLINGS,
    near_matches,
    sibling_folder,
)
from safetyheads.models.checkpoints.reading import check_decoder, read_folder
from safetyheads.models.checkpoints.unpacked import open_gguf, unpacked_copy
from safetyheads.models.placement import require_in_memory
from safetyheads.models.unwrapping import unwrapped
from safetyheads.storage.cache import cache_folder, sha256_of


class Checkpoint(NamedTuple):
    """A loaded model with its tokenizer, and a record of what was loaded."""

    model: Any
    """A Hugging Face causal language model in evaluation mode, eager attention, no gradients."""
    tokenizer: Any
    name: str
    provenance: dict[str, str]
    """`source`, `file`, `sha256` or `revision`, `dtype`, `format`; `tokenizer` where the caller gave one."""


class _Wanted(NamedTuple):
    """How the weights are wanted, the same on all roads."""

    device: torch.device
    dtype: torch.dtype
    tokenizer: Any
    placing: dict[str, Any]
    """What transformers is told of several devices; empty for one."""


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    first_block: int = 0,
) -> Checkpoint:
    """Load a decoder-only language model and its tokenizer.

    Args:
        source: one of `KNOWN_MODELS` or `KNOWN_SIBLINGS` (write `./name` for a folder of that name), a folder with a
            `config.json` or with a LoRA adapter, a `.gguf` file, or a Hub id, looked for in the
            local Hugging Face cache where the Hub does not answer.
        tokenizer: the one to use in place of the source's own.
        device: where the weights go.
        dtype: the weights' type, a torch type or its name; float32 where none is given.
        device_map: where the parts of a model on several devices go, as transformers takes it, in place of `device`.
        max_memory: what each device may hold, by device; without a map "balanced" is meant.
        first_block: the lowest block whose weights are read; those below it are on the meta device.

    Raises:
        ValueError: the name is unknown, the model predicts no next token, weights are missing, cut
            short, left over, quantised or not the recorded ones, a GGUF file says something that
            this version cannot carry out, there is no tokenizer, or the device or dtype cannot be
            had.
        FileNotFoundError: there is no such path, or the folder has no `config.json` or weights.
        ConnectionError: the model is not on this machine and nothing that has it can be reached.
        PermissionError: the Hub wants its terms accepted first, or the cache cannot be written.

    >>> load_checkpoint("./no-such-folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: there is no folder or file ./no-such-folder ...
    """
    placing = _placing(device, device_map, max_memory)
    if first_block:
        placing["first_block"] = first_block
    wanted = _Wanted(_usable_device(device), _float_type(dtype), tokenizer, placing)
    text = os.fspath(source)
    path = Path(text).expanduser()
    if isinstance(source, str) and text in KNOWN_MODELS:
        return _load_known(text, wanted)
    if isinstance(source, str) and text in KNOWN_SIBLINGS:
        return _load_sibling(text, wanted)
    if text and path.is_dir():
        return _load_folder(path, path.resolve().name, str(path), wanted)
    if path.is_file():
        return _load_gguf(path, sha256_of(path, cache_folder()), path.stem, str(path), wanted)
    if isinstance(source, os.PathLike) or _looks_like_a_path(text):
        raise FileNotFoundError(f"there is no folder or file {text} (looked from {Path.cwd()})")
    return _load_from_hub(text, wanted)


def _load_known(name: str, wanted: _Wanted) -> Checkpoint:
    known = KNOWN_MODELS[name]
    copy = unpacked_copy(known.sha256, cache_folder())
    path = cache_folder() / known.filename if copy else fetch_model_file(name)
    return _load_gguf(path, known.sha256, name, name, wanted)


def _load_sibling(name: str, wanted: _Wanted) -> Checkpoint:
    base, folder = _load_known(KNOWN_SIBLINGS[name], wanted), sibling_folder(name)
    adapter = read_adapter(folder)
    check_adapter(adapter, base.model, base.provenance["sha256"])
    add_adapter(adapter, base.model)
    told = {f"base_{key}": value for key, value in base.provenance.items() if key != "dtype"}
    found = FolderContents((WEIGHTS,), adapter.base)
    provenance = {"source": name, **provenance_of(folder, found, None), **told}
    return _finished(base.model, base.tokenizer, name, wanted, provenance)


def _load_gguf(path: Path, sha256: str, name: str, source: str, wanted: _Wanted) -> Checkpoint:
    model, tokenizer = open_gguf(path, sha256, wanted.dtype, wanted.tokenizer, **wanted.placing)
    provenance = {"source": source, "file": path.name, "sha256": sha256, "format": "gguf"}
    return _finished(model, tokenizer, name, wanted, provenance)


def _load_folder(
    folder: Path, name: str, source: str, wanted: _Wanted, revision: str | None = None
) -> Checkpoint:
    found = check_folder(folder, source, needs_tokenizer=wanted.tokenizer is None)
    if found.base is not None:
        base = load_checkpoint(
            found.base,
            tokenizer=wanted.tokenizer,
            device=wanted.device,
            dtype=wanted.dtype,
            **wanted.placing,
        )
        model, tokenizer = opened_adapter(
            folder, base.model, base.tokenizer, wanted.tokenizer, base.provenance.get("sha256")
        )
        told = {f"base_{key}": value for key, value in base.provenance.items() if key != "dtype"}
    else:
        model, tokenizer = read_folder(folder, wanted.dtype, wanted.tokenizer, **wanted.placing)
        told = {}
    provenance = {"source": source, **provenance_of(folder, found, revision), **told}
    return _finished(model, tokenizer, name, wanted, provenance)


def _load_from_hub(repository: str, wanted: _Wanted) -> Checkpoint:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise ValueError(
            f"{repository!r} is no known name, no existing path, and not the form of a Hub id "
            f"(owner/name). {near_matches(repository)}"
        )
    folder = hub_snapshot(repository)
    try:
        return _load_folder(folder, repository, repository, wanted, revision=folder.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the Hugging Face cache on this machine holds {repository} only in part, or the "
            f"repository is no transformers model: {error}"
        ) from error


def _finished(
    model: Any, tokenizer: Any, name: str, wanted: _Wanted, provenance: dict[str, str]
) -> Checkpoint:
    check_decoder(model.config, provenance["source"])
    if model.config.architectures is None:
        model.config.architectures = [type(model).__name__]
    if "first_block" in wanted.placing:
        model = model._apply(lambda t: t if t.is_meta else t.to(wanted.device))
    elif wanted.placing:
        require_in_memory(model, getattr(model, "hf_device_map", None))
        model = unwrapped(model)
    else:
        model = model.to(wanted.device)
    model = model.eval().requires_grad_(False)
    provenance = {**provenance, "dtype": str(wanted.dtype).removeprefix("torch.")}
    if wanted.tokenizer is not None:
        provenance["tokenizer"] = f"given: {type(tokenizer).__name__}"
    return Checkpoint(model, tokenizer, name, provenance)


def _float_type(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"dtype {dtype!r} cannot hold a model's weights; use float32, bfloat16, float16 or "
            "float64"
        )
    return found


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({reason}); 'cpu' always can"
        ) from error


def _placing(
    device: str | torch.device,
    device_map: str | Mapping[str, Any] | None,
    max_memory: Mapping[Any, Any] | None,
) -> dict[str, Any]:
    """What transformers is told, once it is known that it can follow."""
    if device_map is None and max_memory is None:
        return {}
    if str(device) != "cpu":
        raise ValueError(
            f"device is {str(device)!r} and device_map or max_memory says where the weights go, too; give one of them"
        )
    map_ = "balanced" if device_map is None else device_map
    told: dict[str, Any] = {"device_map": map_ if isinstance(map_, str) else dict(map_)}
    return told if max_memory is None else {**told, "max_memory": dict(max_memory)}


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith((".", "~", "/"))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith((".gguf", "/"))
    )
