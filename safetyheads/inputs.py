"""What does every experiment begin with? An opened model, prompts in its tokens, and the manifest of both.

The doors take whatever names a model or prompts; `prepare` settles once what they are, and nothing behind it opens,
reads or tokenises again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.gate import follow
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.prompts import PromptSet, TokenBatch, load_prompts, tokenize

Side = Literal["harmful", "harmless"]
"""The two halves of a prompt set."""
SIDES: tuple[str, ...] = get_args(Side)
Source = PromptSet | TokenBatch | Sequence[str] | str | Path
"""Where prompts come from: what `load_prompts` takes, or tokens."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """A model and prompts in its tokens; `prepare` makes one."""

    model: HookedModel
    batch: TokenBatch
    texts: tuple[str, ...] = field(repr=False)
    """What the user asks, before the template; empty where tokens came."""
    categories: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    """What each prompt is about, where the set says it."""
    provenance: dict[str, Any] = field(repr=False)
    """The model and its numerics, the template, the tokens, the prompts by name, count and hash, the version."""

    @property
    def label(self) -> str:
        """The prompts, for a progress bar."""
        prompts = self.provenance["prompts"]
        return f"{prompts['name']} {prompts['side']}"


def prepare(
    model: Any,
    prompts: Source,
    *,
    side: Side = "harmful",
    template: str | None = None,
    max_length: int | None = None,
) -> Inputs:
    """Open a model, read one side of a prompt set and tokenise it.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take, or a TokenBatch of the model's own
    tokenizer. `template` is "chat", "bare", "query" or a string with `{q}`; by default "chat" where the tokenizer has a
    chat template, else "bare". `max_length` is the longest prompt that is not refused, in tokens; by default the
    model's context.

    Raises ValueError for a side that the set does not have, prompts that are too long or a TokenBatch of another
    tokenizer, and what `load_model` and `load_prompts` raise.
    """
    model = load_model(model)
    if side not in SIDES:
        raise ValueError(f'side is {side!r}; it must be "harmful" or "harmless"')
    if isinstance(prompts, TokenBatch):
        check_tokenizer(model, prompts)
        about = {"name": "tokens", "paired": False, "source": "memory"}
        texts: tuple[str, ...] = ()
        categories: tuple[str, ...] = ()
        batch = prompts
    else:
        found = load_prompts(prompts)
        about = {"name": found.name, "paired": found.paired, "source": found.source}
        texts = texts_of(found, side)
        categories = found.categories if side == "harmful" else found.harmless_categories
        longest = model.context if max_length is None else max_length
        batch = tokenize(texts, model.tokenizer, template, max_length=longest)
    model.require_batch(batch.lengths, int(batch.ids.max()))
    function, row = fingerprint(model.hf), int(batch.lengths.argmax())
    unreadable = follow(model, function, batch.ids[row, : int(batch.lengths[row])])
    if unreadable != model.unreadable:
        model = replace(model, unreadable=unreadable)
    provenance = {
        "model": {
            "name": model.name,
            "n_layers": model.n_layers,
            "n_heads": model.n_heads,
            **model.provenance,
            "weights": function,
        },
        "device": model.device.type,
        "template": batch.template,
        **({"thinking": batch.thinking} if batch.thinking else {}),
        "tokens": batch.fingerprint,
        "prompts": {**about, "side": side, "count": len(batch)},
        "safetyheads": version("safetyheads"),
    }
    return Inputs(model, batch, texts, provenance, categories=categories)


def prepare_pairs(model: Any, prompts: Source, *, template: str | None = None) -> Inputs:
    """Open a model and tokenise both sides of a paired set as one batch: all harmful prompts, then their partners.

    Raises ValueError for a set whose prompts are no pairs, and what `prepare` raises.
    """
    if isinstance(prompts, TokenBatch):
        raise ValueError("tokens have no pairs; give a prompt set whose prompts are matched")
    found = load_prompts(prompts)
    if not found.paired:
        raise ValueError(
            f"the prompts of {found.name} are not matched one to one; give a paired set, such as 'builtin', or "
            "PromptSet(name, harmful, harmless, paired=True)"
        )
    whole = (*found.harmful, *found.harmless)
    both = replace(found, harmful=whole, harmless=(), paired=False, categories=())
    inputs = prepare(model, both, template=template)
    about = {**inputs.provenance["prompts"], "side": "both", "paired": True}
    return replace(inputs, provenance={**inputs.provenance, "prompts": about})


def texts_of(prompts: PromptSet, side: Side) -> tuple[str, ...]:
    """One side of a prompt set; ValueError where it has none."""
    texts = prompts.harmful if side == "harmful" else prompts.harmless
    if not texts:
        raise ValueError(
            f"{prompts.name} has no {side} prompts; score the other side, or give a set with both"
        )
    return texts


def prepare_both(
    model: Any,
    first: Source,
    second: Source,
    *,
    template: str | None = None,
    names: tuple[str, str] = ("benign", "jailbreak"),
) -> tuple[Inputs, Inputs]:
    """Two sets to be compared, or an error that says which of `names` cannot be.

    Of a set with both sides, `first` is the harmless one and `second` the harmful one. Their length is not bounded:
    what compares them cuts them.

    Raises ValueError for a set of fewer than two prompts, or two templates.
    """
    opened = load_model(model)
    sides: list[Inputs] = []
    for prompts, name in zip((first, second), names, strict=True):
        if isinstance(prompts, list | tuple) and not prompts:
            raise ValueError(f"there are no {name} prompts; give at least 2")
        side: Side = "harmful"
        if not isinstance(prompts, TokenBatch):
            prompts = load_prompts(prompts)
            side = "harmless" if not sides and prompts.harmless else side
        inputs = prepare(opened, prompts, side=side, template=template, max_length=2**31)
        if len(inputs.batch) < 2:
            raise ValueError(
                f"there is 1 {name} prompt; a mean over prompts needs at least 2 (capture_attention takes one)"
            )
        sides.append(inputs)
    if sides[0].batch.template != sides[1].batch.template:
        ours, theirs = (inputs.batch.template[:60] for inputs in sides)
        raise ValueError(
            f"the {names[0]} prompts are in the template {ours!r} and the {names[1]} prompts in {theirs!r}: the "
            "difference would show the template; tokenize both with the same"
        )
    return sides[0], sides[1]


def check_tokenizer(model: HookedModel, batch: TokenBatch) -> None:
    """A batch that another tokenizer made is refused: its text, in tokens, must end its own first row."""
    row = batch.ids[0, : int(batch.lengths[0])].tolist()
    encoded = model.tokenizer(batch.texts[0], add_special_tokens=False, verbose=False)["input_ids"]
    if row[-len(encoded) :] != list(encoded):
        raise ValueError(
            f"these prompts were tokenized by another tokenizer than {model.name}'s; tokenize both sets with "
            "model.tokenizer"
        )


def describe_tokenizer(tokenizer: Any) -> str:
    """What tells two tokenizers apart, for a manifest."""
    sample = tokenizer("The quick brown fox, 1492.", add_special_tokens=False)["input_ids"]
    return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens, {list(sample)}"
