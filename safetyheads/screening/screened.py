"""Which heads are worth an exact run, and how many that matter are missed?

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
attend to everything, heads of the first layers) are underestimated, up to tenfold. So the best heads by estimate are
run exactly, and so is a random sample of the others; from how far the estimates were off on the heads that were run,
`judge` says what to expect of the rest. An estimate never stands for an exact score: `HeadScores.exact` tells them
apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.engine.sweep import _Chunk, _in_order, _Reference, layout
from safetyheads.heads import Audit, Head, parse_heads
from safetyheads.interventions.ablating import AblateHead
from safetyheads.interventions.ablations import Ablation
from safetyheads.metrics import GeneralizedShips, LastToken, Metric, Ships
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import TokenBatch

LIKELY_TOKENS = 512
"""Tokens over which a prompt's Fisher information is taken; they hold 0.9 to 0.98 of the probability of SmolLM2's
answers to chat prompts, and what they lack is made up for by the scale of the estimate."""
DRAWS = 2000
"""Draws of the error model."""


@dataclass(frozen=True)
class Screened:
    """How heads are screened: pass it as `method`, or the word "screened" for the defaults.

    >>> Screened(share=0.2).directions
    4
    """

    top_k: int = 10
    """The top whose recall is estimated."""
    share: float = 0.1
    """Share of all heads that are run exactly because their estimate is among the best; at least `top_k` heads."""
    audit: float = 0.04
    """Share of all heads drawn at random from the others and run exactly too."""
    widen: float = 0.2
    """Heads whose chance of a place in the top is larger than this, by the audited error, are run exactly as well."""
    directions: int = 4
    """Passes backward."""
    include: tuple[Head, ...] = ()
    """Heads that are run exactly whatever their estimate."""
    seed: int = 0
    """Seed of the sample."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "include", parse_heads(self.include))
        for name, low in (("top_k", 1), ("directions", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and at most 1")
        if not 0 <= self.audit <= 1:
            raise ValueError(f"audit is {self.audit}; it must be between 0 and 1")
        if not 0 < self.widen <= 1:
            raise ValueError(
                f"widen is {self.widen}; it must be above 0 and at most 1, which never widens"
            )

    def only(self, heads: Sequence[Head]) -> "Screened":
        """The same with these heads run exactly, the fewest others, and no search beyond them."""
        return replace(self, include=tuple(heads), share=1e-9, audit=0.0, widen=1.0)


Method = Literal["exact", "screened"] | Screened
"""How heads are scored: every one exactly, or the likely ones."""


def as_method(method: Method | None) -> Screened | None:
    """How heads are screened, or None for the exact sweep of all.

    >>> as_method("exact"), as_method("screened") == Screened()
    (None, True)
    """
    if isinstance(method, Screened) or method is None:
        return method
    if method not in ("exact", "screened"):
        raise ValueError(f'method is {method!r}; it must be "exact", "screened" or Screened(...)')
    return Screened() if method == "screened" else None


# Estimates ------------------------------------------------------------------------------------------------------------


def estimate_heads(
    model: HookedModel,
    batch: TokenBatch,
    ablations: Sequence[Ablation],
    metric: Metric,
    *,
    directions: int = 4,
    progress: Callable[[int], object] = lambda passes: None,
) -> Float[Tensor, "ablation layer head"]:
    """Estimate every head's score under every ablation from one set of backward passes, in the metric's unit.

    `directions` is the number of passes backward. `progress` is called with the number of prompts' passes just
    finished: two forward and `directions` back for each prompt. Memory holds the clean residual stream and the steps of
    all layers and prompts, and the graph of one block.

    Raises ValueError if the metric has no screen.
    """
    # Tensors of a sweep's inference mode cannot be differentiated; a caller's may be on.
    with torch.inference_mode(False), torch.no_grad():
        walk = _Walk(model, batch, ablations)
        for _ in range(model.n_layers):
            walk.rise()
        progress(len(batch.lengths))
        view = _view(model, walk.states(), metric, directions)
        changes = walk.descend(view.directions, progress)
        return torch.stack([view.score(some) for some in changes]).float()


class _Walk:
    """All prompts up the model and back: residual streams and steps on the way up, derivatives on the way down."""

    def __init__(
        self, model: HookedModel, batch: TokenBatch, ablations: Sequence[Ablation]
    ) -> None:
        self.model, self.ablations = model, ablations
        groups = layout(batch, None, model.device.type)
        self.chunks = [_Chunk(model, batch, group.prompts, 1, "plain", {}) for group in groups]
        self.needs = frozenset[str]().union(*(ablation.needs for ablation in ablations))
        self.resid: list[list[Tensor]] = [[] for _ in self.chunks]
        self.steps: list[list[Tensor]] = [[] for _ in self.chunks]

    def rise(self) -> None:
        """One block up."""
        layer = self.chunks[0].layer
        reference = _Reference(self.chunks, layer, self.needs)
        for chunk, resid, steps in zip(self.chunks, self.resid, self.steps, strict=True):
            acts = chunk.look(layer, scores="scores" in self.needs)
            resid.append(chunk.resid)
            new = [
                chunk.ablated_z(acts, AblateHead(Head(layer, head), ablation), reference)
                for ablation in self.ablations
                for head in range(self.model.n_heads)
            ]
            grid = torch.stack(new, 2).unflatten(2, (len(self.ablations), -1))
            steps.append(grid - acts.z[:, :, None])
            chunk.advance()

    def states(self) -> Float[Tensor, "prompt d_model"]:
        """The final states, in the order of the prompts."""
        last = [self.model.final_norm(chunk._at_last(chunk.resid, 0)) for chunk in self.chunks]
        return _in_order(self.chunks, last)

    def descend(
        self,
        directions: Float[Tensor, "prompt direction d_model"],
        progress: Callable[[int], object],
    ) -> Float[Tensor, "ablation layer head prompt direction"]:
        """How far each ablation moves each final state along its directions, to first order."""
        model = self.model
        changes = torch.zeros(
            (len(self.ablations), model.n_layers, model.n_heads, *directions.shape[:2]),
            dtype=torch.promote_types(directions.dtype, torch.float32),
        )
        for chunk, resid, steps in zip(self.chunks, self.resid, self.steps, strict=True):
            prompts = list(chunk.prompts)
            gradients = self._at_top(chunk, directions[prompts])
            for layer in reversed(range(model.n_layers)):
                gradients, at_z = Blocks(model).pull_back(
                    layer, resid[layer], chunk.calls[layer], gradients
                )
                moved = torch.einsum(
                    "kbphd,bpahd->ahbk", at_z.to(changes.dtype), steps[layer].to(changes.dtype)
                )
                changes[:, layer][:, :, prompts] = moved.to(changes.device)
            progress(len(prompts) * (1 + directions.shape[1]))
        return changes

    def _at_top(
        self, chunk: _Chunk, directions: Float[Tensor, "prompt direction d_model"]
    ) -> Float[Tensor, "direction prompt pos d_model"]:
        """The derivatives of the final states along the directions, by the last block's output."""
        with torch.enable_grad():
            top = chunk.resid.detach().requires_grad_()
            states = self.model.final_norm(chunk._at_last(top, 0))
            along = torch.einsum("bd,bkd->k", states, directions.to(states.dtype))
            return torch.stack(
                [torch.autograd.grad(one, top, retain_graph=True)[0] for one in along]
            )


@runtime_checkable
class _View(Protocol):
    """What a metric looks at in the final states."""

    @property
    def directions(self) -> Float[Tensor, "prompt direction d_model"]: ...

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head"]:
        """The metric's estimate, from changes of the final states along the directions."""
        ...


@dataclass(frozen=True)
class _Fisher:
    """The second order of a KL divergence."""

    directions: Float[Tensor, "prompt direction d_model"]
    scale: Float[Tensor, " prompt"]
    """Trace of the Fisher matrix over the part of it that the directions hold."""

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head"]:
        return (0.5 * changes.square().sum(-1) * self.scale.to(changes)).mean(-1)


@dataclass(frozen=True)
class _Slope:
    """The first order of a metric of single prompts."""

    directions: Float[Tensor, "prompt direction d_model"]

    def score(
        self, changes: Float[Tensor, "layer head prompt direction"]
    ) -> Float[Tensor, "layer head"]:
        return changes[..., 0].mean(-1)


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
        moved = (base + changes).flatten(0, 1)
        values, _ = self.metric.score(self.metric.gather(moved, base))
        return values.reshape(changes.shape[:2])


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


# The whole method -----------------------------------------------------------------------------------------------------


class ScreenedScores(NamedTuple):
    """What a screened run knows of every head; NaN where a head was not run, except in `values`."""

    values: Float[Tensor, "layer head"]
    per_prompt: Float[Tensor, "layer head prompt"] | None
    readings: Float[Tensor, "layer head *reading"]
    exact: Bool[Tensor, "layer head"]
    audit: Audit


def score_screened(
    estimates: Float[Tensor, "layer head"],
    metric: Metric,
    method: Screened,
    run_exactly: Callable[[Sequence[Head]], Float[Tensor, "variant *reading"]],
) -> ScreenedScores:
    """Run the heads exactly that a screen and its audit ask for, and judge the others by them.

    `run_exactly` gives the metric's readings of some heads; it is called once, and again for as long as some head's
    chance of a place in the top is above `method.widen`.

    Raises ValueError for an included head that the model does not have, or a top larger than the model.
    """
    n_layers, n_heads = estimates.shape
    for head in method.include:
        if head.layer >= n_layers or head.head >= n_heads:
            raise ValueError(
                f"{head} is not in this model: it has layers 0-{n_layers - 1} and heads 0-{n_heads - 1}"
            )
    choice = choose(estimates, method, largest_first=metric.largest_first)
    wanted = torch.zeros(n_layers * n_heads, dtype=torch.bool)
    wanted[choice.best] = True
    wanted[choice.audit] = True
    wanted[[head.layer * n_heads + head.head for head in method.include]] = True
    ran = torch.zeros_like(wanted)
    found: list[Tensor] = []
    places: list[int] = []
    while (wanted & ~ran).any():
        new = (wanted & ~ran).nonzero().flatten().tolist()
        found.append(run_exactly([Head(*divmod(place, n_heads)) for place in new]))
        places += new
        ran |= wanted
        readings = torch.cat(found)
        values, per_prompt = metric.score(readings)
        scores = _on_grid(values, places, estimates)
        judged = judge(
            estimates,
            scores,
            ran.reshape(estimates.shape),
            choice,
            method,
            largest_first=metric.largest_first,
        )
        wanted = ran | (judged.chance > method.widen).flatten()
    return ScreenedScores(
        values=judged.values,
        per_prompt=None if per_prompt is None else _on_grid(per_prompt, places, estimates),
        readings=_on_grid(readings, places, estimates),
        exact=ran.reshape(estimates.shape),
        audit=judged.audit,
    )


def _on_grid(
    rows: Float[Tensor, "variant *rest"], places: Sequence[int], like: Float[Tensor, "layer head"]
) -> Float[Tensor, "layer head *rest"]:
    """Rows at their places among all heads, NaN elsewhere."""
    grid = torch.full((like.numel(), *rows.shape[1:]), torch.nan, dtype=rows.dtype)
    grid[list(places)] = rows
    return grid.unflatten(0, tuple(like.shape))


# Choice and audit -----------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """Heads that a screen sends to the exact sweep."""

    best: Int[Tensor, " chosen"]
    """By estimate, best first; indices into the flattened grid of heads."""
    audit: Int[Tensor, " audited"]
    """Drawn at random from the others."""


def choose(
    estimates: Float[Tensor, "layer head"], method: Screened, *, largest_first: bool = True
) -> Choice:
    """The heads with the best estimates, and a random sample of the others."""
    flat = estimates.flatten()
    if method.top_k > len(flat):
        raise ValueError(f"top_k is {method.top_k}, and the model has {len(flat)} heads")
    order = flat.argsort(descending=largest_first, stable=True)
    best = min(len(flat), max(method.top_k, math.ceil(method.share * len(flat))))
    rest = order[best:]
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(method.seed))
    # Two at least, so that there is something to judge by.
    count = min(len(rest), max(2, round(method.audit * len(flat)))) if method.audit else 0
    return Choice(order[:best], rest[draw[:count]].sort().values)


class Judged(NamedTuple):
    """What the heads that were run say of the others."""

    values: Float[Tensor, "layer head"]
    """Exact scores where there are, calibrated estimates elsewhere."""
    chance: Float[Tensor, "layer head"]
    """Each head's chance of a score above the k-th exact one; 0 where it was run."""
    audit: Audit


def judge(
    estimates: Float[Tensor, "layer head"],
    scores: Float[Tensor, "layer head"],
    exact: Bool[Tensor, "layer head"],
    choice: Choice,
    method: Screened,
    *,
    largest_first: bool = True,
) -> Judged:
    """Calibrate the estimates of heads that were not run, and estimate how many of the top k are among them.

    `scores` are read where `exact` is true. The error model: score on estimate is a straight line with normal
    errors, of logarithms unless an estimate is negative, fitted to all heads that were run (they were chosen by
    estimate or at random, never by score, which leaves the line unbiased); the parameters' uncertainty is in the
    draws. Beside it stands a bound without any model, from the audit sample alone: see `Audit.missed_at_most`.
    """
    sign, signed = 1.0 if largest_first else -1.0, bool((estimates < 0).any())

    def scale(values: Tensor) -> Tensor:
        values = values.flatten().double()
        # A score of nearly nothing is rounding, and its logarithm must not bend the line.
        return sign * values if signed else values.clamp_min(1e-6 * values.max()).log()

    ran = exact.flatten()
    x, y = scale(estimates), scale(scores.nan_to_num())
    best = y[ran].topk(method.top_k).values
    fitted, draws = _regress(x[ran], y[ran], x[~ran], method.seed)
    back = sign * fitted if signed else fitted.exp()
    values, chance = scores.flatten().double(), torch.zeros(len(x), dtype=torch.float64)
    values[~ran], chance[~ran] = back, (draws > best[-1]).double().mean(0)
    # In each draw: how many of the k best of all heads are among the k best that were run.
    rivals = draws.topk(min(method.top_k, draws.shape[1])).values
    everyone = torch.cat([best.expand(len(draws), -1), rivals], dim=1)
    recalls = (everyone.topk(method.top_k).indices < method.top_k).double().mean(1)
    low, high = recalls.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    kth = y[choice.best].topk(method.top_k).values[-1]
    beaten = int((y[choice.audit] > kth).sum())
    rest = len(x) - len(choice.best)
    widened = int(ran.sum()) - len(choice.best) - len(choice.audit)
    audit = Audit(
        top_k=method.top_k,
        heads=len(x),
        run=int(ran.sum()),
        audited=len(choice.audit),
        beaten=beaten,
        recall=recalls.mean().item(),
        recall_low=low,
        recall_high=high,
        missed_at_most=min(
            most_in_population(rest, len(choice.audit), beaten) - beaten,
            rest - len(choice.audit) - widened,
        ),
    )
    shape = estimates.shape
    return Judged(values.reshape(shape).float(), chance.reshape(shape).float(), audit)


def _regress(
    x: Float[Tensor, " known"],
    y: Float[Tensor, " known"],
    x_new: Float[Tensor, " unknown"],
    seed: int,
) -> tuple[Float[Tensor, " unknown"], Float[Tensor, "draw unknown"]]:
    """A line's prediction of new values, and draws of them: Bayesian linear regression with a flat prior."""
    generator = torch.Generator().manual_seed(seed)
    design = torch.stack([torch.ones_like(x), x], dim=1)
    inverse = torch.linalg.pinv(design.mT @ design)
    weights = inverse @ design.mT @ y
    freedom = max(1, len(x) - 2)
    spread = ((y - design @ weights).square().sum() / freedom).sqrt()
    new = torch.stack([torch.ones_like(x_new), x_new], dim=1)

    chi_square = (
        torch.randn(DRAWS, freedom, generator=generator, dtype=torch.float64).square().sum(1)
    )
    scales = spread * (freedom / chi_square).sqrt()[:, None]
    root = torch.linalg.eigh(inverse)
    half = root.eigenvectors * root.eigenvalues.clamp_min(0).sqrt()
    normal = torch.randn(DRAWS, 2, generator=generator, dtype=torch.float64)
    lines = (weights + scales * (normal @ half.mT)) @ new.mT
    noise = torch.randn(DRAWS, len(x_new), generator=generator, dtype=torch.float64)
    return new @ weights, lines + scales * noise


def most_in_population(population: int, sample: int, hits: int, confidence: float = 0.95) -> int:
    """The largest number of hits in a population with which so few in a random sample are not yet implausible.

    The exact one-sided hypergeometric bound (Clopper and Pearson's, without replacement): with more hits in the
    population, `hits` or fewer in the sample have a chance of less than 1 - confidence.

    >>> most_in_population(100, 50, 0), most_in_population(100, 100, 3), most_in_population(100, 0, 0)
    (4, 3, 100)
    """
    everything = math.comb(population, sample)
    most = hits
    for count in range(hits, population - (sample - hits) + 1):
        few = sum(
            math.comb(count, n) * math.comb(population - count, sample - n)
            for n in range(min(hits, count) + 1)
        )
        if few < (1 - confidence) * everything:
            break
        most = count
    return most
