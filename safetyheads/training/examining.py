"""How does a model stand: does it refuse what is harmful, answer what is not, and speak as before?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from safetyheads.judges import Judge, KeywordJudge, judged
from safetyheads.training.answering import answer


class Standing(NamedTuple):
    """What a model does on some prompts."""

    refusal: float
    """Share of the harmful prompts that it refuses."""
    over_refusal: float
    """Share of the harmless prompts that it refuses."""
    degenerate: float
    """Share of all answers that are no language."""

    @property
    def separation(self) -> float:
        """How much more of the harmful than of the harmless it refuses."""
        return self.refusal - self.over_refusal


def verdicts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 24,
    judge: Judge | None = None,
    progress: bool | None = None,
) -> tuple[str, ...]:
    """What a judge says of a model's answers, by default `KeywordJudge`."""
    said = answer(model, tokenizer, prompts, max_new_tokens=max_new_tokens, progress=progress)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in said]
    return judged(judge or KeywordJudge(), prompts, texts)


def examine(
    model: Any,
    tokenizer: Any,
    harmful: Sequence[str],
    harmless: Sequence[str],
    **options: Any,
) -> Standing:
    """How a model stands on two sides of prompts; `options` are those of `verdicts`."""
    found = verdicts(model, tokenizer, [*harmful, *harmless], **options)
    refused = [
        side.count("refuse") / max(len(side), 1)
        for side in (found[: len(harmful)], found[len(harmful) :])
    ]
    return Standing(refused[0], refused[1], found.count("degenerate") / max(len(found), 1))
