"""Which interventions are compared, and under which names?"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from safetyheads.models.hooked import HookedModel


@runtime_checkable
class Intervention(Protocol):
    """Anything that can be switched on: `AblateHead`, `AblateHeads`, `BypassLayers`, or your own."""

    def active(self, model: HookedModel) -> contextlib.AbstractContextManager[None]: ...


BASELINE = "baseline"
"""The name of the untouched model among named interventions."""


def named_interventions(interventions: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Each name with the list of what is switched on for it, from one intervention, several, or None for none.

    The untouched model comes first, as "baseline", where no value is None or empty.

    >>> from safetyheads import AblateHead, Head, ZeroAblation
    >>> list(named_interventions({"L3H7": AblateHead(Head(3, 7), ZeroAblation())}))
    ['baseline', 'L3H7']
    """
    if interventions is not None and not isinstance(interventions, Mapping):
        raise ValueError(
            f"interventions is a {type(interventions).__name__}: give each under a name, such as "
            '{"two heads": AblateHeads(["L3H7", "L5H1"], "zero")}'
        )
    named: dict[str, list[Any]] = {}
    for name, value in (interventions or {}).items():
        several = isinstance(value, Sequence) and not isinstance(value, Intervention)
        stack = [] if value is None else list(value) if several else [value]
        for one in stack:
            if isinstance(one, type):
                raise ValueError(
                    f"intervention {name!r} is the class {one.__name__}: write {one.__name__}(...)"
                )
            if not isinstance(one, Intervention):
                raise ValueError(
                    f"intervention {name!r} is or holds a {type(one).__name__}, which has no active(model): "
                    "give AblateHeads(...), several interventions in a list, or None for the untouched model"
                )
        named[str(name)] = stack
    if any(not stack for stack in named.values()):
        return named
    if BASELINE in named:
        raise ValueError(
            f"{BASELINE!r} names the untouched model: give another name to that intervention"
        )
    return {BASELINE: [], **named}


@contextlib.contextmanager
def all_active(interventions: Sequence[Any], model: HookedModel) -> Iterator[None]:
    """Within the context, all of these interventions are switched on."""
    with contextlib.ExitStack() as open_ones:
        for intervention in interventions:
            open_ones.enter_context(intervention.active(model))
        yield
