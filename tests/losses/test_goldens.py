"""Our losses against numbers of TRL's and torch's own code (make_goldens.py), to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import losses


def value_and_grad(function, *args, **kwargs):
    """jax.value_and_grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.value_and_grad(function, *args, **kwargs))


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, np.array(theirs), rtol=tolerance, atol=tolerance)


def arrays(given):
    return {name: jnp.array(value) for name, value in given.items()}


def test_the_fixture_says_where_its_numbers_come_from(goldens):
    for name in ("ppo", "dpo", "kto", "odds_and_simpo", "grpo", "rloo", "reward"):
        assert goldens[name]["source"].startswith("trl 1.12.0")


@pytest.mark.parametrize("case", ["full", "padded"])
def test_ppo_rewards_and_gae(goldens, case):
    golden = goldens["ppo"]["cases"][case]
    given, mask = arrays(golden["given"]), jnp.array(golden["mask_p1"])
    # TRL puts the score one place *behind* the last token where there is room, and its value mask
    # reaches that place. With that mask, and equal log-probs at the extra place, ours is TRL's.
    inside = jnp.array(golden["mask"]) != 0
    logprobs = jnp.where(inside, given["logprobs"], 1.0)
    ref = jnp.where(inside, given["ref_logprobs"], 1.0)
    rewards = losses.token_rewards(given["scores"], logprobs, ref, mask, 0.07)
    close(rewards, golden["out"]["rewards"])
    advantages, returns = losses.gae(rewards, given["values"], mask, 0.97, 0.9)
    close(advantages, golden["out"]["advantages_plain"])
    close(returns, golden["out"]["returns"])
    close(losses.whiten(advantages, inside), golden["out"]["advantages"])


@pytest.mark.parametrize("case", ["full", "padded"])
def test_ppo_losses(goldens, case):
    golden = goldens["ppo"]["cases"][case]
    given, out = arrays(golden["given"]), golden["out"]
    loss, metrics = losses.ppo_loss(
        given["new_logprobs"], given["logprobs"], jnp.array(out["advantages"]),
        jnp.array(golden["mask"]), clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    close(loss, out["pg_loss"])
    close(metrics["policy/clip_fraction"], out["pg_clipfrac"])
    assert out["pg_clipfrac"] > 0
    loss, metrics = losses.value_loss(
        given["vpred_new"], given["values"], jnp.array(out["returns"]),
        jnp.array(golden["mask_p1"]), clip=0.3,
    )  # fmt: skip
    close(loss, out["vf_loss"])
    close(metrics["value/clip_fraction"], out["vf_clipfrac"])


def test_whiten(goldens):
    golden = goldens["ppo"]["whiten"]
    x, mask = jnp.array(golden["x"]), jnp.array(golden["mask"])
    close(losses.whiten(x, mask), np.array(golden["out"]) * np.array(mask))
    close(losses.whiten(x, mask, False), np.array(golden["out_unshifted"]) * np.array(mask))


@pytest.mark.parametrize("variant", ["sigmoid", "hinge", "ipo", "exo", "robust", "cdpo"])
def test_dpo(goldens, variant):
    golden = goldens["dpo"]
    given, want = arrays(golden["given"]), golden["out"][variant]
    policy = losses.sequence_logprobs(given["logps"], given["mask"])
    ref = given["ref"]
    if variant == "ipo":  # TRL takes means over tokens here
        lengths = given["mask"].sum(axis=1)
        policy, ref = (
            losses.sequence_logprobs(given["logps"], given["mask"], mean=True),
            ref / lengths,
        )
    half = len(ref) // 2
    loss, metrics = losses.dpo_loss(
        policy[:half], policy[half:], ref[:half], ref[half:],
        beta=golden["beta"], variant=variant, label_smoothing=want["label_smoothing"],
    )  # fmt: skip
    close(loss, want["loss"])
    if variant == "sigmoid":
        close(metrics["pref/accuracy"], want["accuracy"])
        close(metrics["pref/margin"], want["margin"])
        close(metrics["pref/reward_chosen"], want["chosen"])


def test_kto(goldens):
    golden = goldens["kto"]
    given = arrays(golden["given"])
    loss, metrics = losses.kto_loss(
        losses.sequence_logprobs(given["logps"], given["mask"]), given["ref"], given["kl"],
        given["ref_kl"], given["labels"], beta=0.2, desirable_weight=1.3, undesirable_weight=0.8,
    )  # fmt: skip
    close(loss, golden["out"]["loss"])
    close(metrics["pref/kl"], golden["out"]["kl"])
    assert golden["out"]["kl"] > 0
    close(metrics["pref/reward_chosen"], golden["out"]["chosen"])
    close(metrics["pref/reward_rejected"], golden["out"]["rejected"])


def test_orpo_and_simpo(goldens):
    golden = goldens["odds_and_simpo"]
    logps, mask = jnp.array(golden["given"]["logps"]), jnp.array(golden["given"]["mask"])
    half = len(mask) // 2
    loss, metrics = losses.orpo_loss(
        logps[:half], logps[half:], mask[:half], mask[half:], beta=golden["orpo"]["beta"]
    )
    close(loss, golden["orpo"]["loss"])
    close(metrics["pref/nll"], golden["orpo"]["nll"])
    means = losses.sequence_logprobs(logps, mask, mean=True)
    options = {name: golden["simpo"][name] for name in ("beta", "gamma", "label_smoothing")}
    close(losses.simpo_loss(means[:half], means[half:], **options)[0], golden["simpo"]["loss"])


@pytest.mark.parametrize("kl", ["", "_kl"])
@pytest.mark.parametrize("method", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_grpo_family(goldens, method, kl):
    golden = goldens["grpo"]
    given, want = arrays(golden["given"]), golden["out"][method + kl]
    advantages = losses.group_normalise(given["rewards"], 2)
    close(advantages, golden["advantages"])
    rows = len(advantages)
    constant = rows * golden["max_completion_length"]
    reduced = {
        "aggregation": "sequence" if method in ("grpo", "gspo") else "token",
        "denominator": constant if method == "dr_grpo" else None,
    }
    loss, _ = losses.ppo_loss(
        given["new"], given["old"], jnp.broadcast_to(advantages[:, None], given["new"].shape),
        given["mask"], clip_low=want["clip_low"], clip_high=want["clip_high"],
        ratio_level="sequence" if method == "gspo" else "token", **reduced,
    )  # fmt: skip
    drift = losses.kl_loss(given["new"], given["ref"], given["mask"], **reduced)
    close(loss + want["beta"] * drift, want["loss"])


def test_rloo(goldens):
    golden = goldens["rloo"]
    given = arrays(golden["given"])
    mask = given["mask"]
    drift = losses.sequence_logprobs(losses.k1(given["old"], given["ref"]), mask)
    advantages = losses.leave_one_out(given["rewards"] - golden["beta"] * drift, 2)
    close(advantages, golden["advantages"])
    loss, metrics = losses.ppo_loss(
        given["new"], given["old"], jnp.broadcast_to(advantages[:, None], mask.shape), mask,
        clip_low=golden["clip_low"], clip_high=golden["clip_high"],
        aggregation="sequence", ratio_level="product",
    )  # fmt: skip
    close(loss, golden["loss"])
    assert float(metrics["policy/clip_fraction"]) > 0


def test_leave_one_out(goldens):
    golden = goldens["grpo"]
    close(losses.leave_one_out(jnp.array(golden["given"]["rewards"]), 2), golden["leave_one_out"])


def test_binary_cross_entropy_and_bradley_terry(goldens):
    golden = arrays(goldens["torch_only"]["bce"])
    close(losses.binary_cross_entropy(golden["logits"], golden["targets"]), golden["each"])
    loss, _ = losses.bce_loss(golden["logits"], golden["targets"], golden["weights"])
    close(loss, golden["loss"])
    golden = goldens["reward"]
    sides = jnp.array(golden["better"]), jnp.array(golden["worse"])
    loss, metrics = losses.bradley_terry_loss(*sides)
    close(loss, golden["loss"])
    close(metrics["disc/pair_accuracy"], golden["accuracy"])
    close(metrics["disc/pair_margin"], golden["margin"])


@pytest.mark.parametrize("chunk_tokens", [1, 4, 256])
def test_logprobs(goldens, chunk_tokens):
    golden = arrays(goldens["torch_only"]["logprobs"])

    def total(hidden, kernel):
        logprobs, entropy = losses.chunked_logprobs(
            hidden, kernel, golden["ids"], temperature=0.7, chunk_tokens=chunk_tokens,
            with_entropy=True,
        )  # fmt: skip
        return jnp.sum(logprobs * golden["weights"]), (logprobs, entropy)

    (_, (logprobs, entropy)), gradients = value_and_grad(total, (0, 1), has_aux=True)(
        golden["hidden"], golden["kernel"]
    )
    close(logprobs, golden["logps"])
    close(entropy, golden["entropy"])
    close(gradients[0], golden["dhidden"])
    close(gradients[1], golden["dkernel"])


@pytest.mark.parametrize("distance", ["sq", "bwd_kl", "fwd_kl"])
def test_rpo_of_two_responses(goldens, distance):
    golden = arrays(goldens["torch_only"]["rpo"])
    zero = jnp.zeros_like(golden["a"])
    loss, _ = losses.rpo_loss(
        jnp.stack([golden["a"] / 0.2, zero], axis=1), jnp.zeros((len(zero), 2)),
        jnp.stack([golden["b"] / 3, zero], axis=1), beta=0.2, eta=3.0, distance=distance,
    )  # fmt: skip
    close(loss, golden[distance])
