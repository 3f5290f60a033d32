"""worker.sh, slurm_job.sh and local.sh: their processes, signals and exit statuses."""

import json
import os
import shlex
import signal

import pytest
from launch_machine import NEEDS, PROGRAM

pytestmark = NEEDS
ARGUMENTS = [*PROGRAM, "--workdir=w", "--distributed"]


@pytest.mark.parametrize(
    ("plan", "options", "code", "state"),
    [("fail:3", [], 3, "failed_early exit=3"), ("die", ["--early=0"], 42, "failed exit=137")],
)
def test_worker_records_how_the_program_ended(machine, plan, options, code, state):
    done = machine.run("worker.sh", "run", "--container", *options, "--", *ARGUMENTS, STANDIN=plan, code=code)
    assert json.loads(done.stdout.splitlines()[0])["argv"] == ARGUMENTS
    line = machine.run("worker.sh", "state").stdout
    assert line.startswith("worker ")
    assert state in line
    assert ("last line: error: the loss is not finite" in line) == plan.startswith("fail")


def test_worker_in_a_container_forwards_sigterm_once_and_tells_stopped_from_finished(machine):
    for plan, code, state in (("wait", 42, "preempted"), ("finish", 0, "finished")):
        process = machine.start("worker.sh", "run", "--container", "--", *ARGUMENTS, STANDIN=plan)
        if plan == "wait":
            machine.wait_for(machine.log)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == code, err
        assert ("stopped by SIGTERM at step 7 after 1 signal" in out) == (plan == "wait")
        assert f": {state}" in machine.run("worker.sh", "state").stdout


def test_worker_is_not_started_twice_and_stops(machine):
    assert ": idle" in machine.run("worker.sh", "state").stdout
    # The number of a process, but of another one: the machine was restarted.
    (machine.home / "threedim/run/state").write_text(f"running {os.getpid()}\n")
    assert ": vanished" in machine.run("worker.sh", "state").stdout
    assert ": running pid=" in machine.run("worker.sh", "start", "--", *ARGUMENTS, STANDIN="wait").stdout
    machine.wait_for(machine.log)
    for action in ("start", "run"):
        assert "already running" in machine.run("worker.sh", action, "--", *ARGUMENTS, code=1).stderr
    for _ in range(2):
        assert ": stopped exit=0" in machine.run("worker.sh", "stop").stdout
    assert "stopped by SIGTERM at step 7 after 1 signal" in machine.log.read_text()


def test_worker_takes_its_rank_from_xpk(machine):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "NNODES", "NODE_RANK")
    variables = dict(zip(names, ("job-0.job", "6002", "4", "3"), strict=True))
    machine.run("worker.sh", "run", "--xpk_gpu", "--", *ARGUMENTS, **variables)
    expected = ["--coordinator_address=job-0.job:6002", "--num_processes=4", "--process_id=3"]
    assert json.loads(machine.log.read_text().splitlines()[0])["argv"][-3:] == expected


def job(machine, plan, signaled=None, state="RUNNING", restart="0", seconds=120):
    """Runs slurm_job.sh, and sends a signal to it (as Slurm does near the time limit) or to its "task" (preemption)."""
    machine.rules({"pattern": "scontrol show job", "replies": [{"out": f"JobId=12 JobState={state} Reason=None"}]})
    options = ["--python=python3", f"--log_dir={machine.folder}", f"--signal_seconds={seconds}", "--setup=export A=b"]
    slurm = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "cars", "SLURM_RESTART_COUNT": restart}
    process = machine.start("slurm_job.sh", *options, "--", *ARGUMENTS, **slurm, STANDIN=plan)
    if signaled is not None:
        machine.wait_for(machine.folder / f"cars-12.{restart}.out")
        pid = int((machine.folder / "task").read_text()) if signaled == "task" else process.pid
        os.kill(pid, signal.SIGTERM if signaled == "task" else signaled)
    _, err = process.communicate(timeout=20)
    return process.returncode, err


@pytest.mark.parametrize("signaled", [signal.SIGUSR1, pytest.param("task", marks=pytest.mark.slow)])
def test_slurm_job_requeues_itself_until_finished(machine, signaled):
    code, err = job(machine, "wait", signaled)
    assert code == 0, err
    assert machine.calls[-1] == ["scontrol", "requeue", "12"]
    assert bool(machine.called("scancel", "--signal=TERM")) == (signaled != "task")
    assert "after 1 signal" in (machine.folder / "cars-12.out").read_text()
    # The next attempt does not take the first one's end for its own.
    assert job(machine, "finish", restart="1")[0] == 0
    assert len(machine.called("scontrol requeue")) == 1
    call = machine.called("srun")[-1]
    assert call[-len(ARGUMENTS) :] == ARGUMENTS
    assert "--gpu-bind=none" in call


@pytest.mark.slow
def test_slurm_job_kills_tasks_that_do_not_respond_and_requeues(machine):
    code, err = job(machine, "deaf", signal.SIGUSR1, seconds=2)
    assert code == 0, err
    assert machine.called("scancel", "--signal=KILL", "12.0")
    assert machine.calls[-1] == ["scontrol", "requeue", "12"]


def test_slurm_job_that_failed_or_was_canceled_is_not_requeued(machine):
    code, err = job(machine, "fail:3")
    assert code == 3
    assert "ended with exit status 3" in err
    code, err = job(machine, "wait", "task", state="CANCELLED", restart="1")
    assert code == 0
    assert "not requeued" in err
    assert not machine.called("scontrol requeue")


def local(machine, *arguments, **environment):
    return machine.start("local.sh", *arguments, "--", *ARGUMENTS, **environment)


def test_local_gives_each_process_its_place(machine):
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    for platform, environment in (
        ("cpu", {**cpu, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}),
        ("gpu", {"CUDA_VISIBLE_DEVICES": "{},{}"}),
    ):
        options = ["3", "--platform", platform, "--devices_per_process=2", "--port=12345", "--dry_run"]
        out, _ = local(machine, *options).communicate(timeout=20)
        for rank, words in enumerate(map(shlex.split, out.splitlines())):
            split = words.index("python3")
            filled = {name: text.format(2 * rank, 2 * rank + 1) for name, text in environment.items()}
            assert words[0] == "env"
            assert dict(word.split("=", 1) for word in words[1:split]) == {"PYTHONUNBUFFERED": "1", **filled}
            expected = ["--coordinator_address=127.0.0.1:12345", "--num_processes=3", f"--process_id={rank}"]
            assert words[split:] == ["python3", "-m", "threedim.main", *ARGUMENTS, *expected]
        assert rank == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_local_runs_the_processes_and_forwards_signals_once(machine, number):
    process = local(machine, "2", STANDIN="wait")
    lines = sorted(process.stdout.readline() for _ in range(2))
    for rank, line in enumerate(lines):
        assert line.startswith(f"[{rank}] ")
        *given, last = json.loads(line[4:])["argv"]
        assert (given[: len(ARGUMENTS)], last) == (ARGUMENTS, f"--process_id={rank}")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == [f"[{i}] stopped by {number.name} at step 7 after 1 signal" for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "code"), [("fail:3", 3), ("die", 137)])
def test_local_ends_the_others_when_one_fails(machine, plan, code):
    options = ["--grace_seconds=1", "--kill_seconds=1"]
    process = local(machine, "3", *options, STANDIN_0="wait", STANDIN_1=plan, STANDIN_2="deaf")
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert f"process 1 failed with exit status {code}; the other 2 have 1 s to exit" in err
    # The one that obeys may save; the other is killed.
    assert "[0] stopped by SIGTERM" in out
    assert err.index("sending SIGTERM to 2") < err.index("sending SIGKILL to 1")


def test_local_returns_the_status_of_a_failed_process(machine):
    arguments = ("local.sh", "2", "--", *ARGUMENTS)
    assert "SIGTERM" not in machine.run(*arguments, STANDIN_0="finish", STANDIN_1="fail:3", code=3).stderr
