"""A model on several devices: run as on one, to the bit, or refused."""

import copy
from importlib.metadata import version

import pytest
import torch

from safetyheads import Head, Raced, load_model, save_model, score_heads
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.inputs import prepare
from safetyheads.interventions.directions import AddDirection
from safetyheads.models import opening
from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.opening import reopen
from tests.pretend import inside, place, put, two_devices
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

pytest.importorskip("torch.utils.backend_registration")
if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this PyTorch has no device to pretend", allow_module_level=True)


def lay_out(hf, first, second):
    """The first block and what is below it on one device, the others and what is above them on the other."""
    for name, part in hf.base_model.named_children():
        if isinstance(part, torch.nn.ModuleList):
            for layer, block in enumerate(part):
                put(block, second if layer else first)
        else:
            put(part, second if name in ("norm", "ln_f") else first)
    put(hf.get_output_embeddings(), second)


def small(name):
    """A random model of two layers."""
    config = CONFIGS[name]()
    config.num_hidden_layers = 2
    return random_model(config)


def readings(model):
    """What several kinds of variants give: heads, heads beside a given one, directions, a race."""
    inputs = prepare(model, RAGGED, template="bare")
    heads = measure(inputs, "mean")
    given = copy.copy(heads)
    object.__setattr__(given, "given", heads.group([Head(1, 2)]))
    directed = [AddDirection(torch.ones(model.d_model), layer=layer) for layer in (0, 1)]
    return [
        score_heads(model, RAGGED, template="bare", method=Raced(top_k=3)).values,
        run(given, given.variants([Head(0, 1), Head(1, 1)])).readings,
        run(heads, directed).readings,
    ]


@pytest.mark.skipif(
    version("transformers").startswith("5.9."),
    reason="pretended devices cannot run the rotary angles of transformers 5.9 in inference mode",
)
def test_two_devices_give_what_one_gives():
    hf = small("llama")
    whole = load_model(copy.deepcopy(hf), tokenizer())
    expected, function = readings(whole), fingerprint(whole.hf)
    with two_devices() as devices:
        lay_out(hf, *devices)
        model = load_model(hf, tokenizer())
        where = [place(weight).index for weight in hf.parameters()]
        assert {*where} == {0, 1}
        assert fingerprint(hf) == function, "where a model lies is no other model"
        found = readings(model)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(inside(one), other)
        assert other.std() > 0


def test_learned_positions_and_fused_projections_too():
    hf = small("gpt2")
    expected = score_heads(load_model(copy.deepcopy(hf), tokenizer()), RAGGED, template="bare")
    with two_devices() as devices:
        lay_out(hf, *devices)
        found = score_heads(load_model(hf, tokenizer()), RAGGED, template="bare")
    assert torch.equal(inside(found.values), expected.values)
    assert found.provenance["engine"] == expected.provenance["engine"] == "resumed"


def test_devices_are_not_mixed_without_the_library_noticing(monkeypatch):
    monkeypatch.setattr(opening, "follow_devices", lambda model: None)
    hf = small("llama")
    with two_devices() as devices:
        lay_out(hf, *devices)
        with pytest.raises(ValueError, match="tensors on"):
            load_model(hf, tokenizer())


def test_a_block_on_two_devices_is_refused():
    hf = small("llama")
    with two_devices() as devices:
        lay_out(hf, *devices)
        put(hf.model.layers[0].mlp, devices[1])
        with pytest.raises(ValueError, match=r"block 0 .* lies on pretend:0, pretend:1"):
            load_model(hf, tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("placed") / "model"
    save_model(load_model(random_model(CONFIGS["llama"]()), tokenizer()), path)
    return path


def test_the_loader_is_told_the_map_and_the_memory(folder, monkeypatch):
    import transformers

    told = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args, **options):
        told.append(options)
        return original(*args, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    whole = load_model(folder)
    parts = dict.fromkeys(
        ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
        + [f"model.layers.{n}" for n in range(4)],
        "cpu",
    )
    placed = load_model(folder, device_map=parts, max_memory={"cpu": "1GiB"})
    assert "device_map" not in told[0]
    assert told[1]["device_map"] == parts
    assert told[1]["max_memory"] == {"cpu": "1GiB"}
    expected = score_heads(whole, RAGGED, template="bare")
    for model in (
        placed,
        reopen(placed.opened_from),
        load_model(folder, max_memory={"cpu": "1GiB"}),
    ):
        found = score_heads(model, RAGGED, template="bare")
        assert torch.equal(found.values, expected.values)
    assert told[2] == told[1], "another process places it as this one did"
    assert hash(placed.opened_from) != hash(whole.opened_from)
    assert told[3]["device_map"] == "balanced"


def test_weights_on_a_disk_are_refused(folder):
    import accelerate

    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    parts |= {"lm_head": "cpu", "model.layers": "disk"}
    with pytest.raises(ValueError, match=r"not in memory.*cpu, disk.*device_map='balanced'"):
        load_model(folder, device_map=parts)
    offloaded = accelerate.cpu_offload(random_model(CONFIGS["llama"]()), "cpu")
    with pytest.raises(ValueError, match="not in memory"):
        load_model(offloaded, tokenizer())


def test_what_contradicts_itself_is_refused(folder):
    with pytest.raises(ValueError, match="give one of them"):
        load_model(folder, device="meta", device_map="balanced")
    with pytest.raises(ValueError, match="move the loaded model"):
        load_model(random_model(CONFIGS["llama"]()), tokenizer(), device_map="balanced")
