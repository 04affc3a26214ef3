"""States of a known rank, and traces that no model gave."""

import torch

from safetyheads.probes.traces.capture import Traces

POSITIONS, WIDTH = 6, 20


def drawn(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def planted(n_prompts=50, rank=3, seed=0):
    """Prompts x positions x width of a known rank, and its factors."""
    parts = [drawn(n, rank, seed=seed + n) for n in (n_prompts, POSITIONS, WIDTH)]
    return torch.einsum("nr,pr,dr->npd", *parts), parts


def made(states, is_jailbreak, lengths=None, texts=None, goals=None):
    """Traces of one layer that no model gave."""
    n = len(is_jailbreak)
    return Traces(
        states=states[None, None],
        representations=("attn_out",),
        layers=(0,),
        is_jailbreak=torch.as_tensor(is_jailbreak),
        goals=tuple(range(n)) if goals is None else goals,
        lengths=torch.full((n,), 9) if lengths is None else lengths,
        texts=texts or ("w6",) * n,
        align="end",
        template="bare",
        model="none",
    )


def f1_of(table, features="attn_out"):
    (row,) = table[table["features"] == features].to_dict("records")
    return row
