"""Damages everything that the project reads, byte by byte and file by file, and tells what comes of it.

    python -m tests.campaign.mutations --mutations=5000 --command_lines=300 --seed=0 --out=DIR

Each case is a small valid input of one kind (`inputs`), of which the seed damages one file. It is read by the function
that the project reads it with, in one process; the first cases also by the command line. Outcomes: a clean error (a
`UserError` that names the file), an unchanged result, or another result where no checksum can tell. Anything else is a
fault, and its input is kept in DIR/faults: another exception, a crash, a hang, memory, warnings of libraries, a changed
result despite a checksum, files that an error has changed. Interrupted, the program goes on.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

from tests.campaign import Log, table
from threedim.errors import UserError
from threedim.progress import Progress

import commands  # isort: skip

OUTCOMES = ("clean error", "unchanged result", "changed result that no one can know", "fault")
_SECONDS, _COMMAND_SECONDS, _BYTES, _BRAKE = 120, 300, 1 << 30, 8 << 30
_TEXT = (".txt", ".json", ".jsonl", ".obj", ".mtl", ".off", ".dae", ".gltf", ".py", ".lock", "")
_TOKENS = (b"nan", b"inf", b"-1", b"0", b"1e400", b"99999999999999999999", b"", b"x", b"../../x", b"\xff\xfe", b"\0")
_TOKENS += (b"\x1b[31m", "\u00e9\u2028".encode(), b"9" * 5000, b"[" * 100_000, b"3" * 400)
_VALUES = (None, True, -1, 0, 0.5, 1e308, 10**30, float("nan"), float("inf"), "", "x", "../x", "\ud800", "a\x1b[31m\nb")
_VALUES += ([], {}, [1], {"a": 1}, "NEST")


def mutate(rng, folder, pattern):
    """Damages one file below a folder. Returns the file and what was done."""
    path = pathlib.Path(rng.choice(sorted(str(path) for path in folder.glob(pattern) if path.is_file())))
    draw, is_text = rng.random(), path.suffix in _TEXT and b"\0" not in path.read_bytes()
    if draw < 0.15:
        return path, _replace(rng, path)
    if draw < 0.4 and path.suffix in (".json", ".jsonl", ".gltf"):
        return path, _edit_json(rng, path)
    if draw < 0.7 and is_text:
        return path, _edit_text(rng, path)
    return path, _edit_bytes(rng, path)


def _replace(rng, path):
    """Puts something else in the place of a file."""
    kinds = ["removed", "folder", "pipe", "dangling", "loop", "outside", "empty", "copy", "renamed"]
    how, data = str(rng.choice(kinds)), path.read_bytes()
    beside = path.with_name(f"{path.stem}{rng.choice([' copy', '²', '.bak', '_', '0'])}{path.suffix}")
    if how == "copy":
        beside.write_bytes(data)
        return f"a copy {beside.name}"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "loop"):
        path.symlink_to("nowhere" if how == "dangling" else path.name)
    elif how == "outside":
        outside = pathlib.Path(tempfile.mkdtemp()) / path.name
        outside.write_bytes(data)
        path.symlink_to(outside)
    elif how == "empty":
        path.touch()
    elif how == "renamed":
        beside.write_bytes(data)
    return how


def _edit_bytes(rng, path):
    data = bytearray(path.read_bytes())
    how = str(rng.choice(["flip", "write", "zero", "ones", "cut", "remove", "double", "append"]))
    at, count = int(rng.integers(max(len(data), 1))), int(rng.choice([1, 4, 8, 16, 64]))
    if how == "flip" and data:
        data[at] ^= 1 << int(rng.integers(8))
    elif how in ("write", "zero", "ones"):
        data[at : at + count] = {"write": rng.bytes(count), "zero": bytes(count), "ones": b"\xff" * count}[how]
    elif how in ("cut", "remove"):
        del data[at : None if how == "cut" else at + count]
    else:
        data[at:at] = data[at : at + count] if how == "double" else b""
        data += rng.bytes(count) if how == "append" else b""
    path.write_bytes(data)
    return f"{how} {count} at {at}"


def _edit_text(rng, path):
    data = path.read_bytes()
    if rng.random() < 0.4:
        lines = data.splitlines(keepends=True) or [b""]
        at = int(rng.integers(len(lines)))
        how = str(rng.choice(["removed", "twice", "moved"]))
        line = lines[at] if how == "twice" else lines.pop(at)
        if how != "removed":
            lines.insert(int(rng.integers(len(lines) + 1)), line)
        path.write_bytes(b"".join(lines))
        return f"line {at + 1} {how}"
    tokens = list(re.finditer(rb"[^\s,\"<>{}\[\]:=()/]+", data))
    if not tokens:
        return "nothing"
    found, new = tokens[rng.integers(len(tokens))], _TOKENS[rng.integers(len(_TOKENS))]
    path.write_bytes(data[: found.start()] + new + data[found.end() :])
    return f"{found.group()[:40]!r} is {new[:40]!r}"


def _edit_json(rng, path):
    lines = path.read_text().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_text()]
    at = int(rng.integers(len(lines)))
    content = json.loads(lines[at])
    places = [(top := [content], 0)]
    for node, key in places:  # grows meanwhile
        if isinstance(node[key], dict | list):
            places += [
                (node[key], each) for each in (node[key] if isinstance(node[key], dict) else range(len(node[key])))
            ]
    node, key = places[rng.integers(len(places))]
    value = _VALUES[rng.integers(len(_VALUES))]
    if rng.random() < 0.2 and node is not top:
        del node[key]
        said = f"without {key!r}"
    else:
        node[key], said = value, f"{key!r} is {value!r}"
    lines[at] = json.dumps(top[0]).replace('"NEST"', "[" * 3000 + "]" * 3000) + "\n" * (path.suffix == ".jsonl")
    path.write_text("".join(lines))
    return said


def digest(value):
    """The sha256 of a tree of arrays, dataclasses, and what JSON knows."""

    def feed(value):
        if dataclasses.is_dataclass(value):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, dict):
            value = [each for item in sorted(value.items(), key=lambda item: repr(item[0])) for each in item]
        if isinstance(value, list | tuple):
            total.update(f"[{len(value)}".encode())
            for each in value:
                feed(each)
        elif hasattr(value, "dtype") and value.dtype != object:
            value = np.asarray(value)
            total.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            total.update(repr(value).encode())

    total = hashlib.sha256()
    feed(value)
    return total.hexdigest()


def tree(folder):
    """What a folder holds, without opening pipes."""
    paths = sorted(path for path in folder.rglob("*") if path.name != ".lock")
    return {
        str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else path.lstat().st_mode
        for path in paths
    }


def read(kind, folder, expected):
    """The outcome of reading a case in this process, and a note."""
    before, memory = tree(folder), _status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    with _stderr() as said, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", r"the load_module\(\)")  # as `main.run` does
        try:
            result, error = digest(kind.read(folder)), None
        except UserError as found:
            error = found
        except BaseException as found:
            return "fault", f"{type(found).__name__}: {found}"[:2000]
    noise = [
        line for line in "".join(said).splitlines() if not re.search(r"\(\d+ %\)|^$|did you forget a return", line)
    ]
    if _status("VmHWM") - memory > _BYTES:
        return "fault", f"takes {(_status('VmHWM') - memory) / 2**30:.1f} GiB"
    if noise or [each for each in warned if not issubclass(each.category, SyntaxWarning)]:
        return "fault", "\n".join([f"({error})", *noise, *(str(each.message) for each in warned)])[:2000]
    if error is not None:
        problem = _unclear(str(error), folder)
        if not problem and not kind.writes and tree(folder) != before:
            problem = "files have changed"
        return ("fault", f"{problem}: {error}"[:2000]) if problem else ("clean error", str(error)[:300])
    if result == expected:
        return "unchanged result", ""
    return ("fault", "a changed result") if kind.is_sealed else ("changed result that no one can know", "")


def _unclear(message, folder):
    lines = message.split("\n")
    names = [str(folder), *(path.name for path in folder.rglob("*"))]
    # One line, or a list in which the message goes on.
    if not all(line.isprintable() for line in lines) or any(
        line[:2] != "  " and not line[:1].isupper() for line in lines[1:]
    ):
        return "a message that is not one line, or not of letters"
    if len(message) > 3000:
        return "a message of more than 3,000 letters"
    return None if any(name in message for name in (*names, "config.")) else "a message without the file or field"


def _status(name):
    """Bytes of this process, such as VmRSS."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])


@contextlib.contextmanager
def _stderr():
    """A list that gets what this process writes to stderr meanwhile, also what its C libraries write."""
    sys.stderr.flush()
    said, kept = [], os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def run(kind, folder):
    """The outcome of the command line on a case, and a note."""
    before = tree(folder)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *kind.command(folder)],
            cwd=commands.REPOSITORY,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            env=os.environ | {"PYTHONPATH": str(commands.REPOSITORY)},
        )
    except subprocess.TimeoutExpired:
        return "fault", "the command takes minutes"
    if "Traceback" in done.stderr or done.returncode not in (0, 1, 2) or re.search(r"Warning:|^WARNING", done.stderr):
        return "fault", f"exit code {done.returncode}: {done.stdout[-500:]}{done.stderr[-2500:]}"
    if not done.returncode:
        return "goes on", ""
    said = re.findall(r"^(?:error: |\d+ meshes could not be rendered:\n)(.*(?:\n  .*)*)$", done.stderr, re.M)
    if len(said) != 1 or _unclear(said[0], folder):
        return "fault", f"exit code {done.returncode}, an unclear message: {done.stderr[-2500:]}"
    after = tree(folder)
    harmed = [name for name in before if after.get(name) != before[name]]
    return ("fault", f"changed by a command that failed: {harmed}") if harmed else ("clean error", said[0][:300])


def work(connection, out, seed, todo):
    """Runs cases in this process: sends the number of each when it begins, and then its entry."""
    resource.setrlimit(resource.RLIMIT_DATA, (_BRAKE, _BRAKE))
    from tests.campaign import inputs  # slow

    sys.excepthook = inputs.main._show_exception  # as `main.run` does

    os.environ["TMPDIR"] = tempfile.tempdir = str(out / "tmp")
    (out / "tmp").mkdir(exist_ok=True)
    (out / "valid").mkdir(exist_ok=True)
    kinds, expected, folder = inputs.kinds(out / "inputs"), {}, out / "case"
    names = list(kinds)
    for number, by_command in todo:
        usable = [name for name in names if kinds[name].command] if by_command else names
        name, rng = usable[number % len(usable)], np.random.default_rng([seed, number])
        kind, valid = kinds[name], out / "valid" / name.replace("/", " ")
        with contextlib.redirect_stdout(io.StringIO()):
            if not valid.exists():
                shutil.rmtree(out / "making", ignore_errors=True)
                kind.make(out / "making")
                (out / "making").rename(valid)
            if name not in expected:
                _copy(valid, folder)
                expected[name] = digest(kind.read(folder))
            _copy(valid, folder)
        path, how = mutate(rng, folder, kind.changed)
        entry = {
            "case": number,
            "by_command": by_command,
            "kind": name,
            "mutation": f"{path.relative_to(folder)}: {how}",
        }
        kept = out / "faults" / f"{number}{'_command' if by_command else ''}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True, copy_function=_copy_file)
        connection.send(entry)
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            outcome, note = run(kind, folder) if by_command else read(kind, folder, expected[name])
        if outcome != "fault":
            shutil.rmtree(kept)
        connection.send(entry | {"outcome": outcome, "note": note, "seconds": round(time.monotonic() - began, 2)})


def _copy(valid, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder, symlinks=True)


def _copy_file(source, target):
    if pathlib.Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def run_all(out, seed, todo, log, bar):
    """Runs cases in a process, and in another one if it hangs or dies."""
    while todo:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(sender, out, seed, todo))
        process.start()
        sender.close()
        entry, todo = None, list(todo)
        try:
            while todo:
                seconds = 900 if entry is None or "outcome" in entry else (_SECONDS, _COMMAND_SECONDS + 30)[todo[0][1]]
                if not receiver.poll(seconds):
                    raise TimeoutError(f"takes more than {seconds} s")
                entry = receiver.recv()
                if "outcome" in entry:
                    log.add(entry)
                    bar.advance()
                    todo.pop(0)
        except (EOFError, TimeoutError) as error:
            process.kill()
            process.join()
            if entry is None or "outcome" in entry:
                raise RuntimeError(f"the process does not begin case {todo[0]}") from error
            note = str(error) or f"the process ended with {process.exitcode}"
            log.add(entry | {"outcome": "fault", "note": note})
            bar.advance()
            todo.pop(0)
        process.join()


def summary(entries):
    """The tables, and whether there is no fault."""
    said = []
    for by_command, outcomes in ((False, OUTCOMES), (True, ("clean error", "goes on", "fault"))):
        counts = collections.defaultdict(collections.Counter)
        for entry in entries:
            if entry["by_command"] == by_command:
                for name in (entry["kind"], "all"):
                    counts[name][entry["outcome"]] += 1
        order = [*sorted(counts.keys() - {"all"}), *(["all"] if counts else [])]
        rows = [(name, counts[name].total(), *(counts[name][each] for each in outcomes)) for name in order]
        what = "command lines with damaged" if by_command else "damaged"
        said += [table((what, "cases", *outcomes), rows), ""] if rows else []
    faults = [entry for entry in entries if entry["outcome"] == "fault"]
    said += [f"case {each['case']} ({each['kind']}, {each['mutation']}): {each['note']}" for each in faults]
    return "\n".join(said), not faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--command_lines", type=int, default=300, help="Cases that are also run as full commands.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Folder of the results; goes on if it exists.")
    given = parser.parse_args()
    out = given.out.resolve()
    log = Log(out)
    if not (out / "made").exists():
        shutil.rmtree(out / "inputs", ignore_errors=True)
        subprocess.run([sys.executable, "-c", _MAKE, str(out / "inputs")], cwd=commands.REPOSITORY, check=True)
        (out / "made").touch()
    todo = [(i, False) for i in range(given.mutations)] + [(i, True) for i in range(given.command_lines)]
    done = {(entry["case"], entry["by_command"]) for entry in log.entries}
    left = [each for each in todo if each not in done]
    with Progress(len(todo), initial=len(todo) - len(left), desc="mutations") as bar:
        run_all(out, given.seed, left, log, bar)
    said, is_fine = summary(log.entries)
    print(said)
    sys.exit(not is_fine)


_MAKE = "import pathlib, sys; from tests.campaign import inputs; inputs.make(pathlib.Path(sys.argv[1]))"

if __name__ == "__main__":
    main()
