"""What does the header of a GGUF file say, and is the file whole?"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "t5", "t5encoder", "clip"}
)
"""GGUF architectures that predict no next token."""


class GgufHeader(NamedTuple):
    """A GGUF file's metadata, and the names and shapes of its tensors."""

    path: Path
    architecture: str
    settings: dict[str, Any]
    """The architecture's own keys, without its name before them."""
    general: dict[str, Any]
    """All other keys with one value; lists, such as the tokenizer's, are left out."""
    shapes: dict[str, tuple[int, ...]]
    """Every tensor's shape, as torch has it."""
    small: dict[str, Float[np.ndarray, " rotary"]]
    """What it holds beside weights: factors of rotary frequencies, by the tensor's name."""


def read_header(path: Path) -> GgufHeader:
    """Read a GGUF file's header with gguf's own reader.

    Raises ValueError if the file is none, is cut short or damaged, or is one of several parts of a model.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if path.suffix.lower() != ".gguf" and magic != b"GGUF":
        raise ValueError(
            f"{path} is a file, but not a GGUF file. Pass the folder that holds config.json, a "
            ".gguf file, a known name or a Hub id."
        )
    size = path.stat().st_size
    if magic != b"GGUF":
        what = "is empty" if size == 0 else f"starts with {magic!r}, not with b'GGUF'"
        raise ValueError(
            f"{path} is not a GGUF file, or a truncated one: it {what}. Fetch it again."
        )
    try:
        reader = _bounded_reader(path)
    except EOFError as error:
        raise ValueError(
            f"{path} is truncated: {error}, and the file has {size:,}. Fetch it again."
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is not a GGUF file this version can read: {error}") from error
    return _header(path, reader)


def _bounded_reader(path: Path) -> Any:
    """gguf's reader, which by itself takes what lies past the end of a file for empty."""
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, *_: Any, **__: Any) -> Any:
            if self.byte_order != "I":
                raise ValueError("its numbers are in another processor's byte order")
            start, end = int(offset), int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise EOFError(f"its header asks for {end:,} bytes")
            # past memmap's own slicing, which takes most of the time of a long list of tokens
            return self.data.view(np.ndarray)[start:end].view(dtype)

    return Bounded(path)


def _header(path: Path, reader: Any) -> GgufHeader:
    from gguf import GGUFValueType, dequantize

    architecture, settings, general = "unknown", {}, {}
    if "general.architecture" in reader.fields:
        architecture = str(reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith(f"{architecture}."):
            settings[name.removeprefix(f"{architecture}.")] = field.contents()
        elif field.types[0] != GGUFValueType.ARRAY:
            general[name] = field.contents()
    if (parts := general.get("split.count", 1)) > 1:
        raise ValueError(
            f"{path} is one of {parts} parts of a model: join them with llama.cpp's `llama-gguf-split --merge`, "
            "and pass the file that comes out"
        )
    if (kind := general.get("general.type", "model")) != "model":
        raise ValueError(
            f"{path} is no model but what its general.type calls {kind!r}: pass the model's own .gguf file"
        )
    shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    small = {
        tensor.name: np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float64)
        for tensor in reader.tensors
        if tensor.name.startswith("rope_")
    }
    return GgufHeader(path, architecture, settings, general, shapes, small)
