"""How is a sparse autoencoder read that somebody else has written?

The files are read themselves: sae-lens cannot be installed beside TransformerLens 4, and nothing is unpickled. Each
reader follows the maths of the library that wrote the format; what a format leaves open (an activation's norm, a hook)
is asked for, and what is no autoencoder of the residual stream is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safetyheads.saes.autoencoder import Gated, GroupMax, JumpRelu, Relu, Rule, Sae, TopK

Weights = Mapping[str, Tensor]
SHIPPED = Path(__file__).parents[1] / "data"
"""Where the SAEs lie that come with the package, each as `sae-NAME` with a card."""
DEAD = -10
"""The base-10 logarithm of a frequency up to which SAELens's users count a latent as dead."""


def load_sae(folder: str | Path, *, hook: str | None = None, mean_norm: float | None = None) -> Sae:
    """Read a sparse autoencoder of the residual stream from a folder, whichever library wrote it.

    SAELens (`cfg.json` and `sae_weights.safetensors`), sparsify (`cfg.json` and `sae.safetensors`), Gemma Scope
    (`params.npz`, or `params.safetensors` and `config.json`), dictionary_learning (`ae.pt`).

    Arguments:
        folder: where the files are, or the file of the weights; or "smollm2-135m-layer-1", which comes with the
            package.
        hook: where it was trained, such as "blocks.5.hook_resid_pre" or "layers.5", where files and folder do not say.
        mean_norm: the mean length of the activations that it was trained on, for one that was trained on activations
            scaled to a mean length of sqrt(d_model) and does not carry the factor; `states_at(...)` gives activations.

    Raises FileNotFoundError where there are no such files, ValueError for what is no autoencoder of the residual stream
    (a transcoder, an MLP's or a head's output), for one that scales each activation by itself, for a hook that is not
    known or another than the files', and for weights that do not fit.
    """
    shipped, folder = SHIPPED / f"sae-{folder}", Path(folder)
    if shipped.is_dir() and not folder.exists():
        folder = shipped
    folder = folder.parent if folder.is_file() else folder
    for file, read in _READERS.items():
        if (folder / file).is_file():
            return read(folder, hook, mean_norm)
    names = sorted(path.name.removeprefix("sae-") for path in SHIPPED.glob("sae-*"))
    raise FileNotFoundError(
        f"{folder} holds none of {', '.join(_READERS)}; give the folder of one SAE, as its library wrote it, or a name "
        f"that comes with the package: {', '.join(names)}"
    )


def layer_of(hook: str) -> int:
    """The layer that a hooked residual stream enters.

    >>> layer_of("blocks.5.hook_resid_pre"), layer_of("blocks.5.hook_resid_post"), layer_of("layers.5")
    (5, 6, 6)
    >>> layer_of("model.language_model.layers.7.output"), layer_of("h.3")
    (8, 4)
    """
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook):
        return int(found[1]) + (found[2] == "post")
    # The output of a decoder layer of Hugging Face, in the spellings of sparsify, Gemma Scope and dictionary_learning.
    plain = r"(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.output)?|layer_(\d+)|resid_post_layer_(\d+)"
    if found := re.fullmatch(plain, hook):
        return int(next(filter(None, found.groups()))) + 1
    raise ValueError(
        f"hook is {hook!r}, which is no residual stream between two blocks; an SAE of an MLP's or a head's output has "
        'no place on a walk: take one of "blocks.5.hook_resid_pre", "blocks.5.hook_resid_post" or "layers.5"'
    )


def _hook(given: str | None, said: str | None, folder: Path) -> int:
    """The layer, from what the caller and what the files say, which must not differ."""
    if given is not None and said is not None and layer_of(given) != layer_of(said):
        raise ValueError(
            f"hook is {given!r}, and the files of {folder.name} say {said!r}: it was trained there; leave hook out"
        )
    known = said or given
    if known is None:
        raise ValueError(
            f'neither the files nor the name of {folder} say where it was trained; give hook="blocks.5.hook_resid_pre"'
        )
    return layer_of(known)


def _made(
    weights: Weights, rule: Rule, layer: int, folder: Path, *, centred: bool, **more: Any
) -> Sae:
    """From W_enc [d, n], W_dec [n, d] and their biases, in float32."""
    named = {name: tensor.float() for name, tensor in weights.items()}
    bias = named.get("b_enc")
    return Sae(
        encoder=named["W_enc"],
        encoder_bias=torch.zeros(named["W_enc"].shape[1]) if bias is None else bias,
        decoder=named["W_dec"],
        decoder_bias=named["b_dec"],
        rule=rule,
        layer=layer,
        centred=centred,
        name=f"SAE {folder.name}",
        **more,
    )


def _need(weights: Weights, names: tuple[str, ...], folder: Path) -> None:
    if missing := [name for name in names if name not in weights]:
        raise ValueError(
            f"the weights in {folder} lack {', '.join(missing)}; they have {', '.join(weights)}: is it another kind "
            "of SAE?"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


# SAELens -------------------------------------------------------------------------------------------------------------


def _saelens(folder: Path, hook: str | None, mean_norm: float | None) -> Sae:
    about = json.loads((folder / "cfg.json").read_text())
    meta = {**about, **about.get("metadata", {})}
    weights = _tensors(folder / "sae_weights.safetensors")
    _need(weights, ("W_enc", "W_dec", "b_dec"), folder)
    said = meta.get("hook_name") or meta.get("hook_point")
    layer = _hook(hook, said, folder)
    kind = meta.get("architecture", "standard")
    if "transcoder" in kind:
        raise ValueError(
            f"{folder.name} is a {kind}, which gives another place's activations; take an SAE"
        )
    weights = _unscaled(weights, meta, mean_norm, folder)
    if meta.get("rescale_acts_by_decoder_norm"):
        norms = weights["W_dec"].norm(dim=1)
        weights |= {
            "W_enc": weights["W_enc"] * norms,
            "b_enc": weights["b_enc"] * norms,
            "W_dec": weights["W_dec"] / norms[:, None],
        }
    rule = _saelens_rule(kind, meta, weights, folder)
    if isinstance(rule, Gated):
        weights = {name: weights[name] for name in ("W_enc", "W_dec", "b_dec")}
    frequencies = None
    if (folder / "sparsity.safetensors").is_file():
        logarithms = _tensors(folder / "sparsity.safetensors")["sparsity"].float()
        frequencies = (10**logarithms).masked_fill(logarithms <= DEAD, 0.0)
    centred = bool(meta.get("apply_b_dec_to_input", True))
    return _made(
        weights, rule, layer, folder, centred=centred, frequencies=frequencies, about=about
    )


def _saelens_rule(kind: str, meta: Mapping[str, Any], weights: Weights, folder: Path) -> Rule:
    old = meta.get("activation_fn_str") or meta.get("activation_fn") or "relu"
    k = meta.get("k") or (meta.get("activation_fn_kwargs") or {}).get("k")
    if kind == "gated":
        _need(weights, ("r_mag", "b_mag", "b_gate"), folder)
        return Gated(*(weights[name].float() for name in ("r_mag", "b_gate", "b_mag")))
    if kind == "jumprelu" or (kind == "batchtopk" and "threshold" in weights):
        _need(weights, ("threshold",), folder)
        # BatchTopK is kept as a JumpReLU with one threshold for all latents.
        latents = weights["W_enc"].shape[1]
        return JumpRelu(weights["threshold"].float().expand(latents).clone())
    if kind == "topk" or (kind == "standard" and str(old) == "topk"):
        if not k:
            raise ValueError(f"{folder / 'cfg.json'} says TopK and names no k")
        return TopK(int(k))
    if kind == "standard" and str(old) == "relu":
        return Relu()
    raise ValueError(
        f"{folder.name} is of the kind {kind!r} with {old!r}; known are standard, gated, jumprelu, topk and batchtopk"
    )


def _unscaled(
    weights: Weights, meta: Mapping[str, Any], mean_norm: float | None, folder: Path
) -> dict[str, Tensor]:
    """The weights for activations as they are, where training scaled these to a mean length of sqrt(d)."""
    how = meta.get("normalize_activations", "none")
    how = {True: "expected_average_only_in", False: "none", None: "none"}.get(how, how)
    kept = {name: tensor for name, tensor in weights.items() if name != "scaling_factor"}
    latent_scale = weights.get("scaling_factor")
    if latent_scale is not None and not torch.allclose(latent_scale, torch.ones(())):
        raise ValueError(
            f"{folder.name} carries a scaling_factor that is not one: it was fine-tuned with one for each latent, "
            "which is not read here"
        )
    if how == "none":
        return kept
    if how != "expected_average_only_in":
        raise ValueError(
            f"{folder.name} was trained on activations that are each scaled by themselves ({how}), and its latents "
            "mean nothing without; take one with none or expected_average_only_in"
        )
    if mean_norm is None:
        raise ValueError(
            f"{folder.name} was trained on activations scaled to a mean length of sqrt(d_model), and its files do not "
            "say by what; give mean_norm, the mean length of this model's activations at its layer"
        )
    scale = kept["W_enc"].shape[0] ** 0.5 / mean_norm
    kept |= {"W_enc": kept["W_enc"] * scale}
    return kept | {name: kept[name] / scale for name in ("W_dec", "b_dec")}


# sparsify ------------------------------------------------------------------------------------------------------------


def _sparsify(folder: Path, hook: str | None, mean_norm: float | None) -> Sae:
    about = json.loads((folder / "cfg.json").read_text())
    weights = _tensors(folder / "sae.safetensors")
    _need(weights, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), folder)
    if about.get("transcode") or "W_skip" in weights:
        raise ValueError(
            f"{folder.name} is a transcoder, which gives another place's activations; take an SAE"
        )
    said = folder.name if re.match(r"(?:\w+\.)*(?:layers|h)\.\d", folder.name) else None
    k = int(about["k"])
    rule: Rule = GroupMax(k) if about.get("activation") == "groupmax" else TopK(k)
    named = {
        "W_enc": weights["encoder.weight"].T,
        "b_enc": weights["encoder.bias"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    # The decoder's bias is subtracted whether or not the decoder was normalised.
    return _made(named, rule, _hook(hook, said, folder), folder, centred=True, about=about)


# Gemma Scope ---------------------------------------------------------------------------------------------------------


def _gemma_npz(folder: Path, hook: str | None, mean_norm: float | None) -> Sae:
    import numpy

    with numpy.load(folder / "params.npz", allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    named = [
        part for part in folder.parts if part == "embedding" or re.fullmatch(r"layer_\d+", part)
    ]
    if "embedding" in named:
        raise ValueError(
            f"{folder} is of the embedding, which Gemma scales before its first block; take a layer's"
        )
    if other := next(
        (p for p in folder.parts if re.search(r"scope.*-(att|mlp|transcoder)", p)), None
    ):
        raise ValueError(
            f"{other} has SAEs of attention or an MLP, whose folders are named as those of the residual stream; take "
            "one of the release that ends in -res"
        )
    return _gemma(weights, hook, named[-1] if named else None, folder, {})


def _gemma_two(folder: Path, hook: str | None, mean_norm: float | None) -> Sae:
    about = json.loads((folder / "config.json").read_text())
    if about.get("architecture", "jump_relu") != "jump_relu":
        raise ValueError(
            f"{folder.name} is of the kind {about['architecture']!r}; known is jump_relu"
        )
    ends = [about.get(f"hf_hook_point_{side}") for side in ("in", "out")]
    weights = _tensors(folder / "params.safetensors")
    if (ends[1] is not None and ends[1] != ends[0]) or "affine_skip_connection" in weights:
        raise ValueError(
            f"{folder.name} is a transcoder, which gives another place's activations; take an SAE"
        )
    return _gemma(weights, hook, ends[0], folder, about)


def _gemma(
    weights: Weights, hook: str | None, said: str | None, folder: Path, about: dict[str, Any]
) -> Sae:
    _need(weights, ("w_enc", "w_dec", "b_enc", "b_dec", "threshold"), folder)
    named = {name.replace("w_", "W_"): tensor for name, tensor in weights.items()}
    rule = JumpRelu(weights["threshold"].float())
    # The decoder's bias is not subtracted.
    return _made(named, rule, _hook(hook, said, folder), folder, centred=False, about=about)


# dictionary_learning -------------------------------------------------------------------------------------------------


def _dictionary(folder: Path, hook: str | None, mean_norm: float | None) -> Sae:
    weights = torch.load(folder / "ae.pt", map_location="cpu", weights_only=True)
    about: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        about = json.loads((folder / "config.json").read_text())
    trainer = about.get("trainer", {})
    layer = _hook(hook, trainer.get("submodule_name"), folder)
    kind = str(trainer.get("dict_class", ""))
    if "W_enc" in weights:  # JumpReluAutoEncoder, which subtracts nothing
        _need(weights, ("W_dec", "b_enc", "b_dec", "threshold"), folder)
        rule: Rule = JumpRelu(weights["threshold"].float())
        return _made(weights, rule, layer, folder, centred=False, about=about)
    _need(weights, ("encoder.weight", "decoder.weight"), folder)
    bias = next((n for n in ("b_dec", "bias", "decoder_bias") if n in weights), "b_dec")
    _need(weights, (bias,), folder)
    named = {
        "W_enc": weights["encoder.weight"].T,
        "W_dec": weights["decoder.weight"].T,
        "b_dec": weights[bias],
    }
    if "encoder.bias" in weights:
        named["b_enc"] = weights["encoder.bias"]
    latents = named["W_enc"].shape[1]
    if "r_mag" in weights:
        rule = Gated(*(weights[n].float() for n in ("r_mag", "gate_bias", "mag_bias")))
    elif "BatchTopK" in kind:
        rule = JumpRelu(weights["threshold"].float().expand(latents).clone())
    elif (
        "k" in weights
    ):  # keeps a threshold too, and takes the k largest of each activation all the same
        rule = TopK(int(weights["k"]))
    else:
        rule = Relu()
    return _made(named, rule, layer, folder, centred=True, about=about)


_READERS = {
    "sae_weights.safetensors": _saelens,
    "sae.safetensors": _sparsify,
    "params.npz": _gemma_npz,
    "params.safetensors": _gemma_two,
    "ae.pt": _dictionary,
}
"""By the file that holds the weights."""
