"""What stands around a loaded model, and can it be taken off without changing what it computes?"""

from typing import Any

from safetyheads.models.placement import require_in_memory


def unwrapped(model: Any) -> Any:
    """The decoder inside a compiled, parallel or adapted model; the model itself where nothing stands around it.

    Adapters such as LoRA lie in the decoder's layers and stay. Hooks that accelerate set hide the modules from whoever
    runs them one by one, and are taken off: on one device they move nothing, on several `follow_devices` does it.

    Raises ValueError for weights that are not there (meta device, offloaded), and for an adapter that works on the
    prompt.
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
    if hasattr(model, "parameters"):
        require_in_memory(model, getattr(model, "hf_device_map", None))
    if any(hasattr(module, "_hf_hook") for module in _modules(model)):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)
    return model


def _modules(model: Any) -> list[Any]:
    return list(model.modules()) if hasattr(model, "modules") else []
