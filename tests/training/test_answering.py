"""Does an answer depend on its prompt alone, and does it end where the model ends it?"""

import pytest
import torch

from safetyheads.training.answering import answer, shared_beginning, tokenize_chats
from tests import zoo

PROMPTS = [zoo.sentence(20, 21, 22), zoo.sentence(30, 31), zoo.sentence(40, 41, 42, 43, 44)]


def test_answers_together_are_those_that_transformers_gives_alone(model, tokenizer):
    told = answer(model, tokenizer, PROMPTS, max_new_tokens=6, rows=2)
    ended = []
    for prompt, got in zip(PROMPTS, told, strict=True):
        ids = torch.tensor(tokenize_chats(tokenizer, [prompt]))
        alone = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        ended.append(alone[-1] == tokenizer.eos_token_id)
        assert got == (alone[:-1] if ended[-1] else alone)
    assert sorted(set(ended)) == [False, True]  # one that ends by itself is among them


def test_a_tokenizer_without_a_chat_template_is_refused(model):
    with pytest.raises(ValueError, match="has no chat template"):
        answer(model, zoo.tokenizer(), PROMPTS)


def test_one_prompt_leaves_a_token_of_its_own():
    assert shared_beginning([[1, 2, 3]]) == [1, 2]
    assert shared_beginning([[1, 2, 3], [1, 2]]) == [1]
