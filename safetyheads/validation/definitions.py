"""How much of a generalized Ships ranking is the definition's?

The paper's text, the code released with it and this library compute "generalized Ships" (Zhou et al. 2025,
arXiv:2410.13708, Eq. 11) in different ways. A `Definition` names the five switches in which they differ; one call ranks
the heads under each, and under each switch turned alone, and says which switch moved which head.

What is known of the published ones, and what had to be chosen:

- `PAPER_CODE`: the released code since June 2025: the first left singular vector of the states after the final norm,
  the template `## Query:{q}\\n## Answer:`, epsilon 1e-5;
- `CODE_UNTIL_2025`: the same until June 2025, when it compared hidden feature 0 instead of a singular vector;
- `PAPER_TEXT`: Eq. 11 as printed, on "the top layer's residual stream", so before the final norm, and the template in
  one line. The number of singular vectors is not given there; 1 is taken, as in the code;
- `CORRECTED`: this library's defaults: after the final norm, the model's own chat template, and the exact limit
  epsilon = 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.evidence.agreement import agreement_table
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import Side, texts_of
from safetyheads.interventions.ablations import Ablation, UndifferentiatedAttention
from safetyheads.metrics import GeneralizedShips
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads_together
from safetyheads.prompts import PromptSet, default_template, load_prompts
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Definition:
    """One way to compute generalized Ships: the five switches."""

    name: str
    """What tables and figures call it."""
    space: str = "left"
    """Which singular vectors: `left`, `right`, or `feature0` for no singular vectors at all."""
    rank: int = 1
    """How many of them."""
    norm: str = "after"
    """Whether the final states are read `before` or `after` the last norm."""
    template: str | None = None
    """What surrounds the prompt; None for the model's own chat template, or nothing where it has none."""
    epsilon: float = 0.0
    """What is left of the query (or of the head's output, under scaling contribution)."""

    def __post_init__(self) -> None:
        if self.norm not in ("before", "after"):
            raise ValueError(
                f'norm is {self.norm!r}; it must be "before" or "after" the final norm'
            )
        GeneralizedShips(self.space, self.rank)

    def differs(self, other: "Definition") -> tuple[str, ...]:
        """The switches in which two definitions differ.

        >>> Definition("a").differs(Definition("b", rank=3, norm="before"))
        ('rank', 'norm')
        """
        switches = [field.name for field in fields(self) if field.name != "name"]
        return tuple(s for s in switches if getattr(self, s) != getattr(other, s))


CORRECTED = Definition("corrected")
PAPER_CODE = Definition("paper's code", template="query", epsilon=1e-5)
CODE_UNTIL_2025 = replace(PAPER_CODE, name="paper's code until June 2025", space="feature0")
PAPER_TEXT = Definition(
    "paper's text", norm="before", template="## Query: {q} ## Answer:", epsilon=1e-5
)


def one_switch_each(definition: Definition, *, rank: int = 3) -> tuple[Definition, ...]:
    """The definition with each switch turned alone, to each other value that one of the published ones has.

    `rank` is the other number of singular vectors.

    >>> [turned.name for turned in one_switch_each(CORRECTED)]
    ['rank 3', 'right', 'feature0', 'before the norm', 'bare', 'query', 'epsilon 1e-05']
    """
    turned = [
        *(
            [replace(definition, name=f"rank {rank}", rank=rank)]
            if definition.space != "feature0"
            else []
        ),
        replace(definition, name="left", space="left"),
        replace(definition, name="right", space="right"),
        replace(definition, name="feature0", space="feature0", rank=1),
        replace(definition, name="before the norm", norm="before"),
        replace(definition, name="after the norm", norm="after"),
        replace(definition, name="bare", template="bare"),
        replace(definition, name="query", template="query"),
        replace(definition, name="epsilon 0", epsilon=0.0),
        replace(definition, name="epsilon 1e-05", epsilon=1e-5),
    ]
    return tuple(one for one in turned if len(one.differs(definition)) == 1)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The heads of one model, ranked under several definitions; the first is the reference."""

    definitions: tuple[Definition, ...]
    scores: tuple[HeadScores, ...]
    """In the order of the definitions."""

    def to_frame(self) -> "pandas.DataFrame":
        """A long table: the columns of `HeadScores.to_frame`, and definition."""
        import pandas

        tables = [
            some.to_frame().assign(definition=definition.name)
            for definition, some in zip(self.definitions, self.scores, strict=True)
        ]
        return pandas.concat(tables, ignore_index=True)

    def agreement(self, k: int = 10) -> "pandas.DataFrame":
        """Rank correlation and overlap of the top k of every two definitions, as `agreement_table` gives them."""
        names = [definition.name for definition in self.definitions]
        return agreement_table(dict(zip(names, self.scores, strict=True)), k=k)

    def moves(self, k: int = 10) -> "pandas.DataFrame":
        """Which switch moved which head: a row for each head and definition that is one switch from the reference.

        Only heads that are in the top k of either are listed. Columns: layer, head, label, switch (the field that was
        turned), definition, rank (under the reference), turned_rank, places (turned_rank - rank: positive where the
        head falls), most (whether it moved, and no other switch moved it further).
        """
        import pandas

        reference, ranks = self.definitions[0], self.scores[0].ranks
        rows = []
        for definition, some in zip(self.definitions, self.scores, strict=True):
            switches = definition.differs(reference)
            if len(switches) == 1:
                rows += _rows(ranks, some.ranks, k, switches[0], definition.name)
        columns = ["layer", "head", "label", "switch", "definition", "rank", "turned_rank"]
        table = pandas.DataFrame(rows, columns=columns)
        table["places"] = table["turned_rank"] - table["rank"]
        far = table["places"].abs()
        table["most"] = (far > 0) & (far == far.groupby(table["label"]).transform("max"))
        return table.sort_values(["rank", "definition"], ignore_index=True)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Comparison":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def _rows(
    ranks: Int[Tensor, "layer head"],
    turned: Int[Tensor, "layer head"],
    k: int,
    switch: str,
    name: str,
) -> list[tuple[Any, ...]]:
    listed = ((ranks <= k) | (turned <= k)).nonzero().tolist()
    return [
        (layer, head, str(Head(layer, head)), switch, name, *map(int, pair))
        for layer, head in listed
        for pair in [(ranks[layer, head], turned[layer, head])]
    ]


def compare_definitions(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    definitions: Sequence[Definition] | None = None,
    *,
    ablation: Callable[[float], Ablation] = UndifferentiatedAttention,
    side: Side = "harmful",
    execution: Execution = HERE,
) -> Comparison:
    """Rank a model's heads by generalized Ships under several definitions, and under each switch turned alone.

    `definitions`: the first is the reference; by default `CORRECTED`, the three published ones, and `CORRECTED` with
    each switch turned alone. `ablation` makes an ablation of an epsilon: `UndifferentiatedAttention` or
    `ScalingContribution`. `side` and `execution` are those of `score_heads`, without an executor. One sweep serves all
    definitions that share norm, template and epsilon, since rank and singular space only read its states differently.

    Raises ValueError if two definitions have one name, a rank is beyond the prompts, and what `score_heads` raises.
    """
    model, prompts = load_model(model), load_prompts(prompts)
    own = default_template(model.tokenizer)
    if definitions is None:
        published = (CORRECTED, PAPER_CODE, PAPER_TEXT, CODE_UNTIL_2025)
        # A model without a chat template reads bare prompts anyway.
        turned = [one for one in one_switch_each(CORRECTED) if one.template != own]
        definitions = (*published, *turned)
    names = [definition.name for definition in definitions]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"the definitions are {', '.join(names) or 'none'}; give each its own name"
        )
    texts = texts_of(prompts, side)
    for definition in definitions:
        GeneralizedShips(definition.space, definition.rank).prepare(model.tokenizer, texts)
    runs: dict[tuple[str, str, float], list[Definition]] = {}
    for definition in definitions:
        run = (definition.norm, definition.template or own, definition.epsilon)
        runs.setdefault(run, []).append(definition)
    scored: dict[str, HeadScores] = {}
    for (norm, template, epsilon), some in runs.items():
        spaces = list(dict.fromkeys(_gram_space(definition) for definition in some))
        swept = score_heads_together(
            model if norm == "after" else _without_norm(model),
            prompts,
            [GeneralizedShips(space) for space in spaces],
            ablation=ablation(epsilon),
            template=template,
            side=side,
            execution=execution,
        )
        readings = dict(zip(spaces, swept, strict=True))
        for definition in some:
            scored[definition.name] = _score(definition, readings[_gram_space(definition)])
    return Comparison(tuple(definitions), tuple(scored[name] for name in names))


def _gram_space(definition: Definition) -> str:
    """Which Gram matrices a definition is read from: those of one feature, or of all."""
    return "feature0" if definition.space == "feature0" else "left"


def _score(definition: Definition, swept: HeadScores) -> HeadScores:
    """The scores of one definition, from the Gram matrices of its states."""
    if swept.readings is None:
        raise RuntimeError("the sweep kept no Gram matrices")
    metric = GeneralizedShips(definition.space, definition.rank)
    values, _ = metric.score(swept.readings.flatten(0, 1))
    provenance = {**swept.provenance, "definition": asdict(definition)}
    return replace(
        swept,
        values=values.reshape(swept.values.shape),
        metric=metric.name,
        provenance=provenance,
    )


# The states before the norm -------------------------------------------------------------------------------------------


def _without_norm(model: HookedModel) -> HookedModel:
    """The model whose final states are the residual stream; its unembedding begins with the last norm."""
    # What is stored of the one must never pass for what is stored of the other.
    provenance = {**model.provenance, "states": "before the final norm"}
    return replace(model, norm_in_unembedding=True, provenance=provenance)
