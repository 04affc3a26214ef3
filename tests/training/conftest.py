"""A tiny chat model, and lessons in its words."""

import copy
import random

import pytest

from tests import zoo

TEMPLATE = "{{ '<s> w6 w7 w8 ' }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' w9' }}"


def chat_tokenizer():
    tokenizer = copy.deepcopy(zoo.tokenizer())
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def requests(n, opening, seed=0):
    draw = random.Random(seed)
    return [
        zoo.sentence(opening, *(draw.randrange(20, 40) for _ in range(draw.randrange(2, 5))))
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture
def model():
    return zoo.random_model(zoo.CONFIGS["llama"]())
