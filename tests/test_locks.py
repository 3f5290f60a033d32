"""One writer at a time, and what a holder that is gone leaves behind."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from threedim import locks
from threedim.errors import UserError

HOLD = """
import sys, time
from threedim import locks
with locks.hold(sys.argv[1], "trains in"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_is_named_and_a_killed_one_replaced(other, tmp_path):
    said = rf"another process trains in {re.escape(str(tmp_path))}: process {other.pid} on \S+, since \d{{4}}-"
    with pytest.raises(UserError, match=said), locks.hold(tmp_path, "trains in"):
        pass
    assert (tmp_path / locks.NAME).exists()
    other.kill()
    other.wait()
    with locks.hold(tmp_path, "trains in"):
        assert json.loads((tmp_path / locks.NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_number_of_another_process_is_not_the_holder(tmp_path):
    mine = {"token": "a", "what": "trains in", "since": 0, "alive": 0} | locks._here()
    (tmp_path / locks.NAME).write_text(json.dumps(mine | {"started": mine["started"] - 1000}))
    with locks.hold(tmp_path, "trains in"):
        pass


@pytest.mark.parametrize(("silent", "taken"), [(60, False), (180, True)])
def test_a_holder_on_another_host(tmp_path, silent, taken):
    holder = {"token": "a", "what": "trains in", "since": 0, "host": "elsewhere", "pid": os.getpid(), "started": 0}
    (tmp_path / locks.NAME).write_text(json.dumps(holder | {"alive": time.time() - silent}))
    if taken:
        with locks.hold(tmp_path, "trains in"):
            pass
    else:
        with pytest.raises(UserError, match="on elsewhere"), locks.hold(tmp_path, "trains in"):
            pass


def test_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    path = tmp_path / locks.NAME
    with locks.hold(tmp_path, "trains in"):
        before = json.loads(path.read_text())
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["alive"] == before["alive"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(path.read_text())["alive"] > before["alive"]
    assert not any(thread.name == "lock" for thread in threading.enumerate())


HOLDER = '{"token": "0", "what": "x", "since": 1, "host": "elsewhere", "pid": %s, "started": 1, "alive": %s}'


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[" * 100_000, HOLDER % ("1e400", 1), HOLDER % (-1, 9e9), HOLDER % (1, "NaN")]
)
def test_an_empty_or_damaged_lock_is_replaced(tmp_path, content):
    (tmp_path / locks.NAME).write_text(content)
    with locks.hold(tmp_path, "trains in"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["nowhere", locks.NAME])
def test_a_link_that_leads_nowhere_is_replaced(tmp_path, target):
    (tmp_path / locks.NAME).symlink_to(target)
    with locks.hold(tmp_path, "trains in"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"), locks.hold(tmp_path / "file", "trains in"):
        pass
    with (
        pytest.raises(UserError, match="cannot be written: Not a directory"),
        locks.hold(tmp_path / "file/x", "trains in"),
    ):
        pass
