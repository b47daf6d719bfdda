"""The offline update against slow plain versions: masks, references, microbatches, targets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import Config
from gapo_jax.data.batching import batch_at
from gapo_jax.data.preferences import Side
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.data.tokenizer import chat_prompt
from gapo_jax.methods import method_of, offline_loss
from gapo_jax.models import Decoder, DecoderConfig
from gapo_jax.rng import Stream
from gapo_jax.train.build import Models
from gapo_jax.train.forward import PolicySpec, reference_part
from gapo_jax.train.offline.examples import Encoder, drawn, fit, offline_batch
from gapo_jax.train.offline.steps import cut_batch, make_offline_step, score_batch
from gapo_jax.train.optimizers import learning_rate, make_optimizer
from gapo_jax.train.state import TrainState, merge_trainable, split_trainable

TOKENIZER = character_tokenizer()
CONFIG = DecoderConfig(
    vocab_size=len(TOKENIZER),
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=24,
    eos_ids=(TOKENIZER.eos_token_id,),
)
SPEC = PolicySpec(CONFIG, 1, 1.0, 8, "reference", 8)
WIDTH = 80
# Prompts and responses of different lengths on the two sides of each pair.
PAIRS = [
    (("Name a tea. No commas.", "Green"), ("Name a tea in capital letters.", "Green")),
    (("Say hi.", "Hi!"), ("Say hi in two words or more.", "Hi!")),
    (("Short", "A tale"), ("Short", "A longer tale of it")),
    (("Tell me of rain", "Wet"), ("Tell me of rain in verse", "Wet")),
]
EXAMPLES = [tuple(Side(p, r, float(1 - i)) for i, (p, r) in enumerate(pair)) for pair in PAIRS]


@pytest.fixture(scope="module")
def base(distinct_weights):
    return distinct_weights(CONFIG)


@pytest.fixture(scope="module")
def trained(base, moved_layers):
    return moved_layers(base, SPEC.first_trainable_layer)


@pytest.fixture(scope="module")
def encoder():
    models = Models(
        decoder=Decoder(CONFIG), ref_params=None, tokenizer=TOKENIZER, discriminator=None,
        disc_init_params=None, disc_tokenizer=None, spec=SPEC, sample=None,
    )  # fmt: skip
    return Encoder(models, prompt_width=48, response_width=24)


def _config(method, **options):
    config = Config(method=method)
    config.offline.batch_size = len(EXAMPLES)
    for path, value in options.items():
        section, name = path.split("__")
        setattr(getattr(config, section), name, value)
    return config


def _batch(config, encoder):
    accepted = method_of(config).layout == "accepted"
    examples = [sides[:1] for sides in EXAMPLES] if accepted else EXAMPLES
    return offline_batch(config, encoder, examples, 0)


def _token_logprobs(params, prompt, response):
    """log-probs of a response right after its prompt, one row, by the whole model."""
    ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in (prompt, response)]
    ids[1] = [*ids[1], TOKENIZER.eos_token_id]
    row = ids[0] + ids[1]
    # What follows a token cannot change it, so one length serves all and no mask is needed.
    table = _table(params, jnp.array([row + [0] * (WIDTH - len(row))]))
    at = len(ids[0]) + np.arange(len(ids[1]))
    return table[at - 1, ids[1]], table[at - 1]


@jax.jit
def _log_softmax(params, tokens):
    logits = Decoder(CONFIG).apply({"params": params}, tokens, jnp.ones_like(tokens))
    return jax.nn.log_softmax(logits[0].astype(jnp.float32))


def _table(params, tokens):
    return np.asarray(_log_softmax(params, tokens), np.float64)


def _picks(step, count, size):
    return batch_at(0, Stream.OFFLINE_ORDER, step=step, n=count, batch_size=size)


@pytest.fixture(scope="module")
def plain(base, trained):
    """(policy, reference) sums and token counts of every side, [pair, side]."""
    full = merge_trainable(base, trained, SPEC.first_trainable_layer)
    sums = np.zeros((2, len(PAIRS), 2))
    counts = np.zeros((len(PAIRS), 2))
    for i, pair in enumerate(PAIRS):
        for j, (prompt, response) in enumerate(pair):
            for k, params in enumerate((full, base)):
                found, _ = _token_logprobs(params, chat_prompt(TOKENIZER, prompt), response)
                sums[k, i, j], counts[i, j] = found.sum(), len(found)
    order = _picks(0, len(PAIRS), len(PAIRS))
    return sums[:, order], counts[order]


def _loss(config, base, trained, batch):
    score = functools.partial(score_batch, spec=SPEC, config=config)
    return jax.jit(lambda *inputs: offline_loss(config)(score(*inputs)))(trained, base, batch)


def _softplus(x):
    return np.log1p(np.exp(x))


def test_preferential_prompts_are_compared_each_with_its_own_mask(base, trained, encoder, plain):
    # Fed as one prompt length for both sides, as the release does, the rejected text is cut wrong.
    config = _config("dpo")
    (policy, ref), counts = plain
    delta = (policy - ref)[:, 0] - (policy - ref)[:, 1]
    loss, metrics = _loss(config, base, trained, _batch(config, encoder))
    assert float(loss) == pytest.approx(_softplus(-0.1 * delta).mean(), rel=1e-4)
    assert float(metrics["pref/margin"]) == pytest.approx(0.1 * delta.mean(), rel=1e-3)
    assert float(metrics["pref/logprob_chosen"]) == pytest.approx(
        policy[:, 0].sum() / counts[:, 0].sum(), rel=1e-4
    )


def test_every_other_loss_on_the_same_rows(base, trained, encoder, plain):
    (policy, ref), counts = plain
    rho, mean = policy - ref, policy / counts
    gap = rho / counts
    logodds = mean - np.log1p(-np.exp(mean))
    nll = -policy[:, 0].sum() / counts[:, 0].sum()
    s = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    a, b = 0.2 * (rho[:, 0] - rho[:, 1]), np.ones(len(rho))
    kl = s(b) * np.log(s(b) / s(a)) + s(-b) * np.log(s(-b) / s(-a))
    wanted = {
        "sft": nll,
        "simpo": _softplus(-(2.0 * (mean[:, 0] - mean[:, 1]) - 1.0)).mean(),
        "orpo": nll + 0.1 * _softplus(-(logodds[:, 0] - logodds[:, 1])).mean(),
        "rpo": kl.mean(),
    }
    for method, value in wanted.items():
        config = _config(method)
        loss, _ = _loss(config, base, trained, _batch(config, encoder))
        assert float(loss) == pytest.approx(value, rel=2e-4), method
    # Label smoothing reaches the loss; SGPO's second stage is DPO with a reference that it brings.
    margin = 0.1 * (rho[:, 0] - rho[:, 1])
    config = _config("dpo", dpo__label_smoothing=0.2)
    loss, _ = _loss(config, base, trained, _batch(config, encoder))
    smooth = 0.8 * _softplus(-margin) + 0.2 * _softplus(margin)
    assert float(loss) == pytest.approx(smooth.mean(), rel=2e-4)
    config = _config("sgpo")
    batch = _batch(config, encoder).replace(ref_B=jnp.asarray(ref.reshape(-1), jnp.float32))
    loss, _ = _loss(config, base, trained, batch)
    assert float(loss) == pytest.approx(_softplus(-margin).mean(), rel=2e-4)
    # IPO takes means over tokens unless it is told to take sums; its target is 1 / (2 beta).
    for reduce, log_ratios in (("auto", gap), ("mean", gap), ("sum", rho)):
        config = _config("dpo", dpo__variant="ipo", dpo__reduce=reduce, offline__sft_weight=0.5)
        loss, _ = _loss(config, base, trained, _batch(config, encoder))
        ipo = ((log_ratios[:, 0] - log_ratios[:, 1] - 5.0) ** 2).mean()
        assert float(loss) == pytest.approx(ipo + 0.5 * nll, rel=2e-4)


def test_the_improver_learns_refinements_and_weighs_answers(base, trained, encoder, plain):
    config = _config("sgpo")
    rewards = np.tile([1.0, 0.25], len(EXAMPLES)).astype(np.float32)
    batch = _batch(config, encoder).replace(rewards_B=jnp.asarray(rewards))
    loss, metrics = _loss(config, base, trained, batch)
    (policy, _), counts = plain
    refined, answers = -policy.sum(0) / counts.sum(0)
    assert float(loss) == pytest.approx(refined + 0.25 * answers, rel=2e-4)
    assert float(metrics["sgpo/improver_loss"]) == pytest.approx(refined, rel=2e-4)


def test_four_sides_by_the_squared_leave_one_out_form(base, trained, encoder, plain):
    config = _config("rpo", rpo__responses=4, rpo__distance="sqloo", rpo__eta=2.0)
    config.offline.batch_size = 2
    rewards = {side: i / 5 for i, side in enumerate(s for sides in EXAMPLES for s in sides)}
    known = {(side.prompt, side.response): value for side, value in rewards.items()}
    four = [EXAMPLES[0] + EXAMPLES[1], EXAMPLES[2] + EXAMPLES[3]]
    loss, _ = _loss(config, base, trained, offline_batch(config, encoder, four, 0, known))
    (policy, ref), _ = plain
    back = np.argsort(_picks(0, len(PAIRS), len(PAIRS)))
    a = 0.2 * (policy - ref)[back].reshape(2, 4)
    b = 2.0 * np.array(list(rewards.values())).reshape(2, 4)
    others = lambda x: x - (x.sum(1, keepdims=True) - x) / 3  # noqa: E731
    assert float(loss) == pytest.approx(0.5 * ((others(a) - others(b)) ** 2).mean(), rel=2e-4)


def test_kto_meets_each_prompt_with_the_response_of_another_pair(base, trained, encoder, plain):
    config = _config("kto")
    batch = _batch(config, encoder)
    chosen = [EXAMPLES[i] for i in _picks(0, len(EXAMPLES), len(EXAMPLES))]
    sides = [example[k] for k in (0, 1) for example in chosen]
    drift = []
    full = merge_trainable(base, trained, SPEC.first_trainable_layer)
    for i, side in enumerate(sides):
        other = sides[(i + 1) % len(sides)]
        assert i % 4 != (i + 1) % 4  # another pair, though its response may be the same text
        prompt = chat_prompt(TOKENIZER, side.prompt)
        sums = [_token_logprobs(p, prompt, other.response)[0].sum() for p in (full, base)]
        drift.append(sums[0] - sums[1])
    z0 = max(0.0, np.mean(drift))
    (policy, ref), _ = plain
    rho = (policy - ref).T.reshape(-1)
    margin = 0.1 * np.where(np.arange(8) < 4, rho - z0, z0 - rho)
    loss, metrics = _loss(config, base, trained, batch)
    assert float(loss) == pytest.approx(np.mean(1 / (1 + np.exp(margin))), rel=1e-4)
    assert float(metrics["pref/kl"]) == pytest.approx(z0, rel=1e-3, abs=1e-4)


def test_kto_never_meets_an_example_with_itself_where_epochs_meet(encoder):
    """4 of 3 examples: every batch holds one twice, in one of them side by side."""
    config = _config("kto", offline__batch_size=4)
    three, neighbours = [EXAMPLES[i] for i in (0, 1, 3)], 0  # no response occurs in two of them
    for step in range(6):
        picks = _picks(step, 3, 4)
        neighbours += int((picks == np.roll(picks, 1)).sum())
        batch = offline_batch(config, encoder, three, step)
        own, other = (np.asarray(x.tokens_BT)[:, 48:] for x in (batch.rows, batch.mismatched))
        assert (own != other).any(axis=1).all()
    assert neighbours


@pytest.mark.parametrize(("contrast", "sign"), [("prompts", 1), ("system", -1)])
def test_the_target_policy_is_the_renormalised_contrast(base, trained, encoder, contrast, sign):
    """The other rows stand under the worse condition; with a system prompt, under the better."""
    config = _config("inverse_q", inverse_q__contrast=contrast, inverse_q__clip=0.4)
    strength = config.inverse_q.strength = 1.5
    examples = EXAMPLES[:2] + EXAMPLES[3:]  # one response on both sides
    config.offline.batch_size = len(examples)
    batch = offline_batch(config, encoder, examples, 0)
    loss, metrics = _loss(config, base, trained, batch)
    full, errors, clipped = merge_trainable(base, trained, SPEC.first_trainable_layer), [], 0
    for good, bad in examples:
        prompts = [chat_prompt(TOKENIZER, side.prompt) for side in (good, bad)]
        (ref, table), (_, other) = (_token_logprobs(base, p, good.response) for p in prompts)
        scores = table + sign * strength * (table - other)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        ids = TOKENIZER(good.response)["input_ids"] + [TOKENIZER.eos_token_id]
        raw = scores[np.arange(len(ids)), ids] - ref
        clipped += (np.abs(raw) > 0.4).sum()
        policy, _ = _token_logprobs(full, prompts[0], good.response)
        errors += list(policy - ref - np.clip(raw, -0.4, 0.4))
    assert float(loss) == pytest.approx(0.5 * np.mean(np.square(errors)), rel=1e-3)
    assert float(metrics["invq/clip_fraction"]) == pytest.approx(clipped / len(errors), abs=1e-6)
    assert clipped


@pytest.mark.parametrize("method", ["sft", "kto", "orpo", "inverse_q"])
def test_a_batch_in_microbatches_has_the_loss_and_gradient_of_the_whole(
    base, trained, encoder, method
):
    """Token counts differ between microbatches, and KTO's reference point is of the whole batch."""
    results = []
    for parts in (1, 2):
        config = _config(method, offline__accumulate=parts, inverse_q__contrast="prompts")
        if method == "inverse_q":
            pair = EXAMPLES[:2] + EXAMPLES[3:] + EXAMPLES[:1]
            batch = offline_batch(config, encoder, pair, 0)
        else:
            batch = _batch(config, encoder)
        step = jax.jit(
            jax.value_and_grad(
                lambda trained, batch, config=config: _loss(config, base, trained, batch)[0]
            )
        )
        results.append(step(trained, batch))
    (loss, whole), (again, joined) = results
    assert float(again) == pytest.approx(float(loss), rel=1e-6)
    for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
        # Order of float32 sums.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_narrow_batch_has_the_loss_of_the_wide_one(base, trained, encoder, method):
    config = _config(method)
    narrow = dataclasses.replace(encoder, lengths=(0,) * len(EXAMPLES), widths=(64, 72))
    bucketed = offline_batch(config, narrow, EXAMPLES, 0)
    batch, width = bucketed.batch, bucketed.width
    cut = cut_batch(batch, width)
    assert cut.rows.tokens_BT.shape[1] == width < batch.rows.tokens_BT.shape[1]
    wide, found = (_loss(config, base, trained, x) for x in (batch, cut))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), wide, found)


def test_examples_of_a_round_are_cut_by_length(encoder):
    config = _config("sft", offline__batch_size=4, offline__length_buckets=2)
    lengths = tuple(np.random.default_rng(1).permutation(26).tolist())
    config.offline.steps_per_round = 10  # more than an epoch of 26 has
    narrow = dataclasses.replace(encoder, lengths=lengths, widths=(16, 32))
    for first in (0, 6):  # 6 batches of 4 from 26
        picks = [drawn(config, narrow, 26, first + i) for i in range(6)]
        plain = [_picks(first + i, 26, 4) for i in range(6)]
        assert sorted(np.concatenate(picks)) == sorted(np.concatenate(plain))
        spans = sorted((np.array(lengths)[p].min(), np.array(lengths)[p].max()) for p in picks)
        assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:], strict=False))
        assert [tuple(p) for p in picks] != sorted(tuple(p) for p in picks)
        np.testing.assert_array_equal(picks[3], drawn(config, narrow, 26, first + 3))
    for step in range(8):
        np.testing.assert_array_equal(drawn(config, encoder, 26, step), _picks(step, 26, 4))


def test_a_curriculum_draws_from_the_first_examples_first(encoder):
    config = _config("dpo", offline__batch_size=2, data__curriculum=0.5, data__curriculum_start=0.5)
    config.rounds, config.offline.steps_per_round = 2, 10
    drawn = [set(map(bytes, offline_batch(config, encoder, EXAMPLES, step).rows.tokens_BT))
             for step in range(20)]  # fmt: skip
    easy, every = (set(map(bytes, encoder.rows([s for e in part for s in e]).tokens_BT))
                   for part in (EXAMPLES[:2], EXAMPLES))  # fmt: skip
    # 2 of 4 at the start, 3 until step 5, all of them after half of the 20 updates.
    assert drawn[0] == easy
    assert set().union(*drawn[1:6]) < every
    assert set().union(*drawn[10:]) == every


def test_examples_that_do_not_fit_are_left_out_or_refused_with_the_key(encoder):
    config = _config("dpo", offline__batch_size=2, offline__max_response_tokens=8)
    kept, made = fit(config, encoder.models, EXAMPLES, ())
    # "A longer tale of it" takes 19 tokens and its end.
    assert kept == [EXAMPLES[0], EXAMPLES[1], EXAMPLES[3]]
    assert (made.prompt_width, made.response_width) == (40, 8)
    assert made.widths == ()
    config.offline.length_buckets = 8
    kept, made = fit(config, encoder.models, EXAMPLES, ())
    real = [made.rows(list(sides)).mask_BT.sum(axis=1).max() for sides in kept]
    # Multiples of 8, of which so many lie between the shortest example and the longest.
    assert list(made.lengths) == real == [39, 35, 31]
    assert made.widths == (32, 40)
    # A text that was cut off has no end to learn.
    _, made = fit(config, encoder.models, EXAMPLES, ("Green",))
    whole = made.rows([Side("Say hi.", text, 0.0) for text in ("Green", "Hi!")])
    assert (whole.tokens_BT == TOKENIZER.eos_token_id).sum(1).tolist() == [0, 1]
    config.data.max_prompt_tokens = 12
    with pytest.raises(ValueError, match=r"only 0 of 4 examples fit.*max_prompt_tokens, here 12"):
        fit(config, encoder.models, EXAMPLES, ())


def test_the_reference_gets_no_gradient_and_bf16_steps_keep_float32_weights(base, encoder):
    config = _config("dpo")
    config.offline.optim.warmup_steps = 0
    spec = dataclasses.replace(SPEC, config=dataclasses.replace(CONFIG, dtype="bfloat16"))
    optimizer = make_optimizer(config.offline.optim, learning_rate(config.offline.optim, 10))
    start = split_trainable(base, SPEC.first_trainable_layer, train_embeddings=False)
    step = make_offline_step(spec, config, optimizer)
    kept = jax.tree.map(np.array, base)
    network = TrainState.create(start, optimizer)
    for _ in range(2):
        network, metrics = step(network, _batch(config, encoder), base)
    assert np.isfinite(float(metrics["policy/loss"])) and float(metrics["policy/grad_norm"]) > 0
    moved = zip(jax.tree.leaves(network.params), jax.tree.leaves(reference_part(SPEC, base)))
    for after, before in moved:
        assert after.dtype == jnp.float32
        assert (np.asarray(after) != np.asarray(before)).any()
    # 5e-6 a step: updates that bfloat16 weights would have rounded away.
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.array, base))
