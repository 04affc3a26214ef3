"""Does a direction that was found on one model take refusal away from another?

Abbas et al., "Latent Adversarial Training Improves the Representation of Refusal" (arXiv:2504.18872), Table 1: every
source's direction is ablated from every target, everywhere and at every position, and the refusals are counted. They
gave intervals of each rate; here conditions are compared on the same prompts (McNemar), since each prompt was asked
of all.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.inputs import SIDES
from safetyheads.interventions.directions import AblateDirection
from safetyheads.interventions.named import BASELINE
from safetyheads.interventions.site import digest
from safetyheads.judges import VERDICTS
from safetyheads.metrics import principal_angles
from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.answers import Behaviour, measure_behaviour
from safetyheads.probes.directions.spectrum import Spectrum
from safetyheads.progress import whole
from safetyheads.prompts import load_prompts
from safetyheads.stats import benjamini_hochberg, mcnemar_p
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

SELF = "self"
"""What a target's own direction is called in a comparison."""


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """The judged answers of every target with every source's direction ablated, and untouched."""

    behaviours: dict[str, Behaviour]
    """By target; the interventions in each are "baseline" and the sources."""
    sources: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    """The directions by hash, and which weights each target has."""

    def __repr__(self) -> str:
        return f"Transfer({len(self.sources)} sources on {len(self.behaviours)} targets)"

    def to_frame(self, judge: str | None = None) -> "pandas.DataFrame":
        """A row a target, source, dataset, side and verdict.

        Columns target, source, own (whether the direction is the target's own), dataset, side, verdict, count, n, rate,
        low, high (Wilson's 95 % interval). The source "baseline" is the untouched target. `judge` names another judge
        than the first.
        """
        import pandas

        parts = []
        for target, behaviour in self.behaviours.items():
            part = behaviour.rates(judge).drop(columns="model")
            part = part.rename(columns={"intervention": "source"})
            part.insert(0, "target", target)
            part.insert(2, "own", part["source"] == target)
            parts.append(part)
        return pandas.concat(parts, ignore_index=True)

    def matrix(
        self, verdict: str = "refuse", side: str = "harmful", judge: str | None = None
    ) -> "pandas.DataFrame":
        """The paper's table: the share of one verdict, a row a target, a column a source, all datasets together.

        Raises ValueError for a verdict or a side that is not there.
        """
        table = self.to_frame(judge)
        some = table[(table["verdict"] == verdict) & (table["side"] == side)]
        if some.empty:
            raise ValueError(
                f"there is no verdict {verdict!r} on {side!r} prompts; verdicts are {', '.join(VERDICTS)}, sides "
                f"{', '.join(table['side'].unique())}"
            )
        counts = some.groupby(["target", "source"], sort=False)[["count", "n"]].sum()
        shares = (counts["count"] / counts["n"]).unstack("source")
        return shares.loc[list(self.behaviours), [BASELINE, *self.sources]]

    def tests(self, verdict: str = "refuse", judge: str | None = None) -> "pandas.DataFrame":
        """Which sources do more to a target than others, prompt by prompt: exact McNemar tests.

        A row a target, side and pair of conditions, all datasets together: target, side, first, second, first_only
        (prompts that get the verdict under the first condition alone), second_only, n, difference (of the two rates),
        p, q (Benjamini and Hochberg over all rows).
        """
        import pandas

        rows = []
        for target, behaviour in self.behaviours.items():
            said = behaviour.verdicts(judge)
            for side in dict.fromkeys(side for _, side, _ in said):
                hits: dict[str, list[bool]] = {}
                for (_, its_side, name), given in said.items():
                    if its_side == side:
                        hits.setdefault(name, []).extend(v == verdict for v in given)
                for first, second in itertools.combinations((BASELINE, *self.sources), 2):
                    a, b = hits[first], hits[second]
                    only = [
                        sum(x and not y for x, y in zip(*pair, strict=True))
                        for pair in ((a, b), (b, a))
                    ]
                    difference = (sum(a) - sum(b)) / len(a)
                    rows.append(
                        (target, side, first, second, *only, len(a), difference, mcnemar_p(a, b))
                    )
        columns = ["target", "side", "first", "second", "first_only", "second_only", "n"]
        table = pandas.DataFrame(rows, columns=[*columns, "difference", "p"])
        table["q"] = benjamini_hochberg(torch.tensor(table["p"].to_numpy())).numpy()
        return table

    def save(self, folder: str | Path, *, texts: bool = False) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it.

        `texts` is as for `Behaviour.save`.
        """
        if texts:
            return save_result(self, folder)
        bare = {target: one.without_texts() for target, one in self.behaviours.items()}
        return save_result(replace(self, behaviours=bare), folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Transfer":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def transfer_matrix(
    targets: Mapping[str, Any],
    sources: Mapping[str, Any],
    prompts: Any,
    *,
    first_layer: int = 0,
    **options: Any,
) -> Transfer:
    """Ablate every source's direction from every target, and judge what the target then says.

    `targets` are models by name, whatever `load_model` takes; a folder or a name is opened here, and refused if weights
    are missing or left over, since what is missing would be random. A model that was loaded before does not tell any
    more: pass its folder. `sources` are directions by name: a `Direction`, or a vector. A source with a target's name
    is its own. `options` are those of `measure_behaviour`, such as `judge`, `decoding` and `sides`.

    Raises ValueError, before anything is asked, for no targets or sources, a direction of another width than a target,
    two targets with the same weights, a source called "baseline"; and what `load_model` and `measure_behaviour` raise.
    """
    if not targets or not sources or BASELINE in sources:
        raise ValueError(
            f"there are {len(targets)} targets, and the sources are {', '.join(sources) or 'none'}; give at least one "
            f"of each by name, none of which is {BASELINE!r}, the untouched target"
        )
    ablations = {name: _ablation(name, value, first_layer) for name, value in sources.items()}
    opened = {name: load_model(model) for name, model in targets.items()}
    _require_one_width(opened, ablations)
    weights = _require_different(opened)
    asked = load_prompts(prompts)
    sides = options.get("sides", SIDES)
    answers = sum(len(getattr(asked, side)) for side in SIDES if side in sides)
    expected = len(opened) * (1 + len(ablations)) * answers
    with whole(expected, f"transfer, {asked.name}", options.get("progress")):
        behaviours = {
            name: measure_behaviour(model, asked, {BASELINE: None, **ablations}, **options)
            for name, model in opened.items()
        }
    provenance = {
        "directions": {name: digest(one.direction) for name, one in ablations.items()},
        "first_layer": first_layer,
        "weights": weights,
    }
    return Transfer(behaviours, tuple(sources), provenance)


def _ablation(name: str, value: Any, first_layer: int) -> AblateDirection:
    vector = getattr(value, "vector", value)
    if not isinstance(vector, Tensor):
        raise ValueError(
            f"source {name!r} is a {type(value).__name__}; give a Direction, as refusal_direction(model, prompts, "
            "layer) finds one, or a vector"
        )
    return AblateDirection(vector.detach(), first_layer)


def _require_one_width(
    targets: Mapping[str, HookedModel], ablations: Mapping[str, AblateDirection]
) -> None:
    for (target, model), (source, one) in itertools.product(targets.items(), ablations.items()):
        if len(one.direction) != model.d_model:
            raise ValueError(
                f"source {source!r} is a vector of {len(one.direction)} numbers and the residual stream of target "
                f"{target!r} has {model.d_model}: a direction means nothing in a model of another width, nor in one "
                "that was not trained from the same weights; compare models of one family, or their rates alone"
            )


def _require_different(targets: Mapping[str, HookedModel]) -> dict[str, str]:
    """Which weights each target has; two that have the same are one, such as an adapter that changed nothing."""
    weights = {name: fingerprint(model.hf) for name, model in targets.items()}
    seen: dict[str, str] = {}
    for name, own in weights.items():
        if own in seen:
            raise ValueError(
                f"targets {seen[own]!r} and {name!r} have the same weights: a sibling whose training or adapter is not "
                "in them? Give models that differ, each once"
            )
        seen[own] = name
    return weights


def subspace_overlap(
    spectra: Mapping[str, Spectrum],
    layer: int,
    *,
    position: int = -1,
    rank: int = 2,
    version: str = "uncentred",
) -> "pandas.DataFrame":
    """How much of their leading components do models share? A row a pair of models and principal angle.

    Columns first, second, layer, position, version, rank, angle (from 1), degrees, cosine, chance (the mean cosine of
    this angle between random subspaces of the same size, 200 draws).

    Raises ValueError for fewer than two models, models of different width, a rank beyond the components, or a place
    that a spectrum lacks.
    """
    import pandas

    if len(spectra) < 2:
        raise ValueError(f"there is {len(spectra)} spectrum; an overlap needs two models or more")
    bases = {name: one.directions(layer, position, version) for name, one in spectra.items()}
    widths = {basis.shape[-1] for basis in bases.values()}
    most = min(len(basis) for basis in bases.values())
    if len(widths) > 1 or not 1 <= rank <= most:
        raise ValueError(
            f"the spectra have {most} components or more of width {', '.join(map(str, sorted(widths)))}, and rank is "
            f"{rank}: directions of models of different width do not compare, and the rank goes from 1 to {most}"
        )
    chance = _chance(widths.pop(), rank)
    rows = []
    for first, second in itertools.combinations(bases, 2):
        angles = principal_angles(bases[first][:rank].mT, bases[second][:rank].mT)
        for number, (angle, luck) in enumerate(zip(angles, chance, strict=True), 1):
            cosine = torch.deg2rad(angle).cos().item()
            where = (first, second, layer, position, version, rank, number)
            rows.append((*where, angle.item(), cosine, luck.item()))
    columns = ["first", "second", "layer", "position", "version", "rank", "angle"]
    return pandas.DataFrame(rows, columns=[*columns, "degrees", "cosine", "chance"])


def _chance(width: int, rank: int, draws: int = 200) -> Float[Tensor, " rank"]:
    drawn = torch.Generator().manual_seed(0)
    pairs = torch.randn(draws, 2, width, rank, generator=drawn, dtype=torch.float64)
    bases = torch.linalg.qr(pairs)[0]
    return torch.linalg.svdvals(bases[:, 0].mT @ bases[:, 1]).mean(0)
