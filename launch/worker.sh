#!/usr/bin/env bash
# Runs threedim.main on the machine where this script is, and keeps how it ended. tpu_pod.sh and gke_xpk.sh call it on
# each worker: the program exits with 0 both when the job is done and when a signal made it save and stop, and who
# starts it again needs to know which. "Stopped" is: exit code 0 after a line that begins with "stopped by SIG", or
# ended by SIGTERM itself (modes or moments that have nothing to save).
#
# Of several processes only the first says the line: what happened to the run, all workers together tell.
#
#   launch/worker.sh start [OPTIONS] -- ARGS    start in the background; refuses if it is running here already
#   launch/worker.sh run   [OPTIONS] -- ARGS    the same in the foreground
#   launch/worker.sh state [OPTIONS]            one line, "worker HOST: STATE ...", with STATE one of idle, running,
#                                               finished, preempted (stopped by a signal from elsewhere), stopped (by
#                                               `stop`), failed, failed_early, vanished (killed, or rebooted)
#   launch/worker.sh stop  [OPTIONS]            SIGTERM, then waits until the program has saved
#
# Options:
#   --run_dir=FOLDER       log and state are kept here (default ~/threedim/run)
#   --python=FILE          default: .venv/bin/python of the checkout, else python3
#   --timeout=SECONDS      how long `stop` waits (default 600)
#   --early=SECONDS        a failure before this is taken for a mistake, not an accident (default 60)
#   --forward              `run`: pass SIGTERM on. Only where nobody but this script gets it (a container): the program
#                          takes a second SIGTERM for an order to end at once
#   --follow               `run`: show the log on stdout as well
#   --stopped_code=N       `run`: exit with N when stopped (default 0)
#   --accident_code=N      `run`: exit with N after a failure that was not early (default: the program's own)
#   --xpk_gpu              `run`: coordinator, number and rank from the variables that xpk sets on GPU nodes
#   --dry_run              print the command that would be run

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_run_dir=$HOME/threedim/run opt_python=$(find_python) opt_timeout=600 opt_early=60
opt_forward=0 opt_follow=0 opt_stopped_code=0 opt_accident_code="" opt_xpk_gpu=0
parse "run_dir python timeout early stopped_code accident_code" "forward follow xpk_gpu" "" "$@"
log=$opt_run_dir/log state_file=$opt_run_dir/state asked_file=$opt_run_dir/stop_requested

# Sets $word (the state), $child (of a running program) and $detail.
look() {
  word=idle child="" detail=""
  [[ -r $state_file ]] || return 0
  read -r word child detail <"$state_file" || true
  # The number may have gone to another process since: after a reboot, say.
  if [[ $word == running ]] && ! grep -qze threedim.main -e worker.sh "/proc/$child/cmdline" 2>/dev/null; then
    word=vanished
  fi
}

# One write, so that a reader never sees half a line.
keep() {
  printf '%s\n' "$*" >"$state_file.new"
  mv "$state_file.new" "$state_file"
}

show_state() {
  look
  local last=""
  case $word in
    running) detail="pid=$child" ;;
    failed | failed_early | vanished) last=$(tail -n 1 "$log" 2>/dev/null | tr -d '\r' | cut -c 1-300) || true ;;
  esac
  printf 'worker %s: %s %s%s\n' "$(hostname)" "$word" "$detail" "${last:+; last line: $last}"
}

refuse_if_running() {
  look
  [[ $word != running ]] || fail "already running on $(hostname) (pid $child); stop it first"
}

# shellcheck disable=SC2329  # the trap calls it
forward_once() {
  interrupted=1
  if ((opt_forward && !forwarded)); then
    forwarded=1
    if [[ -n $pid ]]; then kill -TERM "$pid" 2>/dev/null || true; fi
  fi
}

# What the program has written since the last time.
show_more() {
  local size
  size=$(wc -c <"$log")
  # Where the log has grown meanwhile, head leaves before tail is done.
  ((size == shown)) || tail -c "+$((shown + 1))" "$log" | head -c $((size - shown)) || true
  shown=$size
}

run_program() {
  local command=("$opt_python" -m threedim.main "${program_args[@]}") begin began=$SECONDS outcome
  ((!opt_xpk_gpu)) || command+=(
    "--coordinator_address=${JAX_COORDINATOR_ADDRESS:?is not set}:${JAX_COORDINATOR_PORT:?is not set}"
    "--num_processes=${NNODES:?is not set}" "--process_id=${NODE_RANK:?is not set}"
  )
  if ((dry_run)); then
    run "${command[@]}"
    return
  fi
  mkdir -p "$opt_run_dir"
  refuse_if_running
  rm -f "$asked_file"
  touch "$log"
  begin=$(wc -c <"$log")

  pid="" forwarded=0
  trap forward_once TERM INT
  trap 'interrupted=1' HUP
  cd "$root"
  # Straight into a file: whatever happens to this script, the program can go on writing while it saves.
  PYTHONUNBUFFERED=1 "${command[@]}" >>"$log" 2>&1 </dev/null &
  pid=$!
  keep running "$pid"
  ((!forwarded)) || kill -TERM "$pid" 2>/dev/null || true
  shown=$begin
  while ((opt_follow)) && kill -0 "$pid" 2>/dev/null; do
    show_more
    # The traps do what a signal asks for; the sleep that it ends is no error.
    sleep 0.5 || true
  done
  await "$pid"
  local status=$code
  ((!opt_follow)) || show_more

  if ((status == 0 || status == 143)) && [[ -e $asked_file ]]; then
    outcome=stopped
  elif ((status == 143)) || { ((status == 0)) && tail -c "+$((begin + 1))" "$log" | grep -q '^stopped by SIG'; }; then
    outcome=preempted
  elif ((status == 0)); then
    outcome=finished
  elif ((SECONDS - began < opt_early)); then
    outcome=failed_early
  else
    outcome=failed
  fi
  keep "$outcome" - "exit=$status after=$((SECONDS - began))s"
  case $outcome in
    stopped | preempted) exit "$opt_stopped_code" ;;
    failed) exit "${opt_accident_code:-$status}" ;;
    *) exit "$status" ;;
  esac
}

start_program() {
  refuse_if_running
  local options=("--run_dir=$opt_run_dir" "--python=$opt_python" "--early=$opt_early") tries
  mkdir -p "$opt_run_dir"
  rm -f "$state_file"
  # A session of its own, so that it outlives the connection that started it.
  setsid nohup bash "${BASH_SOURCE[0]}" run "${options[@]}" -- "${program_args[@]}" >>"$log" 2>&1 </dev/null &
  for ((tries = 0; tries < 100; tries++)); do
    [[ ! -e $state_file ]] || break
    sleep 0.1
  done
  [[ -e $state_file ]] || fail "the program did not start on $(hostname): $(tail -n 1 "$log")"
  show_state
}

stop_program() {
  look
  if [[ $word != running ]]; then
    show_state
    return
  fi
  touch "$asked_file"
  kill -TERM "$child"
  local end=$((SECONDS + opt_timeout)) gone=0
  # Between the end of the program and the word about it there is a moment.
  while look && ((SECONDS < end && gone < 25)) && [[ $word == running || $word == vanished ]]; do
    [[ $word == running ]] || gone=$((gone + 1))
    sleep 0.2
  done
  grep -a '^stopped by SIG' "$log" | tail -n 1 || true
  show_state
  [[ $word != running ]] || fail "still running on $(hostname) after $opt_timeout s; its log: $log"
  # "preempted" here: another worker's signal was faster.
  [[ $word =~ ^(stopped|preempted|finished)$ ]] || fail "ended on $(hostname) without saving; its log: $log"
}

positive --timeout "$opt_timeout"
number --early "$opt_early"
[[ ${#positional[@]} -eq 1 ]] || fail "one of start, run, state and stop is needed; --help says what they do"
case ${positional[0]} in
  start | run)
    check_program_args
    check_config_file
    if [[ ${positional[0]} == run || $dry_run == 1 ]]; then run_program; else start_program; fi
    ;;
  state) show_state ;;
  stop) stop_program ;;
  *) fail "no action '${positional[0]}'; there are start, run, state and stop" ;;
esac
