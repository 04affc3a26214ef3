"""A language model that probes can ask: its sizes, its whole passes, and the way from states to logits.

`blocks.py` runs its blocks one at a time, `editing.py` changes a pass, `watching.py` looks at one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safetyheads.models.cache_names import cache_argument

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


ORIGINAL = ("original_max_position_embeddings", "max_position_embeddings")
"""Where a config says up to which length the rotary angles are those of training."""


class ModelSource(NamedTuple):
    """What `load_model` was given to open a model: enough for another process to open the same one."""

    name_or_path: str
    device: str
    dtype: torch.dtype | None
    tokenizer: Any = None
    """The caller's own, where one was given."""
    device_map: str | tuple[tuple[str, Any], ...] | None = None
    """Where its parts lie, for a model on several devices: as `load_model` was told, a mapping as its items."""
    max_memory: tuple[tuple[Any, Any], ...] | None = None


@dataclass(frozen=True, eq=False)
class HookedModel:
    """A decoder-only language model that probes can ask whole passes of, and run in parts (`Blocks`)."""

    bridge: "TransformerBridge" = field(repr=False)
    """The TransformerLens model."""
    tokenizer: Any = field(repr=False)
    """The caller's own tokenizer; the bridge's copy adds a BOS of its own and is not used."""
    name: str
    """Name for figures and manifests."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """Where the weights come from, and in what numerics."""
    opened_from: ModelSource | None = field(default=None, repr=False)
    """How another process opens the same model; None where a loaded model came."""
    deviations: dict[str, float] = field(default_factory=dict, repr=False)
    """How far the gate found what it compared apart, as a share of the largest value."""
    unreadable: dict[str, str] = field(default_factory=dict, repr=False)
    """What of its heads cannot be read, `values` or `scores`, and why; ablations that need it are refused."""
    norm_in_unembedding: bool = False
    """Whether the final states are those before the last norm, which then is the unembedding's first step."""
    twins: dict[tuple[int, str], tuple[nn.Module, nn.Module]] = field(
        default_factory=dict, repr=False
    )
    """The plain blocks beneath the bridge that have been needed, by layer and kernel, and the attention in each."""

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        return int(self.bridge.cfg.n_heads)

    @property
    def n_kv(self) -> int:
        return int(self.bridge.cfg.n_key_value_heads or self.n_heads)

    @property
    def d_head(self) -> int:
        return int(self.bridge.cfg.d_head)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def d_mlp(self) -> int:
        return int(self.bridge.cfg.d_mlp)

    @property
    def d_vocab(self) -> int:
        """How many tokens the unembedding scores."""
        return int(self.bridge.cfg.d_vocab)

    @property
    def weights_size(self) -> int:
        """Bytes of all weights, each counted once."""
        distinct = {id(p): p for p in self.hf.parameters()}.values()
        return sum(p.numel() * p.element_size() for p in distinct)

    @property
    def context(self) -> int:
        """The longest prompt that the model takes, in tokens."""
        return int(
            getattr(self.hf.config, "max_position_embeddings", None) or self.bridge.cfg.n_ctx
        )

    @property
    def device(self) -> torch.device:
        """Where tokens go in; the blocks of a model on several devices lie where `Blocks.device` says."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def hf(self) -> Any:
        """The Hugging Face model that is wrapped."""
        return self.bridge.original_model

    @property
    def _softcap(self) -> float | None:
        return getattr(self.hf.config, "final_logit_softcapping", None)

    @property
    def score_softcap(self) -> float | None:
        """The bound of tanh soft-capping on attention scores, or None."""
        return getattr(self.hf.config, "attn_logit_softcapping", None)

    @property
    def value_clip(self) -> float | None:
        """The bound to which attention clips its values, or None (OLMo has one)."""
        config: Any = self.hf.config
        inner = getattr(config, "attn_config", None)
        return getattr(config, "clip_qkv", None) or getattr(inner, "clip_qkv", None)

    def require_batch(self, lengths: Int[Tensor, " prompt"], largest: int) -> None:
        """Raise ValueError for a token beyond the embedding, or prompts that would be others together than alone.

        Some rotary embeddings choose their angles by the longest row of a pass ("longrope", "dynamic").
        """
        embedded = int(self.hf.get_input_embeddings().weight.shape[0])
        if largest >= embedded:
            raise ValueError(
                f"the prompts hold token {largest}, and {self.name} embeds {embedded} tokens; give the tokenizer that "
                "the model was trained with, or resize the embedding"
            )
        config: Any = self.hf.config
        rope = getattr(config, "rope_parameters", None) or {}
        kind = rope.get("rope_type")
        if kind not in ("longrope", "dynamic"):
            return
        known = [d[name] for name in ORIGINAL for d in (rope, vars(config)) if d.get(name)]
        first = int(known[0]) if known else self.context
        shortest, longest = int(lengths.min()), int(lengths.max())
        if longest > first and (shortest <= first if kind == "longrope" else shortest < longest):
            raise ValueError(
                f"{self.name} changes its rotary angles ({kind}) for prompts of more than {first} tokens, and these "
                f"have {shortest} to {longest}: together they would not be what each is alone; score those of at most "
                f"{first} tokens, and the longer ones{'' if kind == 'longrope' else ' of each length'}, in calls of "
                "their own"
            )

    def rest(self) -> None:
        """Put the model into evaluation mode, in which alone its outputs are a function of the tokens."""
        for module in (self.bridge, self.hf, *(block for block, _ in self.twins.values())):
            if any(part.training for part in module.modules()):
                module.eval()

    def require_readable(self, needs: frozenset[str], what: str) -> None:
        """Raise ValueError if something reads of the heads what cannot be read of this model."""
        for need in sorted(needs & self.unreadable.keys()):
            raise ValueError(
                f"{what} is not defined for {self.name}: {self.unreadable[need]}; take ZeroAblation(), MeanAblation() "
                "or ScalingContribution(), which read a head's output alone"
            )

    def states_and_logits(
        self, ids: Int[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_vocab"]]:
        """The final states (after the last norm, or before it where `norm_in_unembedding`), and the logits, from one
        plain forward pass."""
        kept: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            kept.append(args[0] if self.norm_in_unembedding else out)

        handle = self.bridge.ln_final.register_forward_hook(keep)
        try:
            logits = self.logits(ids)
        finally:
            handle.remove()
        return kept[-1], logits

    def plain_weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The weights under the names that they had before the bridge wrapped the model, not copied.

        Raises ValueError if the wrapped model lacks one of `names`.
        """
        wrapped = self.hf.state_dict()
        found = {name.replace("._original_component", ""): t for name, t in wrapped.items()}
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"the wrapped {self.name} has no weight {missing[0]}")
        return {name: found[name] for name in names}

    def logits(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of one plain forward pass, computed by the model's own code throughout."""
        return self.hf(input_ids=ids.to(self.device), use_cache=False).logits

    def next_logits(
        self, ids: Int[Tensor, "row pos"], real: Bool[Tensor, "row key"], cache: Any
    ) -> Float[Tensor, "row d_vocab"]:
        """Logits after the last of `ids`, which go on from what `cache`, a `transformers.Cache`, holds, and into it.

        `real` says which of the cached and the new tokens count; padding stands on the left of a row.
        """
        positions = (real.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = self.forward(
            ids,
            attention_mask=real.long(),
            position_ids=positions,
            cache=cache,
        )
        return out.logits[:, -1]

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: the model's own and its tokenizer's."""
        found = [
            getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None),
            getattr(self.hf.config, "eos_token_id", None),
            getattr(self.tokenizer, "eos_token_id", None),
        ]
        tokens = [t for some in found for t in (some if isinstance(some, list | tuple) else [some])]
        return frozenset(int(token) for token in tokens if token is not None)

    def unembed(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """From final states to logits."""
        normed = self.bridge.ln_final(states) if self.norm_in_unembedding else states
        return self._scaled_logits(self.bridge.unembed(normed))

    def _scaled_logits(self, raw: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row d_vocab"]:
        """What comes after the last matrix, one logit at a time."""
        config = self.hf.config
        # Granite divides, Cohere multiplies.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        logits = raw * scale
        if self._softcap:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits

    def logit_gradients(
        self, states: Float[Tensor, "row d_model"], tokens: Int[Tensor, "row token"]
    ) -> Float[Tensor, "row token d_model"]:
        """Derivatives of some tokens' logits with respect to the final norm's output."""
        weights = self.hf.get_output_embeddings().weight.detach()[tokens]
        with torch.enable_grad():
            raw = self.bridge.unembed(states.detach()).detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self._scaled_logits(raw).sum(), raw)
        return weights * slopes.gather(-1, tokens)[..., None]

    def final_norm(self, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """From the residual stream to final states: the last norm, unless it belongs to the unembedding."""
        return resid if self.norm_in_unembedding else self.bridge.ln_final(resid)

    def normed(self, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The residual stream after the last norm, whichever part of the model that belongs to."""
        return self.bridge.ln_final(resid)

    def require_head(self, layer: int, head: int) -> None:
        """Raise ValueError if the model does not have this head."""
        if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
            raise ValueError(
                f"L{layer}H{head} is not in {self.name}: it has layers 0-{self.n_layers - 1} "
                f"and heads 0-{self.n_heads - 1}"
            )

    def forward(self, ids: Int[Tensor, "row pos"], *, cache: Any = None, **kwargs: Any) -> Any:
        """The model's own forward pass, which unembeds the last position only; `cache` is a `transformers.Cache`."""
        if cache is not None:
            kwargs[cache_argument(self.hf)] = cache
        return self.hf(
            input_ids=ids.to(self.device),
            logits_to_keep=1,
            use_cache=cache is not None,
            **kwargs,
        )
