"""Where do a model's weights lie, and how does a pass get from one device to the next?

A model that is too large for one device lies on several, block after block. Each part that lies on one device moves
what it is given there, whoever runs it: the whole model, a sweep that runs single blocks, or a plain twin of a block.
Accelerate's own hooks do the same for the whole model only, and hide its modules from the others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MoveTo:
    """A hook before a module: what the module is given goes to the device of its weights."""

    device: torch.device

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return moved(args, self.device), moved(kwargs, self.device)


def moved(value: Any, device: torch.device) -> Any:
    """The tensors in a value, in tuples and dictionaries too, on a device; a cache keeps each layer where it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(one, device) for one in value)
    if type(value) is dict:
        return {name: moved(one, device) for name, one in value.items()}
    return value


def devices_of(module: nn.Module) -> list[torch.device]:
    """The devices on which a module's weights and buffers lie, in their order."""
    tensors = (*module.parameters(), *module.buffers())
    return list(dict.fromkeys(tensor.device for tensor in tensors))


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module's first weight lies."""
    return next(chain(module.parameters(), module.buffers())).device


def follow_devices(model: nn.Module) -> None:
    """Let each part of a model that lies on several devices move what it is given; called again, it adds what has
    been wrapped around since.

    Raises ValueError where one block lies on several devices.
    """
    if len(devices_of(model)) < 2:
        return
    for part, device in _parts(model):
        if not any(isinstance(hook, MoveTo) for hook in part._forward_pre_hooks.values()):
            part.register_forward_pre_hook(MoveTo(device), with_kwargs=True)


def _parts(module: nn.Module, *, block: str = "") -> Iterator[tuple[nn.Module, torch.device]]:
    """The largest parts that lie on one device."""
    found = devices_of(module)
    if len(found) == 1:
        yield module, found[0]
    elif found and block:
        raise ValueError(
            f"block {block} of this model lies on {', '.join(map(str, found))}; a block is run as one: give a "
            "device_map that keeps each whole"
        )
    for name, child in module.named_children() if len(found) > 1 else ():
        yield from _parts(child, block=name if isinstance(module, nn.ModuleList) else "")


def require_in_memory(model: nn.Module, map_: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError for weights that are not in memory: on the meta device, or offloaded to the processor or a disk.

    `map_` says where accelerate has put which part.
    """
    hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
    inner = [one for hook in hooks for one in getattr(hook, "hooks", (hook,))]
    away = any(p.is_meta for p in model.parameters())
    if not away and not any(getattr(hook, "offload", False) for hook in inner):
        return
    where = ", ".join(sorted({str(place) for place in (map_ or {}).values()}))
    told = f"its device map names {where}" if where else "it has no device map"
    raise ValueError(
        f"some weights of this {type(model).__name__} are not in memory (on the meta device, or offloaded; {told}): "
        "a sweep runs every block thousands of times, would read them again each time, and cannot tell what they "
        "are; load it whole: on more devices (device_map='balanced' over all of them), in half precision, or on a "
        "processor with the memory for it, with no offload folder"
    )
