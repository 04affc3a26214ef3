"""Which model is asked, and how is one part of its forward pass run alone?

The one module that knows TransformerLens or spells a hook name. `load_model` opens a model; `HookedModel` wraps a
TransformerBridge and runs single blocks, with the arguments that the model itself passes to them, so that a sweep can
start at the layer that it disturbs.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safetyheads.models.cache_names import cache_argument, name_caches
from safetyheads.models.checkpoints import KNOWN_MODELS, load_checkpoint
from safetyheads.models.replaying import (
    BlockCall,
    Packing,
    SharedPrefix,
    attention_gives,
    block_beneath,
    first_of,
    replay,
    visible_keys,
    watch_cache,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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


class ModelSource(NamedTuple):
    """What `load_model` was given to open a model: enough for another process to open the same one."""

    name_or_path: str
    device: str
    dtype: torch.dtype | None

    def open(self) -> "HookedModel":
        """Open it."""
        return load_model(self.name_or_path, device=self.device, dtype=self.dtype)


class ZEdit(NamedTuple):
    """One head's z, rewritten in flight."""

    layer: int
    head: int
    edit: Callable[..., Tensor]
    """Called with the keywords z [row query d_head], v [row key d_head], visible [row query key] and scores
    [row query key] or None; gives the new z. With a cache there are more keys than queries."""
    scores: bool = False
    """Whether `edit` needs the scores."""
    part: tuple[int, int] = (0, 1)
    """Which rows: part `i` of `n` equal parts of every pass, counted from 0."""


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
    opened_from: ModelSource | None = field(default=None, repr=False)
    """How another process opens the same model; None where a loaded model came."""

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

    def plain_weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The weights under the names that they had before the bridge wrapped the model, not copied.

        Raises ValueError if the wrapped model lacks one of `names`.
        """
        wrapped = self._hf.state_dict()
        found = {name.replace("._original_component", ""): t for name, t in wrapped.items()}
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"the wrapped {self.name} has no weight {missing[0]}")
        return {name: found[name] for name in names}

    def logits(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of one plain forward pass, computed by the model's own code throughout."""
        return self._hf(input_ids=ids.to(self.device), use_cache=False).logits

    def next_logits(
        self, ids: Int[Tensor, "row pos"], real: Bool[Tensor, "row key"], cache: Any
    ) -> Float[Tensor, "row d_vocab"]:
        """Logits after the last of `ids`, which go on from what `cache`, a `transformers.Cache`, holds, and into it.

        `real` says which of the cached and the new tokens count; padding stands on the left of a row.
        """
        positions = (real.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = self._forward(
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
            getattr(getattr(self._hf, "generation_config", None), "eos_token_id", None),
            getattr(self._hf.config, "eos_token_id", None),
            getattr(self.tokenizer, "eos_token_id", None),
        ]
        tokens = [t for some in found for t in (some if isinstance(some, list | tuple) else [some])]
        return frozenset(int(token) for token in tokens if token is not None)

    def unembed(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """From the final norm's output to logits."""
        return self._scaled_logits(self.bridge.unembed(states))

    def _scaled_logits(self, raw: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row d_vocab"]:
        """What comes after the last matrix, one logit at a time."""
        config = self._hf.config
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
        weights = self._hf.get_output_embeddings().weight.detach()[tokens]
        with torch.enable_grad():
            raw = self.bridge.unembed(states.detach()).detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self._scaled_logits(raw).sum(), raw)
        return weights * slopes.gather(-1, tokens)[..., None]

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

    @contextlib.contextmanager
    def editing_z(self, edits: Sequence[ZEdit]) -> Iterator[None]:
        """Within the context, every forward pass has z of these heads rewritten: whole passes, generation with a cache,
        and single blocks that run their attention.

        All edits of a layer see what the layer computes before any of them. What they change goes through W_O and is
        added to the attention output, since some models show the scores only after it.

        Raises ValueError if an edit names a head that the model does not have.
        """
        layers: dict[int, list[ZEdit]] = {}
        for edit in edits:
            self.require_head(edit.layer, edit.head)
            layers.setdefault(edit.layer, []).append(edit)
        handles: list[Any] = []
        hooks: list[tuple[str, Callable[..., None]]] = []
        try:
            for layer, some in layers.items():
                hooks += self._edit_layer(layer, some, handles)
            with self.bridge.hooks(fwd_hooks=hooks) if hooks else contextlib.nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _edit_layer(
        self, layer: int, edits: Sequence[ZEdit], handles: list[Any]
    ) -> list[tuple[str, Callable[..., None]]]:
        """Watch one attention module and change what it gives; the hooks that are still to be set come back."""
        kept: dict[str, Any] = {}

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            kept.clear()
            kept["passed"] = (*args, *kwargs.values())
            watch = lambda value: watch_cache(value, kept)  # noqa: E731
            return tuple(map(watch, args)), {k: watch(v) for k, v in kwargs.items()}

        def after(_module: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
            if "hook_z" not in kept:  # attention was not run: `run_block` with attn_out
                return None
            attn_out = first_of(out) + self._change(layer, edits, kept)
            kept.clear()
            return (attn_out, *out[1:]) if isinstance(out, tuple) else attn_out

        attention = self.bridge.blocks[layer].attn
        handles.append(attention.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(attention.register_forward_hook(after))
        return self._keeping(layer, kept, scores=any(edit.scores for edit in edits))

    def _change(
        self, layer: int, edits: Sequence[ZEdit], kept: dict[str, Any]
    ) -> Float[Tensor, "row query d_model"]:
        """What the edits of one layer add to its attention output."""
        z = kept["hook_z"].reshape(*kept["hook_z"].shape[:2], -1, self.d_head)
        if "cached" in kept:
            v = kept["cached"].transpose(1, 2)
        else:
            v = kept["hook_v"].reshape(*z.shape[:2], -1, self.d_head)
        rows, queries, keys = len(z), z.shape[1], v.shape[1]
        visible = visible_keys(kept["passed"], queries, keys, z.device).expand(rows, -1, -1)
        scores = self._scores(kept) if "hook_pattern" in kept else None
        change = z.new_zeros(rows, queries, self.d_model)
        for _, head, edit, _, (number, parts) in edits:
            own = slice(number * rows // parts, (number + 1) * rows // parts)
            old = z[own, :, head]
            new = edit(
                z=old,
                v=v[own, :, head // (self.n_heads // v.shape[2])],
                visible=visible[own],
                scores=None if scores is None else scores[own, head],
            )
            change[own] += self.write(layer, head, new - old)
        return change

    def require_head(self, layer: int, head: int) -> None:
        """Raise ValueError if the model does not have this head."""
        if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
            raise ValueError(
                f"L{layer}H{head} is not in {self.name}: it has layers 0-{self.n_layers - 1} "
                f"and heads 0-{self.n_heads - 1}"
            )

    @contextlib.contextmanager
    def bypassing(self, layers: Sequence[int]) -> Iterator[None]:
        """Within the context, these blocks give their input as their output, in every forward pass.

        They still run, so that a cache of keys and values keeps its length at every layer.
        """

        def skip(_module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
            resid = args[0] if args else kwargs["hidden_states"]
            return (resid, *out[1:]) if isinstance(out, tuple) else resid

        blocks = [self.bridge.blocks[layer] for layer in sorted(set(layers))]
        handles = [block.register_forward_hook(skip, with_kwargs=True) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def visit_states(
        self,
        ids: Int[Tensor, "row pos"],
        layers: Sequence[int],
        read: Callable[[str, int, Tensor, int], None],
        *,
        prefix: int = 0,
    ) -> None:
        """Show `read` what these layers' attention and blocks give; nothing above the highest layer is run.

        `read(name, layer, states, start)` gets `"attn_out"` or `"resid_post"` and states [row, pos, d_model] whose
        first position is `start`. The first `prefix` tokens, which all rows share, are run and shown once, as one row.
        """

        class Reached(Exception):
            pass

        start, top = 0, max(layers)

        def showing(name: str, layer: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, out: Any) -> None:
                read(name, layer, first_of(out), start)
                if (name, layer) == ("resid_post", top):
                    raise Reached

            return hook

        handles = []
        for layer in sorted(set(layers)):
            block = self.bridge.blocks[layer]
            handles.append(block.attn.register_forward_hook(showing("attn_out", layer)))
            handles.append(block.register_forward_hook(showing("resid_post", layer)))
        try:
            cache: Any = None
            if prefix:
                from transformers import DynamicCache

                cache = DynamicCache()
                with contextlib.suppress(Reached):
                    self._forward(ids[:1, :prefix], cache=cache)
                cache.batch_repeat_interleave(len(ids))
                start = prefix
            with contextlib.suppress(Reached):
                self._forward(ids[:, prefix:], cache=cache)
        finally:
            for handle in handles:
                handle.remove()

    def visit_patterns(
        self,
        ids: Int[Tensor, "row pos"],
        layers: Sequence[int],
        read: Callable[[int, Tensor, Tensor], None],
    ) -> None:
        """Show `read(layer, pattern, visible)` these layers' attention patterns [row, head, query, key] and which pairs
        the model's own mask leaves [query, key]; the forward pass is left as soon as the highest layer's is there.

        Raises ValueError for a layer that the model does not have, or one that computes no attention pattern.
        """

        class Reached(Exception):
            pass

        chosen, visible = sorted(set(layers)), {}
        hooks, handles = [], []
        for layer in chosen:
            if not 0 <= layer < self.n_layers:
                raise ValueError(
                    f"layer {layer} is not in {self.name}: it has layers 0-{self.n_layers - 1}"
                )
            name = f"blocks.{layer}.attn.hook_pattern"
            if name not in self.bridge.hook_dict:
                raise ValueError(
                    f"layer {layer} of {self.name} computes no attention pattern: another kind of block stands there; "
                    "ask for a layer with attention"
                )

            def see(_m: nn.Module, args: Any, kwargs: dict[str, Any], layer: int = layer) -> None:
                size = ids.shape[1]
                passed = (*args[1:], *kwargs.values())
                visible[layer] = visible_keys(passed, size, size, self.device)[0]

            def show(pattern: Tensor, hook: Any, layer: int = layer) -> None:
                read(layer, pattern.detach(), visible[layer])
                if layer == chosen[-1]:
                    raise Reached

            handles.append(
                self.bridge.blocks[layer].register_forward_pre_hook(see, with_kwargs=True)
            )
            hooks.append((name, show))
        try:
            with self.bridge.hooks(fwd_hooks=hooks), contextlib.suppress(Reached):
                self._forward(ids)
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, ids: Tensor, *, cache: Any = None, **kwargs: Any) -> Any:
        if cache is not None:
            kwargs[cache_argument(self._hf)] = cache
        return self._hf(
            input_ids=ids.to(self.device),
            logits_to_keep=1,
            use_cache=cache is not None,
            **kwargs,
        )

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
        first = self._record(ids[:, :prefix], cache)
        return first, self._record(ids[:, prefix:], cache)

    def _record(self, ids: Tensor, cache: Any = None) -> list[BlockCall]:
        calls: list[BlockCall] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            calls.append(BlockCall(args[1:], kwargs))

        handles = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in self.bridge.blocks]
        try:
            self._forward(ids, cache=cache)
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
        kernel: str = "bridge",
    ) -> Float[Tensor, "row pos d_model"]:
        """One block with a recorded call, its cache replaced by `cache`; with `attn_out`, attention is not run.

        `kernel` is one of `kernels`; only `bridge` has the hook points.
        """
        block, attention = self._block(layer, kernel, call.packing)
        replaced = (
            contextlib.nullcontext() if attn_out is None else attention_gives(attention, attn_out)
        )
        with replaced:
            return first_of(replay(block, resid, call, cache))

    def run_attention(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        call: BlockCall,
        *,
        cache: SharedPrefix | None = None,
        kernel: str = "bridge",
    ) -> Float[Tensor, "row pos d_model"]:
        """What one block's attention adds to the residual stream; the rest of the block is not run."""

        class Reached(Exception):
            pass

        def stop(_module: nn.Module, _args: Any, out: Any) -> None:
            raise Reached(first_of(out))

        block, attention = self._block(layer, kernel, call.packing)
        handle = attention.register_forward_hook(stop)
        try:
            replay(block, resid, call, cache)
        except Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise RuntimeError(f"{self.name}: block {layer} never ran its attention")

    @property
    def kernels(self) -> tuple[str, ...]:
        """How a block can be run, fastest first: the plain block beneath the bridge with PyTorch's fused attention, its
        rows packed without padding (calls with a `Packing`); the same, rows padded; with eager attention; the bridge's
        own with its hook points."""
        # Fused attention has no place for soft-capping and leaves it out without a word.
        fused = getattr(self._hf, "_supports_sdpa", False) and not self.score_softcap
        return ("packed", "sdpa", "eager", "bridge") if fused else ("eager", "bridge")

    def _block(
        self, layer: int, kernel: str, packing: Packing | None = None
    ) -> tuple[nn.Module, nn.Module]:
        """A block and the attention in it."""
        if kernel == "bridge":
            block = self.bridge.blocks[layer]
            return block, block.attn
        if (layer, kernel) not in self._beneath:
            self._beneath[layer, kernel] = block_beneath(self.bridge.blocks[layer], kernel)
        block, attention = self._beneath[layer, kernel]
        vars(attention)["packing"] = packing
        return block, attention

    @cached_property
    def _beneath(self) -> dict[tuple[int, str], tuple[nn.Module, nn.Module]]:
        return {}

    def pull_back(
        self,
        layer: int,
        resid: Float[Tensor, "prompt pos d_model"],
        call: BlockCall,
        gradients: Float[Tensor, "direction prompt pos d_model"],
    ) -> tuple[
        Float[Tensor, "direction prompt pos d_model"],
        Float[Tensor, "direction prompt pos head d_head"],
    ]:
        """From derivatives by one block's output to those by its input and by z of its heads, all else after included.

        One pass of the block forward, and one back for each direction; nothing of the block is kept.
        """
        kept: list[Tensor] = []

        def keep(z: Tensor, hook: Any) -> Tensor:
            kept.append(z)
            return z

        below, at_z = [], []
        with torch.enable_grad():
            resid = resid.detach().requires_grad_()
            with self.bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", keep)]):
                out = self.run_block(layer, resid, call)
            for n, gradient in enumerate(gradients):
                grads = torch.autograd.grad(
                    out, (resid, kept[-1]), gradient, retain_graph=n + 1 < len(gradients)
                )
                below.append(grads[0])
                at_z.append(grads[1].reshape(*resid.shape[:2], -1, self.d_head))
        return torch.stack(below), torch.stack(at_z)

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
        attention = self.bridge.blocks[layer].attn
        handle = attention.register_forward_hook(
            lambda _m, _i, out: kept.update(attn_out=first_of(out))
        )
        try:
            with self.bridge.hooks(fwd_hooks=self._keeping(layer, kept, scores=scores)):
                resid_post = self.run_block(layer, resid, call)
        finally:
            handle.remove()
        shape = (*resid.shape[:2], -1, self.d_head)
        return AttentionActs(
            resid_post=resid_post,
            attn_out=kept["attn_out"].detach(),
            z=kept["hook_z"].reshape(shape),
            v=kept["hook_v"].reshape(shape),
            visible=visible_keys(
                (*call.args, *call.kwargs.values()), shape[1], shape[1], resid.device
            ),
            scores=self._scores(kept) if scores else None,
        )

    def _keeping(
        self, layer: int, kept: dict[str, Any], *, scores: bool
    ) -> list[tuple[str, Callable[..., None]]]:
        """Hooks that keep what one layer's heads do under the hooks' names."""

        def keep(name: str) -> tuple[str, Callable[..., None]]:
            def hook(tensor: Tensor, hook: Any) -> None:
                kept[name] = tensor.detach()

            return f"blocks.{layer}.attn.{name}", hook

        names = ["hook_z", "hook_v", *(["hook_attn_scores", "hook_pattern"] if scores else [])]
        return [keep(name) for name in names]

    def _scores(self, kept: dict[str, Any]) -> Float[Tensor, "row head query key"]:
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
        # Another process may stand in another folder.
        path = Path(x).expanduser()
        place = str(path.absolute()) if path.exists() and str(x) not in KNOWN_MODELS else str(x)
        opened_from = ModelSource(place, str(device), dtype)
        return _opened(bridge, checkpoint.tokenizer, checkpoint.name, provenance, opened_from)
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


def random_copy(model: HookedModel, seed: int = 0) -> HookedModel:
    """A model of the same configuration, tokenizer and dtype with random weights: what it scores is not from training.

    The weights are drawn as the architecture's own initialisation draws them; the caller's random state stays as it is.
    """

    source = model.bridge.original_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = type(source)(copy.deepcopy(source.config)).to(model.device, model.dtype).eval()
    name = f"{model.name} (random weights, seed {seed})"
    provenance = {"source": "random", "seed": seed, "weights": _weights_digest(hf)}
    return _opened(_boot(hf, name), model.tokenizer, name, provenance)


def _opened(
    bridge: Any,
    tokenizer: Any,
    name: str,
    provenance: dict[str, Any],
    opened_from: ModelSource | None = None,
) -> HookedModel:
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
    name_caches(bridge)
    if "blocks.0.attn.hook_z" not in bridge.hook_dict:
        raise ValueError(f"{name} has no attention heads to ablate: its first block has no hook_z")
    dtype = next(bridge.original_model.parameters()).dtype
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformer_lens": version("transformer-lens"),
    }
    provenance = {**provenance, "dtype": str(dtype).removeprefix("torch."), "versions": versions}
    return HookedModel(bridge, tokenizer, name, provenance, opened_from)


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
