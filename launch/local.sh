#!/usr/bin/env bash
# Runs threedim.main as N processes on this machine.
#
#   launch/local.sh N [OPTIONS] -- ARGUMENTS OF threedim.main
#
#   launch/local.sh 2 --devices_per_process=4 --platform=cpu -- --config=configs/demo.py --mode=train --workdir=runs/two
#
# Options:
#   --platform=cpu|gpu         cpu: use no accelerator. gpu: process i sees only its own --devices_per_process GPUs.
#                              Default: detected by JAX, which for N > 1 works only on machines without accelerators
#   --devices_per_process=D    (default 1)
#   --port=PORT                port of the coordinator (default: a free port)
#   --grace_seconds=S          after one process fails, how long the others may take to exit on their own (default 60)
#   --kill_seconds=S           ... then they get SIGTERM, and SIGKILL after this long (default 30)
#   --python=FILE              default: .venv/bin/python in the checkout, else python3
#   --dry_run                  print the commands without running anything
#
# Relative paths are relative to the root of the checkout. Each line of output starts with the number of its process.
# SIGTERM and Ctrl-C are forwarded to all processes, which save and exit; the same command resumes. The exit status is
# that of the first process to fail, or 0.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_platform="" opt_devices_per_process=1 opt_port="" opt_grace_seconds=60 opt_kill_seconds=30 opt_python=$(find_python)
action=""
parse "$@"
count=$action
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "the number of processes is required, as in: launch/local.sh 2 -- ARGUMENTS"
positive devices_per_process grace_seconds kill_seconds
must_be "cpu or gpu" '^(cpu|gpu|)$' platform
must_be "a positive integer" '^([1-9][0-9]*|)$' port
check_program_args
command -v "$opt_python" >/dev/null ||
  fail "--python=$opt_python not found; run: python3 -m venv .venv && .venv/bin/pip install -e ."

free_port() {
  local port
  # Below the range from which the system assigns ports to outgoing connections.
  while port=$((10000 + RANDOM % 20000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  printf '%s' "$port"
}

# Sets $command to the command of process $1.
command_of() {
  local first=$(($1 * opt_devices_per_process))
  command=(env PYTHONUNBUFFERED=1)
  if [[ $opt_platform == gpu ]]; then
    command+=("CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + opt_devices_per_process - 1)))")
  else
    [[ $opt_platform != cpu ]] || command+=(JAX_PLATFORMS=cpu)
    # These two have no effect on accelerators.
    command+=(JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo)
    command+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$opt_devices_per_process")
  fi
  command+=("$opt_python" -m threedim.main "${program_args[@]}")
  command+=("--coordinator_address=127.0.0.1:$opt_port" "--num_processes=$count" "--process_id=$1")
}

signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill -s "$1" -- "$pid" 2>/dev/null || true; done
}

opt_port=${opt_port:-$(free_port)}
cd "$root"
pids=() readers=() first_failure=0
trap 'signal_all KILL' EXIT
trap 'say "forwarding SIGTERM"; signal_all TERM' TERM
trap 'say "forwarding SIGINT"; signal_all INT' INT
for ((i = 0; i < count; i++)); do
  command_of "$i"
  if $opt_dry_run; then
    run "${command[@]}"
    continue
  fi
  # The readers ignore signals so that what a process prints while it saves is still shown.
  exec {output}> >(trap '' TERM INT HUP && exec sed -u "s/^/[$i] /")
  readers+=($!)
  # In a process group of its own, so that Ctrl-C in a terminal reaches the process once, through this script.
  set -m
  "${command[@]}" >&"$output" 2>&1 </dev/null {output}>&- &
  pids[i]=$!
  set +m
  exec {output}>&-
done

while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    pid=${pids[i]}
    if kill -0 "$pid" 2>/dev/null; then continue; fi
    await "$pid"
    unset "pids[i]"
    # Leftover children would keep the output open.
    kill -s KILL -- "-$pid" 2>/dev/null || true
    if ((code && !first_failure)); then
      first_failure=$code next_signal=TERM deadline=$((SECONDS + opt_grace_seconds))
      say "process $i failed with exit status $code; the other ${#pids[@]} have $opt_grace_seconds s to exit"
    fi
  done
  if ((first_failure && ${#pids[@]} && SECONDS >= deadline)); then
    say "still running: sending SIG$next_signal to ${#pids[@]} processes"
    signal_all "$next_signal"
    next_signal=KILL deadline=$((SECONDS + opt_kill_seconds))
  fi
  # A signal interrupts the sleep; that is no error.
  sleep 0.1 || true
done
for reader in "${readers[@]}"; do await "$reader"; done
exit "$first_failure"
