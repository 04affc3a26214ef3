"""Along how many directions do two sides of prompts differ, and how sure is that?

Plain functions of states. All that is resampled is read from one Gram matrix of all states of a place: a pairing, a
bootstrap or a relabelling of prompts only picks and subtracts its rows.
"""

from typing import NamedTuple

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.stats import percentile_interval

VERSIONS = ("uncentred", "centred", "uncentred, trimmed", "centred, trimmed")
"""How differences are decomposed: as they are, less their mean, and both without the outlier dimensions."""
LARGE = 400
"""Differences from which on the leading singular values alone are computed."""
ROUNDING = 1e-6
"""Singular values below this share of the largest are rounding; they have no vectors."""

Rows = Int[Tensor, " pair"]


class Place(NamedTuple):
    """Both sides' states at one layer and position."""

    states: Float[Tensor, "prompt d_model"]
    """Harmful ones, then harmless ones, less their common mean, in float64."""
    n_harmful: int
    outliers: Int[Tensor, " outlier"]
    """The dimensions with the largest mean square."""

    @classmethod
    def of(
        cls,
        harmful: Float[Tensor, "prompt d_model"],
        harmless: Float[Tensor, "other d_model"],
        n_outliers: int,
    ) -> "Place":
        """The place of these states; the outlier dimensions are found on the states as they are."""
        states = torch.empty(len(harmful) + len(harmless), harmful.shape[1], dtype=torch.float64)
        states[: len(harmful)], states[len(harmful) :] = harmful, harmless
        outliers = states.norm(dim=0).topk(n_outliers).indices.sort().values
        states -= states.mean(0)
        return cls(states, len(harmful), outliers)

    @property
    def pairs(self) -> tuple[Rows, Rows]:
        """Rows of the harmful and of the harmless prompt of each pair: the n-th with the n-th."""
        n = min(self.n_harmful, len(self.states) - self.n_harmful)
        return torch.arange(n), torch.arange(n) + self.n_harmful

    def grams(self) -> tuple[Float[Tensor, "prompt prompt"], Float[Tensor, "prompt prompt"]]:
        """Gram matrices of all states, with and without the outlier dimensions."""
        whole = self.states @ self.states.mT
        apart = self.states[:, self.outliers]
        return whole, torch.addmm(whole, apart, apart.mT, alpha=-1)

    def differences(self, version: str) -> Float[Tensor, "pair d_model"]:
        """The matrix that a version decomposes."""
        first, second = self.pairs
        found = self.states[first] - self.states[second]
        if version.endswith("trimmed"):
            found[:, self.outliers] = 0.0
        if version.startswith("centred"):
            found -= found.mean(0)
        return found


class Decomposed(NamedTuple):
    """The singular value decomposition of one matrix of differences."""

    values: Float[Tensor, " rank"]
    """All singular values, largest first."""
    left: Float[Tensor, "pair component"]
    """Weights of the pairs; zero where the singular value is rounding."""
    right: Float[Tensor, "component d_model"]
    """Directions, each with a sign by which the mean difference is not against it; zero as above."""


def decompose(differences: Float[Tensor, "pair d_model"], components: int) -> Decomposed:
    """D = U diag(s) V^T, by the eigenvectors of D D^T in float64, of which the first components are kept."""
    squares, vectors = torch.linalg.eigh(differences @ differences.mT)
    values = squares.flip(0).clamp_min(0.0).sqrt()
    left = vectors.flip(1)[:, :components]
    real = values[:components] > ROUNDING * values[0]
    scale = torch.where(real, values[:components], torch.inf)
    right = (differences.mT @ left / scale).mT
    left = left * real
    against = right @ differences.mean(0)
    # Centred differences have no mean: then the larger weights of pairs are positive.
    odd = (left**3).sum(0)
    tiny = against.abs() <= ROUNDING * differences.norm(dim=1).mean()
    sign = torch.where(tiny, odd, against).sign()
    sign = torch.where(sign == 0, 1.0, sign)
    return Decomposed(values, left * sign, right * sign[:, None])


def gram_of_pairs(
    gram: Float[Tensor, "prompt prompt"], first: Rows, second: Rows
) -> Float[Tensor, "pair pair"]:
    """Gram matrix of the differences of some pairs of rows."""
    a, b = gram[first], gram[second]
    return a[:, first] - a[:, second] - b[:, first] + b[:, second]


def less_mean(gram: Float[Tensor, "pair pair"]) -> Float[Tensor, "pair pair"]:
    """Gram matrix of the same differences less their mean."""
    mean = gram.mean(0)
    return gram - mean - mean[:, None] + mean.mean()


def leading(
    gram: Float[Tensor, "pair pair"], count: int
) -> tuple[Float[Tensor, " component"], Float[Tensor, "pair component"]]:
    """The largest eigenvalues, first the largest, and their eigenvectors."""
    if len(gram) < LARGE:
        squares, vectors = torch.linalg.eigh(gram)
        squares, vectors = squares.flip(0)[:count], vectors.flip(1)[:, :count]
    else:
        from scipy.sparse.linalg import eigsh

        start = numpy.random.default_rng(0).standard_normal(len(gram))
        found, columns = eigsh(gram.numpy(), count, v0=start, tol=1e-9)
        order = numpy.argsort(found)[::-1].copy()
        squares, vectors = torch.as_tensor(found[order]), torch.as_tensor(columns[:, order])
    return squares.clamp_min(0.0), vectors


def explained(gram: Float[Tensor, "pair pair"], components: int) -> Float[Tensor, " component"]:
    """The share of the sum of squares that each of the first components has; NaN of nothing."""
    if len(gram) < LARGE:  # without vectors it takes half the time
        squares = torch.linalg.eigvalsh(gram).flip(0)[:components].clamp_min(0.0)
    else:
        squares, _ = leading(gram, components)
    return squares / gram.diagonal().sum()


def shares(
    grams: tuple[Tensor, Tensor], first: Rows, second: Rows, components: int
) -> Float[Tensor, "version component"]:
    """The explained shares of every version, in the order of `VERSIONS`."""
    whole, trimmed = (gram_of_pairs(gram, first, second) for gram in grams)
    matrices = (whole, less_mean(whole), trimmed, less_mean(trimmed))
    return torch.stack([explained(matrix, components) for matrix in matrices])


def mean_share(
    grams: tuple[Tensor, Tensor], first: Rows, second: Rows
) -> Float[Tensor, " trimmed"]:
    """The share of the sum of squares along the mean difference, n |mean|^2 / |D|^2, with and without outliers."""
    both = [gram_of_pairs(gram, first, second) for gram in grams]
    return torch.stack([gram.mean() * len(gram) / gram.diagonal().sum() for gram in both])


class Spread(NamedTuple):
    """How far the explained shares of one place may be believed."""

    low: Float[Tensor, "version component"]
    high: Float[Tensor, "version component"]
    """Ends of the bootstrap interval over pairs."""
    repaired: Float[Tensor, "version component"]
    """Standard deviation where harmful and harmless prompts are paired anew."""
    chance: Float[Tensor, "version component"]
    """What 95 % of random relabellings stay below."""
    mean_chance: Float[Tensor, " trimmed"]
    """The same of the share along the mean difference."""


def spread_of(place: Place, components: int, n_resamples: int, seed: int) -> Spread:
    """Resample the pairs, the pairing and the labels of one place.

    A bootstrap sample holds some pairs twice, so that its components explain more: the draws are moved by as much as
    their mean lies off the shares that were observed. Labels are dealt anew to all prompts of both sides; to swap a
    pair's two members would turn a row's sign, which no singular value notices. For the same reason one pair in two
    of a relabelling still crosses between the sides: where these lie far apart, `chance` is high. The share along the
    mean difference is not blind to signs, and falls to about 1 / n.
    """
    generator = torch.Generator().manual_seed(seed)
    grams, (first, second) = place.grams(), place.pairs
    n, every = len(first), len(place.states)

    def draw(pairs: list[tuple[Rows, Rows]]) -> Float[Tensor, "resample version component"]:
        return torch.stack([shares(grams, a, b, components) for a, b in pairs])

    def dealt(most: int) -> Int[Tensor, " prompt"]:
        return torch.randperm(most, generator=generator)

    times = range(n_resamples)
    again = [torch.randint(n, (n,), generator=generator) for _ in times]
    others = every - place.n_harmful
    anew = [(first, dealt(others)[:n] + place.n_harmful) for _ in times]
    orders = [dealt(every) for _ in times]
    relabelled = [(order[:n], order[n : 2 * n]) for order in orders]
    observed = shares(grams, first, second, components)
    drawn = draw([(first[some], second[some]) for some in again])
    low, high = percentile_interval(drawn - drawn.mean(0) + observed, n)
    means = torch.stack([mean_share(grams, a, b) for a, b in relabelled])
    return Spread(
        low=low.clamp_min(0.0),
        high=high.clamp_max(1.0),
        repaired=draw(anew).std(0),
        chance=draw(relabelled).quantile(0.95, dim=0),
        mean_chance=means.quantile(0.95, dim=0),
    )


def participation(vectors: Float[Tensor, "*batch entry"]) -> Float[Tensor, "*batch"]:
    """How many entries a vector is spread over, (sum v^2)^2 / sum v^4: 1 for one, all for equal ones; NaN of zero.

    >>> participation(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0]])).tolist()
    [1.0, 4.0]
    """
    squares = vectors.double().square()
    return squares.sum(-1).square() / squares.square().sum(-1)


def leading_plane(
    gram: Float[Tensor, "prompt prompt"],
) -> tuple[Float[Tensor, "prompt axis"], Float[Tensor, " axis"]]:
    """Coordinates on the first two principal components of centred states, from their Gram matrix, and the share of
    the variance that each explains."""
    squares, vectors = leading(gram, 2)
    largest = vectors.abs().argmax(0)
    sign = vectors[largest, torch.arange(2)].sign()
    return vectors * sign * squares.sqrt(), squares / gram.diagonal().sum()
