"""A tiny GAPO run that trains adapters: it ends, goes on, and leaves what transformers and PEFT load
with the same logits."""

import numpy as np
import pytest
import torch

from gapo_jax.models import save_hf

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
FLAGS = [
    f"--config.{flag}"
    for flag in (
        "lora.rank=4", "lora.targets=q,v,down", "ppo.optim.learning_rate=0.01",
        "data.bootstrap_responses=48", "data.pairs=24", "data.pairs_heldout=4", "data.prompts=16",
        "discriminator.warmup_epochs=1", "discriminator.updates_per_round=1",
        "ppo.critic_epochs=1", "eval.prompts_per_set=4",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def workdir(runs, tmp_path_factory):
    """The workdir after one round, and after the same command with two."""
    workdir = tmp_path_factory.mktemp("lora")
    learned = []
    for rounds in (1, 2):
        done = runs.play(workdir, f"--config.rounds={rounds}", *FLAGS)
        assert done.returncode == 0, done.stderr[-3000:]
        learned.append([line for line in runs.lines(workdir) if line["phase"] == "policy"])
    assert learned[1][:1] == learned[0]
    assert [line["round"] for line in learned[1]] == [1, 2]
    return workdir


def test_a_run_saves_adapters_alone_and_samples_what_it_trains(runs, workdir):
    rollouts = [line for line in runs.lines(workdir) if line["phase"] == "rollout"]
    assert max(line["rollout/logprob_gap"] for line in rollouts) < 1e-3
    assert rollouts[0]["kl/ref"] == 0.0 != rollouts[1]["kl/ref"]
    first, last = runs.states(workdir, 1, 2)
    assert set(last.policy.params) == {"lora"}
    before, after = (state.policy.params["lora"].pairs for state in (first, last))
    assert after.keys() == {"attn/q", "attn/v", "mlp/down"}
    for path, pair in after.items():
        assert all((np.asarray(pair[x]) != np.asarray(before[path][x])).any() for x in "ab")


def test_what_it_exports_is_the_same_merged_and_in_peft(runs, workdir, tmp_path):
    from transformers import AutoModelForCausalLM

    _, players = runs.players(workdir)
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
