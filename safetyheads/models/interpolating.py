"""What lies between a model and its sibling, and beyond? W + t·(W' − W), for every weight.

The weights of a task vector (Ilharco et al. 2023, arXiv:2212.04089): t = 0 is the model, t = 1 the sibling.
"""

import math
from pathlib import Path
from typing import Any

import torch

from safetyheads.models.checkpoints import Checkpoint, load_checkpoint
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model


def interpolate(base: Any, sibling: Any, t: float) -> HookedModel:
    """A model whose weights are those of `base` plus `t` times what the sibling's differ by.

    `base` and `sibling` are names, paths or Hub ids as `load_model` takes them, or models that it opened from such.
    Both are opened anew, and nothing is changed in place.

    Raises ValueError for a `t` that is no finite number, models of different shapes or tokenizers, a model that came
    from memory, and what `load_model` raises.
    """
    checkpoint = blend(base, sibling, t)
    return load_model(checkpoint.model, tokenizer=checkpoint.tokenizer)


def blend(base: Any, sibling: Any, t: float) -> Checkpoint:
    """The same as a plain Hugging Face model with its tokenizer, not yet wrapped."""
    if not math.isfinite(t):
        raise ValueError(f"t is {t}; give a finite number, 0 for the base and 1 for the sibling")
    first, second = _opened(base), _opened(sibling)
    weights = dict(first.model.named_parameters())
    others = dict(second.model.named_parameters())
    shapes = [{n: tuple(w.shape) for n, w in some.items()} for some in (weights, others)]
    if shapes[0] != shapes[1]:
        wrong = next(n for n in sorted({*weights, *others}) if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"{second.name} is no sibling of {first.name}: {wrong} is {shapes[0].get(wrong)} in one and "
            f"{shapes[1].get(wrong)} in the other; give models of one architecture and size"
        )
    if first.tokenizer.get_vocab() != second.tokenizer.get_vocab():
        raise ValueError(
            f"{second.name} and {first.name} have different vocabularies, so one row of their embeddings is two words"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            # exact at both ends: rounding would make the sibling at t = 1 another model
            if t == 1:
                weight.copy_(others[name])
            elif t != 0:
                weight.add_(others[name] - weight, alpha=t)
    name = f"{first.name} + {t:g} · ({second.name} − {first.name})"
    first.model.config._name_or_path = name
    return first._replace(name=name)


def _opened(model: Any) -> Checkpoint:
    if isinstance(model, HookedModel):
        source = model.opened_from
        if source is None:
            raise ValueError(
                f"{model.name} was loaded by the caller and is wrapped, so its weights cannot be taken again: give its "
                "name or the path that it came from"
            )
        return load_checkpoint(
            source.name_or_path,
            tokenizer=source.tokenizer,
            device=source.device,
            dtype=source.dtype,
        )
    if not isinstance(model, str | Path):
        raise ValueError(
            f"a {type(model).__name__} came; give a name, a path or a model that load_model opened"
        )
    return load_checkpoint(model)
