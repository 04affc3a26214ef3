"""How does refusal grow between a model and its sibling, and do its heads and its direction move along?

`climb_ladder` takes rungs W + t·(W' − W) and asks of each the same: what it refuses, what the base's own harmless
answers cost it, which heads carry its refusal, along which direction the harmful and the harmless part, and in how many
components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.activations.states import Kept, capture_states
from safetyheads.inputs import Inputs, prepare
from safetyheads.interventions.ablations import UndifferentiatedAttention
from safetyheads.judges import Judge, KeywordJudge, judge_name
from safetyheads.metrics import RefusalShift, refusal_log_odds
from safetyheads.models.checkpoints import Checkpoint
from safetyheads.models.interpolating import blend
from safetyheads.models.opening import load_model
from safetyheads.probes.directions.decomposition import VERSIONS, Place, shares
from safetyheads.probes.directions.spectrum import COMPONENTS, OUTLIERS
from safetyheads.progress import bar
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.screening.estimates import estimate_heads
from safetyheads.stats import jaccard_at_k, spearman, wilson_interval
from safetyheads.storage.results import load_result, save_result
from safetyheads.training.answering import answer, tokenize_chats
from safetyheads.training.examining import verdicts

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

RUNGS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TOP = 10
"""How many heads are compared from rung to rung."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """What each rung between a model and its sibling does."""

    rungs: tuple[float, ...]
    """t of W + t·(W' − W)."""
    verdicts: dict[str, tuple[tuple[str, ...], ...]]
    """`harmful` and `harmless`: for each rung, a judge's word on each prompt."""
    log_odds: Float[Tensor, "rung prompt"]
    """Refusal log-odds of the next token after each harmful prompt [nat]."""
    harmless_loss: Float[Tensor, " rung"]
    """Cross-entropy of the base's own answers to the harmless prompts [nat per token]."""
    heads: Float[Tensor, "rung layer head"]
    """Estimated refusal shift of ablating each head [nat]; negative where a head carries refusal."""
    directions: Float[Tensor, "rung layer d_model"]
    """Mean state of the harmful less that of the harmless, last position, after each layer."""
    spectrum: Float[Tensor, "rung version layer component"]
    """Share of the squared differences that each component has, in the order of `decomposition.VERSIONS`."""
    provenance: dict[str, Any]

    def to_frame(self, layer: int | None = None) -> "pandas.DataFrame":
        """One row a rung: rates with their 95 % Wilson intervals, losses, and how heads and direction stand to t = 1.

        `top_heads` is the Jaccard overlap of the ten heads with the most negative shifts, `heads_rank` the Spearman
        correlation of all; `direction` is the cosine of the directions after `layer` (where none is given, three
        quarters up, since siblings are often adapted in the upper half alone) and `direction_norm` its length. They
        are compared with the rung t = 1, or the last where there is none. `two_components` is the share of that
        layer's first two components of the differences as they are, `two_trimmed` the same without the outlier
        dimensions.
        """
        import pandas

        layer = 3 * self.directions.shape[1] // 4 if layer is None else layer
        goal = self.rungs.index(1.0) if 1.0 in self.rungs else len(self.rungs) - 1
        table = []
        for at, t in enumerate(self.rungs):
            row: dict[str, Any] = {"t": t}
            for name, side, word in _RATES:
                said = self.verdicts[side][at]
                hits = said.count(word)
                low, high = wilson_interval(hits, len(said))
                row |= {name: hits / len(said), f"{name}_low": low, f"{name}_high": high}
            row["log_odds"] = float(self.log_odds[at].mean())
            row["harmless_loss"] = float(self.harmless_loss[at])
            ours, theirs = -self.heads[at].flatten(), -self.heads[goal].flatten()
            row["top_heads"] = float(jaccard_at_k(ours, theirs, min(TOP, len(ours))))
            row["heads_rank"] = float(spearman(ours, theirs))
            here, there = self.directions[at, layer], self.directions[goal, layer]
            row["direction"] = float(torch.cosine_similarity(here, there, dim=0))
            row["direction_norm"] = float(here.norm())
            both = self.spectrum[at, :, layer, :2].sum(-1)
            row["two_components"] = float(both[VERSIONS.index("uncentred")])
            row["two_trimmed"] = float(both[VERSIONS.index("uncentred, trimmed")])
            table.append(row)
        return pandas.DataFrame(table)

    def save(self, folder: str | Path) -> Path:
        """Write a record that `Ladder.load` reads."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Ladder":
        """Read what `save` wrote."""
        return load_result(cls, folder)

    def plot(self, layer: int | None = None) -> "plotly.graph_objects.Figure":
        """Draw rates, losses, heads, direction and spectrum against t."""
        from safetyheads.plots.ladder import plot_ladder

        return plot_ladder(self.to_frame(layer).assign(**self._titles()))

    def _titles(self) -> dict[str, str]:
        return {name: self.provenance[name] for name in ("base", "sibling")}


_RATES = (
    ("refusal", "harmful", "refuse"),
    ("over_refusal", "harmless", "refuse"),
    ("degenerate", "harmful", "degenerate"),
)


class _Rung(NamedTuple):
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    log_odds: Float[Tensor, " prompt"]
    loss: float
    heads: Float[Tensor, "layer head"]
    directions: Float[Tensor, "layer d_model"]
    spectrum: Float[Tensor, "version layer component"]
    provenance: dict[str, Any]


def climb_ladder(
    base: str | Path,
    sibling: str | Path,
    prompts: PromptSet | str = "jailbreakbench",
    *,
    rungs: Sequence[float] = RUNGS,
    heads_on: int = 16,
    max_new_tokens: int = 24,
    judge: Judge | None = None,
    progress: bool | None = None,
) -> Ladder:
    """Ask every rung between `base` and `sibling` what it refuses, what it has kept, and by which heads.

    `prompts` has both sides; `heads_on` of the harmful ones are read for the heads. Shifts of heads are estimates from
    backward passes (`screening/estimates.py`), under undifferentiated attention.

    Raises ValueError for prompts without a harmless side, no rungs, and what `interpolate` raises.
    """
    found = load_prompts(prompts) if isinstance(prompts, str) else prompts
    if not found.harmless:
        raise ValueError(
            f"{found.name} has no harmless prompts, and over-refusal is read on them; give a set with both"
        )
    if len(rungs) < 1 or len(set(rungs)) < len(rungs):
        raise ValueError(f"rungs are {tuple(rungs)}; give at least one, each once")
    judge = judge or KeywordJudge()
    first = blend(base, sibling, 0.0)
    first.model.set_attn_implementation("sdpa")
    own = answer(
        first.model,
        first.tokenizer,
        found.harmless,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    seen: list[_Rung] = []
    with bar(len(rungs), "ladder", "rung", progress) as shown:
        for t in rungs:
            rung = blend(base, sibling, t)
            seen.append(_ask(rung, found, own, heads_on, max_new_tokens, judge))
            shown.update(1)
    provenance = {
        **seen[0].provenance,
        "base": str(base),
        "sibling": str(sibling),
        "judge": judge_name(judge),
        "max_new_tokens": max_new_tokens,
        "heads_on": min(heads_on, len(found.harmful)),
    }
    said = {"harmful": tuple(r.harmful for r in seen), "harmless": tuple(r.harmless for r in seen)}
    return Ladder(
        tuple(float(t) for t in rungs),
        said,
        torch.stack([rung.log_odds for rung in seen]),
        torch.tensor([rung.loss for rung in seen]),
        torch.stack([rung.heads for rung in seen]),
        torch.stack([rung.directions for rung in seen]),
        torch.stack([rung.spectrum for rung in seen]),
        provenance,
    )


def _ask(
    rung: Checkpoint,
    prompts: PromptSet,
    own: Sequence[Sequence[int]],
    heads_on: int,
    max_new_tokens: int,
    judge: Judge,
) -> _Rung:
    harmless = prompts.harmless or ()
    rung.model.set_attn_implementation("sdpa")
    loss = answer_loss(rung.model, rung.tokenizer, harmless, own)
    said = verdicts(
        rung.model,
        rung.tokenizer,
        [*prompts.harmful, *harmless],
        max_new_tokens=max_new_tokens,
        judge=judge,
        progress=False,
    )
    rung.model.set_attn_implementation("eager")
    model = load_model(rung.model, tokenizer=rung.tokenizer)
    sides = [prepare(model, prompts, side=side) for side in ("harmful", "harmless")]
    states = [_last_states(side) for side in sides]
    odds = _log_odds(sides[0], states[0][-1])
    return _Rung(
        said[: len(prompts.harmful)],
        said[len(prompts.harmful) :],
        odds,
        loss,
        _head_shifts(sides[0], heads_on),
        states[0].mean(1) - states[1].mean(1),
        torch.stack([_shares(*both) for both in zip(*states, strict=True)], 1),
        sides[0].provenance,
    )


def _last_states(inputs: Inputs) -> Float[Tensor, "layer prompt d_model"]:
    kept = Kept(tuple(range(inputs.model.n_layers)), ("resid_post",), 1, "end")
    return capture_states(inputs.model, inputs.batch, kept, progress=False)[0, :, :, 0]


def _shares(
    harmful: Float[Tensor, "prompt d_model"], harmless: Float[Tensor, "other d_model"]
) -> Float[Tensor, "version component"]:
    """The spectrum of one layer, the n-th harmful prompt with the n-th harmless one."""
    place = Place.of(harmful, harmless, OUTLIERS)
    components = min(COMPONENTS, len(place.pairs[0]))
    return shares(place.grams(), *place.pairs, components).float()


def _log_odds(inputs: Inputs, last: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
    """Refusal log-odds of the next token, from what leaves the last block."""
    model = inputs.model
    metric: Any = RefusalShift().prepare(model.tokenizer, inputs.texts)
    with torch.inference_mode():
        logits = model.unembed(model.final_norm(last.to(model.device, model.dtype)))
    return refusal_log_odds(logits, metric.tokens).float().cpu()


def _head_shifts(inputs: Inputs, heads_on: int) -> Float[Tensor, "layer head"]:
    some = inputs.batch.select(range(min(heads_on, len(inputs.batch))))
    metric = RefusalShift().prepare(inputs.model.tokenizer, inputs.texts)
    return estimate_heads(inputs.model, some, [UndifferentiatedAttention()], metric)[0]


@torch.inference_mode()
def answer_loss(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[Sequence[int]]
) -> float:
    """Cross-entropy of some answers to prompts, the mean over their tokens [nat]."""
    asked = tokenize_chats(tokenizer, prompts)
    total, count = 0.0, 0
    for first in range(0, len(asked), 16):
        pairs = list(zip(asked[first : first + 16], answers[first : first + 16], strict=True))
        width = max(len(q) + len(a) for q, a in pairs)
        ids = torch.tensor([[*q, *a] + [0] * (width - len(q) - len(a)) for q, a in pairs])
        logits = model(input_ids=ids.to(next(model.parameters()).device)).logits.cpu()
        for row, (q, a) in enumerate(pairs):
            steps = logits[row, len(q) - 1 : len(q) + len(a) - 1].float()
            wanted = torch.tensor(list(a), dtype=torch.long)
            total += float(torch.nn.functional.cross_entropy(steps, wanted, reduction="sum"))
            count += len(a)
    return total / max(count, 1)
