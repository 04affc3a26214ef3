"""Which model is asked, and how is one part of its forward pass run alone?

The one module that knows TransformerLens or spells a hook name. `load_model` opens a model; `HookedModel` wraps a
TransformerBridge and runs single blocks, with the arguments that the model itself passes to them, so that a sweep can
start at the layer that it disturbs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safetyheads.checkpoints import load_checkpoint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class BlockCall(NamedTuple):
    """What the model passes to one block besides the hidden states: masks, positions, rotary angles."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class AttentionActs(NamedTuple):
    """One block's clean pass: the next residual stream, and what the heads did on the way."""

    resid_post: Float[Tensor, "prompt pos d_model"]
    attn_out: Float[Tensor, "prompt pos d_model"]
    z: Float[Tensor, "prompt pos head d_head"]
    v: Float[Tensor, "prompt pos kv d_head"]
    visible: Bool[Tensor, "1 pos pos"]
    """The same for all prompts, which right padding makes so."""
    scores: Float[Tensor, "prompt head pos pos"] | None
    """Attention scores after QK-norm and rotary embedding, softcap undone, up to a constant a
    query; kept if asked for."""


class SharedPrefix:
    """The keys and values of a prefix at one layer: stored once a variant, read by all its prompts.

    It stands where the model expects its cache and offers the one method that attention calls on it.
    """

    def __init__(self) -> None:
        self._stored: tuple[Tensor, Tensor] | None = None

    def update(
        self, keys: Tensor, values: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store on the first call (the prefix); prepend what is stored on the second (the suffixes)."""
        if self._stored is None:
            self._stored = keys, values
            return keys, values
        copies = len(keys) // len(self._stored[0])
        prefix_keys, prefix_values = (t.repeat_interleave(copies, dim=0) for t in self._stored)
        return torch.cat([prefix_keys, keys], dim=-2), torch.cat([prefix_values, values], dim=-2)


@dataclass(frozen=True, eq=False)
class HookedModel:
    """A decoder-only language model that probes can run in parts."""

    bridge: "TransformerBridge" = field(repr=False)
    """The TransformerLens model."""
    tokenizer: Any = field(repr=False)
    """The caller's own tokenizer; the bridge's copy adds a BOS of its own and is not used."""
    name: str
    """Name for figures and manifests."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """Where the weights come from, and in what numerics."""

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
    def context(self) -> int:
        """The longest prompt that the model takes, in tokens."""
        return int(
            getattr(self._hf.config, "max_position_embeddings", None) or self.bridge.cfg.n_ctx
        )

    @property
    def device(self) -> torch.device:
        return next(self._hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._hf.parameters()).dtype

    @property
    def _hf(self) -> Any:
        return self.bridge.original_model

    @property
    def _softcap(self) -> float | None:
        return getattr(self._hf.config, "final_logit_softcapping", None)

    @property
    def score_softcap(self) -> float | None:
        """The bound of tanh soft-capping on attention scores, or None."""
        return getattr(self._hf.config, "attn_logit_softcapping", None)

    # The whole model -------------------------------------------------------------------------------------------------

    def states_and_logits(
        self, ids: Int[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_vocab"]]:
        """The residual stream after the final norm, and the logits, from one plain forward pass."""
        kept: list[Tensor] = []
        handle = self.bridge.ln_final.register_forward_hook(lambda _m, _i, out: kept.append(out))
        try:
            logits = self.logits(ids)
        finally:
            handle.remove()
        return kept[-1], logits

    def logits(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of one plain forward pass, computed by the model's own code throughout."""
        return self._hf(input_ids=ids.to(self.device), use_cache=False).logits

    def unembed(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """From the final norm's output to logits."""
        config = self._hf.config
        # Granite divides, Cohere multiplies.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        logits = self.bridge.unembed(states) * scale
        if self._softcap:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits

    def final_norm(self, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The model's last normalisation."""
        return self.bridge.ln_final(resid)

    @contextlib.contextmanager
    def replacing_z(
        self, layer: int, head: int, edit: Callable[[Tensor], Tensor]
    ) -> Iterator[None]:
        """Within the context, `edit` rewrites z of one head (row, pos, d_head) in every forward pass."""

        def hook(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, head] = edit(z[:, :, head])
            return z

        with self.bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", hook)]):
            yield

    def _forward(self, ids: Tensor, **kwargs: Any) -> Any:
        kwargs.setdefault("use_cache", False)
        return self._hf(input_ids=ids.to(self.device), logits_to_keep=1, **kwargs)

    # One block at a time ---------------------------------------------------------------------------------------------

    def embed(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        """The residual stream that enters the first block."""

        class Reached(Exception):
            pass

        def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.bridge.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._forward(ids)
        except Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise RuntimeError(f"{self.name}: the forward pass never reached its first block")

    def record_calls(
        self, ids: Int[Tensor, "1 pos"], prefix: int = 0
    ) -> tuple[list[BlockCall], list[BlockCall]]:
        """What the model passes to each block on the first `prefix` tokens, and on the rest with the prefix cached.

        Recorded on one row: without padding, masks and positions are the same for all rows and broadcast.
        """
        if not prefix:
            return [], self._record(ids)
        from transformers import DynamicCache

        cache = DynamicCache()
        first = self._record(ids[:, :prefix], past_key_values=cache, use_cache=True)
        return first, self._record(ids[:, prefix:], past_key_values=cache, use_cache=True)

    def _record(self, ids: Tensor, **kwargs: Any) -> list[BlockCall]:
        calls: list[BlockCall] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            calls.append(BlockCall(args[1:], kwargs))

        handles = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in self.bridge.blocks]
        try:
            self._forward(ids, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def run_block(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        call: BlockCall,
        *,
        cache: SharedPrefix | None = None,
        attn_out: Float[Tensor, "row pos d_model"] | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """One block with a recorded call, its cache replaced by `cache`; with `attn_out`, attention is not run."""
        args = tuple(_swap_cache(a, cache) for a in call.args)
        kwargs = {k: _swap_cache(v, cache) for k, v in call.kwargs.items()}
        block = self.bridge.blocks[layer]
        replaced = (
            contextlib.nullcontext() if attn_out is None else _attention_gives(block.attn, attn_out)
        )
        with replaced:
            out = block(resid, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def run_block_clean(
        self,
        layer: int,
        resid: Float[Tensor, "prompt pos d_model"],
        call: BlockCall,
        *,
        scores: bool,
    ) -> AttentionActs:
        """One undisturbed block, keeping what its heads did."""
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> tuple[str, Callable[..., None]]:
            def hook(tensor: Tensor, hook: Any) -> None:
                kept[name] = tensor.detach()

            return f"blocks.{layer}.attn.{name}", hook

        names = ["hook_z", "hook_v", *(["hook_attn_scores", "hook_pattern"] if scores else [])]
        attention = self.bridge.blocks[layer].attn
        handle = attention.register_forward_hook(
            lambda _m, _i, out: kept.update(attn_out=out[0] if isinstance(out, tuple) else out)
        )
        try:
            with self.bridge.hooks(fwd_hooks=[keep(name) for name in names]):
                resid_post = self.run_block(layer, resid, call)
        finally:
            handle.remove()
        shape = (*resid.shape[:2], -1, self.d_head)
        return AttentionActs(
            resid_post=resid_post,
            attn_out=kept["attn_out"].detach(),
            z=kept["hook_z"].reshape(shape),
            v=kept["hook_v"].reshape(shape),
            visible=_visible(call, resid),
            scores=self._scores(kept) if scores else None,
        )

    def _scores(self, kept: dict[str, Tensor]) -> Float[Tensor, "prompt head pos pos"]:
        """Attention scores before the softmax, up to a constant a query, softcap undone; masked
        entries mean nothing."""
        scores, pattern = kept["hook_attn_scores"], kept["hook_pattern"]
        if torch.equal(scores, pattern):
            # Where TransformerLens leaves attention to the original module (GPT-J), both hooks show the pattern.
            return pattern.clamp_min(torch.finfo(pattern.dtype).tiny).log()
        if cap := self.score_softcap:
            return cap * torch.atanh((scores / cap).clamp(-1 + 1e-7, 1 - 1e-7))
        return scores

    def write(
        self, layer: int, head: int, z: Float[Tensor, "*row d_head"]
    ) -> Float[Tensor, "*row d_model"]:
        """What a change of one head's z adds to the attention output: z W_O, without the bias."""
        return z @ self.bridge.blocks[layer].attn.W_O[head].to(z.dtype)


def _visible(call: BlockCall, resid: Tensor) -> Bool[Tensor, "1 pos pos"]:
    """Which keys each query may see, from the mask that the model passes to the block; plain causal
    if it passes none."""
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, Tensor) and value.ndim == 4:
            return (
                value[:, 0]
                if value.dtype == torch.bool
                else value[:, 0] > torch.finfo(value.dtype).min / 2
            )
    length = resid.shape[1]
    return torch.ones(1, length, length, dtype=torch.bool, device=resid.device).tril()


def _swap_cache(value: Any, cache: SharedPrefix | None) -> Any:
    from transformers import Cache

    return cache if isinstance(value, Cache) else value


@contextlib.contextmanager
def _attention_gives(attention: nn.Module, attn_out: Tensor) -> Iterator[None]:
    """Within the context, the attention module returns `attn_out` and computes nothing."""
    object.__setattr__(attention, "forward", lambda *_args, **_kwargs: (attn_out, None))
    try:
        yield
    finally:
        object.__delattr__(attention, "forward")


def load_model(
    x: Any,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> HookedModel:
    """Open a model for probing.

    `x` is one of: a known name (`"smollm2-135m-instruct"`, `"qwen2.5-coder-0.5b-instruct"`), a Hugging Face Hub id, a
    local folder, a `.gguf` file, a loaded Hugging Face causal LM (give its `tokenizer`, or a pair of both), or a
    TransformerBridge. A loaded Hugging Face model is wrapped in place: it keeps its outputs, computes
    attention eagerly from then on, and cannot be saved through its own `save_pretrained` any more; wrapping
    it again gives the same wrapper.

    Raises ValueError (an unknown name, with near matches; not a decoder; no tokenizer), FileNotFoundError (no such
    file), ConnectionError (the Hub is needed and out of reach).
    """
    if isinstance(x, HookedModel):
        return x
    if isinstance(x, tuple) and len(x) == 2:
        x, tokenizer = x
    if not hasattr(x, "forward"):
        checkpoint = load_checkpoint(x, device=str(device), dtype=dtype)
        bridge = _boot(checkpoint.model, checkpoint.name)
        provenance = {**checkpoint.provenance, "attention": "eager"}
        return _opened(bridge, checkpoint.tokenizer, checkpoint.name, provenance)
    is_bridge = type(x).__name__ == "TransformerBridge"
    if dtype is not None or str(device) != "cpu":
        raise ValueError(
            "device and dtype are for models that load_model opens; move the loaded model before passing it"
        )
    tokenizer = tokenizer or (x.tokenizer if is_bridge else None)
    if tokenizer is None:
        raise ValueError(
            f"{type(x).__name__} came without a tokenizer; pass load_model(model, tokenizer=...)"
        )
    hf = x.original_model if is_bridge else x
    if not is_bridge:
        _require_decoder(hf)
    bridge = (
        x if is_bridge else _boot(hf, getattr(hf.config, "_name_or_path", "") or type(hf).__name__)
    )
    name = getattr(hf.config, "_name_or_path", "") or type(hf).__name__
    return _opened(bridge, tokenizer, name, {"source": "memory", "weights": _weights_digest(hf)})


def _opened(bridge: Any, tokenizer: Any, name: str, provenance: dict[str, Any]) -> HookedModel:
    import transformers

    if getattr(bridge, "compatibility_mode", False):
        raise ValueError(
            "this TransformerBridge is in compatibility mode, which folds and centres weights; "
            "pass one on which enable_compatibility_mode() was not called"
        )
    config = bridge.original_model.config
    if getattr(config, "alibi", False) or getattr(config, "model_type", "") in ("bloom", "mpt"):
        raise ValueError(
            f"{name} uses ALiBi, which adds a distance to every attention score: attention without a query is then "
            "not uniform, and these ablations are not defined for it; use a model with rotary or learned positions"
        )
    bridge.eval()
    if "blocks.0.attn.hook_z" not in bridge.hook_dict:
        raise ValueError(f"{name} has no attention heads to ablate: its first block has no hook_z")
    dtype = next(bridge.original_model.parameters()).dtype
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformer_lens": version("transformer-lens"),
    }
    provenance = {**provenance, "dtype": str(dtype).removeprefix("torch."), "versions": versions}
    return HookedModel(bridge, tokenizer, name, provenance)


def _boot(hf: Any, name: str) -> Any:
    """The bridge of a Hugging Face model; booting one twice would nest the hooks, so each is booted once."""
    if "_safetyheads_bridge" in vars(hf):
        return vars(hf)["_safetyheads_bridge"]
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    architecture = type(hf).__name__
    try:
        bridge = build_bridge_from_module(
            hf.eval(), architecture, hf_config=hf.config, tokenizer=None
        )
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{name}: TransformerLens cannot wrap the architecture {architecture} ({error}); "
            "use a decoder that it supports, such as Llama, Mistral, Qwen, Gemma, Phi, GPT-2 or NeoX"
        ) from error
    # Past nn.Module.__setattr__, which would make the bridge a submodule of the model that it wraps.
    object.__setattr__(hf, "_safetyheads_bridge", bridge)
    return bridge


def _require_decoder(model: Any) -> None:
    config = getattr(model, "config", None)
    # BERT and its kin have a causal class that looks both ways unless `is_decoder` is set. Decoders lack the field,
    # except NeoX, where it is False and means nothing.
    neox = str(getattr(config, "model_type", "")).startswith("gpt_neox")
    encoder = getattr(config, "is_encoder_decoder", False) or not (
        neox or getattr(config, "is_decoder", True)
    )
    if (
        config is None
        or encoder
        or not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    ):
        raise ValueError(
            f"expected a decoder-only causal language model, and a {type(model).__name__} came; "
            "load it with transformers.AutoModelForCausalLM"
        )


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and float64 sums of all weights: tells two models in memory apart."""
    import hashlib

    digest = hashlib.sha256()
    tensors: Sequence[tuple[str, Tensor]] = sorted(model.named_parameters())
    for name, tensor in tensors:
        total = tensor.detach().double()
        digest.update(
            f"{name}{tuple(tensor.shape)}{total.sum().item()}{total.abs().sum().item()}".encode()
        )
    return digest.hexdigest()
