"""Every method's step on eight devices against the same step on one: three updates in float32.

The updates are plain SGD, so that parameters compare as the gradients do (Adam divides by the size
of a gradient, and turns the rounding of one near zero into a whole step).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gapo_jax import losses, sharding
from gapo_jax.config import OFFLINE_METHODS, ONLINE_METHODS, Config
from gapo_jax.models import Decoder, DecoderConfig, Discriminator, EncoderConfig
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.compilation import CompileCounter
from gapo_jax.train.forward import GeneratorSpec, Scored, init_critic
from gapo_jax.train.lengths import Frame, at_every_width
from gapo_jax.train.objectives import policy_objective
from gapo_jax.train.offline_steps import (
    OfflineBatch,
    kto_rows_loss,
    make_offline_step,
    pairwise_loss,
)
from gapo_jax.train.state import Network, start_policy
from gapo_jax.train.steps import TextBatch, judge_place, make_steps
from gapo_jax.types import Experience, Rollout

DECODER = DecoderConfig(
    vocab_size=64, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32,
    max_positions=32, tie_embeddings=False,
)  # fmt: skip
ENCODER = EncoderConfig(
    vocab_size=64, num_layers=2, d_model=16, num_heads=2, d_ff=32, max_positions=16
)
JUDGE = Discriminator(ENCODER, hidden_dim=8)
ROWS, PROMPT, RESPONSE = 16, 6, 5
OPTIMIZER = optax.sgd(0.5)
MESHES = ((8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2))
ONLINE = tuple(method for method in ONLINE_METHODS if method != "gapo")  # its policy step is PPO's
# Their policy steps, with numbers drawn in place of what the score step gives: it is PPO's.
SCORED_BEFORE = tuple(method for method in ONLINE if method != "ppo")
OFFLINE = tuple(method for method in OFFLINE_METHODS if method != "discriminator")


# The discriminator, by the rows of its batch: 4 divide among no 8 devices, so two share each.
JUDGES = {"discriminator": ROWS, "discriminator of 4 rows": 4}


def placement(sizes: tuple[int, int, int] | None) -> sharding.Placement:
    if sizes is None:
        return sharding.Placement(sharding.make_mesh(devices=jax.devices()[:1]))
    return sharding.Placement(sharding.make_mesh(*sizes))


def rollout(rng: np.random.Generator) -> Rollout:
    real = np.ones((ROWS, PROMPT + RESPONSE), np.int32)
    for row in range(ROWS):
        real[row, : rng.integers(0, 4)] = 0
        real[row, PROMPT + rng.integers(2, RESPONSE + 1) :] = 0
    return Rollout(
        tokens_BT=rng.integers(0, 64, real.shape).astype(np.int32),
        mask_BT=real,
        response_mask_BR=real[:, PROMPT:],
        logprobs_BR=np.zeros((ROWS, RESPONSE), np.float32),
    )


def config_of(method: str) -> Config:
    config = Config(method=method)
    config.ppo.samples_per_prompt = config.rpo.responses = 2
    config.lora.rank = 2 if method == "dpo" else 0  # adapters on one of the meshes
    config.model.train_embeddings = method == "sft"
    config.model.trainable_layers = 0 if method in ("sft", *SCORED_BEFORE) else 1
    return config


def spec_of(config: Config, place: sharding.Placement) -> GeneratorSpec:
    first = 1 if config.model.trainable_layers else 0
    return GeneratorSpec(DECODER, first, 0.8, 16, "decoder", 8, place=place)


@functools.cache
def weights():
    """Return the parameters of generator and discriminator, numpy."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    base, judge = (
        jax.jit(module.init)(jax.random.key(i), tokens, jnp.ones_like(tokens))["params"]
        for i, module in enumerate((Decoder(DECODER), JUDGE))
    )
    # The default scale is so small that all distributions are nearly uniform.
    return jax.tree.map(lambda x: np.asarray(x * 4 if x.ndim > 1 else x), (base, judge))


def network(place: sharding.Placement, params) -> Network:
    return place.init(functools.partial(Network.create, optimizer=OPTIMIZER), params)


def same(one, many) -> None:
    """Both (networks, metrics) are equal to 1e-5."""
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True
    ):
        np.testing.assert_allclose(
            right, left, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


def online_updates(method: str, sizes) -> tuple:
    """Score (PPO), then three updates of policy and critic; returns what they left."""
    config, place = config_of(method), placement(sizes)
    spec = spec_of(config, place)
    steps = make_steps(
        spec, JUDGE, config,
        {name: OPTIMIZER for name in ("policy", "critic", "discriminator")},
    )  # fmt: skip
    rng = np.random.default_rng(3)
    # As wide as the rows, but they are moved there and back.
    frame = Frame(PROMPT + RESPONSE) if sizes == (1, 4, 2) else None
    base = place.params(weights()[0])
    policy = network(place, start_policy(weights()[0], spec.first, config, jax.random.key(2)))
    critic = None
    if steps.critic is not None:
        critic = network(place, init_critic(spec, weights()[0], jax.random.key(4)))
    rows = rollout(rng)
    noise = functools.partial(rng.normal, size=(ROWS, RESPONSE))
    if method in SCORED_BEFORE:
        old, ref = ((0.1 * noise() - 4).astype(np.float32) for _ in range(2))
        scored = Scored(None, None, old, ref, None)
    else:
        scored = steps.score(base, policy.params, critic.params if critic else None, rows, frame)
    values = None if critic is None else scored.values_BR
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
        policy, metrics = steps.policy(
            policy, base, experience, scored.lower_BTD, jnp.float32(0.1), None, frame
        )
        if critic is not None:
            critic, more = steps.critic(critic, experience, None, scored.lower_BTD, frame)
            metrics |= more
        found.append(metrics)
    return jax.device_get((policy, critic, scored.old_logprobs_BR, found))


def test_a_step_compiled_ahead_is_the_one_that_runs() -> None:
    def narrow(rows, frame):
        return frame.tight(rows, rows.mask_BT)

    sizes, rows = (9, 11), rollout(np.random.default_rng(3))
    step = at_every_width(placement((1, 4, 2)).jit(narrow, keep="rows", rows=(0,)), sizes)
    counts = []
    with CompileCounter() as counter:
        for width in (11, 9, 11):
            found = step(rows, Frame(width))
            assert found.tokens_BT.shape == (ROWS, width)
            assert found.tokens_BT.addressable_shards[0].data.shape == (ROWS // 4, width)
            counts.append(counter.count + counter.loaded)
    assert counts == [2, 2, 2]
    np.testing.assert_array_equal(np.sum(found.mask_BT, axis=1), rows.mask_BT.sum(axis=1))


def offline_updates(method: str, sizes) -> tuple:
    config, place = config_of(method), placement(sizes)
    spec = spec_of(config, place)
    step = make_offline_step(spec, config, OPTIMIZER)
    rng = np.random.default_rng(5)
    base = place.params(weights()[0])
    policy = network(place, start_policy(weights()[0], spec.first, config, jax.random.key(2)))
    batch = OfflineBatch(
        rows=rollout(rng),
        other=rollout(rng) if method in ("kto", "inverse_q") else None,
        rewards_N=rng.normal(size=ROWS).astype(np.float32) if method == "rpo" else None,
        ref_N=rng.normal(size=ROWS).astype(np.float32) if method == "sgpo" else None,
    )
    found = []
    for _ in range(3):
        policy, metrics = step(policy, base, batch)
        found.append(metrics)
    return jax.device_get((policy, found))


def judge_updates(rows: int, sizes) -> tuple:
    config, place = config_of("gapo"), placement(sizes)
    config.discriminator.frozen_layers, config.discriminator.batch_size = 0, rows
    steps = make_steps(
        spec_of(config, place), JUDGE, config,
        {name: OPTIMIZER for name in ("policy", "critic", "discriminator")},
    )  # fmt: skip
    judge = network(judge_place(config, place), weights()[1])
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


@functools.cache
def result(kind: str, sizes=None) -> tuple:
    if kind in JUDGES:
        return judge_updates(JUDGES[kind], sizes)
    return (online_updates if kind in ONLINE else offline_updates)(kind, sizes)


KINDS = (*ONLINE, *OFFLINE, *JUDGES)
# Methods differ in what they make of the log-probs, networks in nothing: by default each kind of
# network step on a mesh, and below the objective of every method; the whole product is slow.
QUICK = {
    ("ppo", MESHES[2]), ("dpo", MESHES[3]), ("sft", MESHES[0]),
    ("discriminator", MESHES[1]), ("discriminator of 4 rows", MESHES[1]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        pytest.param(kind, sizes, marks=() if (kind, sizes) in QUICK else pytest.mark.slow)
        for kind in KINDS
        for sizes in MESHES
    ],
)
def test_eight_devices_learn_what_one_does(kind: str, sizes: tuple[int, int, int]) -> None:
    same(result(kind), result(kind, sizes))


def objective(method: str, config: Config):
    """Return a function of (log-probs [B, R], other numbers by row) and such numbers."""
    rng = np.random.default_rng(6)
    rows = rollout(rng)
    numbers = [(0.3 * rng.normal(size=(ROWS, RESPONSE)) - 2).astype(np.float32) for _ in range(5)]
    policy, ref, other, other_ref, advantages = numbers
    rewards = rng.normal(size=ROWS).astype(np.float32)
    if method in ONLINE:
        experience = Experience(
            rows.tokens_BT, rows.mask_BT, rows.response_mask_BR, other, ref, advantages,
            None, None, rewards,
        )  # fmt: skip
        return lambda x_BR, rest: policy_objective(config, x_BR, rest, 0.1), policy, experience
    batch = OfflineBatch(rows=rows, other=rollout(rng), rewards_N=rewards, ref_N=rewards - 10)
    rest = (batch, ref, other, other_ref)

    def loss(x_BR, rest):
        batch, ref_BR, other_BR, other_ref_BR = rest
        if method == "kto":
            return kto_rows_loss(config, x_BR, ref_BR, (other_BR, other_ref_BR), batch)
        if method == "inverse_q":
            mask_BR = batch.rows.response_mask_BR
            return losses.inverse_q_loss(x_BR, ref_BR, other_BR, mask_BR, beta=0.5, clip=2.0)
        if method == "sft":
            return losses.sft_loss(x_BR, batch.rows.response_mask_BR)
        return pairwise_loss(config, x_BR, batch.ref_N, batch)

    return loss, policy, rest


@pytest.mark.parametrize("method", (*ONLINE, *OFFLINE))
def test_every_objective_sees_the_rows_of_all_devices(method: str) -> None:
    """Value, metrics and gradient by the log-probs, groups and batch statistics over devices."""
    function, policy, rest = objective(method, config_of(method))
    found = []
    for sizes in (None, (4, 2, 1)):
        step = placement(sizes).jit(jax.value_and_grad(function, has_aux=True), rows=(0, 1))
        found.append(jax.device_get(step(policy, rest)))
    same(*found)
    assert np.abs(found[0][1]).max() > 1e-4


def test_a_network_keeps_its_places_and_its_memory() -> None:
    """After an update every parameter lies where the table puts it, in the buffer it had."""
    config, place = config_of("sft"), placement((1, 4, 2))
    step = make_offline_step(spec_of(config, place), config, OPTIMIZER)
    policy = network(place, start_policy(weights()[0], 0, config, jax.random.key(2)))
    before = jax.tree.leaves(policy)
    batch = OfflineBatch(rows=rollout(np.random.default_rng(5)))
    after, metrics = step(policy, place.params(weights()[0]), batch)
    assert all(leaf.is_deleted() for leaf in before)
    for left, right in zip(before, jax.tree.leaves(after), strict=True):
        assert left.sharding.is_equivalent_to(right.sharding, left.ndim)
    assert all(value.is_fully_replicated for value in jax.tree.leaves(metrics))
    kernel = after.params["layers"]["attn"]["q"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 4, 8)}


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
