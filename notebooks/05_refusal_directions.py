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
# # Does refusal rest on one direction, and who writes it?
#
# Subtract what a model holds after harmless requests from what it holds after harmful ones. How
# many directions does that difference have (arXiv:2504.18872)? Which of them takes refusal away when it
# is ablated (arXiv:2406.11717), and would any other direction do? Which heads write it? Does it
# carry over to another model, and does latent adversarial training (LAT) gather it in two components?
#
# The model is SmolLM2 with 135 million parameters, taught to refuse; its siblings went on from it under an adversary,
# and the model that it was made from answers everything (docs/siblings.md). 386 processor seconds, under five minutes
# on two cores. `SAFETYHEADS_NOTEBOOK_MODEL` names another model.

# %%
import os
import tempfile

import pandas

from safetyheads import (
    Decoding,
    Execution,
    Filters,
    PromptSet,
    Resampling,
    export_orthogonalized,
    heads_along,
    load_model,
    load_prompts,
    measure_behaviour,
    null_directions,
    plot_component_cosines,
    plot_heads_along,
    plot_planes,
    plot_selection,
    plot_spectrum,
    plot_transfer,
    random_copy,
    refusal_direction,
    refusal_spectrum,
    select_direction,
    subspace_overlap,
    transfer_matrix,
)

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-ssft")
PAIRS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_TRAIN", "8"))
BASE, SIBLINGS = "smollm2-135m-instruct", {"at": "smollm2-135m-at", "lat": "smollm2-135m-lat"}
TINY = "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ
if TINY:
    BASE, SIBLINGS = MODEL, {}

model = load_model(MODEL)
everything = load_prompts("builtin")


def part(name, start, stop):
    """Some of the built-in pairs, every fourth of them, from all categories."""
    rows = range(start, len(everything), 4)[:stop]
    harmful, harmless = (
        tuple(side[n] for n in rows) for side in (everything.harmful, everything.harmless)
    )
    return PromptSet(name, harmful, harmless, paired=True)


train, validation, held_out = (part(name, n, PAIRS) for n, name in enumerate(("a", "b", "c")))
print(model.name, "-", train)

# %% [markdown]
# ## How many directions?
#
# One pass over each side keeps what enters every layer at the last token. The paper's "explained
# variance" is of the differences as they are: its first component *is* the mean difference. Centred
# it is a variance. And a few dimensions with massive activations can carry much of either, so
# both stand here without them, too. Whiskers are bootstrap intervals; grey lines say what relabelled
# prompts and a copy with random weights give.

# %%
spectrum = refusal_spectrum(model, train, components=6, resampling=Resampling(30))
table = spectrum.to_frame()
layer = model.n_layers // 2
plot_spectrum(table, layer)

# %%
columns = ["version", "component", "explained", "low", "high", "repaired", "chance", "random"]
table.query("layer == @layer and component <= 2")[[*columns, "outlier_share"]].round(3)

# %% [markdown]
# Re-pairing the same prompts hardly changes the spectrum, or does it? `repaired` is the standard deviation
# over new pairings. The components beside the mean difference, and the prompts in their plane:

# %%
plot_component_cosines(table)

# %%
some = sorted({layer // 2 or 1, layer, 3 * model.n_layers // 4})
plot_planes(spectrum.points(), some)

# %% [markdown]
# ## Which place does refusal rest on?
#
# Each of three layers and each token of the template's end gives a candidate. Ablated, it should leave no
# refusal on harmful prompts (`bypass`) and change nothing on harmless ones (`kl`); added, it should
# bring refusal (`induce`). `only_expected=False` keeps the prompts that the model does not refuse.

# %%
selection = select_direction(
    model,
    train,
    validation,
    layers=some,
    filters=Filters(kl=0.5, induce=-20.0),
    only_expected=False,
    execution=Execution(progress=False),
)
candidates = selection.to_frame()
candidates.head(8).round(3)

# %%
plot_selection(candidates)

# %% [markdown]
# The first that passes is taken; `selection.direction` gives it, and says what felled the others
# where none does.

# %%
best = candidates.iloc[0]
direction = selection.candidate(int(best["layer"]), int(best["position"]))
print(direction, "- felled by:", best["felled_by"] or "nothing")

# %% [markdown]
# ## Would another direction do the same?
#
# A random direction is all but orthogonal to everything a model uses, and shows little. So: the
# difference of two *other* categories of harmless requests, of relabelled prompts, and directions
# with the covariance of the states themselves.

# %%
by_category: dict[str, list[str]] = {}
for category, text in zip(everything.categories, everything.harmless, strict=True):
    by_category.setdefault(category, []).append(text)
first, second = list(by_category)[:2]
concepts = {
    f"{first} or {second}": PromptSet(
        "categories", tuple(by_category[first]), tuple(by_category[second])
    )
}
nulls = null_directions(model, train, direction, count=1, concepts=concepts, progress=False)
interventions = {"the direction": direction.ablated()}
interventions |= {name: null.ablated() for name, null in nulls.items()}
behaviour = measure_behaviour(
    model, held_out.limit(4), interventions, decoding=Decoding(12), progress=False
)
rates = behaviour.rates()
rates[rates.verdict.isin(["refuse", "degenerate"])].pivot_table(
    index="intervention", columns=["side", "verdict"], values="rate"
)

# %% [markdown]
# ## Who writes it?
#
# `written` is what each head adds along the direction on harmful prompts, less what on harmless ones;
# `causal` how far the whole difference moves without the head. Then the heads that write most are
# ablated with the direction and without it.

# %%
along = heads_along(
    model, held_out, direction, count=3, run_causally=6, execution=Execution(progress=False)
)
along.to_frame().head(5).round(3)

# %%
plot_heads_along(along.to_frame())

# %%
print(along)
along.conditions().round(3)

# %% [markdown]
# ## Does it carry over?
#
# Each model's direction is ablated from each of the three that refuse. The base, which does not refuse, gives one too;
# a copy with random weights gives one that means nothing. Directions are of every fourth row of JailbreakBench, at the
# layer of docs/siblings.md; answers are to harmful odd rows. None of the models learnt from either. Answers have twelve
# tokens: at fewer, long refusals are cut before a judge can know them.

# %%
asked = load_prompts("jailbreakbench")


def rows(name, chosen):
    """Some pairs of JailbreakBench."""
    harmful, harmless = (
        tuple(side[n] for n in chosen if n < len(asked)) for side in (asked.harmful, asked.harmless)
    )
    return PromptSet(name, harmful, harmless, paired=True)


above = 3 * model.n_layers // 4
learned = rows("every fourth row", range(0, 100, max(1, len(asked) // 25)))
odd = rows("odd rows", range(1, 100, 12))
targets = {"ssft": model} | {name: load_model(sibling) for name, sibling in SIBLINGS.items()}
models = {"base": load_model(BASE), **targets, "random weights": random_copy(model, seed=1)}
place = {"layer": above, "progress": False}
sources = {name: refusal_direction(one, learned, **place) for name, one in models.items()}
transfer = transfer_matrix(
    targets,
    sources,
    odd.limit(2 if TINY else 8),
    decoding=Decoding(2 if TINY else 12),
    sides="harmful",
    progress=False,
)
transfer.matrix("refuse").round(2)

# %%
plot_transfer(transfer.to_frame())

# %% [markdown]
# What differs between two sources is tested prompt by prompt (McNemar); here are the largest differences. Beside them:
# how alike the directions are.

# %%
tests = transfer.tests()
tests.iloc[tests["difference"].abs().argsort()[::-1]].head(5).round(3)

# %%
unit = {name: one.vector / one.vector.norm() for name, one in sources.items()}
pandas.DataFrame({a: {b: float(unit[a] @ unit[b]) for b in unit} for a in unit}).round(3)

# %% [markdown]
# ## Does LAT gather refusal in two components?
#
# arXiv:2504.18872 finds 74 % of the differences in the first two components of its LAT model, and 49 to 54 % in the
# others.

# %%
spectra = {
    name: refusal_spectrum(
        one,
        learned,
        layers=above,
        components=2,
        resampling=Resampling(30),
        random_weights=False,
        progress=False,
    )
    for name, one in models.items()
    if name != "random weights"
}
tables = pandas.concat([one.to_frame().assign(model=name) for name, one in spectra.items()])
plot_spectrum(tables, above, versions=["uncentred", "uncentred, trimmed"], components=2)

# %%
tables.pivot_table(index="model", columns="version", values="explained", aggfunc="sum").round(3)

# %%
overlap = subspace_overlap(spectra, above)
overlap[["first", "second", "angle", "degrees", "cosine", "chance"]].round(3)

# %% [markdown]
# ## Take the model without it elsewhere
#
# The same in weights: every matrix that writes to the stream is made orthogonal to the direction, and
# the folder opens with plain transformers.

# %%
export = export_orthogonalized(model, direction, os.path.join(tempfile.mkdtemp(), "model"))
print(f"{len(export.changed)} weights changed; logits differ by {export.max_logit_difference:.1e}")

# %% [markdown]
# ## What to conclude, and what not
#
# - *One direction?* The first component holds 0.30 [0.15, 0.53] of the differences of eight pairs, and relabelled
#   prompts reach 0.46: with so few pairs nothing rises above chance. Massive activations play no part (0.01).
# - *Does refusal rest on it?* Ablated, the chosen one (layer 7) leaves no refusal of four harmful prompts, of which
#   three were refused; no null leaves fewer than two. It takes the harmless refusal, too. Four prompts show how it
#   is done.
# - *Who writes it?* Not these heads: without the three that write most, the refusal log-odds stay where they were
#   (+0.17 [-0.02, 0.36]), and three random heads move them more.
# - *Does it carry over?* On these eight prompts it seems so: the directions of the three siblings leave 2 or 3
#   refusals on each of them, of 7 or 8; the base's leaves 5, random weights 7 or 8 (smallest p 0.03, q 0.31). Eight
#   prompts prove nothing: on 25, directions of layer 22 hardly take refusals away (docs/siblings.md). Those of layer
#   25 do, over three seeds: from 17 to 21 of 25 to 3 to 6 with the siblings' own, 15 to 21 with two nulls, and
#   *LAT's is the weaker one*: it leaves +0.11 [0.03, 0.21] more refused than SSFT's, on SSFT and AT siblings.
#   arXiv:2504.18872 found LAT's the strongest on every model.
# - *Does LAT gather refusal in two components?* Not here: 0.413 in `ssft`, 0.419 in `at`, 0.418 in `lat`, and 0.400
#   in the base, on 25 pairs. On 100 pairs and over three seeds, each of which trains all three (docs/siblings.md,
#   layer 22):
#
#   | first two components | mean of three seeds | seeds 0, 1, 2 |
#   |---|---|---|
#   | `ssft` | 0.351 [0.286, 0.397] | 0.352, 0.353, 0.350 |
#   | `at` less `ssft` | +0.001 [-0.002, 0.004] | +0.003, +0.002, 0.000 |
#   | `lat` less `ssft` | +0.001 [-0.002, 0.004] | +0.002, +0.002, -0.001 |
#   | the same at layer 28 | -0.003 [-0.007, 0.002] | -0.008, +0.004, -0.004 |
#   | at layer 28, `at` less `ssft` | +0.006 [0.002, 0.009] | +0.006, +0.010, +0.002 |
#
#   Without the outlier dimensions no number moves by more than 0.004. Short trainings of a small model: no replication
#   of the paper's.
# - Explained variance is not causal; the judged answers are.
