"""Which heads are run: all of them exactly, those that stay in a race, or those that a screen picks?"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from safetyheads.choices import unknown
from safetyheads.heads import parse_heads
from safetyheads.screening.audit import Screened
from safetyheads.screening.race import Raced

Method = Literal["exact", "raced", "screened"] | Raced | Screened
"""How heads are scored."""
BY_NAME: dict[str, type[Raced] | type[Screened]] = {"raced": Raced, "screened": Screened}


def as_method(method: Method | None, **defaults: Any) -> Raced | Screened | None:
    """How heads are raced or screened, or None for the exact sweep of all; `defaults` are the fields of a bare name.

    >>> as_method("exact"), as_method("raced", top_k=5) == Raced(top_k=5)
    (None, True)

    Raises ValueError for anything else.
    """
    if isinstance(method, Raced | Screened) or method is None or method == "exact":
        return None if method == "exact" else method
    if not isinstance(method, str) or method not in BY_NAME:
        raise ValueError(
            f'method is {method!r}; it must be "exact", "raced", "screened", Raced(...) or Screened(...)'
        )
    return BY_NAME[method](**defaults)


def describe_method(method: Raced | Screened | None) -> dict[str, Any] | str:
    """A method for a manifest or a file: its name and its fields; `read_method` reads it.

    >>> read_method(describe_method(Raced(seed=3))) == Raced(seed=3), describe_method(None)
    (True, 'exact')
    """
    if method is None:
        return "exact"
    name = next(name for name, kind in BY_NAME.items() if isinstance(method, kind))
    return {"name": name, **asdict(method), "include": [str(head) for head in method.include]}


def read_method(given: Any) -> Any:
    """The method that a file's table describes, by default a screen; a word stays one.

    Raises ValueError for a field or a name that there is not, with near ones.
    """
    if not isinstance(given, Mapping):
        return given
    name = given.get("name", "screened")
    if name not in BY_NAME:
        raise unknown("a method", name, list(BY_NAME))
    known = [field.name for field in fields(BY_NAME[name])]
    asked = {field: value for field, value in given.items() if field != "name"}
    for field in asked:
        if field not in known:
            raise unknown(f"a field of {BY_NAME[name].__name__}", field, known)
    return BY_NAME[name](**{**asked, "include": parse_heads(asked.get("include", ()))})
