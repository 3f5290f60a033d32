"""Kills prepare, train and sample again and again, lets them finish, and compares with a run that was never disturbed.

    python -m tests.campaign.kills --kills=200 --seed=0 --out=DIR

A chain prepares data, trains and samples. Each command is killed (SIGKILL) in phases that the seed chooses, and started
again; the phase that is counted is what was found on the disk afterwards. After each kill: no process of it is left,
nothing of it in /dev/shm, and the newest checkpoint can be read. After a chain: the same files with the same content
as undisturbed, and nothing in TMPDIR. Interrupted, the program goes on with the next chain.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import time

import numpy as np
import psutil
from etils import epath

from tests.campaign import Log, table

import commands  # isort: skip
import conftest  # isort: skip

from threedim import pixels
from threedim.data import convert, records
from threedim.progress import Progress
from threedim.training import checkpoints

# By mode: how many kills a chain has, and of each phase how often it is aimed at and the seconds that it lasts.
PHASES = {
    "prepare": (2, {"starting": (1, 5.0), "rendering": (4, 2.0), "converting": (3, 0.2)}),
    "train": (
        6,
        {"starting": (2, 12.0), "between saves": (2, 0.5), "first save": (3, 0.7), "later saves": (16, 0.7)},
    ),
    "sample": (2, {"starting": (1, 10.0), "sampling": (3, 4.0), "writing an object": (2, 0.5)}),
}
_GONE_WITHIN = 60  # seconds; of a busy machine, on which a worker may still import what it needs
# What differs between equal runs: times, TensorBoard's copy of the log, and bytes of records and of arrays, of which
# the checksums are compared with those in other files.
_TIMES = ("time", "seconds_per_step", "examples_per_second", "examples_per_second_per_device", "data_wait_fraction")
_UNCOMPARED = re.compile(r"run/(tensorboard/events.*|checkpoints/\d+/state/.*/?d/.*)|.*\.array_record-.*")


class Folders:
    """The folders of a chain, and what is in them."""

    def __init__(self, root):
        self.root, self.run, self.data, self.out = root, root / "run", root / "data", root / "out"
        self.tmp = root / "tmp"
        self.tmp.mkdir(parents=True)

    def start(self, mode, xla, num_workers):
        c = conftest.make_config("", self.data)
        c.train.num_steps, c.train.checkpoint_every, c.train.num_workers = 40, 4, num_workers
        c.sample.num_steps, c.sample.batch_size, c.sample.out = 200, 1, str(self.out)
        procedural = {"num_train_objects": 4, "num_test_objects": 2, "views": 6, "test_views": 6, "size": 32}
        flags = [f"--config.data.procedural.{name}={value}" for name, value in procedural.items()]
        environment = {"TMPDIR": str(self.tmp), "JAX_COMPILATION_CACHE_DIR": str(xla)}
        return commands.start(mode, c, self.run, *flags, "--config.data.num_test_objects=0", **environment)

    def temporaries(self):
        """Unfinished folders, by what they are told apart by from those of an earlier process, in order of time."""
        patterns = ("run/checkpoints/*orbax-checkpoint-tmp*", "data/.*.incomplete", "out/views/.*.incomplete")
        found = []
        for path in (path for pattern in patterns for path in self.root.glob(pattern)):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stat().st_ino, path.name))
        return {(name, number): path for path, number, name in sorted(found)}

    def saved(self):
        folder = self.run / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []

    def phase(self, mode, before):
        """Where a command is, by what is on the disk and was not before it began."""
        is_new = any(key not in before["temporaries"] for key in self.temporaries())
        if mode == "prepare":
            return "converting" if is_new else "rendering" if (self.data / "procedural").exists() else "starting"
        if mode == "train":
            if is_new:
                return "later saves" if self.saved() else "first save"
            return "between saves" if self.lines() > before["lines"] or self.saved() != before["saved"] else "starting"
        if is_new:
            return "writing an object"
        return "sampling" if self.pictures() != before["pictures"] else "starting"

    def snapshot(self):
        """What `phase` compares with."""
        counts = {"lines": self.lines(), "saved": self.saved(), "pictures": self.pictures()}
        return counts | {"temporaries": self.temporaries()}

    def lines(self):
        # A restart shortens the log: its inode tells that this has happened.
        path = self.run / "metrics.jsonl"
        return (path.stat().st_ino, path.read_bytes().count(b"\n")) if path.exists() else (0, 0)

    def pictures(self):
        return sorted(map(str, [*self.out.glob("unfinished/*/*.png"), *self.out.glob("views/*")]))

    def content(self):
        """By file, what must be equal in equal runs; also names of what must not be there, such as temporaries."""
        found = {}
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            name = path.relative_to(self.root).as_posix()
            if name == "run/metrics.jsonl":
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                found[name] = [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]
            elif name == "run/config.json":
                found[name] = json.loads(path.read_text().replace(str(self.root), ""))["config"]
                del found[name]["train"]["num_workers"]
            elif re.fullmatch(r"run/checkpoints/.*", name):
                # Of arrays, the checksums; `damage` has compared these with the arrays.
                if name.endswith("leaves/metadata"):
                    found[name] = json.loads(path.read_text())
                elif not _UNCOMPARED.fullmatch(name):
                    found[name] = None
            elif not _UNCOMPARED.fullmatch(name):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def damage(self, steps=slice(-1, None)):
        """What cannot be read of what counts as finished."""
        problems = []
        for step in checkpoints._finished_steps(epath.Path(self.run) / "checkpoints")[steps]:
            problem = checkpoints._verify(epath.Path(self.run) / "checkpoints" / str(step))
            problems += [f"checkpoint {step}: {problem}"] if problem else []
        try:
            if (self.data / "records").exists():
                for split, info in records.read_info(self.data / "records").splits.items():
                    views = list(records.open_split(self.data / "records", split))
                    if info.fingerprint != records.digest_lines(map(convert.object_digest, views)):
                        problems.append(f"the fingerprint of split {split} is another one")
            [pixels.load_png(path) for path in self.out.rglob("*.png") if path.parent.name[0] != "."]
        except Exception as error:
            problems.append(repr(error))
        return problems


def one_run(folders, mode, xla, num_workers, rng=None, aim=None):
    """Runs a command, and kills it in the phase ``aim``. Returns the phase of the kill, None if it ended before."""
    before, process = folders.snapshot(), folders.start(mode, xla, num_workers)
    problems, phase, shared, children = [], None, set(), []
    if aim is not None:
        # Of a phase that comes again, one of the first.
        seen, skip = set(), int(rng.integers(1, 4)) if aim == "later saves" else 1
        while aim != "starting" and process.poll() is None:
            if folders.phase(mode, before) == aim:
                seen |= folders.temporaries().keys() - before["temporaries"].keys() or {aim}
            if len(seen) >= skip:
                break
            time.sleep(0.01)
        deadline = time.monotonic() + rng.uniform(0, PHASES[mode][1][aim][1])
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            shared = {name for one in [process, *children] for name in _shared_memory(one.pid)}
            process.kill()
            process.wait()
            phase = folders.phase(mode, before)
            left = psutil.wait_procs(children, timeout=_GONE_WITHIN)[1]
            problems += [f"process left: {' '.join(child.cmdline())[:200]}" for child in left]
            [child.kill() for child in left]
            problems += [f"left: {name}" for name in shared if pathlib.Path(name).exists()]
            problems += folders.damage()
    out, err = process.communicate(timeout=600)
    if phase is None and process.returncode:
        problems.append(f"exit code {process.returncode}: {out[-1000:]}{err[-3000:]}")
    elif phase is None and "Warning" in err:
        problems.append(err[-2000:])
    return phase, problems


def _shared_memory(pid):
    with contextlib.suppress(OSError):
        return set(re.findall(r"/dev/shm/\S+", pathlib.Path(f"/proc/{pid}/maps").read_text()))
    return set()


def chain(number, seed, kills, folder, xla, expected, bar):
    """Prepares, trains and samples with so many kills at most; the entries for the log."""
    rng, folders, entries, failed = np.random.default_rng([seed, number]), Folders(folder), [], []
    for mode, (most, phases) in PHASES.items():
        left = min(most, kills - len(entries))
        while left:
            possible = [name for name in phases if name != "first save" or not folders.saved()]
            weights = np.array([phases[name][0] for name in possible], float)
            aim = str(rng.choice(possible, p=weights / weights.sum()))
            phase, problems = one_run(folders, mode, xla, number % 2, rng, aim)
            if phase is None:  # it ended before
                failed += problems
                break
            entries.append({"chain": number, "mode": mode, "aim": aim, "phase": phase, "problems": problems})
            left -= 1
            bar.advance()
        failed += one_run(folders, mode, xla, number % 2)[1]
        if failed:
            break
    failed += folders.damage(slice(None))
    found = folders.content()
    differing = [name for name in found.keys() | expected.keys() if found.get(name, 0) != expected.get(name, 0)]
    failed += [f"differs: {', '.join(sorted(differing)[:20])}"] if differing else []
    return [*entries, {"chain": number, "equal": not failed, "problems": failed}]


def reference(folder, xla):
    """The content of a chain without kills."""
    path = folder.with_suffix(".json")
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folders = Folders(folder)
        for mode in PHASES:
            _, problems = one_run(folders, mode, xla, num_workers=0)
            assert not problems, problems
        path.write_text(json.dumps(folders.content()))
    return json.loads(path.read_text())


def summary(entries):
    """The table, and whether all is well."""
    equal = {entry["chain"]: entry["equal"] for entry in entries if "equal" in entry}
    kills = collections.defaultdict(list)
    for entry in entries:
        if "phase" in entry:
            kills[entry["mode"], entry["phase"]].append((not entry["problems"], equal[entry["chain"]]))
    order = [(mode, phase) for mode, (_, phases) in PHASES.items() for phase in phases]
    rows = [(*key, len(kills[key]), *map(sum, zip(*kills[key], strict=True))) for key in order if kills[key]]
    rows.append(("all", "", *(sum(row[i] for row in rows) for i in (2, 3, 4))))
    head = ("killed", "phase", "kills", "all readable, nothing left", "in a chain that ended as undisturbed")
    said = f"{table(head, rows)}\n\n{len(equal)} chains, {sum(equal.values())} of them ended as the undisturbed one."
    problems = [f"chain {entry['chain']}: {problem}" for entry in entries for problem in entry["problems"]]
    return "\n".join([said, *problems]), not problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Folder of the results; goes on if it exists.")
    given = parser.parse_args()
    out = given.out.resolve()
    log = Log(out)
    expected = reference(out / "undisturbed", out / "xla")
    done = sum("phase" in entry for entry in log.entries)
    number = 1 + max((entry["chain"] for entry in log.entries), default=-1)
    with Progress(given.kills, initial=done, desc="kills") as bar:
        while (done := sum("phase" in entry for entry in log.entries)) < given.kills:
            folder = out / f"chain_{number}"
            shutil.rmtree(folder, ignore_errors=True)
            entries = chain(number, given.seed, given.kills - done, folder, out / "xla", expected, bar)
            log.add(*entries)
            if entries[-1]["equal"] and not any(entry["problems"] for entry in entries):
                shutil.rmtree(folder)  # else kept
            number += 1
    said, is_fine = summary(log.entries)
    print(said)
    sys.exit(not is_fine)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
