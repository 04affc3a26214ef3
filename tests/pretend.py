"""Two devices that are not there: tensors on the processor that say where they are, and refuse to meet.

An operation on tensors of two devices raises, as a GPU does; what it computes is what the processor computes, to the
bit. So a model on two devices can be run, and compared, where there is none.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils import backend_registration as registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
NAME = "pretend"


class Elsewhere(torch.Tensor):
    """A tensor that says it is on another device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "Elsewhere":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device
        )

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner, self.place = inner, device

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Devices(TorchDispatchMode):
    """Sees what makes tensors on a device, too."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the device that its tensors are on or that it names."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    own = {id(inside(t)): t for t in tensors if isinstance(t, Elsewhere)}
    asked = next((v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.device)), None)
    # As on a GPU: a number may lie anywhere, an index on the processor, and a copy goes from one to another.
    weighed = tensors[:1] if str(func).startswith(("aten.index", "aten.copy_")) else tensors
    places = {place(t) for t in weighed if t.ndim or isinstance(t, Elsewhere)}
    if weighed is not tensors and "index" in str(func):
        places |= {place(t) for t in tensors[1:]} - {CPU}
    if len(places) > 1:
        raise RuntimeError(f"{func}: tensors on {sorted(map(str, places))}")
    args, kwargs = tree_map(inside, (args, kwargs))
    out = func(*args, **kwargs)
    where = next(iter(places), CPU) if asked is None else asked
    if where == CPU:
        return out

    def there(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        known = own.get(id(value))
        return known if known is not None and known.place == where else Elsewhere(value, where)

    return tree_map(there, out)


def place(tensor: torch.Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, Elsewhere) else CPU


def inside(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.inner if isinstance(value, Elsewhere) else value


class _Backend(registration._DummyBackendModule):
    def device_count(self) -> int:
        return 2


@contextlib.contextmanager
def two_devices() -> Iterator[tuple[torch.device, torch.device]]:
    """Within the context, there are two more devices."""
    if not hasattr(torch, NAME):
        registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        return made(data, **options) if device is None else made(data, **options).to(device)

    with mock.patch.object(torch, "tensor", tensor), Devices():
        yield torch.device(f"{NAME}:0"), torch.device(f"{NAME}:1")


def put(module: torch.nn.Module, device: torch.device) -> None:
    """Put a module's weights and buffers on a device, for good."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = Elsewhere(weight.detach(), device)
                part._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer, device)
