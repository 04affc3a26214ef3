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
# # Where does the model begin to refuse, and who makes that border?
#
# From each harmless request to its matched harmful one: the activation at the last token is walked over, and the
# log-odds of a refusal are read. The same with the ranked safety heads ablated, and with random heads of their layers.
#
# The model is SmolLM2 with 135 million parameters, taught to refuse (docs/siblings.md); the requests are the built-in
# ones, which are mild, and the harmful half of which was among its lessons. docs/stable-regions.md has the same for
# another model. Three minutes on two cores.

# %%
import os

import pandas

from safetyheads import (
    AblateHeads,
    AlongDirection,
    Head,
    UndifferentiatedAttention,
    load_model,
    load_prompts,
    null_directions,
    plot_border,
    refusal_border,
    refusal_direction,
    trace_sensitivity,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
COUNT = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PROMPTS", "8"))
TINY = "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ
model = load_model(MODEL)
pairs = load_prompts("builtin").limit(COUNT)
LAYER = 2 if TINY else 15

# %% [markdown]
# ## The border
#
# Only the last token's activation is changed; the layers above still attend to the harmless request. A way that ends
# without a refusal says that refusal is not decided at this token below this layer.

# %%
untouched = refusal_border(model, pairs, LAYER)
print(untouched)
untouched.table()[["start", "end", "harmful", "crossing", "sharpness", "width"]]

# %% [markdown]
# ## With and without the heads
#
# The five that a race of the refusal shift put first on 16 built-in pairs (undifferentiated attention; the README's
# lines with that ablation). What is random keeps the layers.

# %%
ranked = tuple(Head(*at) for at in ((18, 8), (17, 2), (14, 5), (8, 8), (15, 8)))
drawn = tuple(Head(*at) for at in ((18, 1), (17, 5), (14, 2), (8, 3), (15, 4)))
if TINY:
    ranked, drawn = (Head(1, 0), Head(2, 3)), (Head(1, 4), Head(2, 1))
ablation = UndifferentiatedAttention()
borders = {
    "none": untouched,
    "ranked": refusal_border(model, pairs, LAYER, given=AblateHeads(ranked, ablation)),
    "random": refusal_border(model, pairs, LAYER, given=AblateHeads(drawn, ablation)),
}
plot_border(pandas.concat([b.table().assign(heads=name) for name, b in borders.items()]))

# %% [markdown]
# ## Is the refusal direction privileged?
#
# Walks along it, and along strong nulls of the same length: mean differences of other concepts, and directions drawn
# with the states' own covariance.

# %%
refusal = refusal_direction(model, pairs, LAYER)
vectors = {"refusal": refusal}
kinds = ("relabelled", "covariance") if TINY else ("concept", "covariance")
vectors |= null_directions(model, pairs, refusal, kinds=kinds, count=2)
rows = []
for name, direction in vectors.items():
    target = AlongDirection(direction.vector, 2 * refusal.length, name)
    walk = trace_sensitivity(model, list(pairs.harmless), target, layer=LAYER, steps=31)
    rows.append(walk.measures().assign(direction=name))
responses = pandas.concat(rows).groupby("direction", sort=False)
responses[["distance", "sharpness", "width", "exponent"]].median()

# %% [markdown]
# ## What to conclude, and what not
#
# - A border is sharp where the width is far below a straight line's 0.8; a way that never refuses says that refusal is
#   not decided at this token and layer.
# - That ranked heads move it is an effect of what the ablation writes as well as of their loss (docs/carriers.md), and
#   counts beside random heads of their layers only.
# - An exponent near that of the nulls says that the refusal direction is no privileged one.
