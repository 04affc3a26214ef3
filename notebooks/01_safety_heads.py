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
# # Which attention heads does a chat model's refusal rest on?
#
# From nothing to both published scatter figures (arXiv:2410.13708): ablate one attention head at a time, see how far
# the next token's refusal moves, rank the heads by it, and look at harmless prompts before believing anything.
#
# The model has 135 million parameters and was taught to refuse (docs/siblings.md): it refuses 79 of 100 harmful prompts
# that it never saw. About four minutes on two cores. `SAFETYHEADS_NOTEBOOK_MODEL` names another model,
# `SAFETYHEADS_NOTEBOOK_PAIRS` another number of prompts.

# %%
import os
import tempfile

import pandas

from safetyheads import (
    Execution,
    load_model,
    load_prompts,
    plot_head_heatmap,
    plot_head_scatter,
    plot_specificity,
    rank_safety_heads,
    score_heads,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
BESIDE = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-instruct")
PAIRS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PAIRS", "4"))

model = load_model(MODEL)
print(
    f"{model.name}: {model.n_layers} layers, {model.n_heads} query heads, {model.n_kv} key/value heads"
)

# %% [markdown]
# ## The prompts
#
# `"builtin"` holds matched pairs: each harmful request has a harmless twin that shares its form and most of its words.
# What differs between the two sides is then the harm, not the topic or the length. `limit` keeps a few pairs, spread
# over the categories.

# %%
prompts = load_prompts("builtin").limit(PAIRS)
print(prompts)
print("harmful :", prompts.harmful[0])
print("harmless:", prompts.harmless[0])

# %% [markdown]
# ## The ranking
#
# `RefusalShift`, the default metric, is the change of the log-odds [nat] that the next token begins a refusal ("I",
# "As", "Sorry"; their tokens are read off the tokenizer). A head that helps the model to refuse has a **negative**
# shift: without it a refusal is less likely. Two ablations: undifferentiated attention (the head looks at all tokens
# alike) and scaling contribution (its output is all but removed). `method="screened"` estimates all heads from a few
# backward passes and runs those that are likely to be among the top, which is the choice for few prompts (for more,
# `"raced"`). `store` keeps finished layers, for a run that is stopped.

# %%
ranking = rank_safety_heads(
    model, prompts, method="screened", execution=Execution(store=tempfile.mkdtemp())
)
ranking.top(5)[["label", "ablation", "score", "harmless_score", "specificity", "q_value"]]

# %%
ranking.plot()

# %% [markdown]
# A circle is undifferentiated attention, a cross scaling contribution; a cross on a circle is a head of both rankings.
# Open symbols did not rise above what relabelled prompts give: with so few pairs nearly all are. Notebook 03 has more.
#
# All heads at once; what was not run on all prompts is an estimate, and hatched.

# %%
plot_head_heatmap(ranking.to_frame(), k=10)

# %% [markdown]
# ## Safety, or everything?
#
# Each point is a head that ran on all prompts of both sides: its score on the harmless twins against its score on the
# harmful prompts. On the diagonal a head matters for any prompt alike.

# %%
plot_specificity(ranking.to_frame())

# %% [markdown]
# ## The paper's first figure: two datasets
#
# JailbreakBench and Malicious Instruct come from the Hub, or from the folder that `SAFETYHEADS_DATA` names. A panel a
# dataset, a symbol an ablation.


# %%
def table_of(model, dataset):
    """All heads of a model on a dataset, under both ablations."""
    some = load_prompts(dataset).limit(PAIRS)
    tables = [
        score_heads(
            model, some, ablation=name, metric="refusal_shift", method="screened"
        ).to_frame()
        for name in ("undifferentiated_attention", "scaling_contribution")
    ]
    return pandas.concat(tables).assign(dataset=some.name, model=model.name)


datasets = pandas.concat(table_of(model, name) for name in ("jailbreakbench", "malicious_instruct"))
plot_head_scatter(datasets, panel="dataset", series="ablation")

# %% [markdown]
# ## The paper's second figure: two models
#
# Beside the model that refuses, the one that it was made from, which answers everything. A panel an ablation, a symbol
# a model. The base has a top ten too: **any** model has.

# %%
base = table_of(load_model(BESIDE), "builtin").assign(model=BESIDE)
models = pandas.concat([ranking.to_frame(), base])
plot_head_scatter(models, panel="ablation", series="model")

# %% [markdown]
# ## Keep it
#
# `save` writes the table, a manifest of everything that determined the numbers (prompts by count and hash, never by
# text), the figure as one page that opens offline, and the tensors.

# %%
folder = ranking.save(tempfile.mkdtemp())
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# ## What to conclude, and what not
#
# - A rank says how far *this next token* moves. It does not say that the head is about safety: compare with the
#   harmless column, and with the base model, whose top ten cannot be heads of a refusal that it does not give.
# - Two datasets that rank the same heads agree about the model, not about safety: their prompts look alike.
# - Undifferentiated attention also *writes* something. Whether a head's *loss* lowers refusal is the scaling column;
#   `find_carriers` tells the two apart (docs/carriers.md).
# - Nothing here was generated. Notebook 04 ablates the top heads and lets the model speak.
