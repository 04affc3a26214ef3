"""How does one keep a model that cannot write along a direction, as ordinary weights that open without this library?

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (arXiv:2406.11717, Eq. 5): every matrix
that writes to the residual stream, W <- W - r r^T W, is made orthogonal to the direction: the embeddings, each W_O
and each MLP's output, with their biases. The stream then never has a part along it, as under `AblateDirection` from
layer 0 on.

An embedding that is the unembedding too is written twice, since the unembedding keeps what it reads. Where a norm
stands between a writer and the stream (Gemma-2, Gemma-3), its weights would bring the direction back: that is
refused.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safetyheads.interventions.directions import AblateDirection
from safetyheads.interventions.export import OUTPUTS, Export
from safetyheads.interventions.site import digest
from safetyheads.interventions.writing import (
    compare_logits,
    plain_copy,
    require_new,
    written_folder,
)
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model

MLP_OUTPUTS = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h")
"""What transformers calls the projection by which an MLP writes."""
AFTER_WRITING = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_self_attn_layernorm")
"""Norms between a writer and the stream. (`post_attention_layernorm` stands there too, beside the first of these;
without it, it is the norm before the MLP.)"""


@torch.no_grad()
def export_orthogonalized(
    model: Any, direction: Float[Tensor, " d_model"] | Any, folder: str | Path
) -> Export:
    """Write a model that cannot write along a direction, as a folder that `AutoModelForCausalLM.from_pretrained` opens.

    `model` is whatever `load_model` takes; it is not changed. `direction` is a vector of the residual stream of any
    length, or what has one as `vector`. The dtype of the weights is kept. What was written is opened again and its
    logits are compared with those of the model under `AblateDirection`. What was done stands in `safetyheads.json`.

    Raises ValueError for what is no direction of this model, where a norm stands between a writer and the stream, for
    an architecture whose writers are not recognised, or where the logits differ; FileExistsError where `folder` holds
    something.
    """
    ablation = AblateDirection(getattr(direction, "vector", direction))
    model, folder = load_model(model), Path(folder).expanduser().absolute()
    ablation.edits(model)  # refuses another width
    require_new(folder)
    plain = plain_copy(model)
    _require_writers_reach_the_stream(model, plain)
    tied = _untie(plain)
    changed = []
    for name, module, kind, axis in _writers(model, plain):
        old = getattr(module, kind).detach()
        new = ablation.project(old.movedim(axis, -1)).movedim(-1, axis).contiguous()
        setattr(module, kind, nn.Parameter(new, requires_grad=False))
        changed.append(f"{name}.{kind}")
    with written_folder(folder, plain, model.tokenizer) as work:
        del plain
        difference, largest = compare_logits(model, ablation, work)
        manifest = {
            "orthogonalized": digest(ablation.direction),
            "model": {"name": model.name, **model.provenance},
            "untied": tied,
            "changed": changed,
            "max_logit_difference": difference,
        }
        (work / "safetyheads.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return Export(folder, difference, largest, tuple(changed))


def norms_after_writing(hf: nn.Module) -> list[str]:
    """The names of norms that stand between what a layer writes and the residual stream."""
    return [name for name, _ in hf.named_modules() if name.rpartition(".")[2] in AFTER_WRITING]


def _require_writers_reach_the_stream(model: HookedModel, plain: nn.Module) -> None:
    if norms := norms_after_writing(plain):
        raise ValueError(
            f"{model.name} has a norm between what a layer writes and the residual stream ({norms[0]}), whose weights "
            "would bring the direction back: it cannot be written into the matrices; use AblateDirection on the "
            "hooked model"
        )


def _untie(plain: Any) -> bool:
    """Give the unembedding weights of its own; whether it had none."""
    embedding, output = plain.get_input_embeddings(), plain.get_output_embeddings()
    if output is None or output.weight.data_ptr() != embedding.weight.data_ptr():
        return False
    output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
    for config in (plain.config, plain.config.get_text_config()):
        config.tie_word_embeddings = False
    return True


def _writers(model: HookedModel, plain: Any) -> Iterator[tuple[str, Any, str, int]]:
    """All parameters that write to the stream: name, module, "weight" or "bias", and the axis that the stream is."""
    names = {module: name for name, module in plain.named_modules()}
    embeddings = [plain.get_input_embeddings()]
    embeddings += [m for n, m in plain.named_modules() if n.rpartition(".")[2] == "wpe"]
    for embedding in embeddings:
        yield names[embedding], embedding, "weight", 1
    found = [
        (name, module)
        for name, module in plain.named_modules()
        if name.rpartition(".")[2] in {*OUTPUTS, *MLP_OUTPUTS}
    ]
    if len(found) != 2 * model.n_layers:
        raise ValueError(
            f"{type(plain).__name__} writes to the residual stream in a way that export does not know: of "
            f"{model.n_layers} layers, with an attention and an MLP each, {len(found)} output projections were found "
            f"under the names {', '.join(sorted({*OUTPUTS, *MLP_OUTPUTS}))}; use AblateDirection on the hooked model"
        )
    for name, module in found:
        transposed = type(module).__name__ == "Conv1D"  # GPT-2
        yield name, module, "weight", 1 if transposed else 0
        if getattr(module, "bias", None) is not None:
            yield name, module, "bias", 0
