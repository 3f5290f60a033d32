"""Stand-ins for what the launch scripts call, one file under many names; the tests put it on the PATH.

Called as gcloud, xpk, docker, sbatch, scontrol or uv it records its arguments in $FAKE_DIR/calls.jsonl and answers with
the first rule in $FAKE_DIR/rules.json whose pattern is found in them: {"pattern": ..., "replies": [...]}, one reply a
call, the last one again and again. A reply may have "out", "err" and "code", or "do" to do the thing here: "ssh" runs
the remote command with $FAKE_HOME as home, "scp" copies there. srun and scancel always do what they are for.

Called as `program` (as it is, or with `-m threedim.main` as a python) it takes the place of threedim.main: it shows its
arguments as JSON and then does what $STANDIN (or $STANDIN_<process id>) says: finish, wait (for SIGTERM, then "saves"
and stops), deaf, fail:CODE, die.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

SHOWN = ("JAX_PLATFORMS", "JAX_CPU_COLLECTIVES_IMPLEMENTATION", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED")


def reply_to(folder, name, arguments):
    rules = json.loads((folder / "rules.json").read_text())
    line = " ".join([name, *arguments])
    for number, rule in enumerate(rules):
        if re.search(rule["pattern"], line):
            count = folder / f"count_{number}"
            asked = int(count.read_text()) if count.exists() else 0
            count.write_text(str(asked + 1))
            return rule["replies"][min(asked, len(rule["replies"]) - 1)]
    return {}


def value(arguments, name):
    return next(argument.removeprefix(name + "=") for argument in arguments if argument.startswith(name + "="))


def ssh(arguments):
    home = os.environ["FAKE_HOME"]
    command = ["bash", "-c", value(arguments, "--command")]
    return subprocess.run(command, cwd=home, env={**os.environ, "HOME": home}, check=False).returncode


def scp(arguments):
    source, target = [argument for argument in arguments if not argument.startswith("--")][-2:]
    shutil.copy(source, pathlib.Path(os.environ["FAKE_HOME"], target.partition(":")[2]))
    return 0


def srun(folder, arguments):
    """One task, its lines labeled in --output, as `srun --label` does."""
    first = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
    with pathlib.Path(value(arguments, "--output")).open("w") as output:
        task = subprocess.Popen(arguments[first:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        (folder / "task").write_text(str(task.pid))
        for line in task.stdout:
            output.write(f"0: {line}")
            output.flush()
    code = task.wait()
    return code if code >= 0 else 128 - code


def program(arguments):
    arguments = arguments[2:] if arguments[:1] == ["-m"] else arguments
    rank = next((argument.split("=")[1] for argument in arguments if argument.startswith("--process_id=")), "0")
    plan = os.environ.get(f"STANDIN_{rank}", os.environ.get("STANDIN", "finish"))
    terms = []
    signal.signal(signal.SIGTERM, lambda number, frame: terms.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: terms.append(number))
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
        if terms and plan == "wait":
            # A second signal within this time would be counted.
            time.sleep(0.3)
            print(f"stopped by {signal.Signals(terms[0]).name} at step 7 after {len(terms)} signal", flush=True)
            return 0
    return 0


def main():
    name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
    if name in ("program", "python"):
        return program(arguments)
    folder = pathlib.Path(os.environ["FAKE_DIR"])
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([name, *arguments]) + "\n")
    if name == "srun":
        return srun(folder, arguments)
    if name == "scancel":
        os.kill(int((folder / "task").read_text()), signal.Signals["SIG" + value(arguments, "--signal")])
        return 0
    reply = reply_to(folder, name, arguments)
    print(reply.get("out", ""), end="")
    print(reply.get("err", ""), end="", file=sys.stderr)
    sys.stdout.flush()
    do = {"ssh": ssh, "scp": scp}.get(reply.get("do"))
    return do(arguments) if do else reply.get("code", 0)


if __name__ == "__main__":
    sys.exit(main())
