"""Can a jailbreak be told by its trace in the hidden states, better than by its length or its words?

The classifiers of "Jailbreaking Leaves a Trace" (arXiv:2602.11495) on each layer's factors. At inference the layers
where a prompt looks like a jailbreak are left out.

Where this differs from the paper: the factors are fitted on the training prompts of a fold only. The paper decomposes
all prompts together, test prompts included; `transductive=True` does that, and says so in the table. Prompts that ask
for the same thing stay in the same fold. The length alone, a bag of words and shuffled labels are scored beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.activations.patterns import checked_layers
from safetyheads.activations.states import Kept, capture_states
from safetyheads.inputs import prepare
from safetyheads.interventions.layers import BypassLayers
from safetyheads.models.opening import load_model
from safetyheads.probes.traces.capture import Traces
from safetyheads.probes.traces.factors import Factors, fit_factors, project, require_extra
from safetyheads.progress import bar
from safetyheads.stats import wilson_interval

if TYPE_CHECKING:
    import numpy
    import pandas

CLASSIFIERS = ("random_forest", "svm_rbf", "svm_linear", "logistic_regression")
"""The paper's four, of scikit-learn."""
COLUMNS = (
    *("model", "features", "layer", "classifier", "f1", "low", "high", "null_f1", "null_high"),
    *("fit", "rank", "transductive", "align", "length", "padding", "jailbreaks", "benign"),
)


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

    require_extra()
    if unknown := [name for name in classifiers if name not in CLASSIFIERS] or not classifiers:
        raise ValueError(
            f"classifiers are {unknown if classifiers else 'none'}; give some of {', '.join(CLASSIFIERS)}"
        )
    labels = traces.is_jailbreak.numpy()
    splits = _splits(traces, folds, seed)
    words = _word_features(traces, splits)
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
    with bar(len(places) + 2, "detectors", "set", progress) as shown:

        def score(cut: list[_Fold], **values: Any) -> None:
            for name in classifiers:
                null = [_f1(_predictions(cut, y, name, seed), y)[0] for y in shuffled]
                f1, low, high = _f1(_predictions(cut, labels, name, seed), labels)
                found = {"classifier": name, "f1": f1, "low": low, "high": high}
                if null:
                    found |= {"null_f1": sum(null) / len(null), "null_high": max(null)}
                rows.append({**shared, **values, **found})
            shown.update()

        for n, m in places:
            cut, fit = _trace_features(traces.states[n, m], splits, rank, transductive, seed)
            place = {"features": traces.representations[n], "layer": traces.layers[m]}
            score(cut, **place, fit=fit, rank=rank)
        score(_length_features(traces, splits), features="length")
        score(words, features="bag_of_words")
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

    if not traces.texts:
        raise ValueError(
            "these traces were saved without their prompts' texts, and the bag of words is their control: save them "
            "with texts=True, or put the texts back with dataclasses.replace(traces, texts=...)"
        )
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
        checked_layers(model, self.layers)
        if model.d_model != len(self.factors[0].width):
            raise ValueError(
                f"{model.name} has width {model.d_model}, and this detector was fitted on a model of width "
                f"{len(self.factors[0].width)}: fit one on this model"
            )
        batch = prepare(model, prompts, template=self.template).batch
        kept = Kept(self.layers, (self.representation,), self.length, self.align)
        states = capture_states(model, batch, kept, progress=progress)[0]
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
    require_extra()
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
