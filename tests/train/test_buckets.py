"""Batches of like length in buckets: the same results per row, with less padding."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gapo_jax.compilation import CompileCounter, jit_step
from gapo_jax.config import Config
from gapo_jax.data import batching
from gapo_jax.data.batching import epoch_order
from gapo_jax.models import DecoderConfig
from gapo_jax.rng import Stream
from gapo_jax.sharding import ONE_DEVICE
from gapo_jax.train import buckets
from gapo_jax.train.buckets import Bucketed, accept_buckets, cut_rows, uncut_rows
from gapo_jax.train.forward import PolicyNetworks, PolicySpec, init_critic, score_rollout
from gapo_jax.train.online.objectives import policy_objective
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch, critic_step, policy_step
from gapo_jax.train.online.update import minibatches
from gapo_jax.train.state import TrainState, split_trainable
from gapo_jax.types import Experience, Rollout

ROWS, PROMPT, RESPONSE, NARROW = 4, 6, 7, 9
DECODER = DecoderConfig(
    vocab_size=31, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24
)
SPEC = PolicySpec(DECODER, 1, 0.7, 8, "reference", 8)
CRITICS = [dataclasses.replace(SPEC, critic=name) for name in ("reference", "policy", "decoder")]
# A step of plain gradient descent shows the gradient itself.
DESCENT = optax.sgd(1.0)


@pytest.fixture(scope="module")
def base(distinct_weights):
    return distinct_weights(DECODER)


@pytest.fixture(scope="module")
def trained(base):
    rng = np.random.default_rng(9)
    start = split_trainable(
        jax.device_get(base), SPEC.first_trainable_layer, train_embeddings=False
    )
    return jax.tree.map(lambda x: np.float32(x + 0.05 * rng.normal(size=x.shape)), start)


@pytest.fixture(scope="module")
def rollout():
    """(prompt, response) lengths: 9 fills the bucket; one response is longer than its prompt."""
    mask_BT = np.zeros((ROWS, PROMPT + RESPONSE), np.int32)
    for row, (prompt, response) in enumerate([(6, 3), (2, 7), (1, 1), (3, 4)]):
        mask_BT[row, PROMPT - prompt : PROMPT + response] = 1
    tokens_BT = np.random.default_rng(0).integers(1, 31, mask_BT.shape)
    return Rollout(
        tokens_BT=jnp.asarray(tokens_BT, jnp.int32),
        mask_BT=jnp.asarray(mask_BT),
        response_mask_BR=jnp.asarray(mask_BT[:, PROMPT:]),
        logprobs_BR=jnp.zeros((ROWS, RESPONSE)),
    )


def _cut(batch, width):
    return cut_rows(batch, batch.mask_BT, width)


def _uncut(results, rollout, width):
    return uncut_rows(results, rollout.mask_BT, width, RESPONSE)


@pytest.fixture(scope="module")
def scored(base, trained, rollout):
    """By the critic's form: its parameters, and the scores of the wide and of the narrow rows."""

    @jax.jit  # one program, in which the forms share their passes
    def score(base, trained, rollout):
        found = {}
        for spec in CRITICS:
            critic = init_critic(spec, base, jax.random.key(1))
            step = accept_buckets(functools.partial(score_rollout, spec=spec), _cut, _uncut)
            networks = PolicyNetworks(base, trained, critic)
            both = [step(networks, batch) for batch in (rollout, Bucketed(rollout, NARROW))]
            found[spec.critic] = critic, *both
        return found

    return score(base, trained, rollout)


def _experience(rollout, scored, seed=3):
    rng = np.random.default_rng(seed)
    draw = lambda: jnp.asarray(rng.normal(size=(ROWS, RESPONSE)), jnp.float32)  # noqa: E731
    return Experience(
        tokens_BT=rollout.tokens_BT,
        mask_BT=rollout.mask_BT,
        response_mask_BR=rollout.response_mask_BR,
        old_logprobs_BR=scored.old_logprobs_BR + 0.1 * draw(),
        ref_logprobs_BR=scored.ref_logprobs_BR,
        advantages_BR=draw(),
        values_BR=scored.values_BR,
        returns_BR=scored.values_BR + draw(),
        rewards_B=jnp.asarray(rng.normal(size=ROWS), jnp.float32),
    )


def _assert_same(wide, narrow):
    (network, metrics), (again, found) = wide, narrow
    assert found.keys() == metrics.keys()
    for name in metrics.keys() - {"policy/padding"}:
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(network.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_narrow_scores_lie_where_the_wide_ones_do(scored, rollout):
    masks = {13: rollout.mask_BT, 7: rollout.response_mask_BR}
    for _, wide, narrow in scored.values():
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(wide), jax.tree.leaves(narrow), strict=True
        ):
            assert a.shape == b.shape
            real = np.asarray(masks[a.shape[1]]) != 0
            name = jax.tree_util.keystr(path)
            np.testing.assert_allclose(a[real], b[real], rtol=1e-5, atol=1e-5, err_msg=name)
            assert np.isfinite(b).all()


def test_a_narrow_policy_update_is_the_wide_one(base, trained, rollout, scored):
    _, wide, _ = scored["reference"]
    options = {"spec": SPEC, "config": Config(), "optimizer": DESCENT}
    whole = PolicyBatch(_experience(rollout, wide), wide.frozen_hidden_BTD, 0.1)
    step = jax.jit(accept_buckets(functools.partial(policy_step, **options), _cut))
    both = []
    for batch, width in ((whole, PROMPT + RESPONSE), (Bucketed(whole, NARROW), NARROW)):
        both.append(step(TrainState.create(trained, DESCENT), batch, base))
        share = float(both[-1][1]["policy/padding"])
        assert share == pytest.approx(1 - int(rollout.mask_BT.sum()) / (ROWS * width))
    assert float(both[0][1]["policy/grad_norm"]) > 1e-3
    _assert_same(*both)


@pytest.mark.parametrize("advantage", ["rpo", "grpo"])
def test_what_reduces_over_rows_takes_narrow_ones(rollout, scored, advantage):
    """RPO sums over a response; Dr. GRPO divides by the longest that could have been sampled."""
    config = Config()
    config.ppo.advantage, config.ppo.samples_per_prompt = advantage, 2
    config.grpo.variant = "dr_grpo"

    def loss(logprobs_BR, experience):
        return policy_objective(config, logprobs_BR, experience, 0.1)

    experience = _experience(rollout, scored["reference"][1])
    rows = buckets.take_rows((experience.ref_logprobs_BR, experience), slice(2, 4))
    narrow = cut_rows(rows, rows[1].mask_BT, 7)  # 6 of 7 columns can be responses
    assert rows[0].shape == (2, RESPONSE) and narrow[0].shape == (2, 6)
    wide, found = (jax.jit(loss)(*inputs) for inputs in (rows, narrow))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), wide, found)


def test_a_narrow_critic_update_is_the_wide_one(rollout, scored):
    def both_updates(spec, critic, wide):
        whole = CriticBatch(_experience(rollout, wide), wide.features_BRD, wide.frozen_hidden_BTD)
        options = {"spec": spec, "config": Config(), "optimizer": DESCENT}
        step = accept_buckets(functools.partial(critic_step, **options), _cut)
        state = TrainState.create(critic, DESCENT)
        return [step(state, batch) for batch in (whole, Bucketed(whole, NARROW))]

    @jax.jit
    def every(scored):
        # The second form differs in what `features_BRD` are.
        return [both_updates(spec, *scored[spec.critic][:2]) for spec in CRITICS[::2]]

    for both in every(scored):
        assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(both[0][0].params))
        _assert_same(*both)


def _context(method="ppo", widths=(), epochs=1) -> Any:
    config = Config(method=method)
    config.ppo.minibatch_size = 16
    config.ppo.epochs = config.ppo.critic_epochs = epochs
    spec = types.SimpleNamespace(place=ONE_DEVICE)
    models = types.SimpleNamespace(spec=spec)
    return types.SimpleNamespace(config=config, models=models, widths=widths)


def _lengths(count, seed=0):
    """Lengths of the quickstart's kind: prompts of 33 to 64 tokens, responses of 3 to 48."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(np.exp(rng.normal(np.log(49), 0.2, count)), 33, 64)
    return (prompts + np.clip(np.exp(rng.normal(np.log(25), 0.8, count)), 3, 48)).astype(int)


def _experience_of(lengths_B) -> Any:
    mask_BT = (np.arange(112) < lengths_B[:, None]).astype(np.int32)
    return types.SimpleNamespace(tokens_BT=mask_BT, mask_BT=mask_BT)


def test_one_width_gives_the_batches_of_a_plain_shuffle():
    experience, ctx = _experience_of(_lengths(48)), _context(epochs=2)
    found = list(minibatches(ctx, experience, 3, Stream.CRITIC_ORDER))
    assert buckets.in_bucket("batch", found[0][1], ctx.widths) == "batch"
    paths = [(0, Stream.CRITIC_ORDER, 3, epoch) for epoch in range(2)]
    wanted = [epoch_order(*path, n=48).reshape(3, 16) for path in paths]
    np.testing.assert_array_equal([rows for rows, _ in found], np.concatenate(wanted))


@pytest.mark.parametrize("method", ["ppo", "rpo_online"])
def test_batches_of_like_length_are_a_partition_in_random_order(method):
    lengths_B, widths = _lengths(96), batching.bucket_widths(4, 49, 112)
    ctx, experience = _context(method, widths, epochs=2), _experience_of(lengths_B)
    first, again, other = (
        [rows for rows, _ in minibatches(ctx, experience, index, Stream.POLICY_ORDER)]
        for index in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).any()
    for epoch in (first[:6], first[6:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(96))
    group = 8 if method == "rpo_online" else 1
    longest = lengths_B.reshape(-1, group).max(axis=1)
    spans = []
    for rows, found_B in minibatches(_context(method, widths), experience, 0, Stream.POLICY_ORDER):
        np.testing.assert_array_equal(found_B, lengths_B[rows])
        batch = buckets.in_bucket(rows, found_B, widths)
        assert batch.width == min(width for width in widths if width >= found_B.max())
        np.testing.assert_array_equal(
            rows.reshape(-1, group) % group, [range(group)] * (16 // group)
        )
        own = longest[rows[::group] // group]
        spans.append((own.min(), own.max()))
    spans.sort()
    assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:], strict=False))


def test_padding_of_a_round_of_many_minibatches_is_under_a_tenth():
    """1,024 rows in minibatches of 16; 48 rows, the quickstart's, cannot be sorted so finely."""
    for rows, limit in ((1024, 0.10), (48, 0.20)):
        lengths_B = _lengths(rows)
        ctx = _context(widths=batching.bucket_widths(4, 49, 112))
        batches = minibatches(ctx, _experience_of(lengths_B), 0, Stream.POLICY_ORDER)
        used = [buckets.in_bucket(rows, found_B, ctx.widths).width for rows, found_B in batches]
        assert 1 - lengths_B.sum() / (16 * sum(used)) < limit
        assert 1 - lengths_B.mean() / 112 > 0.28


def test_widths_are_a_like_factor_apart():
    assert batching.bucket_widths(1, 49, 112) == ()
    assert batching.bucket_widths(4, 49, 112) == (64, 80, 96, 112)
    assert batching.bucket_widths(4, 100, 4096) == (256, 640, 1664, 4096)
    assert batching.bucket_widths(3, 500, 20) == (20,)


def test_a_step_is_compiled_for_all_widths_at_its_first_call():
    def total(state, x_BT):
        return state, jnp.sum(x_BT) * x_BT.shape[1]

    accepting = accept_buckets(total, lambda x_BT, width: cut_rows(x_BT, x_BT, width))
    step = buckets.compile_all_widths(jit_step(accepting, donate=0), (4, 6, 8))
    x_BT, state = np.ones((2, 8), np.int32), np.zeros(3, np.float32)
    x_BT[:, :5] = 0
    counts, sums = [], []
    with CompileCounter() as counter:
        for width in (6, 4, 8, 4):
            sums.append(int(step(state, Bucketed(x_BT, width))[1]))
            counts.append(counter.count + counter.loaded)
    assert counts == [3, 3, 3, 3]
    assert sums == [36, 24, 48, 24]
