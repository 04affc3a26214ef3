"""How far has it come, and how long will it take? One bar for everything that takes long."""

from typing import Any


def bar(total: int, label: str, unit: str, shown: bool | None = None) -> Any:
    """A bar that counts up to `total` of `unit`, with the time left: a context, and `update(n)` moves it on.

    `shown` is by default whether standard error is a terminal.
    """
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit=unit, disable=None if shown is None else not shown)
