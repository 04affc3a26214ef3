"""How far would each head move the output, if nothing were run?

A screen estimates every head at once. One clean pass forward gives each head's step: what an ablation puts in
the place of z, minus z. A few passes backward give the derivatives of the final state, along a few directions, by every
z of every layer and position. Their product is, to first order, how far the ablation moves the final state along these
directions; each metric makes a score of that:

- Ships: a divergence has no first order, so attribution patching (Nanda 2023; Syed et al. 2023, arXiv:2310.10348)
  cannot see it. Its second order is the Fisher information: KL = 1/2 Var_p(change of log p). The directions are the
  leading eigenvectors of each prompt's Fisher matrix over the most likely tokens, and the estimate is scaled by the
  share of its trace that they hold.
- Generalized Ships: the final states of all prompts are projected on the directions, moved, and scored by the
  metric itself. The directions are the leading right singular vectors of the states; for `space="right"`, where the
  subspace turns out of their span, as many random ones beside.
- RefusalShift, and any metric of single prompts whose derivative does not vanish: the derivative.

An estimate is good for small steps. Ablations that take large ones (a head that rests on the first token and is made to
attend to everything, heads of the first layers) are underestimated, up to tenfold; `audit.py` says what that costs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.climb import Rows, all_rows, climb, in_order
from safetyheads.heads import Head
from safetyheads.interventions.ablating import ablated_z
from safetyheads.interventions.ablations import Ablation
from safetyheads.metrics import GeneralizedShips, LastToken, Metric, Ships
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import TokenBatch

LIKELY_TOKENS = 512
"""Tokens over which a prompt's Fisher information is taken; they hold 0.9 to 0.98 of the probability of SmolLM2's
answers to chat prompts, and what they lack is made up for by the scale of the estimate."""


def estimate_heads(
    model: HookedModel,
    batch: TokenBatch,
    ablations: Sequence[Ablation],
    metric: Metric,
    *,
    directions: int = 4,
    each_prompt: bool = False,
    progress: Callable[[int], object] = lambda passes: None,
) -> Float[Tensor, "ablation layer head *prompt"]:
    """Estimate every head's score under every ablation from one set of backward passes, in the metric's unit; with
    `each_prompt` on each prompt, where the score is a mean over them.

    `directions` is the number of passes backward. `progress` is called with the number of prompts' passes just
    finished: two forward and `directions` back for each prompt. Memory holds the clean residual stream and the steps of
    all layers and prompts, and the graph of one block.

    Raises ValueError if the metric has no screen.
    """
    # Tensors of a sweep's inference mode cannot be differentiated; a caller's may be on.
    with torch.inference_mode(False), torch.no_grad():
        ascent = _climbed(all_rows(model, batch), ablations)
        progress(len(batch.lengths))
        states = [model.final_norm(up.rows.at_last(up.final)) for up in ascent]
        groups = [up.rows for up in ascent]
        view = _view(model, in_order(groups, states), metric, directions)
        shape = len(ablations), model.n_layers, model.n_heads, *view.directions.shape[:2]
        wide = torch.promote_types(view.directions.dtype, torch.float32)
        changes = torch.zeros(shape, dtype=wide)
        for up in ascent:
            prompts = list(up.rows.prompts)
            changes[:, :, :, prompts] = _moved(up, view.directions[prompts]).to(changes)
            progress(len(prompts) * (1 + view.directions.shape[1]))
        found = torch.stack([view.score(some) for some in changes])
        if each_prompt and found.ndim < 4:
            raise ValueError(f"{metric.name} is one number for all prompts, and has none of each")
        return (found if each_prompt or found.ndim < 4 else found.mean(-1)).float()


@dataclass(frozen=True, eq=False)
class _Ascent:
    """What some prompts leave behind on the way up, for the way down."""

    rows: Rows
    resid: list[Float[Tensor, "prompt pos d_model"]]
    """What enters each block."""
    steps: list[Float[Tensor, "prompt pos ablation head d_head"]]
    """What each ablation puts in the place of z, less z, in each block."""
    final: Float[Tensor, "prompt pos d_model"]
    """What leaves the last block."""


def _climbed(groups: Sequence[Rows], ablations: Sequence[Ablation]) -> list[_Ascent]:
    """All prompts up the model."""
    needs = frozenset({"acts"}).union(*(ablation.needs for ablation in ablations))
    model = groups[0].model
    sites = climb(groups, dict.fromkeys(range(model.n_layers), needs))
    seen: dict[int, list[Any]] = {id(rows): [rows, [], [], None] for rows in groups}
    for rows, site in sites:
        if site.acts is None:
            raise RuntimeError("a climb that was to look at the heads did not")
        new = [
            ablated_z(site, Head(site.layer, head), ablation)
            for ablation in ablations
            for head in range(model.n_heads)
        ]
        grid = rearrange(
            new,
            "(ablation head) row pos d_head -> row pos ablation head d_head",
            ablation=len(ablations),
        )
        kept = seen[id(rows)]
        kept[1].append(site.resid)
        kept[2].append(grid - site.acts.z[:, :, None])
        kept[3] = site.acts.resid_post
    return [_Ascent(*kept) for kept in seen.values()]


def _moved(
    up: _Ascent, directions: Float[Tensor, "prompt direction d_model"]
) -> Float[Tensor, "ablation layer head prompt direction"]:
    """How far each ablation moves each final state along its directions, to first order: down the model."""
    model, changes = up.rows.model, []
    gradients = _at_top(up, directions)
    for layer in reversed(range(model.n_layers)):
        call = up.rows.calls[layer]
        gradients, at_z = Blocks(model).pull_back(layer, up.resid[layer], call, gradients)
        wide = torch.promote_types(directions.dtype, torch.float32)
        changes.append(
            einsum(
                at_z.to(wide),
                up.steps[layer].to(wide),
                "direction prompt pos head d_head, prompt pos ablation head d_head "
                "-> ablation head prompt direction",
            )
        )
    return torch.stack(changes[::-1], 1)


def _at_top(
    up: _Ascent, directions: Float[Tensor, "prompt direction d_model"]
) -> Float[Tensor, "direction prompt pos d_model"]:
    """The derivatives of the final states along the directions, by the last block's output."""
    with torch.enable_grad():
        top = up.final.detach().requires_grad_()
        states = up.rows.model.final_norm(up.rows.at_last(top))
        along = einsum(
            states, directions.to(states.dtype), "prompt d, prompt direction d -> direction"
        )
        return torch.stack([torch.autograd.grad(one, top, retain_graph=True)[0] for one in along])


@runtime_checkable
class _View(Protocol):
    """What a metric looks at in the final states."""

    @property
    def directions(self) -> Float[Tensor, "prompt direction d_model"]: ...

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head *prompt"]:
        """The metric's estimate, from changes of the final states along the directions; on each prompt, unless it is
        one number for all."""
        ...


@dataclass(frozen=True)
class _Fisher:
    """The second order of a KL divergence."""

    directions: Float[Tensor, "prompt direction d_model"]
    scale: Float[Tensor, " prompt"]
    """Trace of the Fisher matrix over the part of it that the directions hold."""

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head prompt"]:
        return 0.5 * changes.square().sum(-1) * self.scale.to(changes)


@dataclass(frozen=True)
class _Slope:
    """The first order of a metric of single prompts."""

    directions: Float[Tensor, "prompt direction d_model"]

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head prompt"]:
        return changes[..., 0]


@dataclass(frozen=True)
class _Sketch:
    """Final states seen through a few directions, and scored like whole ones."""

    directions: Float[Tensor, "prompt direction d_model"]
    """The same for all prompts."""
    base: Float[Tensor, "prompt direction"]
    metric: Metric

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head"]:
        base = self.base.to(changes)
        moved = rearrange(base + changes, "layer head ... -> (layer head) ...")
        values, _ = self.metric.score(self.metric.gather(moved, base))
        return rearrange(values, "(layer head) -> layer head", layer=len(changes))


def _view(
    model: HookedModel, states: Float[Tensor, "prompt d_model"], metric: Metric, directions: int
) -> _View:
    if isinstance(metric, Ships):
        return _fisher(model, states, directions)
    if isinstance(metric, GeneralizedShips):
        return _sketch(states, metric, directions)
    with torch.enable_grad():
        moving = states.detach().requires_grad_()
        last = LastToken(moving, model.unembed)
        read = metric.read(last, LastToken(states, model.unembed))
        slope = torch.zeros_like(states)
        if read.ndim == 1 and read.requires_grad:
            slope = torch.autograd.grad(read.sum(), moving, retain_graph=True)[0]
        steepest = torch.autograd.grad(last.log_probs.max(-1).values.sum(), moving)[0]
    # At the least of a divergence rounding leaves a little.
    if slope.norm() <= 1e-4 * steepest.norm():
        raise ValueError(
            f'{metric.name} has no screen: its derivative at the baseline vanishes; use method="exact"'
        )
    return _Slope(slope[:, None])


def _fisher(
    model: HookedModel, states: Float[Tensor, "prompt d_model"], directions: int
) -> _Fisher:
    wide = torch.promote_types(states.dtype, torch.float32)
    log_probs = LastToken(states, model.unembed).log_probs.to(wide)
    likely = log_probs.topk(min(LIKELY_TOKENS, log_probs.shape[-1]))
    probs = likely.values.softmax(-1)[..., None]
    rows = model.logit_gradients(states, likely.indices).to(probs.dtype)
    rows = (rows - (probs * rows).sum(1, keepdim=True)) * probs.sqrt()
    # The Fisher matrix is rows^T rows; its eigenvectors, times the roots of its eigenvalues, come from rows rows^T.
    values, vectors = torch.linalg.eigh(rows @ rows.mT)
    values = values.clamp_min(0.0)
    k = min(directions, states.shape[-1], values.shape[-1])
    leading = vectors[..., -k:].mT @ rows
    return _Fisher(leading, values.sum(-1) / values[..., -k:].sum(-1))


def _sketch(
    states: Float[Tensor, "prompt d_model"], metric: GeneralizedShips, directions: int
) -> _Sketch:
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    if metric.space == "feature0":
        axes = torch.eye(1, wide.shape[-1], dtype=wide.dtype, device=wide.device)
    else:
        axes = torch.linalg.svd(wide, full_matrices=False).Vh[: max(directions, metric.rank + 1)]
    if metric.space == "right":
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(directions, wide.shape[-1], generator=generator).to(wide)
        # Squared lengths outside the span are kept on average (Johnson and Lindenstrauss).
        noise = (noise - noise @ axes.mT @ axes) / math.sqrt(directions)
        axes = torch.cat([axes, noise])
    return _Sketch(axes.expand(len(wide), -1, -1), wide @ axes.mT, metric)
