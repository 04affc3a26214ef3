"""Are captured states those of each prompt alone?"""

import pytest
import torch

from safetyheads.probes.traces.capture import capture_traces
from tests.oracles import plain
from tests.zoo import CONFIGS, RAGGED, opened, sentence, tokenizer

BENIGN = [sentence(10, 11, 12, 13, 70, 71, 72), sentence(80, 81, 82, 83)]


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    return plain(request.param), opened(request.param)


def alone(plain, text, layers, names):
    """What some layers give on one prompt that runs alone, [layer][name]."""
    kept = {}
    hooks = [
        (f"blocks.{layer}.{name}", lambda out, hook: kept.update({hook.name: out[0].clone()}))
        for layer in layers
        for name in names
    ]
    plain.run(tokenizer()(text)["input_ids"], hooks)
    return [[kept[f"blocks.{layer}.{name}"] for name in names] for layer in layers]


@pytest.mark.parametrize("align", ["end", "start"])
def test_captured_states_are_those_of_each_prompt_alone(zoo, align):
    plain, model = zoo
    traces = capture_traces(model, RAGGED, BENIGN, layers=(2, 0), length=7, align=align)
    assert traces.states.shape == (2, 2, 5, 7, model.d_model)
    assert traces.padding == pytest.approx(2 / 35)  # the last prompt has five tokens
    for n, text in enumerate((*RAGGED, *BENIGN)):
        for m, given in enumerate(alone(plain, text, (2, 0), ("attn.hook_out", "hook_out"))):
            for k, full in enumerate(given):
                expected = torch.zeros(7, model.d_model)
                if align == "end":
                    expected[7 - len(full[-7:]) :] = full[-7:]
                else:
                    expected[: len(full[:7])] = full[:7]
                assert torch.allclose(traces.states[k, m, n], expected, atol=1e-5)
                assert full.abs().max() > 0.01


@pytest.fixture(scope="module")
def model():
    return opened("llama")


def test_nothing_above_the_highest_layer_runs(model):
    ran = []
    blocks = model.bridge.blocks
    handles = [
        block.register_forward_pre_hook(lambda *_, n=n: ran.append(n))
        for n, block in enumerate(blocks)
    ]
    capture_traces(model, RAGGED, BENIGN, layers=(1,))
    ran.clear()  # the first one tries the cache and the gate sees the hooks, with whole passes
    capture_traces(model, RAGGED, BENIGN, layers=(1,))
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1}
    assert not any(block._forward_hooks or block.attn._forward_hooks for block in blocks)


def test_by_default_no_position_is_padding(model):
    traces = capture_traces(model, RAGGED, BENIGN)
    assert traces.states.shape[3] == 5  # of the shortest prompt
    assert traces.padding == 0
    assert traces.layers == (0, 1, 2, 3)
    assert "w10" not in repr(traces)
    assert set(traces.provenance["tokens"]) == {"jailbreak", "benign"}


def test_prompts_that_contain_each_other_share_a_goal(model):
    dressed = [f"w90 w91 {text}" for text in BENIGN]
    assert capture_traces(model, dressed, BENIGN, layers=(0,)).goals == (0, 1, 0, 1)
    traces = capture_traces(model, dressed, BENIGN, layers=(0,), goals=(["a", "b"], ["b", "c"]))
    assert traces.goals == (0, 1, 1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jailbreak": []}, "there are no jailbreak prompts"),
        ({"benign": []}, "there are no benign prompts"),
        ({"benign": "w10"}, "expected a list of strings"),
        ({"layers": (4,)}, r"layers are \[4\]; .* has layers 0-3"),
        ({"layers": ()}, r"layers are \[\]"),
        (
            {"representations": ("z",)},
            "representations are .*'z'.*; give some of attn_out, resid_post",
        ),
        ({"representations": ()}, "representations are none"),
        ({"length": 0}, "length is 0"),
        ({"align": "left"}, "align is 'left'"),
        ({"goals": ([1], [2])}, "goals has 1 and 1 labels for 3 jailbreak and 2 benign prompts"),
    ],
)
def test_what_cannot_be_captured_is_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        capture_traces(model, **{"jailbreak": RAGGED, "benign": BENIGN, **given})
