"""Trains, exports and evaluates a small network within a given number of minutes.

    python -m scripts.train_demo --minutes=10 --out=runs/gpu64 [--config=configs/gpu64.py] [-- --config.seed=1]

While the data is rendered on all cores, the training step compiles and runs for a few seconds. From its speed and the
minutes left follows the number of steps, at whose end the learning rate is zero. The folder gets the weights
``NAME.safetensors`` after the name of the config, a sheet ``NAME.png``, a card ``NAME.md``, ``curves.png``, the scores
in ``evaluation``, the training run in ``run``, and what every command printed in ``logs``. After an interruption the
same command goes on with the minutes that are left; with more ``--minutes`` it trains longer. What follows ``--`` goes
to every call of threedim.main.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from scripts.tables import number
from threedim import errors, files, weights_file
from threedim.errors import MissingError, UserError
from threedim.output import curves
from threedim.training import metrics
from threedim.training.checkpoints import find_step

# Steps between log lines of the short run whose second to fourth line give the speed.
_LOG_EVERY = 10
# Part of the time that is planned with, since speed varies.
_MARGIN = 0.97
# How far the speed may be from the planned one before the number of steps is chosen anew.
_TOLERANCE = 0.1
# Seconds that a process gets to save and end after a signal.
_PATIENCE = 60


def reserve(minutes: float) -> float:
    """Seconds to keep for saving, export, evaluation and card: a quarter of the time, at most 150."""
    return min(150.0, 15.0 * minutes)


def choose_steps(done: int, seconds: float, start_up: float, seconds_per_step: float) -> int:
    """The number of steps that a run that has ``done`` some reaches in so many seconds, start-up included."""
    return done + max(1, int(_MARGIN * (seconds - start_up) / seconds_per_step))


def speed(lines: Sequence[dict[str, Any]], log: str, began: float) -> tuple[float, float]:
    """Seconds per step, and from the start of the process to its first step without compiling.

    Args:
      lines: of metrics.jsonl; the first is of steps that also wait for much else.
      log: what the training printed.
      began: time when its process started.
    """
    seconds_per_step = min(line["seconds_per_step"] for line in lines[1:] or lines)
    *_, compiling = [0, *map(int, re.findall(r"compiled in (\d+) s", log))]
    before = lines[0]["time"] - lines[0]["step"] * lines[0]["seconds_per_step"] - began
    return seconds_per_step, max(0.0, before - compiling)


class Demo:
    """One run of the program: its folder, its commands, and the time that it and earlier runs have used.

    Args:
      given: the command line.
      flags: for every call of threedim.main.
    """

    def __init__(self, given: argparse.Namespace, flags: Sequence[str]):
        file, _, argument = given.config.partition(":")
        if not epath.Path(file).is_file():
            raise MissingError(f"--config={file}: no such file")
        if given.minutes <= 0:
            raise UserError(f"--minutes must be positive, got {given.minutes:g}")
        self.config: ml_collections.ConfigDict = runpy.run_path(file)["get_config"](*[argument] if argument else [])
        self.given, self.out, self.name = given, epath.Path(given.out), epath.Path(file).stem
        self.workdir, self.weights = self.out / "run", self.out / f"{self.name}{weights_file.SUFFIX}"
        self.main = ["threedim.main", f"--config={given.config}", *flags]
        self._file = self.out / "demo.json"
        self.known: dict[str, Any] = files.read_json(self._file) if self._file.exists() else {"seconds": 0.0}
        self._before, self._began = self.known["seconds"], time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds that this run and earlier ones have used."""
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds left to train."""
        return 60 * self.given.minutes - reserve(self.given.minutes) - self.elapsed

    def say(self, line: str) -> None:
        minutes, seconds = divmod(int(self.elapsed), 60)
        print(f"[{minutes}:{seconds:02}] {line}", flush=True)

    def save(self, **known: Any) -> None:
        self.known |= known | {"seconds": round(self.elapsed, 1)}
        files.write_atomically(self._file, json.dumps(self.known, indent=2) + "\n")

    # --- Commands ---

    def prepare(self) -> list[str]:
        return [*self.main, "--mode=prepare"]

    def train(self, steps: int) -> list[str]:
        return [*self.main, "--mode=train", f"--workdir={self.workdir}", f"--config.train.num_steps={steps}"]

    def measure(self) -> list[str]:
        """Trains for a while, on few objects, with the program that `train` uses."""
        few = [f"--config.data.dir={self.out / 'warm_data'}", "--config.data.procedural.num_test_objects=1"]
        few.append(
            f"--config.data.procedural.num_train_objects={min(32, self.config.data.procedural.num_train_objects)}"
        )
        steps = [f"--config.train.num_steps={100 * _LOG_EVERY}", f"--config.train.log_every={_LOG_EVERY}"]
        where = [f"--workdir={self.out / 'warm'}", "--config.train.sample_every=0"]
        return [*self.main, "--mode=train", *where, *steps, *([] if self.config.data.source else few)]

    def finish(self, step: int) -> dict[str, list[str]]:
        """What makes the results, by name, after ``step`` steps of training."""
        evaluation = self.out / "evaluation" / f"step_{step:07d}"
        card = [f"--workdir={self.workdir}", f"--evaluation={evaluation}", f"--weights={self.weights}"]
        sample = [f"--config.sample.weights={self.weights}", f"--config.evaluate.out={evaluation}"]
        return {
            "weights": ["threedim.weights", f"--workdir={self.workdir}", f"--out={self.weights}", "--overwrite"],
            "scores": [*self.main, "--mode=evaluate", f"--workdir={self.workdir}", *sample],
            "card": ["scripts.model_card", *card, f"--config={self.given.config}", f"--out={self.out}", "--overwrite"],
        }

    @contextlib.contextmanager
    def started(self, name: str, arguments: Sequence[str], *, cpu: bool = False) -> Iterator[subprocess.Popen]:
        """A command that runs and writes to its log; ended, so that it can save, when the block is left before it."""
        path = self.out / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if cpu else {})
            command = [*(["nice"] if cpu else []), sys.executable, "-m", *arguments]
            # In a session of its own: Ctrl-C reaches this program, which tells it.
            options = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment, "start_new_session": True}
            process = subprocess.Popen(command, **options)
            try:
                yield process
            finally:
                if stopped := process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(_PATIENCE)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
        if process.returncode and not stopped:
            *_, last = ["no output", *filter(str.strip, path.read_text().splitlines())]
            raise UserError(f"{name} failed with code {process.returncode}: {last} ({path})")

    def run(self, name: str, arguments: Sequence[str], *, cpu: bool = False, seconds: float | None = None) -> None:
        """Runs a command to its end, or for some seconds."""
        with self.started(name, arguments, cpu=cpu) as process, contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    # --- Phases ---

    def prepare_and_measure(self) -> None:
        """Renders the data while the step compiles; notes the speed."""
        if self.known.get("prepared") and "seconds_per_step" in self.known:
            return
        self.say(f"rendering data on {os.cpu_count()} cores, compiling the training step")
        with self.started("prepare", self.prepare(), cpu=True) as preparing:
            if self.config.data.source:
                preparing.wait()
            if "seconds_per_step" not in self.known:
                self._measure()
                self.say(f"{self.known['seconds_per_step']:.3g} s a step")
            preparing.wait()
        self.save(prepared=True)
        self.say("data is there")

    def _measure(self) -> None:
        folder, began = self.out / "warm", time.time()
        folder.rmtree(missing_ok=True)
        with self.started("measure", self.measure()) as process:
            while process.poll() is None and len(read_metrics(folder)) < 4:
                time.sleep(0.2)
        seconds_per_step, start_up = speed(read_metrics(folder), (self.out / "logs/measure.log").read_text(), began)
        for each in (folder, self.out / "warm_data"):
            each.rmtree(missing_ok=True)
        self.save(seconds_per_step=seconds_per_step, start_up=round(start_up, 1))

    def train_until_time_is_up(self) -> int:
        """Trains for the minutes left; returns the step of the newest checkpoint."""
        done, planned = self._step(), self.known.get("num_steps", 0)
        used_up = f"the {self.given.minutes:g} minutes are used up after step {done:,}; train on with more --minutes"
        if done and (done >= planned and self.given.minutes <= self.known["minutes"]):
            return done
        if done and not self._time_to_train():
            self.say(used_up)
            return done
        for may_correct in (True, False):
            if self._time_to_train() and self._train(self._step(), may_correct):
                break
        if not (done := self._step()):
            raise UserError(used_up)
        self.say(f"trained to step {done:,}, loss {read_metrics(self.workdir)[-1]['loss']:.4f}")
        return done

    def _time_to_train(self) -> bool:
        return self.left > self.known["start_up"] + 10 * self.known["seconds_per_step"]

    def _train(self, done: int, may_correct: bool) -> bool:
        """Trains on from step ``done``; returns False if it stopped since it is slower or faster than planned."""
        start_up, planned = self.known["start_up"], self.known["seconds_per_step"]
        steps = choose_steps(done, self.left, start_up, planned)
        self.save(num_steps=steps, minutes=self.given.minutes)
        self.say(f"training to step {steps:,}, {self.left:.0f} s at most; see {self.out / 'logs/train.log'}")
        # After a fifth of the time, if that is long beside the start-up that another plan costs.
        look_at = 0.8 * self.left if may_correct and self.left > 5 * start_up else 0.0
        with self.started("train", self.train(steps)) as process:
            while process.poll() is None and self.left > 0:
                time.sleep(0.2)
                if not look_at or self.left > look_at:
                    continue
                seen = [line["seconds_per_step"] for line in read_metrics(self.workdir) if line["step"] > done][1:]
                if seen:
                    look_at, found = 0.0, statistics.mean(seen)
                    self.save(seconds_per_step=found)
                    if abs(found / planned - 1) > _TOLERANCE:
                        self.say(f"{found:.3g} s a step")
                        return False
        return True

    def make_results(self, step: int) -> None:
        """Exports, draws and scores what is not there yet."""
        curves.plot(metrics.read(self.workdir), self.out / "curves.png")
        finished = self.known.setdefault("finished", {})
        for name, command in self.finish(step).items():
            if finished.get(name) != step:
                self.run(name, command, cpu=name != "scores")
                finished[name] = step
                self.save()
        evaluation = self.out / "evaluation" / f"step_{step:07d}"
        results = files.read_json(evaluation / "results.json")
        psnr, ssim = (number(results["dataset"][name], decimals) for name, decimals in (("psnr", 2), ("ssim", 3)))
        self.say(f"PSNR {psnr} dB, SSIM {ssim} on {results['num_objects']} held-out objects")
        sheet = self.out / self.name
        print(f"weights: {self.weights}\ncurves:  {self.out / 'curves.png'}\nsheet:   {sheet}.png\ncard:    {sheet}.md")
        print(f"scores:  {evaluation / 'report.html'}")

    def _step(self) -> int:
        try:
            return find_step(self.workdir, None)
        except MissingError:
            return 0


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are about training steps."""
    return [line for line in metrics.read(workdir) if "loss" in line]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser("python -m scripts.train_demo", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=files.path, default="configs/gpu64.py", help="Config file, with its argument.")
    parser.add_argument("--minutes", type=float, default=10.0, help="Of the whole program, earlier calls included.")
    parser.add_argument("--out", type=files.path, help="Output folder; defaults to runs/NAME, after the config.")
    parser.add_argument("--dry_run", action="store_true", help="Print the commands without running them.")
    given, flags = parser.parse_args(arguments[:place]), arguments[place + 1 :]
    given.out = given.out or f"runs/{epath.Path(given.config.partition(':')[0]).stem}"
    jax.config.update("jax_platforms", "cpu")  # the accelerator's memory belongs to the commands
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with errors.one_line():
        demo = Demo(given, flags)
        if given.dry_run:
            for command in (
                demo.prepare(),
                demo.measure(),
                demo.train(demo.config.train.num_steps),
                *demo.finish(0).values(),
            ):
                print(shlex.join(["python", "-m", *command]))
            return
        try:
            demo.prepare_and_measure()
            demo.make_results(demo.train_until_time_is_up())
        except KeyboardInterrupt:
            demo.say("interrupted; the same command goes on")
            sys.exit(130)
        finally:
            demo.save()


if __name__ == "__main__":
    main()
