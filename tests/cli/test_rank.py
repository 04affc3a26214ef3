"""Does the command line pass on what was typed, and say in one line what was wrong with it?"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch

import safetyheads.prompts
from safetyheads.cli.main import main, parse_arguments
from safetyheads.cli.options import DEMO_MODEL, METRICS, PROMPT_SETS, SMALL_MODEL
from safetyheads.cli.rank import DEMO_LIMIT
from safetyheads.cli.shown import NEGATIVE_CONTROL, SIGN, format_table, q_notes, report
from safetyheads.evidence.specificity import least_p
from safetyheads.interventions.ablations import ABLATIONS, ResampleAblation
from safetyheads.metrics import METRICS as KNOWN_METRICS
from safetyheads.ranking.study import Study
from safetyheads.screening.race import Raced
from safetyheads.stats import permutation_p


@dataclass
class FakeRanking:
    """What the command line needs of a Ranking, with two heads under each ablation."""

    ablations: tuple[str, ...]
    save_error: BaseException | None
    harmful: tuple[Any, ...] = ()
    specificity: tuple[Any, ...] = ()
    gates: tuple[Any, ...] = ()
    carriers_note: str | None = None

    def top(self, k: int) -> pandas.DataFrame:
        same = {"dataset": "mine", "model": "m", "metric": "ships", "unit": "nat"}
        rows = [
            {"ablation": name, "rank": rank, "label": f"L{rank}H0"}
            | {"score": 1.0 / rank, "harmless_score": 0.25 / rank}
            | same
            for name in self.ablations
            for rank in (1, 2)
        ]
        return pandas.DataFrame(rows)

    def save(self, folder: Path, *, note: str | None) -> None:
        if self.save_error:
            raise self.save_error
        (folder / "scatter.html").write_text(f"figure: {note}")


UNSAID = {"audit": None, "race": None, "largest_first": True}


@dataclass
class Calls:
    """What the faked API was called with, and what it is to raise instead of an answer."""

    load_model: dict[str, Any] = field(default_factory=dict)
    load_prompts: dict[str, Any] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None
    save_error: BaseException | None = None


def asked(study, execution):
    """The fields of a study and how it is to run."""
    fields = {**vars(study), **vars(execution)}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.fixture
def calls(monkeypatch, tmp_path):
    calls = Calls()

    def load_model(x, tokenizer=None, device="cpu", dtype=None):
        calls.load_model = {"x": x, "device": device, "dtype": dtype}
        return "the model"

    def load_prompts(x, *, column=None, path=None):
        calls.load_prompts = {"x": x, "column": column, "path": path}
        return "the prompts"

    def rank(study, execution):
        calls.rank = asked(study, execution)
        if calls.error:
            raise calls.error
        execution.store.mkdir(parents=True)
        return FakeRanking(tuple(type(a).__name__ for a in study.ablations), calls.save_error)

    monkeypatch.setattr("safetyheads.models.opening.load_model", load_model)
    monkeypatch.setattr("safetyheads.prompts.load_prompts", load_prompts)
    monkeypatch.setattr("safetyheads.ranking.ranking.rank", rank)
    monkeypatch.chdir(tmp_path)
    return calls


def test_rank_passes_on_what_was_typed(calls, capsys):

    typed = (
        "rank --model my/model --prompts q.csv --column ask --prompts-path data --ablation zero"
        " --ablation scaling_contribution --epsilon 0.5 --metric generalized_ships --space right"
        " --rank 3 --template Q:{q} --top 2 --limit 5 --batch 7 --device cuda:1 --dtype bfloat16"
    )
    assert main([*typed.split(), "--out", "a/b"]) == 0
    assert calls.load_model == {"x": "my/model", "device": "cuda:1", "dtype": torch.bfloat16}
    assert calls.load_prompts == {"x": "q.csv", "column": "ask", "path": "data"}
    zero, scaling = calls.rank.pop("ablations")
    metric = calls.rank.pop("metric")
    assert (type(zero).__name__, scaling.epsilon) == ("ZeroAblation", 0.5)
    assert (type(metric).__name__, metric.space, metric.rank) == ("GeneralizedShips", "right", 3)
    assert calls.rank == {
        "model": "the model",
        "dataset": "the prompts",
        "top_k": 2,
        "template": "Q:{q}",
        "limit": 5,
        "rows": 7,
        "upper_blocks": False,
        "store": Path("a/b/unfinished"),
        "null": "labels",
    }
    assert not Path("a/b/unfinished").exists()
    printed = capsys.readouterr().out
    assert "Top 2 heads of m on mine: ships, ZeroAblation" in printed
    assert str(Path("a/b/scatter.html").absolute()) in printed
    assert DEMO_MODEL not in printed


def test_the_table_has_harmful_beside_harmless(calls, capsys):
    main(["rank"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["rank", "head", "harmful", "[nat]", "harmless", "[nat]"]
    assert lines[2:4] == [["1", "L1H0", "1", "0.25"], ["2", "L2H0", "0.5", "0.125"]]


def test_specificity_and_q_stand_beside_the_scores():
    row = {"dataset": "mine", "model": "m", "ablation": "zero", "metric": "ships", "unit": "nat"}
    row |= {"rank": 1, "label": "L3H7", "score": 0.5, "harmless_score": 0.2}
    table = pandas.DataFrame([row | {"specificity": 0.3, "q_value": 0.0125}])
    lines = [line.split() for line in format_table(table).splitlines()]
    assert lines[1][-3:] == ["specificity", "[nat]", "q"]
    assert lines[2] == ["1", "L3H7", "0.5", "0.2", "0.3", "0.0125"]
    untested = format_table(table.assign(specificity=float("nan")))
    assert "specificity" not in untested


def test_it_is_said_where_no_q_can_be_small():
    few, many, sets = (
        SimpleNamespace(p=torch.full((2, 168), 0.5), n_prompts=(n, n), paired=paired)
        for n, paired in ((6, True), (14, True), (4, False))
    )
    (note,) = q_notes(SimpleNamespace(specificity=(few, many, None)))
    assert note == (
        "q: with 6 pairs no p is below 0.031, so q reaches 0.05 only if 210 of the 336 heads have that p; "
        "from 14 pairs on one head can alone"
    )
    (note,) = q_notes(SimpleNamespace(specificity=(sets,)))
    assert "4 and 4 prompts no p is below 0.029" in note
    for n, m in ((5, None), (4, 3), (3, 3)):  # the least p is what the most extreme values get
        first, second = torch.arange(1.0, n + 1), torch.arange(1.0, (m or 0) + 1)
        values = (first,) if m is None else (100 + first, second)
        assert permutation_p(*values).item() == pytest.approx(least_p(n, m))


def test_a_refusal_shifts_sign_is_explained_in_print_and_figure(calls, tmp_path, capsys):
    ranking = FakeRanking(("Zero",), None, (SimpleNamespace(metric="refusal_shift", **UNSAID),))
    report(ranking, 2, tmp_path, control=True)
    assert SIGN in capsys.readouterr().out
    assert (tmp_path / "scatter.html").read_text() == f"figure: {SIGN} {NEGATIVE_CONTROL}"


def test_an_error_names_options(calls, capsys):
    calls.error = ValueError('top_k is 900; this model has 12 heads: ask for method="raced"')
    assert main(["rank"]) == 2
    assert '--top is 900; this model has 12 heads: ask for --method "raced"' in (
        capsys.readouterr().err
    )


def test_the_demo_races_a_model_that_refuses_on_the_builtin_prompts(calls, capsys):
    assert main(["demo"]) == 0
    assert calls.load_model == {"x": DEMO_MODEL, "device": "cpu", "dtype": None}
    assert calls.load_prompts["x"] == "builtin"
    assert (calls.rank["limit"], calls.rank["method"]) == (DEMO_LIMIT, Raced(caution=1.4))
    names = [type(ablation).__name__ for ablation in calls.rank["ablations"]]
    assert names == ["UndifferentiatedAttention", "ScalingContribution"]
    printed = capsys.readouterr().out
    assert str(Path("safetyheads-demo/scatter.html").absolute()) in printed
    assert "negative control" not in printed


def test_a_model_that_hardly_refuses_is_said_to_be_a_negative_control(calls, capsys):
    assert main(["rank", "--model", SMALL_MODEL]) == 0
    printed = capsys.readouterr().out
    assert "hardly ever refuses" in printed
    assert "hardly ever refuses" in Path("safetyheads-out/scatter.html").read_text()
    assert f"rank --model {DEMO_MODEL}" in printed


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("rank --top 0", "came '0', expected a whole number of at least 1"),
        ("rank --ablation zeros", "invalid choice: 'zeros'"),
        ("rank --ablation zero --epsilon 0.1", "--epsilon is for undifferentiated_attention and"),
        ("rank --epsilon nan", "came 'nan', expected a number of at least 0"),
        ("search --epsilon=-1", "came '-1', expected a number of at least 0"),
        ("search --epsilon 1 --ablation zero", "--epsilon is for undifferentiated_attention and"),
        ("search --space left", "--space and --rank are for --metric generalized_ships"),
        ("rank --study s.toml --top 3 --prompts-path d", "leave out --prompts-path, --top"),
        ("rank --seed 1", "--seed is for --ablation resample"),
        ("rank --rank 2", "--space and --rank are for --metric generalized_ships"),
        ("rank --template nonsense", "came 'nonsense', expected \"chat\""),
        ("rank --method raced --metric generalized_ships", "--method raced needs a metric of"),
        ("rank --caution 1.4", "--caution is for --method raced"),
        ("", "arguments are required: COMMAND"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(calls, capsys, typed, message):
    with pytest.raises(SystemExit) as stop:
        main(typed.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not calls.load_model


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ConnectionError, PermissionError])
def test_an_error_is_one_line_without_a_traceback(calls, capsys, error):
    calls.error = error("no such thing.\n  Near: this thing")
    assert main(["rank"]) == 2
    assert capsys.readouterr().err == "safetyheads: error: no such thing. Near: this thing\n"


def test_another_error_keeps_its_traceback(calls):
    calls.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["rank"])


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_unwritable_folder_is_found_before_the_model_is_loaded(calls, capsys, out):
    Path("file").write_text("kept")
    assert main(["rank", "--out", out]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"safetyheads: error: --out {out}: cannot write in ")
    assert message.endswith("name another folder\n")
    assert not calls.load_model
    assert Path("file").read_text() == "kept"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_found_before_the_model_is_loaded(calls, capsys):
    Path("shut").mkdir(mode=0o500)
    assert main(["rank", "--out", "shut/new"]) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert not calls.load_model


def test_checking_the_folder_leaves_nothing_behind(calls):
    calls.error = ValueError("later")
    main(["rank", "--out", "new/folder"])
    assert not Path("new").exists()


def test_ctrl_c_before_the_first_layer_says_that_there_is_no_result(calls, capsys):
    calls.error = KeyboardInterrupt()
    assert main(["rank"]) == 130
    message = capsys.readouterr().err.strip()
    assert message == (
        "safetyheads: interrupted; safetyheads-out holds no complete result of this run"
    )


def test_ctrl_c_later_says_how_to_go_on(calls, capsys):
    calls.save_error = KeyboardInterrupt()
    assert main(["rank"]) == 130
    printed = capsys.readouterr()
    assert printed.err.strip().endswith(
        "in safetyheads-out/unfinished: the same command goes on from there"
    )
    assert Path("safetyheads-out/unfinished").is_dir()


def test_scores_that_cannot_be_saved_are_shown_and_kept(calls, capsys):
    calls.save_error = OSError("disk full")
    assert main(["rank"]) == 2
    printed = capsys.readouterr()
    assert "L1H0" in printed.out
    assert printed.err == "safetyheads: error: disk full\n"
    assert Path("safetyheads-out/unfinished").is_dir()


def test_help_and_version_come_without_torch():
    code = (
        "import sys; from safetyheads.cli.main import main\n"
        "try: main([sys.argv[1]])\n"
        "finally: print('torch' in sys.modules)"
    )
    for option, expected in (("--version", "safetyheads 0.2.0"), ("--help", "rank")):
        child = subprocess.run(
            [sys.executable, "-c", code, option], capture_output=True, check=True, text=True
        )
        assert expected in child.stdout
        assert child.stdout.endswith("False\n")


@pytest.fixture(scope="module")
def tiny_chat_model(tmp_path_factory) -> SimpleNamespace:
    """A folder with a random Llama of 2 layers and 6 heads and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=4,
        hidden_size=24, intermediate_size=40, vocab_size=len(vocabulary), bos_token_id=0,
        eos_token_id=1, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return SimpleNamespace(folder=folder, heads=2 * 6)


def test_rank_from_end_to_end(tiny_chat_model, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = ["rank", "--model", str(tiny_chat_model.folder), "--limit", "2", "--top", "3"]
    arguments += ["--metric", "ships"]
    assert main([*arguments, "--out", str(out)]) == 0

    scores = pandas.read_csv(out / "scores.csv")
    assert set(scores["ablation"]) == {"undifferentiated_attention", "scaling_contribution"}
    assert len(scores) == 2 * tiny_chat_model.heads
    assert (scores["score"] > 0).all()
    assert scores["harmless_score"].notna().all()
    for _, rows in scores.groupby("ablation"):
        by_score = rows.sort_values("score", ascending=False)
        assert list(by_score["rank"]) == list(range(1, tiny_chat_model.heads + 1))
    assert json.loads((out / "manifest.json").read_text())
    html = (out / "scatter.html").read_text()
    assert len(html) > 1_000_000, "plotly is to be inside the file"
    assert "cdn.plot.ly/plotly" not in html.split("<body>")[0]

    printed = capsys.readouterr().out
    best = scores[scores["rank"] == 1]["label"]
    assert all(label in printed for label in best)
    assert str(out / "scatter.html") in printed


def test_a_study_of_a_file_is_ranked_as_it_says(tiny_chat_model, tmp_path, capsys):
    questions = tmp_path / "questions.txt"
    questions.write_text("How do I bake bread?\nHow do I sharpen a knife?\n")
    study = Study(
        str(tiny_chat_model.folder), str(questions), ["zero", ResampleAblation(seed=3)], "ships",
        template="bare", top_k=2,
    )  # fmt: skip
    file = study.save(tmp_path / "study.toml")
    out = tmp_path / "by-study"
    assert main(["rank", "--study", str(file), "--out", str(out)]) == 0
    typed = f"rank --model {tiny_chat_model.folder} --prompts {questions} --metric ships --top 2"
    typed += (
        f" --ablation zero --ablation resample --seed 3 --template bare --out {tmp_path / 'typed'}"
    )
    assert main(typed.split()) == 0
    tables = [pandas.read_csv(folder / "scores.csv") for folder in (out, tmp_path / "typed")]
    pandas.testing.assert_frame_equal(*tables)
    assert set(tables[0]["ablation"]) == {"zero", "resample"}
    assert capsys.readouterr().out.count("Top 2 heads") == 4


def test_a_study_that_is_none_is_one_line(tmp_path, capsys):
    (tmp_path / "study.toml").write_text('model = "m"\ndataset = "builtin"\nlimits = 3\n')
    assert main(["rank", "--study", str(tmp_path / "study.toml"), "--out", str(tmp_path)]) == 2
    assert "did you mean 'limit'" in capsys.readouterr().err


def test_harmless_prompts_beside_are_passed_on(calls, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "safetyheads.prompts.load_prompts",
        lambda x, **more: given.update(x=x, **more) or "the prompts",
    )
    assert (
        main(
            [
                "rank",
                "--prompts",
                "a.txt",
                "--harmless",
                "b.txt",
                "--label",
                "none",
                "--encoding",
                "cp1252",
            ]
        )
        == 0
    )
    beside = {"harmless": "b.txt", "label": False, "encoding": "cp1252"}
    assert given == {"x": "a.txt"} | beside


@pytest.mark.parametrize(
    ("told", "advice", "followed"),
    [
        ("prompt,label\nHow,1\nWhat,0\n", "say --label none if every", "none"),
        ("prompt,is_safe,harmful\nHow,1,1\nWhat,0,0\n", "counts with --label", "harmful"),
    ],
)
def test_an_errors_advice_can_be_followed_there(
    calls, monkeypatch, tmp_path, capsys, told, advice, followed
):
    monkeypatch.undo()
    (tmp_path / "a.csv").write_text(told)
    typed = ["rank", "--model", str(tmp_path / "no-model"), "--prompts", str(tmp_path / "a.csv")]
    typed += ["--out", str(tmp_path / "out")]
    assert main(typed) == 2
    assert advice in capsys.readouterr().err
    assert main([*typed, "--label", followed]) == 2
    assert (
        "no-model" in capsys.readouterr().err
    )  # the prompts are read: what is missing is the model


def test_help_names_what_the_library_knows(capsys):
    assert PROMPT_SETS == safetyheads.prompts.DATASETS
    assert set(METRICS) == set(KNOWN_METRICS)
    assert {"zero", "mean", "resample", "scaling_contribution"} <= set(ABLATIONS)
    for command in ("rank", "search"):
        with pytest.raises(SystemExit):
            parse_arguments([command, "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert all(name in printed for name in PROMPT_SETS)


@pytest.fixture
def parts(calls, monkeypatch):
    """What the two functions of `ranking.merging` were called with, in place of running."""
    seen: dict[str, Any] = {}

    def rank_layers(study, layers, folder, execution):
        seen.update(layers=layers, folder=folder, **asked(study, execution))
        return folder

    def merge_rankings(folders, *, top_k):
        seen.update(folders=folders, top_k=top_k)
        ranking = FakeRanking(("Zero",), None)
        ranking.model, ranking.top_k = "m", 2
        return ranking

    monkeypatch.setattr("safetyheads.ranking.merging.rank_layers", rank_layers)
    monkeypatch.setattr("safetyheads.ranking.merging.merge_rankings", merge_rankings)
    return seen


def test_some_layers_are_a_part_and_no_ranking(calls, parts, capsys):
    assert (
        main(["rank", "--layers", "5,0-2,1", "--limit", "3", "--out", "job", "--ablation", "zero"])
        == 0
    )
    assert (parts["layers"], parts["folder"], parts["limit"]) == ([0, 1, 2, 5], Path("job"), 3)
    assert not calls.rank
    printed = capsys.readouterr().out
    assert "A part of a ranking" in printed
    assert "It has no scores yet; join all parts: safetyheads merge" in printed


def test_merge_joins_saves_and_shows(parts, capsys):
    Path("whole").mkdir()
    assert main(["merge", "a", "b", "--out", "whole"]) == 0
    assert parts == {"folders": [Path("a"), Path("b")], "top_k": None}
    assert "Top 2 heads of m on mine" in capsys.readouterr().out
    assert Path("whole/scatter.html").exists()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("rank --layers 7-0", "names no layer: write 0-7, not 7-0"),
        ("rank --layers a", "expected layers such as 0-7 or 0,3,5-7"),
        ("rank --layers 1-", "expected layers such as 0-7 or 0,3,5-7"),
        ("rank --workers 3", "--workers is for --executor process or ray"),
        ("rank --upper-blocks", "--upper-blocks is for --executor process or ray"),
        ("rank --executor threads", "invalid choice: 'threads'"),
        ("merge", "arguments are required: FOLDER"),
    ],
)
def test_parts_and_workers_that_make_no_sense_are_refused(calls, capsys, typed, message):
    with pytest.raises(SystemExit) as stop:
        main(typed.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_executor_is_made_as_typed(calls, monkeypatch, capsys):
    main(["rank", "--executor", "process", "--workers", "3", "--upper-blocks"])
    assert calls.rank["upper_blocks"]
    assert calls.rank["executor"].workers == 3
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["rank", "--executor", "ray"]) == 2
    assert "pip install 'safetyheads[ray]'" in capsys.readouterr().err
