"""What has the caller put on a model's modules that neither weights nor config show? Hooks, and forwards of its own."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

LIBRARIES = ("transformer_lens.", "safetyheads.", "accelerate.", "peft.", "torch.")
"""Whose hooks are no change of the model: they watch, or set what parameters say."""
Modules = Iterable[tuple[str, nn.Module]]
"""As `nn.Module.named_modules` gives them."""


def outside(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The modules on which a caller has set hooks or another forward, by the names from before the model was wrapped;
    with what tells one of these from the next in this process."""
    return put_on(model.named_modules())


def put_on(modules: Modules) -> dict[str, tuple[int, ...]]:
    """The same of modules that were listed already."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in modules:
        if ids := tuple(id(one) for one in _put_on(module)):
            place = plain_name(name) or "the model itself"  # a wrapper and what it wraps have one
            found[place] = found.get(place, ()) + ids
    return found


def is_callers(function: Any) -> bool:
    """Whether a hook is the caller's own."""
    return not f"{getattr(function, '__module__', '')}.".startswith(LIBRARIES)


def plain_name(name: str) -> str:
    """A module's or tensor's name from before the model was wrapped."""
    return name.replace("._original_component", "").replace(".original_component", "")


def _put_on(module: nn.Module) -> Iterator[Any]:
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if is_callers(hook):
            yield hook
    own = vars(module).get("forward")
    if own is not None and is_callers(getattr(own, "__func__", own)):
        yield own
