"""How do the values of a JSON file become rows? Lists, objects of lists, test cases by id, and what wraps them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetyheads.prompts.labels import mentions_harmless, shown, side_of_name, words_of
from safetyheads.prompts.reading import Row, Table
from safetyheads.prompts.turns import CHAT_COLUMNS, first_user_turn, is_conversation, speaker

Object = Mapping[str, Any]


def table_of(value: object, file: Path, headers: frozenset[str]) -> Table:
    """What was read, as rows under names; `headers` are the names of columns that are known.

    Raises ValueError for a shape that cannot be read, saying which can.
    """
    if isinstance(value, Table):
        return value
    if isinstance(value, dict):
        value = _rows_of_object(value, file, headers)
    if not isinstance(value, list):
        raise ValueError(
            f"{str(file)!r} holds a {type(value).__name__}: expected a list of strings or objects"
        )
    if not value:
        raise ValueError(f"{str(file)!r} is empty: expected at least one prompt")
    rows = _rows_of_list(value, file)
    return Table(rows, list(dict.fromkeys(name for row in rows for name in row)))


def _rows_of_list(values: list[Any], file: Path) -> Sequence[Row]:
    if all(isinstance(value, dict) for value in values):
        if all(isinstance(value.get("row"), dict) for value in values):
            return [value["row"] for value in values]
        return _rows_of_turns(values, file) if all(map(speaker, values)) else values
    if any(isinstance(value, dict) for value in values):
        raise ValueError(f"{str(file)!r} mixes strings and objects: use one of the two")
    if all(map(is_conversation, values)):
        return [{"messages": value} for value in values]
    return [{"prompt": value} for value in values]


def _rows_of_turns(turns: list[Any], file: Path) -> Sequence[Row]:
    """A list of turns is one conversation, or a prompt a row where only users speak."""
    users = sum(speaker(turn) == "user" for turn in turns)
    if users == len(turns):
        return [{**turn, "prompt": first_user_turn(turn, True)} for turn in turns]
    if users == 1:
        return [{"prompt": first_user_turn(turns, True)}]
    raise ValueError(
        f"{str(file)!r} is a list of turns, {users} of them a user's: write a conversation a row, "
        '{"messages": [...]}, of which the first user turn is read'
    )


def _rows_of_object(found: Object, file: Path, headers: frozenset[str]) -> object:
    tables = [v for v in found.values() if isinstance(v, list) and v and all(map(_is_row, v))]
    if isinstance(found.get("columns"), list) and isinstance(found.get("data"), list):
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    if len(tables) == 1 and not is_conversation(next(iter(found.values()))):
        return tables[0]  # what else there is says where the rows come from
    if any(isinstance(v, str) and _name(name) in headers for name, v in found.items()) or any(
        is_conversation(v) and _name(name) in CHAT_COLUMNS for name, v in found.items()
    ):
        return [found]
    lists = {name: v for name, v in found.items() if isinstance(v, list)}
    known = [name for name in lists if _name(name) in headers or side_of_name(name) is not None]
    nested = [v for v in found.values() if isinstance(v, dict) and list(_leaves(v, ()))]
    if known and not nested and len({len(values) for values in lists.values()}) == 1:
        return [
            dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)
        ]
    if known and any(side_of_name(name) is None for name in known):
        raise _unreadable(file)
    return _rows_of_tree(found, file, headers)


def _rows_of_tree(found: Object, file: Path, headers: frozenset[str]) -> object:
    """Rows by id, columns by id, or prompts by id, of which the first key is the category."""
    inner = [v for v in found.values() if isinstance(v, dict)]
    if inner and len(inner) == len(found):
        if all({_name(key) for key in row} & headers for row in inner):
            return inner
        same = all(row.keys() == inner[0].keys() for row in inner)
        if same and {_name(name) for name in found} & headers:
            return [{name: found[name][key] for name in found} for key in inner[0]]
    if found and all(map(is_conversation, found.values())):
        return [{"category": name, "messages": turns} for name, turns in found.items()]
    leaves = list(_leaves(found, ()))
    if not leaves or any(not isinstance(text, str) for _, text in leaves):
        raise _unreadable(file)
    sides = [_side_of_path(path) for path, _ in leaves]
    if set(sides) == {None}:
        _refuse_hidden_sides(found, file)
        return [{"prompt": text, "category": path[0]} for path, text in leaves]
    if None in sides:
        raise ValueError(
            f"{str(file)!r}: some of its keys say harmful or harmless and some do not, such as "
            f"{shown(leaves[sides.index(None)][0][0])}: say it of all, or of none"
        )
    labels = {True: "harmful", False: "harmless"}
    return [
        {"prompt": text, "label": labels[bool(side)], "category": path[-1]}
        for (path, text), side in zip(leaves, sides, strict=True)
    ]


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Everything in the lists of a tree of objects, with the keys that lead there; what is in no list is left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, str(name)))
    elif isinstance(value, list):
        yield from ((path, one) for one in value)


def _side_of_path(path: tuple[str, ...]) -> bool | None:
    return next((side for name in path if (side := side_of_name(name)) is not None), None)


def _refuse_hidden_sides(found: Object, file: Path) -> None:
    """A few keys of which one speaks of harmless prompts are sides, and not ids."""
    hidden = [name for name in found if mentions_harmless(name)]
    if hidden and len(found) <= 8:
        raise ValueError(
            f"{str(file)!r}: the key {shown(hidden[0])} speaks of harmless prompts and cannot be read as a side: name "
            "the keys harmful and harmless"
        )


def _is_row(value: object) -> bool:
    return isinstance(value, dict)


def _name(name: object) -> str:
    return "_".join(words_of(str(name)))


def _unreadable(file: Path) -> ValueError:
    return ValueError(
        f"{str(file)!r} holds an object: expected its values to be lists of one length, such as "
        "{'harmful': [...], 'harmless': [...]}, prompts by id, {id: [...]}, or a list of strings or of objects"
    )
