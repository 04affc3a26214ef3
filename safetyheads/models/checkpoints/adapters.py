"""Does a LoRA adapter belong to a model, whole and to no other; and what does it add to its weights?

A plain adapter says W + s·B·A for each matrix that it names (Hu et al. 2021, arXiv:2106.09685, section 4.1), s being
alpha over the rank. That is added here, in a few lines and without peft, which reads an adapter with missing or foreign
keys with no more than a warning. What is not plain (DoRA, trained biases, whole modules) is left to peft.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ADAPTER = "adapter_config.json"
"""What peft writes beside an adapter's weights."""
WEIGHTS = "adapter_model.safetensors"
BASE = "base_sha256"
"""Under which name the weights' file says what it was trained on."""
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_rslora": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "lora_bias": (False,),
    "modules_to_save": ((), []),
    "trainable_token_indices": (),
    "layer_replication": (),
    "target_parameters": (),
}
"""What a plain adapter's settings are, where they are set at all."""
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a plain LoRA adapter adds to a model."""

    folder: Path
    base: str
    """The name of the model that it goes on."""
    base_sha256: str | None
    """The hash of that model's weights, where the adapter says it."""
    scale: float
    targets: frozenset[str]
    """The last names of the modules that it is for."""
    layers: frozenset[int] | None
    """The layers that it is for; None for all."""
    pairs: dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]
    """A and B for each matrix, by the module's name in the model."""

    def change(self, module: str) -> Float[Tensor, "out in"]:
        """What is added to a module's weight, in float32."""
        down, up = (one.float() for one in self.pairs[module])
        return self.scale * (up @ down)


def is_plain(folder: Path) -> bool:
    """Whether an adapter does no more than add products of two matrices to weights."""
    told = _settings(folder)
    return (folder / WEIGHTS).is_file() and all(
        told.get(name) is None or told[name] in values for name, values in PLAIN.items()
    )


def read_adapter(folder: Path) -> Adapter:
    """A plain adapter, read whole.

    Raises ValueError for weights that are damaged, a key of another kind, or half of a pair.
    """
    from safetensors import SafetensorError, safe_open

    told = _settings(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            about = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged or not there ({error}); fetch the adapter again"
        ) from error
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ValueError(
                f"the adapter in {folder} has a key that is no LoRA matrix ({name}): it was made by another method, or "
                "for another library; merge it there, and pass the merged model"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if half := sorted(module for module, pair in sides.items() if len(pair) < 2):
        raise ValueError(
            f"the adapter in {folder} lacks half of {len(half)} pairs (the first is that of {half[0]}); fetch it again"
        )
    pairs = {module: (pair["A"], pair["B"]) for module, pair in sorted(sides.items())}
    base = str(told.get("base_model_name_or_path") or "")
    rank, targets, layers = told["r"], told["target_modules"], told.get("layers_to_transform")
    if not isinstance(targets, list) or any(len(down) != rank for down, _ in pairs.values()):
        raise ValueError(
            f"the {ADAPTER} in {folder} names rank {rank} and targets {targets}, which are not those of the matrices "
            "beside it; it is of another adapter"
        )
    chosen = None if layers is None else frozenset(layers)
    scale = float(told["lora_alpha"]) / rank
    return Adapter(folder, base, about.get(BASE), scale, frozenset(targets), chosen, pairs)


def check_adapter(adapter: Adapter, model: Any, base_sha256: str | None = None) -> None:
    """Raise ValueError unless an adapter was made for this very model.

    `base_sha256` is the hash of the model's weights, where it is known.
    """
    where = f"the adapter in {adapter.folder}"
    if adapter.base_sha256 and base_sha256 and adapter.base_sha256 != base_sha256:
        raise ValueError(
            f"{where} was trained on other weights ({adapter.base}, SHA-256 {adapter.base_sha256[:16]}...) than these "
            f"({base_sha256[:16]}...): what it adds means nothing here; pass the model that it was trained on"
        )
    modules = dict(model.named_modules())
    expected = {name for name in modules if _meant(adapter, name)}
    depth = model.config.get_text_config().num_hidden_layers
    if foreign := sorted(set(adapter.pairs) - expected):
        raise ValueError(
            f"{where} has matrices for {len(foreign)} modules that its {ADAPTER} does not name or a "
            f"{type(model).__name__} of {depth} layers does not have (the first is {foreign[0]}): it is for another "
            f"model ({adapter.base or 'unnamed'})"
        )
    if missing := sorted(expected - set(adapter.pairs)):
        raise ValueError(
            f"{where} lacks {len(missing)} of the {len(expected)} matrices that its {ADAPTER} names (the first is that "
            f"of {missing[0]}); fetch it again"
        )
    for name, (down, up) in adapter.pairs.items():
        weight = getattr(modules[name], "weight", None)
        wanted = (up.shape[0], down.shape[1])
        if weight is None or tuple(weight.shape) != wanted or up.shape[1] != down.shape[0]:
            shape = None if weight is None else list(weight.shape)
            raise ValueError(
                f"{where} adds a matrix of {list(wanted)} to {name}, which has {shape}: it is for another model "
                f"({adapter.base or 'unnamed'})"
            )


@torch.no_grad()
def add_adapter(adapter: Adapter, model: Any, share: float = 1.0) -> None:
    """Add `share` of what an adapter adds to a model's weights, in place; `check_adapter` comes first."""
    modules = dict(model.named_modules())
    for name in adapter.pairs:
        weight = modules[name].weight
        change = share * adapter.change(name).to(weight.device)
        weight.copy_((weight.float() + change).to(weight.dtype))


def _meant(adapter: Adapter, module: str) -> bool:
    """Whether an adapter's settings name a module of a model."""
    number = re.search(r"\.(\d+)\.", module)
    inside = adapter.layers is None or (number is not None and int(number[1]) in adapter.layers)
    return inside and any(module == end or module.endswith(f".{end}") for end in adapter.targets)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        return dict(told)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / ADAPTER} cannot be read ({error}); fetch the adapter again"
        ) from error
