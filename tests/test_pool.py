"""Worker processes of which some are killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from commands import REPOSITORY

from threedim.rendering import pool


def square(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        raise ValueError("seven")
    return number**2


def test_a_killed_process_costs_one_item():
    assert dict(pool.run(square, [1, 2, 3, 4], 2)) == {1: 1, 2: None, 3: 9, 4: 16}


def test_exceptions_are_raised():
    with pytest.raises(ValueError, match="seven"):
        list(pool.run(square, [7, 1], 1))


SLEEP = """
import time
from threedim.rendering import pool
if __name__ == "__main__":
    for _ in pool.run(time.sleep, [0.01, 600, 600], 2):
        print("running", flush=True)
"""


@pytest.mark.slow
def test_workers_end_when_their_process_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SLEEP)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
        found = [pathlib.Path(f"/proc/{worker}") for thread in threads for worker in thread.read_text().split()]
        assert len(found) >= 2
        process.kill()
    deadline = time.monotonic() + 30
    while any(worker.exists() for worker in found):
        assert time.monotonic() < deadline
        time.sleep(0.05)
