"""What is settled before the first pass? A model, its prompts in tokens, what is done to it and what is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safetyheads.engine.execution import Execution
from safetyheads.heads import Head
from safetyheads.inputs import Inputs
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.interventions.ablations import (
    Ablation,
    UndifferentiatedAttention,
    as_ablation,
    describe,
)
from safetyheads.interventions.site import Variant
from safetyheads.metrics import Metric, Ships, as_metric


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything that is settled before the first pass; `measure` makes one."""

    inputs: Inputs
    metric: Metric
    """Complete: `Metric.prepare` has seen the tokenizer and the prompts."""
    ablation: Ablation | None = None
    """What is done to heads; None where the variants say themselves what they do."""
    given: AblateHeads | None = None
    """Heads that are ablated in every pass, besides the variant's own. The baseline is the model untouched."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What determines the numbers, but for the variants."""
        about = {**self.inputs.provenance, "metric": describe(self.metric)}
        if self.ablation is not None:
            about["ablation"] = describe(self.ablation)
        if self.given is not None:
            about["given"] = [list(head) for head in self.given.heads]
        return about

    @property
    def label(self) -> str:
        """What is run, for a progress bar."""
        name = "variants" if self.ablation is None else self.ablation.name
        return f"{name}, {self.inputs.label}"

    def heads(self, layers: Sequence[int] | None = None) -> list[Head]:
        """Every head of some layers, or of all."""
        model = self.inputs.model
        asked = range(model.n_layers) if layers is None else layers
        return [Head(layer, head) for layer in asked for head in range(model.n_heads)]

    def variants(self, heads: Sequence[Head]) -> list[AblateHead]:
        """Each head ablated alone, besides those that are given."""
        return [AblateHead(head, self._done_to_heads) for head in heads]

    def group(self, heads: Sequence[Head]) -> AblateHeads:
        """Several heads ablated at once."""
        return AblateHeads(tuple(heads), self._done_to_heads)

    def has_whole_layers(self, variants: Sequence[Variant]) -> bool:
        """Whether these are all heads of some layers under the measurement's ablation, less those that are given, in
        order."""
        if self.ablation is None:
            return False
        given = self.given.heads if self.given else ()
        layers = sorted({variant.first_layer for variant in variants})
        heads = [head for head in self.heads(layers) if head not in given]
        return list(variants) == self.variants(heads)

    @property
    def _done_to_heads(self) -> Ablation:
        if self.ablation is None:
            raise ValueError("this measurement does nothing to heads; make it with an ablation")
        return self.ablation

    def manifest(self, execution: Execution, **what: Any) -> dict[str, Any]:
        """What a store's folder and a result say of themselves; `rows` moves the last bits of a number."""
        return {**self.provenance, "rows": execution.rows, **what}


def measure(
    inputs: Inputs, ablation: Ablation | str | None = None, metric: Metric | str | None = None
) -> Measurement:
    """Settle what is measured: values or names, by default `UndifferentiatedAttention()` and `Ships()`.

    Raises ValueError for an unknown name or a class, for an ablation that borrows from another prompt where there is
    none, and what `Metric.prepare` raises.
    """
    model, batch = inputs.model, inputs.batch
    ablation = UndifferentiatedAttention() if ablation is None else as_ablation(ablation)
    metric = Ships() if metric is None else as_metric(metric)
    model.require_readable(ablation.needs, str(ablation))
    if "pairs" in ablation.needs and inputs.provenance["prompts"]["side"] != "both":
        raise ValueError(
            f"{ablation} lends between a harmful prompt and its matched harmless one; call score_interchange, which "
            "runs both sides together"
        )
    if "donor" in ablation.needs and len(batch) < 2:
        raise ValueError(
            f"{ablation} borrows from another prompt, and there is 1 prompt; give at least 2 prompts"
        )
    return Measurement(inputs, metric.prepare(model.tokenizer, batch.texts), ablation)
