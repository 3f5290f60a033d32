"""The command line as a user types it, in processes of its own, on the settings of a test."""

import os
import pathlib
import socket
import subprocess
import sys

import ml_collections

REPOSITORY = pathlib.Path(__file__).parents[1]


def run_python(*arguments, **environment):
    """Runs Python on one CPU, in the repository, whose tests can be imported."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def flags_of(config):
    """Every setting of data, model, mesh, train and sample as a flag, but for sections within these."""
    return [
        f"--config.{section}.{name}={value}"
        for section in ("data", "model", "mesh", "train", "sample")
        for name, value in config[section].items()
        if not isinstance(value, ml_collections.ConfigDict) and value is not None and value != ""
    ]


def start(mode, config, workdir, *more, devices=1, **environment):
    """Starts ``python -m threedim.main`` on some CPU devices."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | environment
    if devices > 1:  # flags are part of the compilation cache's keys
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "threedim.main", "--config=configs/base.py", f"--mode={mode}"]
    command += ["--compilation_cache="]  # that of the tests
    command += [f"--workdir={workdir}", *flags_of(config), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)


def start_together(count, mode, config, workdir, *more, devices=1, process_flags=None):
    """Starts several processes that are one run, each with ``more`` and its own of ``process_flags``."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    together = ["--distributed", f"--coordinator_address={address}", f"--num_processes={count}", *more]
    own = process_flags or [[]] * count
    return [
        start(mode, config, workdir, *together, f"--process_id={i}", *own[i], devices=devices) for i in range(count)
    ]


def finish(processes, timeout=240):
    """Waits for processes; (exit code, output, errors) of each. Kills what does not end."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, said, strict=True)]
