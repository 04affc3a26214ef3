"""How far has it come, and how long will it take? One bar for everything that takes long.

On a terminal and in Jupyter it is a bar; elsewhere (a log file) plain lines, the first after `QUIET` seconds. The text
bar is used in Jupyter too, since the other one needs ipywidgets.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

QUIET, BETWEEN = 15.0, 30.0
"""Seconds without a plain line at the start, and between two of them."""
LINE = "{desc}: {percentage:.0f} %, {elapsed} gone, {remaining} left{postfix}"
WHOLE = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
"""A bar of parts whose units differ: no count."""


def bar(
    total: int,
    label: str,
    unit: str,
    shown: bool | None = None,
    *,
    cost: float | int = 1.0,
    done: int = 0,
) -> Any:
    """A bar that counts up to `total` of `unit`, with the time left: a context, and `update(n)` moves it on.

    `shown` is by default whether there is somewhere to show it: as a bar, or as plain lines. Inside a `whole` the bar
    is a part of that one; `cost` says how long one of `unit` takes, where an ablated prompt takes 1. `done` were done
    before, and say nothing of the time left.
    """
    if (outer := _OUTER.get()) is not None:
        part = _Part(outer, total, label, cost)
        part.update(done)
        return part
    return _bar(total, label, shown, initial=done, unit=unit)


@contextmanager
def whole(expected: float | int, label: str, shown: bool | None = None) -> Iterator[None]:
    """One bar for work of several parts: until it is left, every `bar` moves it on in place of one of its own.

    `expected` is what the parts will come to, in ablated prompts; where they come to more or less, the bar follows.
    """
    if _OUTER.get() is not None:
        yield
        return
    with _bar(expected, label, shown, bar_format=WHOLE) as drawn:
        outer = _Outer(drawn, expected)
        token = _OUTER.set(outer)
        try:
            yield
            outer.finish()
        finally:
            _OUTER.reset(token)


def _bar(total: float | int, label: str, shown: bool | None, initial: int = 0, **look: Any) -> Any:
    from tqdm import tqdm

    if shown is False:
        return tqdm(total=total, desc=label, disable=True)
    in_jupyter = type(sys.stderr).__module__.startswith("ipykernel")
    if shown or in_jupyter or sys.stderr.isatty():
        return tqdm(total=total, desc=label, initial=initial, leave=not in_jupyter, **look)
    times: dict[str, Any] = {"delay": QUIET, "mininterval": BETWEEN, "maxinterval": 2 * BETWEEN}
    times["initial"] = initial
    return tqdm(total=total, desc=label, file=_Lines(), bar_format=LINE, **times)


class _Lines:
    """Standard error for a bar whose every state is a line of its own."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class _Outer:
    """The whole: how much its parts have claimed, and how much is expected."""

    def __init__(self, drawn: Any, expected: float | int) -> None:
        self.drawn, self.expected, self.claimed = drawn, expected, 0.0

    def claim(self, more: float | int) -> None:
        self.claimed += more
        self.drawn.total = max(self.expected, self.claimed)

    def finish(self) -> None:
        self.drawn.set_postfix_str("", refresh=False)
        self.drawn.total = self.drawn.n


class _Part:
    """A bar inside a whole."""

    def __init__(self, outer: _Outer, total: float | int, label: str, cost: float | int) -> None:
        self.n: float | int = 0
        self._outer, self._total, self._cost = outer, total, cost
        outer.drawn.set_postfix_str(label, refresh=False)
        outer.claim(total * cost)

    @property
    def total(self) -> float | int:
        """As of a bar; what a part turns out to be more or less, the whole is too."""
        return self._total

    @total.setter
    def total(self, value: float | int) -> None:
        more = (value - self._total) * self._cost
        self._total = value
        self._outer.expected += more
        self._outer.claim(more)

    def update(self, n: float | int = 1) -> None:
        self.n += n
        self._outer.drawn.update(n * self._cost)

    def set_postfix(self, **said: Any) -> None:
        self._outer.drawn.set_postfix(**said)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None


_OUTER: ContextVar[_Outer | None] = ContextVar("outer", default=None)
