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
# # Is it more than chance?
#
# Every model has a top ten. Does a head of it matter *more on harmful prompts than on their harmless twins*, by more
# than the prompts' own scatter, given that all heads were looked at? How many prompts does a ranking need until another
# draw of prompts would give the same one?
#
# All heads, one ablation, on pairs: about four minutes on two cores.

# %%
import math
import os

from safetyheads import (
    load_model,
    null_band,
    plot_power,
    plot_specificity,
    power_curve,
    rank_safety_heads,
    rank_stability,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
PAIRS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PAIRS", "12"))
model = load_model(MODEL)

# %% [markdown]
# ## How few pairs are too few?
#
# With n pairs the smallest two-sided p-value of a sign-flip test is 2 / 2ⁿ. Of `tests` heads, one alone reaches
# q = 0.05 (Benjamini-Hochberg) only if that is below 0.05 / `tests`.

# %%
tests = model.n_layers * model.n_heads
for n in (6, 12, 14, 18):
    least = 2 / 2**n
    share = math.ceil(least * tests / 0.05)
    print(f"{n} pairs: smallest p {least:.1e}; {share} heads must share it for q ≤ 0.05")

# %% [markdown]
# ## Specificity
#
# The same heads on both sides of matched pairs. `specificity` is how much more the head matters on the harmful prompt
# than on its twin, with a bootstrap interval over pairs; p flips the signs of the pairs' differences; q is over all
# heads.

# %%
ranking = rank_safety_heads(model, "builtin", ablations="scaling_contribution", limit=PAIRS)
columns = ["label", "score", "harmless_score", "specificity", "specificity_low", "specificity_high"]
ranking.top(8)[[*columns, "p_value", "q_value", "in_null"]].round(4)

# %%
table = ranking.to_frame()
print(f"{(table['q_value'] <= 0.05).sum()} of {len(table)} heads have q ≤ 0.05;")
print(
    f"{(~table['in_null']).sum()} rise above their own band of relabelled prompts (2.5 % would by chance)."
)
plot_specificity(table)

# %% [markdown]
# ## Another null
#
# The other heads of the same layer: does a head stand out from its neighbours?

# %%
(found,) = ranking.specificity
layer = null_band(found, null="layer")
print(f"{(~layer.inside).sum().item()} heads rise above the others of their layer")

# %% [markdown]
# ## Would other prompts rank the same heads?
#
# The prompts are cut into random halves that share none: how far do the two rankings agree, over all heads (Spearman)
# and in the top (Jaccard)? And with how many prompts?

# %%
stability = rank_stability(ranking.harmful[0])
print(f"halves of {PAIRS}: Spearman {stability.spearman.mean():.2f}")
plot_power({"scaling contribution": power_curve(ranking.harmful[0])})

# %% [markdown]
# ## What to conclude, and what not
#
# - On twelve pairs three of 270 heads reach q ≤ 0.05; L0H6 leads the ranking among them (q = 0.04). The first cell says
#   how near that is to what twelve pairs allow: three heads have to share the smallest p. And the model learnt on the
#   harmful half of these prompts.
# - 18 heads rise above their own band of relabelled prompts, where 7 would by chance: some of them are real, and
#   this does not say which.
# - Specificity says that a head matters more on harmful prompts than on their twins, not that it carries refusal.
#   Notebook 04 asks for that, and twenty answers do not show it for L0H6, L0H7 and L0H8.
# - A head that leaves the band of its layer may simply have the largest output there.
# - Halves of six pairs agree to 0.56 over all heads: read nothing into a rank.
