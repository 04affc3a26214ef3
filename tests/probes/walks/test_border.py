"""Does the border to refusal lie where the log-odds cross, and are the ends the prompts' own?"""

import functools

import pytest
import torch

from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import ZeroAblation
from safetyheads.metrics import refusal_log_odds
from safetyheads.probes.walks.border import RefusalBorder, refusal_border
from safetyheads.prompts import PromptSet
from tests.zoo import opened, sentence

# Prompts that differ in the last token alone, so that a way's end is the harmful prompt itself.
PAIRS = PromptSet(
    "pairs",
    tuple(sentence(10, 11, n) for n in (20, 21, 22)),
    tuple(sentence(10, 11, n) for n in (60, 61, 62)),
    paired=True,
)
quiet = functools.partial(refusal_border, progress=False, steps=5)


@pytest.fixture(scope="module")
def llama():
    return opened("llama", spread=0.5)


def test_ends_are_the_prompts_own(llama):
    found = quiet(llama, PAIRS, 2, tokens=(3, 4))
    for side, own in (("harmless", found.log_odds[:, 0]), ("harmful", found.log_odds[:, -1])):
        batch = prepare(llama, PAIRS, side=side).batch
        logits = llama.logits(batch.ids)[:, -1].double().log_softmax(-1)
        torch.testing.assert_close(
            own, refusal_log_odds(logits, (3, 4)).float(), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(found.harmful, found.log_odds[:, -1], rtol=1e-4, atol=1e-4)


def test_what_is_given_moves_the_border(llama):
    given = AblateHeads((Head(3, 1),), ZeroAblation())
    without, ablated = quiet(llama, PAIRS, 2), quiet(llama, PAIRS, 2, given=given)
    assert without.tokens == (3, 4, 5)
    assert (without.log_odds - ablated.log_odds).abs().min(0).values.max() > 1e-3
    torch.testing.assert_close(ablated.harmful, ablated.log_odds[:, -1], rtol=1e-4, atol=1e-4)


def test_a_crossing_is_where_the_log_odds_come_to_nothing():
    odds = torch.tensor(
        [
            [-2.0, -1.0, 1.0, 2.0],
            [-2.0, -2.0, -1.0, -1.0],
            [1.0, 0.0, 1.0, 2.0],
            [-1.0, -1.0, -1.0, -1.05],
        ]
    )
    found = RefusalBorder(odds, odds[:, -1], 3, "model", (1,))
    assert found.crosses.tolist() == [True, False, False, False]
    assert found.crossing[0] == pytest.approx(0.5)
    assert found.crossing[1:].isnan().all()
    table = found.table()
    assert table["sharpness"][0] == pytest.approx(3 * 2 / 4)
    assert table["sharpness"].isna().tolist() == [False, False, False, True]
    assert "1 of 4 ways end in a refusal" in repr(found)


def test_what_has_no_pairs_is_refused(llama):
    alone = PromptSet("alone", PAIRS.harmful, PAIRS.harmless)
    with pytest.raises(ValueError, match="alone has no pairs"):
        quiet(llama, alone, 2)
    with pytest.raises(ValueError, match="layer is 4"):
        quiet(llama, PAIRS, 4)
