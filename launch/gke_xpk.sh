#!/usr/bin/env bash
# Runs threedim.main on a GKE cluster, on TPUs or GPUs, as a workload of xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   launch/gke_xpk.sh --cluster=C --workload=NAME --project=P --zone=Z --registry=R --tpu_type=v5litepod-16 \
#       -- --config=configs/srn_cars.py --mode=train --workdir=gs://my-bucket/cars
#
# Options:
#   --cluster, --workload         an existing cluster, a new name
#   --project, --zone             default to $CLOUDSDK_CORE_PROJECT and $CLOUDSDK_COMPUTE_ZONE
#   --tpu_type=TYPE               v4-8, v5litepod-16, v5p-8, v6e-16 ...; --num_slices=N of them (default 1)
#   --gpu_type=TYPE               h100-80gb-8, h200-141gb-8 ...; --num_nodes=N of them (default 1)
#   --registry=HOST/PROJECT/REPO  where to push the image, such as us-docker.pkg.dev/my-project/images
#   --tag=TAG                     of the image; default: the commit, and a hash of what is not committed
#   --image=IMAGE                 use this one; build and push nothing
#   --max_restarts=N              how often all pods are started again, preemptions included (default 100)
#   --grace_seconds=N             between SIGTERM and SIGKILL, for saving (default 120; GKE gives less on Spot VMs)
#   --xpk_flag=FLAG               any other flag of `xpk workload create`, such as --spot; may be repeated
#   --dry_run                     print the commands, run nothing
#
# How it starts again: xpk restarts a workload only for exit codes 42 and 127 to 255, and takes 0 for the end. So
# launch/worker.sh, in the container, turns "stopped by a signal" and failures after the first minute (a lost peer) into
# 42. A mistake that shows at once ends the workload. TPUs are found by JAX; on GPU nodes there is one process a node,
# which is told coordinator, number and rank from the variables that xpk sets.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_cluster="" opt_workload="" opt_project=${CLOUDSDK_CORE_PROJECT:-} opt_zone=${CLOUDSDK_COMPUTE_ZONE:-}
opt_tpu_type="" opt_num_slices=1 opt_gpu_type="" opt_num_nodes=1 opt_registry="" opt_tag="" opt_image=""
opt_max_restarts=100 opt_grace_seconds=120
parse "cluster workload project zone tpu_type num_slices gpu_type num_nodes registry tag image max_restarts
  grace_seconds" "" "xpk_flag" "$@"

# The commit, and where files differ from it a hash of the differences: the same code gives the same name.
code_tag() {
  local commit changes
  commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null) ||
    fail "$root is not a git checkout, so the image has no name; give --tag"
  changes=$(git -C "$root" diff HEAD)
  if [[ -n $changes ]]; then commit+=-$(git hash-object --stdin <<<"$changes" | cut -c 1-8); fi
  printf '%s' "$commit"
}

build_image() {
  local user=threedim
  # The TPU's device files belong to root.
  if [[ $extra == tpu ]]; then user=root; fi
  run docker build --platform=linux/amd64 --file="$root/launch/Dockerfile" --build-arg="EXTRA=$extra" \
    --build-arg="APP_USER=$user" --tag="$opt_image" "$root"
  run docker push "$opt_image"
}

check_name() {
  [[ ${#2} -le 40 && $2 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "--$1=$2: at most 40 small letters, digits and hyphens, a letter first"
}

check_options() {
  ((${#positional[@]} == 0)) || fail "unexpected argument ${positional[0]}; arguments of threedim.main come after --"
  given cluster "$opt_cluster" "xpk cluster list shows them, xpk cluster create makes one"
  given workload "$opt_workload" "a name for this run"
  check_name cluster "$opt_cluster"
  check_name workload "$opt_workload"
  given project "$opt_project" "or set CLOUDSDK_CORE_PROJECT; gcloud config get-value project shows your default"
  given zone "$opt_zone" "or set CLOUDSDK_COMPUTE_ZONE; it is the cluster's"
  [[ -n $opt_tpu_type || -n $opt_gpu_type ]] ||
    fail "--tpu_type or --gpu_type is missing, such as v5litepod-16, h100-80gb-8"
  [[ -z $opt_tpu_type || -z $opt_gpu_type ]] || fail "either --tpu_type or --gpu_type, not both"
  positive --num_slices "$opt_num_slices"
  positive --num_nodes "$opt_num_nodes"
  positive --grace_seconds "$opt_grace_seconds"
  [[ $opt_max_restarts =~ ^[0-9]+$ ]] || fail "--max_restarts must be a number, got '$opt_max_restarts'"
  [[ -n $opt_image || -n $opt_registry ]] ||
    fail "--registry=HOST/PROJECT/REPO is missing, where the image goes (or --image=IMAGE that is there already)"
}

check_arguments() {
  local argument
  check_program_args
  [[ -z $workdir || $workdir == gs://?* ]] ||
    fail "--workdir=$workdir: must be on gs://; what is in a container is lost when it ends"
  [[ $config_file != /* ]] || fail "--config=$config_file: give it relative to the checkout, as it is in the image"
  if [[ -z $opt_image ]]; then check_config_file; fi
  # xpk writes the command into YAML, for GPUs between double quotes, and Kubernetes expands $.
  for argument in "${program_args[@]}"; do
    [[ $argument != *[\'\"\\\$]* ]] || fail "xpk cannot carry a quote, a backslash or a dollar sign: $argument;" \
      "put this value into a configuration file"
  done
}

check_options
check_arguments
need xpk "pip install xpk (https://github.com/AI-Hypercomputer/xpk)"
need gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
need kubectl "xpk needs it: gcloud components install kubectl"
[[ -n $opt_image ]] || need docker "or give --image=IMAGE"
ask gcloud auth list --filter=status:ACTIVE '--format=value(account)' || fail "gcloud auth list says: $complaint"
((dry_run)) || [[ -n $answer ]] || fail "gcloud is not logged in; run: gcloud auth login"

# `exec`: xpk passes SIGTERM to the process that its subshell became, and to no other.
command=(exec bash /app/launch/worker.sh run --forward --follow --stopped_code=42 --accident_code=42)
if [[ -n $opt_gpu_type ]]; then
  extra=gpu
  command+=(--xpk_gpu)
  devices=("--device-type=$opt_gpu_type" "--num-nodes=$opt_num_nodes")
else
  extra=tpu
  devices=("--tpu-type=${opt_tpu_type/#v5e-/v5litepod-}" "--num-slices=$opt_num_slices")
fi
if [[ -z $opt_image ]]; then
  if [[ -z $opt_tag ]]; then opt_tag=$(code_tag)-$extra; fi
  opt_image=$opt_registry/threedim:$opt_tag
  build_image
fi
run xpk workload create "--cluster=$opt_cluster" "--workload=$opt_workload" "--project=$opt_project" \
  "--zone=$opt_zone" "${devices[@]}" "--docker-image=$opt_image" "--max-restarts=$opt_max_restarts" \
  "--termination-grace-period-seconds=$opt_grace_seconds" "${repeated[@]}" \
  "--command=$(quote "${command[@]}" -- "${program_args[@]}")"
((dry_run)) || say "watch:  xpk workload list --cluster=$opt_cluster --project=$opt_project --zone=$opt_zone
logs:   kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$opt_workload
stop:   xpk workload delete --workload=$opt_workload --cluster=$opt_cluster --project=$opt_project --zone=$opt_zone"
