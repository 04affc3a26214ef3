"""Processes of their own for tests, without an interpreter of their own: that would import for nine seconds each.

They are forked from a server that has imported the library once, plainly: without pytest's rewriting and without the
shapes that are checked in this process.
"""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not CAN_FORK, reason="the processes are forked")
IMPORTED = [
    "safetyheads.models.opening",
    "safetyheads.probes.single_heads",
    "transformer_lens.model_bridge",
    "transformers.models.llama.modeling_llama",
    "pandas",
    "tests.zoo",
]


forking: Any = multiprocessing.get_context("forkserver") if CAN_FORK else None
"""The context whose processes are forked from the server."""
if CAN_FORK:
    forking.set_forkserver_preload(IMPORTED)


def begin(function: Callable[..., Any], *args: Any) -> tuple[Any, Connection]:
    """Begin a call in a process of its own: the process, and where its result comes from."""
    here, there = forking.Pipe()
    process = forking.Process(target=_answer, args=(there, function, *args))
    process.start()
    there.close()
    return process, here


def _answer(connection: Connection, function: Callable[..., Any], *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection.send(function(*args))


def call(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Exit code and result of a call in a process of its own; None where it ended before it had one."""
    process, here = begin(function, *args)
    try:
        result = here.recv()
    except EOFError:
        result = None
    process.join()
    return process.exitcode, result
