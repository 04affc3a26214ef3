"""Does the untouched model refuse at all? Read off its first token, without an answer."""

import torch

from safetyheads.inputs import Inputs
from safetyheads.metrics import RefusalShift, refusal_log_odds, refusal_tokens
from safetyheads.probes.behaviour.generation import after_prefix


@torch.inference_mode()
def first_token_refusals(inputs: Inputs, rows: int = 32) -> tuple[int, int] | None:
    """On how many prompts the first token of the answer more likely begins a refusal than not, and of how many.

    None where the tokenizer has no single token that begins one. `rows` prompts run together.
    """
    model, batch = inputs.model, inputs.batch
    try:
        tokens = refusal_tokens(model.tokenizer, RefusalShift().openings, batch.texts[0])
    except ValueError:
        return None
    count = 0
    for some in torch.arange(len(batch)).split(rows):
        cache, ids, real = after_prefix(model, batch.select(some.tolist()))
        log_probs = model.next_logits(ids, real, cache).double().log_softmax(-1)
        count += int((refusal_log_odds(log_probs, tokens) > 0).sum())
    return count, len(batch)
