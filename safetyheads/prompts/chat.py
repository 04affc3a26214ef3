"""How does a prompt stand in the model's own chat template? With its text in it, and no thought before the answer.

Scores are read where the answer begins. A template that thinks first would have them read where the thought begins, so
thinking is switched off where the template has a switch for it, and an empty thought is written where it has none.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")
"""Names by which published templates let thinking be switched off."""
_SAMPLE = "How many of the 7351 tides bring salt?"
_OPENED = re.compile(r"(?:<(?P<tag>[\w:]*think\w*)>|\[THINK\])")
_PRINTED = re.compile(r"""["']type["']\s*:""")
"""What a list of parts looks like where a template prints it instead of its text."""
_CLOSED = re.compile(r"</[\w:]*think\w*>|\[/THINK\]")
_EMPTY = "<think>\n\n</think>\n\n"
_CHANNEL = "<|channel|>final<|message|>"
"""What opens an answer where thoughts go to another channel (gpt-oss)."""


class Chat(NamedTuple):
    """Prompts in a chat template."""

    texts: list[str]
    thinking: str
    """What was done about thoughts: a switch with its value, or "an empty thought"; empty where there are none."""


def render_chat(prompts: Sequence[str], tokenizer: Any) -> Chat:
    """Write each prompt into the tokenizer's chat template as a user's turn, ready for the answer.

    The prompt is given as a text, or as a list of parts where the template takes these only.

    Raises ValueError for a template that fails, or whose text does not contain the prompt. Warns where a thought that
    the template begins, or that the model may begin, had to be closed.
    """
    ask = _asking(prompts, tokenizer)
    source = _source(tokenizer)
    switch = _switch(ask, source)
    options: dict[str, bool] = {switch: False} if switch else {}
    texts = []
    for index, prompt in enumerate(prompts):
        text = _asked(ask, prompt, index, options)
        if not _contains(text, prompt):
            raise _without_prompt(index)
        texts.append(text)
    ready = [
        _ready(text, prompt, source, switch) for text, prompt in zip(texts, prompts, strict=True)
    ]
    if ready == texts:
        return Chat(texts, f"{switch}=False" if switch else "")
    warnings.warn(
        "this chat template thinks before it answers and has no switch that prevents it: scores and answers are read "
        "after an empty thought",
        stacklevel=3,
    )
    return Chat(ready, f"{switch}=False, an empty thought" if switch else "an empty thought")


Ask = Callable[[str, dict[str, bool]], str]


def _asking(prompts: Sequence[str], tokenizer: Any) -> Ask:
    """How this template is asked, so that the prompt is in it: with a text, or with a list of parts."""

    def with_text(prompt: str, options: dict[str, bool]) -> str:
        return _apply(tokenizer, prompt, options)

    def with_parts(prompt: str, options: dict[str, bool]) -> str:
        return _apply(tokenizer, [{"type": "text", "text": prompt}], options)

    failure: Exception | None = None
    for ask in (with_text, with_parts):
        try:
            text = ask(_SAMPLE, {})
            if _contains(text, _SAMPLE) and not _PRINTED.search(text):
                return ask
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise _failed(0, failure) from failure
    raise _without_prompt(0)


def _apply(tokenizer: Any, content: object, options: dict[str, bool]) -> str:
    turns = [{"role": "user", "content": content}]
    return str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    )


def _asked(ask: Ask, prompt: str, index: int, options: dict[str, bool]) -> str:
    try:
        return ask(prompt, options)
    except Exception as error:
        raise _failed(index, error) from error


def _failed(index: int, error: Exception) -> ValueError:
    return ValueError(
        f"the tokenizer's chat template failed on the prompt at index {index} "
        f"({type(error).__name__}): use template='bare', template='query' or a string "
        "with {q}"
    )


def _without_prompt(index: int) -> ValueError:
    return ValueError(
        f"the tokenizer's chat template does not write the prompt at index {index} as it is, so the model would "
        "not read it: correct tokenizer.chat_template, or use template='bare', template='query' or a string with {q}"
    )


def _contains(text: str, prompt: str) -> bool:
    """Whether a prompt is in a text; templates may strip and join blanks."""
    return "".join(prompt.split()) in "".join(text.split())


def _source(tokenizer: Any) -> str:
    """The text of the chat template that is used."""
    try:
        return str(tokenizer.get_chat_template())
    except (AttributeError, ValueError):
        return str(tokenizer.chat_template)


def _switch(ask: Ask, source: str) -> str | None:
    """The option of a template that turns thinking off: its two values give two texts."""
    for name in _SWITCHES:
        if re.search(rf"\b{name}\b", source):
            try:
                on, off = (ask(_SAMPLE, {name: value}) for value in (True, False))
            except Exception:  # an option of another kind, such as a number
                continue
            if on != off and _contains(off, _SAMPLE):
                return name
    return None


def _ready(text: str, prompt: str, source: str, switch: str | None) -> str:
    """A text that ends where the answer begins: a thought that is open, or that the model would open, is closed."""
    before, written, after = text.rpartition(prompt.strip())
    opened = list(_OPENED.finditer(after if written else before + after))
    closed = list(_CLOSED.finditer(after))
    if opened and (not closed or closed[-1].start() < opened[-1].start()):
        tag = opened[-1]["tag"]
        return text.rstrip() + (f"\n\n</{tag}>\n\n" if tag else "[/THINK]")
    if switch or closed:
        return text
    if "<|channel|>" in source and after.rstrip().endswith("<|start|>assistant"):
        return text + _CHANNEL
    return text + _EMPTY if "</think>" in source else text
