#!/usr/bin/env bash
# Runs threedim.main on all workers of a Cloud TPU slice, which it requests as a queued resource.
#
#   launch/tpu_pod.sh ACTION --name=NAME --project=P --zone=Z [OPTIONS] [-- ARGUMENTS OF threedim.main]
#
#   launch/tpu_pod.sh run --name=cars --project=my-project --zone=us-east5-b --accelerator_type=v6e-16 --spot \
#       -- --config=configs/srn_cars.py --mode=train --workdir=gs://my-bucket/cars
#
# Actions:
#   run      request the TPU, install this checkout's tracked files on all workers, start the program and watch it until
#            it has finished. After a preemption, delete the TPU and start over. May be interrupted: the same command
#            picks up what exists
#   status   the state of the program on every worker
#   logs     the end of a worker's log
#   attach   the same, and follow it; Ctrl-C ends only the display
#   stop     send SIGTERM and wait; all workers save at the same step
#   delete   delete the queued resource with its VMs, after confirmation
#
# Options:
#   --name, --project, --zone     project and zone default to $CLOUDSDK_CORE_PROJECT and $CLOUDSDK_COMPUTE_ZONE
#   --accelerator_type=TYPE       run: v4-32, v5litepod-16, v5p-32, v6e-16 ...
#   --runtime_version=VERSION     run: default: what Google recommends for JAX on this type
#   --spot                        run: cheaper, but may be preempted at any time
#   --create_flag=FLAG            run: any other flag of `gcloud compute tpus queued-resources create`; may be repeated
#   --internal_ip                 reach the workers at their internal addresses
#   --worker=N|all                logs, attach (default 0)
#   --lines=N                     logs, attach (default 100)
#   --poll_seconds=S              run: how often to check (default 30)
#   --grace_seconds=S             run: after the program ends, how long to wait for news of a preemption (default 180)
#   --max_restarts=N              run: how often to restart after failures other than preemptions (default 3)
#   --max_errors=N                run: how many checks in a row may fail (default 20)
#   --stop_seconds=S              stop: how long to wait for the checkpoint (default 600)
#   --delete_when_done            run: delete the TPU when the program has finished
#   --yes                         delete: do not ask
#   --dry_run                     print the commands of an uninterrupted run without running anything

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_name="" opt_project=${CLOUDSDK_CORE_PROJECT:-} opt_zone=${CLOUDSDK_COMPUTE_ZONE:-} opt_accelerator_type=""
opt_runtime_version="" opt_spot=false opt_create_flag=() opt_internal_ip=false opt_worker=0 opt_lines=100
opt_poll_seconds=30 opt_grace_seconds=180 opt_max_restarts=3 opt_max_errors=20 opt_stop_seconds=600
opt_delete_when_done=false opt_yes=false action=""
parse "$@"
worker_script=threedim/code/launch/worker.sh

# on_workers WORKERS COMMAND: sets $ssh to the command that runs COMMAND there.
on_workers() { ssh=(gcloud compute tpus tpu-vm ssh "$opt_name" "${reach[@]}" "--worker=$1" "--command=$2"); }

# check_failed WHAT WHY: counts failed checks in a row in $errors, and gives up after --max_errors.
check_failed() {
  errors=$((errors + 1))
  say "$1 ($errors of $opt_max_errors): ${2##*$'\n'}"
  ((errors < opt_max_errors)) || fail "$1, $errors times in a row: $2"
  sleep "$opt_poll_seconds"
}

# Sets $state to the state of the queued resource, or to MISSING.
look_at_resource() {
  local errors=0
  while :; do
    ask gcloud compute tpus queued-resources describe "$opt_name" "${where[@]}" '--format=value(state.state)' || true
    state=${answer:-MISSING}
    if $opt_dry_run || [[ -n $answer || $complaint =~ NOT_FOUND|not\ found ]]; then return; fi
    check_failed "cannot read the state of $opt_name" "$complaint"
  done
}

is_gone() { [[ $state =~ ^(MISSING|SUSPENDING|SUSPENDED|FAILED|DELETING|PREEMPTED|TERMINATED|STOPPING|STOPPED)$ ]]; }

# A preempted VM can be gone before the queued resource says so. $state is then the VM's.
is_vm_gone() {
  ask gcloud compute tpus tpu-vm describe "$opt_name" "${where[@]}" '--format=value(state)' &&
    [[ $answer =~ ^(PREEMPTED|TERMINATED|STOPPING|STOPPED)$ ]] && state=$answer
}

# Sets $workers to one state per worker, and $report to their lines. Returns 1 if the workers cannot be reached.
look_at_workers() {
  local first host word rest
  workers=() report=""
  on_workers all "if test -e $worker_script; then bash $worker_script state; else echo worker \$(hostname): unset; fi"
  ask "${ssh[@]}" || return 1
  while read -r first host word rest; do
    [[ $first == worker ]] || continue
    workers+=("$word") report+="${report:+$'\n'}  $host $word $rest"
  done < <(sort <<<"$answer")
  $opt_dry_run || ((${#workers[@]}))
}

any() { [[ " ${workers[*]} " == *" $1 "* ]]; }

# all STATE|STATE...: every worker is in one of these states.
all() { local pattern="^( ($1))+ \$" && [[ " ${workers[*]} " =~ $pattern ]]; }

request() {
  run gcloud compute tpus queued-resources create "$opt_name" "${where[@]}" "--node-id=$opt_name" \
    "--accelerator-type=$opt_accelerator_type" "--runtime-version=$opt_runtime_version" "${opt_create_flag[@]}"
}

delete_resource() { run gcloud compute tpus queued-resources delete "$opt_name" "${where[@]}" --force; }

# A preempted resource never comes back: it has to be deleted, which gcloud refuses while it is still shutting down.
clear_away() {
  while [[ $state == SUSPENDING || $state == DELETING ]]; do
    sleep "$opt_poll_seconds"
    look_at_resource
  done
  [[ $state == MISSING ]] || delete_resource
}

# The tracked files as they are on disk, each followed by a zero byte.
list_files() {
  local file
  git -C "$root" ls-files -z | while IFS= read -r -d '' file; do [[ ! -e $root/$file ]] || printf '%s\0' "$file"; done
}

# Installs the code on all workers and starts the program.
deploy() {
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/threedim/launch script
  local archive=$cache/$opt_name.tar.gz files=$cache/$opt_name.files
  $opt_dry_run || { mkdir -p "$cache" && list_files >"$files"; } || fail "cannot write $files"
  run tar --create --gzip --file="$archive" --directory="$root" --null --files-from="$files"
  run gcloud compute tpus tpu-vm scp "$archive" "$opt_name:threedim-code.tar.gz" "${reach[@]}" --worker=all
  script="set -e; rm -rf threedim/code; mkdir -p threedim/code; tar -xzf threedim-code.tar.gz -C threedim/code"
  # The environment outlives the code. TPU VMs come with Python 3.10; uv installs a newer one.
  script+="; ln -sfn ../venv threedim/code/.venv; export PATH=\"\$HOME/.local/bin:\$PATH\""
  script+="; command -v uv > /dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
  script+="; test -x threedim/venv/bin/python || uv venv --quiet --python 3.12 threedim/venv"
  script+="; uv pip install --quiet --python threedim/venv/bin/python --editable 'threedim/code[tpu]'"
  on_workers all "$script"
  run "${ssh[@]}"
  on_workers all "bash $worker_script start -- $(quote "${program_args[@]}")"
  run "${ssh[@]}"
}

# Sets $outcome to how the program ended; returns 1 while that is not clear.
judge() {
  if all finished; then
    outcome=finished
  # Workers that another worker's signal reached first do not know about `stop`.
  elif all 'finished|stopped|preempted' && any stopped; then
    outcome=stopped
  elif all failed_early; then
    outcome=mistaken
  else
    # Failed, or stopped from outside. Perhaps it is a preemption that the resource does not report yet.
    ended=${ended:-$SECONDS}
    ((SECONDS - ended >= opt_grace_seconds)) || return 1
    outcome=failed
  fi
}

# Waits for the TPU, starts the program unless it is running, and watches it until it has ended or the TPU is gone. Sets
# $outcome to finished, stopped, mistaken (it would fail again), failed or preempted.
attempt() {
  local errors=0 started=false ended="" shown="" now problem
  while :; do
    look_at_resource
    now="$opt_name is $state" outcome=preempted
    if is_gone; then return; fi
    if [[ $state == ACTIVE ]]; then
      if ! look_at_workers; then
        problem=$complaint
        if is_vm_gone; then return; fi
        check_failed "cannot reach all workers of $opt_name" "$problem"
        continue
      fi
      errors=0 now=$report
      if any running; then
        started=true ended=""
      elif ! $started; then
        # In a subshell, so that a TPU that disappears meanwhile does not end this script.
        (deploy) || { outcome=failed && return; }
        started=true
      elif judge; then
        return
      fi
    fi
    [[ $now == "$shown" ]] || say "$now"
    shown=$now
    sleep "$opt_poll_seconds"
  done
}

run_until_finished() {
  local restarts=0 preemptions=0 report=""
  trap 'say "$opt_name keeps running; the same command picks it up again"; exit 130' INT TERM
  look_at_resource
  while :; do
    if is_gone; then clear_away && request; fi
    attempt
    # A failure may be the first sign of a preemption.
    if [[ $outcome == failed ]] && { look_at_resource; is_gone || is_vm_gone; }; then outcome=preempted; fi
    [[ $state != FAILED ]] || outcome=failed
    case $outcome in
      preempted)
        preemptions=$((preemptions + 1))
        say "$opt_name is $state: preemption $preemptions; starting over"
        ;;
      failed | mistaken)
        ((restarts < opt_max_restarts)) && [[ $outcome == failed ]] ||
          fail "failed after $restarts restarts; launch/tpu_pod.sh logs --name=$opt_name shows why:"$'\n'"$report"
        restarts=$((restarts + 1))
        say "failed without a preemption; restart $restarts of $opt_max_restarts"
        sleep "$opt_poll_seconds"
        ;;
      *) break ;;
    esac
  done
  say "$outcome after $SECONDS s, $preemptions preemptions and $restarts other restarts"
  if [[ $outcome == finished ]] && $opt_delete_when_done; then delete_resource && return; fi
  say "$opt_name still exists and costs money; launch/tpu_pod.sh delete --name=$opt_name ${where[*]} deletes it"
}

# What an uninterrupted run calls.
print_run() {
  look_at_resource && request && look_at_resource && look_at_workers && deploy
  look_at_resource && look_at_workers
  ! $opt_delete_when_done || delete_resource
  say "note: the state is checked every $opt_poll_seconds s; after a preemption the TPU is deleted and all starts over"
}

check_run() {
  given accelerator_type "such as v6e-16; gcloud compute tpus accelerator-types list --zone=$opt_zone shows them"
  local -A versions=([v4]=tpu-ubuntu2204-base [v5litepod]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5
    [v6e]=v2-alpha-tpuv6e)
  opt_accelerator_type=${opt_accelerator_type/#v5e-/v5litepod-}
  opt_runtime_version=${opt_runtime_version:-${versions[${opt_accelerator_type%%-*}]:-}}
  given runtime_version "it is known only for v4-N, v5litepod-N, v5p-N and v6e-N"
  check_cloud_args
  git -C "$root" ls-files --error-unmatch -- setup.py "$config_file" >/dev/null 2>&1 ||
    fail "$root is copied by means of git, which must track setup.py and $config_file; git add what is missing"
  ! $opt_spot || opt_create_flag=(--spot "${opt_create_flag[@]}")
}

[[ $action =~ ^(run|status|logs|attach|stop|delete)$ ]] ||
  fail "one action is required: run, status, logs, attach, stop or delete; see --help"
must_be "lowercase letters, digits and hyphens, starting with a letter" '^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$' name
must_be "a number of seconds" '^[0-9]+([.][0-9]+)?$' poll_seconds
positive grace_seconds max_errors stop_seconds lines
must_be "a number" '^[0-9]+$' max_restarts
must_be "a number or all" '^([0-9]+|all)$' worker
[[ $action != run ]] || check_run
check_cloud
where=("--project=$opt_project" "--zone=$opt_zone" --quiet) reach=("${where[@]}")
! $opt_internal_ip || reach+=(--internal-ip)

case $action in
  run) if $opt_dry_run; then print_run; else run_until_finished; fi ;;
  status) on_workers all "bash $worker_script state" ;;
  logs) on_workers "$opt_worker" "tail -n $opt_lines threedim/run/log" ;;
  attach) on_workers "$opt_worker" "tail -n $opt_lines -F threedim/run/log" ;;
  stop) on_workers all "bash $worker_script stop --timeout=$opt_stop_seconds" ;;
  delete)
    reply=y
    $opt_yes || $opt_dry_run || read -r -p "Delete $opt_name with its VMs and their disks? [y/N] " reply || reply=n
    [[ $reply == [yY]* ]] || fail "nothing was deleted"
    delete_resource
    ;;
esac
[[ ! $action =~ ^(status|logs|attach|stop)$ ]] || run "${ssh[@]}"
