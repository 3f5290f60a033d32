#!/usr/bin/env bash
# A TPU slice, one host or a pod, as a queued resource of Google Cloud; runs threedim.main on all its workers.
#
#   launch/tpu_pod.sh ACTION --name=NAME --project=P --zone=Z [OPTIONS] [-- ARGS of threedim.main]
#
#   launch/tpu_pod.sh run --name=cars --project=my-project --zone=us-east5-b --accelerator_type=v6e-16 --spot \
#       -- --config=configs/srn_cars.py --mode=train --workdir=gs://my-bucket/cars
#
# Actions:
#   create   ask for the TPU and wait until it is ACTIVE
#   setup    copy the tracked files of this checkout to all workers (or clone --git) and install .[tpu] there
#   start    start the program on all workers, in the background; refuses if it is running
#   status   state of the resource and of the program on every worker
#   logs     the last --lines of the log of --worker
#   attach   the same, and go on showing it; Ctrl-C ends only the showing
#   stop     SIGTERM; all workers save at the same step; waits for it
#   run      create, setup, start, then watch: after preemption delete, create, set up and start again until the program
#            has finished. It may be interrupted and run again: what is there already is taken over
#   delete   delete the queued resource with its VMs; asks first
#
# Options:
#   --name, --project, --zone     project and zone default to $CLOUDSDK_CORE_PROJECT and $CLOUDSDK_COMPUTE_ZONE
#   --accelerator_type=TYPE       v4-32, v5litepod-16, v5p-32, v6e-16 ... (create, run)
#   --runtime_version=VERSION     default: by generation, as Google's documentation recommends for JAX
#   --spot                        cheaper, may be preempted at any time
#   --create_flag=FLAG            any other flag of `gcloud compute tpus queued-resources create`; may be repeated
#   --git=URL@REF                 setup: clone this instead of copying the checkout; public repositories
#   --internal_ip                 reach the workers by their internal addresses
#   --worker=N|all                logs, attach (default 0)
#   --lines=N                     logs, attach (default 100)
#   --poll_seconds=S              between two looks at the state (default 30)
#   --grace_seconds=S             run: how long after the program's end the resource may still turn out to be preempted
#                                 (default 180)
#   --max_restarts=N              run: how often to start again after failures that are no preemption (default 3)
#   --max_errors=N                how many looks at the state may fail one after another (default 20)
#   --stop_seconds=S              stop: how long to wait for the saved checkpoint (default 600)
#   --delete_when_done            run: delete the TPU when the program has finished
#   --yes                         delete: do not ask
#   --dry_run                     print the commands of one pass, run nothing
#
# What `run` relies on: the state of the queued resource says whether the TPU was preempted (SUSPENDED); how the program
# ended is kept by launch/worker.sh on every worker. A finished run that is started again ends at once.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/tpu_watch.sh
source "$root/launch/tpu_watch.sh"

opt_name="" opt_project=${CLOUDSDK_CORE_PROJECT:-} opt_zone=${CLOUDSDK_COMPUTE_ZONE:-}
opt_accelerator_type="" opt_runtime_version="" opt_spot=0 opt_git="" opt_internal_ip=0 opt_worker=0 opt_lines=100
opt_poll_seconds=30 opt_grace_seconds=180 opt_max_restarts=3 opt_max_errors=20 opt_stop_seconds=600
opt_delete_when_done=0 opt_yes=0
parse "name project zone accelerator_type runtime_version git worker lines poll_seconds grace_seconds max_restarts
  max_errors stop_seconds" "spot internal_ip delete_when_done yes" "create_flag" "$@"
opt_accelerator_type=${opt_accelerator_type/#v5e-/v5litepod-}

# Inside the home folder of every worker. The checkout's .venv is a link, so that setting up again need not reinstall.
worker_script=threedim/code/launch/worker.sh

# on_workers WORKERS COMMAND LINE: $ssh becomes the command that runs it there.
on_workers() {
  ssh=(gcloud compute tpus tpu-vm ssh "$opt_name" "${where[@]}" "--worker=$1" "--command=$2")
  ((!opt_internal_ip)) || ssh+=(--internal-ip)
}

# Sets $state: what gcloud says, MISSING, or UNKNOWN where it could not be asked.
look_at_resource() {
  if ask gcloud compute tpus queued-resources describe "$opt_name" "${where[@]}" '--format=value(state.state)'; then
    state=${answer:-UNKNOWN}
  elif [[ $complaint == *NOT_FOUND* || $complaint == *"not found"* ]]; then
    state=MISSING
  else
    state=UNKNOWN
  fi
}

request() {
  local command=(
    gcloud compute tpus queued-resources create "$opt_name" "${where[@]}" "--node-id=$opt_name"
    "--accelerator-type=$opt_accelerator_type" "--runtime-version=$opt_runtime_version"
  )
  ((!opt_spot)) || command+=(--spot)
  run "${command[@]}" "${repeated[@]}"
}

create() {
  look_at_resource
  if ((!dry_run)); then
    case $state in
      ACTIVE)
        say "$opt_name is ACTIVE already"
        return
        ;;
      UNKNOWN) fail "cannot see whether $opt_name exists; gcloud ... queued-resources describe says: $complaint" ;;
      SUSPENDING | SUSPENDED | FAILED | DELETING)
        fail "$opt_name exists and is $state; delete it first: launch/tpu_pod.sh delete --name=$opt_name"
        ;;
    esac
  fi
  if ((dry_run)) || [[ $state == MISSING ]]; then request; fi
  wait_until_active || fail "$opt_name became $state instead of ACTIVE; launch/tpu_pod.sh delete, and create again"
}

delete() {
  if ((!opt_yes && !dry_run)); then
    local reply="" question="Delete the queued resource $opt_name in $opt_zone and its VMs, disks included?"
    read -r -p "$question [y/N] " reply || true
    [[ $reply == [yY] || $reply == [yY][eE][sS] ]] || fail "nothing was deleted"
  fi
  run gcloud compute tpus queued-resources delete "$opt_name" "${where[@]}" --force
}

# Sets $workers, one state a worker, and $report, the lines. Not all could be reached: returns 1.
look_at_workers() {
  workers=() report=""
  # Without the code there is nobody to ask yet.
  local unset="echo \"worker \$(hostname): unset\""
  on_workers all "if test -e $worker_script; then bash $worker_script state; else $unset; fi"
  ask "${ssh[@]}" || return 1
  local first host word rest
  while read -r first host word rest; do
    [[ $first == worker ]] || continue
    workers+=("$word")
    report+="${report:+$'\n'}  $host $word $rest"
  done <<<"$answer"
  ((dry_run || ${#workers[@]}))
}

any() {
  local word
  for word in "${workers[@]}"; do [[ $word != "$1" ]] || return 0; done
  return 1
}

# all STATE...: every worker is in one of these.
all() {
  local word
  for word in "${workers[@]}"; do [[ " $* " == *" $word "* ]] || return 1; done
}

unreachable() { fail "cannot reach all workers of $opt_name: $(quote "${ssh[@]}") says: ${complaint:-nothing}"; }

refuse_if_running() {
  if any running; then fail "already running on $opt_name; stop it first, or attach:"$'\n'"$report"; fi
}

copy_code() {
  local steps=("mkdir -p threedim" "rm -rf threedim/new") step script=""
  if [[ -n $opt_git ]]; then
    steps+=("git clone --quiet $(quote "${opt_git%@*}") threedim/new")
    steps+=("git -C threedim/new checkout --quiet $(quote "${opt_git##*@}")")
  else
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/threedim/launch
    local archive=$folder/$opt_name.tar.gz list=$folder/$opt_name.files
    ((dry_run)) || { mkdir -p "$folder" && list_files >"$list"; }
    run tar --create --gzip --file="$archive" --directory="$root" --null --files-from="$list"
    local scp=(gcloud compute tpus tpu-vm scp "$archive" "$opt_name:threedim-code.tar.gz" "${where[@]}" --worker=all)
    ((!opt_internal_ip)) || scp+=(--internal-ip)
    run "${scp[@]}"
    steps+=("mkdir threedim/new" "tar -xzf threedim-code.tar.gz -C threedim/new")
  fi
  # TPU VMs come with Python 3.10; uv brings the one that is needed.
  local pip="PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
  steps+=(
    "rm -rf threedim/code" "mv threedim/new threedim/code" "ln -sfn ../venv threedim/code/.venv"
    "export PATH=\"\$HOME/.local/bin:\$PATH\"" "{ command -v uv > /dev/null || $pip; }"
    "{ test -x threedim/venv/bin/python || uv venv --quiet --python 3.12 threedim/venv; }"
    "uv pip install --quiet --python threedim/venv/bin/python --editable 'threedim/code[tpu]'"
  )
  for step in "${steps[@]}"; do script+="${script:+ && }$step"; done
  on_workers all "$script"
  run "${ssh[@]}"
}

# The tracked files as they are on the disk now, each ended by a zero byte.
list_files() {
  local file
  git -C "$root" ls-files -z | while IFS= read -r -d '' file; do
    if [[ -e $root/$file ]]; then printf '%s\0' "$file"; fi
  done
}

start_program() {
  on_workers all "bash $worker_script start -- $(quote "${program_args[@]}")"
  run "${ssh[@]}"
}

check_resource_options() {
  given name "$opt_name" "a name for the queued resource and its VMs"
  [[ $opt_name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "--name=$opt_name: small letters, digits and hyphens only, a letter first"
  given project "$opt_project" "or set CLOUDSDK_CORE_PROJECT; gcloud config get-value project shows your default"
  given zone "$opt_zone" "or set CLOUDSDK_COMPUTE_ZONE; gcloud compute tpus locations list shows where there are TPUs"
  where=("--project=$opt_project" "--zone=$opt_zone" --quiet)
}

check_accelerator() {
  local default
  given accelerator_type "$opt_accelerator_type" \
    "such as v5litepod-16; gcloud compute tpus accelerator-types list --zone=$opt_zone shows them"
  case $opt_accelerator_type in
    v4-*) default=tpu-ubuntu2204-base ;;
    v5litepod-*) default=v2-alpha-tpuv5-lite ;;
    v5p-*) default=v2-alpha-tpuv5 ;;
    v6e-*) default=v2-alpha-tpuv6e ;;
    *) default="" ;;
  esac
  opt_runtime_version=${opt_runtime_version:-$default}
  [[ -n $opt_runtime_version ]] || fail "--accelerator_type=$opt_accelerator_type: v4-N, v5litepod-N, v5p-N and" \
    "v6e-N are known; for another one give --runtime_version too"
}

check_program() {
  check_program_args
  [[ -z $workdir || $workdir == gs://?* ]] ||
    fail "--workdir=$workdir: must be on gs://, where all workers see it and where it outlives the TPU"
  [[ $config_file != /* ]] || fail "--config=$config_file: give it relative to the checkout, which is what is copied"
  [[ -n $opt_git ]] || check_config_file
}

is_tracked() { git -C "$root" ls-files --error-unmatch -- "$1" >/dev/null 2>&1; }

check_source() {
  if [[ -n $opt_git ]]; then
    [[ $opt_git == ?*@?* && ${opt_git##*@} != *:* ]] ||
      fail "--git=$opt_git: URL@REF is needed, REF being a branch, tag or commit"
    return
  fi
  need git "or give --git=URL@REF"
  is_tracked setup.py || fail "$root is no git checkout whose tracked files could be copied; give --git=URL@REF"
  [[ -z ${config_file:-} ]] || is_tracked "$config_file" ||
    fail "--config=$config_file is not tracked by git and would not be copied; git add it"
}

check_login() {
  need gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
  ask gcloud auth list --filter=status:ACTIVE '--format=value(account)' || fail "gcloud auth list says: $complaint"
  ((dry_run)) || [[ -n $answer ]] || fail "gcloud is not logged in; run: gcloud auth login"
}

[[ ${#positional[@]} -eq 1 ]] ||
  fail "one action is needed: create, setup, start, status, logs, attach, stop, run or delete; --help says more"
action=${positional[0]}
check_resource_options
number --poll_seconds "$opt_poll_seconds"
positive --grace_seconds "$opt_grace_seconds"
positive --max_errors "$opt_max_errors"
positive --stop_seconds "$opt_stop_seconds"
positive --lines "$opt_lines"
[[ $opt_max_restarts =~ ^[0-9]+$ ]] || fail "--max_restarts must be a number, got '$opt_max_restarts'"
[[ $opt_worker =~ ^([0-9]+|all)$ ]] || fail "--worker must be a number or all, got '$opt_worker'"

case $action in
  create)
    check_accelerator
    check_login
    create
    ;;
  setup)
    check_source
    check_login
    look_at_workers || unreachable
    refuse_if_running
    copy_code
    ;;
  start)
    check_program
    check_login
    look_at_workers || unreachable
    refuse_if_running
    if any unset; then fail "there is no code on $opt_name yet; launch/tpu_pod.sh setup first:"$'\n'"$report"; fi
    start_program
    ;;
  status)
    check_login
    look_at_resource
    ((dry_run)) || printf '%s is %s\n' "$opt_name" "$state"
    if ((dry_run)) || [[ $state == ACTIVE ]]; then
      look_at_workers || unreachable
      ((dry_run)) || printf '%s\n' "$report"
    fi
    ;;
  logs | attach)
    check_login
    if [[ $action == logs ]]; then follow=""; else follow=" -F"; fi
    on_workers "$opt_worker" "tail -n $opt_lines$follow threedim/run/log"
    run "${ssh[@]}"
    ;;
  stop)
    check_login
    on_workers all "bash $worker_script stop --timeout=$opt_stop_seconds"
    run "${ssh[@]}"
    ;;
  run)
    check_accelerator
    check_program
    check_source
    check_login
    if ((dry_run)); then one_pass; else run_until_finished; fi
    ;;
  delete)
    check_login
    delete
    ;;
  *) fail "no action '$action'; --help lists them" ;;
esac
