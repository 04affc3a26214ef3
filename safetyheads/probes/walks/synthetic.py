"""Does a model treat activations made of SAE latents as it treats its own?

The comparison of "Evaluating Synthetic Activations composed of SAE Latents in GPT-2" (Giglemiani et al.,
arXiv:2409.15019): where the output moves fastest on the way to an activation (max slope), and how far one can go from
it before the output moves at all (activation plateau). Their thresholds and steps are GPT-2's own scale; here both are
shares of what this model's real activations do.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safetyheads.inputs import Source, prepare
from safetyheads.interventions.paths import FixedSteps, StraightLine
from safetyheads.interventions.synthetic import (
    SaeBaseline,
    SaeReconstruction,
    SaeStructured,
    top_cosine,
)
from safetyheads.interventions.targets import NextPrompt, RandomDirection, Target
from safetyheads.probes.walks.measures import STILL
from safetyheads.probes.walks.sensitivity import (
    PLATEAU,
    Sensitivity,
    require_layer,
    states_at,
    trace_sensitivity,
)
from safetyheads.saes.autoencoder import SparseAutoencoder, require_width
from safetyheads.stats import matched_normals
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

REAL = "real"
REACH = 1.5
"""How far plateau walks go, in median distances between real activations and random ones."""


@dataclass(frozen=True, eq=False)
class SyntheticComparison:
    """Two walks for each kind of activation: to it, and away from it."""

    kinds: tuple[str, ...]
    """real, structured, baseline, random, reconstruction."""
    toward: tuple[Sensitivity, ...]
    """From each prompt's own activation straight to one of the kind."""
    away: tuple[Sensitivity, ...]
    """From one of the kind, in the same prompts, toward a random activation in steps of one size."""
    threshold: float
    """The distance at which a plateau ends, one for all kinds: a share of the real ones' median whole distance."""

    def table(self) -> "pandas.DataFrame":
        """A row a kind and walk: `max_slope` (the step at which the output moves fastest, of a way of 100 steps) and
        `plateau` (in the units of the residual stream)."""
        import pandas

        parts = []
        for kind, toward, away in zip(self.kinds, self.toward, self.away, strict=True):
            slope = 100 * toward.measures()["max_slope_at"]
            plateau = away.measures(self.threshold)
            part = pandas.DataFrame({"max_slope": slope, "plateau": plateau["plateau_length"]})
            part["leaves_plateau"] = plateau["leaves_plateau"]
            part["valid"] = ~(toward.invalid | away.invalid).numpy()
            about = {"model": toward.model, "steps": toward.n_steps}
            parts.append(part.assign(kind=kind, walk=range(len(part)), **about))
        return pandas.concat(parts, ignore_index=True)

    def summary(self, *, resamples: int = 1000, seed: int = 0) -> "pandas.DataFrame":
        """A row a kind and measure: mean, standard deviation, and the Kolmogorov-Smirnov distance to the real ones.

        The distance has a 95 % percentile interval over resampled walks (of both kinds alike, since they share
        prompts).
        """
        import pandas

        table, rows = self.table(), []
        table = table[table["valid"]]
        shared = set.intersection(*(set(part["walk"]) for _, part in table.groupby("kind")))
        table = table[table["walk"].isin(shared)].sort_values("walk")
        for measure in ("max_slope", "plateau"):
            real = torch.tensor(table.loc[table["kind"] == REAL, measure].tolist())
            for kind in self.kinds:
                own = torch.tensor(table.loc[table["kind"] == kind, measure].tolist())
                low, high = _ks_interval(own, real, resamples, seed)
                row = {"kind": kind, "measure": measure, "mean": float(own.mean())}
                row |= {"std": float(own.std()), "ks": ks_distance(own, real)}
                rows.append(row | {"ks_low": low, "ks_high": high, "walks": len(own)})
        first = self.toward[0]
        return pandas.DataFrame(rows).assign(model=first.model, steps=first.n_steps)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "SyntheticComparison":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def ks_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference between two samples' distribution functions.

    >>> ks_distance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    1.0
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(first.numpy(), second.numpy(), method="asymp").statistic)


def _ks_interval(
    own: torch.Tensor, real: torch.Tensor, resamples: int, seed: int
) -> tuple[float, float]:
    drawn = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(own), (resamples, len(own)), generator=drawn)
    distances = torch.tensor([ks_distance(own[p], real[p]) for p in picks], dtype=torch.float64)
    low, high = torch.quantile(
        distances, torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return low, high


def compare_activations(
    model: Any,
    prompts: Source,
    sae: SparseAutoencoder,
    *,
    steps: int = 100,
    seed: int = 0,
    read: Any = "pre_norm",
    template: str | None = None,
    progress: bool | None = None,
) -> SyntheticComparison:
    """Walk to and from real, structured, baseline, random and reconstructed activations.

    The SAE says at which layer. Arguments are `trace_sensitivity`'s; the paper reads "pre_norm". The cosine of
    structured activations is this model's own (`top_cosine`).

    Raises ValueError for an SAE of another width, of a layer that the model lacks or without frequencies, for prompts
    that are all alike, and what `trace_sensitivity` raises.
    """
    inputs = prepare(model, prompts, template=template)
    opened, batch, layer = inputs.model, inputs.batch, sae.layer
    require_width(sae, opened.d_model)
    require_layer(layer, opened)
    if steps < 2:
        raise ValueError(f"steps is {steps}; a walk has two ends, so give at least 2")
    states = states_at(opened, batch, layer).clone()
    targets: dict[str, Target] = {
        REAL: NextPrompt(),
        "structured": SaeStructured(sae, cosine=top_cosine(sae, states)),
        "baseline": SaeBaseline(sae, seed),
        "random": RandomDirection(seed),
        "reconstruction": SaeReconstruction(sae),
    }
    ends = {kind: target.ends(states, lambda _: states) for kind, target in targets.items()}
    aims = matched_normals(states, len(states), seed=seed + 1).to(states)
    apart = float((aims - states).norm(dim=-1).median())
    if not apart > STILL * float(states.norm(dim=-1).median()):
        raise ValueError(
            f"the {len(states)} prompts have one activation at layer {layer}: nothing random can be drawn around it; "
            "give prompts that differ in their last tokens"
        )
    size = REACH * apart / (steps - 1)
    trace = functools.partial(
        trace_sensitivity, opened, batch, steps=steps, read=read, progress=progress
    )
    toward = tuple(trace(StraightLine(layer, states, end)) for end in ends.values())
    away = tuple(trace(FixedSteps(layer, end, aims, size)) for end in ends.values())
    valid = ~away[0].invalid
    threshold = PLATEAU * float(away[0].from_start[valid, -1].median())
    return SyntheticComparison(tuple(targets), toward, away, threshold)
