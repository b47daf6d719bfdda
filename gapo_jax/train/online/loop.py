"""The loop of GAPO and of the other methods that learn from their own samples: rounds of rollout,
judge, learn.

One generation pass a round feeds both players (GAPO, Algorithm 1): the discriminator is updated
on preferential prompts and on the new text, the policy on the rewards that one snapshot of the
discriminator gives. The other methods (ppo, rloo, grpo, reinforce_pp, rpo_online) leave the
discriminator as the warm-up made it, or, with `reward.source="verifier"`, never ask it.

`step` in metrics.jsonl counts policy updates; every line of a round carries the count at the end
of that round, so a continued run knows which lines its checkpoint has not seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from gapo_jax.config.online import asks_discriminator, is_adversarial
from gapo_jax.train.discriminator.batches import GeneratedText, is_accepted
from gapo_jax.train.discriminator.update import evaluate_pairs, longest_text, prime, warmup_epoch
from gapo_jax.train.metrics import progress
from gapo_jax.train.online.phases import (
    TrainContext,
    build_round_experience,
    check_kl,
    compute_rewards,
    evaluate_during,
    next_kl_coef,
    pairs_in_use,
    score_policy,
    select_rows,
    take_rows,
    update_discriminator,
    update_policy,
)
from gapo_jax.train.online.rollout import Sampled, sample_round
from gapo_jax.train.runtime import RunInterrupted, RunStopped
from gapo_jax.train.state import GAPOState, copy_tree

_norm = jax.jit(optax.tree.norm)


def warmup(ctx: TrainContext, state: GAPOState) -> GAPOState:
    """Train the discriminator on pairs alone, for `warmup_epochs` epochs (Algorithm 1, part 1).

    Raises:
        RunInterrupted: a signal asked for a stop. Nothing is saved, as all of it is a function of
            the seed.
        RunStopped: the discriminator is not finite; nothing is saved.
    """
    settings, network = ctx.config.discriminator, state.discriminator
    key = jax.random.fold_in(state.key, 4)
    steps, tokenizer = ctx.training.steps, ctx.models.disc_tokenizer
    steps = dataclasses.replace(steps, disc_update=stoppable(ctx, steps.disc_update))
    for epoch in range(settings.warmup_epochs):
        # In the rounds of an adversarial method the curriculum goes on.
        done = 0.0 if is_adversarial(ctx.config) else epoch / settings.warmup_epochs
        with ctx.clock("warmup"):
            network, metrics = warmup_epoch(
                network,
                steps,
                tokenizer,
                ctx.pairs.compared,
                settings,
                seed=ctx.config.seed,
                epoch=epoch,
                key=key,
                in_use=pairs_in_use(ctx, done),
                progress=lambda batches: progress(batches, "discriminator warm-up"),
            )
            check_warmup(metrics, network.params, epoch)
            metrics |= evaluate_pairs(steps, network.params, tokenizer, ctx.pairs.heldout, settings)
        metrics["time/warmup_s"] = ctx.clock.last["warmup"]
        ctx.writer.write(0, 0, "warmup", metrics)
    average = None if state.judge is None else copy_tree(network.params)
    return state.replace(discriminator=network, judge=average)


def stoppable(ctx: TrainContext, update: Callable[..., Any]) -> Callable[..., Any]:
    """Return an update that first stops the run (RunInterrupted) if a signal asked for it.

    It waits for the update before its own: on a CPU, XLA takes 16 of them ahead, and all would have
    to end before the process can. The next batch is tokenised meanwhile all the same.
    """
    last: Any = None

    def step(*inputs: Any) -> Any:
        nonlocal last
        jax.block_until_ready(last)
        if asked := ctx.asked_to_stop():
            raise RunInterrupted(asked)
        network, last = update(*inputs)
        return network, last

    return step


def check_warmup(metrics: dict[str, float], params: Any, epoch: int) -> None:
    """Raise RunStopped when the discriminator is not finite after an epoch of its warm-up.

    The weights are asked too, as what the last update makes of them is in no loss yet.
    """
    found = {name: metrics[name] for name in ("disc/loss", "disc/grad_norm")}
    found["the norm of the weights"] = float(_norm(params))
    for name, value in found.items():
        if not math.isfinite(value):
            raise RunStopped(
                f"{name} is {value} in epoch {epoch + 1} of the discriminator's warm-up; lower "
                "config.discriminator.optim.learning_rate"
            )


def write_samples(
    ctx: TrainContext, round_index: int, sampled: Sampled, logits_B: np.ndarray | None
) -> None:
    """Append the round's responses with score and verdicts to samples.jsonl."""
    step = round_index * ctx.updates_per_round
    for i, (row, verdict) in enumerate(zip(sampled.rows, sampled.verdicts, strict=True)):
        ctx.writer.sample(
            {
                "step": step,
                "round": round_index,
                "prompt": row.prompt,
                "constraints": [constraint.to_json() for constraint in row.constraints],
                "response": sampled.generated.texts[i],
                "score": None if logits_B is None else float(logits_B[i]),
                "rule_reward": float(sampled.rules_B[i]),
                "verdicts": list(verdict.strict),
            }
        )


def one_round(ctx: TrainContext, state: GAPOState, index: int) -> GAPOState:
    """Play round `index` (from 0): rollout, verify, judge, score, learn.

    Raises:
        RunInterrupted: a signal asked for a stop, and the last round boundary is saved.
        RunStopped: KL or a loss left its bounds.
    """
    number, config = index + 1, ctx.config
    step = number * ctx.updates_per_round
    with ctx.clock("rollout"):
        sampled = sample_round(ctx, state, index)
        texts = sampled.generated.texts
        fresh = [
            GeneratedText(row.prompt, text, is_accepted(config.discriminator, verdict), number)
            for row, text, verdict in zip(sampled.rows, texts, sampled.verdicts, strict=True)
        ]
    metrics = sampled.metrics | throughput(sampled.tokens, ctx.clock.last["rollout"])
    ctx.stop_if_asked(index)

    judged: dict[str, float] = {}
    judge_first = config.discriminator.score_with != "pre"
    if judge_first:
        state, judged = judge(ctx, state, fresh, index)
    with ctx.clock("score"):
        state, logits_B, rewards_B = compute_rewards(
            ctx, state, fresh, sampled.generated.rollout, sampled.rules_B
        )
        chosen = select_rows(rewards_B, config.ppo.samples_per_prompt, config.ppo.train_samples)
    with ctx.clock("experience"):
        rollout = take_rows(sampled.generated.rollout, chosen)
        scored = score_policy(ctx, state, rollout)
        write_samples(ctx, number, sampled, logits_B)  # while the device scores
        check_kl(config, scored, rollout.response_mask_BR, index)
    ctx.stop_if_asked(index)
    if not judge_first:
        state, judged = judge(ctx, state, fresh, index)

    learn_B = sampled.learn_B[chosen]
    experience, found = build_round_experience(
        ctx, state, rollout, scored, rewards_B[chosen], learn_B
    )
    metrics |= found
    if logits_B is not None:
        metrics["reward/score_mean"] = float(logits_B.mean())
    metrics |= {
        f"time/{name}_s": ctx.clock.last[name] for name in ("rollout", "experience", "score")
    }
    ctx.writer.write(step, number, "rollout", metrics)
    if judged:
        ctx.writer.write(step, number, "discriminator", judged)

    with ctx.clock("policy"):
        state, learned = update_policy(ctx, state, experience, scored, index)
        state = next_kl_coef(config, state, found["kl/ref"], len(chosen))
    learned |= {
        "kl/coef": float(state.kl_coef),
        "time/policy_s": ctx.clock.last["policy"],
        "device/wait": device_wait(ctx, sampled.generated.device_s),
    }
    ctx.writer.write(step, number, "policy", learned)
    return state.replace(round=state.round + 1)


def judge(
    ctx: TrainContext, state: GAPOState, fresh: Sequence[GeneratedText], index: int
) -> tuple[GAPOState, dict[str, float]]:
    """Update the discriminator, unless the method keeps it frozen."""
    if not is_adversarial(ctx.config):
        return state, {}
    with ctx.clock("discriminator"):
        state, metrics = update_discriminator(ctx, state, fresh, index)
    return state, metrics | {"time/discriminator_s": ctx.clock.last["discriminator"]}


def throughput(tokens: tuple[int, int], seconds: float) -> dict[str, float]:
    """Return new tokens a second, real ones and those with the padding counted."""
    return {
        "throughput/real_tokens_per_s": tokens[0] / seconds,
        "throughput/padded_tokens_per_s": tokens[1] / seconds,
    }


def device_wait(ctx: TrainContext, sampling_s: float) -> float:
    """Return the share of a round in which only the host worked: text decoded and verified. In the
    other phases batches are tokenised and text is written while the device computes."""
    last = ctx.clock.last
    names = ("rollout", "score", "experience", "policy")
    names += ("discriminator",) if is_adversarial(ctx.config) else ()
    total = sum(last[name] for name in names)
    return (last["rollout"] - sampling_s) / total


def maybe_evaluate(ctx: TrainContext, state: GAPOState, finished: int) -> None:
    """Measure the policy by rule on held-out prompts, if it is due after `finished` rounds."""
    every = ctx.config.eval.every_rounds
    if not every or finished % every or finished == ctx.config.rounds:
        return
    if ctx.config.method == "discriminator":  # the policy is the one that was measured before
        return
    with ctx.clock("eval"):
        metrics = evaluate_during(ctx, state)
    metrics["time/eval_s"] = ctx.clock.last["eval"]
    ctx.writer.write(finished * ctx.updates_per_round, finished, "eval", metrics)


def train(ctx: TrainContext, state: GAPOState) -> GAPOState:
    """Play all rounds that are left, saving at round boundaries; return the final state.

    Raises:
        RunInterrupted: asked to stop by a signal; everything needed to continue is saved.
        RunStopped: the run stopped itself; the last good round boundary, if there is one, is
            saved.
    """
    config, steps, tokenizer = ctx.config, ctx.training.steps, ctx.models.disc_tokenizer
    judged = asks_discriminator(config)
    if judged:
        with ctx.clock("compile"):
            longest = longest_text(
                tokenizer,
                [*ctx.pairs.compared, *ctx.pairs.heldout],
                [row.prompt for row in ctx.prompts.train],
                config.sampling.max_new_tokens,
                config.discriminator,
            )
            prime(state.discriminator, steps, tokenizer, config.discriminator, state.key, longest)
    if ctx.last_saved is None:
        if judged:
            state = warmup(ctx, state)
        ctx.save(state, 0)
    return run_rounds(ctx, state, one_round)


def host_copy(state: GAPOState) -> GAPOState:
    """Return a copy in the memory of the host, in the same shards on every process."""

    def copy(leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))

    return jax.tree.map(copy, state)


def run_rounds(
    ctx: TrainContext,
    state: GAPOState,
    one_round: Callable[[TrainContext, GAPOState, int], GAPOState],
) -> GAPOState:
    """Play the rounds that are left by `one_round(run, state, index)`, saving at their boundaries.

    Raises:
        RunInterrupted, RunStopped: as `train`.
    """
    config = ctx.config
    for index in progress(range(int(state.round), config.rounds), "rounds"):
        ctx.stop_if_asked(index)
        # The updates of a round take the memory of this state.
        boundary = None if ctx.last_saved == index else host_copy(state)
        store = ctx.store
        try:
            state = one_round(ctx, state, index)
        except RunStopped as stopped:
            if boundary is not None:
                ctx.store = store
                ctx.save(boundary, index)
            ctx.checkpointer.wait()
            stopped.saved = index
            raise
        maybe_evaluate(ctx, state, index + 1)
        if ctx.asked_to_stop() or (index + 1) % config.checkpoint.every_rounds == 0:
            ctx.save(state, index + 1)
    ctx.save(state, config.rounds)
    ctx.stop_if_asked(config.rounds)
    return state
