"""All that is fixed in a run. What changes is in `state.GAPOState`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gapo_jax.checkpoint import Checkpointer
from gapo_jax.config import Config, updates_per_round
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.train.build import Models, TrainSteps
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.datasets.rows import OwnRows
from gapo_jax.train.datasets.self_generated import Pairs, Prompts
from gapo_jax.train.metrics import MetricsWriter
from gapo_jax.train.online.reward_sources import RewardSources
from gapo_jax.train.online.sft_batches import SFTBatches
from gapo_jax.train.runtime import Processes, RunInterrupted, StopRequest
from gapo_jax.train.state import GAPOState, merge_trainable
from gapo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class TrainContext:
    """All that is fixed in a run, built complete by `main.open_run`.

    Attributes:
        config: the run's configuration.
        workdir: the folder of what it leaves; of another process than the first, a temporary one.
        models: the networks and the weights that never change.
        steps: the compiled steps.
        prompts: what is sampled for and measured on.
        pairs: what the discriminator and the offline methods learn from.
        rows: those of `config.data.source`, where a method learns from them directly.
        widths: of the buckets that an online method's batches come in, () for one.
        sft_batches: accepted pairs for the SFT term of the policy loss (`ppo.sft_coef`), or None.
        processes: the JAX processes of the run.
        verifiers: the worker processes that verify text.
        stop: whether a signal asked this process to stop.
        clock: the seconds of each phase.
        writer: metrics.jsonl, samples.jsonl, the sinks and the console.
        checkpointer: writes and reads checkpoints.
        rewards: the functions and reward models that give rewards.
    """

    config: Config
    workdir: Path
    models: Models
    steps: TrainSteps
    prompts: Prompts
    pairs: Pairs
    widths: tuple[int, ...]
    sft_batches: SFTBatches | None
    processes: Processes
    verifiers: VerifierPool
    stop: StopRequest
    clock: PhaseClock
    writer: MetricsWriter
    checkpointer: Checkpointer
    rows: OwnRows | None = None
    rewards: RewardSources = dataclasses.field(default_factory=RewardSources)

    @property
    def updates_per_round(self) -> int:
        """Updates in one round; the `step` of a metrics line counts them."""
        return updates_per_round(self.config)

    def policy_params(self, state: GAPOState) -> Params:
        """Return the generator's full parameters, trained parts in place."""
        return merge_trainable(
            self.models.ref_params, state.policy.params, self.models.spec.first_trainable_layer
        )

    def sampling_params(self, state: GAPOState) -> Params:
        """Return the full parameters as they lie for sampling; made once a round."""
        return self.models.for_sampling(self.policy_params(state))

    def rollout_params(self, state: GAPOState) -> Params:
        """Return the full parameters as rollouts are sampled with; made once a round."""
        return self.models.for_rollouts(self.policy_params(state))

    def asked_to_stop(self) -> str:
        """Return the name of the signal that asked any of the processes to stop, or ""."""
        return self.processes.first_word("stop", self.stop.signal_name)

    def stop_if_asked(self, state: GAPOState, finished: int) -> None:
        """Raise RunInterrupted when a signal asked for it and `state` has been saved after
        `finished` rounds.

        Where it has not, the round in progress is finished and saved first.
        """
        signal_name = self.asked_to_stop()
        if signal_name and state.last_saved == finished:
            raise RunInterrupted(signal_name)
