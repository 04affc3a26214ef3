import pytest

from tests.test_stats import normal


@pytest.fixture(scope="module")
def two_sides():
    """Four layers of six heads; L2H3 matters on harmful prompts, L1H1 for everything."""
    harmful, harmless = normal(4, 6, 16).exp(), normal(4, 6, 16, seed=1).exp()
    harmful[2, 3] += 5
    harmful[1, 1] += 9
    harmless[1, 1] += 9
    return harmful, harmless
