"""Is a transfer matrix what each model says with each direction ablated, and is the rest refused before it begins?"""

import pandas
import pytest
import torch

from safetyheads.models.opening import load_model
from safetyheads.plots.directions import plot_selection, plot_transfer
from safetyheads.plots.spectrum import plot_component_cosines, plot_planes, plot_spectrum
from safetyheads.probes.behaviour.answers import measure_behaviour
from safetyheads.probes.behaviour.generation import Decoding
from safetyheads.probes.directions.direction import refusal_direction
from safetyheads.probes.directions.spectrum import Resampling, refusal_spectrum
from safetyheads.probes.directions.transfer import Transfer, subspace_overlap, transfer_matrix
from safetyheads.prompts import PromptSet
from safetyheads.stats import mcnemar_p
from tests.zoo import CONFIGS, SIZES, random_model, sentence, tokenizer

LONG = tuple(sentence(*range(10 + n, 14 + n % 3 + n), 40, 41) for n in range(6))
SHORT = tuple(sentence(50 + n, 60, 61 + n % 2, 40, 41) for n in range(6))
PROMPTS = PromptSet("made up", LONG, SHORT, paired=True)
QUIET = {"decoding": Decoding(3), "progress": False}


def by_first_word(prompts, answers):
    """A judge of words that the zoo can say."""
    numbers = [int(answer.split()[0][1:]) if answer.startswith("w") else 0 for answer in answers]
    return ["refuse" if n % 3 == 0 else "comply" if n % 3 == 1 else "deflect" for n in numbers]


@pytest.fixture(scope="module")
def models():
    config = CONFIGS["llama"]
    return {
        name: load_model(random_model(config(), seed=seed, spread=0.5), tokenizer())
        for seed, name in enumerate(("base", "sibling"))
    }


@pytest.fixture(scope="module")
def transfer(models):
    sources = {
        name: refusal_direction(model, PROMPTS, 2, progress=False) for name, model in models.items()
    }
    return sources, transfer_matrix(models, sources, PROMPTS, judge=by_first_word, **QUIET)


def test_every_cell_is_what_the_target_says_with_the_sources_direction_ablated(models, transfer):
    sources, made = transfer
    assert list(made.behaviours) == ["base", "sibling"]
    for target, model in models.items():
        for source, direction in sources.items():
            alone = measure_behaviour(
                model, PROMPTS, {"x": direction.ablated()}, judge=by_first_word, **QUIET
            )
            digests = [
                a.digest for a in made.behaviours[target].answers if a.intervention == source
            ]
            assert digests == [a.digest for a in alone.answers if a.intervention == "x"]
    table = made.to_frame()
    assert len(table) == 2 * 3 * 2 * 4
    assert table["own"].sum() == 2 * 2 * 4
    matrix = made.matrix("deflect")
    assert list(matrix.columns) == ["baseline", "base", "sibling"]
    row = table[
        (table.target == "sibling") & (table.source == "base") & (table.verdict == "deflect")
    ]
    harmful = row[row.side == "harmful"].iloc[0]
    assert matrix.loc["sibling", "base"] == harmful["rate"] == harmful["count"] / 6
    assert table.groupby(["target", "source", "side"])["rate"].sum().tolist() == pytest.approx(
        [1] * 12
    )
    with pytest.raises(ValueError, match="there is no verdict 'invalid'"):
        made.matrix("invalid")


def test_conditions_are_compared_on_the_same_prompts(transfer):
    _, made = transfer
    tests = made.tests("comply")
    assert len(tests) == 2 * 2 * 3
    said = made.behaviours["base"].verdicts()
    row = tests[(tests.target == "base") & (tests.side == "harmful")].iloc[0]
    assert (row["first"], row["second"]) == ("baseline", "base")
    a, b = (
        [v == "comply" for v in said["made up", "harmful", name]] for name in ("baseline", "base")
    )
    assert row["first_only"] == sum(x and not y for x, y in zip(a, b, strict=True))
    assert row["difference"] == pytest.approx((sum(a) - sum(b)) / 6)
    assert row["p"] == mcnemar_p(a, b)
    assert (tests["q"] >= tests["p"] - 1e-12).all()
    # 9 against 1 of 10 discordant prompts: 2 * 11 / 1024.
    assert mcnemar_p([True] * 9 + [False] + [True] * 5, [False] * 9 + [True] * 6) == pytest.approx(
        22 / 1024
    )
    with pytest.raises(ValueError, match="the same prompts"):
        mcnemar_p([True], [True, False])


def test_what_does_not_compare_is_refused_before_anything_is_asked(models, transfer, tmp_path):
    sources, _ = transfer
    narrow = {**SIZES, "hidden_size": 36}
    from transformers import LlamaConfig

    other = load_model(random_model(LlamaConfig(**narrow, head_dim=4)), tokenizer())
    with pytest.raises(ValueError, match="of another width"):
        transfer_matrix({**models, "wide": other}, sources, PROMPTS, **QUIET)
    twice = {"base": models["base"], "its twin": models["base"]}
    with pytest.raises(ValueError, match="'base' and 'its twin' have the same weights"):
        transfer_matrix(twice, sources, PROMPTS, **QUIET)
    with pytest.raises(ValueError, match=r"there are 2 targets, and the sources are none"):
        transfer_matrix(models, {}, PROMPTS, **QUIET)
    with pytest.raises(ValueError, match="none of which is 'baseline'"):
        transfer_matrix(models, {"baseline": sources["base"]}, PROMPTS, **QUIET)
    with pytest.raises(ValueError, match="source 'a' is a str; give a Direction"):
        transfer_matrix(models, {"a": "base"}, PROMPTS, **QUIET)
    hf = random_model(CONFIGS["llama"](), seed=5)
    weights = {k: v for k, v in hf.state_dict().items() if "layers.2.mlp.up_proj" not in k}
    hf.save_pretrained(tmp_path, state_dict=weights)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks 1 of the model's weights"):
        transfer_matrix({**models, "broken": tmp_path}, sources, PROMPTS, **QUIET)


def test_subspaces_of_models_are_compared_by_their_principal_angles(models):
    options = {"components": 3, "resampling": Resampling(2), "random_weights": False}
    spectra = {
        name: refusal_spectrum(model, PROMPTS, layers=[1, 2], progress=False, **options)
        for name, model in models.items()
    }
    table = subspace_overlap(spectra, 2)
    a, b = (spectra[name].directions(2)[:2].double() for name in models)
    cosines = torch.linalg.svdvals(a @ b.mT)
    assert table["cosine"].tolist() == pytest.approx(cosines.tolist(), abs=1e-6)
    assert 0.2 < table["chance"][0] < 0.6  # two planes in 24 dimensions
    same = subspace_overlap({"a": spectra["base"], "b": spectra["base"]}, 2)
    assert same["degrees"].max() < 1e-3
    with pytest.raises(ValueError, match="there is 1 spectrum"):
        subspace_overlap({"a": spectra["base"]}, 2)
    with pytest.raises(ValueError, match="rank goes from 1 to 3"):
        subspace_overlap(spectra, 2, rank=4)
    both = pandas.concat([one.to_frame().assign(model=name) for name, one in spectra.items()])
    figure = plot_spectrum(both, 2, components=3)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert len(bars) == 2 * 3
    assert list(bars[0].y) == pytest.approx(spectra["base"].explained[0, 0, 1].tolist())
    points = pandas.concat([one.points().assign(model=name) for name, one in spectra.items()])
    assert len(plot_planes(points, [1, 2]).data) == 2 * 2 * 2
    lines = plot_component_cosines(both, components=2)
    assert [len(line.y) for line in lines.data] == [2] * 4
    with pytest.raises(ValueError, match="the table has no layer 7; it has 1, 2"):
        plot_spectrum(both, 7)
    with pytest.raises(ValueError, match="the table has no version 'odd'"):
        plot_spectrum(both, 2, versions=["odd"])
    with pytest.raises(ValueError, match="layers is empty"):
        plot_planes(points, [])


def test_figures_of_rates_and_candidates_show_the_table(transfer):
    _, made = transfer
    table = made.to_frame()
    figure = plot_transfer(table, verdicts=("refuse", "comply"))
    assert len(figure.data) == 2 * 3 + 3  # and the legend's
    assert [trace.name for trace in figure.data[-3:]] == ["baseline", *made.sources]
    own = next(trace for trace in figure.data if trace.legendgroup == "sibling")
    assert [width > 0 for width in own.marker.line.width] == [False, True]
    with pytest.raises(ValueError, match="has no odd side"):
        plot_transfer(table, side="odd")
    candidates = pandas.DataFrame(
        {
            "model": "m",
            "position": [-1, -1, -2],
            "layer": [1, 2, 1],
            "bypass": [-1.0, -2.0, 0.0],
            "induce": [1.0, 2.0, 3.0],
            "kl": [0.01, 0.2, 0.03],
            "felled_by": ["", "kl", ""],
            "chosen": [True, False, False],
        }
    )
    figure = plot_selection(candidates)
    assert len(figure.data) == 3 * 3
    assert list(figure.data[1].marker.symbol) == ["circle", "circle-open"]
    with pytest.raises(ValueError, match="the table has 2 models"):
        plot_selection(candidates.assign(model=["a", "b", "b"]))


def test_a_transfer_is_kept_without_texts(transfer, tmp_path):
    _, made = transfer
    again = Transfer.load(made.save(tmp_path))
    pandas.testing.assert_frame_equal(again.to_frame(), made.to_frame())
    assert again.provenance == made.provenance
