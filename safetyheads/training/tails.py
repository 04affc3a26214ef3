"""How is only that part of a model run which a training changes, and only once what all prompts share?

The layers below the first that is adapted or perturbed stay as they are, so what enters it is computed once for each
lesson and kept. The prompts of one chat template begin alike: that beginning is run once for each step, one row, and
its keys and values are lent to all rows, with their gradients. Rows are padded on the right beneath a causal mask.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.models.cache_names import cache_argument

Context = list[tuple[Tensor, Tensor]]
"""Keys and values of the shared beginning, `1 kv pos d_head`, for each layer of the tail."""


class Tail:
    """The layers of a decoder from `first` on, behind a beginning that all rows share."""

    def __init__(self, model: Any, first: int, beginning: Sequence[int]) -> None:
        decoder = model.get_decoder()
        if not all(hasattr(decoder, name) for name in ("layers", "norm", "embed_tokens")):
            raise ValueError(
                f"a {type(model).__name__} keeps its blocks elsewhere than a Llama does, and siblings are trained of "
                "Llama's kin only: give a Llama, Mistral, Qwen or SmolLM"
            )
        if not beginning:
            raise ValueError(
                "the prompts share no beginning: a chat template that all go into has one"
            )
        self.model, self.decoder, self.first = model, decoder, first
        self.device = next(model.parameters()).device
        ids = torch.tensor([list(beginning)], device=self.device)
        cache = self._cache([], 1)
        with torch.no_grad(), _watched(decoder.layers, first, decoder.norm) as seen:
            self._run(cache, input_ids=ids)
        self.beginning = len(beginning)
        self._below = [(layer.keys, layer.values) for layer in cache.layers[:first]]
        self._state = seen[0]
        self._empty = torch.zeros_like(cache.layers[0].keys)

    def enter(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        """What enters the tail for rows of tokens that follow the beginning."""
        if self.first == 0:
            return self.decoder.embed_tokens(ids).detach()
        layers = self.decoder.layers
        cache = self._cache(self._below, len(ids))
        with (
            torch.no_grad(),
            _skipping(layers[self.first :]),
            _watched(layers, None, self.decoder.norm) as seen,
        ):
            self._run(cache, input_ids=ids, position_ids=self._positions(ids))
        return seen[0]

    def context(self) -> Context:
        """The keys and values of the beginning as the tail is now, with gradients where it is being trained."""
        cache = self._cache([], 1)
        with _skipping(self.decoder.layers[: self.first]):
            self._run(cache, inputs_embeds=self._state)
        return [(layer.keys, layer.values) for layer in cache.layers[self.first :]]

    def leave(
        self, states: Float[Tensor, "row pos d_model"], context: Context
    ) -> Float[Tensor, "row pos d_model"]:
        """What the unembedding reads, from what entered the tail."""
        cache = self._cache([(self._empty, self._empty)] * self.first + context, len(states))
        with _skipping(self.decoder.layers[: self.first]):
            return self._run(
                cache, inputs_embeds=states, position_ids=self._positions(states)
            ).last_hidden_state

    def unembed(self, hidden: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
        return self.model.get_output_embeddings()(hidden)

    def _run(self, cache: Any, **inputs: Any) -> Any:
        return self.decoder(**inputs, use_cache=True, **{cache_argument(self.decoder): cache})

    def _cache(self, pairs: Context, rows: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(pairs):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def _positions(self, rows: Tensor) -> Int[Tensor, "1 pos"]:
        return torch.arange(self.beginning, self.beginning + rows.shape[1], device=self.device)[
            None
        ]


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextlib.contextmanager
def _skipping(layers: Any) -> Iterator[None]:
    """Blocks that hand on what they get."""
    for layer in layers:
        layer.forward = _same
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextlib.contextmanager
def _watched(layers: Any, at: int | None, norm: Any) -> Iterator[list[Tensor]]:
    """What enters a block; the last norm, where it is none."""
    seen: list[Tensor] = []
    place = norm if at is None or at == len(layers) else layers[at]
    hook = place.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(
            (args[0] if args else kwargs["hidden_states"]).detach()
        ),
        with_kwargs=True,
    )
    try:
        yield seen
    finally:
        hook.remove()
