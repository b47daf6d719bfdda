"""GAPO with Qwen2.5-7B as generator and Longformer-large-4096 as discriminator, on a TPU pod slice.

    python scripts/train.py --config configs/gapo_tpu.py              on the TPU, see the README
    python scripts/train.py --config configs/gapo_tpu.py:rehearse     tiny, on whatever is here
    python scripts/plan.py --config configs/gapo_tpu.py --topology v5e:8x8

Table 12 of the paper (arXiv 2503.20194): actor 5e-7, critic 9e-6, classifier 1e-5 and 8 texts a
batch, two epochs of warm-up and of updates, 128 responses a batch, 1,024 a round, two epochs of
PPO, KL 0.01, prompts of 1,024 and responses of 3,072 tokens, half of the classifier's texts
generated (the column of product descriptions; the preset `ifeval` has the other one: 1e-4, 2e-4,
16 responses and 4 texts a batch). The paper's number of rounds is not clear (two adversarial
epochs in the table, fifteen stages in Fig. 4): seven rounds of 1,024 prompts are two epochs of its
3,300. Embedding and output matrix stand still, of which it says nothing.

No TPU was at hand, and nothing has run at this size anywhere. What the TPU's compiler says, by the
third command (2026-11-22, jax 0.10.2, libtpu 0.0.52; scripts/plan.py says how each is derived):

    chips (16.9, 102.0, 33.6 GB each)                v5e:8x8    v5p:2x2x4  v6e:8x8
    GB in use while decoding (the most)              13.2       34.8       13.3
    GB in use in the policy step                     8.2        29.8       8.3
    policy step: state, updated in place, GB         1.23       4.90       1.23
    policy step: least seconds, bound of the MFU     2.9, 0.62  5.3, 0.58  0.9, 0.42
    critic step: least seconds, bound of the MFU     2.9, 0.60  5.2, 0.58  0.9, 0.42
    scoring: least seconds, bound of the MFU         2.2, 0.84  4.1, 0.75  0.7, 0.54
    decoding, ms a token; reading alone takes        9.5; 6.6   10.5; 4.0  4.3; 3.3
    discriminator, seconds: scores, learns from 8    .02, .10   .02, .10   .01, .07

These are of the widest batches, of 4,096 tokens. Minibatches are cut by length and padded to one of
four widths (`ppo.length_buckets`), each of which takes its own compilation of scoring, policy and
critic step; the others compute less.

The discriminator's bounds of the MFU are low (.02 to .20): eight texts share all chips. All steps
compile in 8 minutes of one core for v5e, in 8 for v5p and in 15 for v6e.

In all three, weights are gathered in bfloat16 only, and the head once a step, outside the loop over
its chunks. On 16 chips of v5e (v5e:4x4) the policy step does not fit as it is; what scripts/plan.py
found that does is `--config.ppo.accumulate=8 --config.model.critic=reference` (14.7 of 16.9 GB with
what lives beside it; 19.6 by accumulation alone). On v5p decoding is 2.6 times the floor: the
compiler reckons with 1.4 TB/s for plain products of matrices there, half of what is published.

The preset `small`, Qwen2.5-1.5B against Longformer-base, is for few chips:

    python scripts/plan.py --config configs/gapo_tpu.py:small --topology h100:4
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny


def get_config(preset: str = "") -> Config:
    """Return the configuration; the presets are `ifeval`, `small` and `rehearse`.

    Raises:
        ValueError: another preset.
    """
    if preset not in ("", "ifeval", "small", "rehearse"):
        raise ValueError(f"wanted 'ifeval', 'small', 'rehearse' or no preset, got {preset!r}")
    if preset == "rehearse":
        config = tiny("gapo", "gapo_tpu_rehearse")
        config.rounds = 2
        config.model.trainable_layers = 0
    else:
        config = Config(method="gapo", name=f"gapo_tpu{'_' if preset else ''}{preset}")
        _set_sizes(config)
        _set_table(config, preset)
    config.model.critic = "decoder"
    if preset == "small":
        config.model.generator = "Qwen/Qwen2.5-1.5B-Instruct"
        config.model.discriminator = "allenai/longformer-base-4096"
        config.sampling.batch_size = 128
        config.ppo.accumulate = 4
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 1
    config.mesh.sampling_tensor = 4
    return config


def _set_sizes(config: Config) -> None:
    """Networks, lengths, and what makes them fit."""
    config.model.generator = "Qwen/Qwen2.5-7B-Instruct"
    config.model.discriminator = "allenai/longformer-large-4096"
    config.model.pooling = "cls"
    config.model.dtype, config.model.remat = "bfloat16", "full"
    config.data.max_prompt_tokens, config.sampling.max_new_tokens = 1024, 3072
    config.sampling.batch_size = 512
    config.discriminator.max_tokens = 4096
    # Of all devices together: 512 tokens on each of 64.
    config.ppo.logprob_chunk = 32768
    # Most rows are far shorter than 4,096 tokens.
    config.ppo.length_buckets = 4
    config.data.bootstrap_responses, config.data.pairs, config.data.prompts = 3300, 3300, 3300
    config.eval.every_rounds = 1


def _set_table(config: Config, preset: str) -> None:
    """Table 12 of the paper."""
    ifeval = preset == "ifeval"
    ppo, disc = config.ppo, config.discriminator
    config.rounds = 7
    ppo.optim.learning_rate, ppo.critic_optim.learning_rate = (
        (1e-4, 2e-4) if ifeval else (5e-7, 9e-6)
    )
    ppo.prompts_per_round, ppo.samples_per_prompt = 1024, 1
    ppo.minibatch_size = 16 if ifeval else 128
    ppo.epochs = ppo.critic_epochs = 2
    ppo.kl_coef = 0.01
    config.sampling.temperature = 1.0
    disc.optim.learning_rate = disc.round_learning_rate = 1e-5
    disc.batch_size = 4 if ifeval else 8
    disc.warmup_epochs, disc.updates_per_round = 2, 50
    disc.generated_fraction, disc.replay_fraction = 0.5, 0.0
    disc.label_policy, disc.freeze_embeddings = "paper", False
    disc.dropout = 0.1
