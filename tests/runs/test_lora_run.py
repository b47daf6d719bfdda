"""A tiny GAPO run that trains adapters: it ends, goes on, and leaves what transformers and PEFT load
with the same logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gapo_jax import config as configuration
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.models import save_hf
from gapo_jax.train.setup import build_training, initial_state, load_players

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
ROOT = Path(__file__).parents[2]
FLAGS = (
    "lora.rank=4", "lora.targets=q,v,down", "ppo.optim.learning_rate=0.01",
    "data.bootstrap_responses=48", "data.pairs=24", "data.pairs_heldout=4", "data.prompts=16",
    "discriminator.warmup_epochs=1", "discriminator.updates_per_round=1", "ppo.critic_epochs=1",
    "eval.prompts_per_set=4",
)  # fmt: skip


def _run(workdir, rounds):
    keep = {k: v for k, v in os.environ.items() if not k.startswith("XLA_FLAGS")}
    done = subprocess.run(
        [
            sys.executable, "scripts/train.py", "--config", "configs/gapo_tiny.py",
            "--workdir", str(workdir), f"--config.rounds={rounds}",
            *(f"--config.{flag}" for flag in FLAGS),
        ],
        cwd=ROOT, env=keep | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_adapters_ends_goes_on_and_exports(tmp_path):
    from transformers import AutoModelForCausalLM

    workdir = tmp_path / "run"
    first, lines = _run(workdir, 1), _run(workdir, 2)
    learned = [line for line in lines if line["phase"] == "policy"]
    assert [line["round"] for line in learned] == [1, 2]
    assert learned[:1] == [line for line in first if line["phase"] == "policy"]
    gaps = [line["rollout/logprob_gap"] for line in lines if line["phase"] == "rollout"]
    assert len(gaps) == 2 and max(gaps) < 1e-3
    kls = [line["kl/ref"] for line in lines if line["phase"] == "rollout"]
    assert kls[0] == 0.0 != kls[1]

    config = configuration.from_json(json.loads((workdir / "config.json").read_text()))
    players = load_players(config)
    state = initial_state(config, players, build_training(config, players, 1))
    with Checkpointer(workdir / "checkpoints", keep=10) as checkpointer:
        last, _ = checkpointer.restore(state, 2)
    assert set(last.policy.params) == {"lora"}
    assert last.policy.params["lora"].pairs.keys() == {"attn/q", "attn/v", "mlp/down"}

    save_hf(players.decoder, players.base, tmp_path / "base")
    tokens = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    merged = AutoModelForCausalLM.from_pretrained(workdir / "export").eval()
    with torch.no_grad():
        start = base(tokens).logits.numpy()
        want = peft.PeftModel.from_pretrained(base, workdir / "adapter").eval()(tokens).logits
        got = merged(tokens).logits.numpy()
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4, rtol=0)
    assert np.abs(got - start).max() > 1e-3
