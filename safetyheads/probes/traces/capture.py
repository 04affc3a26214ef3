"""Does a jailbreak leave a trace in the hidden states, layer by layer, that its length or its words do not?

The detection of "Jailbreaking Leaves a Trace" (arXiv:2602.11495): at each layer the prompts' states make a tensor of
prompt, position and width; a CP decomposition X ~ sum_r c_r o a_r o b_r gives each prompt R numbers, its row of C, and
a classifier tells jailbreaks by them. At inference the layers where a prompt looks like a jailbreak are left out.

Where this differs from the paper: the factors a and b are fitted on the training prompts of a fold only, and every
prompt, seen or new, gets its numbers by the same least squares with the Khatri-Rao product of a and b (`project`). The
paper decomposes all prompts together, test prompts included; `transductive=True` does that, and says so in the table.
Prompts that ask for the same thing stay in the same fold. The length alone, a bag of words and shuffled labels are
scored beside. The rank, which the paper does not give, is an argument.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.interventions.layers import BypassLayers
from safetyheads.models.hooked import HookedModel, load_model
from safetyheads.prompts import TokenBatch, tokenize
from safetyheads.stats import wilson_interval

if TYPE_CHECKING:
    import numpy
    import pandas

REPRESENTATIONS = ("attn_out", "resid_post")
"""What a layer gives: its attention's output, and the residual stream after the whole block."""
CLASSIFIERS = ("random_forest", "svm_rbf", "svm_linear", "logistic_regression")
"""The paper's four, of scikit-learn."""
BASELINES = ("length", "bag_of_words")
"""What needs no model: the number of tokens, and the counts of the prompt's words."""
COLUMNS = (
    *("model", "features", "layer", "classifier", "f1", "low", "high", "null_f1", "null_high"),
    *("fit", "rank", "transductive", "align", "length", "padding", "jailbreaks", "benign"),
)
MOST_POSITIONS = 32
"""Positions kept of each prompt, unless the caller chooses."""
PROMPTS_A_PASS = 16


# States --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Traces:
    """The states of jailbreak and benign prompts at some layers of a model."""

    states: Float[Tensor, "representation layer prompt pos d_model"]
    """What each layer gives; zeros where a prompt has fewer tokens than `pos`."""
    representations: tuple[str, ...]
    """The names along the first axis, from `REPRESENTATIONS`."""
    layers: tuple[int, ...]
    """The layers along the second axis."""
    is_jailbreak: Bool[Tensor, " prompt"]
    """The label of each prompt."""
    goals: tuple[int, ...]
    """Prompts with the same number ask for the same thing."""
    lengths: Int[Tensor, " prompt"]
    """The number of tokens of each prompt, template included."""
    texts: tuple[str, ...]
    """The prompts, without the template."""
    align: str
    """Which positions are kept: the last ones ("end"), or the first ones ("start")."""
    template: str
    """The template's name, or the template itself."""
    model: str
    """Name of the model."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What determines the states: model, template, tokens and version."""

    def __repr__(self) -> str:
        jailbreaks = int(self.is_jailbreak.sum())
        return (
            f"Traces({self.model}: {jailbreaks} jailbreak and {len(self.texts) - jailbreaks} benign prompts, "
            f"layers {', '.join(map(str, self.layers))}, {self.states.shape[3]} positions from the {self.align})"
        )

    @property
    def padding(self) -> float:
        """The share of positions that hold no token; above 0, the zeros tell the prompt's length."""
        width = self.states.shape[3]
        return 1 - self.lengths.clamp(max=width).sum().item() / (width * len(self.texts))


@torch.inference_mode()
def capture_traces(
    model: Any,
    jailbreak: Sequence[str],
    benign: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    representations: Sequence[str] = REPRESENTATIONS,
    length: int | None = None,
    align: str = "end",
    goals: tuple[Sequence[object], Sequence[object]] | None = None,
    template: str | None = None,
    progress: bool | None = None,
) -> Traces:
    """Keep what some layers give on jailbreak and on benign prompts; nothing above the highest layer is run.

    `model` is whatever `load_model` takes; `jailbreak` and `benign` are strings. `layers` are six by default, evenly
    spread from the first to the last. Of each prompt `length` positions are kept: with `align` "end" the last ones, so
    that prompts of all lengths fill them; with "start" the first ones, as a grid of the paper's would, and what a
    shorter prompt lacks is zero, which tells its length. By default `length` is that of the shortest prompt, at most
    32. `goals` names what each jailbreak and each benign prompt asks for, by any two sequences of labels: prompts that
    share a label are kept in one fold. By default two prompts share a goal if one's text contains the other's.

    Memory: 4 bytes for each of representations x layers x prompts x length x d_model numbers; 100 prompts of
    SmolLM2-135M at one layer take 7 MB.

    Raises ValueError for a side without prompts, a layer out of range, an unknown representation or alignment, a
    length that is not positive, goals that do not match the prompts, and what `load_model` and `tokenize` raise.
    """
    model = load_model(model)
    for side, prompts in (("jailbreak", jailbreak), ("benign", benign)):
        if not isinstance(prompts, str) and not len(prompts):
            raise ValueError(f"there are no {side} prompts; give at least one string")
    if unknown := sorted(set(representations) - set(REPRESENTATIONS)) or not representations:
        raise ValueError(
            f"representations are {unknown if representations else 'none'}; give some of {', '.join(REPRESENTATIONS)}"
        )
    sides = [
        tokenize(prompts, model.tokenizer, template, max_length=model.context)
        for prompts in (jailbreak, benign)
    ]
    shortest = min(int(side.lengths.min()) for side in sides)
    kept = _Kept(
        tuple(_layers(model) if layers is None else _checked_layers(model, layers)),
        tuple(representations),
        min(shortest, MOST_POSITIONS) if length is None else length,
        align,
    )
    states = [_capture(model, side, kept, progress) for side in sides]
    texts = (*jailbreak, *benign)
    return Traces(
        states=torch.cat(states, 2),
        representations=kept.representations,
        layers=kept.layers,
        is_jailbreak=torch.arange(len(texts)) < len(jailbreak),
        goals=_same_goal(texts) if goals is None else _numbered(goals, len(jailbreak), len(benign)),
        lengths=torch.cat([side.lengths for side in sides]),
        texts=texts,
        align=align,
        template=sides[0].template,
        model=model.name,
        provenance={
            "model": {"name": model.name, **model.provenance},
            "template": sides[0].template,
            "tokens": {"jailbreak": sides[0].fingerprint, "benign": sides[1].fingerprint},
            "safetyheads": version("safetyheads"),
        },
    )


@dataclass(frozen=True)
class _Kept:
    """Which states of a prompt are kept."""

    layers: tuple[int, ...]
    representations: tuple[str, ...]
    length: int
    align: str

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is {self.length}; keep at least one position of each prompt")
        if self.align not in ("start", "end"):
            raise ValueError(
                f'align is {self.align!r}; it must be "end" (the last positions) or "start" (the first)'
            )


def _capture(
    model: HookedModel, batch: TokenBatch, kept: _Kept, progress: bool | None
) -> Float[Tensor, "representation layer prompt pos d_model"]:
    """The kept states of one set of prompts, a pass for every few prompts that begin alike."""
    from tqdm.auto import tqdm

    sizes = len(kept.representations), len(kept.layers), len(batch), kept.length, model.d_model
    states = torch.zeros(sizes)
    order = sorted(range(len(batch)), key=lambda prompt: batch.ids[prompt].tolist())
    with tqdm(total=len(batch), desc="traces", unit="prompt", disable=_hidden(progress)) as bar:
        for start in range(0, len(order), PROMPTS_A_PASS):
            prompts = order[start : start + PROMPTS_A_PASS]
            some = batch.select(prompts)
            real = torch.arange(some.ids.shape[1]) < some.lengths[:, None]
            # A pad token may lie outside the embedding; what stands there never matters.
            ids, prefix = some.ids.where(real, 0), some.prefix_length if len(prompts) > 1 else 0
            model.visit_states(
                ids, kept.layers, _reader(states, prompts, some.lengths, kept), prefix=prefix
            )
            bar.update(len(prompts))
    return states


def _reader(
    states: Tensor, prompts: Sequence[int], lengths: Tensor, kept: _Kept
) -> Callable[[str, int, Tensor, int], None]:
    """What copies the kept positions of a pass's prompts into `states`."""
    first = lengths - kept.length if kept.align == "end" else torch.zeros_like(lengths)
    wanted = first[:, None] + torch.arange(kept.length)
    wanted = wanted.where(wanted < lengths[:, None], -1)
    numbers = torch.tensor(prompts)

    def read(name: str, layer: int, part: Tensor, start: int) -> None:
        if name in kept.representations:
            rows, places = ((wanted >= start) & (wanted < start + part.shape[1])).nonzero(
                as_tuple=True
            )
            taken = part[rows if len(part) > 1 else 0, wanted[rows, places] - start]
            where = kept.representations.index(name), kept.layers.index(layer)
            states[where][numbers[rows], places] = taken.float().cpu()

    return read


def _layers(model: HookedModel) -> list[int]:
    """Six layers from the first to the last, fewer where the model has fewer."""
    return sorted({round(share * (model.n_layers - 1) / 5) for share in range(6)})


def _checked_layers(model: HookedModel, layers: Sequence[int]) -> list[int]:
    outside = [layer for layer in layers if not 0 <= layer < model.n_layers]
    if outside or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"layers are {list(layers)}; {model.name} has layers 0-{model.n_layers - 1}: "
            "name some of them, each once"
        )
    return list(layers)


def _same_goal(texts: Sequence[str]) -> tuple[int, ...]:
    """A number for each text, the same for two texts of which one contains the other."""
    number = list(range(len(texts)))
    for first, text in enumerate(texts):
        for second in range(first):
            if texts[second] in text or text in texts[second]:
                old, new = number[first], number[second]
                number = [new if n == old else n for n in number]
    return tuple(number)


def _numbered(goals: tuple[Sequence[object], Sequence[object]], *counts: int) -> tuple[int, ...]:
    if tuple(map(len, goals)) != counts:
        raise ValueError(
            f"goals has {' and '.join(str(len(side)) for side in goals)} labels for {counts[0]} jailbreak and "
            f"{counts[1]} benign prompts; give one a prompt"
        )
    labels = [label for side in goals for label in side]
    number = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    return tuple(number[label] for label in labels)


# Factors -------------------------------------------------------------------------------------------------------------


class Factors(NamedTuple):
    """What all prompts share at one layer: R patterns over positions and width, columns of length 1."""

    positions: Float[Tensor, "pos rank"]
    width: Float[Tensor, "d_model rank"]
    fit: float
    """How much of the fitted states' squared norm they explain [1]."""


def fit_factors(
    states: Float[Tensor, "prompt pos d_model"], rank: int = 16, *, seed: int = 0
) -> Factors:
    """Decompose prompts x positions x width into `rank` outer products (CP, alternating least squares).

    TensorLy's `parafac` in float64, at most 100 rounds, begun from singular vectors: from random factors it stops in
    poor local minima now and then. `seed` draws what is missing where `rank` is above the number of positions. The
    decomposition has no order, sign or scale of its own: columns have length 1 here, and what follows must not depend
    on their order.

    Raises ValueError for a rank below 1 or states that are all zero, ImportError without the extra `traces`.
    """
    tensorly, parafac = _tensorly()
    if rank < 1:
        raise ValueError(f"rank is {rank}; a decomposition needs at least one component")
    if not states.any():
        raise ValueError("the states are all zero: there is nothing to decompose")
    tensor = states.double().numpy()
    with warnings.catch_warnings(), tensorly.backend_context("numpy", local_threadsafe=True):
        # More components than positions: the singular vectors are eked out at random, as wanted.
        warnings.filterwarnings("ignore", "Trying to compute SVD with n_eigenvecs")
        _, (_, positions, width) = parafac(
            tensor / abs(tensor).max(),
            rank,
            init="svd",
            random_state=seed,
            n_iter_max=100,
            tol=1e-7,
        )
    a, b = (torch.nn.functional.normalize(torch.tensor(f), dim=0) for f in (positions, width))
    factors = Factors(a, b, fit=0.0)
    rebuilt = torch.einsum("nr,pr,dr->npd", project(states, factors), a, b)
    error = (states - rebuilt).square().sum() / states.double().square().sum()
    return factors._replace(fit=1 - error.item())


def project(
    states: Float[Tensor, "prompt pos d_model"], factors: Factors
) -> Float[Tensor, "prompt rank"]:
    """Each prompt's row of C: the least squares solution of states = sum_r c_r a_r b_r^T."""
    positions, width, _ = factors
    inner = torch.einsum("npd,pr,dr->nr", states.double(), positions, width)
    gram = (positions.T @ positions) * (width.T @ width)
    return inner @ torch.linalg.pinv(gram, hermitian=True)


def _tensorly() -> tuple[Any, Any]:
    try:
        import sklearn  # noqa: F401
        import tensorly
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise ImportError(
            f"traces need TensorLy and scikit-learn ({error}): pip install 'safetyheads[traces]'"
        ) from error
    return tensorly, parafac


# Scores --------------------------------------------------------------------------------------------------------------


def score_detectors(
    traces: Traces,
    *,
    rank: int = 16,
    classifiers: Sequence[str] = CLASSIFIERS,
    folds: int = 5,
    shuffles: int = 10,
    transductive: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> "pandas.DataFrame":
    """Cross-validate jailbreak detectors on every layer and on the two baselines: a row a layer and classifier.

    `rank` is that of the CP decomposition, `classifiers` some of `CLASSIFIERS`. Folds are stratified by label and never
    split a goal. `shuffles` permutations of the labels give the null. `transductive=True` fits the factors on test
    prompts too, as the paper does: to see what that leak is worth, not to report.

    Columns: model, features (a representation, "length" or "bag_of_words"), layer (missing for the baselines),
    classifier; f1 of the jailbreak class over all test predictions together, low and high end of its 95 % interval
    (F1 = 2J/(1+J) of the Wilson interval of J = TP/(TP+FP+FN), prompts taken as independent); null_f1 and null_high,
    mean and largest F1 under shuffled labels; fit, the share of squared norm that the factors explain; rank,
    transductive, align, length and padding (as in `Traces`), and the numbers of jailbreak and of benign prompts. What
    else determines them is in its `attrs["provenance"]`.

    Raises ValueError for an unknown classifier, fewer than two folds or more than there are goals on either side,
    ImportError without the extra `traces`.
    """
    import numpy
    import pandas
    from tqdm.auto import tqdm

    _tensorly()
    if unknown := [name for name in classifiers if name not in CLASSIFIERS] or not classifiers:
        raise ValueError(
            f"classifiers are {unknown if classifiers else 'none'}; give some of {', '.join(CLASSIFIERS)}"
        )
    labels = traces.is_jailbreak.numpy()
    splits = _splits(traces, folds, seed)
    generator = numpy.random.default_rng(seed)
    shuffled = [generator.permutation(labels) for _ in range(shuffles)]
    shared = {
        "model": traces.model,
        "transductive": transductive,
        "align": traces.align,
        "length": traces.states.shape[3],
        "padding": traces.padding,
        "jailbreaks": int(labels.sum()),
        "benign": int((~labels).sum()),
    }
    places = [(n, m) for n in range(len(traces.representations)) for m in range(len(traces.layers))]
    rows = []
    with tqdm(
        total=len(places) + 2, desc="detectors", unit="set", disable=_hidden(progress)
    ) as bar:

        def score(cut: list[_Fold], **values: Any) -> None:
            for name in classifiers:
                null = [_f1(_predictions(cut, y, name, seed), y)[0] for y in shuffled]
                f1, low, high = _f1(_predictions(cut, labels, name, seed), labels)
                found = {"classifier": name, "f1": f1, "low": low, "high": high}
                if null:
                    found |= {"null_f1": sum(null) / len(null), "null_high": max(null)}
                rows.append({**shared, **values, **found})
            bar.update()

        for n, m in places:
            cut, fit = _trace_features(traces.states[n, m], splits, rank, transductive, seed)
            place = {"features": traces.representations[n], "layer": traces.layers[m]}
            score(cut, **place, fit=fit, rank=rank)
        score(_length_features(traces, splits), features="length")
        score(_word_features(traces, splits), features="bag_of_words")
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    table.attrs["provenance"] = {**traces.provenance, "folds": folds, "seed": seed}
    return table.astype({"layer": "Int64", "rank": "Int64"})


class _Fold(NamedTuple):
    """One fold's features and which prompts they are of."""

    train: "numpy.ndarray[Any, Any]"
    test: "numpy.ndarray[Any, Any]"
    train_features: "numpy.ndarray[Any, Any]"
    test_features: "numpy.ndarray[Any, Any]"


def _splits(traces: Traces, folds: int, seed: int) -> list[tuple[Any, Any]]:
    from sklearn.model_selection import StratifiedGroupKFold

    labels, goals = traces.is_jailbreak.numpy(), traces.goals
    sides = [{g for g, y in zip(goals, labels, strict=True) if y == side} for side in (True, False)]
    fewest = min(map(len, sides))
    if not 2 <= folds <= fewest:
        raise ValueError(
            f"folds is {folds}; there are {len(sides[0])} goals of jailbreaks and {len(sides[1])} of benign prompts, "
            f"and a goal is never split: ask for 2 to {fewest} folds, or give more prompts"
            if fewest > 1
            else f"one side has a single goal ({len(sides[0])} of jailbreaks, {len(sides[1])} of benign prompts): "
            "cross-validation needs at least two on either side"
        )
    folder = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    return list(folder.split(labels, labels, goals))


def _trace_features(
    states: Float[Tensor, "prompt pos d_model"],
    splits: Sequence[tuple[Any, Any]],
    rank: int,
    transductive: bool,
    seed: int,
) -> tuple[list[_Fold], float]:
    """Every fold's rows of C, and the mean fit of its factors."""
    folds, fits = [], []
    for train, test in splits:
        factors = fit_factors(states if transductive else states[train], rank, seed=seed)
        features = [project(states[some], factors).numpy() for some in (train, test)]
        folds.append(_Fold(train, test, *features))
        fits.append(factors.fit)
    return folds, sum(fits) / len(fits)


def _length_features(traces: Traces, splits: Sequence[tuple[Any, Any]]) -> list[_Fold]:
    lengths = traces.lengths[:, None].double().numpy()
    return [_Fold(train, test, lengths[train], lengths[test]) for train, test in splits]


def _word_features(traces: Traces, splits: Sequence[tuple[Any, Any]]) -> list[_Fold]:
    from sklearn.feature_extraction.text import CountVectorizer

    folds = []
    for train, test in splits:
        counter = CountVectorizer(token_pattern=r"\w+").fit([traces.texts[n] for n in train])
        counts = [
            counter.transform([traces.texts[n] for n in some]).toarray() for some in (train, test)
        ]
        folds.append(_Fold(train, test, *counts))
    return folds


def _predictions(folds: Sequence[_Fold], labels: Any, name: str, seed: int) -> Any:
    """The test predictions of all folds, in the order of the prompts."""
    predicted = labels.copy()
    for fold in folds:
        known = labels[fold.train]
        if known.all() or not known.any():  # a permutation can leave a fold one label only
            predicted[fold.test] = known[0]
        else:
            fitted = _classifier(name, seed).fit(fold.train_features, known)
            predicted[fold.test] = fitted.predict(fold.test_features)
    return predicted


def _classifier(name: str, seed: int) -> Any:
    """A classifier behind a standardisation, which takes away the factors' scale."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    chosen = {
        "random_forest": lambda: RandomForestClassifier(random_state=seed),
        "svm_rbf": lambda: SVC(kernel="rbf"),
        "svm_linear": lambda: SVC(kernel="linear"),
        "logistic_regression": lambda: LogisticRegression(max_iter=1000),
    }[name]()
    return make_pipeline(StandardScaler(), chosen)


def _f1(predicted: Any, labels: Any) -> tuple[float, float, float]:
    """F1 of the jailbreak class and its interval: F1 = 2J / (1 + J) grows with J = TP / (TP + FP + FN)."""
    hits, trials = int((predicted & labels).sum()), int((predicted | labels).sum())
    shares = (hits / trials, *wilson_interval(hits, trials))
    first, low, high = (2 * share / (1 + share) for share in shares)
    return first, low, high


# Detection -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class JailbreakDetector:
    """A detector at each of some layers, fitted on all prompts of its traces."""

    layers: tuple[int, ...]
    representation: str
    factors: tuple[Factors, ...]
    """One a layer."""
    classifiers: tuple[Any, ...]
    """One a layer, of scikit-learn."""
    length: int
    align: str
    template: str

    def probabilities(
        self, model: Any, prompts: Sequence[str], *, progress: bool | None = None
    ) -> Float[Tensor, "prompt layer"]:
        """How likely each prompt is a jailbreak, by each layer.

        Raises ValueError for prompts or a model that `capture_traces` would refuse, or a model of another width.
        """
        model = load_model(model)
        _checked_layers(model, self.layers)
        if model.d_model != len(self.factors[0].width):
            raise ValueError(
                f"{model.name} has width {model.d_model}, and this detector was fitted on a model of width "
                f"{len(self.factors[0].width)}: fit one on this model"
            )
        batch = tokenize(prompts, model.tokenizer, self.template, max_length=model.context)
        kept = _Kept(self.layers, (self.representation,), self.length, self.align)
        with torch.inference_mode():
            states = _capture(model, batch, kept, progress)[0]
        columns = [
            classifier.predict_proba(project(states[n], factors).numpy())[:, 1]
            for n, (factors, classifier) in enumerate(
                zip(self.factors, self.classifiers, strict=True)
            )
        ]
        return torch.stack([torch.as_tensor(column) for column in columns], 1).float()

    def bypass(self, model: Any, prompt: str, *, threshold: float = 0.5) -> BypassLayers | None:
        """The prompt's susceptible layers left out: those that give more than `threshold`; None if there are none."""
        likely = self.probabilities(model, [prompt], progress=False)[0] > threshold
        chosen = tuple(layer for layer, yes in zip(self.layers, likely, strict=True) if yes)
        return BypassLayers(chosen) if chosen else None


def fit_detector(
    traces: Traces,
    *,
    representation: str = "attn_out",
    rank: int = 16,
    classifier: str = "random_forest",
    seed: int = 0,
) -> JailbreakDetector:
    """Fit a detector at every layer of the traces, to be used on prompts that are not among them.

    `score_detectors` says how good it is. `classifier` is one that gives probabilities.

    Raises ValueError for a representation that was not captured or a classifier without probabilities, ImportError
    without the extra `traces`.
    """
    _tensorly()
    if representation not in traces.representations:
        raise ValueError(
            f"representation is {representation!r}; these traces hold {', '.join(traces.representations)}"
        )
    if classifier not in ("random_forest", "logistic_regression"):
        raise ValueError(
            f'classifier is {classifier!r}; "random_forest" and "logistic_regression" give probabilities'
        )
    states = traces.states[traces.representations.index(representation)]
    factors = tuple(fit_factors(layer, rank, seed=seed) for layer in states)
    fitted = tuple(
        _classifier(classifier, seed).fit(
            project(layer, shared).numpy(), traces.is_jailbreak.numpy()
        )
        for layer, shared in zip(states, factors, strict=True)
    )
    return JailbreakDetector(
        traces.layers,
        representation,
        factors,
        fitted,
        states.shape[2],
        traces.align,
        traces.template,
    )


def _hidden(progress: bool | None) -> bool | None:
    """What tqdm calls disable: None hides the bar where there is no terminal."""
    return None if progress is None else not progress
