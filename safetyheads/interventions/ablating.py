"""Which heads are ablated: one, or several at once?

At the layer where a pass starts, an ablation is a closed form on what the clean pass holds: what the head's change adds
through W_O is added to the cached attention output. In the layers above it happens in flight.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import Head, parse_heads
from safetyheads.interventions.ablations import Ablation, HeadActs, Lenders, as_ablation, describe
from safetyheads.interventions.site import Site, Start, edited
from safetyheads.models.blocks import Blocks
from safetyheads.models.editing import ZEdit, editing, replacing_z
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import TokenBatch


@dataclass(frozen=True)
class AblateHead:
    """One head under one ablation."""

    head: Head
    """The head, or its name."""
    ablation: Ablation
    """What is done to it, or its name."""

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

    @property
    def needs(self) -> frozenset[str]:
        return self.ablation.needs | {"acts"}

    @property
    def label(self) -> str:
        return f"ablating {self.head}"

    def describe(self) -> dict[str, Any]:
        return {"head": str(self.head), "ablation": describe(self.ablation)}

    def start(self, site: Site) -> Start:
        acts = _acts(site)
        return Start(site.resid, acts.attn_out + change(site, self.head, self.ablation))

    def in_flight(self, site: Site) -> Start:
        return Start(site.resid, None, (flying(site, self.head, self.ablation),))

    @contextlib.contextmanager
    def plainly(self, site: Site) -> Iterator[None]:
        """Written into the head's own z, so that the model's own W_O reads it."""
        z = ablated_z(site, self.head, self.ablation)
        with replacing_z(site.model, *self.head, lambda _: z):
            yield

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

    heads: tuple[Any, ...]
    """Heads, or their names; heads once this is made."""
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

    @property
    def needs(self) -> frozenset[str]:
        return self.ablation.needs | {"acts"}

    @property
    def label(self) -> str:
        return f"ablating {', '.join(map(str, self.heads))}"

    def describe(self) -> dict[str, Any]:
        return {"heads": [str(head) for head in self.heads], "ablation": describe(self.ablation)}

    def start(self, site: Site) -> Start:
        acts = _acts(site)
        above = tuple(edit for edit in self._flying(site) if edit.layer > site.layer)
        return Start(site.resid, acts.attn_out + self.change(site), above)

    def change(self, site: Site) -> Float[Tensor, "prompt pos d_model"]:
        """What ablating the heads of the site's layer adds to its attention output."""
        here = [head for head in self.heads if head.layer == site.layer]
        changes = [change(site, head, self.ablation) for head in here]
        return changes[0] if len(changes) == 1 else torch.stack(changes).sum(0)

    def in_flight(self, site: Site) -> Start:
        return Start(site.resid, None, self._flying(site))

    def _flying(self, site: Site) -> tuple[ZEdit, ...]:
        return tuple(flying(site, head, self.ablation) for head in self.heads)

    @contextlib.contextmanager
    def plainly(self, site: Site) -> Iterator[None]:
        with edited(site, self.in_flight(site)):
            yield

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
        model.require_readable(needs, str(self.ablation))
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


def _acts(site: Site) -> Any:
    if site.acts is None:
        raise ValueError(
            f"nobody looked at the heads of layer {site.layer}: a variant's needs must name acts"
        )
    return site.acts


def change(site: Site, head: Head, ablation: Ablation) -> Float[Tensor, "prompt pos d_model"]:
    """What ablating a head of the site's layer adds to its attention output."""
    z = _acts(site).z[:, :, head.head]
    return Blocks(site.model).write(head.layer, head.head, ablated_z(site, head, ablation) - z)


def ablated_z(site: Site, head: Head, ablation: Ablation) -> Float[Tensor, "prompt pos d_head"]:
    """What replaces z of a head of the site's layer."""
    acts = _acts(site)
    return _ablate(
        site,
        head,
        ablation,
        z=acts.z[:, :, head.head],
        v=acts.v[:, :, head.head // (site.model.n_heads // acts.v.shape[2])],
        visible=acts.visible.expand(len(acts.z), -1, -1),
        scores=acts.scores[:, head.head] if acts.scores is not None else None,
        sink=acts.sinks[head.head] if acts.sinks is not None else None,
    )


def flying(site: Site, head: Head, ablation: Ablation) -> ZEdit:
    """The ablation of a head in any layer, in flight, on passes over the site's prompts."""
    return ZEdit(
        *head,
        partial(_ablate, site._replace(acts=None), head, ablation),
        "scores" in ablation.needs,
    )


def _ablate(
    site: Site, head: Head, ablation: Ablation, **acts: Any
) -> Float[Tensor, "row query d_head"]:
    """What replaces z of one head, of all tokens or of those of a pass in flight."""
    reference = site.references.get(head.layer)
    mean = lend = None
    if reference is not None and "mean" in ablation.needs:
        mean = reference.mean[head.head]
    if reference is not None and "donor" in ablation.needs:
        whole = reference

        def lend(lenders: Lenders) -> Tensor:
            end = acts["v"].shape[1]
            lent = whole.donor(site.prompts, end, head.head, lenders)
            donor = lent[:, end - acts["z"].shape[1] :]
            # Within the prefix, which the prompts share, a row stands for all prompts.
            donor = donor[:1] if end <= site.prefix else donor
            return donor.repeat(len(acts["z"]) // len(donor), 1, 1)

    return ablation(HeadActs(**acts, softcap=site.model.score_softcap, mean=mean, donor=lend))


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
