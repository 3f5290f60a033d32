#!/usr/bin/env bash
# Runs threedim.main on TPUs or GPUs of a GKE cluster, as a workload of xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   launch/gke_xpk.sh --cluster=C --workload=NAME --project=P --zone=Z --registry=R --tpu_type=v5litepod-16 \
#       -- --config=configs/srn_cars.py --mode=train --workdir=gs://my-bucket/cars
#
# Options:
#   --cluster, --workload         an existing cluster, a new name
#   --project, --zone             default to $CLOUDSDK_CORE_PROJECT and $CLOUDSDK_COMPUTE_ZONE
#   --tpu_type=TYPE               v4-8, v5litepod-16, v5p-8, v6e-16 ...; --num_slices=N (default 1)
#   --gpu_type=TYPE               h100-80gb-8, h200-141gb-8 ...; --num_nodes=N (default 1)
#   --registry=HOST/PROJECT/REPO  where to push the image, for example us-docker.pkg.dev/my-project/images
#   --tag=TAG                     of the image; default: a hash of the commit and the uncommitted changes
#   --image=IMAGE                 use this image instead of building and pushing one
#   --max_restarts=N              how often to restart all pods, preemptions included (default 100)
#   --grace_seconds=N             between SIGTERM and SIGKILL, for saving (default 120; GKE gives less on Spot VMs)
#   --xpk_flag=FLAG               any other flag of `xpk workload create`, such as --spot; may be repeated
#   --dry_run                     print the commands without running anything
#
# xpk restarts a workload only for exit statuses 42 and 127 to 255. So launch/worker.sh, in the container, exits with 42
# if the program was stopped by a signal or failed after its first minute (a lost peer). Early mistakes are final.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_cluster="" opt_workload="" opt_project=${CLOUDSDK_CORE_PROJECT:-} opt_zone=${CLOUDSDK_COMPUTE_ZONE:-}
opt_tpu_type="" opt_num_slices=1 opt_gpu_type="" opt_num_nodes=1 opt_registry="" opt_tag="" opt_image=""
opt_max_restarts=100 opt_grace_seconds=120 opt_xpk_flag=()
parse "$@"

must_be "up to 40 lowercase letters, digits and hyphens, starting with a letter" \
  '^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$' cluster workload
[[ -n $opt_tpu_type$opt_gpu_type ]] || fail "--tpu_type or --gpu_type is missing, such as v5litepod-16 or h100-80gb-8"
[[ -z $opt_tpu_type || -z $opt_gpu_type ]] || fail "give either --tpu_type or --gpu_type, not both"
positive num_slices num_nodes grace_seconds
must_be "a number" '^[0-9]+$' max_restarts
[[ -n $opt_image ]] || given registry "it is where the image is pushed (or give --image=IMAGE)"
check_cloud_args

# `exec`: xpk forwards SIGTERM to the process that its subshell became, and to no other.
command=(exec bash /app/launch/worker.sh run --container)
if [[ -n $opt_gpu_type ]]; then
  # One process per node; the coordinator comes from variables that xpk sets. TPUs are detected by JAX.
  extra=gpu user=threedim devices=("--device-type=$opt_gpu_type" "--num-nodes=$opt_num_nodes")
  command+=(--xpk_gpu)
else
  # The TPU's device files belong to root.
  extra=tpu user=root devices=("--tpu-type=${opt_tpu_type/#v5e-/v5litepod-}" "--num-slices=$opt_num_slices")
fi
words=$(quote "${command[@]}" -- "${program_args[@]}")
# xpk writes the command into YAML, for GPUs between double quotes, and Kubernetes expands $.
[[ $words != *[\"\\\$]* ]] ||
  fail "xpk cannot pass on quotes, backslashes or dollar signs: $words; put such values into a configuration file"

need xpk "pip install xpk"
need kubectl "xpk needs it: gcloud components install kubectl"
[[ -n $opt_image ]] || need docker "or give --image=IMAGE"
check_cloud
if [[ -z $opt_image ]]; then
  opt_tag=${opt_tag:-$extra-$({ git -C "$root" rev-parse HEAD && git -C "$root" diff HEAD; } | git hash-object --stdin)}
  opt_image=$opt_registry/threedim:$opt_tag
  run docker build --platform=linux/amd64 --file="$root/launch/Dockerfile" --build-arg="EXTRA=$extra" \
    --build-arg="APP_USER=$user" --tag="$opt_image" "$root"
  run docker push "$opt_image"
fi
target=("--cluster=$opt_cluster" "--workload=$opt_workload" "--project=$opt_project" "--zone=$opt_zone")
run xpk workload create "${target[@]}" "${devices[@]}" "--docker-image=$opt_image" "--max-restarts=$opt_max_restarts" \
  "--termination-grace-period-seconds=$opt_grace_seconds" "${opt_xpk_flag[@]}" "--command=$words"
$opt_dry_run || say "logs:   kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$opt_workload
stop:   xpk workload delete ${target[*]}"
