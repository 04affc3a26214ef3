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
# log-odds of a refusal are read. The same with the ranked safety heads ablated in two ways, and with random heads of
# their layers.
#
# The model is SmolLM2 with 135 million parameters, taught to refuse (docs/siblings.md). The pairs are JailbreakBench's,
# which it did not learn from; the heads were ranked on the built-in ones. docs/stable-regions.md has 30 pairs, more
# layers and more draws. About three minutes on two cores.

# %%
import os

import pandas

from safetyheads import (
    AblateHeads,
    AlongDirection,
    PromptSet,
    UndifferentiatedAttention,
    ZeroAblation,
    load_model,
    load_prompts,
    null_directions,
    plot_border,
    refusal_border,
    refusal_direction,
    trace_sensitivity,
)
from safetyheads.heads import heads_like, parse_heads

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
COUNT = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PROMPTS", "12"))
TINY = "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ
model = load_model(MODEL)
every = load_prompts("jailbreakbench")


def some(name, rows):
    """Pairs of some rows."""
    sides = (tuple(side[n] for n in rows) for side in (every.harmful, every.harmless))
    return PromptSet(name, *sides, paired=True)


if TINY:
    pairs = learned = every.limit(COUNT)
else:
    pairs = some("odd rows", range(1, 100, 8)[:COUNT])
    learned = some("even rows", range(0, 100, 4))
LAYER = 2 if TINY else 16

# %% [markdown]
# ## The border
#
# Only the last token's activation is changed; the layers above still attend to the harmless request. A way that ends
# without a refusal though the harmful prompt gets one (`harmful` above 0) says that its refusal is not decided at this
# token below this layer.

# %%
untouched = refusal_border(model, pairs, LAYER)
print(untouched)
untouched.table()[["start", "end", "harmful", "crossing", "sharpness", "width"]].round(2)

# %% [markdown]
# ## With and without the heads
#
# Five heads whose ablation lowers the refusal log-odds most on built-in pairs, for each of two ablations: made to look
# at all tokens alike (the README's), and made silent (notebook 03's). Random heads are of the same layers.

# %%
ranked = {
    "undifferentiated": ("L18H8", "L17H2", "L14H7", "L14H5", "L8H8"),
    "silent": ("L0H6", "L0H8", "L0H7", "L27H5", "L11H8"),
}
if TINY:
    ranked = dict.fromkeys(ranked, ("L1H0", "L2H3"))
ablations = {"undifferentiated": UndifferentiatedAttention(), "silent": ZeroAblation()}
borders = {"none": untouched}
for name, ablation in ablations.items():
    heads = parse_heads(ranked[name])
    arms = {"ranked": heads, "random": next(heads_like(heads, model.n_heads, seed=0))}
    for kind, arm in arms.items():
        given = AblateHeads(arm, ablation)
        borders[f"{kind}, {name}"] = refusal_border(model, pairs, LAYER, given=given)
plot_border(pandas.concat([b.table().assign(heads=name) for name, b in borders.items()]))

# %%
told = {name: border.table() for name, border in borders.items()}
pandas.DataFrame(
    {
        name: {
            "begin in a refusal": (table["start"] > 0).sum(),
            "end in one": (table["end"] > 0).sum(),
            "cross": table["crosses"].sum(),
            "median crossing": table["crossing"].median(),
            "median width": table["width"].median(),
        }
        for name, table in told.items()
    }
).T.round(2)

# %% [markdown]
# ## Is the refusal direction privileged?
#
# Walks along it, and along strong nulls of the same length: mean differences of other concepts, of relabelled prompts,
# and directions drawn with the states' own covariance.

# %%
refusal = refusal_direction(model, learned, LAYER)
vectors = {"refusal": refusal}
kinds = ("relabelled", "covariance") if TINY else ("concept", "relabelled", "covariance")
vectors |= null_directions(model, learned, refusal, kinds=kinds, count=2)
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
# - There is a border on few ways, and no sharp one: the median width is 0.75, a straight line's 0.8. Six of the twelve
#   pairs could show one (the harmful prompt leans to a refusal, the harmless one does not), and two do: what the last
#   token holds before layer 16 settles little. Higher up it settles more (docs/stable-regions.md).
# - Undifferentiated attention on its ranked heads takes every refusal away, at both ends; on random heads of the same
#   layers it makes ten of twelve *harmless* prompts lean to one. Both are what is written (docs/carriers.md).
# - With its ranked heads made silent, as many ways end in a refusal as with random ones (five of twelve; six
#   untouched), at about the same width. On these twelve the heads do not make the border.
# - The refusal direction is not privileged: exponent 1.00 and width 0.80 like all the nulls, and the output moves by
#   10.8 along it, by 7.5 to 11.2 along other concepts, relabelled prompts and covariance-matched directions.
# - Twelve pairs show how it is done; docs/stable-regions.md has 30, more layers, and three draws of random heads.
