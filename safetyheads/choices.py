"""Which of a few names is meant? An unknown one is refused, with those that are near."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def unknown(what: str, given: Any, known: Iterable[str], instead: str = "") -> ValueError:
    """The error for a name that is none of the known ones; `instead` says what else could be given.

    >>> print(unknown("metric", "ship", ["ships", "refusal_shift"], "Ships()"))
    metric is 'ship'; did you mean 'ships'? Known are ships, refusal_shift; or give a value such as Ships()
    """
    names = list(known)
    near = get_close_matches(given, names, n=1) if isinstance(given, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    rest = f"; or give a value such as {instead}" if instead else ""
    return ValueError(f"{what} is {given!r}; {hint}Known are {', '.join(names)}{rest}")


def not_a_class(what: str, given: Any) -> None:
    """Raise ValueError for a class where a value of it is meant."""
    if isinstance(given, type):
        raise ValueError(
            f"{what} is the class {given.__name__}, and a value is meant: write {given.__name__}()"
        )


def chosen(
    what: str,
    given: Any,
    known: Mapping[str, Callable[..., Any]],
    fits: Callable[[Any], bool],
    instead: str,
) -> Any:
    """The value that is given, that a name stands for, or that a manifest describes.

    Raises ValueError for a name that is none, with near ones, a class, or anything else.
    """
    not_a_class(what, given)
    if isinstance(given, Mapping):
        return described(what, given, known)
    if fits(given):
        return given
    if isinstance(given, str) and (name := given.strip().lower().replace("-", "_")) in known:
        return known[name]()
    raise unknown(what, given, known, instead)


def described(what: str, about: Mapping[str, Any], known: Mapping[str, Callable[..., Any]]) -> Any:
    """The value that a name and fields describe, as a manifest or a study's file has them.

    >>> described("point", {"name": "complex", "real": 1.0, "imag": 2.0}, {"complex": complex})
    (1+2j)
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items() if k != "name"}
    # A name may go on with what its fields say: generalized_ships (left, rank 1).
    kind = known.get(str(about.get("name")).partition(" ")[0])
    if kind is None:
        raise unknown(what, about.get("name"), known)
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(
            f"{what} {about['name']} does not take {', '.join(fields)} ({error}); write its name and its own fields"
        ) from error
