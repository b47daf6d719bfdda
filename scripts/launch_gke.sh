#!/usr/bin/env bash
# Train on TPUs or GPUs of Google Kubernetes Engine by a JobSet (https://jobset.sigs.k8s.io):
#
#   bash scripts/launch_gke.sh --name gapo --image IMAGE --bucket gs://my-bucket/my-run \
#     --accelerator tpu-v5-lite-podslice --topology 8x8 --nodes 16 --chips 4 \
#     -- --config configs/gapo_tpu.py
#   bash scripts/launch_gke.sh --dry-run ...     # print the JobSet, make nothing
#
# --gpu TYPE (nvidia-h100-80gb) with --nodes and --chips asks for GPUs instead. IMAGE holds this
# checkout, installed, in its working directory. A preempted or stopped run (75) is started again,
# --restarts times, and continues from the bucket; an error (1) or a collapse (3) is not repeated.
set -euo pipefail
name="" image="" bucket="" accelerator="" topology="" gpu="" nodes=1 chips=4 restarts=20 dry=0
fail() { echo "error: $*" >&2; exit 2; }
while [ "$#" -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1; shift; continue ;;
    --) shift; break ;;
    --name | --image | --bucket | --accelerator | --topology | --gpu | --nodes | --chips | --restarts)
      [ "$#" -gt 1 ] || fail "$1 wants a value"
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    *) fail "unknown option '$1'; the flags of scripts/train.py stand behind --" ;;
  esac
done
for key in name image bucket; do [ -n "${!key}" ] || fail "--$key is missing"; done
case "$bucket" in gs://?*) ;; *) fail "--bucket wants gs://BUCKET/FOLDER, got '$bucket'" ;; esac
[ -n "$gpu" ] || { [ -n "$accelerator" ] && [ -n "$topology" ]; } ||
  fail "--accelerator and --topology are missing (or --gpu TYPE)"
[ "$#" -gt 0 ] || fail "nothing to train: put the flags of scripts/train.py behind --"

# JSON strings are YAML too, whatever they hold.
quoted() { local text="${1//\\/\\\\}"; printf '"%s"' "${text//\"/\\\"}"; }
arguments() {
  for flag in --workdir run "--config.checkpoint.directory=$bucket/checkpoints" "$@"; do
    printf '                - %s\n' "$(quoted "$flag")"
  done
}
if [ -n "$gpu" ]; then
  resource=nvidia.com/gpu
  selector="cloud.google.com/gke-accelerator: $(quoted "$gpu")"
else
  resource=google.com/tpu
  selector="cloud.google.com/gke-tpu-accelerator: $(quoted "$accelerator")
                cloud.google.com/gke-tpu-topology: $(quoted "$topology")"
fi
jobset() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: run
      replicas: 1
      template:
        spec:
          parallelism: $nodes
          completions: $nodes
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [1, 2, 3]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                $selector
              containers:
              - name: train
                image: $(quoted "$image")
                command: [python, scripts/train.py]
                args:
$(arguments "$@")
                env:
                - {name: JAX_COORDINATOR_ADDRESS, value: "$name-run-0-0.$name"}
                - {name: JAX_NUM_PROCESSES, value: "$nodes"}
                - {name: JAX_COMPILATION_CACHE_DIR, value: $(quoted "$bucket/compiled")}
                ports: [{containerPort: 8476}, {containerPort: 8477}]
                resources: {limits: {$resource: $chips}}
END
}
if [ "$dry" = 1 ]; then
  jobset "$@"
else
  command -v kubectl >/dev/null || fail "kubectl is not installed; --dry-run prints the JobSet"
  jobset "$@" | kubectl apply -f -
fi
