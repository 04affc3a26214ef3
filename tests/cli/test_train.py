"""What does `safetyheads train` ask for, and what does it hand on?"""

import json

import pytest

from safetyheads.cli.main import main, parse_arguments


def test_the_other_two_kinds_want_a_start(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["train", "lat"])
    assert "lat goes on from a model that was taught to refuse: --start" in capsys.readouterr().err
    assert parse_arguments(["train", "lat", "--start", "x"]).kind == "lat"


def test_what_is_asked_reaches_the_training_and_the_curve_is_shown(tmp_path, monkeypatch, capsys):
    given = {}

    def train_sibling(model, recipe, folder, **more):
        given.update(more, model=model, recipe=recipe)
        point = {"refusal": 0.9, "over_refusal": 0.1, "degenerate": 0.0, "harmless_loss": 0.5}
        adapter = folder / "adapter"
        adapter.mkdir(parents=True)
        card = {"curve": [{"step": 8.0, **point}], "step": 8}
        (adapter / "card.json").write_text(json.dumps(card))
        return adapter

    monkeypatch.setattr("safetyheads.training.siblings.train_sibling", train_sibling)
    monkeypatch.setattr("safetyheads.prompts.load_prompts", lambda name, path: (name, path))
    out = tmp_path / "out"
    asked = [
        "train",
        "ssft",
        "--advbench",
        "a.csv",
        "--steps",
        "8",
        "--seed",
        "3",
        "--out",
        str(out),
    ]
    assert main(asked) == 0
    recipe = given["recipe"]
    assert (recipe.kind, recipe.steps, recipe.seed, recipe.batch) == ("ssft", 8, 3, 12)
    assert given["advbench"] == ("advbench", "a.csv")
    assert given["start"] is None
    said = capsys.readouterr().out
    assert "   8     0.90          0.10" in said
    assert "The adapter of step 8" in said


def test_without_peft_it_says_what_to_install_before_anything_is_opened(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("safetyheads.training.siblings.find_spec", lambda name: None)
    monkeypatch.setattr("safetyheads.prompts.load_prompts", lambda name, path: name)
    assert main(["train", "ssft", "--out", str(tmp_path / "out")]) != 0
    assert "pip install 'safetyheads[training]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
