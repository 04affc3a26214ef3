"""What stands around a loaded model, and can it be taken off without changing what it computes?"""

from typing import Any


def unwrapped(model: Any) -> Any:
    """The decoder inside a compiled, parallel or adapted model; the model itself where nothing stands around it.

    Adapters such as LoRA lie in the decoder's layers and stay. Hooks that accelerate set for a model on one device move
    nothing and are taken off, since they hide the modules from whoever runs them one by one.

    Raises ValueError for weights that are not there (meta device, offloaded) or lie on several devices, and for an
    adapter that works on the prompt.
    """
    if hasattr(model, "_orig_mod"):  # torch.compile
        return unwrapped(model._orig_mod)
    if type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
        return unwrapped(model.module)
    if type(model).__module__.startswith("peft."):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise ValueError(
                f"the adapter of this {type(model).__name__} adds virtual tokens to each prompt, which has no head to "
                "ablate in it; use one that changes weights, such as LoRA"
            )
        return unwrapped(model.base_model.model)
    _require_weights(model)
    if any(hasattr(module, "_hf_hook") for module in _modules(model)):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)
    return model


def _modules(model: Any) -> list[Any]:
    return list(model.modules()) if hasattr(model, "modules") else []


def _require_weights(model: Any) -> None:
    parameters = list(model.parameters()) if hasattr(model, "parameters") else []
    name = type(model).__name__
    hooks = [module._hf_hook for module in _modules(model) if hasattr(module, "_hf_hook")]
    inner = [one for hook in hooks for one in getattr(hook, "hooks", (hook,))]
    if any(p.is_meta for p in parameters) or any(getattr(h, "offload", False) for h in inner):
        raise ValueError(
            f"some weights of this {name} are not in memory (on the meta device, or offloaded); load it whole, with "
            "from_pretrained(...) and no device_map or offload folder"
        )
    places = sorted({str(p.device) for p in parameters})
    if len(places) > 1:
        raise ValueError(
            f"the weights of this {name} lie on {', '.join(places)}; put it on one device with model.to(...)"
        )
