"""Do other processes give the numbers of this one, and is a worker that dies replaced?"""

import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from safetyheads.engine import executors, shards
from safetyheads.engine.execution import Execution
from safetyheads.engine.executors import process_map, ray_map
from safetyheads.engine.shards import cut
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
)
from safetyheads.interventions.writing import save_model
from safetyheads.metrics import GeneralizedShips, Ships
from safetyheads.models.hooked import ModelSource
from safetyheads.models.opening import load_model, reopen
from safetyheads.probes.single_heads import score_heads
from safetyheads.storage.store import Store
from tests.forked import forking, needs_fork
from tests.jobs import dying_once, square
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)


QUIET = Execution(progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that another process can open."""
    folder = tmp_path_factory.mktemp("model")
    random_model(CONFIGS["llama"]()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def local(folder):
    return score_heads(folder, RAGGED, execution=QUIET)


def kill_a_worker(executor, marker):
    """An executor like another, one of whose workers is killed as soon as it has work."""
    marker.mkdir()

    def mapped(function, items):
        dying = functools.partial(dying_once, pickle.dumps(function), marker)
        return executor(dying, map(pickle.dumps, items))

    mapped.workers = executor.workers
    return mapped


def test_processes_share_the_items_and_have_their_own_threads():
    results = list(process_map(2, threads=3)(square, range(8)))
    assert sorted(r[0] for r in results) == [n * n for n in range(8)]
    assert 1 <= len({r[1] for r in results} - {os.getpid()}) <= 2
    assert {r[2] for r in results} == {"3"}
    assert list(process_map(2)(square, [])) == []


def test_an_error_in_a_worker_is_raised_here_as_it_was():
    with pytest.raises(FileNotFoundError, match="thirteen"):
        list(process_map(1)(square, [2, 13, 3]))


def test_an_item_that_ends_every_worker_is_given_up():
    with (
        pytest.warns(UserWarning, match=r"ended \(exit code 5\); what it was at is run again"),
        pytest.raises(
            ChildProcessError, match=r"as did 2 others at the same work\. Is there memory"
        ),
    ):
        list(process_map(1)(square, [99]))


def test_what_cannot_be_imported_in_a_worker_is_said(monkeypatch):
    def shown_once(n):
        return n

    shown_once.__module__, shown_once.__qualname__ = "tests.zoo", "only_here"
    monkeypatch.setattr("tests.zoo.only_here", shown_once, raising=False)
    with pytest.raises(ValueError, match=r"cannot import what it was sent .*in a module"):
        list(process_map(1)(shown_once, [1]))


@pytest.mark.parametrize(("make", "name"), [(process_map, "workers"), (process_map, "threads")])
def test_counts_below_one_are_refused(make, name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        make(**{name: 0})


def test_ray_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'safetyheads\[ray\]'"):
        ray_map()


@needs_fork
def test_a_killed_process_is_replaced_and_the_scores_are_the_local_ones(
    folder, local, tmp_path, monkeypatch
):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forking)
    executor = kill_a_worker(process_map(1, threads=1), tmp_path / "begun")
    with pytest.warns(UserWarning, match=r"killed by SIGKILL\); what it was at is run again"):
        apart = score_heads(
            folder,
            RAGGED,
            execution=Execution(executor=executor, store=tmp_path / "store", progress=False),
        )
    assert torch.equal(apart.per_prompt, local.per_prompt)
    assert apart.provenance == local.provenance
    begun = [name.split("-") for name in os.listdir(tmp_path / "begun")]
    assert len({pid for _, pid in begun}) >= 2
    assert len(begun) == 2 + 1  # two shards, one of them twice
    (stored,) = (tmp_path / "store").iterdir()
    local_again = score_heads(
        folder,
        RAGGED,
        execution=Execution(store=tmp_path / "local", progress=False),
    )
    assert torch.equal(local_again.values, local.values)
    files = sorted(p.name for p in stored.iterdir())
    assert files == [*(f"layer00{n}.safetensors" for n in range(4)), "provenance.json", *files[5:]]
    for name in files:
        assert (stored / name).read_bytes() == (
            tmp_path / "local" / stored.name / name
        ).read_bytes(), name


class Future:
    """What an actor has answered."""

    def __init__(self, answer):
        self.answer = answer


class PretendedRay:
    """What of Ray an executor asks, on a cluster that is not there: actors in this process."""

    def __init__(self):
        self.asked = []
        self.exceptions = SimpleNamespace(RayTaskError=LookupError, RayError=EOFError)

    def is_initialized(self):
        return True

    def remote(self, actor):
        def options(**asked):
            def make():
                self.asked.append(asked)
                made = actor()
                return SimpleNamespace(
                    ready=SimpleNamespace(remote=lambda: Future(made.ready())),
                    run=SimpleNamespace(remote=functools.partial(self.run, made)),
                )

            return SimpleNamespace(remote=make)

        return SimpleNamespace(options=options)

    def run(self, actor, function, item):
        return Future(actor.run(function, pickle.loads(pickle.dumps(item))))

    def wait(self, futures, **_options):
        return futures[:1], futures[1:]

    def get(self, future):
        return future.answer

    def put(self, value):
        return value

    def kill(self, actor):
        pass


def test_several_gpus_of_a_worker_are_asked_of_ray_and_get_the_model(folder, local, monkeypatch):
    ray, opened = PretendedRay(), []
    monkeypatch.setattr(executors, "_import_ray", lambda: ray)
    monkeypatch.setattr(shards, "reopen", lambda source: opened.append(source) or reopen(source))
    shards._open.cache_clear()
    model = load_model(folder, device_map={"": "cpu"})
    execution = Execution(executor=ray_map(2, threads=3, gpus_per_worker=4), progress=False)
    scores = score_heads(model, RAGGED, execution=execution)
    assert ray.asked == [{"num_cpus": 3, "num_gpus": 4}] * 2
    assert [source.device_map for source in opened] == [(("", "cpu"),)]
    assert torch.equal(scores.values, local.values)


def test_a_worker_with_several_gpus_places_the_model_over_them():
    one = ModelSource("a name", "cuda", torch.bfloat16)
    assert shards.source_over(one, 1, "cuda") == one
    placed = shards.source_over(one, 2, "cuda")
    assert (placed.device, placed.device_map, placed.dtype) == ("cpu", "balanced", torch.bfloat16)
    mine = one._replace(device_map=(("model", 1), ("lm_head", 0)))
    assert shards.source_over(mine, 2, "cuda") == mine
    with pytest.raises(ValueError, match=r"2 GPUs.*open it with device_map='balanced'"):
        shards.source_over(one, 2, "cpu")
    with pytest.raises(ValueError, match=r"gpus_per_worker is 1\.5"):
        ray_map(gpus_per_worker=1.5)


@needs_ray
def test_a_killed_ray_worker_is_replaced_and_the_scores_are_the_local_ones(folder, local, tmp_path):
    executor = kill_a_worker(ray_map(1), tmp_path / "begun")
    with pytest.warns(UserWarning, match="a Ray worker ended .*what it was at is run again"):
        apart = score_heads(
            folder,
            RAGGED,
            execution=Execution(executor=executor, progress=False),
        )
    assert torch.equal(apart.per_prompt, local.per_prompt)
    begun = [name.split("-")[1] for name in os.listdir(tmp_path / "begun")]
    assert len(begun) == 2 + 1
    assert len(set(begun)) >= 2


@pytest.mark.parametrize(
    ("ablation", "metric"),
    [
        (MeanAblation(), Ships()),
        (ResampleAblation(1), Ships()),
        (ScalingContribution(0.5), GeneralizedShips("right")),
        (UndifferentiatedAttention(0.1), GeneralizedShips("feature0")),
    ],
)
def test_what_looks_at_the_whole_dataset_is_the_same_in_shards(folder, ablation, metric):
    """`map` cuts and pickles as any executor does, and runs here."""

    def travelling(function, items):
        return map(function, [pickle.loads(pickle.dumps(item)) for item in items])

    travelling.workers = 4
    options = {"ablation": ablation, "metric": metric}
    there = Execution(executor=travelling, progress=False)
    apart = score_heads(folder, RAGGED, execution=there, **options)
    here = score_heads(folder, RAGGED, execution=QUIET, **options)
    assert torch.equal(apart.values, here.values)
    assert here.values.max() > here.values.min()


def test_only_what_the_store_lacks_is_shared_out(folder, local, tmp_path):
    seen = []

    def watching(function, items):
        items = list(items)
        seen.extend(v.head.layer for shard in items for v in shard.variants)
        assert not any(text for shard in items for text in shard.batch.texts)
        return map(function, items)

    options = {"execution": Execution(executor=watching, store=tmp_path, progress=False)}
    score_heads(folder, RAGGED, **options)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    seen.clear()
    (stored,) = tmp_path.iterdir()
    del Store.reading(stored)["layer002"]
    again = score_heads(folder, RAGGED, **options)
    assert set(seen) == {2}
    assert torch.equal(again.values, local.values)


def test_each_shard_is_kept_as_soon_as_it_is_there(folder, local, tmp_path):
    def killed_after_two(function, items):
        yield from itertools.islice(map(function, items), 2)
        raise KeyboardInterrupt

    killed_after_two.workers = 4
    kept = Execution(store=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        score_heads(folder, RAGGED, execution=dataclasses.replace(kept, executor=killed_after_two))
    (stored,) = tmp_path.iterdir()
    assert set(Store.reading(stored)) >= {"layer000", "layer001"}
    assert "layer003" not in Store.reading(stored)
    assert torch.equal(score_heads(folder, RAGGED, execution=kept).values, local.values)


def test_a_loaded_model_cannot_travel_and_that_is_said():
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    with pytest.raises(
        ValueError, match=r"a loaded model cannot travel .*save_model\(model, folder\)"
    ):
        score_heads(
            model,
            RAGGED,
            execution=Execution(executor=map, progress=False),
        )


def test_what_the_advice_says_can_be_done(tmp_path):
    hf = random_model(CONFIGS["llama"]())
    model = load_model(hf, tokenizer())
    logits = model.logits(torch.tensor([[1, 10, 11, 12]]))
    folder = save_model(model, tmp_path / "saved")
    assert torch.equal(load_model(folder).logits(torch.tensor([[1, 10, 11, 12]])), logits)
    apart = score_heads(folder, RAGGED, execution=Execution(executor=map, progress=False))
    assert torch.equal(apart.values, score_heads(model, RAGGED, execution=QUIET).values)
    with pytest.raises(FileExistsError, match="is not empty"):
        save_model(model, folder)


class Unpicklable(ScalingContribution):
    def __reduce__(self):
        raise TypeError("no")


def test_an_ablation_that_cannot_travel_is_said(folder):
    with pytest.raises(ValueError, match=r"cannot travel to other processes \(no\)"):
        score_heads(
            folder,
            RAGGED,
            ablation=Unpicklable(),
            execution=Execution(executor=map, progress=False),
        )


def test_a_worker_that_opens_another_model_is_refused(folder, tmp_path):
    def elsewhere(function, items):
        random_model(CONFIGS["llama"](), seed=3).save_pretrained(folder)
        return map(function, items)

    other = tmp_path / "other"
    random_model(CONFIGS["llama"](), seed=1).save_pretrained(other)
    tokenizer().save_pretrained(other)
    folder = other
    with pytest.raises(
        ValueError, match=r"a worker opened another other than .*sha256: \w+ and \w+"
    ):
        score_heads(
            other,
            RAGGED,
            execution=Execution(executor=elsewhere, progress=False),
        )


def test_low_layers_weigh_more_and_every_layer_is_in_one_shard():
    for workers in (1, 3, 8, 50):
        shards = list(cut(dict.fromkeys(range(32), 32), 32, workers))
        assert [layer for shard in shards for layer in shard] == list(range(32))
        assert len(shards) >= min(2 * workers, 20)
        costs = [sum(32 - layer for layer in shard) for shard in shards]
        assert max(costs) <= max(32, 2 * sum(costs) / len(costs))
    assert list(cut({5: 3}, 8, 4)) == [[5]]


def test_a_bar_counts_all_shards(folder, monkeypatch):
    counted = []

    class Bar:
        def __init__(self, total):
            self.total = total

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            counted.append(n)

    monkeypatch.setattr("safetyheads.engine.run.bar", lambda total, *_: Bar(total))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_heads(
            folder,
            RAGGED,
            execution=Execution(executor=map, progress=True),
        )
    assert sum(counted) == 4 * 6 * 3
