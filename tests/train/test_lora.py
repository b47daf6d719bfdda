"""Training of adapters alone, and of what `config.model.freeze` leaves."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import config as configuration
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.models import Decoder, DecoderConfig, load_adapter, save_adapter, save_hf
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.sharding import PARAMETER_AXES, make_mesh, param_shardings
from gapo_jax.train import forward
from gapo_jax.train.build import build_models, build_steps, initial_state
from gapo_jax.train.online.steps import PolicyBatch, policy_step
from gapo_jax.train.optimizers import make_optimizer, path_name
from gapo_jax.train.restore import load_any, load_trained_adapters
from gapo_jax.train.state import TrainState, merge_trainable, split_trainable, start_policy
from gapo_jax.train.toy_models import TINY
from gapo_jax.types import Experience, Rollout

PROMPT, RESPONSE, TEMPERATURE = 5, 4, 0.7
DECODER = DecoderConfig(
    vocab_size=31, num_layers=3, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24
)
SMOLLM2 = DecoderConfig(
    vocab_size=49152, num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, head_dim=64,
    d_ff=1536,
)  # fmt: skip


def _config(**lora):
    config = configuration.Config()
    for name, value in {"rank": 3, "alpha": 6.0, **lora}.items():
        setattr(config.lora, name, value)
    config.ppo.optim.learning_rate = 1e-2
    config.ppo.optim.weight_decay = 0.1
    return config


def _spec(first):
    return forward.PolicySpec(DECODER, first, TEMPERATURE, 3, "reference", 8)


@pytest.fixture(scope="module")
def base(distinct_weights):
    return distinct_weights(DECODER)


@pytest.fixture(scope="module")
def experience():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 31, (3, PROMPT + RESPONSE)).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[0, :2] = mask[2, :4] = 0
    mask[1, -2:] = 0
    shape = (3, RESPONSE)
    names = ("ref_logprobs_BR", "values_BR", "advantages_BR", "returns_BR")
    return Experience(
        tokens_BT=jnp.asarray(tokens),
        mask_BT=jnp.asarray(mask),
        response_mask_BR=jnp.asarray(mask[:, PROMPT:]),
        old_logprobs_BR=jnp.full(shape, -3.0),
        **{name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in names},
    )


def _rollout(experience):
    return Rollout(
        experience.tokens_BT,
        experience.mask_BT,
        experience.response_mask_BR,
        experience.old_logprobs_BR,
    )


def _moved(tree, scale=0.3):
    keys = iter(jax.random.split(jax.random.key(9), 100))
    return jax.tree.map(lambda x: x + scale * jax.random.normal(next(keys), x.shape), tree)


def _updated(base, experience, config, first, count=3):
    """The network after `count` policy steps, and what it started from."""
    trained = start_policy(base, first, config, jax.random.key(3))
    optimizer = make_optimizer(config.ppo.optim, lambda _: config.ppo.optim.learning_rate)
    network = TrainState.create(trained, optimizer)
    spec = _spec(first)

    @jax.jit
    def step(network):
        batch = PolicyBatch(experience, None)
        return policy_step(network, batch, base, spec=spec, config=config, optimizer=optimizer)

    for _ in range(count):
        network, metrics = step(network)
    return trained, network, metrics


@pytest.fixture(scope="module", params=[0, 1])
def score(request):
    """(lowest adapted layer, jitted scoring of (base, trained, critic, rollout))."""

    def score(base, trained, critic, rollout):
        networks = forward.PolicyNetworks(base, trained, critic)
        return forward.score_rollout(networks, rollout, spec=_spec(request.param))

    return request.param, jax.jit(score)


@pytest.fixture(scope="module")
def plain_logprobs():
    """Jitted log-probs [B, R] of a whole tree, by the decoder itself."""

    @jax.jit
    def run(params, rollout):
        logits = Decoder(DECODER).apply({"params": params}, rollout.tokens_BT, rollout.mask_BT)
        length = rollout.response_mask_BR.shape[1]
        logprobs = jax.nn.log_softmax(logits[:, -length - 1 : -1] / TEMPERATURE)
        targets = rollout.tokens_BT[:, -length:, None]
        return jnp.take_along_axis(logprobs, targets, -1)[..., 0]

    return run


def test_before_the_first_update_the_policy_is_the_base_bit_for_bit(base, experience, score):
    first, run = score
    trained = start_policy(base, first, _config(), jax.random.key(3))
    critic = forward.init_critic(_spec(first), base, jax.random.key(1))
    scored = run(base, trained, critic, _rollout(experience))
    np.testing.assert_array_equal(scored.old_logprobs_BR, scored.ref_logprobs_BR)
    merged = merge_trainable(base, trained, first)
    jax.tree.map(np.testing.assert_array_equal, merged, dict(base))


def test_adapters_beside_the_matrices_equal_adapters_inside(
    base, experience, score, plain_logprobs
):
    (first, run), rollout = score, _rollout(experience)
    trained = _moved(start_policy(base, first, _config(), jax.random.key(3)))
    critic = forward.init_critic(_spec(first), base, jax.random.key(1))
    scored = run(base, trained, critic, rollout)
    real = np.asarray(rollout.response_mask_BR) > 0
    got, reference = (np.asarray(x)[real] for x in (scored.old_logprobs_BR, scored.ref_logprobs_BR))
    assert np.abs(got - reference).max() > 0.1
    merged = merge_trainable(base, trained, first)
    want = np.asarray(plain_logprobs(merged, rollout))[real]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # The reference is the base with adapters off.
    want = np.asarray(plain_logprobs(base, rollout))[real]
    np.testing.assert_allclose(reference, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [1], indirect=True)
def test_what_is_sampled_with_merged_weights_has_the_training_forwards_logprobs(base, score):
    first, run = score
    trained = _moved(start_policy(base, first, _config(), jax.random.key(3)))
    sample = make_sampler(Decoder(DECODER), max_new_tokens=RESPONSE, eos_ids=(2,), pad_id=0)
    tokens = jnp.asarray([[0, 0, 5, 6, 9], [7, 8, 9, 10, 11], [0, 8, 9, 10, 11]], jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    merged = merge_trainable(base, trained, first)
    rollout = sample(merged, tokens, (tokens > 0).astype(jnp.int32), keys, TEMPERATURE)
    critic = forward.init_critic(_spec(first), base, jax.random.key(1))
    got = run(base, trained, critic, rollout).old_logprobs_BR
    real = np.asarray(rollout.response_mask_BR) > 0
    np.testing.assert_allclose(
        np.asarray(got)[real], np.asarray(rollout.logprobs_BR)[real], atol=1e-4
    )


def test_updates_reach_the_adapters_and_nothing_else(base, experience):
    first = 2
    before = jax.tree.map(np.array, base)
    config = _config(targets=("q", r"mlp/(up|down)"))
    start, network, metrics = _updated(base, experience, config, first)
    jax.tree.map(np.testing.assert_array_equal, base, before)
    names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(network.params)}
    assert names == {
        f"lora/layers/{path}/{letter}"
        for path in ("attn/q", "mlp/up", "mlp/down")
        for letter in "ab"
    }
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, network.params)
    assert all(jax.tree.leaves(moved))
    assert float(metrics["policy/grad_norm"]) > 0
    # Two moments of the adapters, and counters.
    sizes = [leaf.size for leaf in jax.tree.leaves(network.opt_state) if leaf.size > 1]
    assert sum(sizes) == 2 * sum(leaf.size for leaf in jax.tree.leaves(network.params))
    merged = merge_trainable(base, network.params, first)
    for path in ("attn/k", "mlp/gate"):
        group, name = path.split("/")
        np.testing.assert_array_equal(
            merged["layers"][group][name]["kernel"], base["layers"][group][name]["kernel"]
        )
    np.testing.assert_array_equal(
        merged["layers"]["attn"]["q"]["kernel"][:first],
        base["layers"]["attn"]["q"]["kernel"][:first],
    )


def test_a_train_step_forms_no_product_of_the_size_of_a_matrix(base, experience):
    """Neither W + A B nor the gradient of W; without adapters there is the latter."""
    rollout = _rollout(experience)
    matrices = {"16,16", "16,8", "8,16", "16,24", "24,16"}

    def products(config):
        trained = start_policy(base, 0, config, jax.random.key(3))
        loss = lambda x: forward.response_logprobs(_spec(0), base, x, rollout)[0].sum()  # noqa: E731
        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(trained))
        return set(re.findall(r"f32\[([\d,]+)\] = dot_general", jaxpr))

    assert {"16,16", "24,16"} <= products(_config(rank=0))
    found = products(_config())
    assert {"16,3", "3,16"} <= found
    assert not matrices & found
    assert not any(shape.endswith(tuple(matrices)) for shape in found)


def test_freezing_by_regex_holds_what_it_finds_and_moves_the_rest(base, experience):
    config = _config(rank=0)
    config.model.freeze = r"layers/mlp/|norm|attn/[qk]/"
    config.model.train_embeddings = True
    before = jax.tree.map(np.array, base)
    start, network, _ = _updated(base, experience, config, first=0)
    after = merge_trainable(base, network.params, 0)
    moved = jax.tree.map(lambda old, new: bool((old != np.asarray(new)).any()), before, after)
    paths = jax.tree_util.tree_leaves_with_path(moved)
    assert {path_name(path) for path, changed in paths if changed} == {
        "layers/attn/v/kernel", "layers/attn/o/kernel", "embed/embedding",
    }  # fmt: skip
    # What is frozen is not even copied.
    assert len(jax.tree.leaves(start)) == 3
    upper = split_trainable(base, 1, False, config.model.freeze)
    assert [leaf.shape[0] for leaf in jax.tree.leaves(upper)] == [2, 2]
    merged = merge_trainable(base, upper, 1)
    jax.tree.map(np.testing.assert_array_equal, merged, before)


@pytest.mark.parametrize(("freeze", "wanted"), [("mlpp", "none"), (".", "every one")])
def test_freezing_nothing_or_everything_is_an_error(base, freeze, wanted):
    with pytest.raises(ValueError, match=f"finds {wanted} of the parameters"):
        split_trainable(base, 0, False, freeze)


@pytest.mark.parametrize(
    ("lora", "wanted"),
    [
        ({"targets": ("gatee",)}, "did you mean 'gate'"),
        ({"targets": (r"attn/z",)}, "there are"),
        ({"rank": 16}, "0 < config.lora.rank < 8 for attn/k"),
    ],
)
def test_adapters_that_cannot_be_are_refused(base, lora, wanted):
    with pytest.raises(ValueError, match=wanted):
        start_policy(base, 0, _config(**lora), jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"lora.targets": ("mlp/(up",)}, "config.lora.targets must be a regular expression"),
        (
            {"model.freeze": "a[", "lora.rank": 0},
            "config.model.freeze must be a regular expression",
        ),
        ({"model.freeze": "mlp"}, "config.model.freeze='mlp' has no meaning"),
        ({"model.train_embeddings": True}, "config.model.train_embeddings=True has no meaning"),
        ({"lora.targets": ()}, "config.lora.targets is empty"),
        ({"lora.rank": -1}, "config.lora.rank must lie in"),
    ],
)
def test_contradictions_are_found_before_anything_is_loaded(change, wanted):
    config = _config()
    for path, value in change.items():
        section, name = path.split(".")
        setattr(getattr(config, section), name, value)
    with pytest.raises(ValueError) as caught:
        configuration.finalize(config)
    assert wanted in str(caught.value)


def test_the_state_of_a_policy_at_smollm2_size_shrinks_to_a_part_in_forty():
    """Parameters and moments beside the base, by shapes alone; see the README for what XLA adds."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    base = jax.eval_shape(Decoder(SMOLLM2).init, jax.random.key(0), tokens, tokens)["params"]

    def size(config):
        optimizer = make_optimizer(config.ppo.optim, lambda _: 1e-5)
        make = lambda base: TrainState.create(  # noqa: E731
            start_policy(base, 0, config, jax.random.key(0)), optimizer
        )
        return sum(leaf.size * 4 for leaf in jax.tree.leaves(jax.eval_shape(make, base)))

    full, low = size(_config(rank=0)), size(_config(rank=8))
    assert full == pytest.approx(1.274e9, rel=0.01)
    assert low < full / 40


def test_adapters_have_a_place_on_the_mesh(base):
    trained = start_policy(base, 0, _config(), jax.random.key(3))
    shardings = param_shardings(make_mesh(), trained, table=PARAMETER_AXES)
    assert len(jax.tree.leaves(shardings)) == 14


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run that trained adapters of the upper layers; its models and state."""
    workdir = tmp_path_factory.mktemp("run")
    config = _config(rank=4, targets=("v", "down"))
    config.model.generator = config.model.discriminator = TINY
    config.model.trainable_layers = 2
    config = configuration.finalize(config)
    (workdir / "config.json").write_text(json.dumps(configuration.to_json(config)))
    models = build_models(config)
    state = initial_state(config, models, build_steps(config, models, num_pairs=7))
    policy = state.policy.replace(params=_moved(state.policy.params))
    state = state.replace(policy=policy)
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        checkpointer.save(1, state, {}, wait=True)
    return workdir, models, state


def test_a_checkpoint_holds_the_adapters_and_gives_them_back(run, tmp_path):
    workdir, models, state = run
    decoder, adapters, base, method = load_trained_adapters(workdir)
    assert (decoder, base, method) == (models.decoder, TINY, "gapo")
    jax.tree.map(np.testing.assert_array_equal, adapters, state.policy.params["lora"])
    # The whole weights come merged: straight from the run, and by way of PEFT's format.
    merged = merge_trainable(
        models.ref_params, state.policy.params, models.spec.first_trainable_layer
    )
    jax.tree.map(np.testing.assert_array_equal, load_any(workdir).params, merged)
    save_hf(decoder, models.ref_params, tmp_path / "base", models.tokenizer)
    save_adapter(decoder, adapters, tmp_path / "adapter", base=str(tmp_path / "base"))
    jax.tree.map(np.testing.assert_array_equal, load_any(tmp_path / "adapter").params, merged)
    again, first = load_adapter(tmp_path / "adapter", decoder)
    assert (first, again.alpha) == (models.spec.first_trainable_layer, 6.0)


def test_exporting_an_adapter_of_what_has_none_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="config.lora.rank above 0"):
        load_trained_adapters(tmp_path)
    _, models, state = run
    save_adapter(models.decoder, state.policy.params["lora"], tmp_path / "adapter")
    with pytest.raises(ValueError, match="Give --base"):
        load_any(tmp_path / "adapter")
