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
# # How are the published figures made with 7B models?
#
# The exact cells for Llama-2-7b-chat, Vicuna-7B, LLaMA-3.1-8B, Mistral-7B and GPT-JT-6B: both scatter figures of
# arXiv:2410.13708 and the grid of arXiv:2602.11495. With `SAFETYHEADS_NOTEBOOK_REAL=1`, the weights at hand and a GPU
# they are the real thing. Without, this is a **dry run**: one block of each model's true shape, with random weights.
# It shows that the cells run on these architectures, and what they will cost; its figures show noise.

# %%
import gc
import os

import pandas
import torch
import transformers

from safetyheads import (
    GeneralizedShips,
    Grid,
    PromptSet,
    attention_maps,
    load_model,
    load_prompts,
    plot_attention_maps,
    plot_head_scatter,
    rank_safety_heads,
    wrap,
)

REAL = os.environ.get("SAFETYHEADS_NOTEBOOK_REAL") == "1"
TINY = "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ
STAND_IN = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-instruct")
PROMPTS = 100 if REAL else 2

# %% [markdown]
# ## The models
#
# On the Hub, Llama and Mistral ask for consent to their licences and a login (`hf auth login`).

# %%
HUB = {
    "Llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "Vicuna-7B": "lmsys/vicuna-7b-v1.5",
    "LLaMA-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Mistral-7B": "mistralai/Mistral-7B-Instruct-v0.2",
    "GPT-JT-6B": "togethercomputer/GPT-JT-6B-v1",
}
wide = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
grouped = wide | {"intermediate_size": 14336, "num_key_value_heads": 8}
SHAPES = {
    "Llama-2-7b-chat": ("Llama", wide | {"intermediate_size": 11008, "vocab_size": 32000}),
    "Vicuna-7B": ("Llama", wide | {"intermediate_size": 11008, "vocab_size": 32000}),
    "LLaMA-3.1-8B": ("Llama", grouped | {"vocab_size": 128256}),
    "Mistral-7B": ("Mistral", grouped | {"vocab_size": 32000}),
    "GPT-JT-6B": (
        "GPTJ",
        {"n_embd": 4096, "n_head": 16, "n_layer": 28, "rotary_dim": 64, "vocab_size": 50400},
    ),
}


def shape_of(name, **changes):
    """A configuration of the model's true shape, with changes."""
    kind, shape = SHAPES[name]
    if "num_hidden_layers" not in shape:  # GPT-J has names of its own
        own = {
            "num_hidden_layers": "n_layer",
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
        }
        changes = {own.get(key, key): value for key, value in changes.items()}
    return getattr(transformers, f"{kind}Config")(**shape | changes)


# %% [markdown]
# ## What they need
#
# From the true shapes, on PyTorch's "meta" device, which holds no weights. A ranking runs every head on every prompt,
# from the ablated layer on: half a pass on average, 100 prompts of about 40 tokens of which half are shared.

# %%
rows = []
for name in SHAPES:
    with torch.device("meta"):
        whole = transformers.AutoModelForCausalLM.from_config(shape_of(name))
    weights, config = sum(p.numel() for p in whole.parameters()), whole.config
    heads = config.num_hidden_layers * config.num_attention_heads
    rows.append(
        {
            "model": name,
            "weights [1e9]": weights / 1e9,
            "bf16 [GB]": 2 * weights / 1e9,
            "heads": heads,
            "1e15 operations an ablation, 100 prompts": heads * 100 * 20 * weights / 1e15,
        }
    )
pandas.DataFrame(rows).round(1)


# %%
def opened(name):
    """The model: its weights, or one block of its shape with random ones and a stand-in's tokenizer."""
    if REAL:
        return load_model(HUB[name], device="cuda", dtype=torch.bfloat16)
    tokenizer = load_model(STAND_IN).tokenizer
    small = {"hidden_size": 1024, "intermediate_size": 64} if TINY else {}
    config = shape_of(name, num_hidden_layers=1, vocab_size=len(tokenizer), **small)
    torch.manual_seed(0)
    how = {"attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_config(config, **how).eval()
    model.config.name_or_path = f"{name}, one random block"
    return load_model(model, tokenizer)


# %% [markdown]
# ## Figure 1: one model, two datasets
#
# Which definition made the published numbers is not settled (docs/method.md): `"feature0"` is what the paper's code
# computed, on the template `"query"`. `plot_published_heads` lays the published markers over a ranking
# (docs/agreement.md).

# %%
model = opened("Llama-2-7b-chat")
name = "Llama-2-7b-chat" if REAL else "Llama-2-7b-chat, one random block"


def ranked(model, dataset):
    """The paper's ranking, of harmful prompts alone."""
    some = load_prompts(dataset)
    harmful = PromptSet(some.name, some.harmful).limit(PROMPTS)
    return rank_safety_heads(model, harmful, metric=GeneralizedShips("feature0"), template="query")


rankings = [ranked(model, dataset) for dataset in ("jailbreakbench", "malicious_instruct")]
table = pandas.concat(ranking.to_frame() for ranking in rankings).assign(model=name)
plot_head_scatter(table, panel="dataset", series="ablation")

# %% [markdown]
# ## Figure 2: two models, a panel an ablation

# %%
del model
gc.collect()
beside = ranked(opened("Vicuna-7B"), "jailbreakbench")
other = beside.to_frame().assign(model=name.replace("Llama-2-7b-chat", "Vicuna-7B"))
both = pandas.concat([table[table["dataset"] == "jailbreakbench"], other])
plot_head_scatter(both, panel="ablation", series="model")

# %% [markdown]
# ## The grid: three models, benign, jailbreak, difference

# %%
del beside
gc.collect()
requests = load_prompts("jailbreakbench").limit(max(PROMPTS, 2))
benign, jailbreak = requests.harmless or requests.harmful, wrap(requests.harmful)
grid = Grid(short="blank") if REAL else Grid(length=64, short="blank")
maps = []
for name, layer in (("GPT-JT-6B", 7), ("LLaMA-3.1-8B", 4), ("Mistral-7B", 18)):
    model = opened(name)
    maps.append(attention_maps(model, benign, jailbreak, layer if REAL else 0, grid=grid))
    del model
    gc.collect()
plot_attention_maps(maps, note=None if REAL else "Random weights of the true shapes: a dry run.")

# %% [markdown]
# ## What to conclude, and what not
#
# - If the last lines ran with `REAL` unset: the cells work on these architectures (multi-head, grouped-query and GPT-J
#   attention) at their true widths, and the table says what the real run needs. **The figures above are noise.**
# - The real figures were not made here: no weights of these models were in reach, and no GPU.
# - A real run of figure 1 takes the table's operations four times (two ablations, two datasets); `plan` measures your
#   machine (docs/running.md), `method="raced"` takes a tenth for metrics of single prompts (docs/racing.md).
