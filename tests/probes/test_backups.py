"""Of two heads that stand in for each other, each is found once the other is gone."""

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import ZeroAblation
from safetyheads.metrics import RefusalShift, refusal_log_odds
from safetyheads.probes.backups import find_backups
from safetyheads.validation.planted import plant

QUIET = Execution(progress=False)


@pytest.fixture(scope="module")
def planted():
    return plant("redundant", pairs=6)


@pytest.fixture(scope="module")
def found(planted):
    first = min(planted.safety)
    return first, find_backups(
        planted.model, planted.prompts, [first], ablation="zero", execution=QUIET
    )


def test_the_backup_grows_most_and_alone_does_little(planted, found):
    first, backups = found
    other = max(planted.safety - {first})
    assert backups.to_frame()["label"][0] == str(other)
    assert backups.growth[other] < -2
    assert backups.alone[other].abs() < 1
    assert backups.high[other] < 0
    assert backups.growth[first].isnan()


@torch.inference_mode()
def test_growth_is_that_of_plain_passes(planted, found):
    first, backups = found
    other = max(planted.safety - {first})
    tokens = RefusalShift().prepare(planted.model.tokenizer, planted.prompts.harmful).tokens

    def mean_odds(heads):
        odds = []
        for text in planted.prompts.harmful:
            ids = torch.tensor([planted.model.tokenizer(text)["input_ids"]])
            if heads:
                with AblateHeads(tuple(heads), ZeroAblation()).active(planted.model):
                    logits = planted.model.logits(ids)
            else:
                logits = planted.model.logits(ids)
            odds.append(refusal_log_odds(logits[0, -1].double().log_softmax(-1), tokens))
        return torch.stack(odds).mean()

    none, one, two = mean_odds(()), mean_odds([first]), mean_odds([other])
    growth = mean_odds([first, other]) - one - (two - none)
    assert backups.growth[other].item() == pytest.approx(growth.item(), abs=1e-4)
    assert backups.group_score == pytest.approx((one - none).item(), abs=1e-4)


@pytest.mark.parametrize("group", [[], ["L1H1", "L1H1"], ["L9H0"]])
def test_what_is_no_group_is_refused(planted, group):
    with pytest.raises(ValueError, match=r"group is|not in"):
        find_backups(planted.model, planted.prompts, group, execution=QUIET)
