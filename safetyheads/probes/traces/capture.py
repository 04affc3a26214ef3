"""What do jailbreak and benign prompts leave in the hidden states, layer by layer?

The states of "Jailbreaking Leaves a Trace" (arXiv:2602.11495): a tensor of prompt, position and width at each layer.
`detectors.py` asks whether they tell a jailbreak.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.activations.states import REPRESENTATIONS, Kept, capture_states
from safetyheads.inputs import Inputs, prepare
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.storage.results import load_result, save_result

MOST_POSITIONS = 32
"""Positions kept of each prompt, unless the caller chooses."""


@dataclass(frozen=True, eq=False, repr=False)
class Traces:
    """The states of jailbreak and benign prompts at some layers of a model."""

    states: Float[Tensor, "representation layer prompt pos d_model"]
    """What each layer gives; zeros where a prompt has fewer tokens than `pos`."""
    representations: tuple[str, ...]
    """The names along the first axis, from `REPRESENTATIONS`."""
    layers: tuple[int, ...]
    """The layers along the second axis."""
    is_jailbreak: Bool[Tensor, " prompt"]
    """The label of each prompt."""
    goals: tuple[int, ...]
    """Prompts with the same number ask for the same thing."""
    lengths: Int[Tensor, " prompt"]
    """The number of tokens of each prompt, template included."""
    texts: tuple[str, ...]
    """The prompts, without the template; empty where they were not kept."""
    align: str
    """Which positions are kept: the last ones ("end"), or the first ones ("start")."""
    template: str
    """The template's name, or the template itself."""
    model: str
    """Name of the model."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the states: model, template, tokens and version."""

    def __repr__(self) -> str:
        jailbreaks = int(self.is_jailbreak.sum())
        return (
            f"Traces({self.model}: {jailbreaks} jailbreak and {len(self.is_jailbreak) - jailbreaks} benign prompts, "
            f"layers {', '.join(map(str, self.layers))}, {self.states.shape[3]} positions from the {self.align})"
        )

    @property
    def padding(self) -> float:
        """The share of positions that hold no token; above 0, the zeros tell the prompt's length."""
        width = self.states.shape[3]
        return 1 - self.lengths.clamp(max=width).sum().item() / (width * len(self.is_jailbreak))

    def save(self, folder: str | Path, *, texts: bool = False) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it.

        Without `texts` the prompts' texts stay out: no bag of words can be scored then.
        """
        return save_result(self if texts else replace(self, texts=()), folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Traces":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def capture_traces(
    model: Any,
    jailbreak: Sequence[str],
    benign: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    representations: Sequence[str] = REPRESENTATIONS,
    length: int | None = None,
    align: str = "end",
    goals: tuple[Sequence[object], Sequence[object]] | None = None,
    template: str | None = None,
    progress: bool | None = None,
) -> Traces:
    """Keep what some layers give on jailbreak and on benign prompts; nothing above the highest layer is run.

    `model` is whatever `load_model` takes; `jailbreak` and `benign` are strings. `layers` are six by default, evenly
    spread from the first to the last. Of each prompt `length` positions are kept: with `align` "end" the last ones, so
    that prompts of all lengths fill them; with "start" the first ones, as a grid of the paper's would, and what a
    shorter prompt lacks is zero, which tells its length. By default `length` is that of the shortest prompt, at most
    32. `goals` names what each jailbreak and each benign prompt asks for, by any two sequences of labels: prompts that
    share a label are kept in one fold. By default two prompts share a goal if one's text contains the other's.

    Memory: 4 bytes for each of representations x layers x prompts x length x d_model numbers; 100 prompts of
    SmolLM2-135M at one layer take 7 MB.

    Raises ValueError for a side without prompts, a layer out of range, an unknown representation or alignment, a
    length that is not positive, goals that do not match the prompts, and what `load_model` and `tokenize` raise.
    """
    sides = _prepared(load_model(model), jailbreak, benign, template)
    plain = sides[0].model
    shortest = min(int(side.batch.lengths.min()) for side in sides)
    kept = Kept(
        _spread(plain) if layers is None else _in_order(plain, layers),
        tuple(representations),
        min(shortest, MOST_POSITIONS) if length is None else length,
        align,
    )
    states = [capture_states(plain, side.batch, kept, progress=progress) for side in sides]
    texts = (*jailbreak, *benign)
    return Traces(
        states=torch.cat(states, 2),
        representations=kept.representations,
        layers=kept.layers,
        is_jailbreak=torch.arange(len(texts)) < len(jailbreak),
        goals=_same_goal(texts) if goals is None else _numbered(goals, len(jailbreak), len(benign)),
        lengths=torch.cat([side.batch.lengths for side in sides]),
        texts=texts,
        align=align,
        template=sides[0].batch.template,
        model=plain.name,
        provenance={
            **sides[0].provenance,
            "tokens": {
                "jailbreak": sides[0].batch.fingerprint,
                "benign": sides[1].batch.fingerprint,
            },
            "prompts": {"jailbreak": len(jailbreak), "benign": len(benign)},
        },
    )


def _prepared(
    model: HookedModel, jailbreak: Sequence[str], benign: Sequence[str], template: str | None
) -> tuple[Inputs, Inputs]:
    for side, prompts in (("jailbreak", jailbreak), ("benign", benign)):
        if isinstance(prompts, str):
            raise ValueError(f"the {side} prompts are one string; expected a list of strings")
        if not len(prompts):
            raise ValueError(f"there are no {side} prompts; give at least one string")
    return (
        prepare(model, list(jailbreak), template=template),
        prepare(model, list(benign), template=template),
    )


def _spread(model: HookedModel) -> tuple[int, ...]:
    """Six layers from the first to the last, fewer where the model has fewer."""
    return tuple(sorted({round(share * (model.n_layers - 1) / 5) for share in range(6)}))


def _in_order(model: HookedModel, layers: Sequence[int]) -> tuple[int, ...]:
    outside = [layer for layer in layers if not 0 <= layer < model.n_layers]
    if outside or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"layers are {list(layers)}; {model.name} has layers 0-{model.n_layers - 1}: "
            "name some of them, each once"
        )
    return tuple(layers)


def _same_goal(texts: Sequence[str]) -> tuple[int, ...]:
    """A number for each text, the same for two texts of which one contains the other."""
    number = list(range(len(texts)))
    for first, text in enumerate(texts):
        for second in range(first):
            if texts[second] in text or text in texts[second]:
                old, new = number[first], number[second]
                number = [new if n == old else n for n in number]
    return tuple(number)


def _numbered(goals: tuple[Sequence[object], Sequence[object]], *counts: int) -> tuple[int, ...]:
    if tuple(map(len, goals)) != counts:
        raise ValueError(
            f"goals has {' and '.join(str(len(side)) for side in goals)} labels for {counts[0]} jailbreak and "
            f"{counts[1]} benign prompts; give one a prompt"
        )
    labels = [label for side in goals for label in side]
    number = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    return tuple(number[label] for label in labels)
