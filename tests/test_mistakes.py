"""Does an obvious mistake in Python end in a sentence? As a user meets it: in a process where no types are checked."""

import warnings

import numpy
import pandas
import pytest

from tests.forked import call, needs_fork
from tests.zoo import CONFIGS, random_model, tokenizer

pytestmark = needs_fork

MISTAKES = {
    # A model.
    "load_model(None)": "the model is of type NoneType: give a known name",
    "load_model(7)": "the model is of type int",
    'load_model("smollm2-135m-instrct")': "Did you mean 'smollm2-135m-instruct'",
    # A study is checked where it is made.
    'Study("m", "d", ablations="zer0")': "did you mean 'zero'",
    'Study("m", "d", ablations=ZeroAblation)': "is the class ZeroAblation",
    'Study("m", "d", ablations=[])': "ablations is empty",
    'Study("m", "d", ablations=["zero", "zero"])': "one kind twice",
    'Study("m", "d", ablations=[Ships()])': "ablation is Ships()",
    'Study("m", "d", metric="shipp")': "did you mean 'ships'",
    'Study("m", "d", metric=Ships)': "write Ships()",
    'Study("m", "d", metric=ZeroAblation())': "metric is ZeroAblation()",
    'Study("m", "d", limit=10.5)': "limit is 10.5; it must be a whole number",
    'Study("m", "d", limit=0)': "limit is 0; it must be a whole number of at least 1",
    'Study("m", "d", limit=True)': "limit is True",
    'Study("m", "d", top_k="10")': "top_k is '10'; it must be a whole number",
    'Study("m", "d", method="fast")': 'must be "exact", "raced", "screened"',
    'Study("m", "d", null="shuffled")': "must be one of labels, layer, random_init, gate",
    'Study("m", "d", null="gate", method="raced")': "the gate tests every head",
    # So is an execution.
    "Execution(rows=0)": "rows is 0; a forward pass needs at least one row",
    "Execution(rows=2.5)": "rows is 2.5",
    "Execution(store=3)": "store is a int; name a folder",
    'Execution(executor="process")': "give process_map(...)",
    'Execution(progress="yes")': "progress is 'yes'",
    # Ablations.
    'UndifferentiatedAttention("0.5")': "epsilon is '0.5'; it scales the query and must be a finite",
    'UndifferentiatedAttention(float("nan"))': "epsilon is nan",
    'UndifferentiatedAttention(float("inf"))': "epsilon is inf",
    "UndifferentiatedAttention(-0.1)": "epsilon is -0.1",
    'ScalingContribution("0.5")': "epsilon is '0.5'; it scales the head's output",
    'ScalingContribution(float("nan"))': "epsilon is nan",
    'ScalingContribution(float("-inf"))': "epsilon is -inf",
    "ScalingContribution(-0.1)": "epsilon is -0.1",
    "ScalingContribution(None)": "epsilon is None",
    "ResampleAblation(seed=1.5)": "seed is 1.5; it must be a whole number",
    # Heads.
    'AblateHead("L1X1", "zero")': "does not name a head; write L3H7",
    'AblateHead("L1H1", "zeros")': "did you mean 'zero'",
    'AblateHead("L1H1", ZeroAblation)': "is the class ZeroAblation",
    "AblateHeads(7, ZeroAblation())": "heads is 7; give heads or their names in a list",
    "AblateHeads([], ZeroAblation())": "name at least one",
    # The verbs.
    'score_heads(model, ["w7 w8"], metric="ship")': "did you mean 'ships'",
    'score_heads(model, ["w7 w8"], ablation=ZeroAblation)': "is the class ZeroAblation",
    'score_heads(model, ["w7 w8"], ablation="nothing")': "Known are undifferentiated_attention",
    'score_heads(model, ["w7 w8"], side="harmfull")': "side is 'harmfull'; it must be \"harmful\" or",
    'score_heads(model, ["w7 w8"], method=Screened)': "must be",
    'score_groups(model, ["w7 w8"], ["L1H1"])': "which is one head",
    'score_groups(model, ["w7 w8"], [Head(1, 1)])': "which is one head",
    'score_groups(model, ["w7 w8"], "L1H1")': "which is one head",
    'score_groups(model, ["w7 w8"], [["L9H1"]])': "L9H1 is not in",
    'search_heads(model, ["w7 w8"], 3)': "search is 3; give GroupSearch(steps=3)",
    'score_heads(model, ["w7 w8"], template="nope")': "has no {q}",
    'score_heads(model, ["w7 w8"]).top(2.5)': "k is 2.5; ask for between 1 and 24",
    'rank_safety_heads(model, ["w7 w8"]).top("3")': "top_k is '3'",
    "score_heads(model, 3)": "prompts are of type int",
    'score_heads(model, [{"w": 1}, "w7"])': "is of type dict: expected a string",
    'measure_behaviour(model, ["w7 w8"], ["L1H1"])': "interventions is a list: give each under a name",
    # How answers are drawn, and how a map is laid out.
    "Decoding(2.5)": "max_new_tokens is 2.5; it must be a whole number of at least 1",
    'Decoding(temperature="hot")': "temperature is 'hot'",
    "Decoding(seed=None)": "seed is None; it must be a whole number",
    "Decoding(top_k=True)": "top_k is True",
    "Grid(length=10.5)": "length is 10.5; a map needs at least 2 tokens on its axes",
    'Grid(floor="low")': "floor is 'low'; it is an attention weight above 0",
    "Grid(log=[2])": "the base of the logarithm",
    'measure_behaviour(model, ["w7 w8"], sides=["benign"])': "sides has 'benign'",
    'measure_behaviour(model, ["w7 w8"], decoding=24)': "decoding is 24; give Decoding(24)",
    'attention_maps(model, ["w7 w8"] * 2, ["w7 w9"] * 2, 1, grid=64)': "grid is 64; give Grid(length=64)",
    'refusal_under_ablation(model, ["w7 w8"], ["L1H1"], ablation="zer0", sizes=[1])': "did you mean",
    'refusal_under_ablation(model, ["w7 w8"], "L1H1", ablation="zero")': "the largest size asks for 5",
    'measure_behaviour(model, ["w7 w8"], {"x": AblateHeads})': "is the class AblateHeads: write AblateHeads(...)",
    'Study("m", {"prompts": "a.txt", "labels": "x"})': "did you mean 'label'",
    'Study("m", {"harmless": "a.txt"})': "the dataset names no prompts",
    'capture_traces(model, "w7", ["w8"])': "the jailbreak prompts are one string",
}
MEANT = {
    'score_heads(model, ["w7 w8"], ablation="zero", metric="ships")': (
        'score_heads(model, ["w7 w8"], ablation=ZeroAblation(), metric=Ships())'
    ),
    'rank_safety_heads(model, ["w7 w8"], ablations=ZeroAblation()).harmful[0]': (
        'rank_safety_heads(model, ["w7 w8"], ablations=["zero"]).harmful[0]'
    ),
    'score_heads(model, ["w7 w8"], ablation="Zero", metric="SHIPS")': (
        'score_heads(model, ["w7 w8"], ablation="zero")'
    ),
    'score_heads(model, ["w7 w8"], ablation="scaling-contribution")': (
        'score_heads(model, ["w7 w8"], ablation=ScalingContribution())'
    ),
    "ScalingContribution(numpy.float32(0.5))": "ScalingContribution(0.5)",
    'AblateHeads(pandas.DataFrame({"label": ["L1H1"]}), "zero")': 'AblateHeads(["L1H1"], "zero")',
    'load_prompts(pandas.Series(["w7 w8", "w9"]))': 'load_prompts(["w7 w8", "w9"])',
    'load_prompts(w for w in ("w7 w8", "w9"))': 'load_prompts(("w7 w8", "w9"))',
    'load_prompts(pandas.DataFrame({"prompt": ["w7", "w9"], "is_safe": [False, True]})).harmless': (
        '("w9",)'
    ),
    'load_prompts({"harmful": ["w7"], "harmless": ["w9"]}).harmless': '("w9",)',
    'AblateHead("L1H1", "zero")': "AblateHead(Head(1, 1), ZeroAblation())",
    'AblateHeads(["L1H1", (0, 2)], "zero")': "AblateHeads((Head(1, 1), Head(0, 2)), ZeroAblation())",
    'AblateHeads("L1H1", "zero")': "AblateHeads((Head(1, 1),), ZeroAblation())",
    'Screened(include=["L1H1"])': "Screened(include=(Head(1, 1),))",
}


def hear(mistakes, meant):
    """What is said of each mistake, and whether what means the same gives the same."""
    import safetyheads

    warnings.simplefilter("ignore")
    names = {name: getattr(safetyheads, name) for name in safetyheads.__all__}
    model = safetyheads.load_model(random_model(CONFIGS["llama"]()), tokenizer())
    names |= {"model": model, "numpy": numpy, "pandas": pandas}
    said, same = {}, {}
    for code in mistakes:
        try:
            said[code] = f"no error: {eval(code, names)!r}"
        except ValueError as error:
            said[code] = str(error)
        except Exception as error:
            said[code] = f"{type(error).__name__}: {error}"
    for pair in meant.items():
        one, other = (eval(code, names) for code in pair)
        scores = isinstance(one, safetyheads.HeadScores)
        same[pair[0]] = bool(one.values.equal(other.values) if scores else one == other)
    return said, same


@pytest.fixture(scope="module")
def heard():
    """As a user hears it: in a process without checked shapes, which would answer first."""
    code, answer = call(hear, list(MISTAKES), MEANT)
    assert code == 0
    return answer


@pytest.mark.parametrize("code", MISTAKES)
def test_a_mistake_is_answered_by_a_sentence(heard, code):
    said = heard[0][code]
    assert MISTAKES[code] in said
    assert "Error:" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("code", MEANT)
def test_what_has_one_meaning_is_accepted(heard, code):
    assert heard[1][code]
