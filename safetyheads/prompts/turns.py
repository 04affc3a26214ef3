"""What does a user say first? The prompt in a conversation, as chat data sets write them."""

import json
from collections.abc import Mapping

CHAT_COLUMNS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "chat")
"""Columns that hold conversations."""
_ROLES = ("role", "from", "speaker")
_WORDS = ("content", "value", "text")
_USERS = frozenset({"user", "human", "prompter"})
_OTHERS = frozenset(
    ["assistant", "system", "gpt", "bot", "model", "developer", "tool", "chatgpt", "ai"]
)


def speaker(value: object) -> str | None:
    """Who speaks in a turn of a conversation, "user" for whoever asks; None for what is no turn."""
    if not isinstance(value, Mapping) or _first(value, _WORDS) is None:
        return None
    role = str(_first(value, _ROLES)).strip().lower()
    return "user" if role in _USERS else role if role in _OTHERS else None


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and all(map(speaker, value))


def first_user_turn(value: object, of_turns: bool) -> object:
    """The user's first text in a conversation, and the value itself where it is none.

    `of_turns` says that the column holds conversations: a list of strings begins with the user's, and a text may be
    such a list as JSON. What a system message says is left out; None where no user speaks, or not in text.
    """
    if isinstance(value, str):
        return _from_text(value, of_turns)
    if speaker(value):
        value = [value]
    if isinstance(value, list) and is_conversation(value):
        users = [turn for turn in value if speaker(turn) == "user"]
        return _text_of(_first(users[0], _WORDS)) if users else None
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        return value[0] if of_turns or len(value) == 1 else value
    if of_turns and isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = value[0]
    if isinstance(value, Mapping):
        return _first(value, tuple(_USERS)) or value
    return value


def _from_text(value: str, of_turns: bool) -> object:
    if value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    if of_turns or is_conversation(found) or speaker(found):
        return first_user_turn(found, of_turns)
    return value


def _text_of(content: object) -> object:
    """The text of a message, whose content may be a list of parts; None where a part is no text."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None


def _first(value: Mapping[str, object], names: tuple[str, ...]) -> object:
    return next((value[name] for name in names if value.get(name) is not None), None)
