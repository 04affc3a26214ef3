"""Where does a sweep run: here or in workers, and from what is stored on?"""

from collections.abc import Sequence
from typing import Any

from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.shards import note_engine, sweep_apart
from safetyheads.engine.sweep import Swept, Variant, sweep
from safetyheads.progress import bar
from safetyheads.storage.store import Store


def run(
    measurement: Measurement,
    variants: Sequence[Variant],
    execution: Execution,
    **what: Any,
) -> Swept:
    """Run variants of a measurement, and keep what its metric reads of each.

    `what` says in the store's manifest what the variants are; none is needed for every head of a layer that is not
    given.

    Raises what `sweep` and the executor raise.
    """
    store = None
    if execution.store is not None:
        store = Store(execution.store, measurement.manifest(execution, **what))
    passes = len(variants) * len(measurement.inputs.batch)
    with bar(passes, measurement.label, "pass", execution.progress) as shown:
        if execution.executor is None:
            swept = sweep(
                measurement, variants, rows=execution.rows, store=store, progress=shown.update
            )
        else:
            swept = sweep_apart(
                measurement, variants, execution, store=store, progress=shown.update
            )
    return swept._replace(exact_resume=note_engine(store, swept.exact_resume))
