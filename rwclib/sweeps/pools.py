"""Processes of this machine for a sweep: forked, where that exists, from a clean server process that has imported PyTorch once for all."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext


def start_server() -> BaseContext:
    """Let the server begin to import, while this process does so too; the context of its children."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["rwclib.sweeps.forecast", "torchvision"])
        forkserver.ensure_running()
    return context


def local_pool() -> ProcessPoolExecutor:
    """One worker: if it dies, it costs its own run alone."""
    return ProcessPoolExecutor(1, mp_context=start_server())


def end(pool: ProcessPoolExecutor) -> None:
    """Stop its worker at once."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


@contextmanager
def one_answer() -> Iterator[ProcessPoolExecutor]:
    """`local_pool()` that does not outlast an interruption."""
    with local_pool() as pool:
        try:
            yield pool
        except BaseException:
            end(pool)
            raise
