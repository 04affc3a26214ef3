"""Does a ladder ask of each rung what one would ask of the model alone?"""

import pytest
import torch

from safetyheads import load_model
from safetyheads.inputs import prepare
from safetyheads.models.checkpoints import load_checkpoint
from safetyheads.prompts import PromptSet
from safetyheads.training.answering import tokenize_chats
from safetyheads.training.ladder import Ladder, climb_ladder
from tests.models.checkpoints.made import save_llama
from tests.storage.alike import differences
from tests.training.conftest import chat_tokenizer, requests

PROMPTS = PromptSet("made up", tuple(requests(6, 50)), tuple(requests(5, 60, seed=1)))


def judge(prompts, answers):
    return ["refuse" if len(said.split()) < 3 else "comply" for said in answers]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("ladder")
    base = save_llama(place / "base")
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in base.model.layers.parameters():
            weight.add_(torch.randn_like(weight) / 15)
    base.save_pretrained(place / "sibling")
    for name in ("base", "sibling"):
        chat_tokenizer().save_pretrained(place / name)
    return place / "base", place / "sibling"


@pytest.fixture(scope="module")
def ladder(folders):
    return climb_ladder(
        *folders,
        PROMPTS,
        rungs=(0.0, 0.5, 1.0),
        heads_on=3,
        max_new_tokens=4,
        judge=judge,
        progress=False,
    )


def test_the_ends_are_the_two_models(folders, ladder):
    for at, folder in ((0, folders[0]), (2, folders[1])):
        model = load_model(folder)
        sides = [prepare(model, PROMPTS, side=side) for side in ("harmful", "harmless")]
        states = []
        for side in sides:
            rows = zip(side.batch.ids, side.batch.lengths, strict=True)
            found = [
                model.hf(row[None, :n], output_hidden_states=True).hidden_states[2][0, -1]
                for row, n in rows
            ]
            states.append(torch.stack(found))
        means = [some.mean(0) for some in states]
        assert torch.allclose(ladder.directions[at, 1], means[0] - means[1], atol=1e-4)
        squares = torch.linalg.svdvals((states[0][:5] - states[1]).double()) ** 2
        assert torch.allclose(
            ladder.spectrum[at, 0, 1].double(), squares / squares.sum(), atol=1e-5
        )
    assert ladder.harmless_loss[0] < ladder.harmless_loss[2]


def test_the_base_s_own_answers_cost_what_whole_passes_say(folders, ladder):
    model, tokenizer = (load_checkpoint(folders[0])[n] for n in (0, 1))
    total, count = 0.0, 0
    for ids in tokenize_chats(tokenizer, PROMPTS.harmless):
        told = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0].tolist()
        told = told[:-1] if told[-1] == tokenizer.eos_token_id else told
        steps = model(torch.tensor([told])).logits[0].log_softmax(-1)
        total -= float(sum(steps[n - 1, told[n]] for n in range(len(ids), len(told))))
        count += len(told) - len(ids)
    assert ladder.harmless_loss[0] == pytest.approx(total / count, abs=1e-4)


def test_a_table_a_record_and_a_figure(ladder, tmp_path):
    table = ladder.to_frame()
    assert table["t"].tolist() == [0, 0.5, 1]
    last = table.iloc[-1]
    assert 0 < last["two_trimmed"] < 1
    assert (last["top_heads"], last["heads_rank"], last["direction"]) == pytest.approx((1, 1, 1))
    assert (table["refusal_low"] <= table["refusal"]).all()
    refused = ladder.verdicts["harmful"][1].count("refuse")
    assert table["refusal"][1] == refused / 6
    ladder.save(tmp_path / "ladder")
    assert differences(Ladder.load(tmp_path / "ladder"), ladder) == []
    figure = ladder.plot()
    assert list(figure.data[0].y) == table["refusal"].tolist()
    assert list(figure.data[-1].y) == table["two_trimmed"].tolist()
    assert "base" in figure.layout.title.text


def test_what_cannot_be_climbed(folders):
    with pytest.raises(ValueError, match="has no harmless prompts"):
        climb_ladder(*folders, PromptSet("one side", PROMPTS.harmful))
    with pytest.raises(ValueError, match="each once"):
        climb_ladder(*folders, PROMPTS, rungs=(0.0, 0.0))
