"""Several processes as one run, on JAX's multi-controller runtime."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from threedim import settings as settings_lib
from threedim.errors import UserError

T = TypeVar("T")

# Seconds without a heartbeat after which a process counts as lost, and the others exit.
HEARTBEAT_TIMEOUT = 30
# Seconds that finished processes wait for the others, which may have more objects to sample.
_SHUTDOWN_TIMEOUT = 7 * 24 * 3600


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Connects this process with the others. Call it before any other use of JAX.

    Args:
      coordinator_address: "host:port" of process 0. Detected automatically, like the next two, on TPU pods and GKE, and
        under Slurm and Open MPI.
      num_processes, process_id: the number of processes, and the index of this one, from 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: if only some of the three are given, if they contradict each other, or if connecting fails.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise UserError(f"{', '.join(missing)} must be given too, or none of the three (TPU, GKE, Slurm, Open MPI)")
    if not missing and not 0 <= process_id < num_processes:
        raise UserError(f"--process_id must be in [0, {num_processes}), got {process_id}")
    if coordinator_address is not None:
        # JAX ends a process that cannot connect without naming the address.
        print(f"process {process_id} of {num_processes} connects to {coordinator_address}", file=sys.stderr)
        if process_id > 0:
            _wait_for(coordinator_address, timeout)
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        problem = (
            "the other processes could not be detected automatically; outside of TPU pods, GKE, Slurm and Open MPI"
        )
        problem += " use --coordinator_address, --num_processes and --process_id"
        if coordinator_address is not None:
            problem = f"process {process_id} of {num_processes} could not connect to {coordinator_address}: "
            problem += f"is the port free, did all processes start within {timeout} s?"
        raise UserError(f"--distributed: {problem} ({error})") from error


def _wait_for(address: str, timeout: float) -> None:
    """Waits until a server listens at "host:port"."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator_address must be host:port, got {address!r}")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                hint = "is process 0 running there, is the port open between the machines?"
                raise UserError(f"--distributed: no answer from {address} for {timeout} s ({error}): {hint}") from error
            time.sleep(0.2)


def end_on_sigterm() -> None:
    """Restores the default effect of SIGTERM, for work that may end at any time."""
    if jax.process_count() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_lead() -> bool:
    """Whether this is process 0, which prints, and writes what is written once."""
    return jax.process_index() == 0


def lead_first(function: Callable[[], T]) -> T:
    """Calls a function in process 0 first and then in the others, which find its results."""
    if jax.process_count() == 1:
        return function()
    result = function() if is_lead() else None
    multihost_utils.sync_global_devices("lead_first")
    return result if is_lead() else function()


def lead_decides(decision: bool) -> bool:
    """The decision of process 0, in all processes."""
    return decision if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.bool_(decision)))


def wait_for_all(what: str) -> None:
    """Waits until every process has reached this point, which may take hours. ``what`` names the point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def check_same(what: str, value: Any) -> None:
    """Raises UserError in all processes unless all have the same value."""
    if jax.process_count() > 1:
        everybody = multihost_utils.process_allgather(np.uint32(zlib.crc32(repr(value).encode())))
        if np.unique(everybody).size > 1:
            raise UserError(f"{what} differs between processes; process {jax.process_index()} has {value!r}")


def check_same_settings(settings: Mapping[str, Any]) -> None:
    """Raises UserError in all processes unless all have the same settings, nested dicts; names those that differ."""
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(settings_lib.plain(settings)).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, lengths.max() - text.size)))
    first, *others = (json.loads(text[:length].tobytes()) for text, length in zip(texts, lengths, strict=True))
    for process, other in enumerate(others, start=1):
        what = f"processes of one run were started with different settings: process 0 and process {process} differ in"
        settings_lib.refuse(what, settings_lib.differences(first, other), "Start all of them with the same command.")


def check_shared(folder: epath.PathLike) -> None:
    """Raises UserError in all processes unless all see what process 0 writes to a folder, which is created."""
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.uint32(time.time_ns() % 2**32))
    path = epath.Path(folder) / f".seen_by_all_{number}"
    if is_lead():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    wait_for_all("written")
    seen = multihost_utils.process_allgather(np.bool_(path.exists()))
    if is_lead():
        path.unlink()
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(f"process {blind} does not see {folder} of process 0: all processes need the same folder")


@contextlib.contextmanager
def dies_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once, also within the compiler, where Python cannot raise KeyboardInterrupt."""
    if not _takes_signals():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _takes_signals() -> bool:
    """Whether Python lets this thread handle signals: notebooks and servers may train in another one."""
    return threading.current_thread() is threading.main_thread()


class StopSignal:
    """Turns Ctrl-C, SIGTERM or a closed terminal (SIGHUP) into a request to stop.

    All processes see it after the same step, whichever received it. A second Ctrl-C has its default effect; SIGTERM may
    arrive several times, since schedulers send it to a process and to its group. With several processes SIGTERM is left
    to JAX, which makes them agree on a step, and the others are passed on as SIGTERM.
    """

    def __init__(self):
        self._together = jax.process_count() > 1
        self._received: signal.Signals | None = None

    def __enter__(self) -> StopSignal:
        numbers = [signal.SIGINT] if self._together else [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            numbers.append(signal.SIGHUP)
        numbers = numbers if _takes_signals() else []
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> signal.Signals | None:
        """The signal, if the run is to stop after this step. Call it after every step."""
        if self._together:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._received

    def _receive(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = signal.Signals(number)
