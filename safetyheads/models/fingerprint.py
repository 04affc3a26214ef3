"""Which function is this model, bit by bit? What a store's key needs to know of it."""

import hashlib
import json
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from safetyheads.models.checkpoints.upper import blocks_of
from safetyheads.models.outside import Modules, plain_name, put_on
from safetyheads.storage.store import as_bytes

VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
"""Fields of a config that do not change what a model computes; `dtype` shows in the weights."""


OF_NO_EFFECT = (
    "training",
    "gradient_checkpointing",
    "max_seq_len_cached",
    "is_gradient_checkpointing",
)
"""Numbers and flags on a module that do not change what it computes in evaluation mode."""
ACROSS = 1024
"""A tensor's bytes, eight to an integer, are summed in rows of this length and in columns."""


class _Stamp(NamedTuple):
    """What does not stay the same when a tensor's bytes are changed, past autograd or not."""

    place: int
    version: int
    shape: tuple[int, ...]
    sums: str
    """Of each row's and each column's integers, which tell where a value stands."""


_digests: "WeakKeyDictionary[nn.Module, dict[str, tuple[_Stamp, str]]]" = WeakKeyDictionary()


def fingerprint(model: nn.Module, first_block: int = 0) -> str:
    """SHA-256 over all that determines a model's outputs: the bytes of weights and buffers, the config, the adapters,
    the numbers that modules keep as attributes, and where hooks of the caller stand (not what they do).

    Taken anew at each call, so that weights edited in place are noticed; tensors whose address, version counter and
    integer sums stand as before are not hashed again. The names are those from before the model was wrapped. Weights of
    blocks below `first_block` do not count.
    """
    blocks = plain_name(blocks_of(model)[0]) if first_block else ""
    below = tuple(f"{blocks}.{n}." for n in range(first_block))
    known = _digests.setdefault(model, {})
    # Listed once: in a small model, walking through the modules is most of the time.
    modules = list(model.named_modules())
    settings = _settings(model, modules)
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(_tensors(model, modules), key=lambda one: one[0]):
        if name.startswith(below):
            continue
        stamp = _stamp(tensor)
        if name.endswith("bias") and not tensor.any():
            continue  # a bias of zeros is no bias; wrapping adds some
        if name not in known or known[name][0] != stamp:
            known[name] = stamp, _digest(tensor)
        whole.update(f"{name} {tensor.dtype} {stamp.shape} {known[name][1]}".encode())
    return whole.hexdigest()


def _tensors(model: nn.Module, modules: Modules) -> list[tuple[str, Tensor]]:
    """Weights and buffers; rotary angles that follow the prompts' length come from the config alone."""
    moving = _rope_type(model) in ("dynamic", "longrope")
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for kind in ("_parameters", "_buffers"):
        for place, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:  # tied weights have one name
                    seen.add(id(tensor))
                    found[plain_name(f"{place}.{name}" if place else name)] = tensor
    return [(n, t) for n, t in found.items() if not (moving and n.endswith("inv_freq"))]


def _rope_type(model: nn.Module) -> str:
    rope = getattr(getattr(model, "config", None), "rope_parameters", None) or {}
    return str(rope.get("rope_type", "default"))


def _settings(model: nn.Module, modules: Modules) -> dict[str, Any]:
    """The config, what each adapter in the model is set to, the modules' own numbers, and where hooks stand."""
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    adapters = {
        name: [str(getattr(module, field, None)) for field in ADAPTER_FIELDS]
        for name, module in modules
        if hasattr(module, "active_adapters") and hasattr(module, "scaling")
    }
    about: dict[str, Any] = {k: v for k, v in settings.items() if k not in VOLATILE}
    if hooks := sorted(put_on(modules)):
        about["hooks"] = hooks
    return {**about, "adapters": adapters, "numbers": _numbers(modules)}


def _numbers(modules: Modules) -> dict[str, list[Any]]:
    """The scale of attention, the epsilon of a norm: what each module of the model keeps outside of the config."""
    found = {}
    for name, module in modules:
        if type(module).__module__.startswith("transformer_lens."):
            continue
        own = {
            k: v
            for k, v in sorted(vars(module).items())
            if isinstance(v, int | float | str) and k[0] != "_" and k not in OF_NO_EFFECT
        }
        found[plain_name(name)] = [type(module).__name__, own]
    return found


ADAPTER_FIELDS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
"""What PEFT keeps on a layer that says which of its adapters take part, and how much."""


def _stamp(tensor: Tensor) -> _Stamp:
    version = -1 if tensor.is_inference() else tensor._version
    data = as_bytes(tensor)
    if data.storage_offset() % 8:
        data = data.clone()
    table = data[: len(data) // (8 * ACROSS) * 8 * ACROSS].view(torch.int64).view(-1, ACROSS)
    sums = hashlib.sha256()
    for part in (table.sum(1), table.sum(0), data[8 * table.numel() :]):
        sums.update(part.cpu().numpy().tobytes())
    return _Stamp(tensor.data_ptr(), version, tuple(tensor.shape), sums.hexdigest())


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(as_bytes(tensor).cpu().numpy().data).hexdigest()
