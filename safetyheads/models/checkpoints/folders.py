"""What does a folder hold: a model, an adapter to one, weights that are quantised, or only part of it?"""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetyheads.models.checkpoints.adapters import (
    ADAPTER,
    add_adapter,
    check_adapter,
    is_plain,
    read_adapter,
)
from safetyheads.models.checkpoints.reading import (
    check_decoder,
    quiet_transformers,
    read_config,
    read_tokenizer,
)
from safetyheads.storage.cache import cache_folder, sha256_of

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.tiktoken",
)
"""A folder without any of these has no tokenizer; transformers would quietly make an empty one."""


class FolderContents(NamedTuple):
    """What a folder was found to hold."""

    weights: tuple[str, ...]
    """The names of its files of weights."""
    base: str | None
    """For an adapter, the model that it goes on: a path or a Hub id."""


def check_folder(folder: Path, source: str, *, needs_tokenizer: bool) -> FolderContents:
    """Say what a folder holds, before anything is loaded from it.

    Raises FileNotFoundError if it has no config or not all of its weights, ValueError if what it has cannot be used:
    no decoder, quantised weights, an adapter beside a whole model, no tokenizer where one is needed.
    """
    files = sorted(entry.name for entry in folder.iterdir())
    weights = _weights(files, adapter=False)
    if ADAPTER in files:
        return FolderContents(tuple(_weights(files, adapter=True)), _base_of(folder, weights))
    if "config.json" not in files:
        raise FileNotFoundError(_no_config(folder, files))
    with quiet_transformers():
        config = read_config(folder)
        check_decoder(config, source)
    _refuse_quantised(folder, config)
    if not weights:
        raise FileNotFoundError(
            f"{folder} has no weights: neither *.safetensors nor pytorch_model*.bin. It holds: "
            f"{', '.join(files)}."
        )
    _check_shards(folder, files)
    if needs_tokenizer and not has_tokenizer(folder):
        raise ValueError(
            f"{folder} has no tokenizer: expected one of {', '.join(VOCABULARY_FILES)}. Save the "
            "model's own tokenizer there with tokenizer.save_pretrained(folder), or give one "
            "beside the path."
        )
    return FolderContents(tuple(weights), None)


def provenance_of(folder: Path, found: FolderContents, revision: str | None) -> dict[str, str]:
    """The files, their format, and what tells these weights from all others: a revision or a hash of all files."""
    first, *more = found.weights
    told = {
        "file": f"{first} and {len(more)} more" if more else first,
        "format": "safetensors" if first.endswith(".safetensors") else "pytorch",
    }
    if revision is not None:
        return {**told, "revision": revision}
    names = [ADAPTER if found.base is not None else "config.json", *found.weights]
    hashes = [f"{sha256_of(folder / name, cache_folder())}  {name}" for name in names]
    return {**told, "sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest()}


def opened_adapter(
    folder: Path, base: Any, tokenizer: Any, given: Any, base_sha256: str | None = None
) -> tuple[Any, Any]:
    """The base model with an adapter's weights added into its own, and the tokenizer that goes with both.

    A plain adapter is added here, any other by peft. `base_sha256` is the hash of the base's weights,
    where it is known.

    Raises ValueError if the adapter does not fit the base model, or does more than add to weights.
    """
    if given is None and has_tokenizer(folder):
        tokenizer = read_tokenizer(folder)
    if is_plain(folder):
        adapter = read_adapter(folder)
        check_adapter(adapter, base, base_sha256)
        add_adapter(adapter, base)
        return base, tokenizer
    from peft import PeftModel

    try:
        with quiet_transformers():
            wrapped = PeftModel.from_pretrained(base, str(folder))
            merged = wrapped.merge_and_unload()
    except Exception as error:  # peft raises what torch and safetensors raise
        raise ValueError(
            f"the adapter in {folder} cannot be added to the weights of its base model: {error}. Open the base "
            "model, and pass the merged model with its tokenizer"
        ) from error
    return merged, tokenizer


def _weights(files: list[str], *, adapter: bool) -> list[str]:
    own = [name for name in files if name.startswith("adapter_model") == adapter]
    found = [name for name in own if name.endswith(".safetensors")]
    pattern = r"adapter_model.*\.bin" if adapter else r"pytorch_model.*\.bin"
    return found or [name for name in own if re.fullmatch(pattern, name)]


def has_tokenizer(folder: Path) -> bool:
    """Whether one of the `VOCABULARY_FILES` is there."""
    return any(any(folder.glob(pattern)) for pattern in VOCABULARY_FILES)


def _no_config(folder: Path, files: list[str]) -> str:
    shown = ", ".join(files[:20]) + (", ..." if len(files) > 20 else "") if files else "nothing"
    gguf = any(name.endswith(".gguf") for name in files)
    hint = " Pass the .gguf file itself." if gguf else ""
    return f"{folder} has no config.json, so it is not a model folder; it holds: {shown}.{hint}"


def _base_of(folder: Path, model_weights: list[str]) -> str:
    """The model that an adapter goes on; raises ValueError where it cannot be opened with it."""
    if model_weights:
        raise ValueError(
            f"{folder} holds a whole model ({model_weights[0]}) and an adapter ({ADAPTER}), and it is not said which "
            "is meant: move the adapter's files to a folder of their own, and pass the one that you mean"
        )
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{folder} is an adapter whose {ADAPTER} names no base model: open the base model, merge the adapter with "
            "peft (PeftModel.from_pretrained(model, folder).merge_and_unload()), and pass the merged model with its "
            "tokenizer"
        )
    if importlib.util.find_spec("peft") is None and not is_plain(folder):
        raise ValueError(
            f"{folder} is no model but a peft adapter to {base} that does more than add to weights, and peft is not "
            "installed: `pip install peft`, and "
            "pass the same folder again; or pass the base model, or a folder with the merged model"
        )
    return base


def _refuse_quantised(folder: Path, config: Any) -> None:
    """Heads are read from plain matrices: packed weights are refused, with the way to plain ones."""
    about = getattr(config, "quantization_config", None)
    if about is None:
        return
    about = about if isinstance(about, dict) else about.to_dict()
    method = str(about.get("quant_method", "an unnamed method")).removeprefix("QuantizationMethod.")
    raise ValueError(
        f"the weights in {folder} are quantised ({method.lower()}), and heads are read from plain weights. Pass the "
        "model that was quantised, or a .gguf file, which is unpacked; or open this one yourself where its package is "
        f"installed ({_PACKAGES.get(method.lower(), 'see the quantization_config in its config.json')}), unpack it "
        "with model.dequantize(), save it with save_pretrained in a new folder beside its tokenizer, and pass that"
    )


_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "bnb": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "mxfp4": "transformers alone, with quantization_config=Mxfp4Config(dequantize=True)",
    "fp8": "transformers alone, with quantization_config=FineGrainedFP8Config(dequantize=True)",
}


def _check_shards(folder: Path, files: list[str]) -> None:
    """Raise FileNotFoundError where an index names files of weights that are not there."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if index not in files or index.removesuffix(".index.json") in files:
            continue
        try:
            named = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / index} is damaged ({error}); fetch it again") from error
        if missing := [name for name in named if name not in files]:
            raise FileNotFoundError(
                f"{folder} has {len(named) - len(missing)} of the {len(named)} files of weights that its {index} "
                f"names; {missing[0]} is missing. Fetch it again"
            )
