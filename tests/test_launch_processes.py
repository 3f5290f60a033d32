"""worker.sh, slurm_job.sh and local.sh: the processes, their signals and how they end."""

import json
import os
import shlex
import signal
import time

import pytest
from launch_machine import (
    NEEDS,
    PROGRAM,
    Machine,
)

pytestmark = NEEDS


@pytest.fixture
def machine(tmp_path, tmp_path_factory):
    with Machine(tmp_path, tmp_path_factory.getbasetemp()) as machine:
        yield machine


# worker.sh: how the program ended


@pytest.mark.parametrize(
    ("plan", "options", "code", "state"),
    [
        ("finish", [], 0, "finished exit=0"),
        ("fail:1", [], 1, "failed_early exit=1"),
        ("fail:1", ["--accident_code=42"], 1, "failed_early exit=1"),
        ("fail:1", ["--early=0"], 1, "failed exit=1"),
        ("fail:1", ["--early=0", "--accident_code=42"], 42, "failed exit=1"),
        ("die", ["--early=0"], 137, "failed exit=137"),
    ],
)
def test_worker_tells_how_the_program_ended(machine, plan, options, code, state):
    done = machine.worker("run", "--follow", *options, STANDIN=plan)
    assert done.returncode == code
    assert json.loads(done.stdout.splitlines()[0])["argv"] == [*PROGRAM, "--workdir=w", "--distributed"]
    line = machine.worker("state").stdout
    assert line.startswith("worker ")
    assert state in line
    assert ("last line: error: the loss is not finite" in line) == plan.startswith("fail")


def test_worker_tells_stopped_from_finished(machine):
    """What the container of a pod does: SIGTERM is passed on, once, and becomes the exit code that means "again"."""
    options = [f"--run_dir={machine.folder}/run", f"--python={machine.python}", "--forward", "--follow"]
    for attempt in range(2):
        arguments = ["run", *options, "--stopped_code=42", "--", *PROGRAM, "--workdir=w"]
        process = machine.start("worker.sh", *arguments, STANDIN="wait" if attempt == 0 else "finish")
        if attempt == 0:
            machine.wait_for((machine.folder / "run/log").exists)
            machine.worker_started()
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        # The second attempt's log has the first one's line too.
        assert process.returncode == (42 if attempt == 0 else 0), err
        assert ("stopped by SIGTERM at step 7 after 1 signal" in out) == (attempt == 0)
        assert ("preempted" if attempt == 0 else "finished") in machine.worker("state").stdout


def test_worker_in_the_background_is_found_and_not_started_twice(machine):
    assert ": idle" in machine.worker("state").stdout
    started = machine.worker("start", STANDIN="wait")
    assert ": running pid=" in started.stdout, started.stderr
    machine.worker_started()
    assert "already running" in machine.worker("start").stderr
    assert "already running" in machine.worker("run").stderr
    stopped = machine.worker("stop")
    assert stopped.returncode == 0
    assert "stopped by SIGTERM at step 7 after 1 signal" in stopped.stdout
    assert ": stopped exit=0" in stopped.stdout
    assert ": stopped exit=0" in machine.worker("stop").stdout


def test_worker_notices_that_the_machine_was_restarted(machine):
    (machine.folder / "run").mkdir()
    (machine.folder / "run/state").write_text(f"running {os.getpid()}\n")  # a process, but another one
    assert ": vanished" in machine.worker("state").stdout
    assert ": running" in machine.worker("start", STANDIN="wait").stdout
    machine.worker_started()
    machine.worker("stop")


def test_worker_says_when_stop_is_not_obeyed(machine):
    machine.worker("start", STANDIN="deaf")
    machine.worker_started()
    stopped = machine.worker("stop", "--timeout=1")
    pid = int((machine.folder / "run/state").read_text().split()[1])
    os.kill(pid, signal.SIGKILL)
    assert stopped.returncode == 1
    assert "still running" in stopped.stderr
    machine.wait_for(lambda: "running" not in machine.worker("state").stdout)


def test_worker_takes_its_rank_from_xpk(machine):
    variables = {
        "JAX_COORDINATOR_ADDRESS": "job-0.job",
        "JAX_COORDINATOR_PORT": "6002",
        "NNODES": "4",
        "NODE_RANK": "3",
    }
    done = machine.worker("run", "--xpk_gpu", "--follow", **variables)
    expected = ["--coordinator_address=job-0.job:6002", "--num_processes=4", "--process_id=3"]
    assert json.loads(done.stdout.splitlines()[0])["argv"][-3:] == expected
    assert "NODE_RANK: is not set" in machine.worker("run", "--xpk_gpu", **{**variables, "NODE_RANK": ""}).stderr


# slurm_job.sh


def job(machine, plan, signaled=None, state="RUNNING", restart="0", more=()):
    machine.rules({"pattern": "scontrol show job", "replies": [{"out": f"JobId=12 JobState={state} Reason=None"}]})
    options = [
        f"--python={machine.python}",
        f"--log_dir={machine.folder}",
        *more,
        "--",
        *PROGRAM,
        "--workdir=w",
        "--distributed",
    ]
    process = machine.start("slurm_job.sh", *options, **machine.slurm, SLURM_RESTART_COUNT=restart, STANDIN=plan)
    output = machine.folder / f"cars-12.{restart}.out"
    if signaled is not None:
        machine.wait_for(lambda: output.exists() and '"argv"' in output.read_text())
        if signaled == "task":
            os.kill(int((machine.folder / "task").read_text()), signal.SIGTERM)
        else:
            process.send_signal(signaled)
    _, err = process.communicate(timeout=20)
    return process.returncode, err


def test_slurm_job_finishes(machine):
    assert job(machine, "finish")[0] == 0
    assert not machine.called("requeue")
    (call,) = machine.called("srun")
    assert call[-len(PROGRAM) - 2 :] == [*PROGRAM, "--workdir=w", "--distributed"]
    assert "--gpu-bind=none" in call


@pytest.mark.parametrize("signaled", [signal.SIGUSR1, "task"])
def test_slurm_job_goes_back_into_the_queue(machine, signaled):
    """Told at the end of its time (by the batch script), or preempted (its tasks get SIGTERM from Slurm itself)."""
    code, err = job(machine, "wait", signaled)
    assert code == 0, err
    assert machine.calls[-1] == ["scontrol", "requeue", "12"]
    assert bool(machine.called("scancel", "--signal=TERM")) == (signaled != "task")
    assert "after 1 signal" in (machine.folder / "cars-12.out").read_text()
    # The next attempt's end is its own.
    assert job(machine, "finish", restart="1")[0] == 0
    assert len(machine.called("requeue")) == 1


def test_slurm_job_goes_back_although_its_tasks_take_no_notice(machine):
    code, err = job(machine, "deaf", signal.SIGUSR1, more=["--signal_seconds=2"])
    assert code == 0, err
    assert machine.called("scancel", "--signal=KILL", "12.0")
    assert machine.calls[-1] == ["scontrol", "requeue", "12"]


def test_slurm_job_that_was_cancelled_stays_away(machine):
    code, err = job(machine, "wait", "task", state="CANCELLED")
    assert code == 0
    assert "not queued again" in err
    assert not machine.called("requeue")


def test_slurm_job_that_failed_says_so(machine):
    code, err = job(machine, "fail:3")
    assert code == 3
    assert "ended with exit status 3" in err
    assert not machine.called("requeue")


# local.sh


def local(machine, *arguments, **environment):
    options = [f"--program={machine.folder}/program", *arguments, "--", *PROGRAM, "--workdir=w"]
    return machine.start("local.sh", *options, **environment)


def started(process, count):
    """The first line of every process, by its number."""
    lines = [process.stdout.readline() for _ in range(count)]
    return {int(line[1]): json.loads(line[4:]) for line in lines}


@pytest.mark.parametrize(
    ("platform", "devices", "environment"),
    [
        (
            (),
            1,
            {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        ),
        (
            ("--platform=cpu",),
            4,
            {
                "JAX_PLATFORMS": "cpu",
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            },
        ),
        (("--platform", "gpu"), 2, {"CUDA_VISIBLE_DEVICES": "{},{}"}),
    ],
)
def test_local_gives_each_process_its_place(machine, platform, devices, environment):
    options = ["3", *platform, f"--devices_per_process={devices}", "--port=12345"]
    process = local(machine, *options)
    shown = started(process, 3)
    assert process.wait(20) == 0
    for rank in range(3):
        expected = [*PROGRAM, "--workdir=w", "--distributed", "--coordinator_address=127.0.0.1:12345"]
        assert shown[rank]["argv"] == [*expected, "--num_processes=3", f"--process_id={rank}"]
        filled = {name: value.format(rank * devices, rank * devices + 1) for name, value in environment.items()}
        assert shown[rank]["environment"] == {"PYTHONUNBUFFERED": "1", **filled}

    dry = [shlex.split(line) for line in local(machine, *options, "--dry_run").communicate()[0].splitlines()]
    assert [line[-len(shown[rank]["argv"]) :] for rank, line in enumerate(dry)] == [shown[i]["argv"] for i in range(3)]
    for rank, line in enumerate(dry):
        pairs = dict(word.split("=", 1) for word in line[1 : line.index(f"{machine.folder}/program")])
        assert line[0] == "env"
        assert pairs == shown[rank]["environment"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on_once(machine, number):
    process = local(machine, "2", STANDIN="wait")
    started(process, 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == [f"[{i}] stopped by {number.name} at step 7 after 1 signal" for i in range(2)]


@pytest.mark.parametrize(("plan", "code"), [("fail:3", 3), ("die", 137)])
def test_local_ends_the_others_when_one_fails(machine, plan, code):
    options = ["--grace_seconds=1", "--kill_seconds=1"]
    process = local(machine, "3", *options, STANDIN_0="wait", STANDIN_1=plan, STANDIN_2="deaf")
    began = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert 1 < time.monotonic() - began < 10
    assert f"process 1 ended with status {code}; the other 2 have 1 s to end by themselves" in err
    # The one that obeys may save; the other is killed.
    assert "[0] stopped by SIGTERM" in out
    assert err.index("1 s: SIGTERM") < err.index("1 s: SIGKILL")


def test_local_lets_the_others_end_by_themselves(machine):
    process = local(machine, "2", STANDIN_0="finish", STANDIN_1="fail:3")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "SIGTERM" not in err
