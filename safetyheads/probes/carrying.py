"""Does a group of heads carry refusal, or does the ablation write what is seen? As for single heads, under several."""

from collections.abc import Sequence
from typing import Any

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.evidence.carriers import Carriers, judge_effects
from safetyheads.heads import Head, parse_heads
from safetyheads.inputs import Source, prepare, prepare_pairs
from safetyheads.interventions.ablations import Ablation, InterchangeAblation, as_ablations
from safetyheads.metrics import Metric, RefusalShift

BOTH_KINDS = ("zero", InterchangeAblation(), "mean", "undifferentiated_attention")


def find_carrying_groups(
    model: Any,
    prompts: Source,
    groups: Sequence[Sequence[Head | str]],
    *,
    ablations: Sequence[Ablation | str] = BOTH_KINDS,
    metric: Metric | str | None = None,
    template: str | None = None,
    level: float = 0.05,
    seed: int = 0,
    execution: Execution = HERE,
) -> Carriers:
    """What `find_carriers` says of heads, of groups ablated at once on harmful prompts; labels join the heads with "+".

    `model`, `prompts`, `template` and `execution` are those of `score_interchange`, `level` and `seed` those of
    `find_carriers`; two of the ablations must be removals that differ. `metric` is `RefusalShift()` by default. One
    sweep an ablation.

    Raises ValueError for no group, prompts that are no pairs, what `score_groups` refuses of a group, and what
    `find_carriers` raises.
    """
    parsed = [parse_heads(group) for group in groups]
    if not parsed:
        raise ValueError("there are no groups; give at least one list of heads")
    pairs = prepare_pairs(model, prompts, template=template)
    harmful = prepare(pairs.model, prompts, template=template)
    asked = RefusalShift() if metric is None else metric
    effects = {}
    for ablation in as_ablations(list(ablations)):
        inputs = pairs if "pairs" in ablation.needs else harmful
        measurement = measure(inputs, ablation, asked)
        swept = run(measurement, [measurement.group(heads) for heads in parsed], execution)
        scores = measurement.metric.score(swept.readings)[1]
        if scores is None:
            raise ValueError(
                f"{measurement.metric.name} gives no score for each prompt; take RefusalShift()"
            )
        effects[ablation.name] = scores[:, : len(harmful.batch)].cpu()
    labels = ["+".join(map(str, heads)) for heads in parsed]
    return judge_effects(effects, labels, measurement.metric.name, level=level, seed=seed)
