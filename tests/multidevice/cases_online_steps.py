"""Every online method's steps, and the discriminator's, on eight devices against one: three updates
in float32 on four meshes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_steps import (
    DECODER,
    JUDGE,
    MESHES,
    OPTIMIZER,
    PROMPT,
    RESPONSE,
    ROWS,
    check_on,
    config_of,
    critic_start,
    network,
    placement,
    policy_start,
    rollout,
    spec_of,
    weights,
)

from gapo_jax.compilation import CompileCounter
from gapo_jax.methods import METHODS as REGISTRY
from gapo_jax.models import Decoder
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.buckets import Bucketed, accept_buckets, compile_all_widths, cut_rows
from gapo_jax.train.build import make_steps
from gapo_jax.train.discriminator.steps import TextBatch, discriminator_placement
from gapo_jax.train.forward import PolicyNetworks, RolloutLogprobs
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch
from gapo_jax.types import Experience

# The policy step of gapo is PPO's.
METHODS = tuple(n for n, m in REGISTRY.items() if m.loop == "online" and not m.adversarial)
# A step of 0.1 overshoots with the gradients of the discriminator, which multiplies the rounding of
# float32 (in the third update one device and eight are off by 1e-4, each to its side of float64).
OPTIMIZERS = {"policy": OPTIMIZER, "critic": OPTIMIZER, "discriminator": optax.sgd(0.02)}
# The discriminator, by the rows of its batch: 4 divide among no 8 devices, so two share each, on a
# layout that is the same whatever the mesh.
JUDGES = {"discriminator": ROWS, "discriminator of 4 rows": 4}
CASES = [(kind, sizes) for kind in (*METHODS, "discriminator") for sizes in MESHES]


def updates(method: str, sizes) -> tuple:
    """Three updates of the policy; for PPO of its critic too, after it has scored. The score step
    of the others is PPO's: they get drawn numbers."""
    config, place = config_of(method), placement(sizes)
    # In a bucket as wide as the rows, which are moved there and back.
    widths = (PROMPT + RESPONSE,) if sizes == (1, 4, 2) else ()
    steps = make_steps(spec_of(config, place), JUDGE, config, OPTIMIZERS, widths)
    rng = np.random.default_rng(3)

    def in_bucket(batch):
        return Bucketed(batch, *widths) if widths else batch

    base, policy = place.params(weights()[0]), network(place, policy_start(method))
    critic = None if steps.critic is None else network(place, critic_start())
    rows = rollout(rng)
    noise = functools.partial(rng.normal, size=(ROWS, RESPONSE))
    if critic is None:
        old, ref = ((0.1 * noise() - 4).astype(np.float32) for _ in range(2))
        scored = RolloutLogprobs(None, None, old, ref, None)
    else:
        networks = PolicyNetworks(base, policy.params, critic.params)
        scored = steps.score(networks, in_bucket(rows))
    values = scored.values_BR
    experience = Experience(
        tokens_BT=rows.tokens_BT,
        mask_BT=rows.mask_BT,
        response_mask_BR=rows.response_mask_BR,
        old_logprobs_BR=scored.old_logprobs_BR,
        ref_logprobs_BR=scored.ref_logprobs_BR,
        advantages_BR=noise().astype(np.float32),
        values_BR=values,
        returns_BR=None if values is None else values + noise().astype(np.float32),
        rewards_B=rng.normal(size=ROWS).astype(np.float32),
    )
    found = []
    for _ in range(3):
        batch = PolicyBatch(experience, scored.frozen_hidden_BTD, jnp.float32(0.1))
        policy, metrics = steps.policy(policy, in_bucket(batch), base, None)
        if steps.critic is not None:
            batch = CriticBatch(experience, None, scored.frozen_hidden_BTD)
            critic, more = steps.critic(critic, in_bucket(batch))
            metrics |= more
        found.append(metrics)
    return jax.device_get((policy, found, critic, scored.old_logprobs_BR))


def test_a_step_compiled_ahead_is_the_one_that_runs() -> None:
    def cut(rows, width):
        return cut_rows(rows, rows.mask_BT, width)

    widths, rows = (9, 11), rollout(np.random.default_rng(3))
    accepting = accept_buckets(lambda _, rows: rows, cut)
    jitted = placement((1, 4, 2)).jit(accepting, keep="rows", rows=(1,))
    step = compile_all_widths(jitted, widths)
    counts = []
    with CompileCounter() as counter:
        for width in (11, 9, 11):
            found = step(None, Bucketed(rows, width))
            assert found.tokens_BT.shape == (ROWS, width)
            assert found.tokens_BT.addressable_shards[0].data.shape == (ROWS // 4, width)
            counts.append(counter.count + counter.loaded)
    assert counts == [2, 2, 2]
    np.testing.assert_array_equal(np.sum(found.mask_BT, axis=1), rows.mask_BT.sum(axis=1))


def judge_updates(kind: str, sizes) -> tuple:
    config, place, rows = config_of("gapo"), placement(sizes), JUDGES[kind]
    config.discriminator.frozen_layers, config.discriminator.batch_size = 0, rows
    steps = make_steps(spec_of(config, place), JUDGE, config, OPTIMIZERS)
    judge = network(discriminator_placement(config, place), weights()[1])
    rng = np.random.default_rng(7)
    mask = (np.arange(12) < rng.integers(4, 13, (rows, 1))).astype(np.int32)
    batch = TextBatch(
        tokens_BT=rng.integers(0, 64, mask.shape).astype(np.int32),
        mask_BT=mask,
        type_ids_BT=np.zeros_like(mask),
        targets_B=rng.integers(0, 2, rows).astype(np.float32),
        weights_B=np.ones(rows, np.float32),
        classes_B=rng.integers(0, 3, rows).astype(np.int32),
    )
    found, key = [], place.whole(jax.random.key(8))  # as a run has it
    for _ in range(3):
        judge, metrics = steps.disc_update(judge, batch, key)
        found.append(metrics)
    scores = steps.disc_score(judge.params, batch.tokens_BT, batch.mask_BT, batch.type_ids_BT)
    return jax.device_get((judge, found, scores))


@pytest.mark.parametrize(("kind", "sizes"), [*CASES, ("discriminator of 4 rows", MESHES[1])])
def test_eight_devices_learn_what_one_does(kind: str, sizes: tuple[int, int, int]) -> None:
    check_on(sizes, judge_updates if kind in JUDGES else updates, kind)


def test_sampling_on_its_own_layout_draws_the_same_tokens() -> None:
    """Rows over four pairs of devices, each pair with a copy of the weights."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 64, (4, PROMPT)).astype(np.int32)
    keys = jax.random.split(jax.random.key(9), 8)
    found = []
    for place in (placement(None), placement((1, 8, 1)).regrouped(2)):
        sample = make_sampler(
            Decoder(DECODER), max_new_tokens=RESPONSE, eos_ids=(1,), pad_id=0, place=place
        )
        params = place.params(weights()[0])
        found.append(sample(params, tokens, np.ones_like(tokens), keys, 1.0))
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 16)}
    one, many = (jax.device_get(drawn) for drawn in found)
    np.testing.assert_array_equal(one.tokens_BT, many.tokens_BT)
    np.testing.assert_allclose(one.logprobs_BR, many.logprobs_BR, atol=1e-5)
    assert found[1].tokens_BT.is_fully_replicated


def test_rows_that_do_not_divide_are_computed_whole() -> None:
    place = placement((4, 2, 1))
    odd, even = place.rows((np.ones((6, 2)), np.ones((16, 2))))
    assert odd.is_fully_replicated and not even.is_fully_replicated


def test_few_rows_leave_no_device_idle() -> None:
    """Each text of four is shared by two of eight devices; sixteen texts need no other layout."""
    place = placement((1, 8, 1))
    assert place.for_rows(16) is place
    few = place.for_rows(4)
    assert few.mesh is not None and dict(few.mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert list(few.mesh.devices.flat) == list(jax.devices())
    kernel = few.params(weights()[1])["encoder"]["layers"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 16)}
    assert not few.rows(np.ones((4, 3))).is_fully_replicated
