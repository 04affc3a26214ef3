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
# # Where does a model look when it reads a jailbreak?
#
# The grid of *Jailbreaking Leaves a Trace* (arXiv:2602.11495): a row a model and layer; columns
# benign, jailbreak and their difference; query token against key token. Then the questions that
# the grid leaves open: is the difference more than chance, more than length, and which heads?
#
# The models are small: SmolLM2, and the same after it was taught to refuse. Four minutes on two cores;
# `SAFETYHEADS_NOTEBOOK_PROMPTS` sets how many prompts of each kind.

# %%
import os
from pathlib import Path

from safetyheads import (
    Grid,
    attention_by_segment,
    attention_divergence,
    attention_maps,
    hidden_magnitudes,
    load_model,
    load_prompts,
    plot_attention_divergence,
    plot_attention_maps,
    plot_hidden_magnitudes,
    wrap,
)

ROWS = [  # three rows: model and layer
    ("smollm2-135m-instruct", 4),
    ("smollm2-135m-instruct", 18),
    ("smollm2-135m-ssft", 18),
]
if "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ:
    ROWS = [(os.environ["SAFETYHEADS_NOTEBOOK_MODEL"], layer) for layer in (0, 1, 2)]
PROMPTS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PROMPTS", "6"))

# %% [markdown]
# ## The prompts
#
# Where the folder that `SAFETYHEADS_DATA` names holds the JailbreakBench files, the requests are its goals,
# and the jailbreak is a template of 2023 around the *same* goals: what differs is then the template
# and nothing else. Elsewhere the built-in requests stand in, with a mild role-play that the library
# ships. Either way the first column is titled "Plain": these are the same harmful requests without
# a template, no benign ones. (`attention_maps` titles it "Benign" unless told otherwise.)

# %%
data = Path(os.environ.get("SAFETYHEADS_DATA", "no-folder"))
if (data / "jailbreakbench_jbc_prompts.csv").is_file():
    goals = load_prompts(data / "jailbreakbench_harmful.csv").harmful
    jailbreaks = load_prompts(data / "jailbreakbench_jbc_prompts.csv").harmful
else:
    goals = load_prompts("builtin").harmful
    jailbreaks = tuple(wrap(goals))
every = max(1, len(goals) // PROMPTS)
goals, jailbreaks = goals[::every][:PROMPTS], jailbreaks[::every][:PROMPTS]
print(len(goals), "requests, plain and in", "a 2023 template" if data.is_dir() else "the role-play")

# %% [markdown]
# ## The grid
#
# Attention is averaged over heads, then over prompts, then its natural logarithm is taken (all of
# this can be chosen: `heads`, `order`, `log`, `floor`). The difference is jailbreak - plain. What
# fewer than two prompts reach is grey: the plain requests are short, so most of their map is.
# `short="blank"` says that this is meant; without it, a grid that the prompts cannot fill is an
# error that names the length they can. The strips along the axes are the prompts' segments.

# %%
models = {name: load_model(name) for name in dict.fromkeys(name for name, _ in ROWS)}
names = ("Plain", "Jailbreak")
maps = [
    attention_maps(models[name], goals, jailbreaks, layer, grid=Grid(short="blank"), names=names)
    for name, layer in ROWS
]
plot_attention_maps(
    maps, note=f"{len(goals)} requests; no data: fewer than 2 prompts reach the pair"
)

# %% [markdown]
# Only where both sets have tokens is there a difference to see. A closer look at that corner:

# %%
reached = int(maps[0].mask.any(1).sum())
small = Grid(length=reached, short="blank")
corner = [
    attention_maps(models[name], goals, jailbreaks, layer, grid=small, names=names)
    for name, layer in ROWS
]
plot_attention_maps(corner)

# %% [markdown]
# ## How long the hidden states are
#
# The companion: the logarithm of the residual stream's length after each layer, by token.

# %%
magnitudes = [hidden_magnitudes(model, goals, jailbreaks, names=names) for model in models.values()]
plot_hidden_magnitudes(magnitudes)

# %% [markdown]
# ## Which layer, which head, and is it length?
#
# Jailbreak prompts are ten times longer than plain requests, and longer prompts spread attention
# whatever they say. So four comparisons are drawn. The black line compares equally many first tokens
# and is the one to read; the grey band is what shuffled labels give. The dashed line is the naive
# comparison of whole prompts; the dotted one is *plain requests against themselves behind neutral
# prose*, no jailbreak at all. As far as the dotted line reaches up to the dashed one, length explains
# what the naive comparison shows.

# %%
first = next(iter(models.values()))
divergence = attention_divergence(first, goals, jailbreaks, n_permutations=200)
print("matched over the first", divergence.provenance["matched_length"], "tokens")
print(divergence.top(5)[["label", "divergence", "null_high", "p_value", "q_value"]])
plot_attention_divergence(divergence.table, title=first.name)

# %% [markdown]
# ## What the jailbreak takes from a head
#
# From which parts of the prompt do given heads read at the last token, and how much of their attention
# goes to the jailbreak's own tokens? Pass the heads of a ranking, `ranking.top()["label"]`; here, to
# save the time of one, the heads that differ most. `lengthened` is the control: as many tokens of
# neutral prose in the template's place. `other_heads` is the rest of the same layers.

# %%
heads = list(divergence.top(4)["label"])
segments = attention_by_segment(first, goals, jailbreaks, heads)
shares = segments.pivot_table(
    index=["rank", "label", "segment"], columns="prompts", values="share", sort=False
)
print(shares.round(3).to_string())

# %% [markdown]
# ## What to conclude, and what not
#
# - Over equally many first tokens (35) heads do attend differently to plain requests and to the 2023 template:
#   L16H5 by 0.14 nat, where 95 % of relabelled sets stay below 0.06; q = 0.01 for the five shown. With 200
#   relabellings no p is smaller than 0.005.
# - How much of the grid's difference is length is the distance of the dotted from the dashed line, layer by
#   layer. The difference map alone cannot tell: its long rows have no plain counterpart.
# - In the last table the control matters: neutral prose in the template's place (`lengthened`) draws as much of
#   L13H8's attention (0.54) as the jailbreak (0.56), and more of L8H5's (0.66 and 0.44). That is place and
#   length, no jailbreak.
# - Six requests, one template, small models: nothing here is about jailbreaks in general.
