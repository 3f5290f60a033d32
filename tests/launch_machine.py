"""A machine for the tests of the launch scripts: a small checkout; only stand-ins and basic tools on the PATH."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
FAKES = ("gcloud", "xpk", "kubectl", "docker", "sbatch", "srun", "scontrol", "scancel", "uv", "python3")
# Nothing else is on the PATH: an installed gcloud must not be called.
NAMES = """bash env sed grep tail tar gzip git sleep mktemp cat cp rm mkdir mv ln wc hostname dirname basename setsid
nohup tr cut sort touch seq"""
TOOLS = NAMES.split()

# The arguments of the program are hard to quote.
PROGRAM = ["--config=configs/demo.py", "--mode=train", "--config.sample.input_views=(0,)", "--config.note=it's a $HOME"]
CLOUD = ["--project=p", "--zone=us-east5-b"]
TPU = ["--name=cars", *CLOUD]
ON_GS = "--workdir=gs://bucket/cars"

LOGIN = {"pattern": "auth list", "replies": [{"out": "me@example.com\n"}]}
SSH = [{"pattern": f"tpu-vm {name}", "replies": [{"do": name}]} for name in ("ssh", "scp")]
NEEDS = pytest.mark.skipif(
    sys.platform != "linux" or any(shutil.which(tool) is None for tool in TOOLS),
    reason="the scripts need Linux with bash, git and GNU tools",
)


def checkout(folder):
    """A small checkout with the launch scripts, committed, and an untracked file; made once per test session."""
    if not folder.exists():
        shutil.copytree(REPOSITORY / "launch", folder / "launch")
        (folder / "configs").mkdir()
        for name in ("configs/demo.py", "setup.py"):
            (folder / name).touch()
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message=a"]):
            subprocess.run(["git", *command], cwd=folder, check=True)
        (folder / "configs/untracked.py").touch()
    return folder


class Machine:
    def __init__(self, folder, shared_folder):
        self.checkout, self.folder, self.home = checkout(shared_folder / "checkout"), folder, folder / "home"
        self.bin = folder / "bin"
        for each in (self.bin, self.home):
            each.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        fake = self.bin / "fake"
        fake.write_text(f"#!{sys.executable} -IS\n{REPOSITORY.joinpath('tests/fake_commands.py').read_text()}")
        fake.chmod(0o755)
        for name in FAKES:
            (self.bin / name).symlink_to(fake)
        self.environment = {"PATH": str(self.bin), "HOME": str(self.home), "FAKE_DIR": str(folder)}
        self.started = []
        self.rules(LOGIN)

    def rules(self, *rules):
        (self.folder / "rules.json").write_text(json.dumps(rules))
        for count in self.folder.glob("count_*"):
            count.unlink()

    def start(self, script, *arguments, **environment):
        """Starts a script in the root of the checkout, as Slurm does."""
        # A test run in the background ignores SIGINT, and so would the script.
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [str(self.checkout / "launch" / script), *map(str, arguments)], cwd=self.checkout, text=True,
            env={**self.environment, **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, script, *arguments, typed="", code=0, **environment):
        """Runs a script, which must end with this exit status."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(typed, timeout=40)
        assert process.returncode == code, out + err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self):
        for process in self.started:
            with process:
                process.kill()

    def wait_for(self, path, text='"argv"'):
        """Until a file has a text; by default, until the stand-in has installed its signal handlers."""
        deadline = time.monotonic() + 20
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    @property
    def log(self):
        return self.home / "threedim/run/log"

    @property
    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, *words):
        return [call for call in self.calls if all(word in " ".join(call) for word in words)]
