"""What does the model say, with and without its heads?

Answers are generated with the KV cache and an intervention active, and each is judged (`judges/`): refuse, comply,
deflect or degenerate. `measure_behaviour` gives the rates with Wilson intervals, over-refusal on harmless prompts among
them.

Zhou et al. (arXiv:2410.13708) call every answer without a refusal keyword a successful attack. Here an attack succeeds
where the answer complies, so that a broken model is not a jailbroken one; 1 - (rate of `refuse`) is their quantity.

Texts are not kept unless asked for: an answer is its verdict, its length and a hash.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetyheads.inputs import SIDES, Inputs, Side, prepare
from safetyheads.interventions.named import all_active, named_interventions
from safetyheads.judges import VERDICTS, Judge, KeywordJudge, judge_name, judged
from safetyheads.metrics import RefusalShift, refusal_tokens
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.generation import (
    GREEDY,
    Decoding,
    Generated,
    as_decoding,
    generate,
)
from safetyheads.progress import bar
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.stats import cohen_kappa, wilson_interval
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

FIRST_TOKEN = "first_token"
"""The name of the first token's log-odds, read as a judge that only knows refusals."""


@dataclass(frozen=True)
class Answer:
    """One answer: what was asked, under which intervention, and what the judges said."""

    dataset: str
    """The prompt set."""
    side: str
    """"harmful" or "harmless"."""
    prompt: int
    """The prompt's place in its half of the set, from 0."""
    intervention: str
    """The name of what was done to the model."""
    verdicts: tuple[str, ...]
    """What each judge said; the first counts."""
    refusal_log_odds: float
    """Log-odds that the first token begins a refusal, in nats; NaN where no such token is known."""
    tokens: int
    """Length of the answer."""
    ended: bool
    """Whether the model ended it itself."""
    digest: str
    """SHA-256 of the text (the first 16 hex digits)."""
    text: str | None = field(default=None, repr=False)
    """The text, if it was asked for."""


@dataclass(frozen=True, repr=False)
class Behaviour:
    """The judged answers of one model under several interventions."""

    answers: tuple[Answer, ...]
    """All answers."""
    judges: tuple[str, ...]
    """The judges' names, in the order of `Answer.verdicts`."""
    model: str
    """Name of the model."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """What determines the answers."""

    def __repr__(self) -> str:
        pairs = self.agreement()
        pairs = pairs[(pairs["intervention"] == "all") & pairs["second"].isin(self.judges)]
        kappas = ", ".join(
            f"{a} and {b} κ {k:.2f}"
            for a, b, k in zip(pairs["first"], pairs["second"], pairs["kappa"], strict=True)
        )
        names = dict.fromkeys(answer.intervention for answer in self.answers)
        judges = kappas or f"one judge ({self.judges[0]}), so that κ is not known"
        return f"Behaviour({self.model}, {len(self.answers)} answers, {', '.join(names)}; {judges})"

    def to_frame(self) -> "pandas.DataFrame":
        """A row an answer: model, dataset, side, prompt, intervention, verdict, a column for each further judge,
        refusal_log_odds [nat], tokens, ended, digest, text."""
        import pandas

        rows = []
        for answer in self.answers:
            others = zip(self.judges[1:], answer.verdicts[1:], strict=True)
            rows.append(
                {
                    "model": self.model,
                    "dataset": answer.dataset,
                    "side": answer.side,
                    "prompt": answer.prompt,
                    "intervention": answer.intervention,
                    "verdict": answer.verdicts[0],
                    **{f"verdict_{name}": verdict for name, verdict in others},
                    "refusal_log_odds": answer.refusal_log_odds,
                    "tokens": answer.tokens,
                    "ended": answer.ended,
                    "digest": answer.digest,
                    "text": answer.text,
                }
            )
        return pandas.DataFrame(rows)

    def rates(self, judge: str | None = None) -> "pandas.DataFrame":
        """How often each verdict was given: model, dataset, side, intervention, verdict, count, n, rate, low, high.

        `low` and `high` are Wilson's 95 % interval. Attack success is `comply` on the harmful side, over-refusal
        `refuse` on the harmless side. `judge` names another judge than the first.
        """
        import pandas

        rows = []
        for (dataset, side, name), given in self.verdicts(judge).items():
            for verdict in VERDICTS:
                count, n = given.count(verdict), len(given)
                low, high = wilson_interval(count, n)
                rows.append(
                    (self.model, dataset, side, name, verdict, count, n, count / n, low, high)
                )
        columns = [
            "model",
            "dataset",
            "side",
            "intervention",
            "verdict",
            "count",
            "n",
            "rate",
            "low",
            "high",
        ]
        return pandas.DataFrame(rows, columns=columns)

    def agreement(self) -> "pandas.DataFrame":
        """How far the judges agree beyond chance: intervention, first, second, kappa, agreed, n.

        A row for each pair of judges over all answers ("all") and under each intervention. `first_token` calls an
        answer a refusal where the first token's log-odds are above 0; beside it the other judge counts as refusing or
        not. `kappa` is Cohen's, `agreed` the plain share; NaN where both only ever say one word.
        """
        import pandas

        names = list(dict.fromkeys(answer.intervention for answer in self.answers))
        rows = []
        for intervention in ("all", *names):
            some = [a for a in self.answers if intervention in ("all", a.intervention)]
            said: dict[str, list[Any]] = {
                judge: [a.verdicts[place] for a in some] for place, judge in enumerate(self.judges)
            }
            pairs: list[Any] = [
                (a, b, said[a], said[b]) for a, b in itertools.combinations(said, 2)
            ]
            if not any(math.isnan(a.refusal_log_odds) for a in some):
                odds = [a.refusal_log_odds > 0 for a in some]
                pairs += [
                    (judge, FIRST_TOKEN, [v == "refuse" for v in said[judge]], odds)
                    for judge in self.judges
                ]
            for first, second, ours, theirs in pairs:
                agreed = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(some)
                kappa = cohen_kappa(ours, theirs)
                rows.append((intervention, first, second, kappa, agreed, len(some)))
        columns = ["intervention", "first", "second", "kappa", "agreed", "n"]
        return pandas.DataFrame(rows, columns=columns)

    def verdicts(self, judge: str | None = None) -> dict[tuple[str, str, str], list[str]]:
        """What one judge said, in the order of the prompts, by dataset, side and intervention.

        `judge` names another judge than the first; ValueError for one that was not asked.
        """
        if judge is not None and judge not in self.judges:
            raise ValueError(f"no judge {judge!r}: there are {', '.join(self.judges)}")
        place = 0 if judge is None else self.judges.index(judge)
        said: dict[tuple[str, str, str], list[str]] = {}
        for answer in self.answers:
            key = (answer.dataset, answer.side, answer.intervention)
            said.setdefault(key, []).append(answer.verdicts[place])
        return said

    def save(self, folder: str | Path, *, texts: bool = False) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it.

        Without `texts` the answers' texts stay out, also where they were kept: what is left of each is its hash.
        """
        return save_result(self if texts else self.without_texts(), folder)

    def without_texts(self) -> "Behaviour":
        """The same without the answers' texts."""
        return replace(self, answers=tuple(replace(answer, text=None) for answer in self.answers))

    @classmethod
    def load(cls, folder: str | Path) -> "Behaviour":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def measure_behaviour(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    interventions: Mapping[str, Any] | None = None,
    *,
    judge: Any = None,
    sides: Sequence[Side] | Side = ("harmful", "harmless"),
    template: str | None = None,
    decoding: Decoding = GREEDY,
    rows: int = 32,
    keep_text: bool = False,
    progress: bool | None = None,
) -> Behaviour:
    """Let a model answer a set of prompts under each intervention, and judge the answers.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take. `interventions` maps a name to an
    intervention (`AblateHeads(...)`), to several at once, or to None; the untouched model comes first, as "baseline",
    where none is None. `judge` is a `Judge` or several, of which the first counts; by default `KeywordJudge()`.
    `sides` are the halves of the set to ask; one that the set lacks is left out. `decoding`
    bounds the answers and draws them; greedy by default. `rows` prompts run together. `keep_text` keeps the answers'
    texts, which may be harmful.

    Raises ValueError for what cannot be measured, and what `load_model` and `load_prompts` raise.

    >>> measure_behaviour(model, prompts, {"two heads": AblateHeads(heads, ablation)}).rates()  # doctest: +SKIP
    """
    named = named_interventions(interventions)
    judges = _judges(judge)
    model, prompts = load_model(model), load_prompts(prompts)
    sides = [sides] if isinstance(sides, str) else sides
    asked = _asked(model, prompts, sides, template, as_decoding(decoding))
    answers: list[Answer] = []
    total = len(named) * sum(len(inputs.texts) for inputs in asked.values())
    with bar(total, f"answers, {prompts.name}", "answer", progress) as shown:
        for name, stack in named.items():
            for inputs in asked.values():
                refusal = _refusal_tokens(model, inputs.batch.texts[0])
                with all_active(stack, model):
                    made = generate(
                        model,
                        inputs.batch,
                        decoding,
                        rows=rows,
                        refusal=refusal,
                        progress=shown.update,
                    )
                answers += _judged(inputs, name, made, judges, keep_text)
    first = next(iter(asked.values())).provenance
    provenance = {
        **first,
        "prompts": {side: inputs.provenance["prompts"] for side, inputs in asked.items()},
        "tokens": {side: inputs.batch.fingerprint for side, inputs in asked.items()},
        "interventions": {name: [str(i) for i in stack] for name, stack in named.items()},
        "decoding": asdict(decoding),
    }
    return Behaviour(tuple(answers), tuple(map(judge_name, judges)), model.name, provenance)


def _asked(
    model: HookedModel,
    prompts: PromptSet,
    sides: Sequence[str],
    template: str | None,
    decoding: Decoding,
) -> dict[Side, Inputs]:
    """The halves of the set that are there, in tokens, with room for an answer."""
    if strange := set(sides) - set(SIDES):
        raise ValueError(f'sides has {strange.pop()!r}: expected "harmful", "harmless" or both')
    there: list[Side] = [
        side for side in ("harmful", "harmless") if side in sides and getattr(prompts, side)
    ]
    if not there:
        raise ValueError(f"{prompts.name} has no {' or '.join(sides) or 'side to ask'} prompts")
    room = model.context - decoding.max_new_tokens
    return {
        side: prepare(model, prompts, side=side, template=template, max_length=room)
        for side in there
    }


def _judged(
    inputs: Inputs, name: str, made: Generated, judges: Sequence[Judge], keep_text: bool
) -> Iterator[Answer]:
    """The answers under one intervention with what the judges say."""
    tokenizer, about = inputs.model.tokenizer, inputs.provenance["prompts"]
    said = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made.tokens]
    verdicts = [judged(judge, list(inputs.texts), said) for judge in judges]
    for n, text in enumerate(said):
        yield Answer(
            dataset=about["name"],
            side=about["side"],
            prompt=n,
            intervention=name,
            verdicts=tuple(given[n] for given in verdicts),
            refusal_log_odds=made.refusal_log_odds[n],
            tokens=len(made.tokens[n]),
            ended=made.ended[n],
            digest=hashlib.sha256(text.encode()).hexdigest()[:16],
            text=text if keep_text else None,
        )


def _judges(judge: Any) -> list[Judge]:
    if judge is None:
        return [KeywordJudge()]
    judges = list(judge) if isinstance(judge, Sequence) else [judge]
    names = [judge_name(one) for one in judges]
    if not judges or not all(map(callable, judges)) or len(set(names)) < len(names):
        raise ValueError(
            f"judge is {', '.join(names) or 'empty'}: give a function from (prompts, answers) to verdicts, "
            "or several with different names"
        )
    return judges


def _refusal_tokens(model: HookedModel, text: str) -> tuple[int, ...]:
    """The tokens that begin a refusal, none where this tokenizer has no single token for them."""
    try:
        return refusal_tokens(model.tokenizer, RefusalShift().openings, text)
    except ValueError:
        return ()
