#!/usr/bin/env bash
# The batch job that slurm_gpu.sh submits: starts the tasks, and puts itself back into the queue when they were stopped.
# Slurm runs a copy of it, in the root of the checkout.
#
#   sbatch [FLAGS OF SBATCH] launch/slurm_job.sh --python=FILE --log_dir=FOLDER [--setup=COMMAND] \
#       [--signal_seconds=N] [--dry_run] -- ARGS

set -euo pipefail
# shellcheck source=launch/common.sh
source launch/common.sh

opt_python=python3 opt_log_dir=logs opt_setup="" opt_signal_seconds=120
parse "python log_dir setup signal_seconds" "" "" "$@"
positive --signal_seconds "$opt_signal_seconds"
: "${SLURM_JOB_ID:?is not set: this is to be run by sbatch; see launch/slurm_gpu.sh --help}"
stem=$opt_log_dir/${SLURM_JOB_NAME:-threedim}-$SLURM_JOB_ID
# One file an attempt: the line that says "stopped" must not be an old one.
output=$stem.${SLURM_RESTART_COUNT:-0}.out

told=0 interrupted=0 timer=""
# await calls it after a signal.
on_interrupt() {
  if ((!told)) || [[ -n $timer ]]; then return 0; fi
  say "the job's time is nearly over, or it is to be preempted: telling the tasks to save"
  # The steps alone get it; this script is no step.
  scancel --signal=TERM "$SLURM_JOB_ID" || say "scancel failed; the tasks do not know"
  # Tasks that take no notice must not use up the time in which the job can go back into the queue. srun's is step 0.
  (
    trap 'kill $! 2>/dev/null' TERM
    sleep $((opt_signal_seconds * 3 / 4)) &
    wait $! && scancel --signal=KILL "$SLURM_JOB_ID.0"
  ) >/dev/null 2>&1 </dev/null &
  timer=$!
}
trap 'told=1 interrupted=1' USR1
# Slurm sends this when it preempts or cancels, to the tasks as well: nothing to pass on, they are waited for.
trap 'interrupted=1' TERM

# The arguments may name modules and functions of this shell only.
[[ -z $opt_setup ]] || eval "$opt_setup"
export PYTHONUNBUFFERED=1
# Since Slurm 22.05 srun does not take it over from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# A task that ends first does not take the others with it: they may be saving still. A lost peer ends them by itself.
command=(srun --label --kill-on-bad-exit=0 --wait=180 --gpu-bind=none "--output=$output")
command+=("$opt_python" -m threedim.main "${program_args[@]}")
if ((dry_run)); then
  run "${command[@]}"
  exit 0
fi
say "attempt ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this node}; output in $output"
ln -sfn "$(basename "$output")" "$stem.out"
"${command[@]}" &
child=$!
# The signal may have come before there was anybody to tell.
on_interrupt
await "$child"
[[ -z $timer ]] || kill "$timer" 2>/dev/null || true

stopped=0
if grep -Eq '^ *[0-9]+: stopped by SIG' "$output"; then
  # Only 0 means that what it said was done.
  if ((code == 0)); then stopped=1; fi
elif ((code == 143 || (told && code != 0))); then
  stopped=1
fi
if ((!stopped)); then
  say "ended with exit status $code"
  exit "$code"
fi
if [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") == *JobState=CANCELLED* ]]; then
  say "stopped because the job was cancelled; not queued again"
  exit 0
fi
say "stopped before it was done; back into the queue"
run scontrol requeue "$SLURM_JOB_ID"
