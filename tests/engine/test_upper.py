"""Does a worker that has only the upper blocks give the numbers of the whole sweep, to the bit, or refuse?"""

import pickle
import warnings
from dataclasses import replace

import pytest
import torch

from safetyheads.engine import shards
from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.directions import AddDirection
from safetyheads.models.blocks import Blocks
from safetyheads.models.opening import load_model, open_upper
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Models that can be opened again, by architecture."""
    known = {}

    def open_one(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            random_model(CONFIGS[name]()).save_pretrained(folder)
            known[name] = load_model(folder, tokenizer())
        return known[name]

    return open_one


class Elsewhere:
    """Workers in this process: what they get has travelled, and what they hold is noted."""

    def __init__(self, workers=2):
        self.workers, self.travelled = workers, []

    def __call__(self, function, items):
        for item in items:
            self.travelled.append(pickle.loads(pickle.dumps(item)))
            yield function(self.travelled[-1])


def held(model):
    return sum(weight.numel() for weight in model.hf.parameters() if not weight.is_meta)


DIFFERENT = ("llama-tied", "mistral-window", "gemma3-two-ropes", "phi3", "gpt2", "gptj", "neox")
"""Masks, rotary angles, fused projections, biases; benchmarks/upper.py --zoo has all the others too."""


@pytest.mark.parametrize("name", DIFFERENT)
def test_upper_blocks_give_what_the_whole_sweep_gives(opened, name):
    measurement = measure(prepare(opened(name), RAGGED, template="bare"))
    variants = measurement.variants(measurement.heads([0, 2])[::3])
    expected, workers = run(measurement, variants), Elsewhere()
    found = run(measurement, variants, Execution(executor=workers, upper_blocks=True))
    assert torch.equal(found.readings, expected.readings)
    assert found.exact_resume == expected.exact_resume
    below, above = workers.travelled
    assert below.entered is None
    assert above.entered.layer == 2
    upper = shards._open(above.source, 2)
    assert held(upper) < held(opened(name))
    with pytest.raises(RuntimeError, match="meta"):
        upper.logits(torch.tensor([[1, 2, 3]]))


def test_heads_of_several_layers_beside_given_ones_and_directions(opened):
    plain = measure(prepare(opened("gemma2-softcap-window"), RAGGED, template="bare"), "mean")
    measurement = replace(plain, given=plain.group([Head(0, 1), Head(2, 2)]))
    variants = [
        *measurement.variants([Head(0, 0), Head(1, 3)]),
        measurement.group([Head(1, 0), Head(2, 5)]),
        AddDirection(torch.ones(24), layer=2),
    ]
    expected = run(measurement, variants, Execution(rows=4)).readings
    apart = Execution(rows=4, executor=Elsewhere(3), upper_blocks=True)
    assert torch.equal(run(measurement, variants, apart).readings, expected)


def test_what_cannot_go_on_from_the_stream_is_refused(opened, monkeypatch):
    measurement = measure(prepare(opened("qwen2"), RAGGED, template="bare"))
    variants = measurement.variants([Head(1, 0), Head(2, 1)])
    execution = Execution(executor=Elsewhere(), upper_blocks=True)
    whole = Blocks.run

    def reads_more(self, layer, resid, call, **options):
        """A block whose output depends on what no stream has."""
        return whole(self, layer, resid, call, **options) + len(resid)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(Blocks, "run", reads_more)
        with pytest.raises(ValueError, match=r"cannot be run from a layer on.*upper_blocks out"):
            run(measurement, variants, execution)

    class Forged(Elsewhere):
        def __call__(self, function, items):
            for item in items:
                first, *others = item.entered.groups
                groups = (replace(first, resid=first.resid * 1.5), *others)
                yield function(replace(item, entered=replace(item.entered, groups=groups)))

    with pytest.raises(ValueError, match="does not end as the whole model did"):
        run(measurement, variants, Execution(executor=Forged(), upper_blocks=True))


def test_another_model_or_no_executor_is_refused(opened):
    model = opened("llama")
    measurement = measure(prepare(model, RAGGED, template="bare"))
    variants = measurement.variants([Head(1, 0), Head(2, 1)])

    class Edited(Elsewhere):
        def __call__(self, function, items):
            for item in items:
                weight = shards._open(item.source, item.entered.layer).hf.lm_head.weight
                weight.data[0, 0] += 1
                yield function(item)

    with pytest.raises(ValueError, match="opened another"):
        run(measurement, variants, Execution(executor=Edited(), upper_blocks=True))
    shards._open.cache_clear()
    with pytest.raises(ValueError, match="there is none"):
        Execution(upper_blocks=True)
    with pytest.raises(ValueError, match="several devices"):
        open_upper(model.opened_from._replace(device_map="balanced"), 1)
    with pytest.raises(ValueError, match="blocks 0-3"):
        open_upper(model.opened_from, 4)
