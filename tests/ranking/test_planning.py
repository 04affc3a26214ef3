"""Does a plan say what a run then does?"""

import dataclasses
from pathlib import Path

import pytest
import torch

from safetyheads.cli.main import main
from safetyheads.engine.execution import Execution
from safetyheads.engine.kernels import Padded
from safetyheads.interventions.ablations import UndifferentiatedAttention
from safetyheads.prompts import PromptSet, tokenize
from safetyheads.ranking import planning
from safetyheads.ranking.planning import plan, say_cost
from safetyheads.ranking.ranking import rank_safety_heads
from safetyheads.ranking.study import Study
from safetyheads.screening.audit import Screened
from tests.zoo import CONFIGS, RAGGED, opened, random_model, sentence, tokenizer

HARMFUL = [sentence(*range(5, 12), n, n + 1) for n in range(20, 27)]
HARMLESS = [sentence(*range(5, 12), n) for n in range(30, 34)]
PROMPTS = PromptSet(
    "mine", tuple(HARMFUL), tuple(HARMLESS), paired=False, categories=(), source="test"
)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.mark.parametrize("rows", [None, 3, 14])
def test_passes_and_tokens_are_those_of_the_run(model, monkeypatch, rows):
    planned = plan(Study(model, PROMPTS), Execution(rows=rows))
    seen, finish = [], Padded.finish

    def watch(self, some, site, variants, given):
        suffixes = len(some.prompts) * (some.ids.shape[1] - some.prefix)
        seen.append(len(variants) * (some.prefix + suffixes))
        return finish(self, some, site, variants, given)

    monkeypatch.setattr("safetyheads.engine.sweep.fastest", lambda *_: Padded("eager"))
    monkeypatch.setattr(Padded, "finish", watch)
    rank_safety_heads(
        model,
        PROMPTS,
        execution=Execution(rows=rows, progress=False),
    )
    assert planned.passes == len(seen)
    assert planned.tokens == sum(seen)
    assert (planned.heads, planned.prompts, planned.variants) == (24, 11, 2 * 24 * 11)


def test_a_plan_runs_nothing_and_keeps_nothing(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = model.logits(tokenize(HARMFUL, model.tokenizer).ids)
    planned = plan(Study(model, PROMPTS))
    assert torch.equal(model.logits(tokenize(HARMFUL, model.tokenizer).ids), before)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert planned.seconds > 0
    assert 0 < planned.peak_memory < 2**28
    assert planned.fits
    assert planned.weights == sum(p.numel() * 4 for p in model.hf.parameters())


def test_more_work_takes_more(model):
    one = plan(Study(model, PROMPTS, ablations=[UndifferentiatedAttention()]))
    two = plan(Study(model, PROMPTS))
    assert two.passes == 2 * one.passes
    assert two.tokens == 2 * one.tokens
    narrow = plan(Study(model, PROMPTS), Execution(rows=2))
    assert narrow.passes > two.passes
    assert narrow.peak_memory < two.peak_memory
    some = plan(Study(model, PROMPTS, method=Screened(share=0.2, audit=0.1, top_k=2)))
    assert some.heads < two.heads
    assert some.tokens < two.tokens


def test_what_is_too_large_names_the_rows_that_fit(model, monkeypatch):
    planned = plan(Study(model, PROMPTS), Execution(rows=32))
    least = plan(Study(model, PROMPTS), Execution(rows=4)).peak_memory
    monkeypatch.setattr(planning, "free_memory", lambda _: int(least / 0.9) + 2)
    tight = plan(Study(model, PROMPTS), Execution(rows=32))
    assert planned.fits
    assert not tight.fits
    assert tight.fitting_rows == 4
    assert "4 rows a pass fit (--batch 4)" in str(tight)
    monkeypatch.setattr(planning, "free_memory", lambda _: 1000)
    hopeless = plan(Study(model, PROMPTS), Execution(rows=32))
    assert hopeless.fitting_rows is None
    assert "not even one row" in str(hopeless)


def test_a_plan_reads_as_one(model):
    planned = dataclasses.replace(plan(Study(model, PROMPTS)), seconds=3725.4, passes=12345)
    text = str(planned)
    assert "24 heads, 11 prompts, 528 ablated prompts" in text
    assert "12,345" in text
    assert "1:02:05" in text


def test_the_command_line_plans(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "model"
    hf = random_model(CONFIGS["llama"]())
    hf.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(RAGGED))
    arguments = [
        "rank",
        "--model",
        str(folder),
        "--prompts",
        "prompts.txt",
        "--limit",
        "2",
        "--plan",
        "--method",
        "screened",
    ]
    assert main(arguments) == 0
    assert "passes" in capsys.readouterr().out
    assert not (tmp_path / "safetyheads-out").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--executor", "process"])
    assert "leave out --layers and --executor" in capsys.readouterr().err


def test_a_ranking_of_more_than_a_minute_says_what_it_takes(model, capsys, monkeypatch):
    study = Study(model, PROMPTS, ablations="zero", top_k=1)
    shown = Execution(progress=True)
    say_cost(study, study.open(), shown)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("safetyheads.ranking.planning.QUICK", 0.0)
    monkeypatch.setattr("safetyheads.ranking.planning.SAID", 0.0)
    say_cost(study, study.open(), Execution(progress=False))
    assert capsys.readouterr().err == ""
    say_cost(study, study.open(), shown)
    assert "exact: about 0:0" in capsys.readouterr().err
