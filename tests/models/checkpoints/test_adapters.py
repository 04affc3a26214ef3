"""Is an adapter added whole, to its own model, and as peft would add it?"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from safetyheads.models.checkpoints import load_checkpoint
from safetyheads.models.checkpoints.adapters import (
    WEIGHTS,
    add_adapter,
    check_adapter,
    is_plain,
    read_adapter,
)
from tests.models.checkpoints.made import IDS, save_llama

TARGETS = ("q_proj", "down_proj")
LAYERS = (1, 3)


@pytest.fixture
def base(tmp_path):
    return save_llama(tmp_path / "base")


@pytest.fixture
def folder(tmp_path, base):
    """An adapter as peft writes one, of numbers that mean nothing."""
    place = tmp_path / "adapter"
    place.mkdir()
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"}
    about |= {"base_model_name_or_path": str(tmp_path / "base"), "task_type": "CAUSAL_LM"}
    about |= {"target_modules": list(TARGETS), "layers_to_transform": list(LAYERS)}
    (place / "adapter_config.json").write_text(json.dumps(about))
    torch.manual_seed(3)
    made = {}
    for name, module in base.named_modules():
        if name.endswith(TARGETS) and any(f".{layer}." in name for layer in LAYERS):
            up, down = module.weight.shape
            made[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, down) / 5
            made[f"base_model.model.{name}.lora_B.weight"] = torch.randn(up, 2) / 5
    save_file(made, place / WEIGHTS, metadata={"format": "pt", "base_sha256": "a" * 64})
    return place


def rewritten(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"base_sha256": "a" * 64})
    return read_adapter(folder)


def test_what_is_added_is_scale_times_b_times_a(base, folder):
    adapter = read_adapter(folder)
    check_adapter(adapter, base, "a" * 64)
    name = "model.layers.1.self_attn.q_proj"
    weights = load_file(folder / WEIGHTS)
    a, b = (weights[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    before = {n: w.clone() for n, w in base.named_parameters()}
    add_adapter(adapter, base, share=0.5)
    changed = {n for n, w in base.named_parameters() if not torch.equal(w, before[n])}
    assert changed == {f"{module}.weight" for module in adapter.pairs}
    after = dict(base.named_parameters())[f"{name}.weight"]
    assert torch.allclose(after, before[f"{name}.weight"] + 0.5 * 4 * b @ a, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_adds_the_same(base, folder):
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(
        load_checkpoint(folder.parent / "base").model, str(folder)
    ).merge_and_unload()
    before = base(IDS).logits
    add_adapter(read_adapter(folder), base)
    assert torch.allclose(base(IDS).logits, theirs(IDS).logits, atol=1e-5)
    assert (base(IDS).logits - before).abs().max() > 0.1


def test_an_adapter_for_other_weights(base, folder):
    with pytest.raises(
        ValueError, match=r"trained on other weights .*aaaa\.\.\.\) than these \(bbbb"
    ):
        check_adapter(read_adapter(folder), base, "b" * 64)


def test_a_foreign_key(base, folder):
    with pytest.raises(
        ValueError, match=r"no LoRA matrix \(base_model.model.lm_head.lora_magnitude"
    ):
        rewritten(
            folder, lambda w: w.update({"base_model.model.lm_head.lora_magnitude": w.popitem()[1]})
        )


def test_a_matrix_that_the_settings_do_not_name(base, folder):
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_{}.weight"
    more = {name.format("A"): torch.zeros(2, 24), name.format("B"): torch.zeros(8, 2)}
    adapter = rewritten(folder, lambda w: w.update(more))
    with pytest.raises(ValueError, match=r"matrices for 1 modules .*v_proj.: it is for another"):
        check_adapter(adapter, base)


def test_a_deeper_model_s_adapter(base, folder):
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(about | {"layers_to_transform": [1, 9]}))

    def deepen(weights):
        for name in [n for n in weights if ".3." in n]:
            weights[name.replace(".3.", ".9.")] = weights.pop(name)

    adapter = rewritten(folder, deepen)
    with pytest.raises(
        ValueError, match=r"of 4 layers does not have \(the first is model.layers.9"
    ):
        check_adapter(adapter, base)


def test_missing_matrices(base, folder):
    def thin(weights):
        for name in [n for n in weights if ".3." in n and "q_proj" in n]:
            del weights[name]

    adapter = rewritten(folder, thin)
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 matrices .*layers.3.self_attn.q_proj"):
        check_adapter(adapter, base)
    with pytest.raises(ValueError, match="lacks half of 1 pairs"):
        rewritten(folder, lambda w: w.pop(sorted(w)[0]))


def test_a_wider_model_s_adapter(base, folder):
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    adapter = rewritten(folder, lambda w: w.update({name: torch.zeros(2, 32)}))
    with pytest.raises(
        ValueError, match=r"a matrix of \[24, 32\] to .*q_proj, which has \[24, 24\]"
    ):
        check_adapter(adapter, base)


def test_settings_of_another_adapter_and_damaged_weights(folder):
    assert is_plain(folder)
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(about | {"r": 4, "use_dora": True}))
    assert not is_plain(folder)
    with pytest.raises(ValueError, match="names rank 4"):
        read_adapter(folder)
    (folder / WEIGHTS).write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="damaged or not there"):
        read_adapter(folder)
