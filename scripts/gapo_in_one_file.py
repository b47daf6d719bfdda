"""GAPO in one file: a generator learns to obey constraints from a discriminator that learns too.

    python scripts/gapo_in_one_file.py              # a minute on a laptop's CPU, no downloads

Read it from top to bottom, or `gapo()` at the bottom first: that is Algorithm 1 of the paper
(Generative Adversarial Policy Optimization, arXiv 2503.20194, ACL 2025), line by line.

The idea. A prompt is a task and its constraints: "Write a short note about tea. Do not use any
commas." A *preferential pair* is one response R under two prompts: P_acc, all of whose constraints
it obeys, and P_rej, of which it breaks at least one. Nothing but a constraint sets the two sides
apart, so a *discriminator* that learns to tell them apart learns to read constraints. Its score of
a response is the reward by which PPO trains the *generator*. And what the generator writes goes
back to the discriminator as text that is not good enough, so that no weakness of the discriminator
pays for long.

This is the algorithm alone, on the library's networks, losses and sampler; `gapo_jax/train/` is the
same for real models. tests/train/test_one_file.py holds the gradients of the two together.

Where this file leaves the paper:

1. Size. Two networks of random weights, 64 numbers wide, whose first texts are words in no order.
   The paper trains Qwen2.5-7B against a Longformer.
2. Pairs. In the paper GPT-4 writes responses and rewrites constraints. Here the responses are the
   generator's own first texts; rules find which constraints each happens to obey, and prove of
   every pair that R obeys P_acc and breaks P_rej (Eq. 4).
3. Equations 7, 9 and 10 are shorthand for what the authors' code does, which is followed here: the
   ratio is to the policy that sampled, and clipped; a response has one score, on its last token,
   and every token a KL penalty; advantages are GAE's; the value loss is clipped.
4. The value function reads hidden states of the reference, which have seen nothing of what follows.
   The authors' is a bidirectional encoder, which has read the end when it foretells it.
5. Scores are standardised within a round. The authors' raw logits sink as the discriminator gets
   better, and the value function is kept busy with following them.
6. A turn is several updates long, not one: sampling is what costs, and its text is good for more.

Array names end in their axes: B rows, P prompt tokens, R response tokens, T = P + R, D width.
Prompts are padded on the left and responses on the right: response token r is in column P + r.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gapo_jax import constraints, losses, models, rng
from gapo_jax.data.discriminator_text import encode_discriminator
from gapo_jax.data.preferential import build_pairs
from gapo_jax.data.prompts import make_prompts
from gapo_jax.data.tasks import tasks
from gapo_jax.data.tiny_tokenizer import known_words, word_tokenizer, wordpiece_tokenizer
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import Generated, generate
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED, Experience, Metrics, Params, PromptRow

SEED = 0
TYPES = ("no_comma", "title", "postscript")
WIDTH, PROMPT_TOKENS, NEW_TOKENS, TEXT_TOKENS = 64, 64, 24, 96
PAIRS, WARMUP_EPOCHS = 1024, 6
ROUNDS, RESPONSES, BATCH = 10, 256, 64
DISC_UPDATES, PPO_EPOCHS = 8, 2
KL_COEF, CLIP, VALUE_CLIP, GAMMA, LAM = 0.02, 0.2, 0.2, 1.0, 0.95

# ----------------------------------------------------------------------------- the networks

# Two tokenizers, as with real models: the networks exchange text, never token ids.
words, pieces = word_tokenizer(), wordpiece_tokenizer(known_words())
END, PAD = words.convert_tokens_to_ids(["</s>", "<pad>"])

generator = models.Decoder(models.DecoderConfig(
    vocab_size=len(words), num_layers=2, d_model=WIDTH, d_ff=2 * WIDTH, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=256, eos_ids=(END,), pad_id=PAD,
))  # fmt: skip
critic = models.ScalarHead(hidden_dim=WIDTH)
discriminator = models.Discriminator(models.EncoderConfig(
    vocab_size=len(pieces), num_layers=1, d_model=WIDTH, d_ff=2 * WIDTH, num_heads=1
))  # fmt: skip

policy_adam, critic_adam, disc_adam = (
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)) for rate in (8e-3, 3e-3, 3e-3)
)
decode = make_sampler(generator, max_new_tokens=NEW_TOKENS, eos_ids=(END,), pad_id=PAD)


class Network(NamedTuple):
    """The parameters of a network and its optimizer's state."""

    params: Params
    opt_state: optax.OptState


@functools.partial(jax.jit, static_argnums=(0, 1))
def update(loss: Callable, optimizer: Any, network: Network, *batch) -> tuple[Network, Metrics]:
    """Take one step down the gradient of `loss(params, *batch) -> (scalar, metrics)`."""
    gradients, metrics = jax.grad(loss, has_aux=True)(network.params, *batch)
    updates, opt_state = optimizer.update(gradients, network.opt_state)
    return Network(optax.apply_updates(network.params, updates), opt_state), metrics


def sample(params: Params, prompts: Sequence[str], stream: Stream, *counters: int) -> Generated:
    """Let the generator answer each prompt once: texts, and their tokens with log-probs."""
    return generate(
        decode, params, words, prompts, rng.row_keys(SEED, stream, *counters, count=len(prompts)),
        batch_size=RESPONSES, width=PROMPT_TOKENS, temperature=1.0,
    )  # fmt: skip


# ----------------------------------------------------------------- odd steps: the discriminator


class Texts(NamedTuple):
    """What the discriminator reads: tokens, mask and segments, int32 [B, T]; and whether each text
    is accepted, rejected or generated, int32 [B]."""

    tokens_BT: jax.Array
    mask_BT: jax.Array
    segments_BT: jax.Array
    classes_B: jax.Array


def as_texts(sides: Sequence[tuple[str, str]], label: int) -> Texts:
    """Tokenise pairs of (prompt, response). Real and generated text go this one way, so that form
    cannot give away which is which."""
    prompts, responses = zip(*sides, strict=True)
    tokens = encode_discriminator(pieces, prompts, responses, TEXT_TOKENS, pad_to=TEXT_TOKENS)
    return Texts(*map(jnp.asarray, tokens), jnp.full(len(sides), label, jnp.int32))


@jax.jit
def score(params: Params, texts: Texts) -> Any:
    """Return one logit for each text, float32 [B]."""
    return discriminator.apply({"params": params}, *texts[:3])


def discriminator_loss(params: Params, texts: Texts) -> tuple[jax.Array, Metrics]:
    """L_R of Eq. 6, binary cross-entropy: 1 for (P_acc, R), 0 for (P_rej, R) and generated text."""
    targets_B = (texts.classes_B == ACCEPTED).astype(jnp.float32)
    return losses.bce_loss(score(params, texts), targets_B, classes_B=texts.classes_B)


# -------------------------------------------------------------- even steps: policy and critic


def response_logprobs(params: Params, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Return the log-probs [B, R] of the responses in `rows` (a Rollout or an Experience), and the
    hidden states [B, R, D] that foretell them."""
    length, variables = rows.response_mask_BR.shape[1], {"params": params}
    hidden_BTD: Any = generator.apply(variables, rows.tokens_BT, rows.mask_BT, method="hidden")
    hidden_BRD = hidden_BTD[:, -length - 1 : -1]  # column t foretells the token in column t + 1
    targets_BR, kernel_DV = rows.tokens_BT[:, -length:], models.unembedding(params)
    return losses.chunked_logprobs(hidden_BRD, kernel_DV, targets_BR)[0], hidden_BRD


@jax.jit
def build_experience(policy, reference, value, rollout, scores_B) -> tuple[Experience, jax.Array]:
    """Turn the score of each response into an advantage of each token (Eq. 8 and 9); return with
    them the hidden states [B, R, D] that the critic reads."""
    mask_BR = rollout.response_mask_BR
    old_BR, _ = response_logprobs(policy, rollout)
    ref_BR, features_BRD = response_logprobs(reference, rollout)
    values_BR: Any = critic.apply({"params": value}, features_BRD)
    rewards_B = (scores_B - scores_B.mean()) / (scores_B.std(ddof=1) + 1e-6)
    rewards_BR = losses.token_rewards(rewards_B, old_BR, ref_BR, mask_BR, KL_COEF)
    advantages_BR, returns_BR = losses.gae(rewards_BR, values_BR, mask_BR, GAMMA, LAM)
    advantages_BR = losses.whiten(advantages_BR, mask_BR)
    rows = rollout.tokens_BT, rollout.mask_BT, mask_BR
    return Experience(*rows, old_BR, ref_BR, advantages_BR, values_BR, returns_BR), features_BRD


def policy_loss(params: Params, experience: Experience) -> tuple[jax.Array, Metrics]:
    """L_G of Eq. 7, clipped."""
    logprobs_BR, _ = response_logprobs(params, experience)
    return losses.ppo_loss(
        logprobs_BR, experience.old_logprobs_BR, experience.advantages_BR,
        experience.response_mask_BR, clip_low=CLIP, clip_high=CLIP,
    )  # fmt: skip


def critic_loss(params: Params, experience: Any, features_BRD) -> tuple[jax.Array, Metrics]:
    """L_V of Eq. 10, clipped."""
    values_BR: Any = critic.apply({"params": params}, features_BRD)
    return losses.value_loss(
        values_BR, experience.values_BR, experience.returns_BR, experience.response_mask_BR,
        clip=VALUE_CLIP,
    )  # fmt: skip


# --------------------------------------------------------------------------------- Algorithm 1


def start(module: Any, optimizer: Any, stream: Stream, *inputs, scale: float = 1.0) -> Network:
    """Return a network with random weights, its matrices times `scale`."""
    params = jax.jit(module.init)(rng.key(SEED, stream), *inputs)["params"]
    params = jax.tree.map(lambda x: scale * x if x.ndim > 1 else x, params)
    return Network(params, optimizer.init(params))


def batches(tree: Any, size: int, order: np.random.Generator, epochs: int = 1) -> Iterator[Any]:
    """Yield `size` rows of every array in a tree at a time, in a new order in every epoch."""
    rows = len(jax.tree.leaves(tree)[0])
    for _ in range(epochs):
        for chosen in order.permutation(rows)[: rows // size * size].reshape(-1, size):
            yield jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], tree)


def joined(*parts: Texts) -> Texts:
    """Return several batches of texts as one."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def obeyed(rows: Sequence[PromptRow], responses: Sequence[str]) -> float:
    """Return the share of constraints that responses obey, by rule: what all this is for. It is
    printed and nothing more: no network learns from it."""
    answered = zip(rows, responses, strict=True)
    held = [constraints.holds(each, text) for row, text in answered for each in row.constraints]
    return float(np.mean(held))


def gapo() -> tuple[float, float]:
    """Run Algorithm 1; return how much was obeyed on held-out prompts before and after."""
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:4.0f} s  {text}", flush=True)

    # In: the policy pi_theta, its reference pi_ref, the value function V and the reward model R.
    tokens_BT, features_BD = jnp.ones((1, 2), jnp.int32), jnp.ones((1, WIDTH))
    policy = start(generator, policy_adam, Stream.GENERATOR_WEIGHTS, tokens_BT, tokens_BT)
    reference = policy.params
    value = start(critic, critic_adam, Stream.CRITIC_WEIGHTS, features_BD)
    reward = start(
        discriminator, disc_adam, Stream.DISCRIMINATOR_WEIGHTS, tokens_BT, tokens_BT,
        scale=math.sqrt(768 / WIDTH),  # the spread of BERT's weights is for 768
    )  # fmt: skip

    # In: the dataset D' of preferential pairs, and the prompts to answer.
    draw = rng.stream(SEED, Stream.PROMPTS)
    prompts = make_prompts(tasks("train"), TYPES, 4 * RESPONSES, draw, max_constraints=1)
    heldout = make_prompts(tasks("heldout_topics"), TYPES, RESPONSES, draw, max_constraints=1)
    asked = [task for task in tasks("train")[:64] for _ in range(8)]
    written = sample(reference, [task.text for task in asked], Stream.BOOTSTRAP).texts
    known = list(zip(asked, written, strict=True))
    pairs = build_pairs(known, type_ids=TYPES, num_pairs=PAIRS, rng=draw, max_constraints=1)
    accepted = as_texts([pair.sides[0] for pair in pairs], ACCEPTED)
    rejected = as_texts([pair.sides[1] for pair in pairs], REJECTED)
    say(f"{len(pairs)} preferential pairs, such as {pairs[0].response!r}")
    say(f"    under {pairs[0].prompt_accepted!r}, not {pairs[0].prompt_rejected!r}")

    def evaluate() -> float:
        texts = sample(policy.params, [row.prompt for row in heldout], Stream.EVALUATION).texts
        return obeyed(heldout, texts)

    before = evaluate()
    say(f"held-out prompts: {before:.1%} of constraints obeyed")

    # Steps 1 to T_w, the warm-up: the discriminator alone, as many accepted as rejected texts.
    order = rng.stream(SEED, Stream.WARMUP_PAIRS)
    for sides in batches((accepted, rejected), BATCH // 2, order, WARMUP_EPOCHS):
        reward, figures = update(discriminator_loss, disc_adam, reward, joined(*sides))
    say(f"warm-up: the discriminator is right about {figures['disc/accuracy']:.0%} of a batch")

    # Steps T_w + 1 to T_w + T: discriminator and generator take turns.
    for number in range(1, ROUNDS + 1):
        order = rng.stream(SEED, Stream.PROMPT_ORDER, number)
        rows = [prompts[i] for i in order.permutation(len(prompts))[:RESPONSES]]
        sampled = sample(policy.params, [row.prompt for row in rows], Stream.ROLLOUT, number)
        sides = zip([row.prompt for row in rows], sampled.texts, strict=True)
        generated = as_texts(list(sides), GENERATED)

        # Odd: as much accepted text as other text, half of which is generated.
        mix = (accepted, BATCH // 2), (rejected, BATCH // 4), (generated, BATCH // 4)
        for _ in range(DISC_UPDATES):
            texts = [next(batches(part, size, order)) for part, size in mix]
            reward, figures = update(discriminator_loss, disc_adam, reward, joined(*texts))

        # Even: the generator goes where the discriminator now sees obedience.
        scores_B = score(reward.params, generated)
        nets = policy.params, reference, value.params
        experience = build_experience(*nets, sampled.rollout, scores_B)
        for rollout, features_BRD in batches(experience, BATCH, order, PPO_EPOCHS):
            policy, moved = update(policy_loss, policy_adam, policy, rollout)
            value, _ = update(critic_loss, critic_adam, value, rollout, features_BRD)
        say(
            f"round {number:2}: {obeyed(rows, sampled.texts):.1%} obeyed; logits "
            f"{figures['disc/score_accepted']:+.1f} accepted {figures['disc/score_rejected']:+.1f} "
            f"rejected {scores_B.mean():+.1f} generated; KL {moved['policy/approx_kl']:.3f} a step"
        )
    after = evaluate()
    say(f"held-out prompts: {before:.1%} -> {after:.1%} of constraints obeyed, for example")
    print(rows[0].prompt, "\n>", sampled.texts[0])
    return before, after


if __name__ == "__main__":
    gapo()
