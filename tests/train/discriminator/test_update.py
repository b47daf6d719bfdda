"""The discriminator's phases on a small real network: scoring, warm-up order, the gate."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import config as configuration
from gapo_jax.config import DiscriminatorConfig, OptimConfig
from gapo_jax.data.tiny_tokenizer import character_tokenizer, wordpiece_tokenizer
from gapo_jax.methods import scores_with_average
from gapo_jax.models import (
    Decoder,
    DecoderConfig,
    Discriminator,
    EncoderConfig,
    RewardModel,
    save_hf,
)
from gapo_jax.train import optimizers
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.discriminator import scoring, update, warmup
from gapo_jax.train.discriminator.steps import (
    TextBatch,
    disc_penalty,
    disc_score_step,
    disc_update_step,
)
from gapo_jax.train.discriminator.texts import GeneratedText, LabelledText
from gapo_jax.train.online import rewards as rewarding
from gapo_jax.train.online.reward_sources import RewardSources
from gapo_jax.train.runtime import Processes
from gapo_jax.train.sources import load_discriminator
from gapo_jax.train.state import GAPOState, TrainState
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED, Constraint, PreferentialPair, Rollout

TOKENIZER = wordpiece_tokenizer()
MODULE = Discriminator(
    EncoderConfig(vocab_size=len(TOKENIZER), num_layers=1, d_model=16, num_heads=2, d_ff=16)
)


def _config(**changes):
    values = {"batch_size": 4, "max_tokens": 48, "updates_per_round": 2} | changes
    return DiscriminatorConfig(**values)


@pytest.fixture(scope="module")
def optimizer():
    settings = _config().optim
    return optimizers.make_optimizer(settings, optimizers.learning_rate(settings, 10))


@pytest.fixture(scope="module")
def steps(optimizer):
    return _compiled(MODULE, optimizer)


def _compiled(module, optimizer, **options):
    options = {"dropout": False, "frozen": None, "optimizer": optimizer} | options
    step = functools.partial(disc_update_step, discriminator=module, **options)
    score = functools.partial(disc_score_step, discriminator=module)
    return types.SimpleNamespace(disc_update=jax.jit(step), disc_score=jax.jit(score))


@pytest.fixture
def network(optimizer):
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(MODULE.init)(jax.random.key(0), tokens, jnp.ones_like(tokens))["params"]
    return TrainState.create(params, optimizer)


TEXTS = [
    LabelledText(f"p{i}", "word " * (i % 5 + 1), kind, float(kind == ACCEPTED))
    for i, kind in enumerate([ACCEPTED, REJECTED, GENERATED, REJECTED, ACCEPTED, GENERATED, 0])
]


def test_scores_keep_the_order_of_the_texts(network, steps):
    config = _config()
    scores = scoring.score_texts(steps, network.params, TOKENIZER, TEXTS, config)
    alone = [
        scoring.score_texts(steps, network.params, TOKENIZER, [text], config)[0] for text in TEXTS
    ]
    np.testing.assert_allclose(scores, alone, atol=1e-6)
    assert len(set(np.round(scores, 6).tolist())) > 3


@pytest.mark.parametrize(
    ("gate", "passes"),
    [({}, 1), ({"gate_high": 0.01}, 0), ({"gate_low": 0.99}, 2)],
)
def test_the_gate_skips_or_doubles_the_update(network, steps, gate, passes):
    moved, metrics = update.update_on_texts(
        network, steps, TOKENIZER, TEXTS, _config(**gate), jax.random.key(1)
    )
    assert int(moved.step) == 2 * passes
    assert metrics["disc/updates"] == 2 * passes
    assert 0 <= metrics["disc/accuracy"] <= 1
    same = all(
        (np.asarray(a) == np.asarray(b)).all()
        for a, b in zip(jax.tree.leaves(network.params), jax.tree.leaves(moved.params), strict=True)
    )
    assert same == (passes == 0)


@pytest.mark.parametrize("score_with", ["pre", "post", "ema"])
def test_one_snapshot_of_the_discriminator_gives_the_rewards(network, steps, score_with):
    """As it was before its update, as it is after it, or the moving average of the rounds."""
    config = configuration.Config()
    config.discriminator = _config(
        score_with=score_with, ema_decay=0.75, generated_fraction=0.5, label_policy="paper"
    )
    config.ppo.samples_per_prompt = 4
    config.reward.standardise, config.data.curriculum = "none", 1.0
    comma = (Constraint("punctuation:no_comma"),)
    pair = PreferentialPair("t", "abc", comma, comma, "p", "q", "modify", comma[0].id)
    ctx = types.SimpleNamespace(
        config=config,
        models=types.SimpleNamespace(
            tokenizer=character_tokenizer(),
            disc_tokenizer=TOKENIZER,
            decoder=Decoder(DecoderConfig(31, 1, 8, 1, 1, 8, 8)),
        ),
        steps=steps,
        clock=PhaseClock(),
        # Only the easiest quarter is in use in the first round of a curriculum.
        pairs=types.SimpleNamespace(compared=[pair] * 2 + [None] * 6, heldout=[]),
        rewards=RewardSources(),
        processes=Processes(),
        updates_per_round=1,
    )
    ones = jnp.ones((4, 3), jnp.int32)
    fresh = [GeneratedText("p", "word " * (n + 1), False, 1) for n in range(4)]
    rollout = types.SimpleNamespace(
        index=0, generated=fresh, arrays=Rollout(ones, ones, ones, ones * 1.0),
        rule_rewards_B=np.zeros(4), rows=[], texts=[],
    )  # fmt: skip
    start = jax.tree.map(np.asarray, network.params)
    state = GAPOState(
        policy=network, critic=None, discriminator=network, key=jax.random.key(0),
        round=jnp.int32(0), kl_coef=jnp.float32(0), reward_stats=jnp.zeros(3),
        disc_average=network.params if scores_with_average(config) else None,
    )  # fmt: skip
    assert (state.disc_average is not None) == (score_with == "ema")
    before = rewarding.snapshot_before(ctx, state)
    assert (before is not None) == (score_with == "pre")
    state, metrics = update.update_discriminator(ctx, state, rollout)
    assert metrics["disc/pairs_in_use"] == 2 and state.replay == tuple(fresh)
    after = state.discriminator.params
    average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, start, after)
    if score_with == "ema":
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.disc_average, average
        )
    given = rewarding.compute_rewards(ctx, state, rollout, before)
    for name, params in {"pre": start, "post": after, "ema": average}.items():
        wanted = scoring.score_texts(steps, params, TOKENIZER, fresh, config.discriminator)
        assert np.allclose(given.logits_B, wanted, atol=1e-6) == (name == score_with)
    np.testing.assert_allclose(given.rewards_B, given.logits_B, atol=1e-6)
    # Three of at most four tokens: half of the punishment, which begins behind the second.
    config.sampling.max_new_tokens, config.reward.overlong_tokens = 4, 2
    punished = rewarding.compute_rewards(ctx, state, rollout, before)
    np.testing.assert_allclose(punished.rewards_B, given.logits_B - 0.5, atol=1e-6)


def test_training_separates_what_can_be_separated(network, steps):
    texts = [LabelledText("p", "aaa", ACCEPTED, 1.0), LabelledText("p", "bbb", REJECTED, 0.0)] * 2
    for _ in range(60):
        network, _ = update.update_on_texts(
            network, steps, TOKENIZER, texts, _config(), jax.random.key(1)
        )
    logits = scoring.score_texts(steps, network.params, TOKENIZER, texts, _config())
    found = scoring.text_metrics(logits, texts)
    assert found["disc/acc_accepted"] == found["disc/acc_rejected"] == 1.0
    assert scoring.pair_order_accuracy(logits, texts) == 1.0


def test_bradley_terry_learns_which_of_two_texts_is_better(network, optimizer, steps):
    paired = _compiled(MODULE, optimizer, loss="bradley_terry")
    config = _config(loss="bradley_terry", gate_high=0.99)
    words = [LabelledText("p", word, ACCEPTED, 1.0) for word in ("aaa", "bbb")]
    scores = scoring.score_texts(steps, network.params, TOKENIZER, words, config)
    better, worse = (words[i].response for i in np.argsort(scores))  # wrong to begin with
    texts = [LabelledText("p", better, ACCEPTED, 1.0), LabelledText("p", worse, REJECTED, 0.0)] * 2
    for _ in range(60):
        network, metrics = update.update_on_texts(
            network, paired, TOKENIZER, texts, config, jax.random.key(1)
        )
    # The gate reads the order of the pairs: once it is right, nothing is updated any more.
    assert metrics["disc/accuracy"] == 1.0 and metrics["disc/updates"] == 0
    logits = scoring.score_texts(steps, network.params, TOKENIZER, texts, config)
    assert scoring.pair_order_accuracy(logits, texts) == 1.0


def test_the_gradient_penalty_equals_finite_differences():
    module = Discriminator(
        EncoderConfig(vocab_size=30, num_layers=2, d_model=8, num_heads=2, d_ff=8)
    )
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.integers(1, 30, (3, 5)), jnp.int32)
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    params = jax.jit(module.init)(jax.random.key(0), tokens, mask)["params"]
    params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)
    kinds = jnp.array([ACCEPTED, ACCEPTED, REJECTED])
    batch = TextBatch(tokens, mask, jnp.zeros_like(tokens), kinds * 1.0, jnp.ones(3), kinds)

    def penalty(params):
        return disc_penalty(module, params, batch, frozen_layers=1)

    def judge(embedded):
        return module.apply({"params": params}, embedded, mask, method="score_embedded")

    embed = functools.partial(module.apply, {"params": params}, method="embed")
    embedded = jax.jit(embed)(tokens, mask, batch.type_ids_BT)
    whole = jax.jit(module.apply)({"params": params}, tokens, mask)
    np.testing.assert_allclose(jax.jit(judge)(embedded), whole, atol=1e-6)
    steps = jnp.eye(5 * 8).reshape(-1, 1, 5, 8) * 1e-2
    move = jax.jit(jax.vmap(lambda step: judge(embedded + step)))
    slopes = np.asarray((move(steps) - move(-steps)) / 2e-2, np.float64)
    real = np.repeat(np.asarray(mask), 8, axis=1).T
    want = 0.5 * (slopes**2 * real).sum(0)[:2].mean()
    value, gradient = jax.jit(jax.value_and_grad(penalty))(params)
    assert want > 1e-3 and float(value) == pytest.approx(want, rel=1e-2)
    # The frozen layer lets the gradient through to the embeddings, and keeps its weights.
    for leaf in jax.tree.leaves(gradient["encoder"]["layers"]):
        assert not np.any(leaf[0])
    assert np.abs(gradient["encoder"]["layers"]["mlp"]["up"]["kernel"][1]).max() > 0


def test_compiling_ahead_changes_nothing_and_leaves_nothing_to_compile(network, steps):
    from gapo_jax.compilation import CompileCounter
    from gapo_jax.data.batching import text_buckets

    config = _config()
    before = jax.tree.map(np.asarray, network.params)
    warmup.compile_widths(network, steps, TOKENIZER, config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, network.params)
    arrays = [jnp.ones((4, width), jnp.int32) for width in text_buckets(config.max_tokens)]
    with CompileCounter() as counter:
        for array in arrays:
            steps.disc_score(network.params, array, array, array)
    assert counter.count == 0


def test_only_the_widths_that_texts_can_have_are_compiled(network):
    comma = (Constraint("punctuation:no_comma"),)
    pair = PreferentialPair("t", "abc", comma, comma, "p" * 9, "q" * 20, "modify", comma[0].id)
    config = _config(max_tokens=64)  # lengths 24, 32, 43 and 64
    # [CLS] 20 [SEP] 3 [SEP]; and a prompt of 13 with two tokens for each of 10 new ones.
    assert warmup.longest_text(TOKENIZER, [pair], ["p" * 13], 4, config) == 26
    assert warmup.longest_text(TOKENIZER, [pair], ["p" * 13], 10, config) == 36
    for longest, wanted in ((24, [24]), (36, [24, 32, 43]), (900, [24, 32, 43, 64])):
        seen = []
        record = types.SimpleNamespace(
            disc_score=lambda params, tokens, *_, seen=seen: seen.append(tokens.shape[1]),
            disc_update=lambda network, batch, key: None,
        )
        warmup.compile_widths(network, record, TOKENIZER, config, jax.random.key(0), longest)
        assert seen == wanted


def test_a_warmup_epoch_sees_every_pair_once_with_both_sides_in_one_batch():
    comma = (Constraint("punctuation:no_comma"),)
    pairs = [
        PreferentialPair("t", "r" * (i % 7), comma, comma, f"a{i}", f"b{i}", "modify", comma[0].id)
        for i in range(21)
    ]
    groups = warmup.warmup_order(pairs, 8, seed=0, epoch=0)
    assert sorted(i for group in groups for i in group) == list(range(21))
    assert max(len(group) for group in groups) == 4
    assert groups == warmup.warmup_order(pairs, 8, seed=0, epoch=0)
    assert groups != warmup.warmup_order(pairs, 8, seed=0, epoch=1)
    # A curriculum: as many updates, all on the easiest 10.
    easy = warmup.warmup_order(pairs, 8, seed=0, epoch=0, in_use=10)
    assert len(easy) == len(groups)
    counts = np.bincount([i for group in easy for i in group], minlength=21)
    assert counts[:10].all() and counts[:10].sum() == 21


def test_a_decoder_as_discriminator_learns(tmp_path):
    """The reward model of the paper's PPO baseline, from a folder to scores that tell classes."""
    tokenizer = character_tokenizer()
    decoder = Decoder(
        DecoderConfig(
            vocab_size=len(tokenizer), num_layers=1, d_model=16, num_heads=2, num_kv_heads=2,
            head_dim=8, d_ff=32, eos_ids=(tokenizer.eos_token_id,), pad_id=0,
        )
    )  # fmt: skip
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(0), tokens, jnp.ones_like(tokens))["params"]
    config = configuration.Config()
    config.model.discriminator = str(save_hf(decoder, params, tmp_path / "model", tokenizer))
    config.discriminator = _config(max_tokens=48, frozen_layers=1)
    with pytest.raises(ValueError, match="frozen_layers=0 for a decoder"):
        load_discriminator(config, jax.random.key(0))
    config.discriminator = _config(max_tokens=48)
    module, start, tokenizer = load_discriminator(config, jax.random.key(0))
    assert isinstance(module, RewardModel) and start.keys() == {"decoder", "head"}
    settings = OptimConfig(learning_rate=0.02)
    optimizer = optimizers.make_optimizer(
        settings, lambda step: 0.02, optimizers.frozen_parameters(config)
    )
    steps = _compiled(module, optimizer, frozen=optimizers.frozen_parameters(config))
    texts = [LabelledText("p", "ab " * n, ACCEPTED, 1.0) for n in (2, 3)]
    texts += [LabelledText("p", "xy " * n, REJECTED, 0.0) for n in (2, 3)]
    network = TrainState.create(start, optimizer)
    for _ in range(30):
        network, _ = update.update_on_texts(
            network, steps, tokenizer, texts, config.discriminator, jax.random.key(1)
        )
    scores = scoring.score_texts(steps, network.params, tokenizer, texts, config.discriminator)
    assert scores[:2].min() > 1 and scores[2:].max() < -1
    embedding = network.params["decoder"]["embed"]["embedding"]
    np.testing.assert_array_equal(embedding, start["decoder"]["embed"]["embedding"])
    save_hf(module, network.params, tmp_path / "trained", tokenizer)
