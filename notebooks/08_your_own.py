# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can I ask it my own question?
#
# An ablation, a metric and a model of your own, ten lines each. Everything else (batches, shared prefixes, the harmless
# control, tables, figures) stays as it is. About two minutes on two cores.

# %%
import os
from dataclasses import dataclass
from typing import ClassVar

import torch

from safetyheads import (
    RefusalShift,
    load_model,
    load_prompts,
    plot_head_heatmap,
    plot_head_scatter,
    score_heads,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
PAIRS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PAIRS", "3"))
model = load_model(MODEL)
prompts = load_prompts("builtin").limit(PAIRS)

# %% [markdown]
# ## An ablation
#
# A frozen value that is also a function: the head's activations in, what replaces its output `z` out. What if a head
# could look at nothing but the first token?


# %%
@dataclass(frozen=True)
class FirstTokenOnly:
    name: ClassVar[str] = "first_token_only"
    needs: ClassVar[frozenset[str]] = frozenset()  # of "scores", "mean", "donor"

    def __call__(self, acts):
        return acts.v[:, :1].expand_as(acts.v)


first = score_heads(model, prompts, ablation=FirstTokenOnly(), metric="refusal_shift")
first.top(5)[["label", "ablation", "metric", "score"]]

# %%
plot_head_heatmap(first.to_frame().assign(model=model.name, dataset=prompts.name), k=5)

# %% [markdown]
# ## A metric
#
# `read` keeps a number of each row, `unit` and `largest_first` say what it is and how heads are ranked by it. The other
# methods of a metric that is a mean over prompts are `RefusalShift`'s. Here: how much more (or less) certain of its
# next token the model becomes, in nats of entropy.


# %%
@dataclass(frozen=True)
class EntropyShift(RefusalShift):
    name: ClassVar[str] = "entropy_shift"
    unit: ClassVar[str] = "nat"
    largest_first: ClassVar[bool] = True

    def read(self, ablated, baseline):
        def entropy(last):
            return -(last.log_probs.exp() * last.log_probs).sum(-1)

        return entropy(ablated) - entropy(baseline)


certain = score_heads(model, prompts, ablation="zero", metric=EntropyShift(), method="raced")
certain.top(5)[["label", "ablation", "metric", "score"]]

# %%
plot_head_scatter(certain.to_frame().assign(model=model.name, dataset=prompts.name), k=10)

# %% [markdown]
# ## A model
#
# `load_model` takes a Hub id, a folder, a `.gguf` file, or a transformers model with its tokenizer, such as one that
# you have just trained. When it is opened, what the library runs is compared with the model as it came; what disagrees
# is refused. Here: two layers, random weights, six query heads that share two key/value heads.

# %%
from transformers import MistralConfig, MistralForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
config = MistralConfig(**shape, **heads, vocab_size=len(model.tokenizer), initializer_range=0.3)
mine = load_model(MistralForCausalLM(config).eval(), model.tokenizer)
own = score_heads(mine, prompts, ablation=FirstTokenOnly(), metric=EntropyShift())
own.top(3)[["label", "ablation", "metric", "score"]]

# %% [markdown]
# ## What to conclude, and what not
#
# - An ablation, a metric or a model of your own goes wherever the library's go: `rank_safety_heads`, `search_heads`,
#   `measure_behaviour`, the command line's studies excepted (a file cannot hold code).
# - An ablation that needs the attention scores, the mean output or another prompt says so in `needs`.
# - The three numbers above are of three prompts: they show that it works, and nothing about a model.
# - A store (`Execution(store=...)`) knows an ablation of your own by its name and fields, not by its code: change the
#   name when you change what it does.
