"""Which functions are checked at run time? All but those inside functions, which are made anew at every call."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, but for functions inside functions."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
