"""How much does the output depend on each attention head?

Ships and its relatives (Zhou et al., "On the Role of Attention Heads in Large Language Model Safety", ICLR 2025,
arXiv:2410.13708): every query head is ablated in turn and the next token's distribution, or the whole dataset's final
states, are compared with the untouched model's. Where paper and code differ, `metrics.py` and `interventions.py` say
which was followed; the template is the caller's choice, since the code uses three.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetyheads.heads import Head, HeadScores
from safetyheads.interventions import AblateHead, Ablation, UndifferentiatedAttention, describe
from safetyheads.metrics import Metric, Ships
from safetyheads.model import HookedModel, load_model
from safetyheads.prompts import PromptSet, load_prompts, tokenize
from safetyheads.store import Store
from safetyheads.sweep import DEFAULT_ROWS, sweep


def score_heads(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    *,
    ablation: Ablation | None = None,
    metric: Metric | None = None,
    side: str = "harmful",
    template: str | None = None,
    rows: int = DEFAULT_ROWS,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadScores:
    """Score every query head of a model on the prompts of a set (ships, generalized ships).

    `model` and `prompts` are whatever `load_model` and `load_prompts` take. `ablation` defaults to
    `UndifferentiatedAttention()`, `metric` to `Ships()`. `side` says which prompts of the set are scored,
    "harmful" or "harmless". `template` is "chat", "bare", "query" or a string with `{q}`; by default "chat"
    where the tokenizer has a chat template, else "bare". `rows` bounds the (head, prompt) rows that run
    together, and with it the memory. `store` names a folder where finished layers are kept: a run that was
    killed goes on from there (the key has the name and the fields of an ablation of your own, not its
    code). `progress` shows a bar with the time left (by default where standard error is a terminal).

    Raises ValueError for input that cannot be scored, and what `load_model` and `load_prompts` raise.
    """
    ablation = UndifferentiatedAttention() if ablation is None else ablation
    model, prompts = load_model(model), load_prompts(prompts)
    if side not in ("harmful", "harmless"):
        raise ValueError(f'side is {side!r}; it must be "harmful" or "harmless"')
    if not (texts := getattr(prompts, side)):
        raise ValueError(
            f"{prompts.name} has no {side} prompts; score the other side, or give a set with both"
        )
    batch = tokenize(texts, model.tokenizer, template, max_length=model.context)
    metric = (Ships() if metric is None else metric).prepare(model.tokenizer, batch.texts)
    if "donor" in ablation.needs and len(batch.lengths) < 2:
        raise ValueError(
            f"{ablation} borrows from another prompt, and there is 1 prompt; give at least 2 prompts"
        )
    provenance = provenance_of(model, batch, ablation, metric)
    provenance["rows"] = rows
    provenance["prompts"] = {
        "name": prompts.name,
        "side": side,
        "count": len(batch.lengths),
        "source": prompts.source,
    }
    heads = [Head(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    known = None if store is None else Store(store, provenance)
    with _bar(
        len(heads) * len(batch.lengths), f"{ablation.name}, {prompts.name} {side}", progress
    ) as bar:
        swept = sweep(
            model,
            batch,
            [AblateHead(head, ablation) for head in heads],
            metric,
            rows=rows,
            store=known,
            progress=bar.update,
        )
    values, per_prompt = metric.score(swept.readings)
    grid = (model.n_layers, model.n_heads)
    return HeadScores(
        values=values.reshape(grid),
        per_prompt=None if per_prompt is None else per_prompt.reshape(*grid, -1),
        readings=None
        if per_prompt is not None
        else swept.readings.reshape(*grid, *swept.readings.shape[1:]),
        ablation=ablation.name,
        metric=metric.name,
        unit=metric.unit,
        largest_first=metric.largest_first,
        provenance={**provenance, "engine": "resumed" if swept.exact_resume else "plain"},
    )


def provenance_of(
    model: HookedModel, batch: Any, ablation: Ablation, metric: Metric
) -> dict[str, Any]:
    """Everything that determines a score: the model and its numerics, the tokens, the ablation, the
    metric, the version."""
    return {
        "model": {"name": model.name, **model.provenance},
        "template": batch.template,
        "tokens": batch.fingerprint,
        "ablation": describe(ablation),
        "metric": describe(metric),
        "safetyheads": version("safetyheads"),
    }


def _bar(total: int, label: str, shown: bool | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="pass", disable=None if shown is None else not shown)
