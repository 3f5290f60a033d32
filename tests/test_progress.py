"""Progress bars."""

import io
import os
import pty
import sys
import time

from threedim.progress import Progress, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_log_file_is_plain_lines():
    log = io.StringIO()
    with Progress(1200, initial=200, desc="steps", interval=1e9, file=log) as bar:
        assert bar.initial == 200
        bar.set(201, {"loss": 0.123456, "pairs/s": 99.5, "checkpoint": 1_234_567})
        for step in range(202, 1200):
            bar.set(step)
        bar.set(1200, {"loss": 0.1})
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert len(lines) == 2, "the first and the last"
    said = "steps 201/1,200 (17 %), loss 0.1235, pairs/s 99.5, checkpoint 1,234,567, 00:00 elapsed, "
    assert lines[0].startswith(said)
    assert lines[0].endswith(" left")
    assert lines[1].startswith("steps 1,200/1,200 (100 %), loss 0.1, pairs/s 99.5, ")
    assert lines[1].endswith("00:00 left")


def test_progress_lines_come_at_intervals(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with Progress(100, desc="train", interval=30.0, file=log) as bar:
        for step in range(1, 51):
            now[0] += 2.0
            bar.set(step)
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "16/100", "31/100", "46/100", "50/100"]
    # 46 in 92 s: 54 more take 108 s.
    assert lines[3] == "train 46/100 (46 %), 01:32 elapsed, 01:48 left"


def test_progress_on_a_terminal_is_one_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, initial=4, desc="train") as bar:
        bar.set(7, {"loss": 0.5})
        say("a line")
        bar.set(10)
        bar.close()
    assert "train: 100%" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()
    assert "loss=0.5" in terminal.getvalue()
    shown = [line.rpartition("\r")[2].rstrip() for line in terminal.getvalue().split("\n")]
    assert [line.partition(":")[0] for line in shown] == ["a line", "train", ""]


def test_progress_disabled_and_empty():
    log = io.StringIO()
    with Progress(10, enabled=False, file=log) as bar:
        bar.set(5, {"loss": 1.0})
    assert log.getvalue() == ""
    with Progress(0, desc="views", file=log):
        pass
    assert log.getvalue().startswith("views 0/0 (0 %)")


def test_a_terminal_without_size_shows_a_bar():
    main, other = pty.openpty()  # 0 x 0
    with os.fdopen(other, "w") as terminal, Progress(2, desc="views", file=terminal) as bar:
        bar.advance(2)
    assert b"views: 100%" in os.read(main, 10_000)
    os.close(main)
