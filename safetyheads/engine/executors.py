"""Where does it run? In this process, in several on this machine, on a Ray cluster.

An executor is anything that maps like the builtin `map`: called with a function and items it gives the results, in any
order (what needs an order says in its result which item it was). `map` itself, the `map` of a
`concurrent.futures.Executor` and the two below all serve. These two hand out one item at a time, so that the quick
workers take more, and run the items of a worker that died again on another.
"""

import contextlib
import logging
import os
import pickle
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Executor = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

ATTEMPTS = 3
"""How many workers an item may end before it is given up."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def process_map(workers: int = 2, threads: int | None = None) -> "ProcessMap":
    """Map in several processes on this machine, each with a model of its own.

    `workers` is the number of processes, `threads` that of each one's threads (by default the machine's cores divided
    by the workers). A worker that dies, killed for its memory for instance, is replaced and its item run again.
    A script that uses this needs the usual `if __name__ == "__main__":`.
    """
    _require_positive(workers=workers)
    threads = max(1, (os.cpu_count() or 1) // workers) if threads is None else threads
    _require_positive(threads=threads)
    return ProcessMap(workers, threads)


def ray_map(
    workers: int = 2,
    *,
    threads: int = 1,
    gpus_per_worker: float | int = 0,
    address: str | None = None,
) -> "RayMap":
    """Map on a Ray cluster, each worker an actor with a model of its own.

    `workers` is the number of actors; `threads` and `gpus_per_worker` are what each one reserves: a share of a GPU,
    one, or several, over which the one model is then placed block after block. `address` is the cluster's,
    such as "auto" or "ray://head:10001"; without it, and without RAY_ADDRESS in the environment, a cluster is started
    on this machine and stopped at the end. An actor that dies, or whose machine does, is replaced and its item run
    again. safetyheads must be installed in the same version on all machines.

    Raises ImportError where Ray is not installed.
    """
    _require_positive(workers=workers, threads=threads)
    if gpus_per_worker < 0 or (gpus_per_worker > 1 and gpus_per_worker % 1):
        raise ValueError(
            f"gpus_per_worker is {gpus_per_worker}; each worker reserves none, a share of one, or several whole ones"
        )
    _import_ray()
    return RayMap(workers, threads, gpus_per_worker, address)


@dataclass(frozen=True)
class ProcessMap:
    """Maps like the builtin `map`, in processes; made by `process_map`."""

    workers: int
    """How many processes."""
    threads: int
    """Threads of each process."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """The results, in the order in which they are ready."""
        queue = _Queue(list(items))
        crew: list[_Process] = []
        try:
            while queue.unfinished:
                while len(crew) < min(self.workers, len(queue.unfinished)):
                    crew.append(_Process(function, self.threads))
                for idle in [worker for worker in crew if worker.item is None and queue.waiting]:
                    idle.take(*queue.next())
                for ready in wait([worker.connection for worker in crew]):
                    worker = next(w for w in crew if w.connection is ready)
                    try:
                        kind, value = pickle.loads(worker.connection.recv_bytes())
                    except (EOFError, OSError):
                        crew.remove(worker)
                        queue.put_back(worker.item, worker.ending())
                        continue
                    if kind == "error":
                        raise value
                    queue.finish(worker.item)
                    worker.item = None
                    yield value
        finally:
            for worker in crew:
                worker.stop()


class _Process:
    """One process, and the item that it is at."""

    def __init__(self, function: Callable[[Any], Any], threads: int) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")
        self.connection, its_end = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(its_end, threads), daemon=True)
        self.process.start()
        its_end.close()
        self.item: int | None = None
        """The number of the item that it is at."""
        self._send(function)

    def take(self, number: int, item: Any) -> None:
        self.item = number
        self._send(item)

    def _send(self, value: Any) -> None:
        # Plain pickle: torch would replace a connection's own by handles that die with their process.
        data = pickle.dumps(value)
        with contextlib.suppress(OSError):  # it has died, which the next read notices
            self.connection.send_bytes(data)

    def ending(self) -> str:
        self.connection.close()
        self.process.join(timeout=10)
        code = self.process.exitcode or 0
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"worker process {self.process.pid} ended ({killed})"

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection, threads: int) -> None:
    """What a worker process does: the function once, then item after item, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that shares out
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # before torch is imported
    try:
        function = connection.recv_bytes()
        while True:
            connection.send_bytes(_outcome(function, connection.recv_bytes()))
    except (EOFError, OSError):
        pass  # the process that shares out has ended


def _outcome(function: bytes, item: bytes) -> bytes:
    """The pickled result, or the pickled error."""
    try:
        call, argument = pickle.loads(function), pickle.loads(item)
    except (AttributeError, ImportError, pickle.UnpicklingError) as error:
        return pickle.dumps(
            (
                "error",
                ValueError(
                    f"a worker cannot import what it was sent ({error}); define ablations and metrics of your own "
                    "in a module, not in a notebook or shell"
                ),
            )
        )
    try:
        return pickle.dumps(("result", call(argument)))
    except Exception as error:
        try:
            pickled = pickle.dumps(("error", error))
            pickle.loads(pickled)
        except Exception:
            return pickle.dumps(("error", RuntimeError(f"in a worker:\n{traceback.format_exc()}")))
        return pickled


@dataclass(frozen=True)
class RayMap:
    """Maps like the builtin `map`, on a Ray cluster; made by `ray_map`."""

    workers: int
    """How many actors."""
    threads: int
    """CPUs that each actor reserves."""
    gpus_per_worker: float | int
    """GPUs that each actor reserves; over several its model is placed."""
    address: str | None
    """Where the cluster is; None: RAY_ADDRESS, or a new one on this machine."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """The results, in the order in which they are ready."""
        ray = _import_ray()
        ours, waiting = not ray.is_initialized(), list(items)
        if ours:
            self._connect(ray, sum(len(pickle.dumps(item)) for item in waiting))
        actor_class = ray.remote(_Actor).options(
            num_cpus=self.threads, num_gpus=self.gpus_per_worker
        )
        queue = _Queue(waiting)
        kept = ray.put(function)
        working: dict[Any, tuple[Any, int | None]] = {}
        try:
            while queue.unfinished:
                while len(working) < min(self.workers, len(queue.unfinished)):
                    actor = actor_class.remote()
                    # The first thing that an actor is asked is whether it is there: one that the cluster has no room
                    # for holds no item.
                    working[actor.ready.remote()] = (actor, None)
                done, _ = ray.wait(list(working), timeout=60)
                if not done and all(item is None for _, item in working.values()):
                    warnings.warn(
                        f"no Ray worker has started in 60 s; each needs {self.threads} CPU and "
                        f"{self.gpus_per_worker} GPU, and the cluster has free: {ray.available_resources()}",
                        stacklevel=2,
                    )
                for future in done:
                    actor, item = working.pop(future)
                    try:
                        result = ray.get(future)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.RayError as error:
                        ray.kill(actor)  # where Ray is in doubt
                        queue.put_back(item, f"a Ray worker ended ({str(error).splitlines()[0]})")
                        continue
                    if queue.waiting:
                        number, value = queue.next()
                        working[actor.run.remote(kept, value)] = (actor, number)
                    else:
                        ray.kill(actor)
                    if item is not None:
                        queue.finish(item)
                        yield result
        finally:
            for actor, _ in working.values():
                ray.kill(actor)
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any, size: int) -> None:
        """Join the cluster, or start one with room for items of `size` bytes."""
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        # Most items and results are small; by default Ray would set a third of the memory aside for them.
        local = {
            "num_cpus": self.workers * self.threads,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20 + 2 * size,
        }
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if address == "local" else {}),
        )


class _Actor:
    """What a Ray worker does."""

    def ready(self) -> None:
        """Answer as soon as the worker is there."""

    def run(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)


class _Queue:
    """Items by number: those that wait for a worker, those that are not finished, and how often each was given up."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items
        self.waiting = deque(range(len(items)))
        self.unfinished = set(self.waiting)
        self.attempts = [0] * (len(items) + 1)

    def next(self) -> tuple[int, Any]:
        number = self.waiting.popleft()
        return number, self.items[number]

    def put_back(self, number: int | None, ending: str) -> None:
        """A worker has died: its item comes first again; ChildProcessError if it has ended too many."""
        at = len(self.items) if number is None else number
        self.attempts[at] += 1
        if self.attempts[at] == ATTEMPTS:
            raise ChildProcessError(
                f"{ending}, as did {ATTEMPTS - 1} others at the same work. Is there memory for all of them? Take "
                "fewer workers, or fewer rows in a forward pass (and in a script, if __name__ == '__main__')"
            )
        warnings.warn(f"{ending}; what it was at is run again by another", stacklevel=3)
        if number is not None:
            self.waiting.appendleft(number)

    def finish(self, number: int | None) -> None:
        self.unfinished.discard(-1 if number is None else number)


def _require_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "Ray is not installed: pip install 'safetyheads[ray]', or use process_map for the cores of one machine"
        ) from error
    return ray
