"""How far is one output from another?

Two outputs of a model are compared at the last token of the prompt: the distribution of the next token (KL divergence,
refusal log-odds) or, over a whole dataset, the subspace that the final states span (angle). From the logits on
everything is computed in float64: in float32 the normalising constant of a vocabulary of 150,000 alone is off by 1e-6
nat, which is more than many heads do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.choices import chosen

BLOCK = 2**20
"""Log-probabilities that a metric holds at once."""


@dataclass(frozen=True)
class LastToken:
    """What a forward pass holds at the last token of each row."""

    state: Float[Tensor, "row d_model"]
    """The residual stream after the final norm."""
    unembed: Callable[[Tensor], Tensor] = field(repr=False)
    """From states to logits."""

    @cached_property
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """Logits of the next token, in the model's dtype."""
        return self.unembed(self.state)

    @cached_property
    def log_probs(self) -> Float[Tensor, "row d_vocab"]:
        """Log-probabilities of the next token, in nats, in float64."""
        return self.logits.double().log_softmax(-1)

    def by_rows(self) -> Iterator[Float[Tensor, "some d_vocab"]]:
        """`log_probs`, a few rows at a time: a vocabulary in float64 is large, and no row is needed beside the next."""
        for some in self.logits.split(max(1, BLOCK // self.logits.shape[-1])):
            yield some.double().log_softmax(-1)

    def repeated(self, times: int) -> "LastToken":
        """The same rows several times over; what is known of them is not computed again."""
        return _Repeated(self.state.repeat(times, 1), self.unembed, self, times)


@dataclass(frozen=True)
class _Repeated(LastToken):
    once: LastToken
    times: int

    @cached_property
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        return self.once.logits.repeat(self.times, 1)

    @cached_property
    def log_probs(self) -> Float[Tensor, "row d_vocab"]:
        return self.once.log_probs.repeat(self.times, 1)

    def by_rows(self) -> Iterator[Float[Tensor, "some d_vocab"]]:
        known = self.once.log_probs
        rows = torch.arange(len(self.state)) % len(known)
        for some in rows.split(max(1, BLOCK // known.shape[-1])):
            yield known[some]


def kl_divergence(
    baseline: Float[Tensor, "*row d_vocab"], ablated: Float[Tensor, "*row d_vocab"]
) -> Float[Tensor, "*row"]:
    """KL(baseline || ablated) in nats, from log-probabilities; a token that the baseline rules out adds nothing.

    >>> p = torch.tensor([0.5, 0.5]).log(); q = torch.tensor([0.25, 0.75]).log()
    >>> round(kl_divergence(p, q).item(), 6), kl_divergence(p, p).item()
    (0.143841, 0.0)
    """
    terms = baseline.exp() * (baseline - ablated)
    return terms.masked_fill(baseline == -torch.inf, 0.0).sum(-1).clamp_min(0.0)


def principal_angles(
    first: Float[Tensor, "*batch dim rank"], second: Float[Tensor, "*batch dim rank"]
) -> Float[Tensor, "*batch rank"]:
    """Principal angles between two subspaces given by orthonormal columns, in degrees, ascending, without arccos.

    With the principal vectors a and b of each pair, the angle is 2 asin(|a - b| / 2) in float64, which keeps
    small angles: float32 arccos has a floor near 0.02 degrees.

    >>> e = torch.eye(3, dtype=torch.float64); tilted = (e[:, :1] + 1e-6 * e[:, 1:2])
    >>> round(principal_angles(e[:, :1], tilted / tilted.norm()).item(), 8)
    5.73e-05
    """
    first, second = first.double(), second.double()
    left, _, right = torch.linalg.svd(first.mT @ second)
    chord = (first @ left - second @ right.mT).norm(dim=-2)
    return torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1.0)))


def refusal_log_odds(
    log_probs: Float[Tensor, "*row d_vocab"], tokens: Sequence[int]
) -> Float[Tensor, "*row"]:
    """Log-odds that the next token is one of `tokens`, in nats (Arditi et al. 2024, arXiv:2406.11717, in exact form).

    >>> round(refusal_log_odds(torch.tensor([0.5, 0.3, 0.2]).log(), [0]).item(), 6)
    0.0
    """
    log_probs = log_probs.double()
    if not tokens or min(tokens) < 0 or max(tokens) >= log_probs.shape[-1]:
        raise ValueError(
            f"refusal tokens {list(tokens)} do not fit a vocabulary of {log_probs.shape[-1]}; "
            "give ids between 0 and one less, or none so that they are read off the tokenizer"
        )
    refusal = torch.zeros(log_probs.shape[-1], dtype=torch.bool, device=log_probs.device)
    refusal[list(tokens)] = True
    inside = log_probs.masked_fill(~refusal, -torch.inf).logsumexp(-1)
    outside = log_probs.masked_fill(refusal, -torch.inf).logsumexp(-1)
    return inside - outside


def refusal_tokens(tokenizer: Any, openings: Sequence[str], prompt: str = "") -> tuple[int, ...]:
    """The tokens that begin a refusal right after `prompt`: those that spell a whole opening, with or without a space.

    Arditi et al. 2024 list them by hand (Llama-2 `▁I`, Qwen `I` and `As`); here they are read off the tokenizer.
    Raises ValueError if none of the openings is a single token.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found: dict[int, None] = {}
    for opening in openings:
        for text in (opening, " " + opening):
            after = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
            shared = next(
                (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
                min(len(before), len(after)),
            )
            # A space may be a token of its own: the opening is then the last token.
            for token in dict.fromkeys([*after[shared : shared + 1], *after[-1:]]):
                if tokenizer.decode([token]).strip() == opening:
                    found[token] = None
    if not found:
        raise ValueError(
            f"none of the refusal openings {list(openings)} is a single token of this tokenizer; "
            "give RefusalShift(tokens=...) the token ids that begin the model's refusals, "
            "or take another metric, such as Ships()"
        )
    return tuple(found)


@runtime_checkable
class Metric(Protocol):
    """How a head's ablation is measured: a reading a row, gathered over the prompts, then a score."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def largest_first(self) -> bool: ...
    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Metric":
        """The metric, completed from the tokenizer and the rendered prompts."""
        ...

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, "row *state"]:
        """What is kept of each row."""
        ...

    def gather(
        self, rows: Float[Tensor, "variant prompt *state"], baseline: Float[Tensor, "prompt *state"]
    ) -> Float[Tensor, "variant *reading"]:
        """What is kept of each variant, once all its prompts are there."""
        ...

    def score(
        self, readings: Float[Tensor, "variant *reading"]
    ) -> tuple[Float[Tensor, " variant"], Float[Tensor, "variant prompt"] | None]:
        """A score for each variant, and one for each of its prompts where that has a meaning."""
        ...


class _PerPrompt:
    """A metric that is a number a prompt; the score is the mean over prompts."""

    def gather(
        self, rows: Float[Tensor, "variant prompt"], baseline: Float[Tensor, " prompt"]
    ) -> Float[Tensor, "variant prompt"]:
        return rows

    def score(
        self, readings: Float[Tensor, "variant prompt"]
    ) -> tuple[Float[Tensor, " variant"], Float[Tensor, "variant prompt"]]:
        return readings.mean(-1), readings


@dataclass(frozen=True)
class Ships(_PerPrompt):
    """Ships (arXiv:2410.13708, Eq. 9): KL(base || ablated) of the next token, in nats, mean over the prompts.

    The paper's code adds 1e-12 to every probability; this does not. The sum moves by about p times 1e-12 / q for every
    token: about 1e-7 or less where the ablated model leaves the likely tokens a probability of 1e-5, more where it all
    but rules one out (then the code's sum stops near 27.6 nat, and this one goes on).
    """

    name: ClassVar[str] = "ships"
    unit: ClassVar[str] = "nat"
    largest_first: ClassVar[bool] = True

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Ships":
        return self

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, " row"]:
        pairs = zip(baseline.by_rows(), ablated.by_rows(), strict=True)
        return torch.cat([kl_divergence(base, other) for base, other in pairs]).float()


@dataclass(frozen=True)
class RefusalShift(_PerPrompt):
    """How far ablating a head moves the next token's refusal log-odds, ablated - baseline, in nats, with its sign.

    A head that carries refusal has a negative shift; one that carries everything moves Ships and has no sign of its own
    here. Rank 1 is the most negative shift.
    """

    openings: tuple[str, ...] = ("I", "As", "Sorry")
    """Words that begin a refusal; their tokens are read off the tokenizer."""
    tokens: tuple[int, ...] = ()
    """Token ids that begin a refusal, if they are to be given by hand."""
    name: ClassVar[str] = "refusal_shift"
    unit: ClassVar[str] = "nat"
    largest_first: ClassVar[bool] = False

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Metric":
        if self.tokens:
            return self
        return replace(self, tokens=refusal_tokens(tokenizer, self.openings, texts[0]))

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, " row"]:
        after, before = (
            torch.cat([refusal_log_odds(some, self.tokens) for some in read.by_rows()])
            for read in (ablated, baseline)
        )
        return (after - before).float()


@dataclass(frozen=True)
class GeneralizedShips:
    """Generalized Ships (arXiv:2410.13708, Eq. 11): how far the ablation turns the final states' subspace, in degrees.

    The final states of all prompts (last token, after the final norm, as in the paper's code; not centred) are the rows
    of a matrix M. `space` says which of its singular vectors span the subspace:

    - `left` (the paper's Eq. 11 and its code since June 2025): vectors over the prompts;
    - `right`: vectors over the features, which moves more;
    - `feature0`: what the code did until June 2025, the angle between the columns of hidden feature 0. The published
      colour ranges fit this one. Rank does not apply.

    The score is the sum of the `rank` principal angles. Rank 1 is the code's choice; the paper leaves it open.
    """

    space: str = "left"
    """`left`, `right` or `feature0`."""
    rank: int = 1
    """How many leading singular vectors span the subspace."""
    unit: ClassVar[str] = "deg"
    largest_first: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The metric and its definition, since the three do not compare."""
        if self.space == "feature0":
            return "generalized_ships (feature0)"
        return f"generalized_ships ({self.space}, rank {self.rank})"

    def __post_init__(self) -> None:
        if self.space not in _SUBSPACES:
            raise ValueError(f"space is {self.space!r}; it must be one of {', '.join(_SUBSPACES)}")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")
        if self.space == "feature0" and self.rank != 1:
            raise ValueError(
                f"space='feature0' is one angle and takes no rank, and {self.rank} came"
            )

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Metric":
        # Left vectors live in the space of prompts: with rank = prompts they span all of it and no angle can open.
        most = len(texts) if self.space == "right" else len(texts) - 1
        if self.rank > most:
            raise ValueError(
                f"generalized Ships with space={self.space!r} and rank {self.rank} needs at least "
                f"{len(texts) + self.rank - most} prompts, and there are {len(texts)}; give more prompts"
            )
        return self

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, "row d_model"]:
        return ablated.state[:, :1] if self.space == "feature0" else ablated.state

    def gather(
        self, rows: Float[Tensor, "variant prompt d"], baseline: Float[Tensor, "prompt d"]
    ) -> Float[Tensor, "variant 3 prompt prompt"]:
        """The Gram matrices of base and base, base and ablated, ablated and ablated states: all a score needs."""
        ablated, base = rows.double(), baseline.double()
        grams = [
            (base @ base.mT).expand(len(rows), -1, -1),
            base @ ablated.mT,
            ablated @ ablated.mT,
        ]
        return torch.stack(grams, dim=1)

    def score(
        self, readings: Float[Tensor, "variant 3 prompt prompt"]
    ) -> tuple[Float[Tensor, " variant"], None]:
        base, cross, ablated = readings.unbind(1)
        return _SUBSPACES[self.space](base, cross, ablated, self.rank), None


Grams = Float[Tensor, "variant prompt prompt"]


def _leading(gram: Grams, rank: int) -> tuple[Tensor, Tensor]:
    """Leading singular values and left singular vectors of M, from M M^T."""
    values, vectors = torch.linalg.eigh(gram)
    # Singular values are the square roots: below 1e-6 of the largest there is rounding and nothing else.
    if (values[..., -rank] <= 1e-12 * values[..., -1]).any():
        raise ValueError(
            f"the states of these prompts span fewer than {rank} directions (are prompts repeated?); "
            "lower the rank or give prompts that differ"
        )
    return values[..., -rank:].clamp_min(0.0).sqrt(), vectors[..., -rank:]


def left_angle(base: Grams, cross: Grams, ablated: Grams, rank: int) -> Float[Tensor, " variant"]:
    """Sum of the angles between the leading left singular subspaces, in degrees."""
    angles = principal_angles(_leading(base, rank)[1], _leading(ablated, rank)[1])
    return angles.sum(-1).float()


def right_angle(base: Grams, cross: Grams, ablated: Grams, rank: int) -> Float[Tensor, " variant"]:
    """Sum of the angles between the leading right singular subspaces, in degrees, without the states themselves.

    V_base^T V_ablated = S_base^-1 U_base^T (M_base M_ablated^T) U_ablated S_ablated^-1.
    """
    (s_base, u_base), (s_ablated, u_ablated) = _leading(base, rank), _leading(ablated, rank)
    overlap = u_base.mT @ cross @ u_ablated / (s_base[..., :, None] * s_ablated[..., None, :])
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    # 2 asin(chord / 2) with chord^2 = 2 - 2 cos: as good as the Gram matrices' float64 allows.
    return torch.rad2deg(2 * torch.asin(((1 - cosines) / 2).sqrt())).sum(-1).float()


def feature0_angle(
    base: Grams, cross: Grams, ablated: Grams, rank: int
) -> Float[Tensor, " variant"]:
    """The angle between base and ablated values of hidden feature 0 across prompts, in degrees.

    Of a one-column matrix the left singular vector is the column, scaled.
    """
    return left_angle(base, cross, ablated, 1)


_SUBSPACES = {"left": left_angle, "right": right_angle, "feature0": feature0_angle}

METRICS: dict[str, Callable[[], Metric]] = {
    "ships": Ships,
    "refusal_shift": RefusalShift,
    "generalized_ships": GeneralizedShips,
}
"""The metrics that a name stands for, with their defaults."""


def as_metric(value: "Metric | str | Mapping[str, Any]") -> Metric:
    """A metric, the one of a name, or the one that a manifest describes.

    >>> as_metric("ships"), as_metric({"name": "generalized_ships", "space": "right"}).name
    (Ships(), 'generalized_ships (right, rank 1)')

    Raises ValueError for a name that is none, with near ones, a class, or anything else.
    """
    is_one = lambda given: isinstance(given, Metric)  # noqa: E731
    return chosen("metric", value, METRICS, is_one, "Ships()")
