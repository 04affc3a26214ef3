"""Under which name does a model take its cache of keys and values?

Transformers renamed the argument with 5.24: `past_key_values` became `cache`, in the model and in all that it calls.
TransformerLens 4.3 computes attention itself and knows the first name alone: a cache that comes as `cache` is passed
by without a word, and attention does not see what is in it. So the attention that TransformerLens wrote gets the cache
under both names, and the attention beneath it, where that is left to compute, under the one that its signature has.
"""

import inspect
from typing import Any

from torch import nn

OLD, NEW = "past_key_values", "cache"


def cache_argument(module: nn.Module) -> str:
    """The name under which this module's forward takes a cache."""
    return NEW if NEW in inspect.signature(module.forward).parameters else OLD


def name_caches(bridge: Any) -> None:
    """Give the attention of every block its cache under the name that it reads; once a model, however often called."""
    for block in bridge.blocks:
        attention: Any = getattr(block, "attn", None)
        own = getattr(attention, "original_component", None)
        if own is None or cache_argument(own) != NEW or "_safetyheads_names" in vars(own):
            continue
        attention.register_forward_pre_hook(_under_both_names, with_kwargs=True)
        own.register_forward_pre_hook(_under_its_own, with_kwargs=True)
        vars(own)["_safetyheads_names"] = True


def _under_both_names(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return (args, {**kwargs, OLD: kwargs[NEW]}) if NEW in kwargs and OLD not in kwargs else None


def _under_its_own(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return (args, {k: v for k, v in kwargs.items() if k != OLD}) if NEW in kwargs else None
