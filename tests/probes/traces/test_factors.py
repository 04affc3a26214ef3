"""Are planted factors found?"""

import numpy
import pytest
import torch

from safetyheads.probes.traces.factors import Factors, fit_factors, project
from tests.probes.traces.planted import drawn, planted

pytest.importorskip("tensorly", reason="needs the extra traces: TensorLy and scikit-learn")
pytest.importorskip("sklearn", reason="needs the extra traces: TensorLy and scikit-learn")


def test_planted_factors_are_found_up_to_order_and_sign():
    states, (_, positions, width) = planted()
    factors = fit_factors(states, 3)
    assert factors.fit > 0.999
    for found, true in ((factors.positions, positions), (factors.width, width)):
        cosines = (torch.nn.functional.normalize(true.double(), dim=0).T @ found).abs()
        assert cosines.max(0).values.min() > 0.999
        assert sorted(cosines.argmax(0).tolist()) == [0, 1, 2]


def test_fewer_components_explain_less():
    states, _ = planted()
    assert fit_factors(states, 1).fit < 0.9


def test_a_prompts_features_are_its_row_of_c():
    """And the least squares solution with the Khatri-Rao matrix, written out."""
    states, (rows, positions, width) = planted()
    true = Factors(positions.double(), width.double(), 1.0)
    assert torch.allclose(project(states, true), rows.double(), atol=1e-4)
    noisy = states + drawn(*states.shape, seed=9)
    khatri_rao = numpy.stack(
        [numpy.kron(*pair) for pair in zip(positions.T, width.T, strict=True)], 1
    )
    slow = numpy.linalg.lstsq(khatri_rao, noisy.reshape(len(noisy), -1).numpy().T, rcond=None)[0].T
    assert numpy.abs(project(noisy, true).numpy() - slow).max() < 1e-4
    assert numpy.abs(slow - rows.numpy()).max() > 0.1


def test_a_decomposition_is_the_same_for_the_same_seed():
    states, _ = planted()
    first, again = fit_factors(states, 2, seed=4), fit_factors(states, 2, seed=4)
    assert torch.equal(first.width, again.width)


@pytest.mark.parametrize(
    ("states", "rank", "message"),
    [(torch.ones(2, 2, 2), 0, "rank is 0"), (torch.zeros(2, 2, 2), 1, "all zero")],
)
def test_what_cannot_be_decomposed_is_refused(states, rank, message):
    with pytest.raises(ValueError, match=message):
        fit_factors(states, rank)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorly", None)
    with pytest.raises(ImportError, match=r"pip install 'safetyheads\[traces\]'"):
        fit_factors(drawn(4, 2, 3), 1)
