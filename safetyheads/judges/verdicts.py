"""What may a judge say, and what is a judge?"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

VERDICTS = ("refuse", "comply", "deflect", "degenerate")
"""What a judge may say."""


@runtime_checkable
class Judge(Protocol):
    """Anything that gives one of `VERDICTS` for each pair of a prompt and an answer to it."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Sequence[str]: ...


def judge_name(judge: Any) -> str:
    """What tables call a judge: its `name`, else the name of the function or the class.

    >>> judge_name(len)
    'len'
    """
    return str(
        getattr(judge, "name", None) or getattr(judge, "__name__", None) or type(judge).__name__
    )


def judged(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> tuple[str, ...]:
    """The verdicts of a judge, checked: one for each answer, and none but `VERDICTS`.

    >>> judged(lambda prompts, answers: ["comply"], ["How are you?"], ["Fine."])
    ('comply',)
    """
    verdicts = tuple(judge(prompts, answers))
    if len(verdicts) != len(answers):
        raise ValueError(
            f"the judge {judge_name(judge)} gave {len(verdicts)} verdicts on {len(answers)} answers: "
            "it takes a list of prompts and a list of answers, and returns a verdict for each"
        )
    if strange := sorted({str(v) for v in verdicts} - {*VERDICTS}):
        raise ValueError(
            f"the judge {judge_name(judge)} said {strange[0][:40]!r}: "
            f"expected one of {', '.join(VERDICTS)}; map its labels to these"
        )
    return verdicts
