"""Is the prompt in what the model reads, and does the answer begin where the text ends?

The templates are small ones of this project, in the manner of the published ones that are named beside them.
"""

import warnings

import pytest

from safetyheads.prompts import find_segments, load_prompts, render, tokenize
from tests.prompts.making import SECRET, make_tokenizer

PROMPTS = ["How do tides work?", "What is salt?\nTell me  more."]
TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|assistant|>"
THOUGHT = "<think>\n\n</think>\n\n"
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{% if p['type'] == 'text' %}"
    "{{ p['text'] | trim }}{% endif %}{% endfor %}{% endfor %}" + BEGIN + "{% endif %}"
)


def chat(template):
    return make_tokenizer("$A", chat_template=template)


def test_a_template_over_parts_gets_parts():
    texts = tokenize(PROMPTS, chat(PARTS)).texts
    assert texts == tuple(f"<|user|>{prompt}<|assistant|>" for prompt in PROMPTS)


@pytest.mark.parametrize(
    "content", ["m['content'] | trim", "m['content'].strip()", "m['content'].split() | join(' ')", "'-' + m['content']"]
)  # fmt: skip
def test_a_template_may_strip_and_join_blanks(content):
    assert "salt?" in render(PROMPTS, "chat", chat(TURNS.replace("m['content']", content)))[1]


@pytest.mark.parametrize(
    "content", ["''", "'hello'", "m['text']", "m['content'] | upper", "m['content'][:12]", "m['content'] | tojson | e"]
)  # fmt: skip
def test_a_template_that_does_not_write_the_prompt_is_refused(content):
    tokenizer = chat(TURNS.replace("m['content']", content) + BEGIN + "{% endif %}")
    for ask in (render, lambda p, t, k: tokenize(p, k, t)):
        with pytest.raises(
            ValueError, match=r"does not write the prompt at index .*template='bare'"
        ):
            ask([f'is "{SECRET}" a word?', f"{SECRET} too"], "chat", tokenizer)


def test_a_template_that_writes_some_prompts_only_is_refused_by_index():
    odd = TURNS.replace("m['content'] }}", "m['content'] if 'salt' in m['content'] else '' }}")
    with pytest.raises(ValueError, match="at index 1"):
        tokenize([PROMPTS[1], PROMPTS[0]], chat(odd))


def test_a_prompt_that_the_boilerplate_holds_already_does_not_pass_for_written():
    with pytest.raises(ValueError, match="does not write"):
        render(["Be kind"], "chat", chat("<|system|>Be kind{% for m in messages %}{% endfor %}"))


def test_different_prompts_with_the_same_tokens_are_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "tides": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    few = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    with pytest.raises(ValueError, match="at index 1 and 2 differ, and their tokens are the same"):
        tokenize(["tides", "salt", SECRET], few)
    assert len(tokenize(["tides", "tides", " tides"], few)) == 3  # the same prompt may stand twice


SWITCHED = [
    # Qwen3: thinking by default, an empty thought where it is off
    (
        TURNS + BEGIN + "{% if enable_thinking is defined and enable_thinking is false %}" + THOUGHT
        + "{% endif %}{% endif %}",
        "enable_thinking=False",
        "<|assistant|>" + THOUGHT,
    ),
    # DeepSeek-V3.1: a thought is opened or closed at once
    (
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        + TURNS + BEGIN + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        "thinking=False",
        "<|assistant|></think>",
    ),
    # Granite: a sentence of the system's
    ("{% if thinking %}Think first.{% endif %}" + TURNS + BEGIN + "{% endif %}", "thinking=False", "<|assistant|>"),
    # GLM-4.5: a word after the user's, and a thought on one line
    (
        TURNS + "{% if not enable_thinking %}/nothink{% endif %}" + BEGIN
        + "{% if not enable_thinking %}{{ '\\n' }}<think></think>{% endif %}{% endif %}",
        "enable_thinking=False",
        "/nothink<|assistant|>\n<think></think>",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("template", "thinking", "end"), SWITCHED)
def test_thinking_is_switched_off_where_the_template_can(template, thinking, end):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = tokenize(PROMPTS, chat(template))
    assert batch.template == "chat"
    assert batch.thinking == batch.select([0]).thinking == thinking
    assert thinking in repr(batch)
    assert [text.endswith(prompt + end) for text, prompt in zip(batch.texts, PROMPTS, strict=True)]
    assert batch.texts[0].endswith(PROMPTS[0] + end)


UNSWITCHED = [
    # DeepSeek-R1, QwQ: the thought is open
    (TURNS + BEGIN + "<think>\n{% endif %}", "<|assistant|>" + THOUGHT),
    (TURNS + BEGIN + "<think>{% endif %}", "<|assistant|>" + THOUGHT),
    (TURNS + BEGIN + "<seed:think>{% endif %}", "<|assistant|><seed:think>\n\n</seed:think>\n\n"),
    (TURNS + BEGIN + "[THINK]{% endif %}", "<|assistant|>[THINK][/THINK]"),
    # the first DeepSeek-R1-Distill: earlier thoughts are cut off, so the model will have one
    (
        TURNS.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}") + BEGIN + "{% endif %}",
        "<|assistant|>" + THOUGHT,
    ),
    # gpt-oss: thoughts go to another channel
    (
        "{% if false %}<|channel|>analysis{% endif %}" + TURNS
        + "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|start|>assistant<|channel|>final<|message|>",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("template", "end"), UNSWITCHED)
def test_what_cannot_be_switched_off_is_read_after_an_empty_thought(template, end):
    tokenizer = chat(template)
    with pytest.warns(UserWarning, match="after an empty thought"):
        batch = tokenize(PROMPTS, tokenizer)
    assert batch.thinking == "an empty thought"
    assert batch.texts == tuple(f"<|user|>{prompt}{end}" for prompt in PROMPTS)
    segments = find_segments(batch, PROMPTS, tokenizer, PROMPTS)[0]
    assert segments[-1].name == "assistant header"
    assert segments[-1].stop == int(batch.lengths[0])


def test_a_prompt_about_thoughts_is_no_thought():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = tokenize(["What does <think> mean?"], chat(TURNS + BEGIN + "{% endif %}"))
    assert batch.thinking == ""
    assert batch.texts == ("<|user|>What does <think> mean?<|assistant|>",)


def test_templates_without_thoughts_are_left_as_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = tokenize(load_prompts("builtin").harmful, chat(TURNS + BEGIN + "{% endif %}"))
    assert batch.thinking == ""
    assert "thought" not in repr(batch)
