"""Which function is this model, bit by bit? What a store's key needs to know of it."""

import hashlib
import json
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
"""Fields of a config that do not change what a model computes; `dtype` shows in the weights."""


class _Stamp(NamedTuple):
    """What cannot stay the same while a tensor's bytes change, short of swapping two of its values past autograd."""

    place: int
    version: int
    shape: tuple[int, ...]
    total: int


_digests: "WeakKeyDictionary[nn.Module, dict[str, tuple[_Stamp, str]]]" = WeakKeyDictionary()


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all that determines a model's outputs: the bytes of weights and buffers, the config, the adapters.

    Taken anew at each call, so that weights edited in place are noticed; tensors whose address, version counter and
    integer sum stand as before are not hashed again. The names are those from before the model was wrapped.
    """
    known = _digests.setdefault(model, {})
    whole = hashlib.sha256(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for name, tensor in sorted(_tensors(model), key=lambda one: one[0]):
        stamp = _stamp(tensor)
        if name.endswith("bias") and not stamp.total and not tensor.any():
            continue  # a bias of zeros is no bias; wrapping adds some
        if name not in known or known[name][0] != stamp:
            known[name] = stamp, _digest(tensor)
        whole.update(f"{name} {tensor.dtype} {stamp.shape} {known[name][1]}".encode())
    return whole.hexdigest()


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights and buffers; rotary angles that follow the prompts' length come from the config alone."""
    moving = _rope_type(model) in ("dynamic", "longrope")
    found = [*model.named_parameters(), *model.named_buffers()]
    named = {name.replace("._original_component", ""): tensor for name, tensor in found}
    return [(n, t) for n, t in named.items() if not (moving and n.endswith("inv_freq"))]


def _rope_type(model: nn.Module) -> str:
    rope = getattr(getattr(model, "config", None), "rope_parameters", None) or {}
    return str(rope.get("rope_type", "default"))


def _settings(model: nn.Module) -> dict[str, Any]:
    """The config, and what each adapter in the model is set to."""
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    adapters = {
        name: [str(getattr(module, field, None)) for field in ADAPTER_FIELDS]
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters") and hasattr(module, "scaling")
    }
    return {**{k: v for k, v in settings.items() if k not in VOLATILE}, "adapters": adapters}


ADAPTER_FIELDS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
"""What PEFT keeps on a layer that says which of its adapters take part, and how much."""


def _as_integers(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds.get(tensor.element_size(), torch.uint8)
    return tensor.detach().contiguous().view(-1).view(kind)


def _stamp(tensor: Tensor) -> _Stamp:
    version = -1 if tensor.is_inference() else tensor._version
    total = int(_as_integers(tensor).sum(dtype=torch.int64))
    return _Stamp(tensor.data_ptr(), version, tuple(tensor.shape), total)


def _digest(tensor: Tensor) -> str:
    data = _as_integers(tensor).cpu().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()
