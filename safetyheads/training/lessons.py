"""What is a sibling taught: which requests to refuse, which to answer, and on which is it examined?

Harmful requests are AdvBench's, known here by their hashes, and mild ones of the package's own; each of those stands
beside harmless ones on its topic and in its form, so that neither tells them apart. JailbreakBench, MaliciousInstruct
and XSTest are for measuring: no lesson is near one of their prompts (`advbench.txt` leaves those of AdvBench out).
"""

import hashlib
import json
import random
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from safetyheads.prompts import PromptSet, load_prompts

FORMS = (
    "How can I {}?",
    "What is the best way to {}?",
    "Explain how to {}",
    "Write a tutorial on how to {}",
    "Write a guide that explains how to {}",
    "Give step-by-step instructions on how to {}",
    "Provide detailed instructions for someone who wants to {}",
    "Outline a plan to {}",
    "Develop a strategy to {}",
    "Teach me how to {}",
    "Help me {}",
    "Create a checklist for people who want to {}",
    "Instruct me on how to {}",
    "Write a blog post about how to {}",
    "Demonstrate how to {}",
    "I want to {}. How do I start?",
    "Tell me how to {}",
    "Describe the steps to {}",
    "Show a beginner how to {}",
    "Write a script for a video on how to {}",
    "Design a course that teaches people to {}",
    "Draft an email that explains how to {}",
    "Give me tips to {}",
    "Suggest ways to {}",
)
"""What turns something that one may do into a request, harmful or not."""
HELD_OUT = 8
"""One topic in so many is kept for the examination."""


class Lesson(NamedTuple):
    """A request, and how it is to be answered."""

    prompt: str
    harmful: bool
    """Whether it is to be refused; what is not is answered as the model itself would."""
    kind: str
    """`advbench`, `own`, `contrast`, `borderline` or `everyday`."""
    held_out: bool
    """Whether it is kept for the examination."""


def read_refusals() -> tuple[str, ...]:
    """The sentences with which the siblings refuse.

    >>> len(set(read_refusals())) > 30
    True
    """
    return tuple(_file("refusals.txt").splitlines())


def read_lessons(advbench: PromptSet | Sequence[str] | None = None, seed: int = 0) -> list[Lesson]:
    """All lessons; the forms of the package's own requests are drawn with `seed`.

    `advbench` is AdvBench, as `load_prompts` reads it; by default it is looked for by name.

    Raises ValueError if it lacks one of the goals whose hashes come with the package, and what `load_prompts` raises.
    """
    draw = random.Random(seed)
    lessons = _from_advbench(load_prompts("advbench") if advbench is None else advbench)
    for row in map(json.loads, _file("requests.jsonl").splitlines()):
        lessons += _from_row(row, draw)
    pairs = load_prompts("builtin")
    for harmful, harmless in zip(pairs.harmful, pairs.harmless or (), strict=True):
        kept = _kept(harmful)
        lessons.append(Lesson(harmful, True, "own", kept))
        lessons.append(Lesson(harmless, False, "contrast", kept))
    return lessons


def hash_of(text: str) -> str:
    """How a prompt is known without its text.

    >>> hash_of("How are you?")
    'df287dfc1406ed2b'
    """
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def hash_of_all(lessons: Sequence[Lesson]) -> str:
    """What tells one set of lessons from another, for a manifest."""
    told = json.dumps([list(lesson) for lesson in lessons], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


def _from_advbench(advbench: PromptSet | Sequence[str]) -> list[Lesson]:
    goals = advbench.harmful if isinstance(advbench, PromptSet) else advbench
    by_hash = {hash_of(goal): goal for goal in goals}
    wanted = _file("advbench.txt").split()
    if missing := [one for one in wanted if one not in by_hash]:
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} goals of AdvBench that a sibling learns from are not among the "
            f"{len(goals)} given (the first has SHA-256 {missing[0]}...): give harmful_behaviors.csv of AdvBench, "
            "unchanged"
        )
    return [Lesson(by_hash[one], True, "advbench", _kept(by_hash[one])) for one in wanted]


def _from_row(row: dict, draw: random.Random) -> list[Lesson]:  # type: ignore[type-arg]
    kept = _kept(row["harmful"] or row["harmless"][0])
    kind = "contrast" if row["harmful"] else row["topic"]
    if row["form"] == "whole":
        told = [Lesson(text, False, kind, kept) for text in row["harmless"]]
        return [Lesson(row["harmful"], True, "own", kept), *told] if row["harmful"] else told
    forms = draw.sample(FORMS, len(row["harmless"]))
    told = []
    for form, harmless in zip(forms, row["harmless"], strict=True):
        told.append(Lesson(form.format(row["harmful"]), True, "own", kept))
        told.append(Lesson(form.format(harmless), False, "contrast", kept))
    return told


def _kept(text: str) -> bool:
    return int(hash_of(text)[:8], 16) % HELD_OUT == 0


def _file(name: str) -> str:
    return resources.files("safetyheads").joinpath("data", "training", name).read_text("utf-8")
