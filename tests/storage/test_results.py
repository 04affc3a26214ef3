"""Is every result that is saved a result that is loaded, field by field?"""

import dataclasses
import inspect
import json
import math
import typing

import pandas
import pytest
import torch

import safetyheads
from safetyheads import (
    Behaviour,
    Decoding,
    Definition,
    Grid,
    HeadGroup,
    HeadScores,
    PromptSet,
    Ranking,
    RefusalCurve,
    Resampling,
    Sae,
    ScalingContribution,
    Traces,
    Transfer,
    ZeroAblation,
    attention_divergence,
    attention_maps,
    capture_attention,
    capture_traces,
    compare_activations,
    compare_definitions,
    heads_along,
    hidden_magnitudes,
    measure_behaviour,
    measure_utility,
    null_band,
    plan,
    rank_safety_heads,
    refusal_border,
    refusal_direction,
    refusal_spectrum,
    refusal_under_ablation,
    score_heads,
    search_heads,
    select_direction,
    slice_regions,
    specificity,
    stable_regions,
    trace_sensitivity,
    transfer_matrix,
)
from safetyheads.engine.execution import Execution
from safetyheads.evidence.carriers import find_carriers
from safetyheads.heads import Audit
from safetyheads.metrics import GeneralizedShips, Ships
from safetyheads.probes.backups import find_backups
from safetyheads.probes.behaviour.utility import Question
from safetyheads.probes.groups import GroupSearch
from safetyheads.probes.interchange import score_interchange
from safetyheads.ranking.study import Study
from safetyheads.saes.autoencoder import TopK
from tests.storage.alike import differences
from tests.zoo import RAGGED, opened, sentence

QUIET = Execution(progress=False)
QUESTIONS = [Question(sentence(20, 21), (sentence(30, 31), sentence(30, 32, 33)))]
BOTH = PromptSet("both", tuple(RAGGED), tuple(sentence(20, 21, n) for n in (30, 31, 32)))
PAIRED = dataclasses.replace(BOTH, paired=True)
FIVE = PromptSet(
    "five", *(tuple(sentence(n, m) for m in range(40, 45)) for n in (20, 30)), paired=True
)
OTHER = PromptSet("other", (sentence(70, 71, 72), sentence(73, 71)), (sentence(74, 71, 75),))
TWO = (RAGGED[:2], [RAGGED[2], RAGGED[0]])
BLANK = Grid(length=9, short="blank", log=10)
SAE = Sae(
    torch.eye(24, 30),
    torch.zeros(30),
    torch.eye(30, 24),
    torch.zeros(24),
    TopK(2),
    layer=1,
    frequencies=torch.linspace(0.1, 0.2, 30),
)
NO_RESULT = {
    "HookedModel": "a model; its weights have a format of their own",
    "Head": "a place, which its name says",
    "PromptSet": "what is asked, and kept as a file of prompts",
    "TokenBatch": "made anew from the prompts by the tokenizer",
    "Export": "says what was written; the folder is the result",
    "Planted": "a model and prompts, made anew from its seed",
    "JailbreakDetector": "holds classifiers of scikit-learn, which only a pickle keeps, and a pickle runs code: fit it "
    "again from saved Traces",
    "Agreement": "made in a moment from saved scores",
    "ProcessMap": "says where passes run",
    "RayMap": "says where passes run",
    "Sae": "weights, which save_sae keeps in the format of SAELens",
}
"""What public functions return and no record keeps, each with its reason."""


@pytest.fixture(scope="module")
def model():
    return opened("llama", spread=0.5)


def scores(model, side="harmful", metric=None):
    ablation = ScalingContribution()
    metric = Ships() if metric is None else metric
    return score_heads(model, BOTH, ablation=ablation, metric=metric, side=side, execution=QUIET)


def screened(model):
    found = scores(model)
    exact = torch.rand(found.values.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    audit = Audit(10, 24, 12, 2, 0, 0.9, 0.8, math.nan, 3)
    return dataclasses.replace(found, exact=exact, estimates=found.values * 2, audit=audit)


def traces(model):
    goals = (["a", "b", "c"], ["a", "b"])
    return capture_traces(model, RAGGED, TWO[0], layers=[2, 0], goals=goals, progress=False)


def behaviour(model):
    options = {"decoding": Decoding(3, top_k=2, temperature=2.0), "progress": False}
    return measure_behaviour(model, BOTH, {"é": None}, keep_text=True, **options)


def curve(model):
    options = {"ablation": "zero", "sizes": (1, 2), "random_seeds": (0,), "decoding": Decoding(2)}
    heads = ["L1H1", "L3H2"]
    return refusal_under_ablation(
        model, BOTH, heads, **options, rows=4, keep_text=True, progress=False
    )


RESULTS = {
    "HeadScores": scores,
    "HeadScores, angles": lambda m: scores(m, metric=GeneralizedShips()),
    "HeadScores, screened": screened,
    "HeadGroup": lambda m: search_heads(
        m, BOTH, GroupSearch(2, samples=3, pair_heads=3), ablation=ZeroAblation(), execution=QUIET
    ),
    "AttentionCapture": lambda m: capture_attention(m, RAGGED, grid=BLANK, progress=False),
    "AttentionMaps": lambda m: attention_maps(m, *TWO, 1, grid=BLANK, heads=[2], progress=False),
    "AttentionDivergence": lambda m: attention_divergence(
        m, *TWO, layers=[1], n_permutations=9, progress=False
    ),
    "HiddenMagnitudes": lambda m: hidden_magnitudes(m, *TWO, grid=BLANK, progress=False),
    "Ranking": lambda m: rank_safety_heads(m, BOTH, execution=QUIET),
    "Ranking, harmful alone": lambda m: rank_safety_heads(
        m, RAGGED, ablations="zero", metric=GeneralizedShips(), execution=QUIET
    ),
    "Ranking, beside random weights": lambda m: rank_safety_heads(
        m, BOTH, ablations="zero", null="random_init", execution=QUIET
    ),
    "Ranking, behind a gate": lambda m: rank_safety_heads(
        m, FIVE, ablations="zero", null="gate", execution=QUIET
    ),
    "Gate": lambda m: rank_safety_heads(
        m, FIVE, ablations="zero", null="gate", execution=QUIET
    ).gates[0],
    "Behaviour": behaviour,
    "RefusalCurve": curve,
    "Traces": traces,
    "Utility": lambda m: measure_utility(m, texts=RAGGED, questions=QUESTIONS, progress=False),
    "Comparison": lambda m: compare_definitions(
        m, BOTH, [Definition("a"), Definition("b", rank=2, template="bare")], execution=QUIET
    ),
    "Spectrum": lambda m: refusal_spectrum(
        m, BOTH, components=2, resampling=Resampling(3), progress=False
    ),
    "Direction": lambda m: refusal_direction(m, BOTH, 2, progress=False),
    "Selection": lambda m: select_direction(
        m, BOTH, OTHER, layers=[2], only_expected=False, execution=QUIET
    ),
    "Transfer": lambda m: transfer_matrix(
        {"one": m},
        {"drawn": torch.arange(24.0)},
        BOTH,
        decoding=Decoding(2),
        keep_text=True,
        progress=False,
    ),
    "HeadsAlong": lambda m: heads_along(
        m,
        BOTH,
        refusal_direction(m, BOTH, 2, progress=False),
        count=1,
        run_causally=1,
        scores={"ships": scores(m)},
        execution=QUIET,
    ),
    "Sensitivity": lambda m: trace_sensitivity(m, RAGGED, steps=3, progress=False),
    "StableRegions": lambda m: stable_regions(m, RAGGED, steps=3, progress=False),
    "RefusalBorder": lambda m: refusal_border(
        m, dataclasses.replace(BOTH, paired=True), 2, steps=3, progress=False
    ),
    "RegionSlice": lambda m: slice_regions(m, RAGGED, points=3, progress=False),
    "SyntheticComparison": lambda m: compare_activations(
        m, RAGGED, SAE, steps=3, read="pre_norm", progress=False
    ),
    "Plan": lambda m: plan(Study(m, BOTH)),
    "Interchange": lambda m: score_interchange(m, PAIRED, execution=QUIET),
    "Backups": lambda m: find_backups(m, BOTH, ["L1H1"], execution=QUIET),
    "Carriers": lambda m: find_carriers(
        [
            score_heads(m, BOTH, ablation=a, metric="refusal_shift", execution=QUIET)
            for a in ("zero", "mean")
        ]
    ),
    "Specificity": lambda m: specificity(scores(m), scores(m, "harmless"), n_permutations=99),
    "NullBand": lambda m: null_band(
        specificity(scores(m), scores(m, "harmless"), n_permutations=99), null="layer"
    ),
}


@pytest.fixture(scope="module", params=list(RESULTS))
def result(request, model):
    made = RESULTS[request.param](model)
    assert type(made).__name__ == request.param.partition(",")[0]
    return made


def test_every_result_saved_is_a_result_loaded_field_by_field(result, tmp_path):
    options = {"texts": True} if "texts" in inspect.signature(result.save).parameters else {}
    folder = result.save(tmp_path / "new", **options)
    again = type(result).load(folder)
    assert differences(result, again) == []
    kinds = json.loads((folder / "record.json").read_text())
    again.save(tmp_path / "again", **options)
    assert json.loads((tmp_path / "again" / "record.json").read_text()) == kinds
    if hasattr(result, "to_frame"):
        pandas.testing.assert_frame_equal(result.to_frame(), again.to_frame(), check_exact=True)


def test_no_record_holds_a_prompt_or_an_answer_unless_asked_for(result, tmp_path):
    folder = result.save(tmp_path)
    answers = result.behaviour.answers if isinstance(result, RefusalCurve) else ()
    answers = result.answers if isinstance(result, Behaviour) else answers
    answers = result.behaviours["one"].answers if isinstance(result, Transfer) else answers
    texts = [*BOTH.harmful, *BOTH.harmless, *(a.text for a in answers if len(a.text) > 3)]
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not [text for text in texts if text.encode() in data], path
    if isinstance(result, Behaviour):
        assert Behaviour.load(folder).to_frame()["text"].isna().all()
        assert any(answer.text for answer in answers)


def returned():
    """The package's own classes that its public functions return, alone or within something."""
    found = set()

    def look(hint):
        if isinstance(hint, type) and hint.__module__.startswith("safetyheads"):
            found.add(hint)
        for inner in typing.get_args(hint):
            look(inner)

    for name in safetyheads.__all__:
        value = getattr(safetyheads, name)
        if inspect.isfunction(value):
            names = {"pandas": pandas, "plotly": __import__("plotly")}
            look(typing.get_type_hints(inspect.unwrap(value), localns=names).get("return"))
    return found


def test_every_result_can_be_saved_and_is_tried_here():
    tried = {name.partition(",")[0] for name in RESULTS}
    found = {kind.__name__: kind for kind in returned()}
    assert {"HeadScores", "Ranking", "Behaviour", "Traces", "Utility"} <= set(found)
    lacking = [
        name
        for name, kind in found.items()
        if name not in NO_RESULT and not (hasattr(kind, "save") and hasattr(kind, "load"))
    ]
    assert not lacking, f"{lacking} come out of public functions and cannot be kept"
    public = {
        name
        for name in safetyheads.__all__
        if hasattr(getattr(safetyheads, name), "save")
        and hasattr(getattr(safetyheads, name), "load")
    }
    assert public - tried - {"Study"} == set()


def test_the_order_of_arms_stays(model, tmp_path):
    made = curve(model)
    assert list(RefusalCurve.load(made.save(tmp_path)).groups) == list(made.groups)


def test_a_result_of_another_kind_is_refused(model, tmp_path):
    folder = scores(model).save(tmp_path)
    with pytest.raises(ValueError, match="of kind head_scores, and one of kind head_group is read"):
        HeadGroup.load(folder)


def test_fields_of_another_version_are_refused(model, tmp_path):
    @dataclasses.dataclass
    class Utility:
        losses: dict[str, torch.Tensor]
        later: int = 3

    @dataclasses.dataclass
    class Traces:
        states: int

    from safetyheads.storage.results import save_result

    with pytest.raises(ValueError, match="Utility with later, which this version does not know"):
        safetyheads.Utility.load(save_result(Utility({}), tmp_path / "a"))
    with pytest.raises(ValueError, match="Traces that lacks a field"):
        safetyheads.Traces.load(save_result(Traces(3), tmp_path / "b"))


def test_traces_without_texts_score_no_bag_of_words(model, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("tensorly")
    made = traces(model)
    bare = Traces.load(made.save(tmp_path))
    assert bare.texts == ()
    assert bare.padding == made.padding
    assert repr(bare) == repr(made)
    with pytest.raises(ValueError, match="saved without their prompts' texts"):
        safetyheads.score_detectors(bare, folds=2, rank=1, progress=False)


# Folders of 0.1 and 0.2 -----------------------------------------------------------------------------------------------


def save_as_before(result, folder, stem):
    """As `HeadScores`, `HeadGroup` and `AttentionMaps` wrote themselves before there were records."""
    import hashlib

    from safetensors.torch import save

    folder.mkdir(parents=True)
    values = vars(result)
    rest = {n: v for n, v in values.items() if not isinstance(v, torch.Tensor)}
    if stem == "scores":
        optional = ("per_prompt", "readings", "exact", "estimates", "audit")
        rest = {n: v for n, v in rest.items() if n not in optional or v is not None}
        if "audit" in rest:
            rest["audit"] = dataclasses.asdict(rest["audit"])
    text = (json.dumps(rest, indent=2, sort_keys=True) + "\n").encode()
    tensors = {n: v.contiguous() for n, v in values.items() if isinstance(v, torch.Tensor)}
    digest = {"manifest_sha256": hashlib.sha256(text).hexdigest()} if stem == "scores" else None
    (folder / f"{stem}.safetensors").write_bytes(save(tensors, digest))
    (folder / "manifest.json").write_bytes(text)
    return folder


OLD = {
    "HeadScores": "scores",
    "HeadScores, angles": "scores",
    "HeadScores, screened": "scores",
    "HeadGroup": "group",
    "AttentionMaps": "maps",
}


@pytest.mark.parametrize("name", OLD)
def test_folders_of_older_versions_are_read(model, tmp_path, name):
    made = RESULTS[name](model)
    folder = save_as_before(made, tmp_path / "old", OLD[name])
    assert differences(made, type(made).load(folder)) == []
    (folder / f"{OLD[name]}.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        type(made).load(folder)
    (folder / f"{OLD[name]}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{OLD[name]}\.safetensors is not there"):
        type(made).load(folder)


def test_scores_of_one_old_save_beside_the_manifest_of_another_are_noticed(model, tmp_path):
    folder = save_as_before(scores(model), tmp_path / "old", "scores")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "unit": "deg"}))
    with pytest.raises(ValueError, match=r"of one save and manifest\.json of another"):
        HeadScores.load(folder)


@pytest.mark.parametrize("name", ["Ranking", "Ranking, harmful alone"])
def test_rankings_of_older_versions_are_read(model, tmp_path, name):
    made = RESULTS[name](model)
    (tmp_path / "manifest.json").write_text(json.dumps(made.manifest))
    for side in ("harmful", "harmless"):
        for some in getattr(made, side):
            if some is not None:
                save_as_before(some, tmp_path / "heads" / f"{some.ablation}-{side}", "scores")
    assert differences(made, Ranking.load(tmp_path)) == []
    (tmp_path / "manifest.json").write_text(json.dumps({**made.manifest, "random": {}}))
    with pytest.raises(ValueError, match="did not keep the scores of the random copy"):
        Ranking.load(tmp_path)


def test_an_empty_folder_is_no_result(result, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"record\.json is not there"):
        type(result).load(tmp_path)
