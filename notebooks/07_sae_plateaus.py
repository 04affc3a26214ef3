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
# # Does a model treat activations made of SAE latents as its own?
#
# *Evaluating Synthetic Activations composed of SAE Latents in GPT-2* (arXiv:2409.15019): around a real activation the
# output hardly moves (a plateau), and on the way to another it moves fastest near the middle (the max slope). If sparse
# autoencoders find what a model uses, an activation put together from their latents should do the same.
#
# The SAE is one of what enters block 1 of SmolLM2-135M-Instruct, trained for this package (docs/stable-regions.md). Two
# minutes on two cores.

# %%
import os

import torch

from safetyheads import (
    compare_activations,
    load_model,
    load_prompts,
    load_sae,
    plot_synthetic,
    random_copy,
    text_windows,
)
from safetyheads.saes.autoencoder import Sae, TopK

MODEL = os.environ.get("SAFETYHEADS_NOTEBOOK_MODEL", "smollm2-135m-instruct")
COUNT = int(os.environ.get("SAFETYHEADS_NOTEBOOK_PROMPTS", "16"))
STEPS = int(os.environ.get("SAFETYHEADS_NOTEBOOK_STEPS", "50"))
RESAMPLES = 20 * STEPS
model = load_model(MODEL)
requests = load_prompts("builtin")
texts = [*requests.harmful, *requests.harmless]
if "SAFETYHEADS_NOTEBOOK_MODEL" in os.environ:
    windows = texts[:4]
else:
    windows = text_windows(texts, model.tokenizer, length=6, count=COUNT)

# %% [markdown]
# ## The latents
#
# A model of another width than SmolLM2's has no SAE here; it gets latents at random, so that the cells run.

# %%
if model.d_model == 576:
    sae = load_sae("smollm2-135m-layer-1")
else:
    drawn = torch.randn(model.d_model, 64, generator=torch.Generator().manual_seed(0))
    drawn /= drawn.norm(dim=0)
    zeros, often = torch.zeros(64), torch.full((64,), 0.1)
    sae = Sae(drawn, zeros, drawn.T, torch.zeros(model.d_model), TopK(8), 1, frequencies=often)
print(f"{sae.directions.shape[0]} latents of what enters layer {sae.layer}")

# %% [markdown]
# ## Two walks for each kind of activation
#
# *Toward*: from each window's own activation straight to one of the kind; where does the output move fastest? *Away*:
# from one of the kind toward a random one in steps of one size; how far until the output moves?
#
# - `reconstruction`: what the SAE makes of the real activation;
# - `structured`: latents with the real ones' number, sizes and cosines; `baseline`: latents that are active often;
# - `random`: mean and covariance of real activations, and nothing else.

# %%
compared = compare_activations(model, windows, sae, steps=STEPS)
plot_synthetic(compared.table())

# %%
compared.summary(resamples=RESAMPLES)[
    ["kind", "measure", "mean", "std", "ks", "ks_low", "ks_high"]
].round(2)

# %% [markdown]
# ## The same in a copy with random weights
#
# Whatever differs there was not learnt.

# %%
compare_activations(random_copy(model), windows, sae, steps=STEPS).summary(resamples=RESAMPLES)[
    ["kind", "measure", "mean", "std", "ks", "ks_low", "ks_high"]
].round(2)

# %% [markdown]
# ## What to conclude, and what not
#
# - Around activations put together from latents (`structured`, `baseline`) the plateau is half as long as around real
#   ones: KS 0.81 [0.62, 1.00] and 0.62 [0.50, 0.88]. As in the paper, the model tells them from its own.
# - Reconstructions come near (0.31 [0.19, 0.56] for the plateau, 0.06 [0.06, 0.31] for the slope), as they should: they
#   hold the real latents.
# - Covariance-matched random activations are nearer to real ones than `structured` are, in both measures. Latents that
#   are the units of the model should do better than a covariance.
# - In the copy with random weights the kinds differ still more, and all plateaus are short. A large KS distance is
#   thus no sign of anything learnt; the length of the plateaus is.
# - Sixteen windows of six tokens, one SAE, one layer: the intervals are wide. docs/stable-regions.md has forty.
