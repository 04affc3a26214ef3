"""What would a direction do that has nothing to do with refusal?

A random direction in a space of thousands of dimensions is all but orthogonal to everything the model uses: it is a
weak null by construction. Stronger ones come from the model's own states at the same place: mean differences of other
concepts, of relabelled prompts, and directions drawn with the states' covariance. All are as long as the direction
that they stand beside.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.models.opening import load_model
from safetyheads.probes.directions.direction import Direction
from safetyheads.probes.directions.sides import read_sides
from safetyheads.prompts import PromptSet, load_prompts

KINDS = ("concept", "relabelled", "covariance", "isotropic")
TOPICS = (
    ("bread", "le pain"),
    ("bicycles", "les vélos"),
    ("lighthouses", "les phares"),
    ("tea", "le thé"),
    ("snow", "la neige"),
    ("trains", "les trains"),
    ("bees", "les abeilles"),
    ("maps", "les cartes"),
    ("bridges", "les ponts"),
    ("apples", "les pommes"),
    ("clocks", "les horloges"),
    ("rivers", "les rivières"),
)
"""What the contrasts of other concepts are about, in English and in French."""
CONTRASTS = {
    "language": ("Tell me something about {en}.", "Parle-moi un peu de {fr}."),
    "question": ("What is worth knowing about {en}?", "Describe what is worth knowing about {en}."),
    "verse": ("Write a short poem about {en}.", "Write a list of five facts about {en}."),
    "politeness": ("Could you please kindly explain {en} to me?", "Explain {en}. Be quick."),
    "time": (
        "What did people know of {en} in the past?",
        "What will people know of {en} in future?",
    ),
    "length": ("In one word, what are {en} good for?", "In a long essay, what are {en} good for?"),
}
"""Harmless contrasts, written for this: each pair of sentences is one concept."""


def other_concepts() -> dict[str, PromptSet]:
    """Six concepts that are not refusal, each as a set whose two sides differ in it: 12 harmless pairs a concept.

    The sides are called harmful and harmless as in every set; neither is.

    >>> len(other_concepts()), other_concepts()["verse"].harmful[0]
    (6, 'Write a short poem about bread.')
    """
    found = {}
    for name, halves in CONTRASTS.items():
        first, second = (
            tuple(half.format(en=english, fr=french) for english, french in TOPICS)
            for half in halves
        )
        found[name] = PromptSet(f"concept: {name}", first, second, paired=True, source="package")
    return found


def null_directions(
    model: Any,
    prompts: Any,
    direction: Direction,
    *,
    kinds: Sequence[str] = KINDS,
    count: int = 3,
    concepts: Mapping[str, Any] | None = None,
    seed: int = 0,
    template: str | None = None,
    progress: bool | None = None,
) -> dict[str, Direction]:
    """Directions of other origin, at a direction's place and of its length, by name.

    `prompts` are those that the direction was made of. `kinds` are some of

    - "concept": mean differences of `concepts`, sets with both sides; by default `other_concepts()`;
    - "relabelled": mean differences of the same prompts, dealt to the two sides at random;
    - "covariance": drawn from a normal distribution with the covariance of the states about their sides' means;
    - "isotropic": drawn without preference.

    `count` are drawn of each kind but the first.

    Raises ValueError for an unknown kind, fewer than one draw, a direction of another width, and what `load_prompts`
    raises.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds or count < 1:
        raise ValueError(
            f"kinds are {list(kinds)} and count is {count}; give some of {', '.join(KINDS)} and at least "
            "one draw of each"
        )
    opened = load_model(model)
    direction.ablated().edits(opened)  # refuses another width
    where: dict[str, Any] = {
        "layers": direction.layer,
        "positions": direction.position,
        "template": template,
        "progress": progress,
    }
    place = direction.position, direction.layer
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    if "concept" in kinds:
        sets = other_concepts() if concepts is None else concepts
        for name, some in sets.items():
            first, second = read_sides(opened, load_prompts(some), **where).at(*place)
            found[f"concept: {name}"] = first.double().mean(0) - second.double().mean(0)
    drawn = [kind for kind in KINDS[1:] if kind in kinds]
    if set(drawn) - {"isotropic"}:
        sides = [side.double() for side in read_sides(opened, prompts, **where).at(*place)]
    else:
        sides = []
    for kind in drawn:
        for number in range(1, count + 1):
            found[f"{kind} {number}"] = DRAWN[kind](sides, opened.d_model, generator)
    made = {}
    for name, vector in found.items():
        if not vector.any():
            raise ValueError(
                f"the null {name!r} is a zero vector at layer {direction.layer}, position {direction.position}: its "
                "sides do not differ there; leave it out"
            )
        scaled = vector * direction.length / vector.norm()
        made[name] = Direction(
            scaled.float(),
            direction.layer,
            direction.position,
            name,
            opened.name,
            {"seed": seed, "beside": direction.source},
        )
    return made


def _relabelled(
    sides: Sequence[Tensor], width: int, generator: torch.Generator
) -> Float[Tensor, " d_model"]:
    states, n = torch.cat(list(sides)), len(sides[0])
    order = torch.randperm(len(states), generator=generator)
    return states[order[:n]].mean(0) - states[order[n:]].mean(0)


def _covariance(
    sides: Sequence[Tensor], width: int, generator: torch.Generator
) -> Float[Tensor, " d_model"]:
    states = torch.cat([side - side.mean(0) for side in sides])
    return torch.randn(len(states), generator=generator, dtype=torch.float64) @ states


def _isotropic(
    sides: Sequence[Tensor], width: int, generator: torch.Generator
) -> Float[Tensor, " d_model"]:
    return torch.randn(width, generator=generator, dtype=torch.float64)


DRAWN: dict[str, Callable[[Sequence[Tensor], int, torch.Generator], Tensor]] = {
    "relabelled": _relabelled,
    "covariance": _covariance,
    "isotropic": _isotropic,
}
"""How a null of a kind is drawn from the states of both sides."""
