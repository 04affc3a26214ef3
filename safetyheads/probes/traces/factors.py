"""What do the states of all prompts at one layer have in common, and how much of it is in each prompt?

The CP decomposition of "Jailbreaking Leaves a Trace" (arXiv:2602.11495): X ~ sum_r c_r o a_r o b_r over prompt,
position and width. The factors a and b are fitted on some prompts, and every prompt, seen or new, gets its row of C by
the same least squares with the Khatri-Rao product of a and b (`project`). The rank, which the paper does not give, is
an argument.
"""

import warnings
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor


class Factors(NamedTuple):
    """What all prompts share at one layer: R patterns over positions and width, columns of length 1."""

    positions: Float[Tensor, "pos rank"]
    width: Float[Tensor, "d_model rank"]
    fit: float
    """How much of the fitted states' squared norm they explain [1]."""


def fit_factors(
    states: Float[Tensor, "prompt pos d_model"], rank: int = 16, *, seed: int = 0
) -> Factors:
    """Decompose prompts x positions x width into `rank` outer products (CP, alternating least squares).

    TensorLy's `parafac` in float64, at most 100 rounds, begun from singular vectors: from random factors it stops in
    poor local minima now and then. `seed` draws what is missing where `rank` is above the number of positions. The
    decomposition has no order, sign or scale of its own: columns have length 1 here, and what follows must not depend
    on their order.

    Raises ValueError for a rank below 1 or states that are all zero, ImportError without the extra `traces`.
    """
    tensorly, parafac = require_extra()
    if rank < 1:
        raise ValueError(f"rank is {rank}; a decomposition needs at least one component")
    if not states.any():
        raise ValueError("the states are all zero: there is nothing to decompose")
    tensor = states.double().numpy()
    with warnings.catch_warnings(), tensorly.backend_context("numpy", local_threadsafe=True):
        # More components than positions: the singular vectors are eked out at random, as wanted.
        warnings.filterwarnings("ignore", "Trying to compute SVD with n_eigenvecs")
        _, (_, positions, width) = parafac(
            tensor / abs(tensor).max(),
            rank,
            init="svd",
            random_state=seed,
            n_iter_max=100,
            tol=1e-7,
        )
    a, b = (torch.nn.functional.normalize(torch.tensor(f), dim=0) for f in (positions, width))
    factors = Factors(a, b, fit=0.0)
    rebuilt = einsum(
        project(states, factors), a, b, "prompt rank, pos rank, d_model rank -> prompt pos d_model"
    )
    error = (states - rebuilt).square().sum() / states.double().square().sum()
    return factors._replace(fit=1 - error.item())


def project(
    states: Float[Tensor, "prompt pos d_model"], factors: Factors
) -> Float[Tensor, "prompt rank"]:
    """Each prompt's row of C: the least squares solution of states = sum_r c_r a_r b_r^T."""
    positions, width, _ = factors
    inner = einsum(
        states.double(),
        positions,
        width,
        "prompt pos d_model, pos rank, d_model rank -> prompt rank",
    )
    gram = (positions.T @ positions) * (width.T @ width)
    return inner @ torch.linalg.pinv(gram, hermitian=True)


def require_extra() -> tuple[Any, Any]:
    """TensorLy and its `parafac`; ImportError that names the extra where it or scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
        import tensorly
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise ImportError(
            f"traces need TensorLy and scikit-learn ({error}): pip install 'safetyheads[traces]'"
        ) from error
    return tensorly, parafac
