"""Is there an unpacked copy of a GGUF file, whole and by this version; and if not, how is one made?

Unpacking takes up to a minute, so the unpacked weights are kept in the cache and opened in seconds from then on.
"""

import json
import os
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.models.checkpoints.folders import has_tokenizer
from safetyheads.models.checkpoints.gguf import ENCODERS, GgufHeader, read_header
from safetyheads.models.checkpoints.reading import (
    check_decoder,
    not_a_decoder,
    quiet_transformers,
    read_folder,
    read_gguf,
    read_tokenizer,
)
from safetyheads.storage.cache import cache_folder, locked, require_space

READING = 2
"""Counts the ways in which this library has read GGUF files; a copy made in another way is made again."""


def open_gguf(
    path: Path, sha256: str, dtype: torch.dtype, tokenizer: Any = None, **placing: Any
) -> tuple[Any, Any]:
    """A GGUF file's model and tokenizer, out of its unpacked copy, which is made where there is none.

    Raises ValueError if the file is none, damaged, holds no decoder or cannot be carried over whole.
    """
    copy = unpacked_copy(sha256, cache_folder())
    if copy is None:
        header = read_header(path)
        if header.architecture in ENCODERS:
            kind = "its GGUF architecture"
            raise ValueError(
                not_a_decoder(str(path), header.architecture, kind, "no decoder-only model")
            )
        try:
            with locked(_copy_folder(sha256, cache_folder()).with_suffix(".lock")):
                # another process may have made it while this one waited
                copy = unpacked_copy(sha256, cache_folder()) or _unpack(
                    header, sha256, _tokenizer_in(path, tokenizer)
                )
        except OSError as error:
            warnings.warn(
                f"the unpacked weights of {path.name} could not be kept in {cache_folder()} ({error}), so "
                "every load will unpack the file again. Free some space, or point SAFETYHEADS_CACHE "
                "at another folder.",
                stacklevel=4,
            )
            return read_gguf(header, dtype, **placing), tokenizer or read_tokenizer(path)
    if tokenizer is None and not has_tokenizer(copy):
        tokenizer = read_tokenizer(path)  # which says why there is none
    return read_folder(copy, dtype, tokenizer, **placing)


def _tokenizer_in(path: Path, given: Any) -> Any:
    """The file's own tokenizer; None where it cannot be read and the caller has given one."""
    try:
        return read_tokenizer(path)
    except ValueError:
        if given is None:
            raise
        return None


def unpacked_copy(sha256: str, cache: Path) -> Path | None:
    """The folder of unpacked weights, or None without a whole one by this transformers and in this way."""
    folder = _copy_folder(sha256, cache)
    try:
        marker = json.loads((folder / "unpacked.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in marker["files"]}
        made_by = (marker["sha256"], marker["transformers"], marker["reading"])
        same = made_by == (sha256, version("transformers"), READING)
        return folder if same and sizes == marker["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _copy_folder(sha256: str, cache: Path) -> Path:
    return cache / "unpacked" / sha256[:24]


def _unpack(header: GgufHeader, sha256: str, tokenizer: Any) -> Path:
    """Save a GGUF file's weights as a model folder; raises OSError where the disk is too full."""
    folder = _copy_folder(sha256, cache_folder())
    work = folder.with_suffix(".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        model = read_gguf(header, torch.float32)
        check_decoder(model.config, str(header.path))
        model.config.architectures = [type(model).__name__]
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        require_space(cache_folder(), size, f"keep the unpacked weights of {header.path.name}")
        _save(model, tokenizer, work)
        _check_copy(model, work)
        marker = {
            "sha256": sha256,
            "file": header.path.name,
            "transformers": version("transformers"),
            "reading": READING,
            "files": {entry.name: entry.stat().st_size for entry in work.iterdir()},
        }
        (work / "unpacked.json").write_text(json.dumps(marker, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    with quiet_transformers():
        try:
            model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        except Exception as error:  # safetensors has its own type for a disk that fills up
            raise OSError(f"saving failed: {error}") from error


def _check_copy(model: Any, folder: Path) -> None:
    """Raise OSError if what was saved is not the model: other logits, or settings that only long prompts show."""
    expected = _first_logits(model)
    copy, _ = read_folder(folder, torch.float32, tokenizer=())
    if not torch.allclose(_first_logits(copy), expected, rtol=0, atol=1e-4):
        raise OSError("the saved copy does not compute what the file's own weights do")
    ours, theirs = _settings(model.config), _settings(copy.config)
    if ours != theirs:
        lost = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        raise OSError(f"the saved copy has another {', '.join(lost)} than the file")


def _settings(config: Any) -> dict[str, Any]:
    """What a config says about the function; read back, some of the rest is written differently."""
    aside = {"transformers_version", "dtype", "architectures", "id2label", "label2id"}
    told = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in told.items() if key not in aside and key[0] != "_"}


def _first_logits(model: Any) -> Float[Tensor, "1 pos d_vocab"]:
    ids = torch.arange(8)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        return model.eval()(ids).logits
