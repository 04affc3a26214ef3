"""Does `safetyheads spectrum` decompose what was typed?"""

from safetyheads.cli.main import main
from safetyheads.probes.directions.spectrum import Spectrum
from tests import zoo


def test_spectrum_writes_a_record_a_table_and_figures(tmp_path, capsys):
    model, out = tmp_path / "tiny", tmp_path / "out"
    zoo.random_model(zoo.CONFIGS["llama"]()).save_pretrained(model)
    zoo.tokenizer().save_pretrained(model)
    rows = [
        f"{zoo.sentence(10 + n, 11, 12, 40)},{zoo.sentence(50 + n, 60, 61, 62, 40)}"
        for n in range(5)
    ]
    prompts = tmp_path / "pairs.csv"
    prompts.write_text("\n".join(["harmful,harmless", *rows]) + "\n")
    typed = f"spectrum --model {model} --prompts {prompts} --layer 1 --layer 3 --components 2 --no-random --out {out}"
    assert main(typed.split()) == 0
    made = Spectrum.load(out)
    assert (made.layers, made.n_pairs, made.random) == ((1, 3), 5, None)
    assert {"spectrum.csv", "spectrum.html", "planes.html", "cosines.html"} <= {
        path.name for path in out.iterdir()
    }
    printed = capsys.readouterr().out
    assert "Component 1 of what enters layer 3" in printed
    assert main([*typed.split(), "--limit", "2"]) == 2
    assert "2 components were asked for and there are 2 pairs" in capsys.readouterr().err
