"""Does TransformerLens scale attention scores as the model does?

GPT-2 has two flags for it: `scale_attn_weights`, which TransformerLens' attention ignores, and
`scale_attn_by_inverse_layer_idx`, which it knows only where its own configuration has it.
"""

from typing import Any

from safetyheads.models.packing import innermost


def follow_scaling(bridge: Any) -> None:
    """Where the two differ, scale the queries that TransformerLens' attention gets."""
    for layer, block in enumerate(bridge.blocks):
        attention: Any = getattr(block, "attn", None)
        own = innermost(attention)
        if not hasattr(own, "scale_attn_weights") or "_safetyheads_scaled" in vars(own):
            continue
        factor = 1.0 if own.scale_attn_weights else float(bridge.cfg.d_head) ** 0.5
        known = getattr(attention.config, "scale_attn_by_inverse_layer_idx", False)
        if own.scale_attn_by_inverse_layer_idx and not known:
            factor /= layer + 1
        if factor != 1.0:
            attention.q.register_forward_hook(_times(factor))
        vars(own)["_safetyheads_scaled"] = True


def _times(factor: float) -> Any:
    def scale(_module: Any, _args: Any, out: Any) -> Any:
        return out * factor

    return scale
