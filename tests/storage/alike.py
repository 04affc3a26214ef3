"""Are two results the same, field by field?"""

import dataclasses
import math

import pandas
import torch


def differences(one, other, place="result"):
    """Where two values differ in type or content; tensors and floats to the bit, NaN the same as NaN."""
    if isinstance(one, str) and isinstance(other, str):  # torch's version is a kind of its own
        return [] if one == other else [f"{place}: {one} and {other}"]
    if type(one) is not type(other):
        return [f"{place}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        bits = [
            t.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
            for t in (one, other)
        ]
        return [] if alike and torch.equal(*bits) else [f"{place}: tensors"]
    if isinstance(one, pandas.DataFrame):
        try:
            pandas.testing.assert_frame_equal(one, other, check_exact=True)
        except AssertionError as error:
            return [f"{place}: {error}"]
        return []
    if dataclasses.is_dataclass(one):
        inner = {f.name: f.name for f in dataclasses.fields(one)}
        pairs = [(name, getattr(one, name), getattr(other, name)) for name in inner]
    elif isinstance(one, tuple | list):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} entries"]
        pairs = [(n, a, b) for n, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, dict):
        if sorted(one) != sorted(other):
            return [f"{place}: keys {list(one)} and {list(other)}"]
        pairs = [(key, one[key], other[key]) for key in one]
    else:
        same = one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
        return [] if same else [f"{place}: {one} and {other}"]
    return [line for name, a, b in pairs for line in differences(a, b, f"{place}.{name}")]
