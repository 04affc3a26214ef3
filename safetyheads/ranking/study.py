"""What does a ranking ask? A value that can be kept in a file, and asked again of another model."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safetyheads.choices import unknown
from safetyheads.engine.measurement import Measurement, measure
from safetyheads.inputs import prepare
from safetyheads.interventions.ablations import (
    Ablation,
    ScalingContribution,
    UndifferentiatedAttention,
    as_ablations,
    describe,
)
from safetyheads.metrics import Metric, RefusalShift, as_metric
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.screening.methods import Method, as_method, describe_method, read_method
from safetyheads.storage.files import write_whole

DEFAULT_ABLATIONS: tuple[Ablation, ...] = (UndifferentiatedAttention(), ScalingContribution())
DEFAULT_METRIC = RefusalShift()
OF_PROMPTS = ("prompts", "harmless", "column", "label", "encoding", "path")
"""What `load_prompts` takes."""
Null = Literal["labels", "layer", "random_init", "gate"]
"""What heads must rise above not to be drawn open."""


class Opened(NamedTuple):
    """A study with its model open and its prompts in tokens."""

    model: HookedModel
    prompts: PromptSet
    harmful: tuple[Measurement, ...]
    """One for each ablation."""
    harmless: tuple[Measurement, ...]
    """The same; empty where the dataset has none."""


@dataclass(frozen=True)
class Study:
    """What a ranking asks: `rank`, `plan`, `rank_layers` and the command line take one.

    Names stand for their values (`metric="ships"`), and one ablation for a list of one.

    Raises ValueError for a field that cannot be, with what it takes instead.

    >>> Study("my-model", ["a prompt"], ablations="zero").ablations
    (ZeroAblation(),)
    """

    model: Any
    """A name, Hub id, folder, `.gguf` file, `(model, tokenizer)` of Hugging Face, TransformerBridge or HookedModel."""
    dataset: PromptSet | Sequence[str] | str | Path | Mapping[str, Any]
    """A name such as "builtin" or "jailbreakbench", a file, a list of strings, a PromptSet, or `prompts` with what else
    `load_prompts` takes: `{"prompts": "bad.txt", "harmless": "good.txt"}`."""
    ablations: Ablation | str | Sequence[Ablation | str] = DEFAULT_ABLATIONS
    """What is done to each head; a tuple of values once the study is made."""
    metric: Metric | str = DEFAULT_METRIC
    """What is measured. The default alone, of six rankings, found heads whose removal lowered refusal on held-out
    prompts (docs/behaviour.md)."""
    template: str | None = None
    """"chat", "bare", "query" or a string with `{q}`; by default "chat" where the tokenizer has a chat template."""
    limit: int | None = None
    """Keeps the first prompts only, spread over the categories."""
    method: Method | None = None
    """None, or "exact": every head is run. `Raced(...)`, or "raced": all on a few prompts, and those that may still be
    among the top on more. `Screened(...)`, or "screened": those that a linear estimate finds likely. On the harmless
    prompts the heads that are exact are run; the rest is estimated and marked so."""
    null: Null = "labels"
    """"labels" (relabelled prompts), "layer" (the other heads of the layer), "random_init" (a copy of the model with
    random weights, which is scored too and takes as long) or "gate": the copy, relabelled pairs and halves of the
    prompts together, and heads that do not rise above all of them are called not established (`evidence.gate`)."""
    top_k: int = 10
    """How many heads are shown, raced for, and whose recall a screen estimates."""

    def __post_init__(self) -> None:
        if isinstance(self.dataset, Mapping):
            for name in self.dataset:
                if name not in OF_PROMPTS:
                    raise unknown("a field of the dataset", name, OF_PROMPTS)
            if "prompts" not in self.dataset:
                raise ValueError("the dataset names no prompts; give a name or a file as prompts")
        ablations = as_ablations(self.ablations)
        names = [ablation.name for ablation in ablations]
        if len(set(names)) < len(names):
            raise ValueError(
                f"ablations has one kind twice ({', '.join(names)}), which would share a name; rank each in a call of "
                "its own"
            )
        settled = {
            "ablations": ablations,
            "metric": as_metric(self.metric),
        }
        for name, low in (("top_k", None), ("limit", 1)):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or (low and number < low)):
                raise ValueError(f"{name} is {number!r}; it must be a whole number of at least 1")
        settled["method"] = as_method(self.method, top_k=self.top_k)
        if self.null not in get_args(Null):
            raise ValueError(
                f"null is {self.null!r}; it must be one of {', '.join(get_args(Null))}"
            )
        if self.null == "gate" and settled["method"] is not None:
            raise ValueError("the gate tests every head; use method='exact', or another null")
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def read(self) -> PromptSet:
        """The prompts, all of them; raises what `load_prompts` raises."""
        if not isinstance(self.dataset, Mapping):
            return load_prompts(self.dataset)
        given = {**self.dataset}
        return load_prompts(given.pop("prompts"), **given)

    def open(self) -> Opened:
        """Open the model, read the prompts and tokenise each side once.

        Raises ValueError for a top larger than the model or a null that needs harmless prompts where there are none,
        and what `load_model` and `load_prompts` raise.
        """
        prompts = self.read()
        if self.null == "random_init" and not prompts.harmless:
            raise ValueError(
                f"null='random_init' compares harmful with harmless prompts, and {prompts.name} has no harmless ones"
            )
        if self.null == "gate" and not prompts.paired:
            raise ValueError(
                f"null='gate' deals labels anew within each pair, and the prompts of {prompts.name} are not matched; "
                "give a paired set, or another null"
            )
        if self.limit is not None:
            prompts = prompts.limit(self.limit)
        model = load_model(self.model)
        require_top(self.top_k, model.n_layers * model.n_heads)

        def measured(side: Any) -> tuple[Measurement, ...]:
            inputs = prepare(model, prompts, side=side, template=self.template)
            return tuple(measure(inputs, one, self.metric) for one in as_ablations(self.ablations))

        harmless = measured("harmless") if prompts.harmless else ()
        return Opened(model, prompts, measured("harmful"), harmless)

    def to_toml(self) -> str:
        """The study as a TOML file's text, for `from_toml`: names and values, and no prompt.

        Raises ValueError where the model or the dataset is not given by a name or a path, or an ablation or a metric is
        not one of the library's.
        """
        lines = []
        for name, what in (("model", "load_model"), ("dataset", "load_prompts")):
            value = getattr(self, name)
            if name == "dataset" and isinstance(value, Mapping):
                named = all(isinstance(one, str | Path | bool | None) for one in value.values())
                value = {k: v for k, v in value.items() if v is not None} if named else value
            if not isinstance(value, str | Path) and not (isinstance(value, Mapping) and named):
                raise ValueError(
                    f"the study's {name} is a {type(value).__name__}, which a file cannot hold; give a name or a path "
                    f"that {what} takes"
                )
            lines.append(f"{name} = {_toml(value)}")
        for name in ("template", "limit", "null", "top_k"):
            if (value := getattr(self, name)) is not None:
                lines.append(f"{name} = {_toml(value)}")
        described = [describe(ablation) for ablation in as_ablations(self.ablations)]
        metric, method = describe(self.metric), describe_method(as_method(self.method))
        if (as_ablations(described), as_metric(metric)) != (self.ablations, self.metric):
            raise ValueError("an ablation or a metric of your own has no place in a file")
        lines += [f"ablations = {_toml(described)}", f"metric = {_toml(metric)}"]
        return "\n".join([*lines, f"method = {_toml(method)}", ""])

    def save(self, path: str | Path) -> Path:
        """Write `to_toml` into a file, whole or not at all."""
        path = Path(path)
        write_whole(path, self.to_toml().encode())
        return path

    @classmethod
    def from_toml(cls, text: str) -> "Study":
        """The study that a TOML text describes; fields that it leaves out have their defaults.

        `ablations` holds names, or tables of a name and fields such as `{name = "resample", seed = 3}`; `metric` is a
        name or a table too, `method` a word or a table of a name and fields of `Raced` or `Screened`.

        Raises ValueError for text that is not TOML, a field that a study does not have (with near ones), or what the
        field cannot be.
        """
        try:
            given = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"this is no TOML: {error}") from error
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("a field of the study", name, known)
        if missing := {"model", "dataset"} - given.keys():
            raise ValueError(f"the study names no {' and no '.join(sorted(missing))}")
        read = {"ablations": as_ablations, "metric": as_metric, "method": read_method}
        given |= {name: read[name](value) for name, value in given.items() if name in read}
        return cls(**given)

    @classmethod
    def load(cls, path: str | Path) -> "Study":
        """Read a TOML file; ValueError that names it where it holds no study."""
        try:
            return cls.from_toml(Path(path).read_text("utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def of(self, model: Any, prompts: PromptSet) -> "Study":
        """The same question, of another model and prompts that are cut already; every head is run."""
        return replace(self, model=model, dataset=prompts, limit=None, method=None, null="labels")


def require_top(k: int, n: int) -> None:
    """Raise ValueError where a model with n heads has no top of k."""
    if type(k) is not int or not 1 <= k <= n:
        raise ValueError(f"top_k is {k!r}; this model has {n} heads: ask for between 1 and {n}")


def _toml(value: Any) -> str:
    """A value as TOML writes it. The standard library reads TOML and does not write it; a study needs these kinds."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        # A TOML string escapes as JSON does, which leaves out DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        pairs = (f"{name} = {_toml(inner)}" for name, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    return "[" + ", ".join(_toml(inner) for inner in value) + "]"
