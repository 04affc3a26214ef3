"""Which model is asked, and can it be asked?

`load_model` opens a model by name, path or value, wraps it, and turns away what these probes are not defined for.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from safetyheads.models.cache_names import name_caches
from safetyheads.models.checkpoints import is_known, load_checkpoint
from safetyheads.models.checkpoints.upper import hollow
from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.gate import FOREIGN, SUCH_AS, checked, reference
from safetyheads.models.hooked import HookedModel, ModelSource
from safetyheads.models.placement import follow_devices
from safetyheads.models.scaling import follow_scaling
from safetyheads.models.unwrapping import unwrapped


def load_model(
    x: Any,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
) -> HookedModel:
    """Open a model for probing.

    `x` is one of: a known name (`"smollm2-135m-instruct"`, `"qwen2.5-coder-0.5b-instruct"`), a Hugging Face Hub id, a
    local folder, of a model or of an adapter, a `.gguf` file, a loaded Hugging Face causal LM (give its `tokenizer`, or
    a pair of both), or a
    TransformerBridge. A loaded Hugging Face model is wrapped in place: it keeps its outputs, computes
    attention eagerly from then on, and cannot be saved through its own `save_pretrained` any more; wrapping
    it again gives the same wrapper. A model in training mode is put into evaluation mode, and stays there. What the
    wrapper computes is compared with the model as it came; see `models/gate.py`.

    `device_map` ("balanced", or the device of each part) and `max_memory` (by device) are handed to transformers, for a
    model that is too large for one device; its blocks then lie on several, each whole.

    Raises ValueError (an unknown name, with near matches; not a decoder; no tokenizer; a map that leaves weights on a
    disk or cuts a block), FileNotFoundError (no such file), ConnectionError (the Hub is needed and out of reach).
    """
    if isinstance(x, HookedModel):
        x.rest()
        return x
    if isinstance(x, tuple) and len(x) == 2:
        x, tokenizer = x
    if not hasattr(x, "forward"):
        if not isinstance(x, str | PathLike):
            raise ValueError(
                f"the model is of type {type(x).__name__}: give a known name, a Hub id, a folder, a .gguf file, or a "
                "loaded model with its tokenizer"
            )
        checkpoint = load_checkpoint(
            x,
            tokenizer=tokenizer,
            device=str(device),
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
        )
        bridge = _boot(checkpoint.model, checkpoint.name)
        provenance = {**checkpoint.provenance, "attention": "eager"}
        # Another process may stand in another folder.
        path = Path(x).expanduser()
        place = str(path.absolute()) if path.exists() and not is_known(x) else str(x)
        opened_from = ModelSource(
            place, str(device), dtype, tokenizer, _frozen(device_map), _frozen(max_memory)
        )
        return _opened(bridge, checkpoint.tokenizer, checkpoint.name, provenance, opened_from)
    is_bridge = type(x).__name__ == "TransformerBridge"
    if (
        dtype is not None
        or str(device) != "cpu"
        or device_map is not None
        or max_memory is not None
    ):
        raise ValueError(
            "device, dtype, device_map and max_memory are for models that load_model opens; move the loaded model "
            "before passing it"
        )
    tokenizer = tokenizer or (x.tokenizer if is_bridge else None)
    if tokenizer is None:
        raise ValueError(
            f"{type(x).__name__} came without a tokenizer; pass load_model(model, tokenizer=...)"
        )
    hf = x.original_model if is_bridge else unwrapped(x)
    if not is_bridge:
        _require_decoder(hf)
    bridge = (
        x if is_bridge else _boot(hf, getattr(hf.config, "_name_or_path", "") or type(hf).__name__)
    )
    name = getattr(hf.config, "_name_or_path", "") or type(hf).__name__
    return _opened(bridge, tokenizer, name, {"source": "memory", "weights": fingerprint(hf)})


def random_copy(model: HookedModel, seed: int = 0) -> HookedModel:
    """A model of the same configuration, tokenizer and dtype with random weights: what it scores is not from training.

    The weights are drawn as the architecture's own initialisation draws them; the caller's random state stays as it is.
    """

    source = model.hf
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = type(source)(copy.deepcopy(source.config)).to(model.device, model.dtype).eval()
    name = f"{model.name} (random weights, seed {seed})"
    provenance = {"source": "random", "seed": seed, "weights": fingerprint(hf)}
    return _opened(_boot(hf, name), model.tokenizer, name, provenance)


def _opened(
    bridge: Any,
    tokenizer: Any,
    name: str,
    provenance: dict[str, Any],
    opened_from: ModelSource | None = None,
) -> HookedModel:
    if getattr(bridge, "compatibility_mode", False):
        raise ValueError(
            "this TransformerBridge is in compatibility mode, which folds and centres weights; "
            "pass one on which enable_compatibility_mode() was not called"
        )
    config = bridge.original_model.config
    if getattr(config, "alibi", False) or getattr(config, "model_type", "") in ("bloom", "mpt"):
        raise ValueError(
            f"{name} uses ALiBi, which adds a distance to every attention score: attention without a query is then "
            "not uniform, and these ablations are not defined for it; use a model with rotary or learned positions"
        )
    bridge.eval()
    follow_devices(bridge.original_model)
    name_caches(bridge)
    if "blocks.0.attn.hook_z" not in bridge.hook_dict:
        raise ValueError(f"{name} has no attention heads to ablate: its first block has no hook_z")
    dtype = next(bridge.original_model.parameters()).dtype
    provenance = {**provenance, "dtype": str(dtype).removeprefix("torch."), "versions": _versions()}
    model = HookedModel(bridge, tokenizer, name, provenance, opened_from)
    found = checked(model, fingerprint(model.hf))
    provenance["gate"] = found.report
    # Deviations are a machine's own; in the manifest they would keep two machines' readings apart.
    return replace(model, deviations=found.deviations, unreadable=found.unreadable)


def _versions() -> dict[str, str]:
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformer_lens": version("transformer-lens"),
    }


def _boot(hf: Any, name: str, *, whole: bool = True) -> Any:
    """The bridge of a Hugging Face model; booting one twice would nest the hooks, so each is booted once."""
    if "_safetyheads_bridge" in vars(hf):
        return vars(hf)["_safetyheads_bridge"]
    architecture = type(hf).__name__
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    follow_devices(hf)
    try:
        before = reference(hf.eval()) if whole else None
        bridge = build_bridge_from_module(hf, architecture, hf_config=hf.config, tokenizer=None)
        follow_scaling(bridge)
    except (ValueError, *FOREIGN) as error:
        raise ValueError(
            f"{name}: TransformerLens cannot wrap the architecture {architecture} ({str(error)[:300]}); "
            f"use a decoder that it supports, {SUCH_AS}"
        ) from error
    # Past nn.Module.__setattr__, which would make the bridge a submodule of the model that it wraps.
    object.__setattr__(hf, "_safetyheads_bridge", bridge)
    object.__setattr__(hf, "_safetyheads_reference", before)
    return bridge


def _require_decoder(model: Any) -> None:
    config = getattr(model, "config", None)
    # BERT and its kin have a causal class that looks both ways unless `is_decoder` is set. Decoders lack the field,
    # except NeoX, where it is False and means nothing.
    neox = str(getattr(config, "model_type", "")).startswith("gpt_neox")
    encoder = getattr(config, "is_encoder_decoder", False) or not (
        neox or getattr(config, "is_decoder", True)
    )
    if (
        config is None
        or encoder
        or not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    ):
        raise ValueError(
            f"expected a decoder-only causal language model, and a {type(model).__name__} came; "
            "load it with transformers.AutoModelForCausalLM"
        )


def reopen(source: ModelSource) -> HookedModel:
    """Open once more, perhaps in another process, what `load_model` opened."""
    name, device, dtype, tokenizer, device_map, max_memory = source
    return load_model(
        name,
        tokenizer,
        device,
        dtype,
        device_map=dict(device_map) if isinstance(device_map, tuple) else device_map,
        max_memory=None if max_memory is None else dict(max_memory),
    )


def open_upper(source: ModelSource, first: int) -> HookedModel:
    """The blocks from `first` on of what `load_model` opened, with all that comes after them; those below are not read.

    Such a model has no whole pass, and the gate has not seen it: it is for who has the stream that enters this
    block, and beside it a model that has passed the gate.

    Raises ValueError for a model on several devices.
    """
    if source.device_map is not None or source.max_memory is not None:
        raise ValueError(
            f"{source.name_or_path} lies on several devices, and its upper blocks alone are opened on one; leave "
            "device_map and max_memory out, or open it whole"
        )
    found = load_checkpoint(
        source.name_or_path,
        tokenizer=source.tokenizer,
        device=source.device,
        dtype=source.dtype,
        first_block=first,
    )
    hollow(found.model, torch.device(source.device))
    bridge = _boot(found.model, found.name, whole=False)
    bridge.eval()
    for block in bridge.blocks[:first]:
        block.to("meta")
    name_caches(bridge)
    provenance = {**found.provenance, "attention": "eager", "versions": _versions()}
    return HookedModel(bridge, found.tokenizer, found.name, provenance, source)


def _frozen(value: Any) -> Any:
    """A mapping as its items, which can be a key and travel."""
    return tuple(value.items()) if isinstance(value, Mapping) else value
