"""How is a model written into a folder of plain weights that any program opens, and is what was written the model?

What an export of any kind stands on: a copy that nothing has wrapped and that shares its weights with the hooked
model, a folder that is there whole or not at all, and a comparison of the written model's logits with the hooked
one's.
"""

import contextlib
import copy
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safetyheads.interventions.named import Intervention
from safetyheads.models.checkpoints import load_checkpoint, quiet_transformers
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.storage.files import writable_folder

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far written and hooked logits may differ, as a share of the largest logit."""
CLOSE_IN_HALF = 0.05


def save_model(model: Any, folder: str | Path) -> Path:
    """Write a model as it is, with its tokenizer, as a folder that any other process can open.

    `model` is whatever `load_model` takes: one that was loaded and wrapped cannot be saved by its own
    `save_pretrained` any more. Returns the folder.

    Raises FileExistsError where `folder` holds something, PermissionError where nothing can be written there, and
    ValueError for packed weights.
    """
    model, folder = load_model(model), Path(folder).expanduser().absolute()
    require_new(folder)
    with written_folder(folder, plain_copy(model), model.tokenizer):
        return folder


def require_new(folder: Path) -> None:
    """Raise FileExistsError where a folder holds something, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is not empty, and an export overwrites nothing; name a new folder"
        )


@contextlib.contextmanager
def written_folder(folder: Path, plain: Any, tokenizer: Any) -> Iterator[Path]:
    """The model and its tokenizer in a folder beside the one that is meant, which it becomes at the end."""
    work = writable_folder(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial"))
    try:
        with quiet_transformers():
            plain.save_pretrained(work)
            tokenizer.save_pretrained(work)
        yield work
        if folder.exists():
            folder.rmdir()
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def plain_copy(model: HookedModel) -> Any:
    """A model of transformers that nothing has wrapped, sharing its weights with the hooked one."""
    hooked = model.hf
    config = copy.deepcopy(hooked.config)
    if hasattr(config, "quantization_config"):  # unpacked from GGUF: ordinary weights by now
        del config.quantization_config
    with torch.device("meta"):
        plain = type(hooked)(config)
    weights = model.plain_weights(plain.state_dict().keys())
    narrow = {name: t.dtype for name, t in weights.items() if t.dtype != torch.bool}
    if packed := [name for name, dtype in narrow.items() if dtype.itemsize == 1]:
        raise ValueError(
            f"{model.name} has packed weights ({packed[0]} is {narrow[packed[0]]}); "
            "open it unquantised, in float32, bfloat16 or float16"
        )
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.config.dtype = model.dtype
    if getattr(hooked, "generation_config", None) is not None:
        plain.generation_config = copy.deepcopy(hooked.generation_config)
    return plain.eval()


def compare_logits(
    model: HookedModel, intervention: Intervention, folder: Path
) -> tuple[float, float]:
    """Largest difference between the logits of what was written and of the hooked model, and their size."""
    ids = _probe(model)
    with intervention.active(model):
        hooked = model.logits(ids).float()
    opened = load_checkpoint(folder, device=model.device, dtype=model.dtype).model
    written = opened(input_ids=ids, use_cache=False).logits.float()
    difference, largest = (hooked - written).abs().max().item(), hooked.abs().max().item()
    if not difference <= CLOSE.get(model.dtype, CLOSE_IN_HALF) * largest:
        raise ValueError(
            f"the weights written for {model.name} give other logits than the hooked model (they differ by "
            f"{difference:.2g}, logits reach {largest:.2g}): export does not know this architecture well enough, "
            "and nothing was kept; use the hooked model"
        )
    return difference, largest


def _probe(model: HookedModel) -> Int[Tensor, "row pos"]:
    """Two rows of random tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.hf.config.get_text_config().vocab_size)
    length = min(48, model.context)
    return torch.randint(vocabulary, (2, length), generator=generator).to(model.device)
