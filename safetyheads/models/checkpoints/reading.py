"""What does transformers make of a folder or a file: a decoder, whole, and without a word on the way?"""

import contextlib
import importlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from safetyheads.models.checkpoints.gguf import GgufHeader
from safetyheads.models.checkpoints.rotary import INSTEAD, ROTARY_TENSORS
from safetyheads.models.checkpoints.settings import config_of
from safetyheads.models.checkpoints.upper import put_back, without_blocks

logger = logging.getLogger(__name__)


def read_folder(
    folder: Path, dtype: torch.dtype, tokenizer: Any = None, **placing: Any
) -> tuple[Any, Any]:
    """The model in a folder, and the tokenizer beside it where none is given; `placing` is told to transformers,
    but for `first_block`, the lowest block whose weights are read.

    Raises ValueError where either cannot be read, or the weights and the config do not belong together.
    """
    tokenizer = read_tokenizer(folder) if tokenizer is None else tokenizer
    return _read_model(folder, folder, dtype, **placing), tokenizer


def read_gguf(header: GgufHeader, dtype: torch.dtype, **placing: Any) -> Any:
    """The model in a GGUF file, unpacked.

    Raises ValueError where it cannot be read, or the file says what cannot be carried over.
    """
    import transformers

    path = header.path
    with quiet_transformers():  # it has opinions about rotary parameters
        config = config_of(header)
    logger.info("unpacking %s: up to a minute, once", path.name)
    options: dict[str, Any] = {"gguf_file": path.name, "config": config, **placing}
    if hasattr(transformers, "GgufConfig"):
        # without this, an installed `kernels` package leaves the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = _read_model(path.parent, path, dtype, **options)
    _check_tensors(header, model)
    # now an ordinary model: without its quantizer it can be saved, and opens without the file
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _check_tensors(header: GgufHeader, model: Any) -> None:
    """Raise ValueError for a tensor that transformers' reader has passed over without a word."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    kind = unpacking.TENSOR_PROCESSORS.get(header.architecture, unpacking.TensorProcessor)
    places = unpacking.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    placed = {*places, *ROTARY_TENSORS}
    left = [n for n in header.shapes if n not in placed and n.removesuffix(".weight") not in placed]
    if left:
        raise ValueError(
            f"{len(left)} of the tensors in {header.path} have no place in a {type(model).__name__} and would be "
            f"dropped without a word (the first is {left[0]}). {INSTEAD}"
        )


def read_tokenizer(place: Path) -> Any:
    """The tokenizer in a folder or a GGUF file; raises ValueError where it cannot be read."""
    from transformers import AutoTokenizer

    where = (place, {}) if place.is_dir() else (place.parent, {"gguf_file": place.name})
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(str(where[0]), local_files_only=True, **where[1])
    except Exception as error:  # tokenizers raise bare Exception on a malformed file
        raise ValueError(f"the tokenizer of {place} cannot be read: {error}") from error


def _read_model(
    folder: Path, shown: Path, dtype: torch.dtype, *, first_block: int = 0, **options: Any
) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    if first_block:
        loader = without_blocks(read_config(folder), first_block)
    try:
        with quiet_transformers():
            model, report = loader.from_pretrained(
                str(folder),
                local_files_only=True,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with both sizes
                **options,
            )
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {shown} are truncated or damaged ({error}). Delete them and "
            "fetch them again."
        ) from error
    except (
        OSError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"transformers cannot read {shown} as a causal language model: {error}"
        ) from error
    if first_block:
        report = put_back(model, report)
    _check_belonging(model, report, shown)
    _say_whether_tied(model)
    return model


def _say_whether_tied(model: Any) -> None:
    """An output that came with weights of its own is kept, whatever the config says; then the config says so too."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight.data_ptr() != embedding.weight.data_ptr():
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _check_belonging(model: Any, report: dict[str, Any], shown: Path) -> None:
    """Raise ValueError unless every weight found its place and every place its weight."""
    kind = type(model).__name__
    after = f"Fetch the model again, or check that its config ({kind}) belongs to these weights."
    if wrong := sorted(report["mismatched_keys"]):
        name, found, wanted = wrong[0]
        raise ValueError(
            f"{len(wrong)} of the weights in {shown} have another shape than its config asks for (the first is {name}: "
            f"{list(found)}, and the config asks for {list(wanted)}). {after}"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{shown} lacks {len(missing)} of the model's weights (the first is {missing[0]}), "
            f"which would be random numbers. {after}"
        )
    if extra := sorted(report["unexpected_keys"]):
        layers = model.config.get_text_config().num_hidden_layers
        deeper = [n for n in extra if (m := re.search(r"\.(\d+)\.", n)) and int(m[1]) >= layers]
        why = f"; its config says that there are {layers} layers" if deeper else ""
        raise ValueError(
            f"{len(extra)} of the weights in {shown} have no place in a {kind} and would be dropped without a word "
            f"(the first is {extra[0]}{why}). {after}"
        )


def read_config(folder: Path) -> Any:
    """The config in a folder; raises ValueError where transformers does not know it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / 'config.json'} names no model that transformers knows: {error}"
        ) from error


def check_decoder(config: Any, source: str) -> None:
    """Raise ValueError unless a config is of a model with attention heads that predicts the next token."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    architecture = (config.architectures or ["no architecture named"])[0]
    if config.is_encoder_decoder:
        raise ValueError(not_a_decoder(source, kind, architecture, "an encoder-decoder"))
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ValueError(not_a_decoder(source, kind, architecture, "an encoder"))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(not_a_decoder(source, kind, architecture, "no causal language model"))
    if getattr(config.get_text_config(), "num_attention_heads", None) is None:
        raise ValueError(
            not_a_decoder(source, kind, architecture, "a model without attention heads")
        )


def not_a_decoder(source: str, kind: str, architecture: str, what: str) -> str:
    """The sentence that refuses a model of another kind."""
    return (
        f"{source} is {what}: {kind} ({architecture}). Safety heads are scored by the next "
        "token's distribution, so pass a decoder-only causal language model such as Llama, "
        "Mistral, Qwen, Gemma, Phi or GPT-2."
    )


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
