"""A run of two rounds on the smallest networks, with a sampler that writes texts of its own.

Everything else is the program: `loop.train` with the compiled steps of `build_steps`. What goes
into the sampler and into the updates, and what comes out, is written down in the order in which it
happened, for `plain_run.py` to compare with.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.checkpoint import Checkpointer
from gapo_jax.config import Config, change, finalize, updates_per_round
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.data.tiny_tokenizer import character_tokenizer, wordpiece_tokenizer
from gapo_jax.methods import method_of
from gapo_jax.models import Decoder, DecoderConfig, Discriminator, EncoderConfig
from gapo_jax.sharding import ONE_DEVICE
from gapo_jax.train.build import Models, build_steps, initial_state, policy_spec
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.self_generated import Pairs, Prompts
from gapo_jax.train.metrics import MetricsWriter
from gapo_jax.train.offline import loop as offline_loop
from gapo_jax.train.online import loop
from gapo_jax.train.online.rollout import rollout_widths
from gapo_jax.train.online.sft_batches import make_sft_batches
from gapo_jax.train.restore import restore_state
from gapo_jax.train.runtime import Processes, StopRequest
from gapo_jax.types import Constraint, PreferentialPair, PromptRow, Rollout

EOS, NEW_TOKENS = 2, 16
TOKENIZER, DISC_TOKENIZER = character_tokenizer(), wordpiece_tokenizer()
SHAPE = DecoderConfig(
    len(TOKENIZER), num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8,
    eos_ids=(EOS,), max_positions=64,
)  # fmt: skip
DISC_SHAPE = EncoderConfig(
    len(DISC_TOKENIZER), num_layers=1, d_model=8, num_heads=2, d_ff=8, dropout=0.3
)
_RULES = (
    Constraint("punctuation:no_comma"),
    Constraint("keywords:forbidden_words", {"forbidden_words": ["b"]}),
)
# Eight prompts, of which the first asks for one thing only and the others for two.
ROWS = [
    PromptRow(f"k{i}", f"Say {'x' * (i % 3)}{i}", f"t{i}", _RULES[: 1 if i == 0 else 2])
    for i in range(8)
]
PAIRS = [
    PreferentialPair(
        f"t{i}", f"resp {i}" + "y" * (i % 4), _RULES[:1], _RULES[1:], f"acc {i}", f"rej {i}",
        "modify", _RULES[0].id,
    )
    for i in range(10)
]  # fmt: skip


def rows_of(config: Config) -> list[PromptRow]:
    """Return the prompts that a run learns on: its own, or the accepted ones of its pairs."""
    if config.discriminator.generated_prompts == "rollouts":
        return ROWS
    return [PromptRow(f"k{i}", pair.prompt_accepted, pair.task, pair.accepted)
            for i, pair in enumerate(PAIRS)]  # fmt: skip


# Two rounds of four prompts x four samples; every switch that is off by default and has a meaning
# for all estimators is on.
COMMON = {
    "seed": 5,
    "rounds": 2,
    "model.trainable_layers": 1,
    "model.critic": "policy",
    "model.critic_hidden": 4,
    "data.system_prompt": "Be.",
    "sampling.max_new_tokens": NEW_TOKENS,
    "sampling.temperature": 0.7,
    "sampling.batch_size": 12,
    "reward.missing_eos_penalty": 0.4,
    "reward.overlong_tokens": 6,
    "reward.clip": 1.2,
    "ppo.prompts_per_round": 4,
    "ppo.samples_per_prompt": 4,
    "ppo.minibatch_size": 8,
    "ppo.epochs": 2,
    "ppo.kl_coef": 0.3,
    "ppo.kl_target": 0.01,
    "ppo.kl_horizon": 50.0,
    "ppo.kl_limit": 1000.0,
    "ppo.clip_high": 0.28,
    "ppo.optim.learning_rate": 0.05,
    "ppo.optim.warmup_steps": 1,
    "ppo.optim.schedule": "cosine",
    "ppo.optim.weight_decay": 0.1,
    "ppo.optim.eps": 1e-2,
    "ppo.critic_optim.learning_rate": 0.1,
    "ppo.critic_optim.schedule": "linear",
    "ppo.critic_optim.eps": 1e-3,
    "discriminator.batch_size": 8,
    "discriminator.max_tokens": 64,
    "discriminator.accumulate": 2,
    "discriminator.warmup_epochs": 2,
    "discriminator.updates_per_round": 2,
    "discriminator.round_learning_rate": 0.02,
    "discriminator.optim.learning_rate": 0.05,
    "discriminator.optim.weight_decay": 0.0,
    "discriminator.optim.eps": 1e-3,
    "discriminator.positive_label": 0.9,
    "discriminator.generated_fraction": 0.5,
    "discriminator.replay_fraction": 0.5,
    "discriminator.replay_capacity": 20,
}


@dataclasses.dataclass
class Record:
    """What a run did: calls of the sampler and updates in their order, `(name, fields)`, the states
    that were saved, the last state and the lines of metrics.jsonl."""

    config: Config
    models: Models
    events: list[tuple[str, dict[str, Any]]]
    saved: list[Any]
    state: Any = None
    critic_start: Any = None


def written(prompt_ids: Any, key: Any) -> tuple[str, bool]:
    """Return the response that the stub sampler writes to a prompt with a key, and whether it ends:
    three letters that tell it from all others, then a few words, some with commas, some repeated,
    some cut off."""
    bits = f"{[int(i) for i in prompt_ids]} {np.asarray(key).tolist()}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(bits.encode()).digest()[:8], "big"))
    tag = "".join(rng.choice(list("fghijklmnopq"), 3))
    kind = rng.choice(["plain", "plain", "plain", "repeats", "cut off"])
    if kind == "repeats":
        return f"{tag} a c a c a c", True
    words = rng.choice(list("abcde"), int(rng.integers(1, 5)))
    text = (tag + rng.choice([" ", ", "]) + " ".join(words))[: NEW_TOKENS - 1]
    return (text, True) if kind == "plain" else (text.ljust(NEW_TOKENS, "x"), False)


def ids_of(text: str) -> list[int]:
    """Return the ids of printable characters and line breaks: three specials come first."""
    return [3 + (0 if char == "\n" else ord(char) - 31) for char in text]


class Killed(Exception):
    """Stands for a kill in the middle of a round."""


class StubSampler:
    """Takes the place of the compiled sampler and notes what it is asked; a kill may come instead
    of its call number `killed_at` (from 0)."""

    def __init__(
        self, events: list[tuple[str, dict[str, Any]]], killed_at: int | None = None
    ) -> None:
        self.events, self.left = events, killed_at

    def __call__(self, params, tokens_AP, mask_AP, keys_B, temperature) -> Rollout:
        """Write `written` to every row."""
        if self.left == 0:
            raise Killed
        self.left = self.left and self.left - 1
        keys_BK = np.asarray(jax.random.key_data(keys_B))
        samples = len(keys_BK) // len(tokens_AP)
        tokens_BR = np.zeros((len(keys_BK), NEW_TOKENS), np.int32)
        mask_BR, rows = np.zeros_like(tokens_BR), []
        for b, key in enumerate(keys_BK):
            real = np.asarray(mask_AP[b // samples]) > 0
            prompt = np.asarray(tokens_AP[b // samples])[real].tolist()
            text, ended = written(prompt, key)
            ids = ids_of(text) + [EOS] * ended
            tokens_BR[b, : len(ids)], mask_BR[b, : len(ids)] = ids, 1
            rows.append({"prompt": prompt, "key": tuple(key.tolist()), "ids": ids})
        self.events.append(
            ("sample", {"rows": rows, "params": copied(params), "temperature": temperature})
        )
        tokens_BP, mask_BP = (np.repeat(x_AP, samples, axis=0) for x_AP in (tokens_AP, mask_AP))
        fields: dict[str, Any] = {
            "tokens_BT": np.concatenate([tokens_BP, tokens_BR], axis=1),
            "mask_BT": np.concatenate([mask_BP, mask_BR], axis=1),
            "response_mask_BR": mask_BR,
            "logprobs_BR": np.full(mask_BR.shape, -1.0, np.float32),
        }
        return Rollout(**fields)


def copied(tree: Any) -> Any:
    """Return a tree with its arrays copied to numpy: steps take the memory of their states."""
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


class StubCheckpointer:
    """Keeps what was saved in memory."""

    def __init__(self) -> None:
        self.saved: list[Any] = []

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Note a checkpoint."""
        numbers = copied(state.replace(key=jax.random.key_data(state.key)))
        self.saved.append((step, numbers, host))

    def wait(self) -> None:
        """Do nothing."""


def make_config(**changes: Any) -> Config:
    """Return COMMON with changes; "__" stands for the dot in a path."""
    config = Config(method=changes.pop("method"))
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    change(config, {**COMMON, **changes})
    return finalize(config)


def start_params() -> tuple[Any, Any]:
    """Return weights of both networks whose outputs differ from row to row."""
    ones = jnp.ones((1, 2), jnp.int32)
    scaled = []
    for module, seed in ((Decoder(SHAPE), 0), (Discriminator(DISC_SHAPE), 1)):
        params = jax.jit(module.init)(jax.random.key(seed), ones, ones)["params"]
        scaled.append(jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params))
    return scaled[0], scaled[1]


def play(
    config: Config,
    workdir: Any,
    monkeypatch: Any,
    checkpoints: Any = None,
    killed_at: int | None = None,
) -> Record:
    """Run the method from its first update, or from the last of the `checkpoints`, to its last, or
    to the call `killed_at` of the sampler; return what it did."""
    events: list[tuple[str, dict[str, Any]]] = []
    ref_params, disc_params = start_params()
    sampler: Any = StubSampler(events, killed_at)
    models = Models(
        decoder=Decoder(SHAPE),
        ref_params=ref_params,
        tokenizer=TOKENIZER,
        discriminator=Discriminator(DISC_SHAPE),
        disc_init_params=disc_params,
        disc_tokenizer=DISC_TOKENIZER,
        spec=policy_spec(config, SHAPE, ONE_DEVICE),
        sample=sampler,
    )
    # Held-out prompts are longer than these: the sampler is wider than what is learned from.
    prompts = Prompts((), rows_of(config), {}, [], 32, 24)
    online = method_of(config).loop == "online"
    widths = rollout_widths(config, models, prompts) if online else ()
    steps = build_steps(config, models, len(PAIRS), widths)

    def noting(name: str, step: Any) -> Any:
        def call(state: Any, batch: Any, *others: Any) -> Any:
            # Read before the step: what it is given may lie in memory that it takes.
            fields = {"batch": copied(getattr(batch, "batch", batch))}
            fields["width"] = getattr(batch, "width", None)
            if name == "policy":
                fields["demonstrations"] = copied(others[1])
            state, metrics = step(state, batch, *others)
            events.append((name, fields | {"params": copied(state.params), "metrics": metrics}))
            return state, metrics

        return step and call

    steps = dataclasses.replace(
        steps,
        **{
            field: noting(field, getattr(steps, field))
            for field in ("policy", "critic", "disc_update", "offline")
        },
    )
    checkpointer: Any = Checkpointer(checkpoints) if checkpoints else StubCheckpointer()
    sft = make_sft_batches(config, models, PAIRS, workdir) if config.ppo.sft_coef else None
    start, resume_step = initial_state(config, models, steps), None
    if checkpoints and checkpointer.latest() is not None:
        start, _ = restore_state(checkpointer, start)
        resume_step = start.last_saved * updates_per_round(config)
    ctx = TrainContext(
        config=config,
        workdir=workdir,
        models=models,
        steps=steps,
        prompts=prompts,
        pairs=Pairs(PAIRS, [], PAIRS),
        widths=widths,
        sft_batches=sft,
        processes=Processes(),
        verifiers=VerifierPool(),
        stop=StopRequest(),
        clock=PhaseClock(),
        writer=MetricsWriter(workdir, resume_step=resume_step),
        checkpointer=checkpointer,
    )
    # Widths that no text needs would be compiled too.
    monkeypatch.setattr(loop, "compile_discriminator", lambda ctx, state: None)
    train = loop.train if online else offline_loop.train
    record = Record(config, models, events, getattr(checkpointer, "saved", []))
    record.critic_start = copied(start.critic.params) if start.critic is not None else None
    try:
        record.state = train(ctx, start)
    except Killed:
        pass
    finally:
        ctx.writer.close()
        if checkpoints:
            checkpointer.close()
    return record
