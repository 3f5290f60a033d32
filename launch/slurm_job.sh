#!/usr/bin/env bash
# The batch job that slurm_gpu.sh submits: runs the tasks, and requeues itself if they were stopped before the end.
# Slurm runs a copy of this file, in the root of the checkout.

set -euo pipefail
# shellcheck source=launch/common.sh
source launch/common.sh

opt_python="" opt_log_dir="" opt_setup="" opt_signal_seconds=""
parse "$@"
stem=$opt_log_dir/$SLURM_JOB_NAME-$SLURM_JOB_ID
# One file per attempt, so that the line that says "stopped" is not from an earlier one.
output=$stem.${SLURM_RESTART_COUNT:-0}.out

told=0
# shellcheck disable=SC2329  # called by the trap
tell_tasks() {
  if ((told)); then return; fi
  told=1
  say "the time limit is near, or the job is being preempted: telling the tasks to save"
  # Only the steps get the signal; this script is not one.
  scancel --signal=TERM "$SLURM_JOB_ID" || say "scancel failed; the tasks were not told"
  # Tasks that do not respond are killed while there is still time to requeue. srun's step is number 0.
  set -m
  (sleep $((opt_signal_seconds * 3 / 4)) && scancel --signal=KILL "$SLURM_JOB_ID.0") >/dev/null 2>&1 </dev/null &
  trap 'kill -- -'$!' 2>/dev/null || true' EXIT
  set +m
}

trap tell_tasks USR1
# When Slurm preempts or cancels a job, it sends SIGTERM to the tasks as well; this script waits for them.
trap : TERM

# May set up modules and functions in this shell.
eval "$opt_setup"
export PYTHONUNBUFFERED=1
# Since Slurm 22.05, srun does not take this over from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

say "attempt ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this node}; output in $output"
ln -sfn "$(basename "$output")" "$stem.out"
# A task that exits first does not end the others, which may still be saving; they exit when they lose a peer.
srun --label --kill-on-bad-exit=0 --wait=180 --gpu-bind=none "--output=$output" \
  "$opt_python" -m threedim.main "${program_args[@]}" &
await "$!"

# If the program says that it was stopped but exits with an error, it did not save.
stopped=$((code == 0))
grep -Esq '^ *[0-9]+: stopped by SIG' "$output" || stopped=$((code == 143 || (told && code != 0)))
if ((!stopped)); then
  say "ended with exit status $code"
  exit "$code"
fi
if [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") == *JobState=CANCELLED* ]]; then
  say "stopped because the job was cancelled; not requeued"
  exit 0
fi
say "stopped before it finished; requeueing"
run scontrol requeue "$SLURM_JOB_ID"
