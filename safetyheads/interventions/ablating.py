"""Which heads are ablated: one, or several at once?"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import Head, parse_heads
from safetyheads.interventions.ablations import Ablation, HeadActs, as_ablation
from safetyheads.models.blocks import Blocks
from safetyheads.models.editing import ZEdit, editing
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import TokenBatch


@dataclass(frozen=True)
class AblateHead:
    """One head under one ablation: a variant of the forward pass that a sweep runs."""

    head: Head
    ablation: Ablation

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", parse_heads([self.head])[0])
        object.__setattr__(self, "ablation", as_ablation(self.ablation))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The head, as a group of one."""
        return (self.head,)

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        return self.head.layer

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """As `AblateHeads.active`."""
        with AblateHeads((self.head,), self.ablation).active(model):
            yield


@dataclass(frozen=True)
class AblateHeads:
    """Several heads under one ablation, all at once.

    Raises ValueError if there is no head, or one comes twice.
    """

    heads: tuple[Head, ...]
    """Heads, or their names."""
    ablation: Ablation
    """What is done to them, or its name."""
    mean: Float[Tensor, "layer head d_head"] | None = field(default=None, compare=False, repr=False)
    """What `mean_z` gives: what mean ablation writes while the heads are ablated in flight."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "ablation", as_ablation(self.ablation))
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError(
                f"the heads are {', '.join(map(str, self.heads)) or 'none'}; "
                "name at least one, and each only once"
            )

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        return min(head.layer for head in self.heads)

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """Within the context, every forward pass of the model has these heads ablated, in generation too.

        All positions are ablated: a prompt's and, with a cache, each token generated after it.

        Raises ValueError for a head that the model does not have, for mean ablation without `mean`, and for
        an ablation that needs another prompt, since a lone forward pass has none.
        """
        with editing(model, self.edits(model)):
            yield

    def edits(self, model: HookedModel, part: tuple[int, int] = (0, 1)) -> list[ZEdit]:
        """What `models.editing.editing` takes; `part` says in which rows of a pass the heads are ablated."""
        needs = self.ablation.needs
        if "donor" in needs:
            raise ValueError(
                f"{self.ablation} borrows from another prompt, and a forward pass in flight has none to borrow from; "
                "take zero, mean, scaling or undifferentiated attention"
            )
        if "mean" in needs and self.mean is None:
            raise ValueError(
                f"{self.ablation} needs the heads' mean; give AblateHeads(..., mean=mean_z(model, batch))"
            )

        def edit_of(head: Head) -> ZEdit:
            mean = None if self.mean is None else self.mean[head]

            def edit(**acts: Any) -> Tensor:
                return self.ablation(HeadActs(**acts, softcap=model.score_softcap, mean=mean))

            return ZEdit(*head, edit, scores="scores" in needs, part=part)

        return [edit_of(head) for head in self.heads]


@torch.inference_mode()
def mean_z(model: HookedModel, batch: TokenBatch) -> Float[Tensor, "layer head d_head"]:
    """Every head's mean output over all real tokens of the prompts, on the model untouched."""
    real = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    ids, real = batch.ids.where(real, 0).to(model.device), real.to(model.device)
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, device=model.device)
    for rows in torch.arange(len(ids)).split(16):
        resid, calls = Blocks(model).embed(ids[rows]), Blocks(model).record(ids[:1])[1]
        for layer, call in enumerate(calls):
            acts = Blocks(model).look(layer, resid, call, scores=False)
            resid = acts.resid_post
            total[layer] += acts.z[real[rows]].float().sum(0)
    return (total / real.sum()).to(model.dtype)
