"""Several real processes on this machine as one run, by the command line: training, interruptions, sampling."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from commands import finish, start, start_together

from threedim.data import sources
from threedim.data.objects import read_object

# Several processes at a time: minutes on two cores.
pytestmark = pytest.mark.slow


@pytest.fixture
def small(tiny_config):
    """The tiny configuration, with its data prepared."""
    tiny_config.train.log_every = 1
    sources.prepare_from_config(tiny_config.data)
    return tiny_config


def curve(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: {} for line in lines}
    for line in lines:  # of one step, there may be several
        steps[line["step"]] |= line
    return {step: [found.get(name, 0) for name in ("loss", "grad_norm", "eval/loss")] for step, found in steps.items()}


def check(results, code=0):
    for returncode, out, err in results:
        assert returncode == code, out + err
    return results


def wait_for(condition, processes, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        ended = [process.poll() for process in processes]
        assert ended == [None] * len(processes), [process.communicate() for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps_in(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def assert_same_curve(found, expected):
    assert found.keys() == expected.keys()
    for step, figures in expected.items():
        np.testing.assert_allclose(found[step], figures, rtol=2e-6, err_msg=f"step {step}")


def test_any_number_of_processes_is_the_same_run(small, tmp_path):
    """Four processes write a checkpoint; one, and two, go on from it; all as one process that was never stopped."""
    small.train.eval_every, small.train.eval_examples = 4, 6
    check(finish([start("train", small, tmp_path / "whole")]))
    whole = curve(tmp_path / "whole")
    assert sorted(whole) == [1, 2, 3, 4]
    assert whole[4][-1] > 0

    small.train.num_steps, small.train.eval_every = 2, 0
    results = check(finish(start_together(4, "train", small, tmp_path / "four")))
    assert "1 a device; 4 cpu device(s) in 4 processes, mesh data 4 x fsdp 1" in results[0][1]
    assert all("a device;" not in out for _, out, _ in results[1:])  # one speaks for all
    small.train.num_steps, small.train.eval_every = 4, 4
    shutil.copytree(tmp_path / "four", tmp_path / "one")
    shutil.copytree(tmp_path / "four", tmp_path / "two")
    check(finish([start("train", small, tmp_path / "one")]))
    small.mesh.fsdp, small.train.sample_every = 2, 4  # the state is split where it was whole
    check(finish(start_together(2, "train", small, tmp_path / "two")))
    for name in ("one", "two"):
        assert_same_curve(curve(tmp_path / name), whole)
    assert (tmp_path / "two/samples/held_out_0000004.png").exists()


def test_sigterm_to_one_stops_all_at_the_same_step(small, tmp_path):
    small.train.num_steps, small.train.checkpoint_every = 100_000, 50_000
    processes = start_together(2, "train", small, tmp_path / "run")
    wait_for(lambda: steps_in(tmp_path / "run") > 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = check(finish(processes, 60))
    saved = re.search(r"stopped by SIGTERM: saved step (\d+)", results[0][1])
    assert saved, results
    (folder,) = (path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert folder == saved[1] == str(steps_in(tmp_path / "run"))


def test_a_killed_process_ends_the_others_and_the_run_goes_on(small, tmp_path):
    small.train.num_steps, small.train.checkpoint_every = 100_000, 2
    processes = start_together(2, "train", small, tmp_path / "run")
    wait_for(lambda: steps_in(tmp_path / "run") > 4, processes)
    os.kill(processes[1].pid, signal.SIGKILL)
    began = time.monotonic()
    (code, out, err), _ = finish(processes, 60)
    assert time.monotonic() - began < 60
    assert code != 0
    assert re.search("another process is lost|another task died|peer|heartbeat", out + err), out + err
    before = steps_in(tmp_path / "run")
    small.train.num_steps = before + 4
    results = check(finish(start_together(2, "train", small, tmp_path / "run")))
    assert re.search(r"resuming from step \d+", results[0][1])
    assert sorted(curve(tmp_path / "run")) == list(range(1, before + 5))


def test_processes_that_do_not_find_each_other_say_where(small, tmp_path):
    together = ["--distributed", "--num_processes=2", "--process_id=1", "--connect_timeout=3"]
    ((code, _, err),) = finish([start("train", small, tmp_path, "--coordinator_address=localhost:1", *together)], 60)
    assert code == 1
    assert "error: process 1: --distributed: no answer from localhost:1 for 3 s" in err
    ((code, _, err),) = finish([start("train", small, tmp_path, "--distributed", "--process_id=1")], 60)
    assert (code, "--coordinator_address, --num_processes must be given too" in err) == (1, True)
    ((code, _, err),) = finish([start("train", small, tmp_path, "--process_id=1")], 60)
    assert (code, "need --distributed" in err) == (1, True)


def test_processes_with_different_settings_or_folders_are_refused(small, tmp_path):
    def refused(second, *said):
        processes = start_together(2, "train", small, tmp_path / "run", process_flags=([], second))
        for code, _, err in finish(processes, 60):
            assert code == 1
            for words in said:
                assert words in err

    refused(["--config.train.learning_rate=0.5"], "process 0 and process 1 differ in", "train.learning_rate: ", "→ 0.5")
    refused(["--config.train.num_steps=7"], "train.num_steps: 4 → 7")
    refused([f"--workdir={tmp_path}/other"], "workdir: ")


def test_sampling_goes_on_with_another_number_of_processes(small, tmp_path):
    small.data.num_test_objects, small.data.dir = 3, str(tmp_path / "three")
    small.train.num_steps = 1
    small.sample.num_objects, small.sample.batch_size, small.sample.num_steps = 0, 1, 2
    small.sample.split = "test"
    run = tmp_path / "run"
    check(finish([start("train", small, run)]))
    out = f"--config.sample.out={tmp_path / 'whole'}"
    check(finish([start("sample", small, run, out)]))
    names = sorted(path.name for path in (tmp_path / "whole/views").iterdir())
    assert len(names) == 3

    # Killed when the first object is there; then as two processes, and on two devices.
    small.sample.num_steps = 400
    slow = [f"--config.sample.out={tmp_path / 'parts'}"]
    check(finish([start("sample", small, run, f"--config.sample.out={tmp_path / 'slow'}")]))

    def drawn():
        # Beside them lie folders that are being written.
        return [name for name in names if (tmp_path / "parts/views" / name).exists()]

    def pictures(folder, name):
        return read_object(tmp_path / folder / "views" / name).decode()[0]

    processes = start_together(2, "sample", small, run, *slow)
    wait_for(lambda: len(drawn()) > 0, processes)
    for process in processes:
        process.kill()
    finish(processes)
    left = 3 - len(drawn())
    results = check(finish(start_together(3, "sample", small, run, *slow)))
    assert sum("nothing to do" in out for _, out, _ in results) == 3 - left
    for name in names:
        np.testing.assert_array_equal(pictures("slow", name), pictures("parts", name))
    assert not any((tmp_path / "parts/unfinished").iterdir())

    small.sample.num_steps, small.sample.batch_size = 2, 2
    two_devices = start("sample", small, run, f"--config.sample.out={tmp_path / 'devices'}", devices=2)
    check(finish([two_devices]))
    for name in names:
        one, other = pictures("whole", name), pictures("devices", name)
        np.testing.assert_allclose(one.astype(int), other, atol=1)
