"""tpu_pod.sh: from the queued resource to the program on the workers, and again after preemption."""

import json
import pathlib
import shutil

import pytest
from launch_machine import (
    LOGIN,
    MISSING,
    NEEDS,
    ON_GS,
    PROGRAM,
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


def test_create_waits_and_says_the_states(machine):
    machine.rules(LOGIN, states("MISSING", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"))
    create = ["create", *TPU, "--accelerator_type=v5p-8", "--poll_seconds=0.01"]
    done = machine.run("tpu_pod.sh", *create)
    assert done.returncode == 0
    assert done.stderr.count("cars is WAITING_FOR_RESOURCES after") == 1
    assert done.stderr.index("WAITING") < done.stderr.index("PROVISIONING") < done.stderr.index("ACTIVE")
    (call,) = machine.called("queued-resources create")
    assert {"--node-id=cars", "--accelerator-type=v5p-8", "--runtime-version=v2-alpha-tpuv5"} <= set(call)
    assert "--spot" not in call


@pytest.mark.parametrize(
    ("answers", "said", "code"),
    [
        (["ACTIVE"], "ACTIVE already", 0),
        (["SUSPENDED"], "exists and is SUSPENDED; delete it first", 1),
        (["MISSING", "PROVISIONING", "FAILED"], "cars became FAILED instead of ACTIVE", 1),
    ],
)
def test_create_meets_what_is_there(machine, answers, said, code):
    machine.rules(LOGIN, states(*answers))
    done = machine.run("tpu_pod.sh", "create", *TPU, "--accelerator_type=v4-8", "--poll_seconds=0.01")
    assert done.returncode == code
    assert said in done.stderr
    assert len(machine.called("create")) == answers.count("MISSING")


def test_create_gives_up_when_gcloud_cannot_be_asked(machine):
    refused = {"err": "PERMISSION_DENIED", "code": 1}
    machine.rules(LOGIN, {"pattern": "describe", "replies": [MISSING, {"out": "PROVISIONING"}, refused]})
    options = ["--accelerator_type=v4-8", "--poll_seconds=0.01", "--max_errors=3"]
    done = machine.run("tpu_pod.sh", "create", *TPU, *options)
    assert done.returncode == 1
    assert "3 times one after another; the last error: PERMISSION_DENIED" in done.stderr
    assert len(machine.called("describe")) == 5


def test_setup_copies_the_tracked_files_to_the_worker(machine):
    machine.rules(
        LOGIN, {"pattern": "tpu-vm scp", "replies": [{"do": "scp"}]}, {"pattern": "ssh", "replies": [{"do": "ssh"}]}
    )
    for _ in range(2):
        done = machine.run("tpu_pod.sh", "setup", *TPU)
        assert done.returncode == 0, done.stderr
    code = machine.home / "threedim/code"
    there = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert {"setup.py", "configs/demo.py", "launch/worker.sh"} <= there
    assert "configs/untracked.py" not in there
    assert (code / ".venv").readlink() == pathlib.Path("../venv")
    assert machine.called("uv venv", "--python 3.12")
    assert machine.called("uv pip install", "threedim/code[tpu]")


def test_start_state_logs_and_stop_on_a_worker(machine):
    """Through ssh to the program and back: the arguments arrive as they were; a second start is refused."""
    code = machine.home / "threedim/code"
    shutil.copytree(machine.checkout / "launch", code / "launch")
    shutil.copytree(machine.checkout / "configs", code / "configs")
    (code / ".venv/bin").mkdir(parents=True)
    shutil.copy(machine.python, code / ".venv/bin/python")
    machine.rules(LOGIN, states("ACTIVE"), {"pattern": "ssh", "replies": [{"do": "ssh"}]})

    assert ": idle" not in machine.run("tpu_pod.sh", "status", *TPU).stderr
    started = machine.run("tpu_pod.sh", "start", *TPU, "--", *PROGRAM, ON_GS, STANDIN="wait")
    assert started.returncode == 0, started.stderr
    assert ": running pid=" in started.stdout
    log = machine.home / "threedim/run/log"
    machine.wait_for(lambda: '"argv"' in log.read_text())
    assert json.loads(log.read_text().splitlines()[0])["argv"] == [*PROGRAM, ON_GS, "--distributed"]

    again = machine.run("tpu_pod.sh", "start", *TPU, "--", *PROGRAM, ON_GS)
    assert again.returncode == 1
    assert "already running on cars" in again.stderr
    refused = machine.run("tpu_pod.sh", "setup", *TPU)
    assert "already running on cars" in refused.stderr
    assert not machine.called("scp")
    assert "running" in machine.run("tpu_pod.sh", "status", *TPU).stdout
    assert '"argv"' in machine.run("tpu_pod.sh", "logs", *TPU).stdout

    stopped = machine.run("tpu_pod.sh", "stop", *TPU)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped by SIGTERM at step 7 after 1 signal" in stopped.stdout
    assert "stopped exit=0" in machine.run("tpu_pod.sh", "status", *TPU).stdout


def test_start_without_setup_says_so(machine):
    machine.rules(LOGIN, {"pattern": "ssh", "replies": [{"do": "ssh"}]})
    done = machine.run("tpu_pod.sh", "start", *TPU, "--", *PROGRAM, ON_GS)
    assert done.returncode == 1
    assert "no code on cars yet; launch/tpu_pod.sh setup first" in done.stderr


@pytest.mark.parametrize(
    ("typed", "deleted"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_delete_asks(machine, typed, deleted):
    done = machine.run("tpu_pod.sh", "delete", *TPU, typed=typed)
    assert bool(machine.called("queued-resources delete cars", "--force")) == deleted
    assert done.returncode == (0 if deleted else 1)
    assert deleted or "nothing was deleted" in done.stderr


def changes(machine):
    """What was done to the TPU, one word each."""
    words = {
        "queued-resources create": "create",
        "queued-resources delete": "delete",
        "scp": "copy",
        "worker.sh start": "start",
    }
    found = [word for call in machine.calls for pattern, word in words.items() if pattern in " ".join(call)]
    return " ".join(found)


def watch(machine, *rules, options=()):
    machine.rules(LOGIN, *rules)
    return machine.run("tpu_pod.sh", *RUN, *options, "--", *PROGRAM, ON_GS)


def test_run_starts_again_after_preemption_until_finished(machine):
    first = ["MISSING", "PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING"]
    second = ["SUSPENDED", "MISSING", "ACTIVE", "ACTIVE", "SUSPENDED"]
    done = watch(
        machine,
        states(*first, *second, "MISSING", "ACTIVE"),
        workers(
            "unset", "running", "preempted", "unset", "running", "unset", "running", "finished/running", "finished"
        ),
        options=["--delete_when_done"],
    )
    assert done.returncode == 0, done.stderr
    assert changes(machine) == "create copy start delete create copy start delete create copy start delete"
    assert "2 preemptions and 0 other restarts" in done.stderr
    # gcloud refuses to delete what is on its way out.
    calls = machine.calls
    deleted = next(i for i, call in enumerate(calls) if "delete" in call)
    assert "describe" in calls[deleted - 1]


def test_run_takes_up_what_is_running(machine):
    done = watch(machine, states("ACTIVE"), workers("running", "running", "finished"))
    assert done.returncode == 0, done.stderr
    assert changes(machine) == ""
    assert "cars is still there and costs money" in done.stderr


def test_run_clears_away_a_dead_resource_first(machine):
    done = watch(machine, states("SUSPENDED", "ACTIVE"), workers("unset", "finished"))
    assert done.returncode == 0, done.stderr
    assert changes(machine) == "delete create copy start"


def test_run_ends_after_stop(machine):
    # The program tells all its processes, so that a worker may have stopped before its own `stop` came.
    done = watch(machine, states("ACTIVE"), workers("running", "running", "stopped/preempted"))
    assert done.returncode == 0
    assert "stopped as asked" in done.stderr
    assert changes(machine) == ""


@pytest.mark.parametrize("ended", ["preempted/finished", "vanished/failed", "failed", "failed_early/failed"])
def test_run_starts_again_on_a_tpu_that_stayed(machine, ended):
    done = watch(machine, states("ACTIVE"), workers("unset", ended, ended, ended, ended), options=["--max_restarts=1"])
    assert done.returncode == 1
    assert changes(machine) == "copy start copy start"
    assert "ended 2 times without preemption" in done.stderr
    assert ended.split("/")[0] in done.stderr


def test_run_does_not_repeat_a_mistake(machine):
    done = watch(machine, states("ACTIVE"), workers("unset", "failed_early exit=1; last line: error: no such field"))
    assert done.returncode == 1
    assert changes(machine) == "copy start"
    assert "no such field" in done.stderr


def test_run_survives_a_bad_connection(machine):
    node = {"pattern": "tpu-vm describe", "replies": [{"out": "READY"}]}
    answers = workers("UNREACHABLE", "unset", "running", "UNREACHABLE", "UNREACHABLE", "running", "finished")
    done = watch(machine, states("ACTIVE"), node, answers, options=["--max_errors=3"])
    assert done.returncode == 0, done.stderr
    assert changes(machine) == "copy start"
    assert "cannot reach all workers of cars (2 of 3): ssh: connection timed out" in done.stderr


def test_run_believes_the_vm_before_the_resource(machine):
    """A preempted VM can be gone while its queued resource is still called ACTIVE."""
    node = {"pattern": "tpu-vm describe", "replies": [{"out": "PREEMPTED"}]}
    resource = states("ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "MISSING", "ACTIVE")
    done = watch(machine, resource, node, workers("unset", "UNREACHABLE", "unset", "finished"))
    assert done.returncode == 0, done.stderr
    assert changes(machine) == "copy start delete create copy start"
    assert "cars is PREEMPTED: preemption 1" in done.stderr
