"""Does `safetyheads maps` draw what was typed?"""

import pytest

from safetyheads.cli.main import main, parse_arguments
from safetyheads.probes.attention.maps import AttentionMaps
from tests import zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    zoo.random_model(zoo.CONFIGS["llama"]()).save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    return folder


def prompt_file(path, *texts):
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_maps_writes_figures_tables_and_tensors(folder, tmp_path, capsys):
    benign = prompt_file(tmp_path / "benign.txt", *zoo.RAGGED)
    wrapped = [zoo.sentence(70, 71, 72, 73, 74, 75, 76, n, n + 1) for n in (20, 30, 40)]
    jailbreak = prompt_file(tmp_path / "jailbreak.txt", *wrapped)
    typed = (
        f"maps --model {folder} --layer 0 --layer 2 --benign {benign} --jailbreak {jailbreak} --length 12"
        f" --log 10 --order mean_of_log --min-prompts 1 --hidden --divergence --out {tmp_path / 'out'}"
    )
    assert main(typed.split()) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        *("tiny-layer0", "tiny-layer2", "maps.html", "hidden.html"),
        *("divergence-tiny.csv", "divergence-tiny.html"),
    }
    maps = AttentionMaps.load(out / "tiny-layer2")
    assert (maps.layer, maps.log, maps.order, maps.min_prompts) == (2, 10, "mean_of_log", 1)
    assert maps.benign.shape == (12, 12)
    printed = capsys.readouterr().out
    assert "both sets reach the first 10 of 12 tokens" in printed
    assert str(out / "maps.html") in printed
    assert "w20" not in printed


def test_a_model_each_or_one_for_all(capsys):
    both = parse_arguments(["maps", "--model", "a", "--layer", "1", "--layer", "5"])
    assert both.model == ["a", "a"]
    with pytest.raises(SystemExit):
        parse_arguments(["maps", "--model", "a", "--model", "b", "--layer", "1"])
    assert "2 --model and 1 --layer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(["maps"])
    assert "--layer" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys):
    benign = prompt_file(tmp_path / "benign.txt", *zoo.RAGGED)
    typed = f"maps --model {folder} --layer 9 --benign {benign} --jailbreak {benign} --length 12"
    assert main([*typed.split(), "--out", str(tmp_path / "out")]) == 2
    assert "layer 9 is not in" in capsys.readouterr().err
