"""Worker processes that may be killed: each item runs in one process, and its death costs that item only."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from threedim import workers

T = TypeVar("T")
R = TypeVar("R")


def run(work: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[tuple[T, R | None]]:
    """Yields each item with the result of ``work``, in the order in which they finish; None if its process died.

    An exception of ``work`` is raised here. If the caller stops early, also by Ctrl-C, the processes are killed.
    """
    items = iter(items)
    # By future: the item, and its process as a pool of one, so that it is known which item a process died of.
    running: dict[concurrent.futures.Future, tuple[T, _Worker]] = {}
    others = set(multiprocessing.active_children())
    try:
        for _, item in zip(range(num_workers), items, strict=False):
            worker = _Worker()
            running[worker.pool.submit(work, item)] = item, worker
        while running:
            for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                item, worker = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    worker.started.result()  # raises if it could not even start
                    result, worker = None, _Worker()
                yield item, result
                for following in items:
                    running[worker.pool.submit(work, following)] = following, worker
                    break
                else:
                    worker.pool.shutdown(wait=False)
    finally:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()


class _Worker:
    """A process. Spawned, not forked: JAX, which the cameras import, has threads."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pool = concurrent.futures.ProcessPoolExecutor(1, context, initializer=workers.start)
        self.started = self.pool.submit(os.getpid)
