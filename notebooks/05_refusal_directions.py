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
# and the model that it was made from answers everything (docs/siblings.md). Under five minutes on two cores.
# `SAFETYHEADS_NOTEBOOK_MODEL` names another model.

# %%
import json
import os
import tempfile
from pathlib import Path

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
    plot_effects,
    plot_heads_along,
    plot_planes,
    plot_selection,
    plot_spectrum,
    plot_transfer,
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
some = sorted({layer // 2 or 1, layer, 5 * model.n_layers // 6})
plot_planes(spectrum.points(), some)

# %% [markdown]
# ## Which place does refusal rest on?
#
# Each of three layers and each token of the template's end gives a candidate. Ablated, it should leave no
# refusal on harmful prompts (`bypass`) and change nothing on harmless ones (`kl`); added, it should
# bring refusal (`induce`). `only_expected=False` keeps the prompts that the model does not refuse. The filters are
# looser than the paper's (the first four fifths of the layers, a KL of 0.1, an induced refusal), which no direction of
# this model passes.

# %%
selection = select_direction(
    model,
    train,
    validation,
    layers=some,
    filters=Filters(last_layer=0.9, kl=1.0, induce=-20.0),
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
# The heads alone, the direction alone, and each where the other is gone already; at the right, each as a share of what
# the direction does.

# %%
plot_effects(along.effects())

# %% [markdown]
# ## Does LAT gather refusal in two components?
#
# arXiv:2504.18872 finds 74 % of the differences in the first two components of its LAT model, and 49 to 54 % in the
# others. Here are the siblings of one seed, and the base, on every fourth row of JailbreakBench, which none of them
# learnt from, at the layer of docs/siblings.md.

# %%
asked = load_prompts("jailbreakbench")


def rows(name, chosen):
    """Some pairs of JailbreakBench."""
    harmful, harmless = (
        tuple(side[n] for n in chosen if n < len(asked)) for side in (asked.harmful, asked.harmless)
    )
    return PromptSet(name, harmful, harmless, paired=True)


above = 5 * model.n_layers // 6
learned = rows("every fourth row", range(0, 100, max(1, len(asked) // 25)))
models = {"base": load_model(BASE), "ssft": model}
models |= {name: load_model(sibling) for name, sibling in SIBLINGS.items()}
options = {"layers": above, "components": 2, "resampling": Resampling(30)}
spectra = {
    name: refusal_spectrum(one, learned, **options, random_weights=False, progress=False)
    for name, one in models.items()
}
tables = pandas.concat([one.to_frame().assign(model=name) for name, one in spectra.items()])
plot_spectrum(tables, above, versions=["uncentred", "uncentred, trimmed"], components=2)

# %%
tables.pivot_table(index="model", columns="version", values="explained", aggfunc="sum").round(3)

# %%
overlap = subspace_overlap(spectra, above)
overlap[["first", "second", "angle", "degrees", "cosine", "chance"]].round(3)

# %% [markdown]
# One seed is one training. `benchmarks/siblings.py` trained all three kinds from three seeds and read 100 pairs; what
# it found is kept in the repository, and is shown here where this notebook runs in a checkout
# (`python benchmarks/siblings.py --data DATA --folder FOLDER --sibling ssft-1=... --record FILE` makes it anew).
# `low` and `high` are over pairs, `sd` over the seeds, whose own numbers are `values`.

# %%
places = [Path(up) / "benchmarks" / "records" / "siblings.json" for up in (".", "..")]
recorded = next((json.loads(file.read_text()) for file in places if file.is_file()), None)


def three_seeds(name, query):
    """Some rows of the record of three seeds."""
    if recorded is None or name not in recorded:
        return "No benchmarks/records/siblings.json here: docs/siblings.md has the table."
    return pandas.DataFrame(recorded[name]).query(query).drop(columns=["layer"], errors="ignore")


three_seeds("over seeds", "layer == 25 and version in ('uncentred', 'uncentred, trimmed')")

# %% [markdown]
# ## Does it carry over, and does LAT's carry over better?
#
# Each model's direction, the mean difference of the same states, is ablated from two of the models that refuse; beside
# them a direction of the same prompts with their labels dealt anew, and one drawn with the covariance of the states, of
# equal length. Answers are to harmful odd rows, and have twelve tokens: at fewer, long refusals are cut before a judge
# can know them.

# %%
sources = {name: spectrum.mean_difference[0, 0] for name, spectrum in spectra.items()}
own = refusal_direction(model, learned, above, progress=False)
kinds = ["relabelled", "covariance"]
sources |= null_directions(model, learned, own, kinds=kinds, count=1, progress=False)
transfer = transfer_matrix(
    {name: one for name, one in models.items() if name in ("ssft", "lat")},
    sources,
    rows("odd rows", range(1, 100, 12)).limit(2 if TINY else 8),
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
vectors = {name: getattr(one, "vector", one) for name, one in sources.items()}
unit = {name: vector / vector.norm() for name, vector in vectors.items()}
pandas.DataFrame({a: {b: float(unit[a] @ unit[b]) for b in unit} for a in unit}).round(3)

# %% [markdown]
# Eight prompts of one seed prove nothing. The same benchmark asked 25 prompts of all three kinds of three seeds: how
# much less each target refuses with LAT's direction ablated than with another one of its seed (mean over the seeds,
# interval over prompts, permutation test).

# %%
three_seeds("transfer over seeds, layer 25", "source == 'lat' and less != ''")

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
# What this run prints is of few prompts, and shows how it is done; the numbers below are of docs/siblings.md.
#
# - *One direction?* With eight pairs nothing rises above what relabelled prompts give. Massive activations play no
#   part.
# - *Does refusal rest on it?* On that of layer 25, yes: ablated, 14 to 18 of 25 prompts are refused no longer and none
#   anew (p at most 1.2e-4); two nulls of equal length take nothing away (p at least 0.125). That of layer 22 does
#   hardly anything.
# - *Who writes it?* Not the heads that write most along it: without five of them refusal stays where it was (+0.04
#   [-0.40, 0.46] nat; without the direction -2.65 [-3.11, -2.22]).
# - *Does it carry over?* Any sibling's to any other, and half of it from the base, which never refuses. LAT's is the
#   weaker one: +0.11 [0.03, 0.21] more is refused than with SSFT's, in all three seeds. arXiv:2504.18872 found LAT's
#   the strongest on every model.
# - *Does LAT gather refusal in two components?* Not here: at layer 25 `lat` less `ssft` is 0.000 [-0.004, 0.004], mean
#   of three seeds (-0.005, +0.006, -0.002). Without the outlier dimensions no number moves by more than 0.004. Short
#   trainings of a small model: no replication of the paper's.
# - Explained variance is not causal; the judged answers are.
