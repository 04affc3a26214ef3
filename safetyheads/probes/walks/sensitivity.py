"""How does the output move as one walks through activation space?

`trace_sensitivity` walks from each prompt's activation to somewhere else and reads the output at each step: the curves
of "Characterizing stable regions in the residual stream of LLMs" (Janiak et al., arXiv:2409.17113) and of "Evaluating
Synthetic Activations composed of SAE Latents in GPT-2" (Giglemiani et al., arXiv:2409.15019).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.activations.states import Kept, capture_states
from safetyheads.engine.walk import Given, Walk, during, plain_step, prepare_walk
from safetyheads.inputs import Inputs, Source, prepare
from safetyheads.interventions.paths import Path, StraightLine
from safetyheads.interventions.site import digest
from safetyheads.interventions.targets import NextPrompt, Target
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.probes.walks import measures as measuring
from safetyheads.probes.walks.readings import Reading, as_reading
from safetyheads.progress import bar
from safetyheads.prompts import TokenBatch
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

Way = Callable[[int, Tensor, Tensor], Path]
"""From layer, starts and ends to a path: `StraightLine`, `Arc`, or `functools.partial(FixedSteps, size=...)`."""
PLATEAU = 0.1
"""The share of the median pair's whole distance at which a plateau ends."""


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """The curves of walks, one a prompt; invalid ones stay in it and are counted."""

    from_start: Float[Tensor, "prompt step"]
    """How far what is read is from what is read at the walk's first step, in `unit`."""
    to_end: Float[Tensor, "prompt step"]
    """How far it is from what is read at the last step."""
    along: Float[Tensor, "prompt step"]
    """How far the activation is from where it began."""
    why_invalid: tuple[str, ...]
    """Of each curve: empty, "ends alike" or "not finite"."""
    way: str
    """How it goes: the class of the path."""
    target: str
    """Where to."""
    layer: int
    """What enters this layer was written, at the last token."""
    read: str
    """What was read: "post_norm", "pre_norm", "next_token", or a layer."""
    unit: str
    model: str
    checks: dict[str, float]
    """How far the walk differs from what it must equal: `steps` from whole passes with the step hooked in and `start`
    from the untouched model (shares of the largest state), `mirror` between d(t) and 1 - d of the way back."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the curves."""

    def __repr__(self) -> str:
        found = self.quartiles("sharpness")
        return (
            f"Sensitivity({self.model}: {len(self.why_invalid)} walks of {self.n_steps} steps to the {self.target}, "
            f"written before layer {self.layer}, read {self.read}; {int(self.invalid.sum())} invalid; sharpness "
            f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}])"
        )

    @property
    def n_steps(self) -> int:
        """Points of each walk, both ends among them: the resolution that all numbers of it have."""
        return self.from_start.shape[1]

    @property
    def invalid(self) -> Bool[Tensor, " prompt"]:
        return torch.tensor([bool(why) for why in self.why_invalid])

    @property
    def relative(self) -> Float[Tensor, "prompt step"]:
        """d(t), from 0 to 1; NaN throughout where a curve is invalid."""
        found = measuring.relative_distance(self.from_start, self.to_end)
        return found.masked_fill(self.invalid[:, None], torch.nan)

    @property
    def shares(self) -> Float[Tensor, " step"]:
        """Where along the way each step is."""
        return torch.linspace(0, 1, self.n_steps)

    def measures(self, plateau: float | None = None) -> "pandas.DataFrame":
        """A row a walk: sharpness, where it is steepest, plateau, width, area and exponent, with its resolution.

        `plateau` is the distance at which a plateau ends; by default `PLATEAU` of the median whole distance. A walk
        that never comes so far has a plateau of its whole length, and `leaves_plateau` says so. Numbers of invalid
        walks are NaN. Columns are described in docs/stable-regions.md.
        """
        import pandas

        threshold = self.threshold if plateau is None else plateau
        leaves = measuring.first_above(self.from_start, threshold)
        slopes = self.from_start.diff(dim=-1).amax(-1) * (self.n_steps - 1)
        stays = leaves.nan_to_num(1.0)
        found = {
            "distance": self.from_start[:, -1],
            "sharpness": measuring.sharpness(self.from_start),
            "max_slope": slopes,
            "max_slope_at": measuring.steepest(self.from_start) / (self.n_steps - 1),
            "width": measuring.transition_width(self.relative),
            "plateau": stays,
            "plateau_length": stays * self.along[:, -1],
            "area": measuring.area(self.relative),
            "exponent": measuring.response_exponent(self.from_start, self.along),
        }
        invalid = self.invalid
        table = pandas.DataFrame(
            {
                name: values.masked_fill(invalid, torch.nan).tolist()
                for name, values in found.items()
            }
        )
        table.insert(0, "walk", range(len(table)))
        table["leaves_plateau"] = (~leaves.isnan()).tolist()
        table["why_invalid"] = list(self.why_invalid)
        about = {"steps": self.n_steps, "target": self.target, "way": self.way, "read": self.read}
        return table.assign(**about, unit=self.unit, layer=self.layer, model=self.model)

    @property
    def threshold(self) -> float:
        """The distance at which a plateau ends by default: in the model's own scale, whatever that is."""
        return PLATEAU * float(self.from_start[~self.invalid, -1].median())

    def quartiles(self, measure: str) -> measuring.Quartiles:
        """Median and quartiles over the valid walks of a column of `measures`."""
        values = torch.tensor(self.measures()[measure].tolist())
        return measuring.quartiles(values, ~self.invalid)

    def curve(self) -> "pandas.DataFrame":
        """A row a step: median and quartiles over the valid walks of distance / whole distance, of d(t) and slope."""
        import pandas

        valid = ~self.invalid
        share = self.from_start / self.from_start[:, -1:]
        slope = torch.cat([share[:, :1] * torch.nan, share.diff(dim=-1)], 1) * (self.n_steps - 1)
        rows = []
        for step, at in enumerate(self.shares.tolist()):
            row: dict[str, Any] = {"step": step, "share": at}
            for name, values in (
                ("distance", share),
                ("relative", self.relative),
                ("slope", slope),
            ):
                q = measuring.quartiles(values[:, step], valid)
                row |= {name: q.median, f"{name}_low": q.low, f"{name}_high": q.high}
            rows.append(row)
        counts = {"walks": len(valid), "invalid": int(self.invalid.sum())}
        about = {"target": self.target, "way": self.way, "read": self.read, "layer": self.layer}
        return pandas.DataFrame(rows).assign(**counts, **about, model=self.model)

    def save(self, folder: str | Folder) -> Folder:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Folder) -> "Sensitivity":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def trace_sensitivity(
    model: Any,
    prompts: Source,
    path: Target | Path | None = None,
    *,
    way: Way = StraightLine,
    steps: int = 50,
    layer: int = 1,
    read: Reading | str | int = "post_norm",
    given: Given | None = None,
    template: str | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Walk from each prompt's activation and read the output at each step.

    At each prompt's last token, what enters `layer` (1: what leaves the first block, as in arXiv:2409.17113) is
    replaced by the points of a path, and `read` says what is read at the same token: "post_norm" (after the final
    norm), "pre_norm", "next_token" (KL in nats), or the number of a block. The prompt before that token stays what it
    is.

    Arguments:
        model: whatever `load_model` takes.
        prompts: strings, a TokenBatch such as `text_windows` gives, or what `load_prompts` takes.
        path: where walks end, such as `NextPrompt()` (the default), `TowardPrompts(...)`, `RandomDirection()` or
            `AlongDirection(...)`; or a path with starts and ends of its own, such as `StraightLine(layer, start, end)`.
        way: how a walk goes to a target: `StraightLine`, `Arc`, `functools.partial(FixedSteps, size=...)`.
        steps: points of a walk, both ends among them; sharpness depends on it.
        layer: where the walk is; a path has its own.
        read: what is read.
        given: what holds in every pass, such as `AblateHeads(...)` or `AblateDirection(...)`.
        template: as for `tokenize`.

    Raises ValueError for fewer than two steps, a layer that the model lacks or that lies above what is read, a path
    that does not fit model or prompts, and what `prepare` raises.
    """
    inputs = prepare(model, prompts, template=template)
    plain, batch, reading = inputs.model, inputs.batch, as_reading(read)
    path, about = _path(inputs, path, way, layer, given, progress)
    points = path.steps(steps)
    walk = prepare_walk(plain, batch, points, reading.layer(plain), given)
    label = f"walks, {inputs.label}"
    from_start, to_end = _distances(walk, reading, label, progress)
    start, end = points[0].points, points[-1].points
    along = torch.stack([(step.points - start).norm(dim=-1) for step in points], 1).float().cpu()
    return Sensitivity(
        from_start=from_start,
        to_end=to_end,
        along=along,
        why_invalid=measuring.validity(from_start, to_end, _moved(along, start)),
        way=type(path).__name__,
        target=about["name"],
        layer=path.layer,
        read=reading.name,
        unit=reading.unit,
        model=plain.name,
        checks=_checks(walk, reading, from_start, to_end),
        provenance={
            **inputs.provenance,
            "target": about,
            "way": type(path).__name__,
            "ends": [digest(start), digest(end)],
            "steps": steps,
            "layer": path.layer,
            "read": reading.name,
            **({"given": described(given)} if given is not None else {}),
        },
    )


def states_at(
    model: HookedModel,
    batch: TokenBatch,
    layer: int,
    *,
    given: Given | None = None,
    progress: bool | None = None,
) -> Float[Tensor, "prompt d_model"]:
    """What enters a layer at each prompt's last token, in float32."""
    with during(given, model), torch.inference_mode():
        if layer:
            kept = Kept((layer - 1,), ("resid_post",), 1, "end")
            return capture_states(model, batch, kept, progress=progress)[0, 0, :, 0]
        real = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        states = Blocks(model).embed(batch.ids.where(real, 0).to(model.device))
        return states[torch.arange(len(batch)), batch.lengths - 1].float().cpu()


def require_layer(layer: int, model: HookedModel) -> None:
    """Raise ValueError for what is no layer of a model."""
    whole = isinstance(layer, Integral) and not isinstance(layer, bool)
    if not whole or not 0 <= layer < model.n_layers:
        raise ValueError(f"layer is {layer!r}; {model.name} has layers 0-{model.n_layers - 1}")


def _moved(
    along: Float[Tensor, "prompt step"], start: Float[Tensor, "prompt d_model"]
) -> Float[Tensor, " prompt"]:
    """How far each walk goes at most, over the norm of where it begins."""
    return along.amax(-1) / start.norm(dim=-1).float().cpu().clamp_min(1e-30)


def _path(
    inputs: Inputs,
    path: Target | Path | None,
    way: Way,
    layer: int,
    given: Given | None,
    progress: bool | None,
) -> tuple[Path, dict[str, Any]]:
    """The path itself, and what a manifest says of where it leads."""
    if isinstance(path, type):
        raise ValueError(
            f"path is the class {path.__name__}, and a value is meant; write {path.__name__}(...)"
        )
    if isinstance(path, Path):
        return path, {"name": "given end"}
    target = NextPrompt() if path is None else path
    if not isinstance(target, Target):
        raise ValueError(
            f"path is a {type(path).__name__}; give a target such as NextPrompt() or RandomDirection(), or a path such "
            "as StraightLine(layer, start, end)"
        )
    if not callable(way):
        raise ValueError(
            f"way is {way!r}; give StraightLine, Arc or functools.partial(FixedSteps, size=...)"
        )
    model = inputs.model
    require_layer(layer, model)
    if (made_for := getattr(target, "layer", layer)) != layer:
        raise ValueError(
            f"the walk is at layer {layer}, and the {target.name} is made for what enters layer {made_for}; write "
            f"layer={made_for}"
        )

    def capture(prompts: Any) -> Tensor:
        others = prepare(model, prompts, template=inputs.batch.template)
        return states_at(model, others.batch, layer, given=given, progress=progress)

    states = states_at(model, inputs.batch, layer, given=given, progress=progress)
    return way(layer, states, target.ends(states, capture)), target.describe()


@torch.inference_mode()
def _distances(
    walk: Walk, reading: Reading, label: str, progress: bool | None
) -> tuple[Float[Tensor, "prompt step"], Float[Tensor, "prompt step"]]:
    """Each prompt's distances from its first and to its last step."""
    found = torch.zeros(2, len(walk.batch), len(walk.steps))
    with bar(len(walk.batch) * len(walk.steps), label, "step", progress) as shown:
        for prompts, states in walk.run():
            for prompt, own in zip(prompts, states, strict=True):
                for side, end in enumerate((0, -1)):
                    found[side, prompt] = reading.between(walk.model, own, own[end]).float().cpu()
            shown.update(len(prompts) * len(walk.steps))
    return found[0], found[1]


@torch.inference_mode()
def _checks(walk: Walk, reading: Reading, from_start: Tensor, to_end: Tensor) -> dict[str, float]:
    """The walk's deviation, and for the longest and the shortest prompt that of its start and of the way back."""
    found = {"steps": walk.deviation, "mirror": 0.0}
    forth = measuring.relative_distance(from_start, to_end)
    model, batch, first = walk.model, walk.batch, walk.steps[0]
    for prompt in walk.checked:
        states = next(walk.of(prompt, walk.steps[::-1]).run()).states[0]
        back = measuring.relative_distance(
            *(reading.between(model, states, states[end])[None].cpu() for end in (0, -1))
        )[0]
        apart = (forth[prompt] + back.flip(0) - 1).nan_to_num().abs().max()
        found["mirror"] = max(found["mirror"], float(apart))
        own = states_at(model, batch.select([prompt]), first.layer, given=walk.given)[0]
        untouched = plain_step(model, batch, prompt, None, walk.read, walk.given)
        if (own - first.points[prompt]).norm() <= 1e-3 * own.norm():
            apart = (states[-1] - untouched).abs().max() / untouched.abs().max()
            found["start"] = max(found.get("start", 0.0), float(apart))
    return found


def described(given: Given) -> Any:
    """What a manifest says of what is given."""
    about = getattr(given, "describe", None)
    return about() if about is not None else repr(given)
