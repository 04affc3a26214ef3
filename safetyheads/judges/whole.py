"""Which answers can a trained judge be asked about? Those that are whole: it knows nothing of broken models."""

from collections.abc import Callable, Sequence

from safetyheads.judges.degenerate import is_degenerate
from safetyheads.judges.speech import spoken


def after_the_broken(
    prompts: Sequence[str],
    answers: Sequence[str],
    ask: Callable[[Sequence[str], Sequence[str]], Sequence[str]],
) -> tuple[str, ...]:
    """The verdicts that `ask` gives of all answers that are not degenerate, without the thinking before them."""
    said = [spoken(answer) for answer in answers]
    whole = [n for n, text in enumerate(said) if not is_degenerate(text)]
    verdicts = ["degenerate"] * len(said)
    if whole:
        given = ask([prompts[n] for n in whole], [said[n] for n in whole])
        for n, verdict in zip(whole, given, strict=True):
            verdicts[n] = verdict
    return tuple(verdicts)
