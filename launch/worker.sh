#!/usr/bin/env bash
# Runs threedim.main on this machine and records how it ended. tpu_pod.sh and gke_xpk.sh call it on every worker.
#
#   launch/worker.sh start -- ARGUMENTS            start in the background
#   launch/worker.sh run [OPTIONS] -- ARGUMENTS    run in the foreground
#   launch/worker.sh state                         print "worker HOST: STATE ..."; STATE is idle, running, finished,
#                                                  preempted (stopped by a signal), stopped (by `stop`), failed,
#                                                  failed_early, or vanished (killed, or the machine restarted)
#   launch/worker.sh stop                          send SIGTERM and wait until the program has saved
#
# Options:
#   --early=SECONDS      a failure before this counts as a mistake rather than an accident (default 60)
#   --timeout=SECONDS    stop: how long to wait (default 600)
#   --container          run: forward SIGTERM, copy the log to stdout, and exit with status 42 ("restart me") if the
#                        program was stopped or failed later than --early
#   --xpk_gpu            run: take coordinator, number of processes and rank from the variables of xpk's GPU nodes
#
# The log and the state are kept in ~/threedim/run.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_early=60 opt_timeout=600 opt_container=false opt_xpk_gpu=false action=""
parse "$@"
folder=$HOME/threedim/run
log=$folder/log state_file=$folder/state stop_file=$folder/stop_requested

# Sets $state, $pid (of a running program) and $detail.
look() {
  state=idle pid="" detail=""
  [[ -r $state_file ]] || return 0
  read -r state pid detail <"$state_file" || true
  # After a restart of the machine, the number may belong to another process.
  if [[ $state == running ]] && ! grep -qse threedim.main -e worker.sh "/proc/$pid/cmdline"; then state=vanished; fi
}

# Replaces the file in one step, so that a reader never sees half a line.
record() { echo "$*" >"$state_file.new" && mv "$state_file.new" "$state_file"; }

show_state() {
  look
  case $state in
    running) detail="pid=$pid" ;;
    failed* | vanished) detail+="; last line: $(tail -n 1 "$log" | tr -d '\r' | cut -c 1-300)" ;;
  esac
  printf 'worker %s: %s %s\n' "$(hostname)" "$state" "$detail"
}

run_program() {
  local command=("$(find_python)" -m threedim.main "${program_args[@]}") begin child status outcome=failed
  ! $opt_xpk_gpu || command+=(
    "--coordinator_address=${JAX_COORDINATOR_ADDRESS:?is not set}:${JAX_COORDINATOR_PORT:?is not set}"
    "--num_processes=${NNODES:?is not set}" "--process_id=${NODE_RANK:?is not set}"
  )
  rm -f "$stop_file"
  begin=$(($(wc -c <"$log") + 1))

  trap : TERM INT HUP
  cd "$root"
  # Straight to a file: whatever happens to this script, the program can keep writing while it saves.
  PYTHONUNBUFFERED=1 "${command[@]}" >>"$log" 2>&1 </dev/null &
  child=$!
  record running "$child"
  if $opt_container; then
    # Once: a second signal makes the program exit without saving. Outside of containers it gets its own.
    trap 'trap : TERM INT; kill -TERM "$child" 2>/dev/null || true' TERM INT
    tail --follow --sleep-interval=0.5 --pid="$child" --bytes="+$begin" "$log" &
  fi
  await "$child"
  status=$code
  ! $opt_container || await "$!"

  # After a signal, the program exits with 0 once it has saved, and the first process says so. With nothing to save, the
  # signal itself ends it.
  if ((status == 0 || status == 143)) && [[ -e $stop_file ]]; then
    outcome=stopped
  elif ((status == 143)); then
    outcome=preempted
  elif ((status == 0)); then
    outcome=finished
    ! tail --bytes="+$begin" "$log" | grep -a '^stopped by SIG' >/dev/null || outcome=preempted
  elif ((SECONDS < opt_early)); then
    outcome=failed_early
  fi
  record "$outcome" - "exit=$status after=${SECONDS}s"
  if $opt_container && [[ $outcome =~ ^(stopped|preempted|failed)$ ]]; then exit 42; fi
  exit "$status"
}

start_program() {
  rm -f "$state_file"
  # In a session of its own, so that it outlives the connection that started it.
  setsid nohup bash "${BASH_SOURCE[0]}" run "--early=$opt_early" -- "${program_args[@]}" >>"$log" 2>&1 </dev/null &
  until [[ -e $state_file ]]; do
    kill -0 "$!" 2>/dev/null || fail "the program did not start on $(hostname): $(tail -n 1 "$log")"
    sleep 0.1
  done
  show_state
}

stop_program() {
  look
  if [[ $state == running ]]; then
    touch "$stop_file"
    kill -TERM "$pid"
    local end=$((SECONDS + opt_timeout))
    # The program vanishes shortly before its outcome is recorded.
    while look && [[ $state == running || $state == vanished ]] && ((SECONDS < end)); do sleep 0.2; done
    grep -a '^stopped by SIG' "$log" | tail -n 1 || true
    # "preempted": another worker's signal came first.
    [[ $state =~ ^(stopped|preempted|finished)$ ]] || fail "not saved after $opt_timeout s: $(show_state)"
  fi
  show_state
}

mkdir -p "$folder"
touch "$log"
case $action in
  start | run)
    look
    [[ $state != running ]] || fail "already running on $(hostname) (pid $pid)"
    "${action}_program"
    ;;
  state) show_state ;;
  stop) stop_program ;;
  *) fail "one action is required: start, run, state or stop; see --help" ;;
esac
