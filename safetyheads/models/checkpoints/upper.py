"""How is a model read whose lower blocks are not wanted?

The class that transformers chooses is told to leave these blocks out while weights are read, so that theirs are neither
read nor held. Afterwards they stand in their places again, on the meta device: the model has its shape, and no pass.
"""

from typing import Any

import torch
from torch import nn


def without_blocks(config: Any, first: int) -> Any:
    """The class of a config's model, whose instances have no blocks below `first` while they are read.

    Raises ValueError for a block that the model does not have.
    """
    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM._model_mapping[type(config)]
    layers = config.get_text_config().num_hidden_layers
    if not 0 < first < layers:
        raise ValueError(
            f"the model has blocks 0-{layers - 1}, and its upper ones from {first} on are asked for"
        )

    def begin(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        name, blocks = blocks_of(self)
        vars(self)["_safetyheads_left_out"] = name, [blocks[n] for n in range(first)]
        for n in range(first):
            blocks[n] = nn.Identity()

    return type(whole.__name__, (whole,), {"__init__": begin, "__module__": whole.__module__})


def put_back(model: Any, report: dict[str, Any]) -> dict[str, Any]:
    """Put the blocks that were left out in their places, without weights; the report of a reading without them."""
    name, left_out = vars(model).pop("_safetyheads_left_out")
    blocks = model.get_submodule(name)
    for n, block in enumerate(left_out):
        blocks[n] = block.to("meta")
    theirs = tuple(f"{name}.{n}." for n in range(len(left_out)))
    prefix = f"{model.base_model_prefix}."

    def is_theirs(key: str) -> bool:
        return key.startswith(theirs) or f"{prefix}{key}".startswith(theirs)

    return {
        what: [key for key in keys if not (isinstance(key, str) and is_theirs(key))]
        for what, keys in report.items()
        if what in ("mismatched_keys", "missing_keys", "unexpected_keys")
    }


def hollow(model: nn.Module, device: torch.device) -> None:
    """Give what is on the meta device zeros that take no memory, which a wrapper can cut to pieces."""
    for part in model.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is None or not tensor.is_meta:
                continue
            zeros = torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)
            if name in part._buffers:
                part._buffers[name] = zeros
            else:
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of a model's list of blocks, and the list."""
    config: Any = model.config
    layers = config.get_text_config().num_hidden_layers
    return next(
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == layers
    )
