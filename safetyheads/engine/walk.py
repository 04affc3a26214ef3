"""How are the many steps of a walk run at once, at a fraction of the cost of a pass each?

A step rewrites what stands at a prompt's last token, and attention is causal: nothing before that token changes. So all
steps of a prompt stand side by side behind its tokens in one row, as if each were the last: they share its position,
see the tokens before it and themselves, and not each other. Only the blocks from the written one to the read one are
run, and every token of the prompt is run once, however many steps there are.

Before this is believed, the first, the middle and the last step of one prompt of each end of the lengths are compared
with whole passes of the model in which the step is hooked in, and the untouched pass with the model's own; where no
kernel gives that, every step is a hooked pass, with a warning.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.engine.climb import TOKENS_A_PASS
from safetyheads.interventions.paths import Step
from safetyheads.interventions.site import Site
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.models.replaying import BlockCall, mask_of, visible_keys
from safetyheads.models.watching import watch_states
from safetyheads.prompts import TokenBatch

STEPS_A_ROW = 128
"""Steps that stand in one row, at most: each looks at all others to find that it must not see them."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""By how much of the largest state a kernel may differ from the model's own pass; 0.1 in half precision."""


@runtime_checkable
class Given(Protocol):
    """What holds in every pass of a walk: heads or a direction ablated, layers bypassed."""

    def active(self, model: HookedModel) -> contextlib.AbstractContextManager[None]: ...


class Walked(NamedTuple):
    """What the steps of some prompts come to."""

    prompts: tuple[int, ...]
    """Which prompts of the batch these are."""
    states: Float[Tensor, "prompt step d_model"]
    """What leaves the read block at the last token."""


@dataclass(frozen=True, eq=False)
class Walk:
    """The steps of a walk over prompts, ready to be run; `prepare_walk` makes one."""

    model: HookedModel
    batch: TokenBatch
    steps: tuple[Step, ...]
    read: int
    """What leaves this block is read."""
    given: Given | None
    kernel: str | None
    """How blocks are run; None: whole hooked passes."""
    deviation: float
    """By how much of the largest state the steps differ from whole hooked passes, where they were compared."""
    calls: tuple[BlockCall, ...]
    """What the model passes to its blocks on its longest prompt."""

    @property
    def checked(self) -> list[int]:
        """A longest and a shortest prompt, on which the walk is checked."""
        return extremes(self.batch)

    def of(self, prompt: int, steps: Sequence[Step]) -> "Walk":
        """Some of the steps, in an order, of one prompt alone."""
        own = tuple(Step(step.layer, step.points[[prompt]], step.share) for step in steps)
        return replace(self, batch=self.batch.select([prompt]), steps=own)

    def run(self, rows: int | None = None) -> Iterator[Walked]:
        """The prompts' states, those of a pass at a time; `rows` bounds the prompts of a pass."""
        for prompts in self._together(rows):
            yield Walked(tuple(prompts), self._states(prompts))

    def apart(self, prompt: int, steps: Sequence[Step]) -> float:
        """By how much of the largest state some steps of a prompt differ from whole hooked passes."""
        some = self.of(prompt, steps)
        got, expected = some._states([0])[0], some._plainly([0])[0]
        if not torch.equal(got.isnan(), expected.isnan()):
            return math.inf
        difference, size = (t.nan_to_num().abs().max() for t in (got - expected, expected))
        return float(difference / size.clamp_min(1e-30))

    def _together(self, rows: int | None) -> Iterator[list[int]]:
        """Prompts of the same length, as many as a pass holds."""
        by_length: dict[int, list[int]] = {}
        for prompt, length in enumerate(self.batch.lengths.tolist()):
            by_length.setdefault(length, []).append(prompt)
        budget = TOKENS_A_PASS.get(self.model.device.type, TOKENS_A_PASS["cuda"])
        for length, prompts in sorted(by_length.items()):
            tokens = length - 1 + min(len(self.steps), STEPS_A_ROW)
            size = rows or max(1, round(budget / tokens))
            parts = -(-len(prompts) // size)
            yield from (prompts[n::parts] for n in range(parts))

    @torch.inference_mode()
    def _states(self, prompts: Sequence[int]) -> Float[Tensor, "prompt step d_model"]:
        points = torch.stack([step.points[list(prompts)] for step in self.steps], 1)
        if self.kernel is None:
            return self._plainly(prompts)
        ids, layer = self.batch.select(prompts).ids.to(self.model.device), self.steps[0].layer
        with during(self.given, self.model):
            return run_steps(self.model, ids, self.calls, layer, self.read, points, self.kernel)

    def _plainly(self, prompts: Sequence[int]) -> Float[Tensor, "prompt step d_model"]:
        about = self.read, self.given
        found = [
            torch.stack([plain_step(self.model, self.batch, p, s, *about) for s in self.steps])
            for p in prompts
        ]
        return torch.stack(found)


@torch.inference_mode()
def prepare_walk(
    model: HookedModel,
    batch: TokenBatch,
    steps: Sequence[Step],
    read: int,
    given: Given | None = None,
) -> Walk:
    """Choose the fastest kernel that gives what whole passes give, and remember by how much it differs.

    Raises ValueError for steps at different layers or none, for points that do not fit, and for a reading below the
    written layer or above the model.
    """
    _require(model, batch, steps, read)
    checked = extremes(batch)
    longest = checked[0]
    compared = [steps[0], steps[len(steps) // 2], steps[-1]]
    tolerance = TOLERANCE.get(model.dtype, 0.1)
    kernels = [name for name in Blocks(model).kernels if name != "packed"]
    worst = math.inf
    calls = tuple(Blocks(model).record(batch.ids[longest : longest + 1].to(model.device))[1])
    # Only the bridge's own blocks have the hook points where something is given.
    for kernel in ["hooked"] if given is not None else kernels:
        walk = Walk(model, batch, tuple(steps), read, given, kernel, 0.0, calls)
        worst = max(walk.apart(prompt, compared) for prompt in checked)
        if worst <= tolerance:
            return replace(walk, deviation=worst)
    warnings.warn(
        f"{model.name}: steps run side by side differ from the model's own forward pass (by {worst:.2g} of the largest "
        "state); every step is run by a plain hooked forward pass instead, which is exact and slow",
        stacklevel=3,
    )
    return Walk(model, batch, tuple(steps), read, given, None, 0.0, calls)


def extremes(batch: TokenBatch) -> list[int]:
    """A longest prompt, and a shortest where it is another."""
    return list(dict.fromkeys((int(batch.lengths.argmax()), int(batch.lengths.argmin()))))


def run_steps(
    model: HookedModel,
    ids: Int[Tensor, "prompt pos"],
    calls: Sequence[BlockCall],
    layer: int,
    read: int,
    points: Float[Tensor, "prompt step d_model"],
    kernel: str,
) -> Float[Tensor, "prompt step d_model"]:
    """What leaves block `read` where each point stands in the place of what enters `layer` at the last token."""
    blocks, before = Blocks(model), ids.shape[1] - 1
    resid = blocks.embed(ids)
    for below in range(layer):
        resid = blocks.run(below, resid, side_by_side(calls[below], before, 1), kernel=kernel)
    prefix, parts = resid[:, :before], []
    for some in points.to(resid).split(STEPS_A_ROW, dim=1):
        row = torch.cat([prefix, some], 1)
        for at in range(layer, read + 1):
            row = blocks.run(at, row, side_by_side(calls[at], before, some.shape[1]), kernel=kernel)
        parts.append(row[:, before:])
    return torch.cat(parts, 1)


def side_by_side(call: BlockCall, before: int, steps: int) -> BlockCall:
    """The call for `before` tokens and, behind them, `steps` that each stand at the next position, from a recorded one
    on at least as many tokens."""
    passed = (*call.args, *call.kwargs.values())
    old = mask_of(passed)
    device = next((v.device for v in passed if isinstance(v, Tensor)), torch.device("cpu"))
    place = torch.tensor([*range(before), *[before] * steps], device=device)
    size = before + 1 if old is None else old.shape[-1]
    visible = visible_keys(passed, size, size, device)[:, place][:, :, place]
    # A step sees what the last token sees, and of the steps itself alone.
    visible[:, before:, before:] = torch.eye(steps, dtype=torch.bool, device=device)
    mask = _in_form(visible[:, None], old)

    def fanned(value: Any) -> Any:
        from transformers import Cache

        if isinstance(value, tuple):
            return tuple(map(fanned, value))
        if isinstance(value, Cache):
            return None
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        return mask if value.ndim == 4 else value[:, place]

    kwargs = {name: fanned(value) for name, value in call.kwargs.items()}
    if old is None:
        kwargs["attention_mask"] = mask
    return BlockCall(tuple(map(fanned, call.args)), {**kwargs, "use_cache": False})


def _in_form(visible: Tensor, like: Tensor | None) -> Tensor:
    """A mask in the form in which the model passes its own: which keys are seen, or what is added to the scores."""
    if like is None or like.dtype == torch.bool:
        return visible
    lowest = torch.finfo(like.dtype).min
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill(~visible, lowest)


@torch.inference_mode()
def plain_step(
    model: HookedModel,
    batch: TokenBatch,
    prompt: int,
    step: Step | None,
    read: int,
    given: Given | None = None,
) -> Float[Tensor, " d_model"]:
    """What leaves a block at the last token of a prompt, from a whole pass of the model with the step hooked in; what
    is given is done to the step too."""
    length = int(batch.lengths[prompt])
    ids = batch.ids[prompt : prompt + 1, :length].to(model.device)
    lengths = torch.tensor([length], device=model.device)
    kept: list[Tensor] = []

    def keep(name: str, _layer: int, states: Tensor, _start: int) -> None:
        if name == "resid_post":
            kept.append(states[0, -1].clone())

    site = Site(model, 0, (prompt,), lengths, 0, torch.zeros(1, dtype=model.dtype), None, {})
    stepping = step.plainly(site) if step is not None else contextlib.nullcontext()
    with stepping, during(given, model):
        watch_states(model, ids, [read], keep)
    return kept[-1]


def during(given: Given | None, model: HookedModel) -> contextlib.AbstractContextManager[None]:
    """Within the context, what is given holds."""
    return contextlib.nullcontext() if given is None else given.active(model)


def _require(model: HookedModel, batch: TokenBatch, steps: Sequence[Step], read: int) -> None:
    layers = sorted({step.layer for step in steps})
    if len(layers) != 1 or len(steps) < 2:
        raise ValueError(
            f"{len(steps)} steps at the layers {layers}; a walk has at least 2, all at one layer"
        )
    if not 0 <= layers[0] <= read < model.n_layers:
        raise ValueError(
            f"the walk writes what enters layer {layers[0]} and reads what leaves layer {read}; {model.name} has "
            f"layers 0-{model.n_layers - 1}, and what is read must not lie below what is written"
        )
    expected = len(batch), model.d_model
    for step in steps:
        if tuple(step.points.shape) != expected:
            raise ValueError(
                f"a step's points have shape {list(step.points.shape)}; {model.name} and {len(batch)} prompts take "
                f"{list(expected)}"
            )
