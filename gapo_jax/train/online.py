"""The loop of GAPO and of PPO with a frozen reward model: rounds of rollout, judge, learn.

One generation pass a round feeds both players (GAPO, Algorithm 1): the discriminator is updated
on preferential prompts and on the new text, the policy on the rewards that one snapshot of the
discriminator gives. `config.method="ppo"` leaves the discriminator as the warm-up made it.

`step` in metrics.jsonl counts policy updates; every line of a round carries the count at the end
of that round, so a continued run knows which lines its checkpoint has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from gapo_jax.evaluate.accuracy import Verdict, verify
from gapo_jax.rollout.generate import Generated
from gapo_jax.train.adversary import GeneratedText, is_accepted
from gapo_jax.train.discriminator import evaluate_pairs, prime, warmup_epoch
from gapo_jax.train.interrupt import RunInterrupted, RunStopped
from gapo_jax.train.metrics import progress
from gapo_jax.train.rounds import (
    Run,
    check_kl,
    evaluate_during,
    experience_phase,
    judge_phase,
    learn_phase,
    next_kl_coef,
    rollout_metrics,
    rollout_phase,
    score_phase,
    score_policy,
    select_rows,
    take_rows,
)
from gapo_jax.train.state import RunState
from gapo_jax.types import PromptRow, Rollout


def warmup(run: Run, state: RunState) -> RunState:
    """Train the discriminator on pairs alone, for `warmup_epochs` epochs (Algorithm 1, part 1)."""
    settings, network = run.config.discriminator, state.discriminator
    key = jax.random.fold_in(state.key, 4)
    steps, tokenizer = run.training.steps, run.players.disc_tokenizer
    for epoch in range(settings.warmup_epochs):
        with run.clock("warmup"):
            network, metrics = warmup_epoch(
                network,
                steps,
                tokenizer,
                run.pairs.train,
                settings,
                seed=run.config.seed,
                epoch=epoch,
                key=key,
                progress=lambda batches: progress(batches, "discriminator warm-up"),
            )
            metrics |= evaluate_pairs(steps, network.params, tokenizer, run.pairs.heldout, settings)
        metrics["time/warmup_s"] = run.clock.last["warmup"]
        run.writer.write(0, 0, "warmup", metrics)
        if run.stop:
            raise RunInterrupted(run.stop.signal_name)
    return state.replace(discriminator=network)


def write_samples(
    run: Run,
    round_index: int,
    rows: Sequence[PromptRow],
    generated: Generated,
    logits_B: np.ndarray,
    verdicts: Sequence[Verdict],
) -> None:
    """Append the round's responses with score and verdicts to samples.jsonl."""
    step = round_index * run.updates_per_round
    for row, text, logit, verdict in zip(rows, generated.texts, logits_B, verdicts, strict=True):
        run.writer.sample(
            {
                "step": step,
                "round": round_index,
                "prompt": row.prompt,
                "constraints": [constraint.to_json() for constraint in row.constraints],
                "response": text,
                "score": float(logit),
                "verdicts": list(verdict.strict),
            }
        )


def one_round(run: Run, state: RunState, index: int) -> RunState:
    """Play round `index` (from 0): rollout, verify, judge, score, learn.

    Raises:
        RunInterrupted: a signal asked for a stop, and the last round boundary is saved.
        RunStopped: KL or a loss left its bounds.
    """
    number, config = index + 1, run.config
    step = number * run.updates_per_round
    with run.clock("rollout"):
        rows, generated = rollout_phase(run, state, index)
        verdicts = verify(rows, generated.texts)
        fresh = [
            GeneratedText(row.prompt, text, is_accepted(config.discriminator, verdict), number)
            for row, text, verdict in zip(rows, generated.texts, verdicts, strict=True)
        ]
    metrics = rollout_metrics(run, rows, generated, verdicts)
    metrics |= throughput(generated.rollout, run.clock.last["rollout"])
    run.stop_if_asked(index)

    judged: dict[str, float] = {}
    if config.discriminator.score_with == "post":
        state, judged = judge(run, state, fresh, index)
    with run.clock("score"):
        state, logits_B, rewards_B = score_phase(run, state, fresh, generated.rollout)
        chosen = select_rows(rewards_B, config.ppo.samples_per_prompt, config.ppo.train_samples)
    write_samples(run, number, rows, generated, logits_B, verdicts)
    with run.clock("experience"):
        rollout = take_rows(generated.rollout, chosen)
        scored = score_policy(run, state, rollout)
        check_kl(config, scored, rollout.response_mask_BR, index)
    run.stop_if_asked(index)
    if config.discriminator.score_with == "pre":
        state, judged = judge(run, state, fresh, index)

    experience, found = experience_phase(run, state, rollout, scored, rewards_B[chosen])
    metrics |= found | {"reward/score_mean": float(logits_B.mean())}
    metrics |= {
        f"time/{name}_s": run.clock.last[name] for name in ("rollout", "experience", "score")
    }
    run.writer.write(step, number, "rollout", metrics)
    if judged:
        run.writer.write(step, number, "discriminator", judged)

    with run.clock("policy"):
        state, learned = learn_phase(run, state, experience, scored, index)
        state = next_kl_coef(config, state, found["kl/ref"], len(chosen))
    learned |= {"kl/coef": float(state.kl_coef), "time/policy_s": run.clock.last["policy"]}
    run.writer.write(step, number, "policy", learned)
    return state.replace(round=state.round + 1)


def judge(
    run: Run, state: RunState, fresh: Sequence[GeneratedText], index: int
) -> tuple[RunState, dict[str, float]]:
    """Update the discriminator, unless the method keeps it frozen."""
    if run.config.method == "ppo":
        return state, {}
    with run.clock("discriminator"):
        state, metrics = judge_phase(run, state, fresh, index)
    return state, metrics | {"time/discriminator_s": run.clock.last["discriminator"]}


def throughput(rollout: Rollout, seconds: float) -> dict[str, float]:
    """Return new tokens a second, real ones and those with the padding counted."""
    mask_BR = np.asarray(rollout.response_mask_BR)
    return {
        "throughput/real_tokens_per_s": float(mask_BR.sum() / seconds),
        "throughput/padded_tokens_per_s": float(mask_BR.size / seconds),
    }


def during(run: Run, state: RunState, finished: int) -> None:
    """Measure the policy by rule on held-out prompts, if it is due after `finished` rounds."""
    every = run.config.eval.every_rounds
    if not every or finished % every or finished == run.config.rounds:
        return
    if run.config.method == "discriminator":  # the policy is the one that was measured before
        return
    with run.clock("eval"):
        metrics = evaluate_during(run, state)
    metrics["time/eval_s"] = run.clock.last["eval"]
    run.writer.write(finished * run.updates_per_round, finished, "eval", metrics)


def train(run: Run, state: RunState) -> RunState:
    """Play all rounds that are left, saving at round boundaries; return the final state.

    Raises:
        RunInterrupted: asked to stop by a signal; everything needed to continue is saved.
        RunStopped: the run stopped itself; the last good round boundary is saved.
    """
    config, steps, tokenizer = run.config, run.training.steps, run.players.disc_tokenizer
    with run.clock("compile"):
        prime(state.discriminator, steps, tokenizer, config.discriminator, state.key)
    if run.last_saved is None:
        state = warmup(run, state)
        run.save(state, 0)
    return play_rounds(run, state, one_round)


def play_rounds(
    run: Run, state: RunState, one_round: Callable[[Run, RunState, int], RunState]
) -> RunState:
    """Play the rounds that are left by `one_round(run, state, index)`, saving at their boundaries.

    Raises:
        RunInterrupted, RunStopped: as `train`.
    """
    config = run.config
    for index in progress(range(int(state.round), config.rounds), "rounds"):
        run.stop_if_asked(index)
        boundary = state
        try:
            state = one_round(run, state, index)
        except RunStopped:
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(boundary)):
                run.save(boundary, index)
            run.checkpointer.wait()
            raise
        during(run, state, index + 1)
        if run.stop or (index + 1) % config.checkpoint.every_rounds == 0:
            run.save(state, index + 1)
    run.save(state, config.rounds)
    run.stop_if_asked(config.rounds)
    return state
