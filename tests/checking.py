"""What is checked at run time? Functions with a shape in their signature, in their first call of each test.

jaxtyping has the parameters checked before a call, and together with what comes back after it; the second look sees all
that the first one does. Functions inside functions are made anew at every call, and checking them costs more than they.
A function that a test calls a thousand times is not asked a thousand times, and one without shapes is mypy's to check.
All of that took half of the suite's time.
`test_types.py` shows that a wrong shape is still seen.
"""

import collections
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

CALLS = 1
"""How many calls of a function are checked in each test."""
called: collections.Counter[Callable[..., Any]] = collections.Counter()
"""How often each function was called in this test: `conftest.py` empties it before the next one."""
everywhere = jaxtyping.jaxtyped


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype` for what jaxtyping hands over, but for the look at parameters alone."""
    code = function.__code__
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    with_result = any(re.fullmatch(r"ret\d*", name) for name in names)
    return beartype(function) if with_result else function


def names_a_shape(function: Callable[..., Any]) -> bool:
    """Whether a parameter or the result is an array of a written shape."""
    return any("jaxtyping." in repr(hint) for hint in function.__annotations__.values())


def sparing(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """jaxtyping's decorator, for the first calls of a function."""

    def decorate(thing: Any) -> Any:
        if not inspect.isfunction(thing):
            return everywhere(typechecker=typechecker)(thing)
        if "<locals>" in thing.__qualname__ or not names_a_shape(thing):
            return thing
        checked: list[Callable[..., Any]] = []

        @functools.wraps(thing)
        def function(*args: Any, **kwargs: Any) -> Any:
            called[thing] += 1
            if called[thing] > CALLS:
                return thing(*args, **kwargs)
            if not checked:
                checked.append(everywhere(typechecker=typechecker)(thing))
            return checked[0](*args, **kwargs)

        return function

    return decorate


jaxtyping.jaxtyped = sparing
