#!/usr/bin/env bash
# Train on a Cloud TPU, from this checkout to the exported model:
#
#   bash scripts/launch_tpu.sh --name my-run --zone us-west4-a --type v5litepod-8 \
#     --bucket gs://my-bucket/my-run [OPTIONS] -- --config configs/gapo_tpu.py [FLAGS OF train.py]
#
# Makes the TPU VM (or takes the one of that name), installs the pinned jax[tpu] and this package on
# all of its workers, starts scripts/train.py on all of them, shows worker 0's log, keeps
# checkpoints, logs and compiled programs in the bucket, makes the TPU again after a preemption and
# continues the run, and deletes the TPU at the end. Ctrl-C leaves the TPU and the run as they are;
# the same command finds both. Everything is saved after every round, so a preemption costs at most
# one round.
#
# The exit status is that of the run (scripts/train.py: 0 finished, 1 error, 3 stopped itself), or 2
# if this script cannot go on. A run that a signal stopped ends with 75 and is continued here.
#
#   --project P      the cloud project (default: the one gcloud is set to)
#   --version V      runtime image of the TPU VM (default: by the type)
#   --spot           a spot TPU: cheaper, and may be taken away at any time
#   --queued         ask by a queued resource and wait for it, instead of failing when none is free
#   --keep           do not delete the TPU at the end
#   --restarts N     continue after at most N preemptions (default 20)
#   --down           only delete the TPU (and its queued resource) of that name
#   --dry-run        print every command and run none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly JAX_VERSION="0.10.2" REMOTE="gapo_jax_run"
name="" zone="" type="" bucket="" project="" version="" restarts=20
spot=0 queued=0 keep=0 down=0 dry=0

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
say() { printf '[launch %5ds] %s\n' "$SECONDS" "$*"; }

while [ "$#" -gt 0 ]; do
  case "$1" in
    --name | --zone | --type | --bucket | --project | --version | --restarts)
      [ "$#" -ge 2 ] || fail "$1 wants a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --spot | --queued | --keep | --down) printf -v "${1#--}" 1; shift ;;
    --dry-run) dry=1; shift ;;
    --) shift; break ;;
    *) fail "unknown option '$1'; the options are listed at the head of scripts/launch_tpu.sh" ;;
  esac
done
[ -n "$name" ] || fail "--name is missing: what the TPU VM is called"
[ -n "$zone" ] || fail "--zone is missing, such as us-west4-a"
if [ "$down" = 0 ]; then
  [ -n "$type" ] || fail "--type is missing, such as v5litepod-8 (v5e), v5p-16 or v6e-8"
  case "$bucket" in
    gs://?*) bucket="${bucket%/}" ;;
    *) fail "--bucket wants gs://BUCKET/FOLDER, got '$bucket'; the run is kept there" ;;
  esac
  [ "$#" -gt 0 ] || fail "nothing to train: put the flags of scripts/train.py behind --"
fi
[ "$dry" = 1 ] || command -v gcloud >/dev/null ||
  fail "gcloud is not installed; it makes the TPU VM. --dry-run shows what would be run"

# shellcheck disable=SC2206
where=(--zone "$zone" ${project:+--project "$project"})
case "$version:$type" in
  ?*:*) ;;
  :v5lite*) version="v2-alpha-tpuv5-lite" ;;
  :v5p*) version="v2-alpha-tpuv5" ;;
  :v6e*) version="v2-alpha-tpuv6e" ;;
  *) version="tpu-ubuntu2204-base" ;;
esac

# Run a command, or print it when this is a rehearsal.
run() {
  if [ "$dry" = 1 ]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on_all() { tpu ssh "$name" --worker=all --command "$1"; }
on_first() { tpu ssh "$name" --worker=0 --command "$1"; }

# The state of the TPU VM: READY, CREATING, PREEMPTED, ..., or NONE.
state() {
  if [ "$dry" = 1 ]; then echo NONE; return; fi
  gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>/dev/null ||
    echo NONE
}

remove() {
  tpu delete "$name" --quiet || true
  if [ "$queued" = 1 ]; then
    run gcloud compute tpus queued-resources delete "$name" --force --quiet "${where[@]}" || true
  fi
}

create() {
  local options=(--accelerator-type "$type")
  [ "$spot" = 0 ] || options+=(--spot)
  if [ "$queued" = 1 ]; then
    run gcloud compute tpus queued-resources create "$name" --node-id "$name" "${options[@]}" \
      --runtime-version "$version" "${where[@]}"
  else
    tpu create "$name" "${options[@]}" --version "$version"
  fi
}

# Bring the TPU VM up, or take the one that is there.
bring_up() {
  local now
  now="$(state)"
  case "$now" in
    READY) say "TPU $name is there and ready"; return ;;
    NONE) ;;
    CREATING | STARTING | RESTARTING) ;;
    *) say "TPU $name is $now: it is deleted and made again"; remove; now=NONE ;;
  esac
  if [ "$now" = NONE ]; then
    say "making TPU $name ($type)"
    create
  fi
  [ "$dry" = 1 ] && return
  while now="$(state)"; [ "$now" != READY ]; do
    say "waiting for $name ($now)"
    sleep "${LAUNCH_TPU_POLL_S:-30}"
  done
}

install_code() {
  local scratch
  scratch="$(mktemp -d)"
  say "copying this checkout (committed files) to all workers"
  run git archive --format=tar.gz -o "$scratch/gapo_jax.tar.gz" HEAD &&
    tpu scp "$scratch/gapo_jax.tar.gz" "$name:gapo_jax.tar.gz" --worker=all || return 1
  rm -rf "$scratch"
  say "installing jax[tpu]==$JAX_VERSION and the package on all workers"
  # The images of TPU VMs come with Python 3.10, which is too old: uv obtains another.
  on_all "set -e; mkdir -p $REMOTE && tar -xzf gapo_jax.tar.gz -C $REMOTE && cd $REMOTE
if test -x .venv/bin/python; then :
elif . scripts/find_python.sh; find_python 2> /dev/null; then \"\$python\" -m venv .venv
else python3 -m pip install --quiet --user uv && python3 -m uv venv --seed --python 3.12 .venv; fi
.venv/bin/pip install --quiet 'jax[tpu]==$JAX_VERSION' -e '.[tpu]'"
}

# The program of every worker. The run folder lies on worker 0's disk and is mirrored to the bucket
# every minute and at the end; a new TPU starts from that mirror. Checkpoints go to the bucket
# directly, each worker writing its part.
start_script() {
  local flags folder
  printf -v flags '%q ' "$@"
  printf -v folder '%q' "$bucket"
  cat <<END
cd ~/$REMOTE
told() { curl -sf -H 'Metadata-Flavor: Google' \\
  "http://metadata.google.internal/computeMetadata/v1/instance/attributes/\$1"; }
id=\$(told agent-worker-number || echo 0)
hosts=(\$(told worker-network-endpoints | tr ',' '\n' | cut -d: -f3))
together=()
if [ "\${#hosts[@]}" -gt 1 ]; then
  together=(--coordinator "\${hosts[0]}:8476" --num_processes "\${#hosts[@]}" --process_id "\$id")
fi
export JAX_COMPILATION_CACHE_DIR=$folder/compiled
mirror() { [ "\$id" != 0 ] || gcloud storage rsync --recursive run $folder/run; }
mkdir -p run
[ "\$id" != 0 ] || gcloud storage rsync --recursive $folder/run run || true
( while sleep 60; do mirror; done ) > mirror.log 2>&1 & loop=\$!
.venv/bin/python scripts/train.py --workdir run \\
  --config.checkpoint.directory=$folder/checkpoints "\${together[@]}" $flags& train=\$!
trap 'kill -TERM \$train' TERM
while kill -0 \$train 2> /dev/null; do wait \$train; status=\$?; done
kill \$loop; mirror >> mirror.log 2>&1; echo \$status > status
END
}

start() {
  local script
  script="$(start_script "$@")"
  say "starting the run on all workers"
  on_all "cd $REMOTE && test -f start.pid && kill -0 \$(cat start.pid) 2> /dev/null && exit 0
rm -f status
cat > start.sh <<'START'
$script
START
nohup bash start.sh > train.log 2>&1 < /dev/null & echo \$! > start.pid"
}

# Show worker 0's log until the run ends. Returns its status, or 75 (continue) if the TPU is gone.
follow() {
  local code=0
  say "the log of worker 0 (Ctrl-C leaves the run going)"
  on_first "cd $REMOTE; tail -n +1 -F train.log & reader=\$!
while ! test -f status; do sleep 5; done; sleep 1; kill \$reader; exit \$(cat status)" || code=$?
  if [ "$code" != 0 ] && [ "$dry" = 0 ] && [ "$(state)" != READY ]; then code=75; fi
  return "$code"
}

if [ "$down" = 1 ]; then
  queued=1
  remove
  exit 0
fi
for ((attempt = 0; ; attempt++)); do
  bring_up
  code=0
  if install_code && start "$@"; then
    follow || code=$?
  elif [ "$(state)" = READY ]; then
    fail "the TPU is there, but installing or starting failed; --down deletes it"
  else
    code=75
  fi
  [ "$code" = 75 ] || break
  [ "$attempt" -lt "$restarts" ] ||
    fail "the run was stopped or TPU $name taken away $((restarts + 1)) times; it is in $bucket"
  say "the run was stopped or TPU $name taken away; it continues from $bucket"
done
[ "$keep" = 1 ] || { say "deleting TPU $name"; remove; }
say "exit status of the run: $code; its folder: $bucket"
exit "$code"
