"""In which layer and head does the attention of benign and of jailbreak prompts differ, beyond chance and length?

Jailbreak prompts are longer than plain ones, and a longer prompt spreads attention differently whatever it says. So the
comparison to read is between equally long beginnings, a permutation of the labels says what chance gives, and neutral
prose in front of the benign prompts says what length does. `shares.py` asks from which parts of a prompt
given heads read. The question is that of "Jailbreaking Leaves a Trace" (arXiv:2602.11495); how the paper chose its
layers is not stated, and this measure is not taken from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.activations.patterns import checked_layers, each_pattern
from safetyheads.heads import Head
from safetyheads.inputs import Inputs, prepare, prepare_both
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.progress import bar
from safetyheads.prompts import PromptSet, TokenBatch, lengthen
from safetyheads.stats import benjamini_hochberg
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class AttentionDivergence:
    """How far the attention of two sets of prompts differs, for each layer and head, beside what chance gives."""

    table: "pandas.DataFrame"
    """A row a comparison and head, or layer: comparison, layer, head (missing for the layer as a whole), label,
    divergence, null_mean, null_high, p_value, q_value, unit, benign, jailbreak (numbers of prompts)."""
    provenance: dict[str, Any]

    def top(self, k: int = 10, comparison: str = "matched") -> "pandas.DataFrame":
        """The k heads that differ most in one comparison, by their divergence beyond the null's mean."""
        table = self.table[(self.table["comparison"] == comparison) & self.table["head"].notna()]
        excess = table["divergence"] - table["null_mean"]
        return table.loc[excess.sort_values(ascending=False, kind="stable").index].head(k)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "AttentionDivergence":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


@torch.inference_mode()
def attention_divergence(
    model: Any,
    benign: PromptSet | Sequence[str] | str | Path,
    jailbreak: PromptSet | Sequence[str] | str | Path,
    *,
    layers: int | Sequence[int] | None = None,
    length: int | None = None,
    bins: int = 8,
    n_permutations: int = 2000,
    seed: int = 0,
    template: str | None = None,
    progress: bool | None = None,
) -> AttentionDivergence:
    """How far the attention of benign and jailbreak prompts differs in each layer and head, and whether it is length.

    Each prompt's pattern becomes, for a few groups of queries, the attention that a query of the group gives to each of
    `bins` groups of keys. The divergence is the Jensen-Shannon divergence [nat, at most ln 2] of the two sets' mean
    distributions, averaged over the groups of queries. The tokens that all prompts share at the start are keys, not
    queries. The null deals the labels anew, `n_permutations` times; p = (1 + as large) / (1 + n_permutations), and the
    q-values are Benjamini-Hochberg's over a comparison's heads, or its layers.

    Jailbreak prompts are longer, so four comparisons are made:

    - matched: the first tokens only, as many as the shortest prompt has before its assistant header (or `length`; then
      shorter prompts are left out). The same number of tokens everywhere: length plays no part.
    - lengthened: whole prompts, the benign ones brought to the jailbreak prompts' lengths by neutral prose.
    - unmatched: whole prompts as they are, groups relative to each prompt's length. Confounded by length.
    - length_only: benign prompts against the same, lengthened. What length and some prose do by themselves.

    Raises ValueError for what `attention_maps` refuses, and where too few tokens or prompts are left to compare.
    """
    import pandas

    if bins < 2:
        raise ValueError(f"bins is {bins}; at least 2 groups of keys are needed to tell them apart")
    model = load_model(model)
    asked = checked_layers(model, layers)
    plain, attack = prepare_both(model, benign, jailbreak, template=template)
    longer = lengthened(plain, attack, template)
    batches = {"benign": plain.batch, "jailbreak": attack.batch, "longer": longer.batch}
    prefix = _shared_start(list(batches.values()))
    window = _common_window(plain.batch, attack.batch, prefix, length)
    shortest = min(int(batch.lengths.min()) for batch in batches.values())
    groups = {"whole": min(bins, shortest - prefix), "start": min(bins, window - prefix)}
    features: dict[tuple[str, str], _Features] = {}
    for name, batch in batches.items():
        ends = {"whole": batch.lengths.tolist()}
        if name != "longer":
            ends["start"] = [window if n >= window else None for n in _content_ends(batch)]
        found = _features(model, batch, asked, prefix, ends, groups, bins, name, progress)
        features |= {(name, part): values for part, values in found.items()}
    pairs = {
        "matched": (features["benign", "start"], features["jailbreak", "start"]),
        "lengthened": (features["longer", "whole"], features["jailbreak", "whole"]),
        "unmatched": (features["benign", "whole"], features["jailbreak", "whole"]),
        "length_only": (features["benign", "whole"], features["longer", "whole"]),
    }
    rows: list[dict[str, Any]] = []
    with bar(len(pairs), "null", "comparison", progress) as shown:
        for comparison, (ours, theirs) in pairs.items():
            tests = [_permute(ours[layer], theirs[layer], n_permutations, seed) for layer in asked]
            rows += _rows(comparison, asked, tests, len(ours[asked[0]]), len(theirs[asked[0]]))
            shown.update()
    table = pandas.DataFrame(rows)
    table["head"] = table["head"].astype("Int64")
    provenance = {
        "benign": plain.provenance,
        "jailbreak": attack.provenance,
        "longer": longer.batch.fingerprint,
        "shared_start": prefix,
        "matched_length": window,
        "bins": bins,
        "n_permutations": n_permutations,
        "seed": seed,
    }
    return AttentionDivergence(table, provenance)


def lengthened(plain: Inputs, attack: Inputs, template: str | None) -> Inputs:
    """The plain prompts behind neutral prose, which brings each to the length of one of the other set."""
    if not plain.texts:
        raise ValueError(
            "tokens came, and prose is put before the prompts' texts: give the prompts as strings"
        )
    wanted = [int(n) for n in attack.batch.lengths.tolist()]
    wanted = [wanted[n % len(wanted)] for n in range(len(plain.texts))]
    texts = lengthen(plain.texts, wanted, plain.model.tokenizer, template)
    return prepare(plain.model, texts, template=template)


_Features = dict[int, Float[Tensor, "prompt head query key"]]
"""Of each layer: the attention of groups of queries to groups of keys."""


def _features(
    model: HookedModel,
    batch: TokenBatch,
    layers: Sequence[int],
    start: int,
    ends: dict[str, list[int | None]],
    groups: dict[str, int],
    bins: int,
    label: str,
    progress: bool | None,
) -> dict[str, _Features]:
    """Each prompt's pattern of queries `start` to `end` in a few numbers, `groups` times `bins`.

    None as end leaves the prompt out.
    """
    found: dict[str, dict[int, dict[int, Tensor]]] = {p: {n: {} for n in layers} for p in ends}

    def add(layer: int, row: int, pattern: Tensor, visible: Tensor) -> None:
        for part, stops in ends.items():
            if (stop := stops[row]) is not None:
                keys = _averaging(stop, bins).to(pattern)
                queries = _averaging(stop - start, groups[part]).to(pattern)
                sums = pattern[:, start:stop, :stop] @ (keys > 0).to(pattern).T
                found[part][layer][row] = (queries @ sums).cpu()

    each_pattern(model, batch, layers, int(batch.lengths.max()), add, label, progress)
    return {
        part: {n: torch.stack([rows[r] for r in sorted(rows)]) for n, rows in some.items()}
        for part, some in found.items()
    }


def _averaging(size: int, groups: int) -> Float[Tensor, "group pos"]:
    """The matrix that averages `size` positions in so many groups of nearly equal size."""
    group = torch.arange(size) * groups // size
    member = (group == torch.arange(groups)[:, None]).float()
    return member / member.sum(1, keepdim=True).clamp_min(1)


class _Test(NamedTuple):
    """A layer's heads and, last, their mean: observed divergence, and what chance gives."""

    divergence: Float[Tensor, " head"]
    null_mean: Float[Tensor, " head"]
    null_high: Float[Tensor, " head"]
    p_value: Float[Tensor, " head"]


def _permute(
    ours: Float[Tensor, "prompt head query key"],
    theirs: Float[Tensor, "other head query key"],
    n_permutations: int,
    seed: int,
) -> _Test:
    pooled, n, m = torch.cat([ours, theirs]), len(ours), len(theirs)
    flat = pooled.flatten(1)

    def measure(chosen: Int[Tensor, "resample prompt"]) -> Float[Tensor, "resample head"]:
        member = torch.zeros(len(chosen), n + m).scatter_(1, chosen, 1.0)
        # Both sums of what is not negative: a difference of sums could be, by rounding.
        sums = ((member @ flat) / n, ((1 - member) @ flat) / m)
        means = (rows.unflatten(1, pooled.shape[1:]) for rows in sums)
        heads = _jensen_shannon(*means).mean(-1)
        return torch.cat([heads, heads.mean(1, keepdim=True)], 1)

    observed = measure(torch.arange(n)[None])[0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n_permutations, n + m, generator=generator).argsort(1)[:, :n]
    parts = max(1, 2**22 // flat.shape[1])
    null = torch.cat([measure(some) for some in drawn.split(parts)])
    # Sums in another order differ by rounding: what ties with the observed value counts as large.
    as_large = (null >= observed - 1e-6 * observed.abs() - 1e-9).sum(0)
    return _Test(
        observed, null.mean(0), null.quantile(0.95, 0), (1.0 + as_large) / (1.0 + n_permutations)
    )


def _jensen_shannon(
    p: Float[Tensor, "*batch key"], q: Float[Tensor, "*batch key"]
) -> Float[Tensor, "*batch"]:
    middle = (p + q) / 2
    terms = p.xlogy(p) - p.xlogy(middle) + q.xlogy(q) - q.xlogy(middle)
    return terms.sum(-1).clamp_min(0) / 2


def _rows(
    comparison: str, layers: Sequence[int], tests: Sequence[_Test], n: int, m: int
) -> Iterator[dict[str, Any]]:
    p = torch.stack([test.p_value for test in tests])
    q = torch.cat([benjamini_hochberg(p[:, :-1]), benjamini_hochberg(p[:, -1:])], 1)
    for at, (layer, test) in enumerate(zip(layers, tests, strict=True)):
        for head in range(p.shape[1]):
            whole = head == p.shape[1] - 1
            yield {
                "comparison": comparison,
                "layer": layer,
                "head": None if whole else head,
                "label": f"L{layer}" if whole else str(Head(layer, head)),
                **{name: values[head].item() for name, values in test._asdict().items()},
                "q_value": q[at, head].item(),
                "unit": "nat",
                "benign": n,
                "jailbreak": m,
            }


def _shared_start(batches: Sequence[TokenBatch]) -> int:
    """How many tokens all prompts of all sets share from the start."""
    shortest = min(int(batch.lengths.min()) for batch in batches) - 1
    first = batches[0].ids[0, :shortest]
    same = torch.stack([(b.ids[:, :shortest] == first).all(0) for b in batches]).all(0)
    return int(same.long().cumprod(0).sum())


def _content_ends(batch: TokenBatch) -> list[int]:
    """Where the user's text ends in each prompt: before the tokens that all prompts share at their end."""
    rows = [row[:n] for row, n in zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)]
    if batch.template != "chat":
        return [len(row) for row in rows]
    shared = 0
    while shared < min(map(len, rows)) and len({row[-1 - shared] for row in rows}) == 1:
        shared += 1
    return [len(row) - shared for row in rows]


def _common_window(plain: TokenBatch, attack: TokenBatch, prefix: int, length: int | None) -> int:
    """How many tokens from the start are compared where length is matched."""
    ends = [_content_ends(batch) for batch in (plain, attack)]
    window = min(map(min, ends)) if length is None else length
    if window - prefix < 2:
        raise ValueError(
            f"the first {window} tokens would be compared, and all prompts share the first {prefix}: "
            "nothing is left; give length= a larger number (shorter prompts are then left out), or longer prompts"
        )
    for name, some in zip(("benign", "jailbreak"), ends, strict=True):
        if (left := sum(end >= window for end in some)) < 2:
            raise ValueError(
                f"{left} of the {len(some)} {name} prompts have {window} tokens before their assistant header "
                f"(they have {min(some)} to {max(some)}): give length= a smaller number, or longer prompts"
            )
    return window
