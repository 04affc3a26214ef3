import hashlib

import pytest
import torch

from safetyheads.prompts import TEMPLATES, TokenBatch, default_template, render, tokenize
from tests.prompts.making import CHAT, NO_BOS_CHAT, SECRET, SPECIALS, TURNS, make_tokenizer


def test_templates_are_rendered_by_plain_replacement():
    assert list(TEMPLATES) == ["chat", "bare", "query"]
    assert render(["hi {x} {0}"], "bare", None) == ["hi {x} {0}"]
    assert render(["hi {q}"], "query", None) == ["## Query:hi {q}\n## Answer:"]
    assert render(["a", "b"], "{x} {q} {q}{{", None) == ["{x} a a{{", "{x} b b{{"]
    chatty = make_tokenizer(chat_template=CHAT)
    assert render(["hi"], "chat", chatty) == ["<s>[INST] hi [/INST]"]
    assert default_template(chatty) == "chat"
    assert default_template(make_tokenizer()) == "bare"
    assert render(["hi"], None, make_tokenizer()) == ["hi"]


@pytest.mark.parametrize(
    ("texts", "template", "message"),
    [
        (["a"], "say it", "template 'say it' has no {q}"),
        (["a"], "Query", "did you mean 'query'"),
        (["a"], "", "template '' has no {q}"),
        (["a"], "chat", "no chat template .* use template='bare' or template='query'"),
        ([], "bare", "is empty"),
        (["a", ""], "bare", "index 1 .* is blank"),
        (["a", 2], "bare", "index 1 .* type int"),
        ("a", "bare", "type str: expected a list"),
    ],
)
def test_what_cannot_be_rendered_is_explained(texts, template, message):
    with pytest.raises(ValueError, match=message):
        render(texts, template, make_tokenizer())
    with pytest.raises(ValueError, match=message):
        tokenize(texts, make_tokenizer(), template)


def test_a_chat_template_that_fails_names_the_prompt_only():
    failing = make_tokenizer(chat_template="{{ raise_exception(messages[0]['content']) }}")
    with pytest.raises(ValueError, match="failed on the prompt at index 0") as caught:
        tokenize([SECRET], failing)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A", "$A </s>"])
@pytest.mark.parametrize("template", ["bare", "query", "Q {q} A"])
def test_plain_text_gets_what_the_tokenizer_puts_before_it_and_nothing_after(adds, template):
    tokenizer = make_tokenizer(adds)
    batch = tokenize(["hello", "a longer one"], tokenizer, template)
    for row, length, text in zip(batch.ids, batch.lengths, batch.texts, strict=True):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = [1, *plain] if adds.startswith("<s>") else plain
        assert row[:length].tolist() == expected
    assert batch.template == template


@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A"])
@pytest.mark.parametrize("chat_template", [CHAT, NO_BOS_CHAT])
def test_chat_has_one_bos_whoever_writes_it(adds, chat_template):
    tokenizer = make_tokenizer(adds, chat_template=chat_template)
    batch = tokenize(["hello"], tokenizer)
    plain = tokenizer("[INST] hello [/INST]", add_special_tokens=False)["input_ids"]
    has_bos = adds.startswith("<s>") or chat_template is CHAT
    assert batch.ids[0].tolist() == ([1, *plain] if has_bos else plain)
    assert batch.template == "chat"


@pytest.mark.parametrize("bos", ["<|im_start|>", None])
def test_a_bos_that_begins_every_turn_is_neither_doubled_nor_refused(bos):
    tokenizer = make_tokenizer("$A", bos=bos, chat_template=TURNS)
    row = tokenize(["hello"], tokenizer).ids[0].tolist()
    start = SPECIALS.index("<|im_start|>")
    assert row[0] == start
    assert row.count(start) == 3
    assert row == tokenizer(render(["hello"], "chat", tokenizer)[0])["input_ids"]
    assert start not in tokenize(["hello"], tokenizer, "bare").ids


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "template"),
    [
        (make_tokenizer(), "hi", "<s>{q}"),
        (make_tokenizer(), "hi", " <s>{q}"),
        (make_tokenizer(), "<s>hi", "bare"),
        (make_tokenizer("$A"), "<s>hi", "<s>{q}"),
        (make_tokenizer("<s> <s> $A"), "hi", "bare"),
        (make_tokenizer(chat_template="<s>" + CHAT), "hi", "chat"),
    ],
)
def test_two_bos_are_refused(tokenizer, prompt, template):
    with pytest.raises(ValueError, match=r"index 0 starts with two BOS tokens \('<s>'\)"):
        tokenize([prompt], tokenizer, template)


def test_one_bos_that_a_template_writes_is_kept():
    row = tokenize(["hi"], make_tokenizer("$A"), "<s>{q}").ids[0].tolist()
    assert (row[0], row.count(1), len(row)) == (1, 1, 3)


def test_rows_are_padded_on_the_right():
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    tokenizer("a b c", padding="max_length", truncation=True, max_length=4)  # leaves traces
    batch = tokenize(["abc", "a", "abcdefgh"], tokenizer, "bare")
    assert batch.ids.shape == (3, 9)
    assert batch.lengths.tolist() == [4, 2, 9]
    assert batch.ids.dtype == batch.lengths.dtype == torch.int64
    assert (batch.ids[1, 2:] == 0).all()
    assert (batch.ids[0, :4] != 0).all()
    end = SPECIALS.index("</s>")
    assert tokenize(["abc", "a"], make_tokenizer(pad="</s>"), "bare").ids[1, -1] == end
    assert tokenize(["abc", "a"], make_tokenizer(pad=None), "bare").ids[1, -1] == 0


def test_a_row_does_not_depend_on_its_batch():
    tokenizer, texts = make_tokenizer(), ["abc", "a", "abcdefgh"]
    batch = tokenize(texts, tokenizer)
    for index, text in enumerate(texts):
        alone = tokenize([text], tokenizer)
        chosen = batch.select([index])
        assert chosen.ids.tolist() == alone.ids.tolist()
        assert chosen.fingerprint == alone.fingerprint


def test_select_trims_and_orders():
    batch = tokenize(["abc", "a", "abcdefgh"], make_tokenizer(), "query")
    some = batch.select([1, 0])
    assert some.texts == (batch.texts[1], batch.texts[0])
    assert some.ids.shape[1] == int(batch.lengths[0])
    assert some.template == "query"
    assert batch.select(range(3)).fingerprint == batch.fingerprint != some.fingerprint
    for wrong in ([3], [-1], []):
        with pytest.raises(ValueError, match="expected"):
            batch.select(wrong)


def test_the_prefix_is_what_all_share_and_leaves_a_token_to_each():
    tokenizer = make_tokenizer()

    def oracle(batch: TokenBatch) -> int:
        rows = [r[:n] for r, n in zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)]
        shared = 0
        while shared < min(map(len, rows)) - 1 and len({row[shared] for row in rows}) == 1:
            shared += 1
        return shared

    expected = {("abX", "abY"): 3, ("ab", "abc"): 2, ("a", "b"): 1, ("abc",): 3, ("a", "abab"): 1}
    for texts, length in expected.items():
        batch = tokenize(texts, tokenizer, "bare")
        assert batch.prefix_length == oracle(batch) == length
    assert tokenize(["a", "b"], make_tokenizer("$A"), "bare").prefix_length == 0
    query = tokenize(["abc", "xyz"], tokenizer, "query")
    assert query.prefix_length == oracle(query) == 1 + len("## Query:")


def test_the_fingerprint_follows_tokens_and_lengths_and_not_the_padding():
    first = TokenBatch(torch.tensor([[1, 2, 0]]), torch.tensor([2]), ("a",), "bare")
    padded = TokenBatch(torch.tensor([[1, 2, 7]]), torch.tensor([2]), ("a",), "bare")
    longer = TokenBatch(torch.tensor([[1, 2, 0]]), torch.tensor([3]), ("a",), "bare")
    other = TokenBatch(torch.tensor([[1, 3, 0]]), torch.tensor([2]), ("a",), "bare")
    assert first.fingerprint == padded.fingerprint
    assert len({first.fingerprint, longer.fingerprint, other.fingerprint}) == 3
    assert len(first.fingerprint) == len(hashlib.sha256().hexdigest())


def test_a_long_prompt_is_named_by_index_count_and_limit():
    texts = ["ab", SECRET, "abc"]
    with pytest.raises(ValueError, match=r"index 1 has 10 tokens .* limit is 9") as caught:
        tokenize(texts, make_tokenizer(), "bare", max_length=9)
    assert SECRET not in str(caught.value)
    assert tokenize(texts, make_tokenizer(), "bare", max_length=10).ids.shape == (3, 10)


def test_a_batch_hides_its_prompts():
    batch = tokenize([SECRET], make_tokenizer(), "query")
    assert SECRET not in repr(batch)
    assert "1 prompts" in repr(batch)


def test_a_prompt_without_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    blind = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"x": 0}, [])))
    with pytest.raises(ValueError, match="index 1 has no tokens"):
        tokenize(["x", "unknown"], blind)
