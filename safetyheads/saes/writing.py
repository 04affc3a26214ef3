"""How is a sparse autoencoder kept, so that others can read it too? In SAELens's format."""

import json
from pathlib import Path

import torch

from safetyheads.saes.autoencoder import JumpRelu, Relu, Sae, TopK
from safetyheads.storage.files import writable_folder, write_whole


def save_sae(sae: Sae, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write an SAE into a folder as SAELens does, in float16 by default; `load_sae` reads it.

    Raises ValueError for a rule that SAELens's files have no name for.
    """
    from safetensors.torch import save

    about = {
        "d_in": sae.encoder.shape[0],
        "d_sae": sae.encoder.shape[1],
        "dtype": str(dtype).removeprefix("torch."),
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "none",
        "metadata": {"hook_name": f"blocks.{sae.layer}.hook_resid_pre"},
    }
    weights = {
        "W_enc": sae.encoder,
        "b_enc": sae.encoder_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }
    if isinstance(sae.rule, TopK):
        about |= {"architecture": "topk", "k": sae.rule.k}
    elif isinstance(sae.rule, JumpRelu):
        about |= {"architecture": "jumprelu"}
        weights["threshold"] = sae.rule.threshold
    elif isinstance(sae.rule, Relu):
        about |= {"architecture": "standard"}
    else:
        raise ValueError(
            f"{sae.name} has the rule {type(sae.rule).__name__}, which is not written here; known are Relu, TopK and "
            "JumpRelu"
        )
    folder = writable_folder(folder)
    kept = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    if not all(tensor.isfinite().all() for tensor in kept.values()):
        raise ValueError(f"{sae.name} has weights beyond {dtype}; give dtype=torch.float32")
    write_whole(folder / "sae_weights.safetensors", save(kept))
    if sae.frequencies is not None:
        log = {"sparsity": (sae.frequencies + 1e-12).log10()}
        write_whole(folder / "sparsity.safetensors", save(log))
    write_whole(folder / "cfg.json", json.dumps(about, indent=2).encode())
    return folder
