"""How is a sibling made? Lessons, a loss, perhaps an adversary; checkpoints, examinations, and an end in time."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safetyheads.progress import bar
from safetyheads.storage.files import writable_folder, write_whole
from safetyheads.training.examining import examine
from safetyheads.training.exercises import Exercises, Shelf, batches, losses
from safetyheads.training.perturbing import perturb
from safetyheads.training.recipes import TARGETS, Recipe
from safetyheads.training.tails import Tail

CHANCE = 0.1
"""About one standard error of a separation, at the 36 harmful and 44 harmless prompts of an examination."""


@dataclass(frozen=True, eq=False)
class School:
    """A model with an adapter, what it learns from and what it is examined on."""

    model: Any
    """The Hugging Face model, the adapter's matrices in it."""
    tokenizer: Any
    exercises: Exercises
    harmful: tuple[str, ...]
    """Held-out prompts that are to be refused."""
    harmless: tuple[str, ...]
    held_out: Exercises
    """Harmless held-out lessons with the model's own answers."""


def adapted(model: Any, recipe: Recipe) -> Any:
    """A model with PEFT's LoRA matrices in its layers from `recipe.first_layer` on; the model is changed in place."""
    from peft import LoraConfig, get_peft_model

    depth = len(model.get_decoder().layers)
    if recipe.first_layer >= depth:
        raise ValueError(f"first_layer is {recipe.first_layer}, and the model has {depth} layers")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(TARGETS),
        layers_to_transform=list(range(recipe.first_layer, depth)),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return get_peft_model(model, config)


def train(
    school: School, recipe: Recipe, folder: str | Path, progress: bool | None = None
) -> list[dict[str, float]]:
    """Train, and return the curve: what each examination found, by step.

    Each examination leaves a checkpoint in `folder`; a run that was killed goes on from the last.
    """
    folder = writable_folder(folder)
    model = school.model
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.learning_rate, weight_decay=0.0)
    curve, lost = _resume(folder, recipe, trained, optimizer)
    tail = Tail(model, recipe.tail, school.exercises.beginning)
    shelf = Shelf(tail, school.exercises.rows)
    held_out = Shelf(tail, school.held_out.rows)
    done = int(curve[-1]["step"]) if curve else -1
    if not curve:
        curve = [_examination(school, tail, held_out, 0, None)]
        _keep(folder, recipe, curve, trained, optimizer, 0)
        done = 0
    order = batches(school.exercises.rows, recipe.batch, recipe.steps, recipe.seed)
    with bar(recipe.steps, f"training {recipe.kind}", "step", progress, done=done) as shown:
        for step, chosen in enumerate(order, 1):
            if step <= done:
                continue
            shown.update(1)
            if _finished(curve, recipe):
                break
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, recipe)
            lost.append(_step(tail, shelf, chosen, recipe, optimizer, trained, step))
            if step % recipe.examine_every == 0 or step == recipe.steps:
                mean = sum(lost) / len(lost)
                curve.append(_examination(school, tail, held_out, step, mean))
                lost.clear()
                _keep(folder, recipe, curve, trained, optimizer, step)
                shown.set_postfix(separation=f"{_separation(curve[-1]):.2f}")
    return curve


def best_step(curve: Sequence[dict[str, float]]) -> int:
    """The examined step that separates best and speaks best: of those with few degenerate answers whose separation is
    within `CHANCE` of the largest, the one with the lowest loss of harmless answers. Where a training begins is none
    of its steps."""
    trained = [point for point in curve if point["step"]] or list(curve)
    usable = [point for point in trained if point["degenerate"] <= 0.05] or trained
    largest = max(map(_separation, usable))
    near = [point for point in usable if _separation(point) >= largest - CHANCE]
    return int(min(near, key=lambda point: point["harmless_loss"])["step"])


def _separation(point: dict[str, float]) -> float:
    return point["refusal"] - point["over_refusal"]


def _finished(curve: Sequence[dict[str, float]], recipe: Recipe) -> bool:
    best = [point["step"] for point in curve].index(best_step(curve))
    return len(curve) - 1 - best >= recipe.patience


def _rate(step: int, recipe: Recipe) -> float:
    """The learning rate: a rise, then half a cosine down to a tenth."""
    if step <= recipe.warm_up:
        return recipe.learning_rate * step / recipe.warm_up
    share = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * (0.55 + 0.45 * math.cos(math.pi * share))


def _step(
    tail: Tail,
    shelf: Shelf,
    chosen: list[int],
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    trained: dict[str, Tensor],
    step: int,
) -> float:
    batch = shelf.take(chosen)
    states = batch.states
    context = tail.context()
    if recipe.perturbed_layer is not None:
        lent = [(keys.detach(), values.detach()) for keys, values in context]
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        with _still(trained):
            states = perturb(
                states,
                batch.request,
                lambda changed: losses(tail, batch, changed, lent),
                recipe.ascent,
                generator,
            )
    loss = losses(tail, batch, states, context).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    optimizer.step()
    return float(loss.detach())


class _still:
    """Weights that ask for no gradient while the adversary climbs."""

    def __init__(self, trained: dict[str, Tensor]) -> None:
        self.trained = trained

    def __enter__(self) -> None:
        for weight in self.trained.values():
            weight.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for weight in self.trained.values():
            weight.requires_grad_(True)


def _examination(
    school: School, tail: Tail, held_out: Shelf, step: int, loss: float | None
) -> dict[str, float]:
    found = examine(
        school.model,
        school.tokenizer,
        school.harmful,
        school.harmless,
        max_new_tokens=8,
        progress=False,
    )
    with torch.no_grad():
        batch = held_out.take(range(len(held_out.rows)))
        own = float(losses(tail, batch, batch.states, tail.context()).mean())
    told = {"step": float(step), **found._asdict(), "harmless_loss": own}
    return told if loss is None else told | {"loss": loss}


def _keep(
    folder: Path,
    recipe: Recipe,
    curve: list[dict[str, float]],
    trained: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """A checkpoint; the curve is written last, so what it names is whole."""
    import io

    kept = io.BytesIO()
    state = {name: weight.detach() for name, weight in trained.items()}
    torch.save({"weights": state, "optimizer": optimizer.state_dict()}, kept)
    write_whole(folder / f"step-{step:04d}.pt", kept.getvalue())
    told = {"recipe": asdict(recipe), "curve": curve}
    write_whole(folder / "curve.json", json.dumps(told, indent=1).encode())


def _resume(
    folder: Path, recipe: Recipe, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, float]], list[float]]:
    path = folder / "curve.json"
    if not path.is_file():
        return [], []
    told = json.loads(path.read_text())
    if told["recipe"] != json.loads(json.dumps(asdict(recipe))):
        raise ValueError(f"{folder} holds a training by another recipe; name another folder")
    curve = told["curve"]
    kept = torch.load(folder / f"step-{int(curve[-1]['step']):04d}.pt", weights_only=True)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(kept["weights"][name])
    optimizer.load_state_dict(kept["optimizer"])
    return curve, []
