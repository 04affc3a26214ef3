"""What is checked at run time? Every function's shapes and types, once a call.

jaxtyping has the parameters checked before a call, and together with what comes back after it; the second look sees all
that the first one does. Functions inside functions are made anew at every call, and checking them costs more than they.
Both took a third of the suite's time. `test_types.py` shows that a wrong shape is still seen.
"""

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype` for what jaxtyping hands over, but for the look at parameters alone and for inner functions."""
    code = function.__code__
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    with_result = any(re.fullmatch(r"ret\d*", name) for name in names)
    return (
        beartype(function) if with_result and "<locals>" not in function.__qualname__ else function
    )
