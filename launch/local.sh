#!/usr/bin/env bash
# Runs threedim.main as N processes on this machine, which find each other through JAX's own coordinator.
#
#   launch/local.sh N [OPTIONS] -- ARGS of threedim.main
#
#   launch/local.sh 2 --devices_per_process=4 --platform=cpu -- --config=configs/demo.py --mode=train --workdir=runs/two
#
# Options:
#   --platform=cpu|gpu           cpu: no accelerator; gpu: process i sees its own --devices_per_process GPUs.
#                                Default: what JAX finds, which for N > 1 is right only where that is the CPU
#   --devices_per_process=D      (default 1)
#   --port=PORT                  of the coordinator; default: a free one
#   --grace_seconds=S            after one process failed, the others may end by themselves for this long (default 60)
#   --kill_seconds=S             ... then they get SIGTERM, and after this long SIGKILL (default 30)
#   --python=FILE                default: .venv/bin/python of the checkout, else python3
#   --program=WORDS              run this, split at spaces, instead of `PYTHON -m threedim.main`
#   --dry_run                    print the commands, run nothing
#
# Relative paths are taken from the root of the checkout, where the program runs. Every line is shown with the number of
# its process. SIGTERM and Ctrl-C are passed on to all, which then save and end; the same command goes on. The exit
# status is that of the first process that failed, else 0.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_platform="" opt_devices_per_process=1 opt_port="" opt_grace_seconds=60 opt_kill_seconds=30
opt_python=$(find_python) opt_program=""
parse "platform devices_per_process port grace_seconds kill_seconds python program" "" "" "$@"

((${#positional[@]} == 1)) ||
  fail "the number of processes is needed, and nothing else before --: launch/local.sh 2 -- ARGS"
count=${positional[0]}
positive "the number of processes" "$count"
positive --devices_per_process "$opt_devices_per_process"
positive --grace_seconds "$opt_grace_seconds"
positive --kill_seconds "$opt_kill_seconds"
[[ $opt_platform =~ ^(cpu|gpu|)$ ]] || fail "--platform must be cpu or gpu, got '$opt_platform'"
if [[ -n $opt_port ]]; then positive --port "$opt_port"; fi
check_program_args
check_config_file
if [[ -n $opt_program ]]; then
  read -ra program <<<"$opt_program"
else
  program=("$opt_python" -m threedim.main)
fi
command -v "${program[0]}" >/dev/null ||
  fail "${program[0]} is not there; python3 -m venv .venv && .venv/bin/pip install -e ., or give --python=FILE"

# A port nobody listens on. Below the range from which the system gives ports to outgoing connections.
free_port() {
  local tries port
  for ((tries = 0; tries < 100; tries++)); do
    port=$((10000 + RANDOM % 20000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      printf '%s' "$port"
      return
    fi
  done
  fail "no free port found; give --port"
}

# $command: process number $1, with its environment.
command_of() {
  local first=$(($1 * opt_devices_per_process)) visible i
  command=(env PYTHONUNBUFFERED=1)
  if [[ $opt_platform == gpu ]]; then
    visible=$first
    for ((i = 1; i < opt_devices_per_process; i++)); do visible+=,$((first + i)); done
    command+=("CUDA_VISIBLE_DEVICES=$visible")
  else
    [[ $opt_platform != cpu ]] || command+=(JAX_PLATFORMS=cpu)
    # Neither changes anything on accelerators.
    command+=(JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo)
    command+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$opt_devices_per_process")
  fi
  command+=(
    "${program[@]}" "${program_args[@]}"
    "--coordinator_address=127.0.0.1:$opt_port" "--num_processes=$count" "--process_id=$1"
  )
}

opt_port=${opt_port:-$(free_port)}
cd "$root"
if ((dry_run)); then
  for ((i = 0; i < count; i++)); do
    command_of "$i"
    run "${command[@]}"
  done
  exit 0
fi

pids=() readers=() alive=0 first_status=0 stage=0 deadline=0 pipes=$(mktemp -d)

signal_all() {
  local pid
  for pid in "${pids[@]}"; do [[ -z $pid ]] || kill -s "$1" -- "${2:-}$pid" 2>/dev/null || true; done
}

# shellcheck disable=SC2329  # the traps call it
pass_on() {
  interrupted=1
  say "passing SIG$1 on to $alive processes"
  signal_all "$1"
}

# shellcheck disable=SC2329  # the trap calls it
clean_up() {
  signal_all KILL -
  rm -rf "$pipes"
}

trap clean_up EXIT
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

for ((i = 0; i < count; i++)); do
  mkfifo "$pipes/$i"
  # Signals are for the program; what it says while it saves is still to be shown.
  (trap '' TERM INT HUP && exec sed -u "s/^/[$i] /" <"$pipes/$i") &
  readers[i]=$!
  command_of "$i"
  # A process group of its own: Ctrl-C in the terminal reaches it through this script, once, and not twice.
  set -m
  "${command[@]}" >"$pipes/$i" 2>&1 </dev/null &
  pids[i]=$!
  set +m
  alive=$((alive + 1))
done

# One process failed: $stage 1, the others may end by themselves; 2, they got SIGTERM; 3, SIGKILL.
hurry_up() {
  if ((stage == 1)); then
    say "still running after $opt_grace_seconds s: SIGTERM"
    signal_all TERM
    stage=2 deadline=$((SECONDS + opt_kill_seconds))
  else
    say "still running after another $opt_kill_seconds s: SIGKILL"
    signal_all KILL -
    stage=3 deadline=$((SECONDS + 3600))
  fi
}

while ((alive)); do
  for ((i = 0; i < count; i++)); do
    pid=${pids[i]}
    if [[ -z $pid ]] || kill -0 "$pid" 2>/dev/null; then continue; fi
    await "$pid"
    # What it started and left behind would keep its pipe open.
    kill -s KILL -- "-$pid" 2>/dev/null || true
    pids[i]="" alive=$((alive - 1))
    if ((code && !first_status)); then
      first_status=$code stage=1 deadline=$((SECONDS + opt_grace_seconds))
      say "process $i ended with status $code; the other $alive have $opt_grace_seconds s to end by themselves"
    fi
  done
  if ((stage && alive && SECONDS >= deadline)); then hurry_up; fi
  # Ctrl-C ends the sleep with an error; the trap has done what was to be done.
  ((!alive)) || sleep 0.1 || true
done
for reader in "${readers[@]}"; do await "$reader"; done
exit "$first_status"
