"""Where does a sweep run: here or in workers, and from what is stored on?"""

from collections.abc import Sequence

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.shards import note_engine, sweep_apart
from safetyheads.engine.sweep import Swept, sweep
from safetyheads.interventions.site import Variant
from safetyheads.models.outside import outside
from safetyheads.progress import bar
from safetyheads.storage.store import Store


def run(
    measurement: Measurement, variants: Sequence[Variant], execution: Execution = HERE
) -> Swept:
    """Run variants of a measurement, and keep what its metric reads of each.

    A store keeps whole layers of heads together, whichever layers a run is of; other variants have a store of their
    own, by their description.

    Raises what `sweep` and the executor raise.
    """
    _require_told(measurement, execution)
    store = None
    if execution.store is not None:
        manifest = measurement.manifest(execution)
        if not measurement.has_whole_layers(variants):
            manifest["variants"] = [variant.describe() for variant in variants]
        store = Store(execution.store, manifest)
    passes = len(variants) * len(measurement.inputs.batch)
    with bar(passes, measurement.label, "ablated prompt", execution.progress) as shown:
        if execution.executor is None:
            swept = sweep(
                measurement, variants, rows=execution.rows, store=store, progress=shown.update
            )
        else:
            swept = sweep_apart(
                measurement, variants, execution, store=store, progress=shown.update
            )
    return swept._replace(exact_resume=note_engine(store, swept.exact_resume))


def _require_told(measurement: Measurement, execution: Execution) -> None:
    """Raise ValueError where hooks of the caller would have to be told from others, or to travel."""
    model = measurement.inputs.model
    hooked = list(outside(model.hf)) if execution.store or execution.executor else []
    if hooked:
        raise ValueError(
            f"{model.name} has hooks on {', '.join(hooked[:3])}: a store cannot tell what they do, and they do not "
            "travel to other processes; leave store and executor out, remove the hooks, or write the change into the "
            "weights"
        )
