"""How does one keep a model with some heads ablated, as ordinary weights that open without this library?

An ablation that replaces a head's output by a fixed linear function of what the model computes anyway can be written
into the weights (arXiv:2410.13708, Eq. 7 and 8, as edits of `W_q` and `W_O`):

- scaling contribution and zero ablation scale the head's columns of `W_O`;
- undifferentiated attention scales the head's rows of `W_q` and of its bias. Rotary embedding and softcapping leave a
  zero query zero. A norm on the queries undoes any scaling but that by zero, so after QK-norm only epsilon = 0 can be
  written, and only where the norm looks at one head at a time;
- mean ablation zeroes the columns and adds `mean W_O` to the projection's bias, where it has one.

Resampling depends on the prompt and cannot be written. Keys and values are never touched, since grouped-query heads
share them. What was written is opened again with plain transformers and compared with the hooked model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHeads, mean_z
from safetyheads.interventions.ablations import (
    Ablation,
    MeanAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
    as_ablation,
    describe,
)
from safetyheads.interventions.writing import (
    compare_logits,
    plain_copy,
    require_new,
    written_folder,
)
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.prompts import PromptSet, load_prompts, tokenize

QUERIES = ("q_proj", "qkv_proj", "c_attn", "query_key_value")
"""What transformers calls the projection that holds an attention's queries."""
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
"""What transformers calls the projection W_O."""


class Export(NamedTuple):
    """What `export_ablated` wrote."""

    folder: Path
    """The folder with config, weights and tokenizer."""
    max_logit_difference: float
    """Largest |difference| between the logits of the written and of the hooked model, on random tokens."""
    largest_logit: float
    """Largest |logit| of the hooked model on these tokens, to compare with."""
    changed: tuple[str, ...]
    """Names of the weights that differ from the model's own."""


@torch.no_grad()
def export_ablated(
    model: Any,
    heads: Sequence[Head | str | tuple[int, int]],
    folder: str | Path,
    *,
    ablation: Ablation | str | None = None,
    prompts: PromptSet | Sequence[str] | str | Path | None = None,
    template: str | None = None,
) -> Export:
    """Write a model whose `heads` are ablated, as a folder that `AutoModelForCausalLM.from_pretrained` opens.

    `model` is whatever `load_model` takes; it is not changed. `heads` are `L3H7`, `3-7` or pairs. `ablation` defaults
    to `UndifferentiatedAttention()`. Mean ablation needs the `prompts` whose mean output is written (the harmful side
    of a set), in their `template`. The dtype of the weights is kept. What was done stands in `safetyheads.json`.

    Raises ValueError where the ablation cannot be written exactly into this model's weights, with the reason, or where
    a head is not in the model; FileExistsError where `folder` holds something; PermissionError where nothing can be
    written there.
    """
    ablation = UndifferentiatedAttention() if ablation is None else as_ablation(ablation)
    model, folder = load_model(model), Path(folder).expanduser().absolute()
    chosen = _heads_of(model, heads)
    require_new(folder)
    ablated = AblateHeads(tuple(chosen), ablation, _mean_of(model, ablation, prompts, template))
    plain = plain_copy(model)
    attentions = _attentions(model, plain)
    before = {name: tensor.data_ptr() for name, tensor in plain.state_dict().items()}
    for head in chosen:
        _write_head(model, attentions[head.layer], head, ablated)
    changed = [name for name, t in plain.state_dict().items() if t.data_ptr() != before[name]]
    with written_folder(folder, plain, model.tokenizer) as work:
        del plain, attentions
        difference, largest = compare_logits(model, ablated, work)
        manifest = {
            "heads": [str(head) for head in chosen],
            "ablation": describe(ablation),
            "model": {"name": model.name, **model.provenance},
            "changed": changed,
            "max_logit_difference": difference,
        }
        (work / "safetyheads.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return Export(folder, difference, largest, tuple(changed))


def _heads_of(model: HookedModel, heads: Sequence[Head | str | tuple[int, int]]) -> list[Head]:
    """The heads, each once and in order, all of them in the model."""
    chosen = sorted({Head.parse(head) for head in ([heads] if isinstance(heads, str) else heads)})
    for head in chosen:
        model.require_head(*head)
    return chosen


# What stands in the weights -------------------------------------------------------------------------------------------


def _attentions(model: HookedModel, plain: nn.Module) -> list[nn.Module]:
    """The attention module of every layer, recognised by its projections."""
    found = [m for m in plain.modules() if _child(m, QUERIES) and _child(m, OUTPUTS)]
    known = [m for m in found if _has_known_sizes(model, m)]
    if len(known) != model.n_layers:
        raise ValueError(
            f"{type(plain).__name__} keeps its attention weights in a way that export does not know: of "
            f"{model.n_layers} layers {len(found)} have one of {', '.join(QUERIES)} and one of {', '.join(OUTPUTS)}, "
            f"{len(known)} of them in the size that {model.n_heads} heads need; use the hooked model"
        )
    return known


def _has_known_sizes(model: HookedModel, attention: nn.Module) -> bool:
    """Whether the projections hold these heads' queries and outputs, and nothing that is laid out otherwise."""
    name = str(_child(attention, QUERIES))
    # Fused projections hold keys and values as well.
    heads = {"q_proj": model.n_heads, "qkv_proj": model.n_heads + 2 * model.n_kv}
    rows = _size(getattr(attention, name), out=True)
    columns = _size(getattr(attention, str(_child(attention, OUTPUTS))), out=False)
    every = model.n_heads * model.d_head
    return columns == every and rows == heads.get(name, 3 * model.n_heads) * model.d_head


def _size(projection: Any, *, out: bool) -> int:
    transposed = type(projection).__name__ == "Conv1D"  # GPT-2
    return int(projection.weight.shape[0 if out != transposed else 1])


def _child(module: nn.Module, names: Sequence[str]) -> str | None:
    return next((name for name, _ in module.named_children() if name in names), None)


def _edit(projection: Any, kind: str, axis: int, rows: slice, factor: float) -> None:
    """Scale a slice of one parameter, in a copy: the hooked model shares the original."""
    tensor = getattr(projection, kind).detach().clone()
    tensor[(slice(None),) * axis + (rows,)] *= factor
    setattr(projection, kind, nn.Parameter(tensor, requires_grad=False))


def _write_head(
    model: HookedModel,
    attention: nn.Module,
    head: Head,
    ablated: AblateHeads,
) -> None:
    """Edit one attention module so that one of its heads is ablated, or say why that cannot be."""
    ablation = ablated.ablation
    output = getattr(attention, str(_child(attention, OUTPUTS)))
    columns = slice(head.head * model.d_head, (head.head + 1) * model.d_head)
    into = 0 if type(output).__name__ == "Conv1D" else 1  # GPT-2 keeps its matrices transposed
    if isinstance(ablation, UndifferentiatedAttention):
        _write_query(model, attention, head, ablation.epsilon)
    elif isinstance(ablation, ScalingContribution):
        _edit(output, "weight", into, columns, ablation.epsilon)
    elif isinstance(ablation, ZeroAblation):
        _edit(output, "weight", into, columns, 0.0)
    elif isinstance(ablation, MeanAblation) and ablated.mean is not None:
        if output.bias is None:
            raise ValueError(
                f"mean ablation adds a constant to what a layer's attention writes, and {model.name} has no bias on "
                "its output projection to hold it; export zero ablation, or keep the hooked model"
            )
        written = output.weight[columns] if into == 0 else output.weight[:, columns].mT
        bias = output.bias + ablated.mean[head].to(written) @ written
        output.bias = nn.Parameter(bias, requires_grad=False)
        _edit(output, "weight", into, columns, 0.0)
    else:
        raise ValueError(
            f"{ablation.name} cannot be written into weights: what it puts in a head's place is no fixed linear "
            "function of what the model computes (resampling depends on another prompt); export undifferentiated "
            "attention, scaling contribution, zero or mean ablation, or use the hooked model"
        )


def _write_query(model: HookedModel, attention: nn.Module, head: Head, epsilon: float) -> None:
    """Scale one head's query rows, and their bias."""
    name = str(_child(attention, QUERIES))
    projection = getattr(attention, name)
    norms = [n for n, _ in attention.named_children() if n.startswith("q") and "norm" in n]
    if norms:
        _require_norm_keeps_zero(model, getattr(attention, norms[0]), norms[0], epsilon)
    # NeoX keeps each head's query, key and value together; elsewhere the queries of all heads come first.
    start = head.head * model.d_head * (3 if name == "query_key_value" else 1)
    rows = slice(start, start + model.d_head)
    out = 1 if type(projection).__name__ == "Conv1D" else 0
    _edit(projection, "weight", out, rows, epsilon)
    if projection.bias is not None:
        _edit(projection, "bias", 0, rows, epsilon)


def _require_norm_keeps_zero(model: HookedModel, norm: Any, name: str, epsilon: float) -> None:
    if epsilon:
        raise ValueError(
            f"{model.name} normalises its queries ({name}), which undoes a scaling of the query rows by {epsilon}; "
            "only epsilon = 0 can be written there: UndifferentiatedAttention(epsilon=0.0)"
        )
    weight = getattr(norm, "weight", None)
    if weight is not None and weight.numel() != model.d_head:
        raise ValueError(
            f"{model.name} normalises the queries of all heads together ({name} has {weight.numel()} weights, a head "
            f"{model.d_head}), so that zero query rows of one head would change its neighbours; use the hooked model"
        )
    if getattr(norm, "bias", None) is not None and bool(norm.bias.any()):
        raise ValueError(
            f"{model.name} adds a bias after normalising its queries ({name}), so that zero query rows do not stay "
            "zero; use the hooked model"
        )


def _mean_of(
    model: HookedModel,
    ablation: Ablation,
    prompts: PromptSet | Sequence[str] | str | Path | None,
    template: str | None,
) -> Float[Tensor, "layer head d_head"] | None:
    """What mean ablation writes; None where the ablation needs no mean."""
    if "mean" not in ablation.needs:
        if prompts is not None:
            raise ValueError(f"{ablation.name} needs no prompts; they are for mean ablation")
        return None
    if prompts is None:
        raise ValueError(
            "mean ablation writes the heads' mean output over prompts; give export_ablated(..., prompts=...)"
        )
    texts = load_prompts(prompts).harmful
    return mean_z(model, tokenize(texts, model.tokenizer, template, max_length=model.context))
