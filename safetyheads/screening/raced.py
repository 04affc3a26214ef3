"""How is a measurement raced: which passes, in which order, and what is said of each head?"""

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.rounds import Rounds
from safetyheads.engine.shards import note_engine
from safetyheads.heads import HeadScores
from safetyheads.metrics import LastToken
from safetyheads.progress import bar
from safetyheads.screening.methods import describe_method
from safetyheads.screening.race import Raced, expected_passes, race, random_order
from safetyheads.storage.store import Store


def race_heads(
    measurement: Measurement,
    method: Raced,
    execution: Execution,
    covariate: Float[Tensor, "layer head prompt"] | None = None,
) -> HeadScores:
    """Race every head of a measurement: exact scores of the top, estimates with intervals of the others.

    `covariate` is a linear estimate of every head and prompt. A store keeps finished layers of every round.

    Raises ValueError for a metric that is one number for all prompts, and what `race` and `Rounds` raise.
    """
    require_prompts_apart(measurement)
    inputs, metric = measurement.inputs, measurement.metric
    manifest = measurement.manifest(execution, method=describe_method(method))
    store = None if execution.store is None else Store(execution.store, manifest)
    shape = inputs.model.n_layers, inputs.model.n_heads
    count = len(inputs.batch)
    total = sum(expected_passes(method, shape[0] * shape[1], count))
    with bar(total, f"race, {measurement.label}", "ablated prompt", execution.progress) as shown:
        rounds = Rounds(measurement, execution, store, shown.update)

        def announce(heads: int, start: int) -> None:
            """What is left is estimated anew from how many heads are."""
            shown.total = shown.n + sum(expected_passes(method, heads, count, start))

        order = random_order(count, inputs.categories, method.seed)
        found = race(
            rounds,
            shape,
            order,
            method,
            largest_first=metric.largest_first,
            covariate=covariate,
            before=announce,
        )
        shown.total = shown.n
    resumed = note_engine(store, rounds.exact_resume)
    return HeadScores(
        values=found.values,
        per_prompt=found.per_prompt,
        ablation=manifest["ablation"]["name"],
        metric=metric.name,
        unit=metric.unit,
        largest_first=metric.largest_first,
        provenance={**manifest, "engine": "resumed" if resumed else "plain"},
        exact=found.exact,
        estimates=None if covariate is None else covariate.mean(-1),
        prompts_run=found.prompts_run,
        low=found.low,
        high=found.high,
        race=found.race,
    )


@torch.inference_mode()
def require_prompts_apart(measurement: Measurement) -> None:
    """Raise ValueError for a metric that is no mean over prompts: it is seen from made-up outputs."""
    model, metric = measurement.inputs.model, measurement.metric
    state = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(0))
    state = state.to(model.device, model.dtype)
    last = LastToken(model.final_norm(state), model.unembed)
    rows = metric.read(last, last)
    _, per_prompt = metric.score(metric.gather(rows[None], rows))
    if per_prompt is None or per_prompt.shape != (1, 2):
        raise ValueError(
            f"{metric.name} is one number for all prompts, and a race compares means over prompts; "
            'use method="exact" or "screened"'
        )
