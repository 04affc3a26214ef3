"""The plain model's attention, a pass a prompt, and prompts to read."""

import math
import random

import torch

from tests.zoo import sentence, tokenizer


def stacked(hf, texts, size):
    """The plain model's attentions, a pass a prompt: [prompt, layer, head, query, key], NaN where there is none."""
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer()(text)["input_ids"]])[:, :size]
        with torch.no_grad():
            layers = hf(input_ids=ids, output_attentions=True).attentions
        pattern = torch.stack([layer[0] for layer in layers])
        n = ids.shape[1]
        pattern = pattern.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), math.nan)
        pad = (0, size - n) * 2
        rows.append(torch.nn.functional.pad(pattern, pad, value=math.nan))
    return torch.stack(rows)


def long_sets(seed=0, n=4, length=12):
    draw = random.Random(seed)
    return [
        [sentence(*(draw.randrange(6, 97) for _ in range(length))) for _ in range(n)]
        for _ in range(2)
    ]


def random_texts(seed, n, shortest, longest, first=6, last=96):
    draw = random.Random(seed)
    return [
        sentence(*(draw.randint(first, last) for _ in range(draw.randint(shortest, longest))))
        for _ in range(n)
    ]
