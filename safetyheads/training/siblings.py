"""How is a sibling of a chat model made, from the model's name to an adapter that opens?

    safetyheads train ssft --advbench shared/data --out ssft
    safetyheads train lat --start ssft --out lat

As in the paper, whose AT and LAT models go on from a chat model that was taught to refuse before, the second and third
kind begin where a first ended.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from safetyheads.judges import KeywordJudge
from safetyheads.models.checkpoints import Checkpoint, load_checkpoint
from safetyheads.models.checkpoints.adapters import (
    ADAPTER,
    BASE,
    WEIGHTS,
    check_adapter,
    read_adapter,
)
from safetyheads.prompts import PromptSet
from safetyheads.storage.files import writable_folder, write_whole
from safetyheads.training.answering import answer
from safetyheads.training.exercises import Exercise, write_exercises
from safetyheads.training.lessons import Lesson, hash_of, hash_of_all, read_lessons
from safetyheads.training.recipes import TARGETS, Recipe
from safetyheads.training.trainer import School, adapted, best_step, train

EXAMINED, EVERYDAY, LISTENED = 36, 8, 24
"""Held-out prompts of an examination: harmful and as many harmless on their topics, everyday ones, and those whose
loss is taken."""
AT_A_TIME = 48
"""Answers between two times that they are kept."""


def train_sibling(
    model: str | Path,
    recipe: Recipe,
    folder: str | Path,
    *,
    advbench: PromptSet | Sequence[str] | None = None,
    start: str | Path | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> Path:
    """Train a sibling of a chat model, and return the folder of its adapter, `folder/adapter`.

    `model` is a name or a path that `load_model` takes, of Llama's kin. `advbench` is AdvBench as `load_prompts` reads
    it; by default it is looked for by name. `start` is a folder with an adapter of the same model and shape, to go on
    from. A run that was killed goes on where it was when the same call is made again.

    Raises ImportError without peft, ValueError for a model without a chat template, an adapter to start from that is
    another model's, a folder that holds a training by another recipe, and what `load_checkpoint` and `load_prompts`
    raise.
    """
    _require_peft()
    folder = writable_folder(folder)
    checkpoint = load_checkpoint(model, device=device)
    checkpoint.model.set_attn_implementation("sdpa")
    lessons = read_lessons(advbench, recipe.seed)
    lessons, answers = _answered(checkpoint, lessons, recipe, folder, progress)
    base_sha256 = checkpoint.provenance.get("sha256")
    begun = None if start is None else read_adapter(Path(start))
    if begun is not None:
        check_adapter(begun, checkpoint.model, base_sha256)
    adapted(checkpoint.model, recipe)
    if begun is not None:
        _put(checkpoint.model, begun)
    school = _school(checkpoint, lessons, answers, recipe)
    curve = train(school, recipe, folder, progress)
    step = best_step(curve)
    kept = torch.load(folder / f"step-{step:04d}.pt", weights_only=True)["weights"]
    card = {
        "base": str(model),
        "base_sha256": base_sha256,
        "recipe": asdict(recipe),
        "start": None if start is None else _hash_of_file(Path(start) / WEIGHTS),
        "step": step,
        "curve": curve,
        "lessons": {**_counts(lessons), "sha256": hash_of_all(lessons)},
        "torch": torch.__version__,
    }
    return write_adapter(folder / "adapter", kept, recipe, card)


def write_adapter(
    folder: Path, weights: dict[str, torch.Tensor], recipe: Recipe, card: dict[str, Any]
) -> Path:
    """Write an adapter in half precision, with its settings as peft writes them and a card that says how it came."""
    from safetensors.torch import save

    folder = writable_folder(folder)
    halved = {}
    for name, weight in weights.items():
        module = name.replace(".default", "")
        halved[f"base_model.model.{module}"] = weight.to("cpu", torch.float16).contiguous()
    layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in weights})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": card["base"],
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": list(TARGETS),
        "layers_to_transform": layers,
    }
    about = {"format": "pt"} | ({BASE: card["base_sha256"]} if card["base_sha256"] else {})
    write_whole(folder / WEIGHTS, save(halved, metadata=about))
    write_whole(folder / ADAPTER, json.dumps(settings, indent=1).encode())
    write_whole(folder / "card.json", json.dumps(card, indent=1).encode())
    return folder


def _require_peft() -> None:
    """Said before the harmless lessons are answered, which takes minutes."""
    if find_spec("peft") is None:
        raise ImportError("a sibling is trained with peft: pip install 'safetyheads[training]'")


def _answered(
    checkpoint: Checkpoint,
    lessons: list[Lesson],
    recipe: Recipe,
    folder: Path,
    progress: bool | None,
) -> tuple[list[Lesson], list[list[int]]]:
    """The lessons with the model's own answers to the harmless ones; those that it refuses or garbles are left out."""
    path = folder / "answers.json"
    known: dict[str, list[int]] = json.loads(path.read_text()) if path.is_file() else {}
    asked = [lesson.prompt for lesson in lessons if not lesson.harmful]
    left = sorted((text for text in asked if hash_of(text) not in known), key=len)
    for first in range(0, len(left), AT_A_TIME):
        some = left[first : first + AT_A_TIME]
        said = answer(
            checkpoint.model,
            checkpoint.tokenizer,
            some,
            max_new_tokens=recipe.answer_tokens,
            rows=AT_A_TIME,
            progress=progress,
        )
        known |= {hash_of(text): row for text, row in zip(some, said, strict=True)}
        write_whole(path, json.dumps(known).encode())
    texts = [checkpoint.tokenizer.decode(known[hash_of(text)]) for text in asked]
    verdicts = dict(zip(asked, KeywordJudge()(asked, texts), strict=True))
    taught = [one for one in lessons if verdicts.get(one.prompt) not in ("refuse", "degenerate")]
    return taught, [[] if one.harmful else known[hash_of(one.prompt)] for one in taught]


def _school(
    checkpoint: Checkpoint, lessons: list[Lesson], answers: list[list[int]], recipe: Recipe
) -> School:
    """What is learnt, and what the examinations ask."""
    tokenizer = checkpoint.tokenizer
    written = write_exercises(lessons, answers, tokenizer, recipe.answer_tokens, recipe.seed)
    taught = [row for row, one in zip(written.rows, lessons, strict=True) if not one.held_out]
    kept = [(one, row) for one, row in zip(lessons, written.rows, strict=True) if one.held_out]
    random.Random(0).shuffle(kept)  # the same questions, whatever the seed of a training
    harmful = [one.prompt for one, _ in kept if one.harmful]
    near = [one.prompt for one, _ in kept if not one.harmful and one.kind != "everyday"]
    everyday = [one.prompt for one, _ in kept if one.kind == "everyday"]
    own: list[Exercise] = [row for _, row in kept if not row.harmful]
    return School(
        checkpoint.model,
        tokenizer,
        written._replace(rows=taught),
        tuple(harmful[:EXAMINED]),
        (*near[:EXAMINED], *everyday[:EVERYDAY]),
        written._replace(rows=own[:LISTENED]),
    )


@torch.no_grad()
def _put(model: Any, adapter: Any) -> None:
    """An adapter's matrices in the place of a new one's."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            module, side = name.rsplit(".lora_", 1)
            found = adapter.pairs[module][side.startswith("B")]
            if found.shape != weight.shape:
                raise ValueError(
                    f"the adapter to start from has rank {min(found.shape)} and the recipe another: give --rank "
                    f"{min(found.shape)}"
                )
            weight.copy_(found)


def _counts(lessons: list[Lesson]) -> dict[str, int]:
    kinds = sorted({one.kind for one in lessons})
    told = {kind: sum(one.kind == kind for one in lessons) for kind in kinds}
    return {**told, "held_out": sum(one.held_out for one in lessons)}


def _hash_of_file(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
