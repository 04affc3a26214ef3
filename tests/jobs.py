"""What workers run in tests: a module of its own, so that they import little."""

import os
import pickle
import signal


def square(n):
    """n squared, with the worker's process and threads; 13 raises, 99 ends the worker."""
    if n == 13:
        raise FileNotFoundError("thirteen")
    if n == 99:
        os._exit(5)
    return n * n, os.getpid(), os.environ["OMP_NUM_THREADS"]


def dying_once(function, marker, item):
    """Run the function; but the first item that any worker begins ends that worker with SIGKILL.

    Both come pickled: a worker that ends at once has imported nothing.
    """
    begun = len(list(marker.iterdir()))
    (marker / f"{begun}-{os.getpid()}").touch()
    if begun == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return pickle.loads(function)(pickle.loads(item))
