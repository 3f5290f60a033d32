"""Folders appear whole, whoever writes them."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import threading

import pytest
from etils import epath

from threedim import files
from threedim.errors import ExistsError, MissingError, UserError
from threedim.files import check_name, interpreting, new_folder, read_json


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, content, meet=lambda: None):
    with new_folder(folder) as temporary:
        (temporary / "a").mkdir()
        (temporary / "a/b").write_text(content)
        meet()


def test_several_writers_of_the_same_content_all_succeed(tmp_path):
    threads, problems, barrier = [], [], threading.Barrier(4)

    def one():
        try:
            write(tmp_path / "x", "same", barrier.wait)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert (left(tmp_path), (tmp_path / "x/a/b").read_text()) == (["x"], "same")


def test_other_content_is_refused(tmp_path):
    with pytest.raises(ExistsError, match="x was created by another process meanwhile, with other content"):
        write(tmp_path / "x", "one", lambda: write(tmp_path / "x", "other"))
    assert (left(tmp_path), (tmp_path / "x/a/b").read_text()) == (["x"], "other")
    with pytest.raises(ExistsError, match="x exists"):
        write(tmp_path / "x", "one")


def test_only_what_killed_processes_left_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host = socket.gethostname()
    for writer in (f"{host}.{killed.pid}", f"{host}.{running.pid}", f"elsewhere.{killed.pid}"):
        (tmp_path / f".x.{writer}.0.incomplete").mkdir()
    write(tmp_path / "x", "")
    running.communicate()
    assert left(tmp_path) == sorted(
        [f".x.{host}.{running.pid}.0.incomplete", f".x.elsewhere.{killed.pid}.0.incomplete", "x"]
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e400}', b'{"a": ' + b"9" * 5000 + b"}"],
)
def test_damaged_json_is_named(tmp_path, content):
    path = epath.Path(tmp_path / "config.json")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged \("):
        read_json(path)


def test_json_that_cannot_be_read_is_named(tmp_path):
    for name in ("loop.json", "gone.json"):
        (tmp_path / name).symlink_to("loop.json" if name == "loop.json" else "nowhere")
        with pytest.raises(UserError, match=rf"{name} cannot be read: "):
            read_json(epath.Path(tmp_path / name))


def test_fields_of_another_kind_are_named(tmp_path):
    for wrong in ({}, {"a": None}, {"a": {"b": "x"}}):
        with (
            pytest.raises(UserError, match=r"a\.json is damaged \(.*\); delete it"),
            interpreting("a.json", "delete it"),
        ):
            int(wrong["a"]["b"])


def test_names():
    for name in ("chair", "a.b", "ünï", "x" * 200):
        check_name(name, "file")
    for name in ("", ".a", "..", "a/b", "a\\b", "a\0", "ü" * 101):
        with pytest.raises(UserError, match=r"file: .* cannot be the name of an object"):
            check_name(name, "file")


def test_paths_as_a_shell_reads_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    read = {
        "~/x": "/home/me/x",
        "~": "/home/me",
        "$DATA/x": "/data/x",
        "${DATA}set": "/dataset",
        "a/~": "a/~",
        "a": "a",
    }
    assert {text: files.path(text) for text in read} == read
    for same in (None, "", "gs://$DATA/~", "$UNSET/x"):
        assert files.path(same) == same


def test_flags_with_paths_are_read_alike():
    """Flags of argparse; repeatable ones of the kind NAME=DIR are split first."""
    root = pathlib.Path(__file__).parents[1]
    sources = [source for folder in ("threedim", "scripts", "benchmarks") for source in (root / folder).rglob("*.py")]
    declared = [re.findall(r'add(?:_argument)?\("-*[a-z_]+", [^\n]*', source.read_text()) for source in sources]
    about = [flag for flags in declared for flag in flags if re.search(r"(?i)\b(folder|file|weights)\b", flag)]
    assert len(about) > 15
    unread = [flag for flag in about if "files.path" not in flag and 'action="' not in flag]
    assert unread == []


def test_a_path_in_an_ascii_locale_is_refused():
    with pytest.raises(UserError, match=r"Python does not read this path as UTF-8 here; set LC_ALL=C\.UTF-8"):
        files.path("/tmp/" + "Übung".encode().decode("ascii", "surrogateescape"))


def test_a_pipe_in_place_of_a_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"config\.json is a pipe or a device; expected a file"):
        files.read_json(epath.Path(tmp_path / "config.json"))
    with pytest.raises(UserError, match="is a folder; expected a file"):
        files.read_json(epath.Path(tmp_path))


def test_errors_can_be_shown_on_a_terminal():
    error = MissingError("a\x1b[31m\u2028 ü:\n  " + "9" * 5000)
    assert str(error).startswith("a\\x1b[31m\\u2028 ü:\n  999")
    assert len(str(error)) < 1100
