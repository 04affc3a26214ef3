"""Of which few latents is an activation made? A sparse autoencoder, and the ways in which latents become sparse.

All formats come down to one value: an encoder, a rule for what stays of its outputs, a decoder. What a format does
besides, such as scaling latents by their decoder's norm, is folded into the weights when it is read.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class SparseAutoencoder(Protocol):
    """Anything that takes activations apart into latents and puts them together again."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> int:
        """What enters this layer is what it was made for."""
        ...

    @property
    def directions(self) -> Float[Tensor, "latent d_model"]:
        """What each latent adds to the residual stream."""
        ...

    @property
    def frequencies(self) -> Float[Tensor, " latent"] | None:
        """The share of tokens on which each latent is active; None where nobody has counted."""
        ...

    def encode(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row latent"]: ...
    def decode(self, latents: Float[Tensor, "row latent"]) -> Float[Tensor, "row d_model"]: ...


@runtime_checkable
class Rule(Protocol):
    """What of the encoder's outputs stays."""

    def __call__(self, outputs: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]: ...


@dataclass(frozen=True)
class Relu:
    """What is positive."""

    def __call__(self, outputs: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
        return outputs.relu()


@dataclass(frozen=True)
class TopK:
    """The k largest of each activation, where they are positive."""

    k: int

    def __call__(self, outputs: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
        top = outputs.topk(min(self.k, outputs.shape[-1]), dim=-1)
        return torch.zeros_like(outputs).scatter(-1, top.indices, top.values.relu())


@dataclass(frozen=True)
class GroupMax:
    """The largest of each of k groups of neighbours, where it is positive."""

    k: int

    def __call__(self, outputs: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
        groups = outputs.relu().unflatten(-1, (self.k, -1))
        values, at = groups.max(-1, keepdim=True)
        return torch.zeros_like(groups).scatter(-1, at, values).flatten(-2)


@dataclass(frozen=True, eq=False)
class JumpRelu:
    """What lies above a threshold, whole."""

    threshold: Float[Tensor, " latent"] = field(repr=False)

    def __post_init__(self) -> None:
        if self.threshold.isnan().any():
            raise ValueError("a threshold is no number (NaN); the file is damaged")

    def __call__(self, outputs: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
        return outputs.relu() * (outputs > self.threshold)


@dataclass(frozen=True, eq=False)
class Gated:
    """A gate says which latents are active, the same product scaled and shifted says how much (2404.16014)."""

    log_scale: Float[Tensor, " latent"] = field(repr=False)
    gate_bias: Float[Tensor, " latent"] = field(repr=False)
    size_bias: Float[Tensor, " latent"] = field(repr=False)

    def __call__(self, outputs: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
        """`outputs` has no bias of its own."""
        sizes = (outputs * self.log_scale.exp() + self.size_bias).relu()
        return sizes * (outputs + self.gate_bias > 0)


@dataclass(frozen=True, eq=False)
class Sae:
    """A sparse autoencoder of the residual stream.

    Raises ValueError for weights whose shapes do not fit each other, or that are not finite.
    """

    encoder: Float[Tensor, "d_model latent"] = field(repr=False)
    encoder_bias: Float[Tensor, " latent"] = field(repr=False)
    decoder: Float[Tensor, "latent d_model"] = field(repr=False)
    decoder_bias: Float[Tensor, " d_model"] = field(repr=False)
    rule: Rule
    """What of the encoder's outputs stays."""
    layer: int
    """What enters this layer is what it was made for."""
    centred: bool = True
    """Whether the decoder's bias is subtracted before encoding."""
    frequencies: Float[Tensor, " latent"] | None = field(default=None, repr=False)
    """The share of tokens on which each latent is active, where it is known."""
    name: str = "SAE"
    about: dict[str, Any] = field(default_factory=dict, repr=False)
    """What its files say of it."""

    def __post_init__(self) -> None:
        d_model, latents = self.encoder.shape
        shapes = {
            "encoder": (self.encoder, (d_model, latents)),
            "encoder_bias": (self.encoder_bias, (latents,)),
            "decoder": (self.decoder, (latents, d_model)),
            "decoder_bias": (self.decoder_bias, (d_model,)),
        }
        if self.frequencies is not None:
            shapes["frequencies"] = (self.frequencies, (latents,))
        for what, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{what} has shape {list(tensor.shape)}; an encoder of {[d_model, latents]} takes {list(expected)}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{what} of {self.name} is not finite; the file is damaged")

    @property
    def directions(self) -> Float[Tensor, "latent d_model"]:
        """What each latent adds to the residual stream, an activation of one."""
        return self.decoder

    def encode(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row latent"]:
        """The latents of activations; ValueError for activations of another width."""
        require_width(self, states.shape[-1])
        wide = states.to(self.encoder)
        if self.centred:
            wide = wide - self.decoder_bias
        return self.rule(wide @ self.encoder + self.encoder_bias)

    def decode(self, latents: Float[Tensor, "row latent"]) -> Float[Tensor, "row d_model"]:
        """The activations of latents."""
        return latents @ self.decoder + self.decoder_bias


def require_width(sae: SparseAutoencoder, d_model: int, layer: int | None = None) -> None:
    """Raise ValueError for an SAE of another width than a model's, or of another layer than what is asked of it."""
    width = sae.directions.shape[1]
    if width != d_model:
        raise ValueError(
            f"{sae.name} was made for a residual stream of {width} numbers, and one of {d_model} came; take an SAE of "
            "this model"
        )
    if layer is not None and layer != sae.layer:
        raise ValueError(
            f"{sae.name} was made for what enters layer {sae.layer}, and it is asked about layer {layer}; walk at "
            f"layer {sae.layer}, or take an SAE of layer {layer}"
        )


@dataclass(frozen=True)
class Quality:
    """How well an SAE does on activations."""

    explained: float
    """The share of the activations' variance that it explains: 1 - |x - x'|^2 / |x - mean|^2."""
    l0: float
    """Latents active on an activation, on average."""
    dead: float
    """The share of latents that are active on none."""
    tokens: int
    """Of how many activations."""


@torch.inference_mode()
def quality(sae: SparseAutoencoder, states: Float[Tensor, "row d_model"]) -> Quality:
    """Variance explained, latents active and latents dead on these activations."""
    wide = states.float()
    total = (wide - wide.mean(0)).double().square().sum()
    missed = torch.zeros((), dtype=torch.float64)
    active = torch.zeros(len(sae.directions))
    for some in wide.split(4096):
        latents = sae.encode(some)
        missed += (some - sae.decode(latents)).double().square().sum()
        active += (latents != 0).sum(0)
    return Quality(
        explained=float(1 - missed / total),
        l0=float(active.sum() / len(wide)),
        dead=float((active == 0).float().mean()),
        tokens=len(wide),
    )
