"""Which activations could an SAE have made, and were never made by a model?

The synthetic activations of "Evaluating Synthetic Activations composed of SAE Latents in GPT-2" (Giglemiani et al.,
arXiv:2409.15019), as targets of walks. Their code lets a latent that is given away be overwritten when it comes up
itself, and draws dead latents too; here every latent is read before any is written, and only living ones are drawn.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.interventions.targets import Capture, NextPrompt, Target
from safetyheads.saes.autoencoder import SparseAutoencoder, require_width


@dataclass(frozen=True, eq=False)
class SaeReconstruction:
    """Each walk ends at what an SAE makes of another target's ends, by default of the next prompt's activation."""

    sae: SparseAutoencoder
    of: Target = field(default_factory=NextPrompt)
    name = "reconstruction"

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        require_width(self.sae, states.shape[1])
        real = self.of.ends(states, capture)
        return self.sae.decode(self.sae.encode(real)).to(states)

    @property
    def layer(self) -> int:
        return self.sae.layer

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "sae": self.sae.name, "of": self.of.describe()}


@dataclass(frozen=True, eq=False)
class SaeBaseline:
    """Each walk ends at an activation of as many latents, each as active and about as frequent as one of the prompt's
    own, which has no say in which ones these are: a bag of latents."""

    sae: SparseAutoencoder
    seed: int = 0
    closest: int = 10
    """A latent is drawn among so many whose frequency is closest."""
    name = "synthetic baseline"

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        """Raises ValueError for an SAE of another width or without frequencies, or with too few living latents."""
        return self.sae.decode(self.latents(states)).to(states)

    def latents(self, states: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt latent"]:
        """The latents of the ends."""
        frequencies, own = _frequencies(self.sae, states), self.sae.encode(states)
        drawn = random.Random(self.seed)
        made = torch.zeros_like(own)
        for row, new in zip(own, made, strict=True):
            free = frequencies > 0
            active = row.nonzero()[:, 0].tolist()
            _require_room(free, len(active) + 1, self.sae)
            for latent in active:
                allowed = free.clone()
                allowed[latent] = False
                near = _nearest((frequencies - frequencies[latent]).abs(), allowed, self.closest)
                chosen = drawn.choice(near)
                new[chosen], free[chosen] = row[latent], False
        return made

    @property
    def layer(self) -> int:
        return self.sae.layer

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sae": self.sae.name,
            "seed": self.seed,
            "closest": self.closest,
        }


@dataclass(frozen=True, eq=False)
class SaeStructured:
    """Each walk ends at an activation whose latents stand to each other as the prompt's own do.

    The prompt's most active latent becomes one of about its frequency and at a given cosine to it; the others become
    those whose cosines to that one are what the prompt's are to its most active one. No latent is taken twice.
    """

    sae: SparseAutoencoder
    candidates: int = 100
    """Latents of the closest frequency among which the new most active one is."""
    cosine: float = 0.42
    """Its cosine to the old one; in GPT-2, the mean over real pairs (`top_cosine` gives it of another model)."""
    name = "synthetic structured"

    def ends(
        self, states: Float[Tensor, "prompt d_model"], capture: Capture
    ) -> Float[Tensor, "prompt d_model"]:
        """Raises ValueError for an SAE of another width or without frequencies, or with too few living latents."""
        return self.sae.decode(self.latents(states)).to(states)

    def latents(self, states: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt latent"]:
        """The latents of the ends."""
        frequencies, own = _frequencies(self.sae, states), self.sae.encode(states)
        units = torch.nn.functional.normalize(self.sae.directions.double(), dim=1)
        made = torch.zeros_like(own)
        for row, new in zip(own, made, strict=True):
            free = frequencies > 0
            active = row.nonzero()[:, 0].tolist()
            _require_room(free, len(active) + 1, self.sae)
            top = int(row.argmax())
            allowed = free.clone()
            allowed[top] = False
            near = _nearest((frequencies - frequencies[top]).abs(), allowed, self.candidates)
            cosines = units[near] @ units[top]
            centre = near[int((cosines - self.cosine).abs().argmin())]
            theirs, ours = units @ units[centre], units @ units[top]
            # The most active one comes first, and so becomes the centre itself.
            for latent in [top, *(f for f in active if f != top)]:
                (chosen,) = _nearest((theirs - ours[latent]).abs(), free, 1)
                new[chosen], free[chosen] = row[latent], False
        return made

    @property
    def layer(self) -> int:
        return self.sae.layer

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sae": self.sae.name,
            "candidates": self.candidates,
            "cosine": self.cosine,
        }


def top_cosine(sae: SparseAutoencoder, states: Float[Tensor, "prompt d_model"]) -> float:
    """The mean cosine between the most active latents of consecutive activations: `SaeStructured`'s, of this model."""
    tops = sae.encode(states).argmax(-1)
    units = torch.nn.functional.normalize(sae.directions[tops].double(), dim=1)
    return float((units[:-1] * units[1:]).sum(-1).mean())


def _frequencies(sae: SparseAutoencoder, states: Tensor) -> Float[Tensor, " latent"]:
    require_width(sae, states.shape[1])
    if sae.frequencies is None:
        raise ValueError(
            f"{sae.name} does not say how often its latents are active, and synthetic activations take latents of like "
            "frequency; give an SAE with frequencies (SAELens: sparsity.safetensors)"
        )
    return sae.frequencies.double()


def _require_room(free: Bool[Tensor, " latent"], needed: int, sae: SparseAutoencoder) -> None:
    if int(free.sum()) < needed:
        raise ValueError(
            f"{int(free.sum())} latents of {sae.name} are ever active, and {needed} are to be told apart; take a "
            "larger SAE, or a sparser one"
        )


def _nearest(
    distances: Float[Tensor, " latent"], allowed: Bool[Tensor, " latent"], count: int
) -> list[int]:
    """The allowed latents of the smallest distances, nearest first."""
    far = distances.masked_fill(~allowed, torch.inf)
    return far.topk(min(count, int(allowed.sum())), largest=False).indices.tolist()
