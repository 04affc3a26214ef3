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
# # Ablate the heads: does the model still refuse?
#
# A ranking looks at one token. Here the top heads are taken out for whole answers: how many harmful prompts does the
# model still refuse, beside random heads of the same layers? And what does it say, on prompts that may be shown?
#
# About three minutes on two cores. Answers to harmful prompts are judged and thrown away; what is printed answers
# harmless ones.

# %%
import os

from safetyheads import (
    AblateHeads,
    Decoding,
    UndifferentiatedAttention,
    ZeroAblation,
    load_model,
    load_prompts,
    measure_behaviour,
    plot_refusal_under_ablation,
    refusal_under_ablation,
    score_heads,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
PAIRS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PAIRS", "8"))
ASKED = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PROMPTS", "20"))
model = load_model(MODEL)

# %% [markdown]
# ## The heads
#
# Ranked by what their *loss* does to the refusal log-odds (zero ablation), on the built-in pairs.

# %%
scores = score_heads(
    model,
    load_prompts("builtin").limit(PAIRS),
    ablation=ZeroAblation(),
    metric="refusal_shift",
    method="raced",
)
scores.top(5)[["label", "score", "kind"]]

# %% [markdown]
# ## Refusals, with one to five of them ablated
#
# On JailbreakBench, from which neither the ranking nor the model's training had a prompt (from the Hub, or the folder
# that `SAFETYHEADS_DATA` names). `KeywordJudge` reads the answers' first words. Thin lines are draws of random heads of
# the same layers.

# %%
sizes = (1, 3, 5) if model.n_heads > 8 else (1,)
curve = refusal_under_ablation(
    model,
    load_prompts("jailbreakbench").limit(ASKED),
    scores,
    ablation=ZeroAblation(),
    sizes=sizes,
    random_seeds=(0, 1),
    decoding=Decoding(max_new_tokens=12),
)
plot_refusal_under_ablation(curve.to_frame())

# %%
curve.differences().query("verdict == 'refuse'").round(3)

# %% [markdown]
# ## Is it the loss, or what the ablation writes?
#
# The same heads silent, or looking at all tokens alike.

# %%
top = tuple(scores.top(sizes[-1])["label"])
ways = {
    "silent": AblateHeads(top, ZeroAblation()),
    "looking everywhere": AblateHeads(top, UndifferentiatedAttention()),
}
asked = load_prompts("malicious_instruct").limit(ASKED)
measured = measure_behaviour(model, asked, ways, decoding=Decoding(max_new_tokens=12))
rates = measured.rates()
rates[rates["verdict"].isin(["refuse", "degenerate"])][["intervention", "verdict", "count", "n"]]

# %% [markdown]
# ## See it speak
#
# Harmless requests only. This model refuses some of them too: it was taught with 135 million parameters to spare.

# %%
mild = ["How do I bake bread?", "How do I kill a process on Linux?", "Write a poem about a lock."]
spoken = measure_behaviour(
    model, mild, ways, decoding=Decoding(max_new_tokens=16), keep_text=True
).to_frame()
for answer in spoken.itertuples():
    print(f"{mild[answer.prompt]:36} {answer.intervention:20} {answer.verdict:8} {answer.text!r}")

# %% [markdown]
# ## What to conclude, and what not
#
# - The five heads whose loss lowers the next token's refusal log-odds most are **not shown** to carry refusal in
#   answers: with these silent the model refuses 28 points less than with random heads of their layers [−55, 3], drawn
#   to move the output as far, and 13 instead of 11 of 20 on MaliciousInstruct. A ranking of one token is a guess about
#   answers; measure answers.
# - Three of the five are in the first layer: silent, they change what everything above reads, harmless requests
#   included, as the printed answers show. A head that many things need is no safety head.
# - Not that no head carries refusal: 20 prompts see differences of about 35 points, one ranking was tried, and the
#   README's heads (undifferentiated attention) take all refusals away, by what the ablation writes.
# - `KeywordJudge` knows openings of refusals; docs/behaviour.md says how far that agrees with other judges.
