"""Where on the way from a harmless to a harmful prompt does the model begin to refuse, and how sharp is that border?

At each pair's last token the harmless prompt's activation is walked into the harmful one's; what is read is the
log-odds that the next token begins a refusal. Only that activation changes: the prompt that the layers above attend to
stays the harmless one, so an end that does not refuse says that refusal is not decided there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safetyheads.engine.walk import Given, prepare_walk
from safetyheads.inputs import Source, prepare
from safetyheads.interventions.paths import StraightLine
from safetyheads.metrics import RefusalShift, refusal_log_odds, refusal_tokens
from safetyheads.probes.walks import measures
from safetyheads.probes.walks.sensitivity import Way, described, require_layer, states_at
from safetyheads.progress import bar
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class RefusalBorder:
    """The refusal log-odds along the way of each pair."""

    log_odds: Float[Tensor, "prompt step"]
    """At each step, in nats."""
    harmful: Float[Tensor, " prompt"]
    """Of the harmful prompts themselves."""
    layer: int
    """What enters this layer was written, at the last token."""
    model: str
    tokens: tuple[int, ...]
    """The tokens that begin a refusal."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        where = self.crossing[self.crosses]
        median = f", at {float(where.quantile(0.5)):.2f} of the way" if len(where) else ""
        return (
            f"RefusalBorder({self.model}, layer {self.layer}: {int(self.crosses.sum())} of {len(self.log_odds)} ways "
            f"end in a refusal and do not begin in one{median})"
        )

    @property
    def crosses(self) -> Bool[Tensor, " prompt"]:
        """Whether a way begins without and ends in a likely refusal."""
        return (self.log_odds[:, 0] < 0) & (self.log_odds[:, -1] > 0)

    @property
    def crossing(self) -> Float[Tensor, " prompt"]:
        """Where a refusal first becomes likelier than not, as a share of the way; NaN where it does not, or does from
        the start."""
        found = measures.first_above(self.log_odds, 0.0)
        return found.where(self.log_odds[:, 0] < 0, torch.nan)

    def table(self) -> "pandas.DataFrame":
        """A row a pair: log-odds at both ends, the crossing, and sharpness and width of the change."""
        import pandas

        change = self.log_odds - self.log_odds[:, :1]
        share = change / change[:, -1:]
        found = {
            "start": self.log_odds[:, 0],
            "end": self.log_odds[:, -1],
            "harmful": self.harmful,
            "crossing": self.crossing,
            "sharpness": measures.sharpness(change),
            "width": measures.transition_width(share),
        }
        # What changes by less than a tenth of a nat has no border.
        still = change[:, -1].abs() < 0.1
        for name in ("sharpness", "width"):
            found[name] = found[name].masked_fill(still, torch.nan)
        table = pandas.DataFrame({name: values.tolist() for name, values in found.items()})
        about = {"steps": self.log_odds.shape[1], "layer": self.layer, "model": self.model}
        return table.assign(crosses=self.crosses.tolist(), pair=range(len(table)), **about)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "RefusalBorder":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


@torch.inference_mode()
def refusal_border(
    model: Any,
    prompts: Source,
    layer: int,
    *,
    way: Way = StraightLine,
    steps: int = 50,
    given: Given | None = None,
    tokens: Sequence[int] = (),
    template: str | None = None,
    progress: bool | None = None,
) -> RefusalBorder:
    """Walk from harmless prompts to their matched harmful ones, and read the log-odds of a refusal.

    Arguments:
        model: whatever `load_model` takes.
        prompts: a set of pairs, or what `load_prompts` takes.
        layer: where the walk is.
        tokens: those that begin a refusal; by default those of `RefusalShift().openings`.
        way, steps, given, template: as for `trace_sensitivity`.

    Raises ValueError for prompts that are not paired, and what `trace_sensitivity` raises.
    """
    harmful = prepare(model, prompts, side="harmful", template=template)
    opened = harmful.model
    if not harmful.provenance["prompts"]["paired"]:
        raise ValueError(
            f"{harmful.provenance['prompts']['name']} has no pairs, and each way leads from a harmless prompt to its "
            "harmful one; give a PromptSet with paired=True"
        )
    harmless = prepare(opened, prompts, side="harmless", template=template)
    require_layer(layer, opened)
    starts, ends = (
        states_at(opened, side.batch, layer, given=given, progress=False)
        for side in (harmless, harmful)
    )
    text = harmless.batch.texts[0]
    begin = tuple(tokens) or refusal_tokens(opened.tokenizer, RefusalShift().openings, text)
    path = way(layer, starts, ends)
    walk = prepare_walk(opened, harmless.batch, path.steps(steps), opened.n_layers - 1, given)
    odds = torch.zeros(len(harmless.batch), steps)

    def read(states: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        logits = opened.unembed(opened.final_norm(states))
        return refusal_log_odds(logits.double().log_softmax(-1), begin).float().cpu()

    with bar(odds.numel(), f"border, {harmless.label}", "step", progress) as shown:
        for together, states in walk.run():
            for prompt, own in zip(together, states, strict=True):
                odds[prompt] = read(own)
                shown.update(steps)
    final = states_at(opened, harmful.batch, opened.n_layers, given=given, progress=False)
    return RefusalBorder(
        log_odds=odds,
        harmful=torch.cat([read(s.to(opened.device, opened.dtype)) for s in final.split(8)]),
        layer=layer,
        model=opened.name,
        tokens=begin,
        provenance={
            **harmless.provenance,
            "harmful": harmful.provenance["tokens"],
            "way": type(path).__name__,
            "steps": steps,
            "layer": layer,
            **({"given": described(given)} if given is not None else {}),
        },
    )
