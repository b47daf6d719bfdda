"""Rounds of the online methods in one process: what moves, and what GAPO adds to PPO."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.checkpoint import Checkpointer
from gapo_jax.config import Config, finalize
from gapo_jax.config.presets import tiny
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.methods import METHODS as REGISTRY
from gapo_jax.methods import has_critic, method_of
from gapo_jax.rollout.generate import ended_rows
from gapo_jax.train import rounds
from gapo_jax.train.build import build_models, build_steps, initial_state, policy_spec
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.self_generated import (
    bootstrap,
    ended_responses,
    make_all_prompts,
    make_pairs,
)
from gapo_jax.train.metrics import MetricsWriter, read_metrics
from gapo_jax.train.online.loop import gapo_round
from gapo_jax.train.online.rollout import (
    informative,
    rollout_widths,
    rule_rewards,
    sample_rollout,
)
from gapo_jax.train.online.sft_batches import make_sft_batches
from gapo_jax.train.restore import restore_state
from gapo_jax.train.runtime import Processes, StopRequest
from gapo_jax.train.state import relative_change

# Those of the configurations that are cases here.
METHODS = tuple(name for name, method in REGISTRY.items() if method.loop == "online")
PROCESS = ("time", "throughput/", "compile/", "device/")  # metrics of the process, not of the run


def _small(config, disc_updates=1):
    config.data.prompts = config.eval.prompts_per_set = 16
    updates = config.discriminator.updates_per_round
    config.discriminator.updates_per_round = min(disc_updates, updates)
    config.eval.every_rounds = 0
    return finalize(config)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models, prompts and pairs, which all configurations here share."""
    workdir = tmp_path_factory.mktemp("world")
    config = _small(tiny("ppo"))
    models = build_models(config)
    prompts = make_all_prompts(config, models)
    pairs = make_pairs(
        config, prompts.type_ids, bootstrap(config, models, prompts, workdir), workdir
    )
    return workdir, models, prompts, pairs


def _context(world, config, workdir, pairs=None):
    folder, models, prompts, common_pairs = world
    pairs = pairs or common_pairs
    if config.model.dtype != "float32" or config.discriminator.dropout:
        models = build_models(config)
    spec = policy_spec(config, models.decoder.config, models.spec.place)
    models = dataclasses.replace(models, spec=spec)
    widths = rollout_widths(config, models, prompts)
    return TrainContext(
        config=config,
        workdir=workdir,
        models=models,
        steps=build_steps(config, models, len(pairs.train), widths),
        prompts=prompts,
        pairs=pairs,
        widths=widths,
        sft_batches=(
            make_sft_batches(config, models, pairs.train, folder) if config.ppo.sft_coef else None
        ),
        processes=Processes(),
        verifiers=VerifierPool(),
        stop=StopRequest(),
        clock=PhaseClock(),
        writer=MetricsWriter(workdir),
        checkpointer=Checkpointer(workdir / "checkpoints", keep=2),
    )


def _start(ctx):
    return initial_state(ctx.config, ctx.models, ctx.steps)


def _run(ctx, state, last):
    """Run the rounds that are left up to `last`, saving after each."""
    config = dataclasses.replace(ctx.config, rounds=last)
    return rounds.run_rounds(dataclasses.replace(ctx, config=config), state, gapo_round)


def _close(ctx):
    ctx.writer.close()
    ctx.checkpointer.close()


def _same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_two_rounds_and_the_second_once_more(world, case, smallest, tmp_path):
    """What moves and what does not; continued after the first round, the second is the same."""
    config = smallest(*case)
    ctx = _context(world, config, tmp_path)
    start, trained = _start(ctx), ["policy"]
    adversary = method_of(config).adversarial and config.discriminator.updates_per_round > 0
    trained += ["discriminator"] if adversary else []
    if has_critic(config):
        trained.append("critic")
    else:
        # No critic: no parameters, no optimiser, no compiled step, no pass.
        assert start.critic is None and ctx.steps.critic is None
        assert "critic" not in ctx.steps.optimizers
    base = jax.tree.map(np.asarray, ctx.models.ref_params)
    state, metrics = gapo_round(ctx, _start(ctx), 0)
    assert len(state.replay) > 0 or not adversary
    state = rounds.save(ctx, state.replace(round=state.round + 1), 1)
    ctx.checkpointer.wait()
    straight = jax.tree.map(_bits, gapo_round(ctx, state, 1)[0])
    restored, _ = restore_state(ctx.checkpointer, _start(ctx))
    assert restored.last_saved == 1
    _same(straight, jax.tree.map(_bits, gapo_round(ctx, restored, 1)[0]))
    _close(ctx)
    for network in trained:
        moved = relative_change(getattr(start, network).params, getattr(straight, network).params)
        assert moved > 0, network
    assert int(straight.policy.step) == 2 * ctx.updates_per_round > 0
    if not adversary:
        _same(jax.tree.map(_bits, start.discriminator), straight.discriminator)
    _same(base, ctx.models.ref_params)
    lines = read_metrics(tmp_path)
    names = set().union(*lines, metrics["policy"])
    assert {"policy/loss", "policy/entropy", "kl/ref", "reward/mean", "reward/rule_mean"} <= names
    absent = {"value/": not has_critic(config), "disc/": not adversary}
    for prefix, wanted in absent.items():
        assert wanted == (not [found for found in names if found.startswith(prefix)]), prefix
    samples = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    asked = config.reward.source != "verifier"
    assert all((sample["score"] is not None) == asked for sample in samples)


def _bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def test_gapo_without_updates_of_its_discriminator_is_ppo_step_for_step(world, tmp_path):
    """The paper's baseline is the same program: bit-equal networks and metrics after two rounds."""
    states, lines = [], []
    for method in ("ppo", "gapo"):
        config = tiny(method)
        config.discriminator.updates_per_round = 0
        ctx = _context(world, _small(config), tmp_path / method)
        states.append(_run(ctx, _start(ctx), 2))
        _close(ctx)
        lines.append([
            {k: v for k, v in line.items() if not k.startswith(PROCESS)}
            for line in read_metrics(tmp_path / method) if line["phase"] in ("rollout", "policy")
        ])  # fmt: skip
    _same(*(jax.tree.map(_bits, state.replace(replay=())) for state in states))
    assert lines[0] == lines[1] and len(lines[0]) == 4
    start = _start(ctx)
    assert relative_change(start.critic.params, states[0].critic.params) > 1e-5
    assert relative_change(start.policy.params, states[0].policy.params) > 1e-5


@pytest.mark.slow
def test_gapo_with_all_its_switches_at_once(world, tmp_path):
    config = tiny("gapo")
    config.ppo.advantage, config.ppo.sft_coef, config.ppo.sft_rows = "rloo", 0.1, 4
    config.reward.source, config.reward.squash = "mix", "sigmoid"
    disc = config.discriminator
    disc.loss, disc.gradient_penalty, disc.score_with = "bradley_terry", 1.0, "ema"
    disc.ema_decay = 0.75
    config.data.preference, config.data.curriculum = "responses", 1.0
    config.ppo.accumulate = disc.accumulate = 2
    # The rate of the first update is 0: the warm-up, which is not played here, starts there.
    config = _small(config, disc_updates=2)
    pairs = make_pairs(config, world[2].type_ids, [], world[0])
    assert all(one[0] == other[0] for one, other in (pair.sides for pair in pairs.compared))
    ctx = _context(world, config, tmp_path, pairs)
    start = _start(ctx)
    state, _ = gapo_round(ctx, _start(ctx), 0)
    _close(ctx)
    for network in ("policy", "discriminator"):
        moved = relative_change(getattr(start, network).params, getattr(state, network).params)
        assert moved > 1e-5, network
    average = jax.tree.map(
        lambda old, new: 0.75 * old + 0.25 * new, start.disc_average, state.discriminator.params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, state.disc_average
    )
    found = {}
    for line in read_metrics(tmp_path):
        found |= line
    assert found["sft/loss"] > 0 and found["disc/gradient_penalty"] > 0
    assert found["disc/pair_margin"] is not None and "value/loss" not in found
    # The easiest quarter, in the first of three rounds.
    assert found["disc/pairs_in_use"] == -(-len(pairs.compared) // 4)


def test_dynamic_sampling_keeps_groups_with_a_signal(world, tmp_path):
    config = tiny("grpo")
    config.reward.source = "verifier"
    config.grpo.variant, config.grpo.dynamic_sampling, config.grpo.max_resamples = "dapo", True, 1
    config.grpo.mask_truncated = True
    config.sampling.stop = ("q", "zu")
    ctx = _context(world, _small(config), tmp_path)
    rollout = sample_rollout(ctx, _start(ctx), 0)
    _close(ctx)
    useful = informative(rollout.rule_rewards_B, 8)
    groups = rollout.metrics["rollout/groups_sampled"]
    assert groups in (4, 8) and len(rollout.rows) == len(rollout.texts) == 32
    assert useful.sum() == min(4, rollout.metrics["rollout/groups_informative"])
    assert groups == 4 or useful.sum() <= 4
    ended = ended_responses(ctx.config, ctx.models, rollout.arrays)
    np.testing.assert_array_equal(rollout.learn_B, np.repeat(useful, 8) & ended)
    np.testing.assert_array_equal(rollout.counted_B, np.repeat(useful, 8))
    # A response that a stop string has ended is whole, and its text goes up to the string.
    assert not any(stop in text for stop in ("q", "zu") for text in rollout.texts)
    assert (ended & ~ended_rows(rollout.arrays, world[1].decoder.config.eos_ids)).any()
    np.testing.assert_array_equal(
        rollout.rule_rewards_B, rule_rewards(ctx.config, rollout.verdicts)
    )
    for row, verdict, text in zip(rollout.rows, rollout.verdicts, rollout.texts):
        assert (row.prompt, text) == (verdict.prompt, verdict.response)


def _verdict(response, *strict):
    return Verdict("k", "p", response, ("x",) * len(strict), strict, strict)


def test_rule_rewards_and_groups_without_a_signal():
    config = Config()
    verdicts = [
        _verdict("A wide blue sea.", True, False),
        _verdict("A wide blue sea.", True, True),
        _verdict("The end. The end. The end. The end.", True, True),
    ]
    np.testing.assert_array_equal(rule_rewards(config, verdicts), [0.5, 1.0, 0.0])
    config.reward.rule = "all"
    np.testing.assert_array_equal(rule_rewards(config, verdicts), [0.0, 1.0, 0.0])
    rules = np.array([0.5, 0.5, 0.0, 1.0, 1.0, 1.0], np.float32)
    assert informative(rules, 2).tolist() == [False, True, False]
