"""How is one block of a model run alone?

`Blocks(model)` embeds tokens, records what the model passes to its blocks, and runs single blocks with that, so that a
sweep can start at the layer that it disturbs: on the block itself, with its hook points, or on a plain twin beneath it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from safetyheads.models.attention import (
    AttentionActs,
    by_head,
    hooks_on_heads,
    scores_before_softmax,
    sink_scores,
)
from safetyheads.models.hooked import HookedModel
from safetyheads.models.outside import outside
from safetyheads.models.packing import attention_gives, block_beneath, packed
from safetyheads.models.placement import device_of
from safetyheads.models.replaying import (
    BlockCall,
    SharedPrefix,
    first_of,
    replay,
    visible_keys,
)

PLAIN = (nn.Linear, Conv1D)
"""Output projections whose rows are W_O of the heads, and nothing else."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one model, to be run one at a time."""

    model: HookedModel

    def device(self, layer: int) -> torch.device:
        """Where a block's weights lie; of one that was not read, where the model's others do."""
        found = device_of(self.model.bridge.blocks[layer])
        return self.model.device if found.type == "meta" else found

    def embed(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        """The residual stream that enters the first block."""

        class Reached(Exception):
            pass

        def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.model.bridge.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model.forward(ids)
        except Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise RuntimeError(f"{self.model.name}: the forward pass never reached its first block")

    def record(
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

        handles = [
            b.register_forward_pre_hook(keep, with_kwargs=True) for b in self.model.bridge.blocks
        ]
        try:
            self.model.forward(ids, cache=cache)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def run(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        call: BlockCall,
        *,
        cache: SharedPrefix | None = None,
        attn_out: Float[Tensor, "row pos d_model"] | None = None,
        kernel: str = "hooked",
    ) -> Float[Tensor, "row pos d_model"]:
        """One block with a recorded call, its cache replaced by `cache`; with `attn_out`, attention is not run.

        `kernel` is one of `kernels`; only `hooked` has the hook points.
        """
        block, attention = self.modules(layer, kernel)
        with packed(attention, call.packing, cache), attention_gives(attention, attn_out):
            return first_of(replay(block, resid, call, cache))

    def attend(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        call: BlockCall,
        *,
        cache: SharedPrefix | None = None,
        kernel: str = "hooked",
    ) -> Float[Tensor, "row pos d_model"]:
        """What one block's attention adds to the residual stream; the rest of the block is not run."""

        class Reached(Exception):
            pass

        def stop(_module: nn.Module, _args: Any, out: Any) -> None:
            raise Reached(first_of(out))

        block, attention = self.modules(layer, kernel)
        handle = attention.register_forward_hook(stop)
        try:
            with packed(attention, call.packing, cache):
                replay(block, resid, call, cache)
        except Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise RuntimeError(f"{self.model.name}: block {layer} never ran its attention")

    def look(
        self,
        layer: int,
        resid: Float[Tensor, "prompt pos d_model"],
        call: BlockCall,
        *,
        scores: bool,
    ) -> AttentionActs:
        """One undisturbed block, keeping what its heads did."""
        kept: dict[str, Tensor] = {}
        attention = self.model.bridge.blocks[layer].attn
        handle = attention.register_forward_hook(
            lambda _m, _i, out: kept.update(attn_out=first_of(out))
        )
        try:
            with self.model.bridge.hooks(fwd_hooks=self._hooks(layer, kept, scores=scores)):
                resid_post = self.run(layer, resid, call)
        finally:
            handle.remove()
        positions = resid.shape[1]
        return AttentionActs(
            resid_post=resid_post,
            attn_out=kept["attn_out"].detach(),
            z=by_head(kept["hook_z"], self.model.d_head),
            v=by_head(kept["hook_v"], self.model.d_head),
            visible=visible_keys(
                (*call.args, *call.kwargs.values()), positions, positions, resid.device
            ),
            scores=scores_before_softmax(kept, self.model.score_softcap) if scores else None,
            sinks=sink_scores(attention),
        )

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
            with self.model.bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", keep)]):
                out = self.run(layer, resid, call)
            for n, gradient in enumerate(gradients):
                grads = torch.autograd.grad(
                    out, (resid, kept[-1]), gradient, retain_graph=n + 1 < len(gradients)
                )
                below.append(grads[0])
                at_z.append(by_head(grads[1], self.model.d_head))
        return torch.stack(below), torch.stack(at_z)

    def write(
        self, layer: int, head: int, z: Float[Tensor, "*row d_head"]
    ) -> Float[Tensor, "*row d_model"]:
        """What a change of one head's z adds to the attention output: z W_O, without the bias."""
        projection = self._projection(layer)
        if type(projection) in PLAIN and not outside(projection):
            return z @ self.model.bridge.blocks[layer].attn.W_O[head].to(z.dtype)
        # An adapter, a hook, or weights that are packed: the module itself says what it makes of one head's z.
        width = self.model.n_heads * self.model.d_head
        place = slice(head * self.model.d_head, (head + 1) * self.model.d_head)
        wide = z.new_zeros(*z.shape[:-1], width)
        wide[..., place] = z
        return projection(wide) - projection(torch.zeros_like(wide[..., :1, :]))

    def project(
        self, layer: int, z: Float[Tensor, "row pos *heads"]
    ) -> Float[Tensor, "row pos d_model"]:
        """All heads' z through the output projection itself, bias included."""
        return self._projection(layer)(rearrange(z, "row pos ... -> row pos (...)"))

    def _projection(self, layer: int) -> nn.Module:
        module: Any = self.model.bridge.blocks[layer].attn.o
        while hasattr(module, "original_component"):
            module = module.original_component
        return module

    def _hooks(self, layer: int, kept: dict[str, Any], *, scores: bool) -> Any:
        return hooks_on_heads(layer, kept, scores=scores, clip=self.model.value_clip)

    @property
    def kernels(self) -> tuple[str, ...]:
        """How a block can be run, fastest first: the plain block beneath the bridge with PyTorch's fused attention, its
        rows packed without padding (calls with a `Packing`); the same, rows padded; with eager attention; the bridge's
        own with its hook points."""
        if outside(self.model.hf):  # only this one runs the caller's hooks
            return ("hooked",)
        # Fused attention has no place for soft-capping and leaves it out without a word.
        fused = getattr(self.model.hf, "_supports_sdpa", False) and not self.model.score_softcap
        if not fused:
            return ("eager", "hooked")
        # Packing stands in for attention where transformers asks an interface for it.
        asks = getattr(self.model.hf, "_supports_attention_backend", False)
        return ("packed", "sdpa", "eager", "hooked") if asks else ("sdpa", "eager", "hooked")

    def modules(self, layer: int, kernel: str) -> tuple[nn.Module, nn.Module]:
        """A block as one of `kernels` runs it, and the attention in it."""
        if kernel == "hooked":
            block = self.model.bridge.blocks[layer]
            return block, block.attn
        if (layer, kernel) not in self.model.twins:
            self.model.twins[layer, kernel] = block_beneath(self.model.bridge.blocks[layer], kernel)
        return self.model.twins[layer, kernel]
