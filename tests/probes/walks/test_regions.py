"""Do regions and planes say what is put into them, with the random copy always beside?"""

import functools
from dataclasses import replace

import pytest
import torch

from safetyheads.inputs import prepare
from safetyheads.interventions.paths import StraightLine
from safetyheads.interventions.synthetic import (
    SaeBaseline,
    SaeReconstruction,
    SaeStructured,
    top_cosine,
)
from safetyheads.models.opening import load_model
from safetyheads.probes.walks.regions import (
    regions_table,
    slice_regions,
    stable_regions,
)
from safetyheads.probes.walks.sensitivity import states_at, trace_sensitivity
from safetyheads.probes.walks.synthetic import (
    compare_activations,
    ks_distance,
)
from safetyheads.saes.autoencoder import Sae, TopK
from tests.zoo import CONFIGS, RAGGED, random_model, sentence, tokenizer

D, N, K = 24, 40, 3


@pytest.fixture(scope="module")
def llama():
    return load_model(random_model(CONFIGS["llama"](), seed=5), tokenizer())


@pytest.fixture(scope="module")
def sae():
    drawn = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(N, D, generator=drawn), dim=1)
    frequencies = torch.rand(N, generator=drawn).index_fill(0, torch.tensor([0, 7]), 0.0)
    parts = decoder.T.clone(), torch.zeros(N), decoder, torch.zeros(D)
    return Sae(*parts, TopK(K), layer=1, frequencies=frequencies)


STATES = torch.randn(6, D, generator=torch.Generator().manual_seed(1))


def test_the_random_copy_is_always_beside(llama):
    found = stable_regions(llama, RAGGED, steps=5, progress=False)
    table = regions_table({100: found}, "tokens")
    assert table["weights"].tolist() == ["trained", "random"]
    assert table["tokens"].tolist() == [100, 100]
    assert table["sharpness"].min() >= 1 - 1e-6
    direct = trace_sensitivity(llama, RAGGED, steps=5, progress=False)
    assert table["sharpness"][0] == direct.quartiles("sharpness").median
    assert not torch.equal(found.random.from_start, found.trained.from_start)
    assert table["parameters"][0] == sum(p.numel() for p in llama.hf.parameters())


def test_a_plane_has_its_anchors_where_they_are(llama):
    """Each anchor's channel is one at its own place, and elsewhere what a walk to there reads."""
    prompts = [RAGGED[0], RAGGED[1], sentence(70, 71, 72)]
    found = slice_regions(llama, prompts, points=7, margin=0.25, layer=1, progress=False)
    a, b, c = states_at(llama, prepare(llama, prompts).batch, 1)
    foot = a + found.corner * (b - a)
    assert abs(float((c - foot) @ (b - a))) < 1e-3 * float((b - a).square().sum())
    zero = found.alphas.abs().argmin(), found.betas.abs().argmin()
    assert (found.alphas[zero[0]], found.betas[zero[1]]) == (0, 0)
    colours = found.colours
    assert colours.shape == (7, 7, 3)
    assert colours[zero[1], zero[0], 0] == pytest.approx(1, abs=1e-5)
    one = (found.alphas - 1).abs().argmin()
    assert colours[zero[1], one, 1] == pytest.approx(1, abs=1e-5)
    assert colours.min() >= 0
    far = torch.stack([a, b, c]) + 0.0
    point = a + found.alphas[2] * (b - a) + found.betas[5] * (c - foot)
    walk = trace_sensitivity(
        llama, prompts, StraightLine(1, far, point.expand(3, -1).clone()), steps=2, progress=False
    )
    ratio = walk.from_start[:, -1] / found.distances[:, 5, 2]
    again = slice_regions(llama, prompts, points=7, layer=1, read="post_norm", progress=False)
    assert torch.equal(again.distances, found.distances)
    point = a + found.alphas[4] * (b - a) + found.betas[3] * (c - foot)
    walk = trace_sensitivity(
        llama, prompts, StraightLine(1, far, point.expand(3, -1).clone()), steps=2, progress=False
    )
    torch.testing.assert_close(
        walk.from_start[:, -1] / found.distances[:, 3, 4], ratio, rtol=1e-3, atol=1e-3
    )
    assert found.borders.shape == (7, 7)
    assert found.borders.max() > 0


def test_no_plane_goes_through_less_than_three(llama):
    with pytest.raises(ValueError, match="2 prompts and 40 points"):
        slice_regions(llama, RAGGED[:2])
    with pytest.raises(ValueError, match="on one line"):
        slice_regions(llama, [RAGGED[0], RAGGED[1], RAGGED[0]])
    with pytest.raises(ValueError, match=r"layer is 9; .* has layers 0-3"):
        slice_regions(llama, RAGGED, layer=9)
    with pytest.raises(ValueError, match=r"2\.5 points a side"):
        slice_regions(llama, RAGGED, points=2.5)


def test_a_bag_of_latents_keeps_how_active_they_are_and_takes_none_twice(sae):
    own, made = sae.encode(STATES), SaeBaseline(sae, seed=2).latents(STATES)
    for before, after in zip(own, made, strict=True):
        assert sorted(before[before > 0].tolist()) == sorted(after[after > 0].tolist())
        assert not after[[0, 7]].any()  # dead
    assert (made != own).any(1).all()
    assert torch.equal(made, SaeBaseline(sae, seed=2).latents(STATES))
    assert not torch.equal(made, SaeBaseline(sae, seed=3).latents(STATES))
    # With one candidate each, a lone latent becomes the one whose frequency is closest.
    alone = Sae(sae.encoder, sae.encoder_bias, sae.decoder, sae.decoder_bias, TopK(1), 1,
                frequencies=sae.frequencies)  # fmt: skip
    before, after = alone.encode(STATES).argmax(1), SaeBaseline(alone, closest=1).latents(STATES)
    for old, new in zip(before.tolist(), after.argmax(1).tolist(), strict=True):
        gaps = (alone.frequencies - alone.frequencies[old]).abs()
        gaps[[0, 7, old]] = torch.inf
        assert new == int(gaps.argmin())


def test_structured_latents_stand_to_each_other_as_the_prompts_own_do(sae):
    target = SaeStructured(sae, candidates=5, cosine=0.3)
    own, made = sae.encode(STATES), target.latents(STATES)
    units = sae.directions.double()
    for before, after in zip(own, made, strict=True):
        assert sorted(before[before > 0].tolist()) == sorted(after[after > 0].tolist())
        top, centre = int(before.argmax()), int(after.argmax())
        gaps = (sae.frequencies - sae.frequencies[top]).abs()
        gaps[[0, 7, top]] = torch.inf
        near = gaps.topk(5, largest=False).indices
        best = near[((units[near] @ units[top]) - 0.3).abs().argmin()]
        assert centre == int(best)
        used = {centre}
        for latent in before.nonzero()[:, 0].tolist():
            if latent != top:
                apart = (units @ units[centre] - units[latent] @ units[top]).abs()
                apart[[0, 7, *used]] = torch.inf
                assert after[int(apart.argmin())] == before[latent]
                used.add(int(apart.argmin()))
    assert -1 <= top_cosine(sae, STATES) <= 1


def test_an_sae_that_cannot_make_activations_is_refused(sae, llama):
    bare = Sae(sae.encoder, sae.encoder_bias, sae.decoder, sae.decoder_bias, TopK(K), 1)
    with pytest.raises(ValueError, match="does not say how often"):
        SaeStructured(bare).ends(STATES, lambda _: STATES)
    with pytest.raises(ValueError, match="of 24 numbers, and one of 20 came"):
        SaeBaseline(sae).ends(STATES[:, :20], lambda _: STATES)
    few = Sae(sae.encoder, sae.encoder_bias, sae.decoder, sae.decoder_bias, TopK(K), 1,
              frequencies=torch.zeros(N).index_fill(0, torch.arange(3), 0.1))  # fmt: skip
    with pytest.raises(ValueError, match="3 latents of SAE are ever active"):
        SaeBaseline(few).ends(STATES, lambda _: STATES)
    for target in (SaeStructured(sae), SaeBaseline(sae), SaeReconstruction(sae)):
        with pytest.raises(ValueError, match="is made for what enters layer 1; write layer=1"):
            trace_sensitivity(llama, RAGGED, target, layer=2)
    with pytest.raises(ValueError, match=r"layer is 9; .* has layers 0-3"):
        compare_activations(llama, RAGGED, replace(sae, layer=9))
    with pytest.raises(ValueError, match="have one activation at layer 1"):
        compare_activations(llama, [RAGGED[0]] * 2, sae)
    ends = SaeReconstruction(sae).ends(STATES, lambda _: STATES)
    torch.testing.assert_close(ends, sae.decode(sae.encode(STATES.roll(-1, 0))))


def test_kinds_of_activations_are_compared(llama, sae):
    prompts = [sentence(10 + n, 20 + 2 * n, 30 + n, 50 + n) for n in range(5)]
    found = compare_activations(llama, prompts, sae, steps=6, progress=False)
    assert found.kinds == ("real", "structured", "baseline", "random", "reconstruction")
    table = found.table()
    assert len(table) == 5 * 5
    assert set(table["steps"]) == set(found.summary(resamples=2)["steps"]) == {6}
    assert table["max_slope"].between(100 / 5, 100).all()
    real = table[table["kind"] == "real"]
    direct = trace_sensitivity(llama, prompts, steps=6, read="pre_norm", progress=False)
    assert real["max_slope"].tolist() == (100 * direct.measures()["max_slope_at"]).tolist()
    summary = found.summary(resamples=20)
    same = summary[(summary["kind"] == "real") & (summary["measure"] == "plateau")].iloc[0]
    assert same["ks"] == same["ks_low"] == 0
    assert (summary["ks"] <= 1).all()
    assert found.away[0].along[:, 1].std() < 1e-3
    wide = functools.partial(compare_activations, llama, prompts, progress=False)
    other = Sae(torch.eye(7), torch.zeros(7), torch.eye(7), torch.zeros(7), TopK(K), 1)
    with pytest.raises(ValueError, match="of 7 numbers, and one of 24"):
        wide(other)
    assert ks_distance(STATES[0], STATES[0]) == 0
