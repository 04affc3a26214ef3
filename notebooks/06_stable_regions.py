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
# # Are there regions in which the output hardly moves?
#
# *Characterizing stable regions in the residual stream of LLMs* (arXiv:2409.17113): at a prompt's
# last token, what leaves the first block is walked into another prompt's, and the output is read at
# each step. In a trained model the output stays, jumps, and stays again; in one with random weights
# it follows the walk in a straight line.
#
# And where, on the way from a harmless request to a harmful one, does a model that was taught to refuse begin to?
#
# About a minute on two cores; `SAFETYHEADS_NOTEBOOK_PROMPTS` sets how many walks.

# %%
import functools
import os

import pandas

from safetyheads import (
    Arc,
    FixedSteps,
    PromptSet,
    RandomDirection,
    load_model,
    load_prompts,
    plot_border,
    plot_region_slices,
    plot_regions,
    plot_walks,
    random_copy,
    refusal_border,
    slice_regions,
    stable_regions,
    text_windows,
    trace_sensitivity,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-instruct")
REFUSING = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
COUNT = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PROMPTS", "12"))
model = load_model(MODEL)

# %% [markdown]
# ## Pieces of text
#
# Any texts do; these are windows of six tokens out of the built-in requests, without a template, where the paper takes
# windows of ten out of books.

# %%
requests = load_prompts("builtin")
texts = [*requests.harmful, *requests.harmless]
if "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ:
    windows = texts[:8]
else:
    windows = text_windows(texts, model.tokenizer, length=6, count=COUNT)

# %% [markdown]
# ## Trained, and with random weights
#
# The copy with random weights is always beside: without it a sharpness says nothing. Both numbers belong to their
# number of steps.

# %%
regions = stable_regions(model, windows, steps=50)
print(regions.trained.checks)
regions.table()[["weights", "sharpness", "width", "plateau", "walks", "invalid", "steps"]]

# %%
curves = pandas.concat(
    [
        regions.trained.curve().assign(weights="trained"),
        regions.random.curve().assign(weights="random"),
    ]
)
plot_walks(curves, group="weights")

# %%
plot_regions(regions.table(), "parameters")

# %% [markdown]
# ## Other ways
#
# Along an arc, so that the norm is no part of it; toward a random activation that has the mean and covariance of real
# ones; in steps of one size.

# %%
ways = {
    "straight": regions.trained,
    "arc": trace_sensitivity(model, windows, way=Arc),
    "to random": trace_sensitivity(model, windows, RandomDirection()),
    "steps of one size": trace_sensitivity(
        model, windows, way=functools.partial(FixedSteps, size=0.02)
    ),
}
plot_walks(
    pandas.concat([walk.curve().assign(path=name) for name, walk in ways.items()]), group="path"
)

# %% [markdown]
# ## A plane through three prompts

# %%
three = [requests.harmless[0], requests.harmless[1], requests.harmless[2]]
planes = [
    slice_regions(which, three, points=12, template="bare") for which in (model, random_copy(model))
]
plot_region_slices(planes, ["trained", "random weights"])

# %% [markdown]
# ## Is refusal such a region?
#
# A model that was taught to refuse (docs/siblings.md), and JailbreakBench's matched pairs, which it did not learn from.
# Each harmless request's activation is walked into the harmful one's, three quarters up, and the log-odds that the
# answer begins with a refusal are read. Notebook 10 asks which heads make the border.

# %%
refusing, every = load_model(REFUSING), load_prompts("jailbreakbench")
rows = range(1, len(every), max(1, len(every) // 8))[:COUNT]
sides = (tuple(side[n] for n in rows) for side in (every.harmful, every.harmless))
pairs = PromptSet("every twelfth pair", *sides, paired=True)
border = refusal_border(refusing, pairs, 3 * refusing.n_layers // 4, steps=31)
print(border)
border.table()[["start", "end", "harmful", "crossing", "sharpness", "width"]].round(2)

# %%
plot_border(border.table(), group="model")

# %% [markdown]
# ## What to conclude, and what not
#
# - Plateaus with a border between them are learnt: sharpness 5.6 and width 0.57 in the trained model, 1.08 and 0.80 in
#   the copy with random weights, where a straight line has 1 and 0.8. (Twelve walks; docs/stable-regions.md has 200.)
# - The norm is no part of it (the arc has the same border), nor is what the walk leads to: a covariance-matched random
#   activation lies behind a border too. One unit of the way, in steps of one size, is too short to reach any.
# - The plane shows the same in two dimensions: flat red, green and violet with a border in the trained model, an even
#   blend in the copy.
# - Refusal has no such border here. Of nine ways to a harmful prompt, four begin without a refusal and one ends in one,
#   and the log-odds change at a width of 0.68 to 0.80, nearly as evenly as a straight line. Five harmless prompts lean
#   to a refusal from the start, which says how coarsely this model tells them apart.
# - A sharpness belongs to its number of steps, its layer and its prompts; compare within one run.
# - Nothing here says that a region *means* something: that takes what the outputs on either side are.
