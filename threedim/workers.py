"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def start(*_) -> None:
    """Call it first in a worker process: it leaves signals to the process that started it, and ends with it.

    Ctrl-C, and on Slurm SIGTERM, reach the whole process group. The main process decides when to stop: it could wait
    forever for a worker that dies while writing. If the main process is killed, workers have to notice.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
