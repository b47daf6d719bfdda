"""A tiny GAPO run that trains adapters: it ends, and leaves what transformers and PEFT load with
the same logits."""

import numpy as np
import pytest
import torch

from gapo_jax.models import save_hf

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
CHANGES = {
    "lora__rank": 4, "lora__targets": ("q", "v", "down"), "ppo__optim__learning_rate": 0.01,
    "data__bootstrap_responses": 48, "data__pairs": 24, "data__pairs_heldout": 4,
    "data__prompts": 16, "discriminator__warmup_epochs": 1, "discriminator__updates_per_round": 1,
    "ppo__critic_epochs": 1, "eval__prompts_per_set": 4, "eval__samples_per_prompt": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(runs, tmp_path_factory):
    """The workdir after two rounds."""
    workdir = tmp_path_factory.mktemp("lora")
    code, _, err = runs.run_here(workdir, rounds=2, **CHANGES)
    assert code == 0, err
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

    _, models = runs.models(workdir)
    save_hf(models.decoder, models.ref_params, tmp_path / "base")
    tokens = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    merged = AutoModelForCausalLM.from_pretrained(workdir / "export").eval()
    with torch.no_grad():
        start = base(tokens).logits.numpy()
        want = peft.PeftModel.from_pretrained(base, workdir / "adapter").eval()(tokens).logits
        got = merged(tokens).logits.numpy()
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4, rtol=0)
    assert np.abs(got - start).max() > 1e-3
