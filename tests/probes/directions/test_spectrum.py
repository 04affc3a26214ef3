"""Are the singular values, directions and bands of harmful-minus-harmless states those of a plain decomposition?"""

import numpy
import pytest
import torch

from safetyheads.models.opening import random_copy
from safetyheads.probes.directions.decomposition import (
    VERSIONS,
    Place,
    decompose,
    explained,
    gram_of_pairs,
    leading_plane,
    less_mean,
    mean_share,
    participation,
    shares,
    spread_of,
)
from safetyheads.probes.directions.sides import Sides, read_sides
from safetyheads.probes.directions.spectrum import (
    Resampling,
    Spectrum,
    refusal_spectrum,
    spectrum_of,
)
from safetyheads.prompts import PromptSet
from tests.oracles import plain
from tests.zoo import opened, sentence, tokenizer

FEW = Resampling(8)
HARMFUL = tuple(sentence(*range(10 + n, 14 + n % 3 + n), 40) for n in range(7))
HARMLESS = tuple(sentence(50 + n, 60, 61 + n % 2, 40) for n in range(7))
PROMPTS = PromptSet("made up", HARMFUL, HARMLESS, paired=True)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def zoo(request):
    return plain(request.param), opened(request.param)


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


def entering(plain, text, layer):
    """What enters a block, all positions of one prompt, by a plain pass."""
    kept = []
    ids = tokenizer()(text)["input_ids"]
    plain.run(
        ids,
        [(f"blocks.{layer}.hook_in", lambda x, hook: kept.append(x.clone()))],
    )
    return kept[0][0]


def test_the_states_are_those_of_plain_passes(zoo):
    plain, model = zoo
    sides = read_sides(model, PROMPTS, layers=[2, 1], positions=[-1, -3], progress=False)
    assert (sides.layers, sides.positions) == ((1, 2), (-3, -1))
    for layer in (1, 2):
        for position in (-1, -3):
            for got, texts in zip(sides.at(position, layer), (HARMFUL, HARMLESS), strict=True):
                expected = torch.stack([entering(plain, t, layer)[position] for t in texts])
                assert (got - expected).abs().max() < 1e-5
    means = sides.mean_differences()
    first, second = sides.at(-3, 2)
    assert torch.allclose(means[0, 1], first.double().mean(0) - second.double().mean(0))


def test_a_spectrum_is_the_plain_decomposition_of_the_differences(llama):
    model = llama
    made = refusal_spectrum(
        model, PROMPTS, components=3, resampling=FEW, random_weights=False, progress=False
    )
    assert made.layers == (1, 2, 3)
    assert made.random is None
    for layer in made.layers:
        first, second = read_sides(model, PROMPTS, layers=layer, progress=False).at(-1, layer)
        states = torch.cat([first, second]).double()
        where = 0, made.layers.index(layer)
        loud = set(states.square().mean(0).topk(2).indices.tolist())
        assert set(made.outliers[where].tolist()) == loud
        for n, version in enumerate(VERSIONS):
            d = (first - second).double()
            if "trimmed" in version:
                d[:, list(loud)] = 0
            if version.startswith("centred"):
                d = d - d.mean(0)
            u, s, v = numpy.linalg.svd(d.numpy(), full_matrices=False)
            assert numpy.allclose(made.values[n][where], s, atol=1e-4 * s[0])
            assert numpy.allclose(made.explained[n][where], (s**2 / (s**2).sum())[:3], atol=1e-5)
            for k in range(3):
                assert abs(made.right[n][where][k] @ torch.tensor(v[k]).float()) > 0.999
                assert abs(made.left[n][where][:, k] @ torch.tensor(u[:, k]).float()) > 0.999
            rebuilt = made.left[n][where] * made.values[n][where][:3] @ made.right[n][where]
            kept = (u[:, :3] * s[:3]) @ v[:3]
            assert numpy.allclose(rebuilt, kept, atol=1e-3 * s[0])
        unit = torch.nn.functional.normalize(made.mean_difference[where].double(), dim=0)
        assert torch.allclose(
            made.cosines[0][where], made.right[0][where].double() @ unit, atol=1e-6
        )
        assert (made.cosines[0][where] > -1e-6).all()
    table = made.to_frame()
    assert len(table) == 4 * 3 * 3
    row = table[(table.version == "centred") & (table.layer == 2) & (table.component == 2)].iloc[0]
    assert row.explained == pytest.approx(made.explained[1, 0, 1, 1].item())
    assert row.participation_right == pytest.approx(
        participation(made.right[1, 0, 1, 1]).item(), rel=1e-6
    )
    points = made.points()
    assert len(points) == 3 * 14
    assert points.groupby("layer")[["x", "y"]].mean().abs().max().max() < 1e-3


def test_the_copy_of_random_weights_is_decomposed_too(llama):
    model = llama
    options = {"layers": 2, "components": 2, "resampling": Resampling(2, seed=1)}
    made = refusal_spectrum(model, PROMPTS, **options, progress=False)
    copy = random_copy(model, seed=1)
    apart = refusal_spectrum(copy, PROMPTS, **options, random_weights=False, progress=False)
    assert torch.equal(made.random, apart.explained)
    assert not torch.allclose(made.random, made.explained, atol=1e-3)


def place(d, noise=0.0, offset=0.0):
    """A place whose differences are exactly d."""
    base = drawn(len(d), d.shape[1], seed=7) * noise + offset
    return Place.of((base + d).float().double(), base.float().double(), 1)


def test_known_singular_values_and_a_single_direction():
    u, _ = torch.linalg.qr(drawn(6, 2))
    v, _ = torch.linalg.qr(drawn(9, 2, seed=1))
    found = decompose((u * torch.tensor([3.0, 1.0])) @ v.mT, 2)
    assert torch.allclose(found.values[:2], torch.tensor([3.0, 1.0], dtype=torch.float64))
    gram = (u * torch.tensor([3.0, 1.0])) @ (u * torch.tensor([3.0, 1.0])).mT
    assert torch.allclose(explained(gram, 2), torch.tensor([0.9, 0.1], dtype=torch.float64))
    same = torch.ones(6, 1, dtype=torch.float64) * drawn(1, 9)
    (first, second), grams = place(same).pairs, place(same).grams()
    assert shares(grams, first, second, 2)[0, 0] == pytest.approx(1.0)
    single = decompose(same, 3)
    assert single.right[0] @ same[0] / same[0].norm() == pytest.approx(1.0)
    assert not single.right[1:].any()
    assert not single.left[:, 1:].any()
    assert participation(single.right[1:]).isnan().all()


def test_a_massive_dimension_is_found_and_left_out():
    d = drawn(20, 30) + 2 * torch.nn.functional.one_hot(torch.tensor(3), 30)
    d[:4, 11] += 60.0  # four prompts' massive activations
    found = place(d, noise=0.1)
    assert found.outliers.tolist() == [11]
    values = shares(found.grams(), *found.pairs, 1)[:, 0]
    assert values[0] > 0.8
    assert values[2] < 0.4
    plain = d.clone()
    plain[:, 11] = 0
    s = torch.linalg.svdvals(plain)
    assert values[2] == pytest.approx((s[0] ** 2 / s.square().sum()).item(), rel=1e-5)


def test_a_gram_matrix_of_pairs_is_that_of_their_differences():
    states = drawn(11, 5) + 100
    gram = (states - states.mean(0)) @ (states - states.mean(0)).mT
    first, second = torch.tensor([0, 3, 3]), torch.tensor([7, 10, 1])
    d = states[first] - states[second]
    assert torch.allclose(gram_of_pairs(gram, first, second), d @ d.mT)
    d = d - d.mean(0)
    assert torch.allclose(less_mean(gram_of_pairs(gram, first, second)), d @ d.mT)


def test_the_leading_shares_of_many_pairs_are_those_of_all(monkeypatch):
    d = drawn(60, 20)
    expected = explained(d @ d.mT, 4)
    plane, of_plane = leading_plane(d @ d.mT)
    monkeypatch.setattr("safetyheads.probes.directions.decomposition.LARGE", 10)
    assert torch.allclose(explained(d @ d.mT, 4), expected, rtol=1e-6)
    again, of_again = leading_plane(d @ d.mT)
    assert torch.allclose(plane, again, atol=1e-6)
    assert torch.allclose(of_plane, of_again)
    assert torch.allclose(of_plane, expected[:2])
    assert torch.allclose(plane.norm(dim=0) ** 2 / d.square().sum(), of_plane)


def test_a_real_difference_stands_above_chance_and_noise_does_not():
    base, other = drawn(40, 25), drawn(40, 25, seed=1)
    shifted = Place.of(base + 1.5, other, 1)
    spread = spread_of(shifted, 1, 40, 0)
    observed = shares(shifted.grams(), *shifted.pairs, 1)
    assert observed[0, 0] > 1.1 * spread.chance[0, 0]
    along = mean_share(shifted.grams(), *shifted.pairs)[0]
    d = (base - other + 1.5).mean(0)
    assert along == pytest.approx(
        (40 * d.square().sum() / (base - other + 1.5).square().sum()).item()
    )
    assert along > 6 * spread.mean_chance[0]
    assert (spread.low <= observed).all()
    assert (observed <= spread.high).all()
    assert observed[1, 0] < 1.2 * spread.chance[1, 0]
    nothing = Place.of(base, other, 1)
    assert (
        shares(nothing.grams(), *nothing.pairs, 1)[0, 0]
        < 1.3 * spread_of(nothing, 1, 40, 0).chance[0, 0]
    )
    # One harmless state for all: no pairing is another.
    alike = Place.of(base, drawn(1, 25, seed=2).expand(40, -1), 1)
    assert spread_of(alike, 2, 5, 0).repaired.max() < 1e-9
    assert spread.repaired.max() > 1e-4


def test_what_has_no_spectrum_is_refused_with_the_reason(llama):
    model = llama
    with pytest.raises(ValueError, match=r"10 components were asked for and there are 7 pairs"):
        refusal_spectrum(model, PROMPTS)
    few = {"components": 2, "resampling": FEW, "progress": False}
    same = PromptSet("same", HARMFUL, HARMFUL, paired=True)
    with pytest.raises(ValueError, match="both sides hold the same prompts"):
        refusal_spectrum(model, same, **few)
    with pytest.raises(ValueError, match="every prompt has the same token there"):
        refusal_spectrum(model, PROMPTS, layers=0, **few)
    with pytest.raises(ValueError, match=r"layers are \[9\]; .* has layers 0-3"):
        refusal_spectrum(model, PROMPTS, layers=9, **few)
    with pytest.raises(ValueError, match=r"positions are \[0\].*the shortest prompt has 5"):
        refusal_spectrum(model, PROMPTS, position=0, **few)
    with pytest.raises(ValueError, match="has no harmless prompts"):
        refusal_spectrum(model, PromptSet("one side", HARMFUL), **few)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        refusal_spectrum(model, PROMPTS, template="chat", **few)
    with pytest.raises(ValueError, match="n_outliers is 24; of 24 dimensions"):
        refusal_spectrum(model, PROMPTS, n_outliers=24, **few)
    with pytest.raises(ValueError, match="count is 1; an interval needs at least 2 draws"):
        Resampling(1)
    sides = Sides(drawn(1, 4, 1, 6), drawn(1, 5, 1, 6), (2,), (-1,), False)
    made = spectrum_of(sides, components=2, resampling=FEW, progress=False)
    assert (made.n_pairs, made.n_prompts) == (4, (4, 5))
    with pytest.raises(ValueError, match=r"there is no layer 1, position -1 in this spectrum"):
        made.directions(1)
    with pytest.raises(ValueError, match="version is 'whitened'"):
        made.directions(2, version="whitened")
    assert torch.equal(made.directions(2), made.right[0, 0, 0])
    assert isinstance(made, Spectrum)
