"""Which head, and what came out of scoring it?

`Head` names one query head; `HeadScores` holds one score for every head of a model, with the table, the top of the
ranking and the files that other programs read.
"""

import json
import re
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    import pandas

COLUMNS = ["layer", "head", "label", "ablation", "metric", "score", "unit", "rank"]
_LABEL = re.compile(r"^L(\d+)H(\d+)$|^(\d+)-(\d+)$")


class Head(NamedTuple):
    """One query head: layer and head, both counted from 0.

    >>> str(Head(3, 7)), Head.parse("L3H7"), Head.parse("3-7") == Head.parse((3, 7))
    ('L3H7', Head(layer=3, head=7), True)
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: Union[str, tuple[Any, Any], "Head"]) -> "Head":
        """Read `L3H7`, the papers' `3-7` (layer first), or a pair; anything else is a ValueError."""
        if (
            isinstance(text, tuple)
            and len(text) == 2
            and all(isinstance(n, Integral) for n in text)
        ):
            layer, head = (int(n) for n in text)
            if layer >= 0 and head >= 0:
                return cls(layer, head)
        elif isinstance(text, str) and (match := _LABEL.match(text.strip())):
            layer, head = (int(n) for n in match.groups() if n is not None)
            return cls(layer, head)
        raise ValueError(
            f"{text!r} does not name a head; write L3H7, 3-7 or (3, 7): layer first, both from 0"
        )


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One score for every query head of a model, under one ablation and one metric."""

    values: Float[Tensor, "layer head"]
    """The score, in `unit`."""
    per_prompt: Float[Tensor, "layer head prompt"] | None
    """The score of each prompt, or None where the metric is one number for a whole dataset."""
    ablation: str
    """What was done to the head, such as `undifferentiated_attention`."""
    metric: str
    """What was measured, such as `ships`."""
    unit: str
    """Unit of the scores: `nat`, `deg` or `1`."""
    largest_first: bool = True
    """Whether rank 1 is the largest score; a refusal shift ranks its most negative score first."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the numbers: model, template, prompts, ablation, metric and versions."""
    readings: Float[Tensor, "layer head *reading"] | None = None
    """What the score was computed from, where that is more than the score (Gram matrices), so statistics can follow."""

    @property
    def ranks(self) -> Int[Tensor, "layer head"]:
        """Rank of every head, 1 first; equal scores rank in the order of layer and head."""
        order = self.values.flatten().argsort(descending=self.largest_first, stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(1, order.numel() + 1)
        return ranks.reshape(self.values.shape)

    def to_frame(self) -> "pandas.DataFrame":
        """A long table, a row a head, best first: layer, head, label, ablation, metric, score, unit, rank."""
        import pandas

        n_layers, n_heads = self.values.shape
        ranks = self.ranks
        rows = [
            (
                layer,
                head,
                str(Head(layer, head)),
                self.ablation,
                self.metric,
                self.values[layer, head].item(),
                self.unit,
                int(ranks[layer, head]),
            )
            for layer in range(n_layers)
            for head in range(n_heads)
        ]
        return pandas.DataFrame(rows, columns=COLUMNS).sort_values("rank", ignore_index=True)

    def top(self, k: int = 10) -> "pandas.DataFrame":
        """The k highest-ranked heads, as rows of `to_frame`."""
        if not 1 <= k <= self.values.numel():
            raise ValueError(
                f"k is {k}; ask for between 1 and {self.values.numel()} heads, as many as there are"
            )
        return self.to_frame().head(k)

    def score(self, head: Union[str, tuple[Any, Any], "Head"]) -> float:
        """The score of one head; a head that the model does not have is a ValueError."""
        layer, index = Head.parse(head)
        n_layers, n_heads = self.values.shape
        if layer >= n_layers or index >= n_heads:
            raise ValueError(
                f"{Head(layer, index)} is not in this model: it has layers 0-{n_layers - 1} and heads 0-{n_heads - 1}"
            )
        return self.values[layer, index].item()

    def save(self, folder: str | Path) -> Path:
        """Write `scores.safetensors` and `manifest.json` into a folder, made if it is not there."""
        from safetensors.torch import save_file

        folder = writable_folder(folder)
        tensors = {"values": self.values}
        for name in ("per_prompt", "readings"):
            if (tensor := getattr(self, name)) is not None:
                tensors[name] = tensor
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "scores.safetensors")
        manifest = {
            "ablation": self.ablation,
            "metric": self.metric,
            "unit": self.unit,
            "largest_first": self.largest_first,
            "provenance": self.provenance,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "HeadScores":
        """Read what `save` wrote; a missing file is a FileNotFoundError that names it."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("scores.safetensors", "manifest.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is not there; give a folder that HeadScores.save wrote"
                )
        tensors = load_file(folder / "scores.safetensors")
        manifest = json.loads((folder / "manifest.json").read_text())
        return cls(
            values=tensors["values"],
            per_prompt=tensors.get("per_prompt"),
            readings=tensors.get("readings"),
            **manifest,
        )


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if need be; PermissionError if nothing can be written there.

    >>> import tempfile; writable_folder(tempfile.mkdtemp()).is_dir()
    True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".safetyheads-write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PermissionError(
            f"cannot write in {folder} ({error.strerror or error}); name another folder, or free this one"
        ) from error
    return folder
