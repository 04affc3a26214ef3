"""Does a model go on from cached keys and values as from the whole prompt?

Answers go on from a cache, and prompts that begin alike share one. Where a library renames an argument, attention
passes the cache by without a word: so a few made-up tokens are run both ways before the first answer or state is kept.
"""

from weakref import WeakKeyDictionary

import torch

from safetyheads.models.hooked import HookedModel

SHARED, OWN = 5, 3
"""The tokens that two made-up rows share, and those that each has of its own."""
_DEVIATIONS: "WeakKeyDictionary[HookedModel, float]" = WeakKeyDictionary()


def cache_fault(model: HookedModel) -> str | None:
    """Why what a model gives after a shared prefix is not to be believed; None if it is. Found once a model, untouched.

    The next token's logits of two rows, the shared tokens run once, are compared with those of a plain pass.
    """
    if model not in _DEVIATIONS:
        _DEVIATIONS[model] = deviation(model)
    found = _DEVIATIONS[model]
    # Wide enough for half precision; a cache that is passed by moves the logits by about their spread.
    if found <= (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.2):
        return None
    return (
        f"{model.name}: after cached keys and values the logits are others than after the whole prompt (by {found:.1g} "
        "of their spread); transformers may pass the cache in a way that TransformerLens does not know: install "
        "versions of docs/versions.md"
    )


@torch.inference_mode()
def deviation(model: HookedModel) -> float:
    """By how much the logits differ, in standard deviations of the plain pass's."""
    from transformers import DynamicCache

    drawn = torch.Generator().manual_seed(0)
    size = model.hf.get_input_embeddings().weight.shape[0]
    ids = torch.randint(size, (2, SHARED + OWN), generator=drawn)
    ids[1, :SHARED] = ids[0, :SHARED]
    ids = ids.to(model.device)
    real = torch.ones_like(ids, dtype=torch.bool)
    cache = DynamicCache()
    model.next_logits(ids[:1, :SHARED], real[:1, :SHARED], cache)
    cache.batch_repeat_interleave(2)
    after = model.next_logits(ids[:, SHARED:], real, cache).double()
    plain = model.logits(ids)[:, -1].double()
    if not plain.isfinite().all():  # no fault of the cache; whoever reads the logits says so
        return 0.0
    return float((after - plain).abs().max() / plain.std())
