"""Are the shares of a prompt's parts those of the plain model?"""

import pytest

from safetyheads.probes.attention.shares import attention_by_segment
from safetyheads.prompts import wrap
from tests.probes.attention.plain import random_texts, stacked
from tests.zoo import CONFIGS, opened, random_model


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


def test_attention_by_segment_is_the_plain_models(llama):
    hf = random_model(CONFIGS["llama"]())
    requests = random_texts(3, 4, 5, 9)
    wrapped = wrap(requests, "w6 w7 w8 w9 {q} w11 w12")
    table = attention_by_segment(llama, requests, wrapped, ["L2H5", "L1H0"])
    shares = {"first token": 0.0, "jailbreak template": 0.0, "user": 0.0}
    for request, text in zip(requests, wrapped, strict=True):
        n = len(request.split())
        row = stacked(hf, [text], 1 + n + 6)[0, 2, 5, -1]
        shares["first token"] += row[0].item() / 4
        shares["jailbreak template"] += (row[1:5].sum() + row[5 + n :].sum()).item() / 4
        shares["user"] += row[5 : 5 + n].sum().item() / 4
    mine = table[(table["prompts"] == "jailbreak") & (table["label"] == "L2H5")]
    assert dict(zip(mine["segment"], mine["share"], strict=True)) == pytest.approx(shares, abs=1e-5)
    assert dict(zip(mine["segment"], mine["tokens"], strict=True))["jailbreak template"] == 6
    assert mine["rank"].unique().tolist() == [1]
    sums = table.groupby(["prompts", "label"])["share"].sum()
    assert sums.tolist() == pytest.approx([1.0] * 6, abs=1e-5)
    lengths = table.groupby(["prompts", "label"])["tokens"].sum()
    assert lengths["lengthened"].iloc[0] == pytest.approx(lengths["jailbreak"].iloc[0], abs=1.5)
    with pytest.raises(ValueError, match="L4H0 is not in"):
        attention_by_segment(llama, requests, wrapped, ["L4H0"])
    with pytest.raises(ValueError, match="no heads"):
        attention_by_segment(llama, requests, wrapped, [])
