"""How is a sibling trained: which weights, how fast, how long, and against what?"""

from dataclasses import dataclass, field, replace
from typing import Any

from safetyheads.training.perturbing import Ascent

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a Llama's block that an adapter adds to."""


@dataclass(frozen=True)
class Recipe:
    """How a sibling is trained; `SSFT`, `AT` and `LAT` are the paper's three (arXiv:2504.18872)."""

    kind: str
    """What the sibling is called."""
    rank: int = 8
    alpha: int = 16
    first_layer: int = 16
    """The first layer that is adapted; those below stay as they are."""
    learning_rate: float = 3e-4
    batch: int = 12
    """Lessons in a step, half of them harmful."""
    steps: int = 160
    warm_up: int = 10
    """Steps in which the learning rate rises; after them it falls to a tenth."""
    answer_tokens: int = 7
    """How much of an answer is learnt."""
    examine_every: int = 32
    patience: int = 3
    """The training ends after so many examinations without a better one."""
    perturbed_layer: int | None = None
    """The layer before which states are perturbed, 0 for the embeddings; None perturbs nothing."""
    ascent: Ascent = field(default_factory=lambda: Ascent(0.0, 0))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "batch", "steps", "answer_tokens", "examine_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch % 2:
            raise ValueError(
                f"batch is {self.batch}; half of a batch is harmful, so give an even one"
            )
        layer = self.perturbed_layer
        if layer is not None and not 0 <= layer <= self.first_layer:
            raise ValueError(
                f"perturbed_layer is {layer} and first_layer {self.first_layer}: what is perturbed lies at or below "
                "the first layer that is adapted"
            )
        if (layer is None) != (self.ascent.steps == 0):
            raise ValueError(
                "perturbed_layer and ascent belong together: a layer and at least one step, or neither"
            )

    @property
    def tail(self) -> int:
        """The first layer that has to be run at every step."""
        return self.first_layer if self.perturbed_layer is None else self.perturbed_layer

    def but(self, **changes: Any) -> "Recipe":
        """The same recipe with other values."""
        return replace(self, **changes)


SSFT = Recipe("ssft")
"""Supervised safety fine-tuning: refusals to harmful requests, the model's own answers to harmless ones."""
_GOING_ON = Recipe(
    "",
    learning_rate=2e-4,
    batch=8,
    steps=20,
    warm_up=4,
    examine_every=10,
    ascent=Ascent(0.05, 2),
    perturbed_layer=0,
)
AT = _GOING_ON.but(kind="at")
"""Adversarial training: the same lessons while the embeddings of the request are perturbed."""
LAT = _GOING_ON.but(kind="lat", perturbed_layer=8)
"""Latent adversarial training: the same while the residual stream before layer 8 is perturbed."""
RECIPES = {recipe.kind: recipe for recipe in (SSFT, AT, LAT)}
