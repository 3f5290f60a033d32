"""Stand-ins for the commands that the launch scripts call: one file under many names, which the tests put on the PATH.

As gcloud, xpk, docker, sbatch, scontrol or uv it records its arguments in $FAKE_DIR/calls.jsonl and replies by the
first rule of $FAKE_DIR/rules.json whose pattern matches them: {"pattern": ..., "replies": [...]}, one reply per call,
the last one repeatedly. A reply has "out", "err" and "code", or "do": "ssh" runs the remote command here with $HOME as
home folder, "scp" copies there. srun and scancel always do their work.

Called with `-m threedim.main`, like a python, it stands in for threedim.main: it prints its arguments as JSON and then
does what $STANDIN (or $STANDIN_<process id>) says: finish, wait (for a signal, then "save" and stop), deaf, fail:CODE,
die.
"""

# Importing pathlib would double the time that each call takes.
# ruff: noqa: PTH118, PTH119, PTH123

import json
import os
import re
import signal
import sys
import time

SHOWN = ("JAX_PLATFORMS", "JAX_CPU_COLLECTIVES_IMPLEMENTATION", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED")


def value(arguments, name):
    return next(argument.removeprefix(name + "=") for argument in arguments if argument.startswith(name + "="))


def reply_to(folder, line):
    with open(f"{folder}/rules.json") as rules:
        for number, rule in enumerate(json.load(rules)):
            if re.search(rule["pattern"], line):
                with open(f"{folder}/count_{number}", "a+") as count:
                    count.write(".")
                    asked = count.tell()
                return rule["replies"][min(asked, len(rule["replies"])) - 1]
    return {}


def srun(folder, arguments):
    """Runs one task and labels its lines, like `srun --label`."""
    import subprocess

    first = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
    with open(value(arguments, "--output"), "w", buffering=1) as output:
        task = subprocess.Popen(arguments[first:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with open(f"{folder}/task", "w") as file:
            file.write(str(task.pid))
        for line in task.stdout:
            output.write(f"0: {line}")
    code = task.wait()
    return code if code >= 0 else 128 - code


def program(arguments):
    rank = next((argument.split("=")[1] for argument in arguments if argument.startswith("--process_id=")), "0")
    plan = os.environ.get(f"STANDIN_{rank}", os.environ.get("STANDIN", "finish"))
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    environment = {name: os.environ[name] for name in SHOWN if name in os.environ}
    print(json.dumps({"argv": arguments, "environment": environment}), flush=True)
    if plan.startswith("fail:"):
        print("error: the loss is not finite", flush=True)
        return int(plan.removeprefix("fail:"))
    if plan == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while plan in ("wait", "deaf") and time.monotonic() < deadline:
        time.sleep(0.02)
        if signals and plan == "wait":
            time.sleep(0.3)  # a second signal within this time is counted
            print(f"stopped by {signal.Signals(signals[0]).name} at step 7 after {len(signals)} signal", flush=True)
            return 0
    return 0


def main():
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    if arguments[:2] == ["-m", "threedim.main"]:
        return program(arguments[2:])
    folder = os.environ["FAKE_DIR"]
    with open(f"{folder}/calls.jsonl", "a") as calls:
        calls.write(json.dumps([name, *arguments]) + "\n")
    if name == "srun":
        return srun(folder, arguments)
    if name == "scancel":
        with open(f"{folder}/task") as file:
            os.kill(int(file.read()), signal.Signals["SIG" + value(arguments, "--signal")])
        return 0
    reply = reply_to(folder, " ".join([name, *arguments]))
    print(reply.get("out", ""), end="", flush=True)
    print(reply.get("err", ""), end="", file=sys.stderr, flush=True)
    if reply.get("do") == "ssh":
        os.chdir(os.environ["HOME"])
        os.execvp("bash", ["bash", "-c", value(arguments, "--command")])
    if reply.get("do") == "scp":
        source, target = [argument for argument in arguments if not argument.startswith("--")][-2:]
        os.execvp("cp", ["cp", source, os.path.join(os.environ["HOME"], target.partition(":")[2])])
    return reply.get("code", 0)


if __name__ == "__main__":
    sys.exit(main())
