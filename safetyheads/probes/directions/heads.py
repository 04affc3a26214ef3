"""Which heads write a direction, and is what they carry what the direction carries?

Three looks at a head beside its refusal shift and Ships: whether W_O can write along the direction at all (`static`),
how much more it writes along it on harmful prompts (`written`: the heads' shares, the MLPs' and the embedding's add
up to the whole difference), and how far the difference moves when the head is gone (`causal`, which counts what later
heads make of it). Then the few heads that write most are ablated with and without the direction: if both are one
thing seen from two sides, nothing is left to the one where the other is gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.run import run
from safetyheads.heads import Head, HeadScores, heads_like, parse_heads
from safetyheads.inputs import Inputs, prepare
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import Ablation, ZeroAblation, as_ablation, describe
from safetyheads.interventions.directions import AddDirection
from safetyheads.interventions.named import all_active
from safetyheads.interventions.orthogonalising import norms_after_writing
from safetyheads.interventions.site import AllAtOnce, Variant
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.directions.direction import Direction
from safetyheads.probes.directions.selection import Outcome
from safetyheads.probes.directions.sides import read_sides
from safetyheads.progress import bar
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.stats import bootstrap_interval, percentile_interval
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

ROWS = 16
"""Prompts in one pass that looks at all heads."""
CONDITIONS = ("untouched", "heads", "random heads", "direction", "heads and direction")
EFFECTS = {
    "heads": ("heads", "untouched"),
    "random heads": ("random heads", "untouched"),
    "direction": ("direction", "untouched"),
    "heads, direction gone": ("heads and direction", "direction"),
    "direction, heads gone": ("heads and direction", "heads"),
}
"""What is compared: the condition with, and the one without."""
DRAWS = 2000


@dataclass(frozen=True, eq=False, repr=False)
class HeadsAlong:
    """How a direction is written by heads, and what is left of each without the other."""

    static: Float[Tensor, "layer head"]
    """|W_O r| sqrt(d_model) / |W_O|: 1 where W_O has no preference."""
    written: Float[Tensor, "layer head"]
    """What the head adds along the direction on harmful prompts less what on harmless ones, in units of the stream."""
    causal: Float[Tensor, "layer head"]
    """How far the difference along the direction moves when the head is ablated; NaN for heads that were not run."""
    refusal_shift: Float[Tensor, "layer head"] | None
    """In nats, of the scores that were given; None without."""
    ships: Float[Tensor, "layer head"] | None
    """In nats, of the scores that were given; None without."""
    total: float
    """The whole difference along the direction where it was found, in units of the stream."""
    heads: tuple[Head, ...]
    """The heads that were ablated together."""
    random_heads: tuple[Head, ...]
    """As many heads of the same layers, at random."""
    odds: dict[str, Float[Tensor, " prompt"]]
    """Refusal log-odds of each harmful prompt under each of `CONDITIONS`, in nats."""
    left: dict[str, tuple[float, float]]
    """With the heads and with the random heads ablated: the difference along the direction as a share of `total`,
    and the cosine of the new mean difference with the direction."""
    layer: int
    """Where the direction was found."""
    position: int
    model: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        means = {name: float(values.double().mean()) for name, values in self.odds.items()}
        moved = {name: value - means["untouched"] for name, value in means.items()}
        return (
            f"HeadsAlong({self.model}: without {', '.join(map(str, self.heads))} the refusal log-odds move by "
            f"{moved['heads']:+.2f} nat, without the direction by {moved['direction']:+.2f})"
        )

    @property
    def share(self) -> float:
        """The heads' effect on the refusal log-odds as a share of the direction's, as in `effects`."""
        return float(self.effects().set_index("effect").loc["heads", "share"])

    def to_frame(self) -> "pandas.DataFrame":
        """A row a head, those that write most along the direction first.

        Columns model, layer, head, label, static, written, written_share (of `total`), causal, refusal_shift, ships,
        chosen (whether it is among `heads`).
        """
        import pandas

        rows = []
        for layer, head in torch.cartesian_prod(*map(torch.arange, self.written.shape)).tolist():
            row = {
                "model": self.model,
                "layer": layer,
                "head": head,
                "label": str(Head(layer, head)),
            }
            for name in ("static", "written", "causal", "refusal_shift", "ships"):
                values = getattr(self, name)
                row[name] = float("nan") if values is None else values[layer, head].item()
            row["written_share"] = row["written"] / self.total
            row["chosen"] = Head(layer, head) in self.heads
            rows.append(row)
        table = pandas.DataFrame(rows)
        return table.sort_values("written", ascending=False, ignore_index=True)

    def conditions(self) -> "pandas.DataFrame":
        """A row a condition: condition, odds (mean, nat), low, high, shift (from the untouched model, paired by
        prompt), shift_low, shift_high, n, along (the difference along the direction that is left, as a share), cosine.

        Intervals are 95 % bootstraps over prompts. Under the direction's own ablation nothing is left along it.
        """
        import pandas

        rows = []
        base = self.odds["untouched"]
        for name, values in self.odds.items():
            ends = [end.item() for end in bootstrap_interval(values)]
            moved = [end.item() for end in bootstrap_interval(values - base)]
            along = self.left.get(name, (1.0, 1.0) if name == "untouched" else (0.0, float("nan")))
            shift = (values - base).mean().item()
            rows.append((name, values.mean().item(), *ends, shift, *moved, len(values), *along))
        columns = ["condition", "odds", "low", "high", "shift", "shift_low", "shift_high", "n"]
        return pandas.DataFrame(rows, columns=[*columns, "along", "cosine"])

    def effects(self) -> "pandas.DataFrame":
        """What heads and direction do to the refusal log-odds, each alone and where the other is gone already.

        A row an effect of `EFFECTS`: effect, shift (mean over prompts, paired, nat), low, high, share (of the
        direction's own shift), share_low, share_high, n. Intervals are 95 % bootstraps over prompts. Where that of the
        direction's own shift holds zero there is nothing to have a share of, and shares are NaN.
        """
        import pandas

        shifts = torch.stack(
            [(self.odds[name] - self.odds[without]).double() for name, without in EFFECTS.values()]
        )
        n = shifts.shape[-1]
        drawn = torch.randint(n, (DRAWS, n), generator=torch.Generator().manual_seed(0))
        means, draws = shifts.mean(-1), shifts[:, drawn].mean(-1)
        whole = list(EFFECTS).index("direction")
        low, high = percentile_interval(draws.mT, n)
        table = {"shift": means, "low": low, "high": high}
        names, nothing = ("share", "share_low", "share_high"), torch.full_like(means, torch.nan)
        table |= dict.fromkeys(names, nothing)
        if low[whole] * high[whole] > 0:
            ends = percentile_interval((draws / draws[whole]).mT, n)
            table |= dict(zip(names, (means / means[whole], *ends), strict=True))
        columns = {name: values.tolist() for name, values in table.items()}
        return pandas.DataFrame({"effect": list(EFFECTS), **columns, "n": n})

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HeadsAlong":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def heads_along(
    model: Any,
    prompts: Any,
    direction: Direction,
    *,
    heads: Sequence[Any] | None = None,
    count: int = 5,
    run_causally: int = 20,
    scores: Mapping[str, HeadScores] | None = None,
    ablation: Ablation | str | None = None,
    template: str | None = None,
    execution: Execution = HERE,
) -> HeadsAlong:
    """Look at all heads along a direction, and ablate the few that write most with and without it.

    `prompts` is a set with both sides, not the one that the direction was made of. `heads` are ablated together; by
    default the `count` that write most along the direction below the layer where it was found. `causal` is found for
    `run_causally` of the heads there, those that write most either way. `scores` gives "refusal_shift" and "ships", as
    `score_heads` finds them, to stand beside. `ablation` is `ZeroAblation()` by default, since `static` and `written`
    are about what a head adds.

    Raises ValueError for a direction of another width or of layer 0, below which there are no heads; a model that
    scales or norms what its heads write before it is added; scores of another model; and what `prepare` raises.
    """
    opened, found = load_model(model), load_prompts(prompts)
    direction.ablated().edits(opened)  # refuses another width
    ablation = ZeroAblation() if ablation is None else as_ablation(ablation)
    _require_plain_writing(opened, direction.layer)
    sides = [
        prepare(opened, found, side="harmful", template=template),
        prepare(opened, found, side="harmless", template=template),
    ]
    per_side = [_written(opened, side, direction, execution.progress) for side in sides]
    written = per_side[0] - per_side[1]
    below = written[: direction.layer].flatten()
    if heads is None:
        best = below.argsort(descending=True)[:count].tolist()
        chosen = tuple(Head(*divmod(n, opened.n_heads)) for n in best)
    else:
        chosen = parse_heads(heads)
    for head in chosen:
        opened.require_head(*head)
    drawn = next(heads_like(chosen, opened.n_heads, 0))
    unit = direction.unit

    def difference(*interventions: AblateHeads) -> Float[Tensor, " d_model"]:
        return _mean_difference(opened, found, direction, interventions, template)

    total = float(difference() @ unit)
    causal = torch.full_like(written, torch.nan)
    loud = below.abs().argsort(descending=True)[:run_causally].tolist()
    with bar(len(loud), f"causal, {found.name}", "head", execution.progress) as shown:
        for n in loud:
            head = Head(*divmod(n, opened.n_heads))
            causal[head] = float(difference(AblateHeads((head,), ablation)) @ unit) - total
            shown.update()
    groups = {
        "heads": AblateHeads(chosen, ablation),
        "random heads": AblateHeads(drawn, ablation),
    }
    left = {}
    for name, group in groups.items():
        after = difference(group)
        left[name] = (float(after @ unit) / total, float(after @ unit / after.norm()))
    return HeadsAlong(
        static=_static(opened, unit),
        written=written,
        causal=causal,
        refusal_shift=_given(scores, "refusal_shift", written),
        ships=_given(scores, "ships", written),
        total=total,
        heads=chosen,
        random_heads=drawn,
        odds=_odds(sides[0], groups, direction, execution),
        left=left,
        layer=direction.layer,
        position=direction.position,
        model=opened.name,
        provenance={**sides[0].provenance, "ablation": describe(ablation)},
    )


def _require_plain_writing(model: HookedModel, layer: int) -> None:
    norms = norms_after_writing(model.hf)
    scale = getattr(model.hf.config, "residual_multiplier", 1.0)
    if norms or scale != 1.0:
        raise ValueError(
            f"{model.name} {'norms' if norms else 'scales'} what its heads write before it is added to the stream: "
            "what one head writes there is not its own; use a model that adds it as it is"
        )
    if layer < 1:
        raise ValueError(
            "the direction was found on what enters layer 0, which no head has written; find it higher"
        )


@torch.inference_mode()
def _written(
    model: HookedModel, side: Inputs, direction: Direction, progress: bool | None
) -> Float[Tensor, "layer head"]:
    """What every head adds along the direction at its position, mean over prompts."""
    batch, blocks = side.batch, Blocks(model)
    unit = direction.unit.to(model.device, model.dtype)
    reads = _reads(model, unit)
    real = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    ids = batch.ids.where(real, 0).to(model.device)
    places = (batch.lengths + direction.position).to(model.device)
    total = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    with bar(len(ids), f"heads, {side.label}", "prompt", progress) as shown:
        for rows in torch.arange(len(ids)).split(ROWS):
            resid, calls = blocks.embed(ids[rows]), blocks.record(ids[:1])[1]
            for layer, call in enumerate(calls):
                acts = blocks.look(layer, resid, call, scores=False)
                resid = acts.resid_post
                z = acts.z[torch.arange(len(rows)), places[rows]]
                total[layer] += torch.einsum("phd,hd->h", z, reads[layer]).double().cpu()
            shown.update(len(rows))
    return (total / len(ids)).float()


def _reads(
    model: HookedModel, unit: Float[Tensor, " d_model"]
) -> Float[Tensor, "layer head d_head"]:
    """What z of each head is multiplied with to say what it adds along the direction: W_O r."""
    one = torch.eye(model.d_head, device=model.device, dtype=model.dtype)[None]
    rows = [
        torch.stack(
            [Blocks(model).write(layer, head, one)[0] @ unit for head in range(model.n_heads)]
        )
        for layer in range(model.n_layers)
    ]
    return torch.stack(rows)


@torch.inference_mode()
def _static(model: HookedModel, unit: Tensor) -> Float[Tensor, "layer head"]:
    """How much of what W_O writes lies along the direction, where 1 is no preference."""
    unit = unit.to(model.device, model.dtype)
    one = torch.eye(model.d_head, device=model.device, dtype=model.dtype)[None]
    found = torch.zeros(model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            matrix = Blocks(model).write(layer, head, one)[0]
            found[layer, head] = float((matrix @ unit).norm() / matrix.norm())
    return found * model.d_model**0.5


def _mean_difference(
    model: HookedModel,
    prompts: PromptSet,
    direction: Direction,
    interventions: Sequence[AblateHeads],
    template: str | None,
) -> Float[Tensor, " d_model"]:
    """The mean difference where the direction was found, with these switched on."""
    with all_active(interventions, model):
        sides = read_sides(
            model,
            prompts,
            layers=direction.layer,
            positions=direction.position,
            template=template,
            progress=False,
        )
    return sides.mean_differences()[0, 0]


def _odds(
    side: Inputs, groups: Mapping[str, AblateHeads], direction: Direction, execution: Execution
) -> dict[str, Float[Tensor, " prompt"]]:
    """Refusal log-odds on each harmful prompt under each condition."""
    without = direction.ablated()
    nothing = AddDirection(torch.zeros_like(direction.vector), side.model.n_layers - 1)
    variants: list[Variant] = [
        nothing,
        *groups.values(),
        without,
        AllAtOnce((groups["heads"], without)),
    ]
    metric = Outcome().prepare(side.model.tokenizer, side.batch.texts)
    readings = run(Measurement(side, metric), variants, execution).readings[..., 0]
    return {name: row.clone() for name, row in zip(CONDITIONS, readings, strict=True)}


def _given(
    scores: Mapping[str, HeadScores] | None, name: str, like: Tensor
) -> Float[Tensor, "layer head"] | None:
    """The scores of one metric, if they came."""
    if scores is None or name not in scores:
        return None
    values = scores[name].values
    if values.shape != like.shape or scores[name].metric != name:
        raise ValueError(
            f"the scores given as {name!r} are {scores[name].metric} of {list(values.shape)} layers and heads, and the "
            f"model has {list(like.shape)}; give what score_heads(model, prompts, metric={name!r}) finds"
        )
    return values
