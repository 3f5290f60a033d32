"""A machine for the tests of the launch scripts: a small checkout, stand-ins, nothing real on the PATH."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
FAKE = pathlib.Path(__file__).with_name("fake_commands.py")
FAKES = ("gcloud", "xpk", "kubectl", "docker", "sbatch", "srun", "scontrol", "scancel", "uv", "program")
# Nothing else is on the PATH: an installed gcloud must not be called.
TOOLS = [
    "bash",
    "env",
    "sed",
    "grep",
    "tail",
    "tar",
    "gzip",
    "git",
    "date",
    "sleep",
    "mktemp",
    "cat",
    "rm",
    "mkdir",
    "mkfifo",
    "mv",
    "ln",
    "wc",
    "hostname",
    "dirname",
    "basename",
    "setsid",
    "nohup",
    "tr",
    "cut",
    "sort",
    "touch",
    "head",
]

PROGRAM = ["--config=configs/demo.py", "--mode=train", "--config.sample.input_views=(0,)", "--config.note=it's a $HOME"]
PLAIN = [*PROGRAM[:-1], "--config.note=two words; (and) *"]  # what xpk can carry
CLOUD = ["--project=p", "--zone=us-east5-b"]
TPU = ["--name=cars", *CLOUD]
ON_GS = "--workdir=gs://bucket/cars"
RUN = ["run", *TPU, "--accelerator_type=v5e-16", "--poll_seconds=0.01", "--grace_seconds=1"]
GKE = ["--cluster=c", "--workload=w", *CLOUD, "--registry=host/p/images"]

LOGIN = {"pattern": "auth list", "replies": [{"out": "me@example.com\n"}]}
MISSING = {"err": "ERROR: (gcloud) NOT_FOUND: Resource was not found", "code": 1}
UNREACHABLE = {"err": "ssh: connection timed out", "code": 255}

NEEDS = [
    pytest.mark.skipif(sys.platform != "linux", reason="the scripts need GNU tools and /proc"),
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="bash, git or a GNU tool is missing"),
]


def states(*words):
    """Answers of `queued-resources describe`."""
    replies = [MISSING if word == "MISSING" else {"out": word + "\n"} for word in words]
    return {"pattern": "queued-resources describe", "replies": replies}


def workers(*words):
    """Answers of the two workers asked for the program's state."""
    replies = [
        UNREACHABLE
        if word == "UNREACHABLE"
        else {"out": "".join(f"worker host-{i}: {each}\n" for i, each in enumerate((word.split("/") * 2)[:2]))}
        for word in words
    ]
    return {"pattern": r"tpu-vm ssh .*worker\.sh state", "replies": replies}


def checkout(folder):
    """A small checkout with the launch scripts, committed, and an untracked file; made once in a test session."""
    if folder.exists():
        return folder
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    (folder / "configs").mkdir()
    for name in ("configs/demo.py", "setup.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / ".gitignore").write_text("logs\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message=a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "configs/untracked.py").touch()
    return folder


class Machine:
    """Runs a launch script with nothing but stand-ins and basic tools on the PATH."""

    def __init__(self, folder, shared_folder):
        self.checkout, self.folder, self.home = checkout(shared_folder / "checkout"), folder, folder / "home"
        bin_folder = folder / "bin"
        for each in (bin_folder, self.home):
            each.mkdir()
        for tool in TOOLS:
            (bin_folder / tool).symlink_to(shutil.which(tool))
        for name in FAKES:
            self.write(bin_folder / name, f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        self.python = folder / "program"
        self.write(self.python, f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        self.environment = {
            "PATH": str(bin_folder), "HOME": str(self.home), "FAKE_HOME": str(self.home), "FAKE_DIR": str(folder),
        }  # fmt: skip
        self.started = []
        self.slurm = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "cars", "SLURM_CPUS_PER_TASK": "8"}
        self.rules(LOGIN)

    @staticmethod
    def write(path, text):
        path.write_text(text)
        path.chmod(0o755)

    def rules(self, *rules):
        (self.folder / "rules.json").write_text(json.dumps(rules))

    def remove(self, name):
        (self.folder / "bin" / name).unlink()

    def start(self, script, *arguments, **environment):
        """In the root of the checkout, as Slurm starts its jobs."""
        command = [str(self.checkout / "launch" / script), *map(str, arguments)]
        # A shell that runs the tests in the background lets them ignore it; a script inherits that and cannot undo it.
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            command, env={**self.environment, **environment}, cwd=self.checkout, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()

    def run(self, script, *arguments, typed="", **environment):
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(typed, timeout=40)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def worker(self, *arguments, program=(), **environment):
        options = [f"--run_dir={self.folder}/run", f"--python={self.python}"]
        program = ["--", *PROGRAM, "--workdir=w", *program] if arguments[0] in ("run", "start") else []
        return self.run("worker.sh", *arguments, *options, *program, **environment)

    def worker_started(self):
        """The stand-in has its signal handlers: it has shown its arguments."""
        self.wait_for(lambda: '"argv"' in (self.folder / "run/log").read_text())

    @staticmethod
    def wait_for(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    @property
    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, *words):
        return [call for call in self.calls if all(word in " ".join(call) for word in words)]
