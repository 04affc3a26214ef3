"""The slow obvious twins: one plain hooked forward pass a head and prompt, one prompt at a time, nothing shared."""

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.zoo import CONFIGS, random_model

Hooks = Sequence[tuple[str, Any]]


@functools.cache
def plain(name: str) -> "PlainModel":
    """The slow twin of `opened(name)`, made once for all tests."""
    return PlainModel(random_model(CONFIGS[name]()))


@dataclass(frozen=True)
class Shrunk:
    """Rows of some query projections that are scaled while a model runs: where they lie, and by how much."""

    rows: tuple[tuple[Tensor, Any], ...]
    epsilon: float

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        kept = [tensor[rows].clone() for tensor, rows in self.rows]
        with torch.no_grad():
            for tensor, rows in self.rows:
                tensor[rows] *= self.epsilon
            try:
                yield
            finally:
                for (tensor, rows), value in zip(self.rows, kept, strict=True):
                    tensor[rows] = value


class PlainModel:
    """A separate copy of a model, booted by TransformerLens, that only ever runs whole forward passes of one prompt."""

    def __init__(self, hf_model: Any) -> None:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        self.source = copy.deepcopy(
            hf_model
        )  # as transformers made it: nothing of TransformerLens around it
        self.hf = copy.deepcopy(hf_model)
        self.bridge = build_bridge_from_module(
            self.hf, type(self.hf).__name__, hf_config=self.hf.config, tokenizer=None
        )
        self.config = self.hf.config

    def run(self, ids: Sequence[int], change: "Shrunk | Hooks" = ()) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next token and the state after the final norm, at the last token."""
        tokens = torch.tensor([list(ids)])
        if isinstance(change, Shrunk):
            with torch.no_grad(), change.active():
                found = self.source(tokens, use_cache=False, output_hidden_states=True)
            return found.logits[0, -1].double().log_softmax(-1), found.hidden_states[-1][0, -1]
        states: list[Tensor] = []
        handle = self.bridge.ln_final.register_forward_hook(lambda m, i, out: states.append(out))
        with torch.no_grad(), self.bridge.hooks(fwd_hooks=list(change)):
            logits = self.bridge.original_model(tokens, use_cache=False).logits
        handle.remove()
        return logits[0, -1].double().log_softmax(-1), states[-1][0, -1]

    def undifferentiated(self, layer: int, head: int, epsilon: float) -> "Shrunk | Hooks":
        """The query of one head scaled by epsilon (0: uniform attention).

        Where nothing stands between projection and score, by scaling rows of the query projection of the plain
        model; after QK-norm, which undoes that, by a hook.
        """
        if hasattr(self.bridge.blocks[0].attn, "q_norm"):

            def shrink(q: Tensor, hook: Any) -> Tensor:
                q = q.clone()
                assert q.shape[2] == self.bridge.cfg.n_heads
                q[:, :, head] *= epsilon
                return q

            return [(f"blocks.{layer}.attn.hook_rot_q", shrink)]
        size = self.bridge.cfg.d_head
        rows = slice(head * size, (head + 1) * size)
        found: list[tuple[Tensor, Any]] = []
        for name, tensor in self.source.named_parameters():
            if f".{layer}." not in name:
                continue
            if ".q_proj." in name or ".qkv_proj." in name:
                found.append((tensor, rows))
            elif ".c_attn." in name:  # GPT-2: Conv1D, queries first, weights transposed
                found.append((tensor, (..., rows)))
            elif ".query_key_value." in name:  # NeoX: each head's q, k, v together
                found.append((tensor, slice(3 * head * size, (3 * head + 1) * size)))
        assert found, "there is no query projection to scale"
        return Shrunk(tuple(found), epsilon)

    def writing_z(self, layer: int, head: int, value: Any) -> Hooks:
        """z of one head replaced by `value(z)`."""

        def write(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, head] = value(z[:, :, head])
            return z

        return [(f"blocks.{layer}.attn.hook_z", write)]

    def z(self, ids: Sequence[int], layer: int) -> Tensor:
        """Every head's output on one prompt: [pos, head, d_head]."""
        kept: list[Tensor] = []
        self.run(ids, [(f"blocks.{layer}.attn.hook_z", lambda z, hook: kept.append(z.clone()))])
        return kept[0][0]


def kl(base: Tensor, other: Tensor) -> float:
    """KL(base || other) in nats."""
    return float((base.exp() * (base - other)).sum())
