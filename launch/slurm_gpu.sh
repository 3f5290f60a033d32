#!/usr/bin/env bash
# Submits threedim.main to a Slurm cluster with GPUs.
#
#   launch/slurm_gpu.sh --nodes=2 --gpus_per_node=8 --time=24:00:00 --partition=gpu \
#       -- --config=configs/srn_cars.py --mode=train --workdir=/shared/runs/cars
#
# Options:
#   --nodes=N                (default 1)
#   --gpus_per_node=N        (default 8)
#   --cpus_per_gpu=N         (default 8)
#   --time, --partition, --account, --qos, --constraint, --mem     passed to sbatch
#   --job_name=NAME          (default threedim)
#   --signal_seconds=N       how long before the time limit the job is told to save (default 120); tasks that are still
#                            running after three quarters of that are killed
#   --log_dir=FOLDER         (default logs)
#   --python=FILE            default: .venv/bin/python in the checkout, else python3
#   --setup=COMMAND          run this in the job first, for example 'module load cuda'
#   --sbatch_flag=FLAG       any other flag of sbatch; may be repeated
#   --dry_run                print the commands without running anything
#
# Relative paths are relative to the root of the checkout. Before its time limit, or when preempted, the job saves,
# requeues itself and resumes from its checkpoint. If a node fails, Slurm requeues it. `scancel JOB` ends it for good,
# after saving if the cluster's KillWait is long enough.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_nodes=1 opt_gpus_per_node=8 opt_cpus_per_gpu=8 opt_time="" opt_partition="" opt_account="" opt_qos=""
opt_constraint="" opt_mem="" opt_job_name=threedim opt_signal_seconds=120 opt_log_dir=logs opt_python=$(find_python)
opt_setup="" opt_sbatch_flag=()
parse "$@"
positive nodes gpus_per_node cpus_per_gpu signal_seconds
must_be "letters, digits and _.-" '^[A-Za-z0-9_.-]+$' job_name
check_program_args
[[ ! $workdir =~ ^/(tmp|var/tmp|dev/shm)(/|$) ]] ||
  fail "--workdir=$workdir is on each node's own disk; it must be on a file system that all nodes share, or on gs://"
[[ $opt_log_dir == /* ]] || opt_log_dir=$root/$opt_log_dir
[[ $opt_python == /* || $opt_python != */* ]] || opt_python=$root/$opt_python
need sbatch "run this on a login node of the cluster"
command -v "$opt_python" >/dev/null ||
  fail "--python=$opt_python not found; run: python3 -m venv .venv && .venv/bin/pip install -e '.[gpu]'"

# One task per GPU: under Slurm, JAX gives each process the device whose number is its SLURM_LOCALID. So every task must
# see all GPUs of its node, which are requested per node rather than per task.
command=(
  sbatch "--job-name=$opt_job_name" "--nodes=$opt_nodes" "--gpus-per-node=$opt_gpus_per_node"
  "--ntasks-per-node=$opt_gpus_per_node" "--cpus-per-task=$opt_cpus_per_gpu" --requeue
  # B: to the batch script alone. Not SIGTERM, which Slurm sends to the tasks itself when it preempts or cancels a job.
  "--signal=B:USR1@$opt_signal_seconds" "--chdir=$root" "--output=$opt_log_dir/%x-%j.job.log" --open-mode=append
)
[[ -z $opt_time ]] || command+=("--time=$opt_time")
[[ -z $opt_partition ]] || command+=("--partition=$opt_partition")
[[ -z $opt_account ]] || command+=("--account=$opt_account")
[[ -z $opt_qos ]] || command+=("--qos=$opt_qos")
[[ -z $opt_constraint ]] || command+=("--constraint=$opt_constraint")
[[ -z $opt_mem ]] || command+=("--mem=$opt_mem")
command+=("${opt_sbatch_flag[@]}" "$root/launch/slurm_job.sh" "--python=$opt_python" "--log_dir=$opt_log_dir")
command+=("--signal_seconds=$opt_signal_seconds" "--setup=$opt_setup" -- "${program_args[@]}")
run mkdir -p "$opt_log_dir"
run "${command[@]}"
$opt_dry_run || say "output: $opt_log_dir/$opt_job_name-JOB.out; log of the job itself: $opt_job_name-JOB.job.log"
