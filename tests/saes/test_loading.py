"""Is an SAE read as its library wrote it? Each format as a file, beside the maths of the library that writes it."""

import json

import numpy
import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save_file

from safetyheads.saes.autoencoder import SparseAutoencoder, TopK, quality, require_width
from safetyheads.saes.loading import SHIPPED, layer_of, load_sae

D, N, K = 6, 10, 3
DRAWN = torch.Generator().manual_seed(0)
X = torch.randn(7, D, generator=DRAWN)


def drawn(*shape):
    return torch.randn(*shape, generator=DRAWN)


@pytest.fixture
def parts():
    return {"W_enc": drawn(D, N), "W_dec": drawn(N, D), "b_enc": drawn(N), "b_dec": drawn(D)}


def top_k(outputs, k=K):
    """The k largest, one row and one latent at a time."""
    kept = torch.zeros_like(outputs)
    for row, some in enumerate(outputs):
        for latent in sorted(range(len(some)), key=lambda n: -some[n])[:k]:
            kept[row, latent] = max(some[latent], 0.0)
    return kept


def check(sae, latents, back):
    assert isinstance(sae, SparseAutoencoder)
    assert (latents != 0).any()
    assert (latents == 0).any()
    torch.testing.assert_close(sae.encode(X), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(X)), back, rtol=1e-5, atol=1e-5)


def saelens(folder, weights, **cfg):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "sae_weights.safetensors")
    about = {"d_in": D, "d_sae": N, "hook_name": "blocks.2.hook_resid_pre", **cfg}
    (folder / "cfg.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("centred", [True, False])
def test_saelens_standard_with_new_and_old_names(tmp_path, parts, centred):
    new = saelens(tmp_path / "new", parts, architecture="standard", apply_b_dec_to_input=centred)
    latents = ((X - centred * parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu()
    back = latents @ parts["W_dec"] + parts["b_dec"]
    check(load_sae(new), latents, back)
    old = saelens(
        tmp_path / "old",
        parts | {"scaling_factor": torch.ones(N)},
        hook_name=None,
        hook_point="blocks.1.hook_resid_post",
        activation_fn_str="relu",
        apply_b_dec_to_input=centred,
        normalize_activations=False,
    )
    check(load_sae(old), latents, back)
    assert load_sae(new).layer == load_sae(old).layer == 2
    logarithms = torch.tensor([-10.0, *[-2.0] * (N - 1)])
    save_file({"sparsity": logarithms}, new / "sparsity.safetensors")
    expected = torch.tensor([0.0, *[0.01] * (N - 1)])
    torch.testing.assert_close(load_sae(new).frequencies, expected)


@pytest.mark.parametrize("rescaled", [True, False])
def test_saelens_top_k_by_the_decoders_norm(tmp_path, parts, rescaled):
    folder = saelens(
        tmp_path,
        parts,
        architecture="topk",
        k=K,
        rescale_acts_by_decoder_norm=rescaled,
        metadata={"hook_name": "blocks.2.hook_resid_pre"},
    )
    norms = parts["W_dec"].norm(dim=1) if rescaled else torch.ones(N)
    latents = top_k(((X - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]) * norms)
    check(load_sae(folder), latents, latents / norms @ parts["W_dec"] + parts["b_dec"])
    kind = {"architecture": "standard", "activation_fn_str": "topk"}
    old = saelens(tmp_path / "old", parts, **kind, activation_fn_kwargs={"k": K})
    plain = top_k((X - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"])
    check(load_sae(old), plain, plain @ parts["W_dec"] + parts["b_dec"])


def test_saelens_jump_relu_and_batch_top_k_that_is_kept_as_one(tmp_path, parts):
    outputs = (X - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    thresholds = drawn(N).abs()
    latents = outputs.relu() * (outputs > thresholds)
    folder = saelens(tmp_path / "a", parts | {"threshold": thresholds}, architecture="jumprelu")
    check(load_sae(folder), latents, latents @ parts["W_dec"] + parts["b_dec"])
    one = torch.tensor(0.7)
    latents = outputs.relu() * (outputs > one)
    folder = saelens(tmp_path / "b", parts | {"threshold": one}, architecture="batchtopk", k=K)
    check(load_sae(folder), latents, latents @ parts["W_dec"] + parts["b_dec"])


def test_half_precision_becomes_whole(tmp_path, parts):
    halves = {name: tensor.bfloat16() for name, tensor in parts.items()}
    sae = load_sae(saelens(tmp_path, halves))
    wide = {name: tensor.float() for name, tensor in halves.items()}
    latents = ((X - wide["b_dec"]) @ wide["W_enc"] + wide["b_enc"]).relu()
    check(sae, latents, latents @ wide["W_dec"] + wide["b_dec"])


def test_saelens_gated(tmp_path, parts):
    more = {"r_mag": drawn(N), "b_mag": drawn(N), "b_gate": drawn(N)}
    weights = {name: parts[name] for name in ("W_enc", "W_dec", "b_dec")} | more
    folder = saelens(tmp_path, weights, architecture="gated")
    centred = X - parts["b_dec"]
    active = centred @ parts["W_enc"] + more["b_gate"] > 0
    sizes = (centred @ (parts["W_enc"] * more["r_mag"].exp()) + more["b_mag"]).relu()
    check(load_sae(folder), active * sizes, (active * sizes) @ parts["W_dec"] + parts["b_dec"])


def test_saelens_scaled_activations_are_folded_or_refused(tmp_path, parts):
    folder = saelens(tmp_path, parts, normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match="give mean_norm, the mean length"):
        load_sae(folder)
    mean_norm = 17.0
    scale = D**0.5 / mean_norm
    latents = ((scale * X - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu()
    back = (latents @ parts["W_dec"] + parts["b_dec"]) / scale
    check(load_sae(folder, mean_norm=mean_norm), latents, back)
    saelens(tmp_path, parts, normalize_activations=True)  # the old name of the same
    with pytest.raises(ValueError, match="give mean_norm, the mean length"):
        load_sae(folder)
    check(load_sae(folder, mean_norm=mean_norm), latents, back)
    # Latents are those of training, and so is the threshold that a BatchTopK is kept with.
    saelens(
        tmp_path,
        parts | {"threshold": torch.tensor(0.4)},
        architecture="batchtopk",
        normalize_activations="expected_average_only_in",
    )
    latents = latents * (latents > 0.4)
    back = (latents @ parts["W_dec"] + parts["b_dec"]) / scale
    check(load_sae(folder, mean_norm=mean_norm), latents, back)
    saelens(tmp_path, parts, normalize_activations="layer_norm")
    with pytest.raises(ValueError, match="each scaled by themselves"):
        load_sae(folder)
    saelens(tmp_path, parts | {"scaling_factor": drawn(N)})
    with pytest.raises(ValueError, match="scaling_factor that is not one"):
        load_sae(folder)


def sparsify(folder, parts, **cfg):
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        "encoder.weight": parts["W_enc"].T.contiguous(),
        "encoder.bias": parts["b_enc"],
        "W_dec": parts["W_dec"],
        "b_dec": parts["b_dec"],
    }
    save_file(weights, folder / "sae.safetensors")
    about = {"d_in": D, "k": K, "activation": "topk", "normalize_decoder": True, **cfg}
    (folder / "cfg.json").write_text(json.dumps(about))
    return folder


def test_sparsify_subtracts_the_decoders_bias_whatever_its_cfg_says(tmp_path, parts):
    """SAELens's own loader of this format does not where `normalize_decoder` is true, and turns the decoder over."""
    outputs = ((X - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu()
    for normalised in (True, False):
        folder = sparsify(tmp_path / "layers.4", parts, normalize_decoder=normalised)
        latents = top_k(outputs)
        check(load_sae(folder), latents, latents @ parts["W_dec"] + parts["b_dec"])
        assert load_sae(folder).layer == 5
    folder = sparsify(tmp_path / "layers.4", parts, activation="groupmax", k=5)
    latents = torch.zeros_like(outputs)
    for start in range(0, N, 2):
        for row, own in enumerate(outputs[:, start : start + 2]):
            latents[row, start + int(own.argmax())] = own.max()
    check(load_sae(folder), latents, latents @ parts["W_dec"] + parts["b_dec"])


def test_sparsify_of_an_mlp_or_a_transcoder_is_refused(tmp_path, parts):
    with pytest.raises(ValueError, match=r"'layers.3.mlp', which is no residual stream"):
        load_sae(sparsify(tmp_path / "layers.3.mlp", parts))
    with pytest.raises(ValueError, match="is a transcoder"):
        load_sae(sparsify(tmp_path / "layers.3", parts, transcode=True))
    with pytest.raises(ValueError, match="say where it was trained; give hook"):
        load_sae(sparsify(tmp_path / "mine", parts))
    named = load_sae(tmp_path / "mine" / "sae.safetensors", hook="blocks.0.hook_resid_post")
    assert named.layer == 1


def test_gemma_scope_subtracts_no_bias(tmp_path, parts):
    thresholds = drawn(N).abs()
    outputs = X @ parts["W_enc"] + parts["b_enc"]
    latents = outputs * (outputs > thresholds)
    back = latents @ parts["W_dec"] + parts["b_dec"]
    named = {name.replace("W", "w"): tensor for name, tensor in parts.items()}
    named["threshold"] = thresholds
    folder = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    numpy.savez(folder / "params.npz", **{n: t.numpy() for n, t in named.items()})
    check(load_sae(folder), latents, back)
    assert load_sae(folder).layer == 21
    second = tmp_path / "two"
    second.mkdir()
    save_file(named, second / "params.safetensors")
    about = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.5.output"}
    (second / "config.json").write_text(json.dumps(about))
    check(load_sae(second), latents, back)
    assert load_sae(second).layer == 6
    about["hf_hook_point_out"] = "model.layers.5.mlp.output"
    (second / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="is a transcoder"):
        load_sae(second)
    inside = tmp_path / "embedding" / "width_4k"
    inside.mkdir(parents=True)
    numpy.savez(inside / "params.npz", **{n: t.numpy() for n, t in named.items()})
    with pytest.raises(ValueError, match="is of the embedding"):
        load_sae(inside)
    # Releases of attention and of MLPs name their folders as that of the residual stream does.
    for release in ("gemma-scope-2b-pt-att", "models--google--gemma-scope-9b-pt-mlp"):
        other = tmp_path / release / "layer_20"
        other.mkdir(parents=True)
        numpy.savez(other / "params.npz", **{n: t.numpy() for n, t in named.items()})
        with pytest.raises(ValueError, match=f"{release} has SAEs of attention or an MLP"):
            load_sae(other)


def dictionary(folder, weights, kind):
    folder.mkdir(exist_ok=True)
    torch.save(weights, folder / "ae.pt")
    about = {"trainer": {"dict_class": kind, "submodule_name": "resid_post_layer_3"}}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_dictionary_learning_four_kinds(tmp_path, parts):
    linear = {
        "encoder.weight": parts["W_enc"].T.contiguous(),
        "decoder.weight": parts["W_dec"].T.contiguous(),
    }
    biased = linear | {"encoder.bias": parts["b_enc"]}
    centred = (X - parts["b_dec"]) @ parts["W_enc"]
    outputs = centred + parts["b_enc"]

    def back(latents):
        return latents @ parts["W_dec"] + parts["b_dec"]

    plain = dictionary(tmp_path / "a", biased | {"bias": parts["b_dec"]}, "AutoEncoder")
    check(load_sae(plain), outputs.relu(), back(outputs.relu()))
    assert load_sae(plain).layer == 4
    # A per-token top k, though the file holds a threshold that would let fewer pass.
    extra = {"b_dec": parts["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(0.9)}
    folder = dictionary(tmp_path / "b", biased | extra, "AutoEncoderTopK")
    check(load_sae(folder), top_k(outputs), back(top_k(outputs)))
    over = outputs.relu() * (outputs > 0.9)
    folder = dictionary(tmp_path / "c", biased | extra, "BatchTopKSAE")
    check(load_sae(folder), over, back(over))
    gates = {"r_mag": drawn(N), "gate_bias": drawn(N), "mag_bias": drawn(N)}
    folder = dictionary(
        tmp_path / "d", linear | gates | {"decoder_bias": parts["b_dec"]}, "GatedAutoEncoder"
    )
    sizes = (gates["r_mag"].exp() * centred + gates["mag_bias"]).relu()
    gated = sizes * (centred + gates["gate_bias"] > 0)
    check(load_sae(folder), gated, back(gated))
    thresholds = drawn(N).abs()
    free = X @ parts["W_enc"] + parts["b_enc"]
    jumped = free.relu() * (free > thresholds)
    folder = dictionary(tmp_path / "e", parts | {"threshold": thresholds}, "JumpReluAutoEncoder")
    check(load_sae(folder), jumped, back(jumped))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_is_unpickled(tmp_path, capsys):
    dictionary(tmp_path, {"bias": Evil()}, "AutoEncoder")
    with pytest.raises(Exception, match=r"(?i)weights"):
        load_sae(tmp_path)
    assert "run" not in capsys.readouterr().out


def test_what_is_no_sae_of_this_model_is_refused(tmp_path, parts):
    with pytest.raises(FileNotFoundError, match="holds none of"):
        load_sae(tmp_path)
    folder = saelens(tmp_path, parts)
    with pytest.raises(ValueError, match=r"'blocks.2.hook_resid_pre': it was trained there"):
        load_sae(folder, hook="blocks.2.hook_resid_post")
    sae = load_sae(folder)
    with pytest.raises(ValueError, match="residual stream of 6 numbers, and one of 7"):
        sae.encode(torch.zeros(1, D + 1))
    with pytest.raises(ValueError, match="for what enters layer 2, and it is asked about layer 3"):
        require_width(sae, D, 3)
    for hook in ("blocks.2.attn.hook_z", "blocks.2.hook_mlp_out"):
        with pytest.raises(ValueError, match="no residual stream"):
            load_sae(saelens(tmp_path, parts, hook_name=hook))
    with pytest.raises(ValueError, match="is of the kind 'crosscoder'"):
        load_sae(saelens(tmp_path, parts, architecture="crosscoder"))
    with pytest.raises(ValueError, match="is a skip_transcoder"):
        load_sae(saelens(tmp_path, parts, architecture="skip_transcoder"))
    with pytest.raises(ValueError, match="lack W_dec"):
        load_sae(saelens(tmp_path, {n: t for n, t in parts.items() if n != "W_dec"}))
    with pytest.raises((ValueError, TypeCheckError)):
        load_sae(saelens(tmp_path, parts | {"b_dec": drawn(5)}))
    with pytest.raises(ValueError, match=r"encoder_bias of .* is not finite"):
        load_sae(saelens(tmp_path, parts | {"b_enc": torch.full((N,), torch.nan)}))
    with pytest.raises(ValueError, match=r"encoder of .* is not finite"):
        load_sae(saelens(tmp_path, parts | {"W_enc": torch.full((D, N), torch.nan)}))
    jumping = parts | {"threshold": torch.full((N,), torch.nan)}
    with pytest.raises(ValueError, match="threshold is no number"):
        load_sae(saelens(tmp_path, jumping, architecture="jumprelu"))
    assert layer_of("model.layers.7") == 8
    with pytest.raises(FileNotFoundError, match="comes with the package: smollm2-135m-layer-1"):
        load_sae("smollm2-135m-layer-2")


def test_the_sae_that_comes_with_the_package_is_read():
    sae = load_sae("smollm2-135m-layer-1")
    assert (sae.layer, sae.rule, tuple(sae.encoder.shape)) == (1, TopK(32), (576, 1536))
    assert sae.frequencies.sum() == pytest.approx(32, abs=0.05)
    card = json.loads((SHIPPED / "sae-smollm2-135m-layer-1" / "card.json").read_text())
    assert card["held_out"]["explained"] > card["held_out, random weights"]["explained"]


def test_quality_is_one_where_nothing_is_lost(tmp_path):
    """A latent for each axis and sign loses nothing."""
    both = torch.cat([torch.eye(D), -torch.eye(D), torch.zeros(1, D)])
    weights = {"W_enc": both.T, "W_dec": both, "b_enc": torch.zeros(2 * D + 1), "b_dec": drawn(D)}
    sae = load_sae(saelens(tmp_path, weights))
    found = quality(sae, torch.cat([X, 2 * sae.decoder_bias - X]))
    assert found.explained == pytest.approx(1, abs=1e-6)
    assert found.l0 == D
    assert found.dead == pytest.approx(1 / (2 * D + 1), abs=1e-6)
