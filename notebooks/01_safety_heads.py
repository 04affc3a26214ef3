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
# # Which attention heads does a refusal rest on?
#
# Ablate one attention head at a time, see how far the model's next token moves on harmful prompts,
# rank the heads by it, and look at the same scores on harmless prompts before believing anything.
#
# With the model below this takes some minutes on two cores. It is small and **hardly ever
# refuses**: what you see here is a negative control. `"qwen2.5-coder-0.5b-instruct"` refuses some;
# set the environment variable `SAFETYHEADS_NOTEBOOK_MODEL` to it, or change the name here.

# %%
import os
import tempfile

from safetyheads import (
    Execution,
    GeneralizedShips,
    RefusalShift,
    ScalingContribution,
    Ships,
    UndifferentiatedAttention,
    load_model,
    load_prompts,
    plot_head_heatmap,
    plot_head_scatter,
    rank_safety_heads,
    score_heads,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-instruct")
PAIRS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PAIRS", "3"))

model = load_model(MODEL)
print(
    model.name,
    "-",
    model.n_layers,
    "layers,",
    model.n_heads,
    "query heads,",
    model.n_kv,
    "key/value heads",
)

# %% [markdown]
# ## The prompts
#
# `"builtin"` holds matched pairs: each harmful request has a harmless twin that shares its form
# and most of its words. What differs between the two sides is then the harm, not the topic or the
# length. `limit` keeps a few pairs, spread over the categories.

# %%
everything = load_prompts("builtin")
prompts = everything.limit(PAIRS)
print(everything)
print(prompts)
print("categories:", ", ".join(dict.fromkeys(everything.categories)))
print()
print("harmful :", prompts.harmful[0])
print("harmless:", prompts.harmless[0])

# %% [markdown]
# ## One score for every head
#
# `Ships()` is the KL divergence [nat] from the untouched model's next-token distribution to the
# ablated model's. `values` is `[layer, head]`; `per_prompt` keeps the prompts apart.
# `store` names a folder where finished layers are kept: a run that was stopped goes on from there,
# and the same scores asked for again (two cells down) are read, not computed.

# %%
STORE = tempfile.mkdtemp()

undifferentiated = score_heads(
    model,
    prompts,
    ablation=UndifferentiatedAttention(),
    metric=Ships(),
    execution=Execution(store=STORE),
)
print(undifferentiated.values.shape, undifferentiated.per_prompt.shape, undifferentiated.unit)
undifferentiated.top(10)

# %%
scaling = score_heads(
    model, prompts, ablation=ScalingContribution(), metric=Ships(), execution=Execution(store=STORE)
)
scaling.top(10)

# %% [markdown]
# ## The ranking, with the harmless prompts beside it
#
# `rank_safety_heads` does both ablations on both sides. A circle is undifferentiated attention, a
# cross scaling contribution; where a head is in both rankings, the cross lies on the circle.

# %%
ranking = rank_safety_heads(model, prompts, metric=Ships(), execution=Execution(store=STORE))
ranking.top(5)

# %%
ranking.plot()

# %% [markdown]
# All heads at once. A few early heads usually stand out: ablate them and everything changes.

# %%
plot_head_heatmap(ranking.to_frame(), k=10)

# %% [markdown]
# ## Safety, or everything?
#
# Each point is a head: its score on the harmless twins against its score on the harmful prompts.
# Heads on the diagonal matter for any prompt alike; a candidate for a *safety* head lies well
# above it. With so few prompts this is a preview and no test.

# %%
import plotly.express

table = ranking.to_frame()
figure = plotly.express.scatter(
    table,
    x="harmless_score",
    y="score",
    facet_col="ablation",
    hover_name="label",
    log_x=True,
    log_y=True,
    template="plotly_white",
    labels={"score": "harmful: Ships [nat]", "harmless_score": "harmless: Ships [nat]"},
)
ends = [table[["score", "harmless_score"]].min().min() or 1e-9, table["score"].max()]
for column in (1, 2):
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line_color="grey", showlegend=False, row=1, col=column
    )
figure

# %% [markdown]
# ## A score with a sign
#
# `RefusalShift` is the change of the log-odds [nat] that the next token begins a refusal ("I",
# "As", "Sorry"; their tokens are read off the tokenizer). A head that helps the model to refuse
# has a **negative** shift: without it a refusal is less likely. Rank 1 is the most negative one.
# The openings are a proxy: "I" also begins "I can help".

# %%
refusal = score_heads(model, prompts, ablation=UndifferentiatedAttention(), metric=RefusalShift())
print(
    "refusal tokens:", [model.tokenizer.decode([t]) for t in refusal.provenance["metric"]["tokens"]]
)
refusal.top(5)

# %%
plot_head_heatmap(refusal.to_frame(), k=5)

# %% [markdown]
# ## A whole dataset at once, and why the definition matters
#
# Generalized Ships compares the final states of *all* prompts, before and after: how far does the
# subspace that they span turn, in degrees? The paper's equation (`left`) and what its code computed
# until June 2025 (`feature0`) are different quantities on different scales. Never mix them: the
# metric's name in every table and colour bar says which one it is.

# %%
import pandas

both = pandas.concat(
    score_heads(model, prompts, metric=GeneralizedShips(space=space)).to_frame()
    for space in ("left", "feature0")
)
both.groupby("metric")["score"].describe()[["min", "50%", "max"]]

# %%
plot_head_scatter(both, panel="metric", series="ablation")

# %% [markdown]
# ## A question of your own
#
# An ablation is a frozen value that is also a function: the head's activations in, what replaces
# its output `z` out. What if a head could look at nothing but the first token?

# %%
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class FirstTokenOnly:
    name: ClassVar[str] = "first_token_only"
    needs: ClassVar[frozenset[str]] = frozenset()  # of "scores", "mean", "donor"

    def __call__(self, acts):
        return acts.v[:, :1].expand_as(acts.v)


first = score_heads(model, prompts, ablation=FirstTokenOnly())
first.top(5)

# %% [markdown]
# The head that attends to the first token anyway is not hurt by this; one that needs to see the
# request is. Compare the two rankings:

# %%
ranks = undifferentiated.to_frame().merge(first.to_frame(), on="label", suffixes=("", "_first"))
ranks[["label", "rank", "rank_first"]].head(10)

# %% [markdown]
# ## Keep it
#
# `save` writes the table, a manifest of everything that determined the numbers (prompts by count
# and hash, never by text), the figure as one page that opens offline, and the tensors.

# %%
folder = ranking.save(tempfile.mkdtemp())
sorted(path.name for path in folder.iterdir())
