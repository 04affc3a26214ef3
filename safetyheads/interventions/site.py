"""What may a disturbance look at where a pass starts, and what does it put there? The seam to the engine.

A sweep carries the clean residual stream up the model. At each layer it shows a `Site`, and every `Variant` whose first
layer this is answers with a `Start`: the stream and the attention output from which its pass goes on, and what is to be
rewritten in flight in the layers above. The sweep asks nothing else of a variant, and no variant knows of sweeps.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.heads import Head
from safetyheads.interventions.ablations import Lenders
from safetyheads.models.attention import AttentionActs
from safetyheads.models.editing import ZEdit, editing
from safetyheads.models.hooked import HookedModel
from safetyheads.models.streams import StreamEdit, editing_stream


@dataclass(frozen=True, eq=False)
class Reference:
    """What an ablation may need to know of the other prompts at one layer: the mean of z, or another prompt's z."""

    z: Float[Tensor, "prompt pos head d_head"]
    """Every head's output on the untouched model; padding means nothing."""
    lengths: Int[Tensor, " prompt"]
    """Tokens of each prompt."""
    prompts: tuple[int, ...]
    """Which prompts these are."""
    prefix: int
    """How many tokens all of them share."""
    mean: Float[Tensor, "head d_head"]
    """Mean of z over all real tokens of all prompts."""

    @classmethod
    def of(
        cls,
        z: Float[Tensor, "prompt pos head d_head"],
        lengths: Int[Tensor, " prompt"],
        prompts: Sequence[int],
        prefix: int,
    ) -> "Reference":
        """The reference of these outputs."""
        real = torch.arange(z.shape[1], device=lengths.device) < lengths[:, None]
        return cls(z, lengths, tuple(prompts), prefix, z[real].mean(0))

    def donor(
        self, prompts: Sequence[int], end: int, head: int, lenders_of: Lenders
    ) -> Float[Tensor, "prompt pos d_head"]:
        """The head's z on the prompts that lend to these, aligned as `ResampleAblation` says, up to a position."""
        place = {prompt: n for n, prompt in enumerate(self.prompts)}
        lender = dict(zip(self.prompts, lenders_of(self.prompts), strict=True))
        own = torch.tensor([place[p] for p in prompts], device=self.lengths.device)
        lenders = torch.tensor([place[lender[p]] for p in prompts], device=self.lengths.device)
        positions = torch.arange(end, device=self.lengths.device)
        shift = (self.lengths[lenders] - self.lengths[own])[:, None]
        source = (positions + shift).clamp_min(self.prefix)
        source = source.minimum(self.lengths[lenders, None] - 1)
        borrowed = self.z[lenders[:, None], source, head]
        # Over the shared prefix the lender's z is the borrower's own.
        return torch.where(positions[:, None] < self.prefix, self.z[own, :end, head], borrowed)


class Site(NamedTuple):
    """Where a pass starts, for prompts that are run together: all that a variant may look at."""

    model: HookedModel
    layer: int
    prompts: tuple[int, ...]
    """Which prompts of the batch stand here."""
    lengths: Int[Tensor, " prompt"]
    """Tokens of each."""
    prefix: int
    """How many tokens they share; these may be run once for all of them."""
    resid: Float[Tensor, "prompt pos d_model"]
    """What enters the block, of the clean stream."""
    acts: AttentionActs | None
    """What the block's heads do, where a variant needs it."""
    references: Mapping[int, Reference]
    """By layer, where a variant needs it."""


class Start(NamedTuple):
    """What a variant puts where its pass starts."""

    resid: Float[Tensor, "prompt pos d_model"]
    """What enters the block; the site's own tensor where it is left alone."""
    attn_out: Float[Tensor, "prompt pos d_model"] | None = None
    """What the block's attention adds to it; None: attention is run."""
    z_edits: tuple[ZEdit, ...] = ()
    """Heads that are rewritten in flight: above the site where there is an attention output, else from it on."""
    stream_edits: tuple[StreamEdit, ...] = ()
    """What is rewritten in the residual stream, from the site on."""


@runtime_checkable
class Variant(Protocol):
    """Anything that changes a forward pass from some layer on: one thing that a sweep runs."""

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        ...

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are ablated, if any."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What it looks at: "acts", and with it "scores"; "mean" or "donor" of the other prompts."""
        ...

    @property
    def label(self) -> str:
        """What it does, for an error."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it is, for a manifest: two variants with one description give one number."""
        ...

    def start(self, site: Site) -> Start:
        """What it puts at its first layer."""
        ...

    def in_flight(self, site: Site) -> Start:
        """The same with nothing taken from the clean pass: all of it edits, from the first layer on."""
        ...

    def plainly(self, site: Site) -> contextlib.AbstractContextManager[None]:
        """Within the context, the model's own forward pass on the site's prompts is this variant: the twin of `start`
        that a sweep is checked against."""
        ...


def digest(values: Tensor) -> str:
    """SHA-256 over the numbers of a tensor and its shape, for a manifest."""
    data = values.detach().double().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{list(values.shape)}".encode() + data).hexdigest()


@contextlib.contextmanager
def edited(site: Site, start: Start) -> Iterator[None]:
    """Within the context, the model's own forward pass on the site's prompts has these edits."""
    with (
        editing(site.model, start.z_edits),
        editing_stream(site.model, start.stream_edits, site.lengths - 1),
    ):
        yield


@dataclass(frozen=True)
class AllAtOnce:
    """Several variants in one pass, such as a direction and a head.

    Raises ValueError if there is none, or two ablate one head.
    """

    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        if not self.variants or len(set(self.heads)) < len(self.heads):
            raise ValueError(
                f"{len(self.variants)} variants ablate {', '.join(map(str, self.heads)) or 'no head'}; "
                "give at least one variant, and each head only once"
            )

    @property
    def first_layer(self) -> int:
        return min(variant.first_layer for variant in self.variants)

    @property
    def heads(self) -> tuple[Head, ...]:
        return tuple(head for variant in self.variants for head in variant.heads)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset[str]().union(*(variant.needs for variant in self.variants))

    @property
    def label(self) -> str:
        return " and ".join(variant.label for variant in self.variants)

    def describe(self) -> dict[str, Any]:
        return {"all_at_once": [variant.describe() for variant in self.variants]}

    def start(self, site: Site) -> Start:
        """Nothing is taken from the clean pass: what one changes there, another may look at."""
        return self.in_flight(site)

    def in_flight(self, site: Site) -> Start:
        starts = [variant.in_flight(site) for variant in self.variants]
        return Start(
            site.resid,
            None,
            tuple(edit for start in starts for edit in start.z_edits),
            tuple(edit for start in starts for edit in start.stream_edits),
        )

    @contextlib.contextmanager
    def plainly(self, site: Site) -> Iterator[None]:
        with edited(site, self.in_flight(site)):
            yield
