# shellcheck shell=bash disable=SC2154
# The part of tpu_pod.sh that waits and watches; sourced by it. $state is the queued resource's, $workers the program's.

gone() { [[ $state =~ ^(MISSING|SUSPENDING|SUSPENDED|FAILED|DELETING)$ ]]; }

# Asks anew. A preempted VM can be gone before the queued resource says so; $state is the VM's then.
gone_now() {
  look_at_resource
  if gone; then return 0; fi
  ask gcloud compute tpus tpu-vm describe "$opt_name" "${where[@]}" '--format=value(state)' || return 1
  [[ $answer =~ ^(PREEMPTED|TERMINATED|STOPPING|STOPPED)$ ]] || return 1
  state=$answer
}

# Counts looks that failed one after another, and gives up when there are too many.
failed_look() {
  errors=$((errors + 1))
  say "$1 ($errors of $opt_max_errors): ${complaint##*$'\n'}"
  ((errors < opt_max_errors)) || fail "$1, $errors times one after another; the last error: $complaint"
}

# Waits until the resource is ACTIVE, saying every change of its state; returns 1 where it never will be.
wait_until_active() {
  local shown="" began=$SECONDS errors=0
  while :; do
    look_at_resource
    ((!dry_run)) || return 0
    if [[ $state == UNKNOWN ]]; then
      failed_look "cannot see the state of $opt_name"
    else
      errors=0
      [[ $state == "$shown" ]] || say "$opt_name is $state after $((SECONDS - began)) s"
      shown=$state
      [[ $state != ACTIVE ]] || return 0
      if gone; then return 1; fi
    fi
    sleep "$opt_poll_seconds"
  done
}

# Deletes what is left of a dead resource. gcloud refuses while it is on its way out.
clear_away() {
  local errors=0
  while [[ $state == SUSPENDING || $state == DELETING || $state == UNKNOWN ]]; do
    sleep "$opt_poll_seconds"
    look_at_resource
    [[ $state != UNKNOWN ]] || failed_look "cannot see the state of $opt_name"
  done
  [[ $state == MISSING ]] || run gcloud compute tpus queued-resources delete "$opt_name" "${where[@]}" --force
}

# Watches until something has come to its end, and sets $outcome to what:
#   preempted   the TPU is gone
#   finished    the program has done all that it was asked to do, on all workers
#   stopped     `stop` was called
#   again       the program was stopped or killed from outside, but the TPU stayed (maintenance, a reboot)
#   failed      the program failed
#   mistaken    it failed at once on all workers, and would again
watch() {
  local errors=0 ended="" shown=""
  while :; do
    look_at_resource
    if [[ $state == UNKNOWN ]]; then
      failed_look "cannot see the state of $opt_name"
    elif gone; then
      outcome=preempted
      return
    elif look_at_workers; then
      errors=0
      # The lines of running workers differ by nothing but their order.
      local now
      now=$(sort <<<"$report")
      [[ $now == "$shown" ]] || say "$now"
      shown=$now
      if any running; then
        ended=""
      elif all finished; then
        outcome=finished
        return
      # Those that another worker's signal reached first do not know of the `stop`.
      elif all finished stopped preempted && any stopped; then
        outcome=stopped
        return
      elif all failed_early; then
        outcome=mistaken
        return
      else
        # Perhaps a preemption that the resource does not tell of yet.
        ended=${ended:-$SECONDS}
        if ((SECONDS - ended >= opt_grace_seconds)); then
          if any failed || any failed_early; then outcome=failed; else outcome=again; fi
          return
        fi
      fi
    else
      local ssh_complaint=$complaint
      if gone_now; then
        outcome=preempted
        return
      fi
      complaint=$ssh_complaint
      failed_look "cannot reach all workers of $opt_name"
    fi
    sleep "$opt_poll_seconds"
  done
}

# Looks at the workers until all answer; returns 1 where the TPU goes away meanwhile.
reach_workers() {
  local errors=0
  until look_at_workers; do
    local ssh_complaint=$complaint
    if gone_now; then return 1; fi
    complaint=$ssh_complaint
    failed_look "cannot reach all workers of $opt_name"
    sleep "$opt_poll_seconds"
  done
}

# Under --dry_run: what a run without interruption calls.
one_pass() {
  create
  look_at_workers
  copy_code
  start_program
  look_at_resource
  look_at_workers
  say "note: the last two every $opt_poll_seconds s; after preemption, all again after:"
  say "note:   $(quote gcloud compute tpus queued-resources delete "$opt_name" "${where[@]}" --force)"
  if ((opt_delete_when_done)); then opt_yes=1 delete; fi
}

run_until_finished() {
  local restarts=0 preemptions=0 began=$SECONDS active
  trap 'say; say "$opt_name goes on without this script; the same command takes it up again"; exit 130' INT TERM
  while :; do
    look_at_resource
    active=1
    if gone; then
      [[ $state == MISSING ]] || clear_away
      request
      wait_until_active || active=0
    elif [[ $state == UNKNOWN ]]; then
      fail "cannot see whether $opt_name exists: $complaint"
    else
      wait_until_active || active=0
    fi
    if ((!active)); then
      outcome=preempted
      [[ $state != FAILED ]] || outcome=failed
    elif ! reach_workers; then
      outcome=preempted
    elif any running; then
      say "the program is running on $opt_name; watching it"
      watch
    # In a subshell, so that a TPU that goes away meanwhile does not end this script.
    elif (copy_code && start_program); then
      watch
    else
      outcome=failed
    fi

    case $outcome in
      finished)
        say "finished after $((SECONDS - began)) s, $preemptions preemptions and $restarts other restarts"
        if ((opt_delete_when_done)); then
          opt_yes=1 delete
        else
          say "$opt_name is still there and costs money; to delete it:"
          say "  launch/tpu_pod.sh delete --name=$opt_name --project=$opt_project --zone=$opt_zone"
        fi
        return
        ;;
      stopped)
        say "stopped as asked; $opt_name is still there. The same command goes on from the checkpoint"
        return
        ;;
      mistaken) fail "the program failed at once; launch/tpu_pod.sh logs --name=$opt_name shows why:"$'\n'"$report" ;;
      preempted)
        preemptions=$((preemptions + 1))
        say "$opt_name is $state: preemption $preemptions; starting again"
        clear_away
        ;;
      again | failed)
        if gone_now && [[ $state != FAILED ]]; then
          preemptions=$((preemptions + 1))
          say "$opt_name is $state: preemption $preemptions; starting again"
          clear_away
          continue
        fi
        ((restarts < opt_max_restarts)) ||
          fail "ended $((restarts + 1)) times without preemption, --max_restarts is $opt_max_restarts:"$'\n'"$report"
        restarts=$((restarts + 1))
        say "starting again, restart $restarts of $opt_max_restarts"
        sleep "$opt_poll_seconds"
        ;;
    esac
  done
}
