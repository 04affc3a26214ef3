"""Does the model still work? Cross-entropy on plain text and a multiple-choice score, with and without its heads.

An ablation that lowers refusal by breaking the model shows here: the loss on held-out text rises and simple questions
are answered at random. Both measures are small, run in seconds and need no download; `lm_eval_model` hands the
intervened model to EleutherAI's lm-evaluation-harness for the large ones (BoolQ, RTE, WinoGrande, ARC and OpenBookQA
are what Zhou et al., arXiv:2410.13708, report).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.interventions.named import all_active, named_interventions
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.progress import bar
from safetyheads.prompts import tokenize
from safetyheads.stats import bootstrap_interval, wilson_interval
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


class Question(NamedTuple):
    """A question with its choices; each is scored by itself, so their order does not matter to the model."""

    question: str
    choices: tuple[str, ...]
    """The right one first."""


def load_questions() -> tuple[Question, ...]:
    """The package's own 40 questions of general knowledge, with four choices each.

    >>> len(load_questions()), load_questions()[0].choices
    (40, ('honey', 'milk', 'silk', 'bread'))
    """
    return tuple(
        Question(row["question"], tuple(row["choices"])) for row in _rows("multiple_choice")
    )


def load_held_out_texts() -> tuple[str, ...]:
    """The package's own texts for the cross-entropy: eight short paragraphs of everyday prose, written for it.

    >>> len(load_held_out_texts())
    8
    """
    return tuple(row["text"] for row in _rows("held_out_text"))


def _rows(stem: str) -> list[dict[str, Any]]:
    file = resources.files("safetyheads").joinpath("data", f"{stem}.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, eq=False)
class Utility:
    """What a model can still do under each intervention."""

    losses: dict[str, Float[Tensor, " text"]]
    """Mean cross-entropy of each text's tokens, in nats a token, under each intervention."""
    correct: dict[str, Bool[Tensor, " question"]]
    """Whether the right choice was the most likely one."""
    model: str
    """Name of the model."""

    def to_frame(self) -> "pandas.DataFrame":
        """Two rows an intervention: model, intervention, measure, value, low, high, unit, n.

        `cross_entropy` is the mean over texts in nat a token, with a bootstrap interval over texts; `multiple_choice`
        the share of questions answered rightly, with Wilson's interval.
        """
        import pandas

        rows = []
        for name, losses in self.losses.items():
            low, high = (
                (end.item() for end in bootstrap_interval(losses))
                if len(losses) > 1
                else (float("nan"), float("nan"))
            )
            mean = losses.mean().item()
            rows.append(
                (self.model, name, "cross_entropy", mean, low, high, "nat/token", len(losses))
            )
            hits, n = int(self.correct[name].sum()), len(self.correct[name])
            rows.append(
                (self.model, name, "multiple_choice", hits / n, *wilson_interval(hits, n), "1", n)
            )
        columns = ["model", "intervention", "measure", "value", "low", "high", "unit", "n"]
        return pandas.DataFrame(rows, columns=columns)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Utility":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def measure_utility(
    model: Any,
    interventions: Mapping[str, Any] | None = None,
    *,
    texts: Sequence[str] | None = None,
    questions: Sequence[Question] | None = None,
    progress: bool | None = None,
) -> Utility:
    """Measure cross-entropy on held-out text and a zero-shot multiple-choice score under each intervention.

    `model` is whatever `load_model` takes; `interventions` are named as for `measure_behaviour`, the untouched model
    among them as "baseline". `texts` and `questions` default to the package's own. A choice's score is the
    log-probability of its tokens after "Question: ...", a new line and "Answer:", as they are, with no chat template.

    Raises ValueError for no texts or questions, a text of one token, and what `load_model` raises.
    """
    named = named_interventions(interventions)
    model = load_model(model)
    texts = load_held_out_texts() if texts is None else tuple(texts)
    questions = load_questions() if questions is None else tuple(questions)
    if not texts or not questions or min(len(q.choices) for q in questions) < 2:
        raise ValueError("give at least one text, and questions with at least two choices each")
    losses, correct = {}, {}
    total = len(named) * (len(texts) + len(questions))
    with bar(total, "utility", "text", progress) as shown:
        for name, stack in named.items():
            with all_active(stack, model):
                found = []
                for text in texts:
                    found.append(cross_entropy(model, text))
                    shown.update()
                losses[name] = torch.tensor(found)
                hits = []
                for question in questions:
                    scores = choice_log_probs(model, question)
                    hits.append(bool(scores.argmax() == 0 and (scores[1:] < scores[0]).all()))
                    shown.update()
                correct[name] = torch.tensor(hits)
    return Utility(losses, correct, model.name)


@torch.inference_mode()
def cross_entropy(model: HookedModel, text: str) -> float:
    """Mean cross-entropy of a text's tokens after the first, in nats."""
    ids = tokenize([text], model.tokenizer, "bare", max_length=model.context).ids
    if ids.shape[1] < 2:
        raise ValueError(
            "a text for the cross-entropy needs at least two tokens; give a longer one"
        )
    return float(_log_probs(model, ids)[0].mean().neg())


@torch.inference_mode()
def choice_log_probs(model: HookedModel, question: Question) -> Float[Tensor, " choice"]:
    """Log-probability of each choice as the answer, summed over its tokens, in nats."""
    asked = f"Question: {question.question}\nAnswer:"
    texts = [asked, *(f"{asked} {choice}" for choice in question.choices)]
    batch = tokenize(texts, model.tokenizer, "bare", max_length=model.context)
    # The tokens of the question alone may end otherwise than in the full texts: what all of them share is the question.
    start = batch.select(range(1, len(texts))).prefix_length
    ids, lengths = batch.ids[1:], batch.lengths[1:]
    start = min(start, int(batch.lengths[0]))
    log_probs = _log_probs(model, ids)
    places = torch.arange(1, ids.shape[1])
    counts = (places >= start) & (places < lengths[:, None])
    return log_probs.where(counts, 0.0).sum(-1)


def _log_probs(model: HookedModel, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos-1"]:
    """Log-probability of every token after the first."""
    logits = model.logits(ids)[:, :-1].float()
    chosen = logits.gather(-1, ids[:, 1:, None].to(logits.device))[..., 0]
    return (chosen - logits.logsumexp(-1)).cpu()


def lm_eval_model(model: Any, intervention: Any = None, **options: Any) -> Any:
    """The intervened model as lm-evaluation-harness takes it: `lm_eval.simple_evaluate(model=..., tasks=[...])`.

    `intervention` is one intervention, several, or None; `options` go to `lm_eval.models.huggingface.HFLM`, such as
    `batch_size`. The heads are ablated in every forward pass that the harness asks for, and in no other. Needs the
    extra `[lm-eval]`, and the harness its data sets.

    Raises ImportError without the extra.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            "lm-evaluation-harness is not installed: pip install 'safetyheads[lm-eval]'"
        ) from error
    opened = load_model(model)
    stack = named_interventions({"intervened": intervention})["intervened"]

    class IntervenedLM(HFLM):
        """A Hugging Face model of the harness that runs under an intervention."""

        def _model_call(self, *args: Any, **kwargs: Any) -> Any:
            with all_active(stack, opened):
                return super()._model_call(*args, **kwargs)

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            with all_active(stack, opened):
                return super()._model_generate(*args, **kwargs)

    return IntervenedLM(pretrained=opened.hf, tokenizer=opened.tokenizer, **options)
