"""Do orthogonalised weights, opened by plain transformers, give the logits of the hooked model?"""

import copy
import json

import pytest
import torch

from safetyheads.interventions.directions import AblateDirection
from safetyheads.interventions.orthogonalising import export_orthogonalized
from safetyheads.models.opening import load_model
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

POST_NORM = ("gemma2-softcap-window", "gemma3-two-ropes")
ALIKE = ("llama-mha", "mistral-window", "qwen3-qknorm-headdim")
"""What writes to the stream as Llama does."""
IDS = [torch.tensor([tokenizer()(text)["input_ids"]]) for text in RAGGED[:2]]
DIRECTION = torch.randn(24, generator=torch.Generator().manual_seed(3))


def biased(hf):
    """With biases that matter, where there are any."""
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3, generator=drawn)
    return hf


@torch.no_grad()
def logits(hf):
    return torch.cat([hf(input_ids=ids, use_cache=False).logits[0] for ids in IDS])


@torch.no_grad()
def projected(hf):
    """A copy of transformers' own whose every module that ends in the stream is projected by hand."""
    hf, unit = copy.deepcopy(hf), DIRECTION / DIRECTION.norm()
    seen = []

    def project(_module, _args, out):
        first = out[0] if isinstance(out, tuple) else out
        first = first - (first @ unit)[..., None] * unit
        return (first, *out[1:]) if isinstance(out, tuple) else first

    for name, module in hf.named_modules():
        last = name.rpartition(".")[2]
        if last in (
            "embed_tokens",
            "embed_in",
            "wte",
            "wpe",
            "self_attn",
            "attn",
            "attention",
            "mlp",
        ):
            module.register_forward_hook(project)
            seen.append(last)
    assert len(seen) >= 7
    return logits(hf)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in (*POST_NORM, *ALIKE)])
def test_orthogonalised_weights_give_the_hooked_logits(name, tmp_path):
    from transformers import AutoModelForCausalLM

    hf = biased(random_model(CONFIGS[name]()))
    untouched, by_hand = logits(hf), projected(hf)
    model = load_model(hf, tokenizer())
    with torch.no_grad():
        before = model.logits(IDS[0])
    export = export_orthogonalized(model, DIRECTION, tmp_path / "out")
    with torch.no_grad(), AblateDirection(DIRECTION).active(model):
        hooked = torch.cat([model.logits(ids)[0] for ids in IDS])
    opened = AutoModelForCausalLM.from_pretrained(export.folder).eval()
    got = logits(opened)
    size = max(1.0, hooked.abs().max().item())
    assert (untouched - hooked).abs().max() > 0.05, "the comparison would be vacuous"
    assert (got - hooked).abs().max() < 2e-5 * size
    assert (got - by_hand).abs().max() < 2e-5 * size
    assert export.max_logit_difference < 2e-5 * export.largest_logit
    told = json.loads((export.folder / "safetyheads.json").read_text())
    assert told["untied"] == (name in ("llama-tied", "gpt2"))
    assert len(told["changed"]) >= 7
    with torch.no_grad():
        assert torch.equal(model.logits(IDS[0]), before)


@pytest.mark.parametrize("name", POST_NORM)
def test_a_norm_after_writing_is_refused(name, tmp_path):
    model = load_model(random_model(CONFIGS[name]()), tokenizer())
    with pytest.raises(ValueError, match="a norm between what a layer writes and the residual"):
        export_orthogonalized(model, DIRECTION, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    with pytest.raises(ValueError, match="the direction has 23 numbers"):
        export_orthogonalized(model, torch.ones(23), tmp_path / "out")
    with pytest.raises(ValueError, match="points nowhere"):
        export_orthogonalized(model, torch.zeros(24), tmp_path / "out")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export_orthogonalized(model, DIRECTION, tmp_path)
    monkeypatch.setattr("safetyheads.interventions.orthogonalising.MLP_OUTPUTS", ("w2",))
    with pytest.raises(ValueError, match=r"of 4 layers, .*, 4 output projections were found"):
        export_orthogonalized(model, DIRECTION, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
