#!/usr/bin/env bash
# Train on Slurm, one process a node:
#
#   sbatch --nodes 4 --gpus-per-node 8 scripts/slurm.sh --config configs/gapo_tpu.py
#   bash scripts/slurm.sh --dry-run --config configs/gapo_tpu.py     # what would be started
#
# The processes find each other by Slurm's own variables. RUN names the folder of the run, which all
# nodes must see (runs/slurm). A run that a signal stopped (75; Slurm sends SIGTERM two minutes
# before the time is up) is queued again and continues.
#SBATCH --job-name=gapo_jax
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail
dry=0
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
[ "$#" -gt 0 ] || { echo "error: nothing to train: give the flags of scripts/train.py" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-$PWD}"
python=.venv/bin/python
[ -x "$python" ] || python=python3
run="${RUN:-runs/slurm}"
# --kill-on-bad-exit: a process that ends with an error ends the others, which would wait for it.
command=(srun --kill-on-bad-exit=1 "$python" scripts/train.py --workdir "$run"
  --config.checkpoint.directory="$PWD/$run/checkpoints" "$@")
if [ "$dry" = 1 ]; then
  printf '%q ' "${command[@]}" && echo
  exit 0
fi
mkdir -p "$run"
status=0
"${command[@]}" || status=$?
[ "$status" != 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
