"""What is settled before the first pass of a run?

The model is open, the prompts are tokens, ablation and metric are complete, and the manifest says all that determines
the numbers.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetyheads.heads import Head
from safetyheads.interventions.ablating import Ablation, UndifferentiatedAttention, describe
from safetyheads.metrics import Metric, Ships
from safetyheads.models.hooked import HookedModel, load_model
from safetyheads.prompts import PromptSet, TokenBatch, load_prompts, tokenize


class Run(NamedTuple):
    """Everything that is settled before the first pass."""

    model: HookedModel
    batch: TokenBatch
    ablation: Ablation
    metric: Metric
    rows: int | None
    provenance: dict[str, Any]

    @property
    def label(self) -> str:
        """The prompts, for a progress bar."""
        return f"{self.provenance['prompts']['name']} {self.provenance['prompts']['side']}"


def prepare_run(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    ablation: Ablation | None,
    metric: Metric | None,
    side: str,
    template: str | None,
    rows: int | None,
) -> Run:
    """Open, tokenise and check everything that a run needs; the arguments are those of `score_heads`."""
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
        "paired": prompts.paired,
        "source": prompts.source,
    }
    return Run(model, batch, ablation, metric, rows, provenance)


def prepare_runs(
    model: HookedModel,
    prompts: PromptSet,
    ablations: Sequence[Ablation],
    metric: Metric,
    template: str | None,
    rows: int | None,
) -> list[Run]:
    """The runs of a ranking: every ablation on the harmful prompts, then on the harmless ones where there are any."""
    return [
        prepare_run(model, prompts, ablation, metric, side, template, rows)
        for side in (["harmful", "harmless"] if prompts.harmless else ["harmful"])
        for ablation in ablations
    ]


def heads_of(layers: Sequence[int], model: HookedModel) -> list[Head]:
    """Every head of some layers."""
    return [Head(layer, head) for layer in layers for head in range(model.n_heads)]


def provenance_of(
    model: HookedModel, batch: Any, ablation: Ablation, metric: Metric
) -> dict[str, Any]:
    """Everything that determines a score: the model and its numerics, the tokens, the ablation, the
    metric, the version."""
    return {
        "model": {
            "name": model.name,
            "n_layers": model.n_layers,
            "n_heads": model.n_heads,
            **model.provenance,
        },
        "device": model.device.type,
        "template": batch.template,
        "tokens": batch.fingerprint,
        "ablation": describe(ablation),
        "metric": describe(metric),
        "safetyheads": version("safetyheads"),
    }
