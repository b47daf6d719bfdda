"""GAPO's Algorithm 1 (arXiv 2503.20194), and the other methods that learn from their own samples.

One generation pass a round feeds both networks: the discriminator is updated on preferential
prompts and on the new text, the policy on the rewards that one snapshot of the discriminator gives.
The other methods (ppo, rloo, grpo, reinforce_pp, rpo_online) leave the discriminator as the warm-up
made it, or ask other sources alone (`reward.sources`).
"""

from __future__ import annotations

from gapo_jax.methods import asks_discriminator
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.update import update_discriminator
from gapo_jax.train.discriminator.warmup import compile_discriminator, warm_up
from gapo_jax.train.online.experience import build_experience
from gapo_jax.train.online.report import device_wait, write_rollout, write_samples
from gapo_jax.train.online.rewards import compute_rewards, snapshot_before
from gapo_jax.train.online.rollout import sample_rollout
from gapo_jax.train.online.update import update_policy
from gapo_jax.train.rounds import PhaseMetrics, run_rounds, save
from gapo_jax.train.state import GAPOState


def train(ctx: TrainContext, state: GAPOState) -> GAPOState:
    """Warm up the discriminator and run all rounds that are left; return the final state.

    Raises:
        RunInterrupted: a signal asked for a stop; everything needed to continue is saved.
        RunStopped: the run stopped itself; the last good round boundary, if there is one, is
            saved.
    """
    if asks_discriminator(ctx.config):
        compile_discriminator(ctx, state)
    if state.last_saved is None:
        if asks_discriminator(ctx.config):
            state = warm_up(ctx, state)
        state = save(ctx, state, 0)
    return run_rounds(ctx, state, gapo_round)


def gapo_round(ctx: TrainContext, state: GAPOState, index: int) -> tuple[GAPOState, PhaseMetrics]:
    """Run round `index` (from 0): one discriminator phase and one policy phase.

    Raises:
        RunInterrupted: a signal asked for a stop, and the last round boundary is saved.
        RunStopped: KL or a loss left its bounds.
    """
    rollout = sample_rollout(ctx, state, index)
    before = snapshot_before(ctx, state)
    state, disc_metrics = update_discriminator(ctx, state, rollout)
    rewards = compute_rewards(ctx, state, rollout, before)
    write_samples(ctx, rollout, rewards)
    experience = build_experience(ctx, state, rollout, rewards)
    write_rollout(ctx, rollout, rewards, experience, disc_metrics)
    state, policy_metrics = update_policy(ctx, state, experience)
    policy_metrics["device/wait"] = device_wait(ctx, rollout)
    return state.replace(reward_stats=rewards.stats), {"policy": policy_metrics}
