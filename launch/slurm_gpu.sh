#!/usr/bin/env bash
# Submits threedim.main to a Slurm cluster: launch/slurm_job.sh with the options below.
#
#   launch/slurm_gpu.sh --nodes=2 --gpus_per_node=8 --time=24:00:00 --partition=gpu \
#       -- --config=configs/srn_cars.py --mode=train --workdir=/shared/runs/cars
#
# Options:
#   --nodes=N                (default 1)
#   --gpus_per_node=N        (default 8)
#   --cpus_per_gpu=N         (default 8)
#   --time, --partition, --account, --qos, --constraint, --mem     as those of sbatch
#   --job_name=NAME          (default threedim)
#   --signal_seconds=N       how long before the end of its time the job is told to save (default 120); tasks that are
#                            still there after three quarters of it are killed
#   --log_dir=FOLDER         (default logs)
#   --python=FILE            default: .venv/bin/python of the checkout, else python3
#   --setup=COMMAND          run in the job first, such as 'module load cuda'
#   --sbatch_flag=FLAG       any other flag of sbatch; may be repeated
#   --dry_run                print the commands, run nothing
#
# Relative paths are taken from the root of the checkout, where the program runs.
#
# One task a GPU: under Slurm JAX gives every process the one device whose number is its SLURM_LOCALID. For that all
# GPUs of a node must be visible to all its tasks: they are asked for by node, not by task, and not bound to tasks.
#
# At the end of its time, or when preempted, the job saves, goes back into the queue (`scontrol requeue`) and
# resumes from its checkpoint. When a node dies, Slurm queues it again (--requeue). `scancel JOB` ends it for good,
# after saving if the cluster's KillWait is long enough.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_nodes=1 opt_gpus_per_node=8 opt_cpus_per_gpu=8 opt_time="" opt_partition="" opt_account="" opt_qos=""
opt_constraint="" opt_mem="" opt_job_name=threedim opt_signal_seconds=120 opt_log_dir=logs
opt_python=$(find_python) opt_setup=""
parse "nodes gpus_per_node cpus_per_gpu time partition account qos constraint mem job_name signal_seconds log_dir
  python setup" "" "sbatch_flag" "$@"

((${#positional[@]} == 0)) || fail "unexpected argument ${positional[0]}; arguments of threedim.main come after --"
positive --nodes "$opt_nodes"
positive --gpus_per_node "$opt_gpus_per_node"
positive --cpus_per_gpu "$opt_cpus_per_gpu"
positive --signal_seconds "$opt_signal_seconds"
[[ $opt_job_name =~ ^[A-Za-z0-9_.-]+$ ]] || fail "--job_name=$opt_job_name: letters, digits and _.- only"
check_program_args
check_config_file
[[ ! $workdir =~ ^/(tmp|var/tmp|dev/shm)(/|$) ]] ||
  fail "--workdir=$workdir is on each node's own disk; it must be on a file system that all nodes share, or on gs://"
[[ $opt_log_dir == /* ]] || opt_log_dir=$root/$opt_log_dir
[[ $opt_python == /* || $opt_python != */* ]] || opt_python=$root/$opt_python
need sbatch "it comes with Slurm; run this on a login node of the cluster"
need scancel "it comes with Slurm; the job needs it to tell its tasks to save"
need scontrol "it comes with Slurm; the job needs it to go back into the queue"
command -v "$opt_python" >/dev/null ||
  fail "--python=$opt_python is not there; python3 -m venv .venv && .venv/bin/pip install -e '.[gpu]', then once more"

command=(
  sbatch "--job-name=$opt_job_name" "--nodes=$opt_nodes" "--gpus-per-node=$opt_gpus_per_node"
  "--ntasks-per-node=$opt_gpus_per_node" "--cpus-per-task=$opt_cpus_per_gpu" --requeue
  # To the batch script alone, and not SIGTERM: that one Slurm sends to the tasks itself when it preempts or cancels.
  "--signal=B:USR1@$opt_signal_seconds" "--chdir=$root" "--output=$opt_log_dir/%x-%j.job.log" --open-mode=append
)
[[ -z $opt_time ]] || command+=("--time=$opt_time")
[[ -z $opt_partition ]] || command+=("--partition=$opt_partition")
[[ -z $opt_account ]] || command+=("--account=$opt_account")
[[ -z $opt_qos ]] || command+=("--qos=$opt_qos")
[[ -z $opt_constraint ]] || command+=("--constraint=$opt_constraint")
[[ -z $opt_mem ]] || command+=("--mem=$opt_mem")
job_options=("--python=$opt_python" "--log_dir=$opt_log_dir" "--signal_seconds=$opt_signal_seconds")
[[ -z $opt_setup ]] || job_options+=("--setup=$opt_setup")
run mkdir -p "$opt_log_dir"
run "${command[@]}" "${repeated[@]}" "$root/launch/slurm_job.sh" "${job_options[@]}" -- "${program_args[@]}"
((dry_run)) || say "what the program says: $opt_log_dir/$opt_job_name-JOB.out; what the job does: ....job.log"
