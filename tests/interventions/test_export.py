"""Does an ablated model that was written as ordinary weights compute what the hooked model does?"""

import copy
import functools
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from safetyheads.cli.main import main
from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.interventions.export import export_ablated
from safetyheads.models.opening import load_model
from tests.oracles import PlainModel
from tests.zoo import CONFIGS, RAGGED, SIZES, random_model, tokenizer

HEADS = (
    Head(1, 3),
    Head(1, 4),
    Head(2, 0),
)  # two of one layer, in different groups, and another layer
IDS = [tokenizer()(text)["input_ids"] for text in RAGGED]
QK_NORM = ("qwen3-qknorm-headdim", "gemma3-two-ropes")


def with_biases(hf):
    """Random biases: those of a new model are zero, and would hide an edit of them."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.2, generator=generator)
    return hf


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    hf = with_biases(random_model(CONFIGS[request.param]()))
    original = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    plain = PlainModel(copy.deepcopy(hf))
    plain.untouched = hooked_logits(plain, [])
    return request.param, plain, load_model(hf, tokenizer()), original


def opened(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits_of(model):
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in IDS])


def hooked_logits(plain, hooks):
    with plain.bridge.hooks(fwd_hooks=hooks):
        return logits_of(plain.bridge.original_model)


@functools.cache
def attentions(name):
    """How plain transformers may be told to attend: by its own choice too, where that is what eager attention is.

    The fused attention of transformers 5.9 leaves out Gemma 2's softcap.
    """
    from transformers import AutoModelForCausalLM

    eager, chosen = (
        random_model(CONFIGS[name]()),
        AutoModelForCausalLM.from_config(CONFIGS[name]()).eval(),
    )
    chosen.load_state_dict(eager.state_dict())
    same = (logits_of(chosen) - logits_of(eager)).abs().max() < 1e-4
    assert same or name == "gemma2-softcap-window"
    return [*([{}] if same else []), {"attn_implementation": "eager"}]


def assert_same_model(name, folder, expected, untouched):
    """In plain transformers, with the attention that it chooses by itself, and eagerly."""
    assert (expected - untouched).abs().max() > 0.05, "the comparison would be vacuous"
    for options in attentions(name):
        got = logits_of(opened(folder, **options))
        assert (got - expected).abs().max() < 2e-5 * max(1.0, expected.abs().max().item())


def changes(folder, original):
    """Which entries of which saved weights differ from the model's own: a mask for each name."""
    saved = load_file(folder / "model.safetensors")
    assert any(".2." in name for name in saved)
    # NeoX's unembedding has another name in the file than in memory.
    masks = {name: saved[name] != original[name] for name in set(saved) & set(original)}
    return {name: mask for name, mask in masks.items() if mask.any()}


@pytest.mark.parametrize("ablation", [ScalingContribution(0.3), ZeroAblation()])
def test_scaling_written_into_w_o_gives_the_hooked_logits(zoo, ablation, tmp_path):
    name, plain, model, original = zoo
    factor = getattr(ablation, "epsilon", 0.0)
    export = export_ablated(model, HEADS, tmp_path / "out", ablation=ablation)
    hooks = [h for head in HEADS for h in plain.writing_z(*head, lambda z: z * factor)]
    assert_same_model(name, export.folder, hooked_logits(plain, hooks), plain.untouched)
    assert export.max_logit_difference < 2e-5 * export.largest_logit

    masks = changes(export.folder, original)
    assert set(masks) == set(export.changed)
    assert len(masks) == 2, "one output projection a layer, and nothing else"
    width = model.d_head
    for key, mask in masks.items():
        inputs = mask.any(1) if name == "gpt2" else mask.any(0)
        heads = [h.head for h in HEADS if f".{h.layer}." in key]
        expected = torch.zeros_like(inputs)
        for head in heads:
            expected[head * width : (head + 1) * width] = True
        assert torch.equal(inputs, expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_undifferentiated_attention_written_into_w_q_gives_the_hooked_logits(
    zoo, epsilon, tmp_path
):
    name, _, model, original = zoo
    ablation = UndifferentiatedAttention(epsilon)
    if epsilon and name in QK_NORM:
        with pytest.raises(ValueError, match=r"normalises its queries \(q_norm\).*epsilon = 0"):
            export_ablated(model, HEADS, tmp_path / "out", ablation=ablation)
        assert not list(tmp_path.iterdir())
        return
    export = export_ablated(model, HEADS, tmp_path / "out", ablation=ablation)
    with AblateHeads(HEADS, ablation).active(model):
        expected = logits_of(model.hf)
    assert_same_model(name, export.folder, expected, logits_of(model.hf))

    masks = changes(export.folder, original)
    assert set(masks) == set(export.changed)
    biased = name in ("qwen2", "gpt2", "neox")
    assert any(key.endswith("bias") for key in masks) == biased
    changed = sum(int(mask.sum()) for mask in masks.values())
    assert changed == len(HEADS) * model.d_head * (model.d_model + biased)
    assert all(".1." in key or ".2." in key for key in masks)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_mean_ablation_is_written_into_the_bias(name, tmp_path):
    hf = with_biases(random_model(CONFIGS[name]()))
    plain, model = PlainModel(copy.deepcopy(hf)), load_model(hf, tokenizer())
    export = export_ablated(model, HEADS, tmp_path / "out", ablation=MeanAblation(), prompts=RAGGED)
    mean = {
        head: torch.cat([plain.z(ids, head.layer)[:, head.head] for ids in IDS]).mean(0)
        for head in HEADS
    }
    hooks = [
        hook
        for head in HEADS
        for hook in plain.writing_z(*head, lambda z, value=mean[head]: value.expand_as(z))
    ]
    assert_same_model(name, export.folder, hooked_logits(plain, hooks), hooked_logits(plain, []))


def small(name="llama", **changes_of_config):
    config = CONFIGS[name]()
    config.update(changes_of_config)
    return load_model(random_model(config), tokenizer())


def olmo2():
    from transformers import Olmo2Config

    return load_model(random_model(Olmo2Config(**SIZES)), tokenizer())


def nothing(acts):
    return acts.z * 0


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (small, {"ablation": ResampleAblation()}, "resample cannot be written into weights"),
        (
            small,
            {"ablation": SimpleNamespace(name="mine", needs=frozenset(), __call__=nothing)},
            "mine cannot be written into weights",
        ),
        (small, {"ablation": MeanAblation()}, "writes the heads' mean output over prompts"),
        (
            small,
            {"ablation": MeanAblation(), "prompts": RAGGED},
            "no bias on its output projection",
        ),
        (small, {"prompts": RAGGED}, "undifferentiated_attention needs no prompts"),
        (olmo2, {}, "the queries of all heads together.*24 weights, a head 4"),
    ],
    ids=["resample", "own", "mean-no-prompts", "mean-no-bias", "prompts-unread", "olmo2"],
)
def test_what_cannot_be_written_is_refused_with_the_reason(model, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_ablated(model(), ["L1H2"], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
def test_projections_of_another_size_are_refused(name, tmp_path, monkeypatch):
    """Such as a query projection that holds gates too."""
    import safetyheads.interventions.export

    size = safetyheads.interventions.export._size
    monkeypatch.setattr(
        safetyheads.interventions.export,
        "_size",
        lambda p, *, out: size(p, out=out) * (2 if out == (name == "q_proj") else 1),
    )
    with pytest.raises(ValueError, match=r"of 4 layers 4 have one of .*, 0 of them in the size"):
        export_ablated(small(), ["L1H2"], tmp_path / "out")


def test_a_norm_with_a_bias_does_not_keep_a_zero_query_zero():
    from safetyheads.interventions.export import _require_norm_keeps_zero

    norm = torch.nn.LayerNorm(4)
    _require_norm_keeps_zero(small(), norm, "q_layernorm", 0.0)
    norm.bias.data[2] = 0.1
    with pytest.raises(ValueError, match="adds a bias after normalising"):
        _require_norm_keeps_zero(small(), norm, "q_layernorm", 0.0)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (["L4H0"], "L4H0 is not in .* layers 0-3 and heads 0-5"),
        (["1-6"], "L1H6 is not in"),
        ([], "name at least one"),
        (["3.7"], "does not name a head"),
    ],
)
def test_heads_that_are_not_there_are_refused(heads, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_ablated(small(), heads, tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export_ablated(small(), ["L1H2"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    export = export_ablated(small(), ["L1H2"], tmp_path / "a" / "b")
    assert {"config.json", "model.safetensors", "tokenizer.json", "safetyheads.json"} <= {
        path.name for path in export.folder.iterdir()
    }


def test_weights_that_give_other_logits_are_not_kept(tmp_path, monkeypatch):
    import safetyheads.interventions.export

    right = safetyheads.interventions.export._edit

    def wrong(projection, kind, axis, rows, factor):
        right(projection, kind, axis, slice(rows.start + 4, rows.stop + 4), factor)

    monkeypatch.setattr(safetyheads.interventions.export, "_edit", wrong)
    with pytest.raises(ValueError, match="give other logits than the hooked model"):
        export_ablated(small(), ["L1H2"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_hooked_model_is_not_changed_and_a_head_named_twice_is_ablated_once(tmp_path):
    model, ids = small(), torch.tensor([IDS[0]])
    before = model.logits(ids)
    export = export_ablated(
        model, ["L1H2", (1, 2)], tmp_path / "out", ablation=ScalingContribution(0.5)
    )
    assert torch.equal(model.logits(ids), before)
    assert json.loads((export.folder / "safetyheads.json").read_text())["heads"] == ["L1H2"]


def test_tied_embeddings_stay_tied_and_the_dtype_is_kept(tmp_path):
    hf = random_model(CONFIGS["llama-tied"]()).to(torch.bfloat16)
    export = export_ablated(load_model(hf, tokenizer()), ["L1H2"], tmp_path / "out")
    saved = load_file(export.folder / "model.safetensors")
    assert "lm_head.weight" not in saved
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    again = opened(export.folder)
    assert again.dtype == torch.bfloat16
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


def test_a_model_unpacked_from_gguf_can_be_exported(tmp_path):
    hf = random_model(CONFIGS["llama"]())
    # What transformers leaves on such a model, and why it cannot be saved as it is.
    hf.hf_quantizer, hf.config.quantization_config = object(), {"quant_method": "gguf"}
    parameters = hf.num_parameters()
    export = export_ablated(load_model(hf, tokenizer()), ["L1H2"], tmp_path / "out")
    assert "quantization_config" not in json.loads((export.folder / "config.json").read_text())
    assert opened(export.folder).num_parameters() == parameters


def test_an_export_opens_here_too_and_its_head_is_gone(tmp_path):
    from safetyheads.probes.single_heads import score_heads

    export = export_ablated(small(), ["L1H2"], tmp_path / "out", ablation=ZeroAblation())
    scores = score_heads(load_model(export.folder), RAGGED, ablation=ZeroAblation())
    assert scores.score("L1H2") < 1e-6 < 1e-4 < scores.score("L1H3")


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    random_model(CONFIGS["llama"]()).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_command_writes_the_model_and_says_how_close_it_is(stored, capsys):
    out = stored / "out"
    model = ["export", "--model", str(stored / "model"), "--out", str(out)]
    assert main([*model, "--heads", "L1H2", "3-0", "--ablation", "zero"]) == 0
    said = capsys.readouterr().out
    assert str(out) in said
    assert "layers.1.self_attn.o_proj.weight, model.layers.3.self_attn.o_proj.weight" in said
    assert "Logits differ from the hooked model's by at most" in said
    assert json.loads((out / "safetyheads.json").read_text())["heads"] == ["L1H2", "L3H0"]
    assert main([*model, "--heads", "L1H2"]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ablation", "zero", "--epsilon", "0.1"], "--epsilon is for"),
        (["--prompts", "builtin"], "--prompts and --template are for --ablation mean"),
        (["--ablation", "resample"], "invalid choice"),
    ],
)
def test_the_command_refuses_what_it_would_not_read(more, message, capsys):
    with pytest.raises(SystemExit):
        main(["export", "--model", "m", "--heads", "L1H2", "--out", "out", *more])
    assert message in capsys.readouterr().err
