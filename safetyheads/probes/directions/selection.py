"""Of all places where the sides' means differ, whose difference does refusal rest on?

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (arXiv:2406.11717), as their code does
it. A candidate is the mean difference at one layer and position. `bypass` is the mean refusal log-odds on harmful
prompts with it ablated, `induce` those on harmless prompts with it added where it was found, `kl` how far ablating it
moves the next token on harmless prompts. What fails a filter falls; of the rest the one with the lowest `bypass` is
taken. The log-odds are exact here; their code adds 1e-8 to both probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.run import run
from safetyheads.inputs import Side, prepare
from safetyheads.interventions.directions import AblateDirection, AddDirection
from safetyheads.interventions.site import Variant
from safetyheads.metrics import LastToken, RefusalShift, Ships, refusal_log_odds, refusal_tokens
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.directions.direction import MEAN_DIFFERENCE, Direction
from safetyheads.probes.directions.sides import read_sides
from safetyheads.progress import whole
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Outcome:
    """What the next token is like under a variant: its refusal log-odds and its divergence from the baseline, in
    nats."""

    openings: tuple[str, ...] = RefusalShift().openings
    """Words that begin a refusal; their tokens are read off the tokenizer."""
    tokens: tuple[int, ...] = ()
    """Token ids that begin a refusal, if they are to be given by hand."""
    name: ClassVar[str] = "outcome"
    unit: ClassVar[str] = "nat"
    largest_first: ClassVar[bool] = False

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Outcome":
        if self.tokens:
            return self
        return replace(self, tokens=refusal_tokens(tokenizer, self.openings, texts[0]))

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, "row 2"]:
        odds = torch.cat([refusal_log_odds(some, self.tokens) for some in ablated.by_rows()])
        return torch.stack([odds.float(), Ships().read(ablated, baseline)], dim=-1)

    def gather(
        self, rows: Float[Tensor, "variant prompt 2"], baseline: Float[Tensor, "prompt 2"]
    ) -> Float[Tensor, "variant prompt 2"]:
        return rows

    def score(
        self, readings: Float[Tensor, "variant prompt 2"]
    ) -> tuple[Float[Tensor, " variant"], Float[Tensor, "variant prompt"]]:
        return readings[..., 0].mean(-1), readings[..., 0]


@dataclass(frozen=True)
class Filters:
    """What a candidate may not do; the defaults are the paper's.

    Raises ValueError for a share outside 0 to 1.
    """

    last_layer: float = 0.8
    """Candidates come from the first int(share * n_layers) layers: late ones write tokens rather than decide."""
    kl: float = 0.1
    """Ablating it moves the next token on harmless prompts by at most so many nats."""
    induce: float = 0.0
    """Added, it brings the refusal log-odds on harmless prompts to at least so many nats."""

    def __post_init__(self) -> None:
        if not 0 < self.last_layer <= 1:
            raise ValueError(
                f"last_layer is {self.last_layer}; give a share of the layers, above 0 up to 1"
            )


PAPER = Filters()


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Every candidate with what it does, which of them fell, and the one that was taken."""

    vectors: Float[Tensor, "pos layer d_model"]
    """The mean differences."""
    bypass: Float[Tensor, "pos layer prompt"]
    """Refusal log-odds on each harmful prompt with the candidate ablated, in nats."""
    induce: Float[Tensor, "pos layer other"]
    """Refusal log-odds on each harmless prompt with the candidate added, in nats."""
    kl: Float[Tensor, "pos layer other"]
    """KL(baseline || ablated) of the next token on each harmless prompt, in nats."""
    baseline: tuple[Float[Tensor, " prompt"], Float[Tensor, " other"]]
    """Refusal log-odds of the untouched model on the harmful and the harmless prompts."""
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    n_layers: int
    """Of the model."""
    filters: Filters
    used: dict[str, tuple[int, int]]
    """For each set and side, how many prompts were used of how many; the others did not do what was expected."""
    model: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        table = self.to_frame()
        left = int((table["felled_by"] == "").sum())
        return f"Selection({self.model}: {left} of {len(table)} candidates pass the filters)"

    def to_frame(self) -> "pandas.DataFrame":
        """A row a candidate, those that pass first, the lowest bypass first.

        Columns model, position, layer, length, bypass, induce, kl [nat], felled_by (names of all filters that it
        fails, or empty), beyond_layer, beyond_kl, below_induce (by how much it fails each; 0 where it passes), chosen.
        """
        import pandas

        rows = []
        cut = int(self.filters.last_layer * self.n_layers)
        for p, position in enumerate(self.positions):
            for n, layer in enumerate(self.layers):
                bypass, induce, kl = (
                    t[p, n].mean().item() for t in (self.bypass, self.induce, self.kl)
                )
                misses = {
                    "layer": max(0, layer - cut + 1),
                    "kl": max(0.0, kl - self.filters.kl),
                    "induce": max(0.0, self.filters.induce - induce),
                }
                felled = [name for name, miss in misses.items() if miss > 0]
                if not all(map(math.isfinite, (bypass, induce, kl))):
                    felled = ["no number"]
                rows.append(
                    {
                        "model": self.model,
                        "position": position,
                        "layer": layer,
                        "length": self.vectors[p, n].double().norm().item(),
                        "bypass": bypass,
                        "induce": induce,
                        "kl": kl,
                        "felled_by": ", ".join(felled),
                        "beyond_layer": misses["layer"],
                        "beyond_kl": misses["kl"],
                        "below_induce": misses["induce"],
                    }
                )
        table = pandas.DataFrame(rows)
        table["fell"] = table["felled_by"] != ""
        table = table.sort_values(["fell", "bypass"], ignore_index=True).drop(columns="fell")
        table["chosen"] = (table.index == 0) & (table["felled_by"] == "")
        return table

    @property
    def direction(self) -> Direction:
        """The candidate that passes all filters and leaves the least refusal.

        Raises ValueError if all fell, with what felled them and which came nearest.
        """
        table = self.to_frame()
        if not table["chosen"].any():
            counts = table["felled_by"].value_counts()
            told = ", ".join(f"{count} by {name}" for name, count in counts.items())
            near = table.iloc[(table["felled_by"].str.count(",")).argmin()]
            raise ValueError(
                f"none of {len(table)} candidates passes the filters ({told}); the first that fails fewest, layer "
                f"{near['layer']} position {near['position']}, has kl {near['kl']:.3g} (at most {self.filters.kl}) and "
                f"induce {near['induce']:.3g} (at least {self.filters.induce}): look at to_frame(), and widen Filters "
                "knowingly or take a model that refuses"
            )
        best = table.iloc[0]
        return self.candidate(int(best["layer"]), int(best["position"]))

    def candidate(self, layer: int, position: int) -> Direction:
        """One of the candidates, whether it fell or not; ValueError for a place that is none."""
        if layer not in self.layers or position not in self.positions:
            raise ValueError(
                f"layer {layer}, position {position} is no candidate: there are the layers "
                f"{', '.join(map(str, self.layers))} and the positions {', '.join(map(str, self.positions))}"
            )
        vector = self.vectors[self.positions.index(position), self.layers.index(layer)]
        return Direction(vector, layer, position, MEAN_DIFFERENCE, self.model, self.provenance)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Selection":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def select_direction(
    model: Any,
    train: Any,
    validation: Any,
    *,
    layers: Sequence[int] | int | None = None,
    positions: Sequence[int] | int | None = None,
    filters: Filters = PAPER,
    outcome: Outcome | None = None,
    only_expected: bool = True,
    template: str | None = None,
    execution: Execution = HERE,
) -> Selection:
    """Measure the mean difference at every place, and find the one that refusal rests on.

    Means are taken on `train`, effects on `validation`: prompt sets with both sides that share no prompt. `layers` are
    all but the first by default, `positions` (from the end) those of the tokens that the template ends with. `filters`
    are the paper's. `outcome` says which tokens begin a refusal; by default they are read off the tokenizer. With
    `only_expected`, as in the paper, harmful prompts count whose refusal log-odds are above 0 and harmless ones whose
    are below.

    Raises ValueError for sets that share prompts, a side of which nothing is left, and what `prepare` and the sweep
    raise. That no candidate passes is no error here: `Selection.direction` raises then.
    """
    opened = load_model(model)
    sets = {"train": load_prompts(train), "validation": load_prompts(validation)}
    _require_apart(sets["train"], sets["validation"])
    outcome = Outcome() if outcome is None else outcome
    how: dict[str, Any] = {"template": template, "execution": execution}
    odds, used = {}, {}
    prompts = sum(len(found.harmful) + len(found.harmless) for found in sets.values())
    with whole(2 * prompts, f"reading, {opened.name}", execution.progress):
        for name, found in sets.items():
            every = torch.ones(len(found.harmful)), torch.ones(len(found.harmless))
            keep = [part > 0 for part in every]
            if only_expected or name == "validation":
                odds[name] = _untouched(opened, found, outcome, **how)
            if only_expected:
                keep = [odds[name][0] > 0, odds[name][1] < 0]
                odds[name] = (odds[name][0][keep[0]], odds[name][1][keep[1]])
            for side, kept in zip(("harmful", "harmless"), keep, strict=True):
                used[f"{name} {side}"] = (int(kept.sum()), len(kept))
            sets[name] = _kept(found, keep, name)
        sides = read_sides(
            opened,
            sets["train"],
            layers=layers,
            positions=positions,
            template=template,
            progress=execution.progress,
        )
    vectors = sides.mean_differences().float()
    grid = vectors.shape[:2]
    flat = vectors.flatten(0, 1)
    _require_all(flat, sides.layers, sides.positions)
    ablating = [AblateDirection(v) for v in flat]
    adding = [AddDirection(v, layer) for v, layer in zip(flat, sides.layers * grid[0], strict=True)]

    def swept(side: Side, variants: Sequence[Variant]) -> Float[Tensor, "2 pos layer prompt"]:
        found = _swept(opened, sets["validation"], side, outcome, variants, **how)
        return found.unflatten(0, grid).movedim(-1, 0).clone(memory_format=torch.contiguous_format)

    asked = len(flat) * (len(sets["validation"].harmful) + 2 * len(sets["validation"].harmless))
    with whole(asked, f"selecting, {opened.name}", execution.progress):
        bypass = swept("harmful", ablating)
        kl = swept("harmless", ablating)
        induce = swept("harmless", adding)
    return Selection(
        vectors=vectors,
        bypass=bypass[0],
        induce=induce[0],
        kl=kl[1],
        baseline=odds["validation"],
        layers=sides.layers,
        positions=sides.positions,
        n_layers=opened.n_layers,
        filters=filters,
        used=used,
        model=opened.name,
        provenance={
            **sides.provenance,
            "filters": asdict(filters),
            "openings": list(outcome.openings),
            "only_expected": only_expected,
        },
    )


def _swept(
    model: HookedModel,
    prompts: PromptSet,
    side: Side,
    outcome: Outcome,
    variants: Sequence[Variant],
    *,
    template: str | None,
    execution: Execution,
) -> Float[Tensor, "variant prompt 2"]:
    inputs = prepare(model, prompts, side=side, template=template)
    metric = outcome.prepare(model.tokenizer, inputs.batch.texts)
    return run(Measurement(inputs, metric), variants, execution).readings


def _untouched(
    model: HookedModel, prompts: PromptSet, outcome: Outcome, **how: Any
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " other"]]:
    """The refusal log-odds of both sides; nothing added at the last layer is one block a prompt."""
    nothing = [AddDirection(torch.zeros(model.d_model), model.n_layers - 1)]
    harmful, harmless = (
        _swept(model, prompts, side, outcome, nothing, **how)[0, :, 0].clone()
        for side in ("harmful", "harmless")
    )
    return harmful, harmless


def _kept(prompts: PromptSet, keep: Sequence[Tensor], name: str) -> PromptSet:
    """The prompts that do what is expected of them; pairs are no pairs any more."""
    sides = []
    for side, kept in zip(("harmful", "harmless"), keep, strict=True):
        texts = getattr(prompts, side)
        some = tuple(text for text, k in zip(texts, kept.tolist(), strict=True) if k)
        if not some:
            does = "refuses none" if side == "harmful" else "would refuse all"
            raise ValueError(
                f"by the log-odds of the first token the model {does} of the {len(texts)} {side} prompts of the {name} "
                "set; give other prompts, other refusal tokens (Outcome(tokens=...)), or only_expected=False"
            )
        sides.append(some)
    return PromptSet(prompts.name, sides[0], sides[1], source=prompts.source)


def _require_apart(train: PromptSet, validation: PromptSet) -> None:
    shared = {*train.harmful, *train.harmless} & {*validation.harmful, *validation.harmless}
    if shared:
        raise ValueError(
            f"train and validation share {len(shared)} prompts; a direction is to be measured on prompts that it was "
            "not made of: give sets that share none"
        )


def _require_all(
    flat: Float[Tensor, "candidate d_model"], layers: Sequence[int], positions: Sequence[int]
) -> None:
    places = [(position, layer) for position in positions for layer in layers]
    nowhere = [place for place, vector in zip(places, flat, strict=True) if not vector.any()]
    if nowhere:
        raise ValueError(
            f"harmful and harmless prompts are the same on average at (position, layer) {nowhere[:3]}: a zero vector "
            "is no candidate; leave these layers or positions out"
        )
