"""What the discriminator learns from: which texts, with which targets, in which batches.

Algorithm 1 of GAPO (arXiv 2503.20194): accepted prompts 1, rejected prompts 0, generated text by
the label policy. All of it is decided in numpy, a function of (seed, round) alone.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from gapo_jax.config import Config, DiscriminatorConfig
from gapo_jax.data.batching import batch_at, mixed_batches, text_buckets
from gapo_jax.data.curriculum import in_use
from gapo_jax.data.discriminator_text import encode_discriminator
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.evaluate.text_health import repetition
from gapo_jax.rng import Stream, stream
from gapo_jax.train.discriminator.steps import TextBatch
from gapo_jax.train.discriminator.texts import GeneratedText, LabelledText, Text
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED, Preference


def is_accepted(config: DiscriminatorConfig, verdict: Verdict) -> bool:
    """Return whether every constraint holds (strict) and the text does not repeat itself."""
    return all(verdict.strict) and repetition(verdict.response) <= config.max_repetition


def pairs_in_use(config: Config, count: int, done: float) -> int:
    """Return how many of `count` pairs to draw from after a part `done` of the training."""
    data = config.data
    return in_use(count, done, share=data.curriculum, start=data.curriculum_start)


def pair_texts(pair: Preference, positive: float) -> tuple[LabelledText, LabelledText]:
    """Return the accepted and the rejected text of a pair."""
    accepted, rejected = pair.sides
    return (
        LabelledText(*accepted, ACCEPTED, positive),
        LabelledText(*rejected, REJECTED, 0.0),
    )


def label_generated(
    texts: Sequence[GeneratedText], config: DiscriminatorConfig
) -> list[LabelledText]:
    """Give generated text its target by `config.label_policy`; `drop_verified` leaves some out."""
    labelled = []
    for text in texts:
        if config.label_policy == "drop_verified" and text.verified:
            continue
        target = {
            "paper": 0.0,
            "soft": config.soft_label,
            "verified": config.positive_label if text.verified else 0.0,
            "drop_verified": 0.0,
            "demonstration": 0.0,
        }[config.label_policy]
        labelled.append(LabelledText(text.prompt, text.response, GENERATED, target))
    return labelled


def round_texts(
    config: DiscriminatorConfig,
    pairs: Sequence[Preference],
    fresh: Sequence[GeneratedText],
    replay: Sequence[GeneratedText],
    *,
    seed: int,
    round_index: int,
) -> list[LabelledText]:
    """Compose the texts of one round's update, in batches of like length (`mixed_batches`).

    Of updates_per_round * batch_size texts, `generated_fraction` are generated (of which
    `replay_fraction` from earlier rounds, as far as the replay buffer goes) and the rest are half
    accepted, half rejected, as pairs. Generated texts repeat where there are too few of them, so
    that the mix has the share that was asked for; where the label policy leaves none, real texts
    take their room. For the Bradley-Terry loss the same shares hold of half as many comparisons of
    two texts, see `compared`.

    With `generated_prompts="pairs"` the real texts stand under the prompts of the generated ones,
    see `texts_under`. With the labels `demonstration` all of them are accepted, and every
    comparison has a generated text.
    """
    rng = stream(seed, Stream.ROUND_TEXTS, round_index)
    pairwise = config.loss == "bradley_terry"
    total = config.updates_per_round * config.batch_size // (2 if pairwise else 1)
    demonstrated = config.label_policy == "demonstration"
    wanted = total if pairwise and demonstrated else round(total * config.generated_fraction)
    new, old = label_generated(fresh, config), label_generated(replay, config)
    if not (new or old):
        wanted = 0
    replayed = min(round(wanted * config.replay_fraction), len(old))
    if not new:
        replayed = wanted
    generated = _draw(rng, new, wanted - replayed) + _draw(rng, old, replayed)
    num_pairs = total if pairwise else -(-(total - wanted) // 2)
    shared = config.generated_prompts == "pairs"
    if shared and num_pairs:
        asked = [text.prompt for text in generated or fresh]
        parts = (total - wanted, wanted) if pairwise else (num_pairs,)
        real = [t for n in parts for t in texts_under(rng, asked, pairs, 2 * n, config)]
    else:
        chosen = []
        if num_pairs:
            chosen = batch_at(
                seed, Stream.ROUND_PAIRS, step=round_index, n=len(pairs), batch_size=num_pairs
            )
        real = [text for i in chosen for text in pair_texts(pairs[i], config.positive_label)]
    if pairwise:
        units = compared(rng, generated, real, total, shared)
    else:
        units = [(text,) for text in (*generated, *real[: total - wanted])]
    rows = config.batch_size // (2 if pairwise else 1)
    kinds = [tuple((text.kind, text.target > 0.5) for text in unit) for unit in units]
    lengths = [max(len(text.prompt + text.response) for text in unit) for unit in units]
    order = mixed_batches(kinds, lengths, rows, rng)
    return [text for i in order for text in units[i]]


def texts_under(
    rng: np.random.Generator,
    asked: Sequence[str],
    pairs: Sequence[Preference],
    count: int,
    config: DiscriminatorConfig,
) -> list[LabelledText]:
    """Return `count` texts of pairs, accepted and rejected in turn, under the prompts of `asked`,
    in proportion to how often each occurs there; accepted ones alone with the labels
    `demonstration`.

    For the Bradley-Terry loss an accepted text and the next, rejected one share their prompt. Under
    a prompt that is accepted and never rejected (pairs that come in no cycles) the rejected side of
    its own pair stands for the rejected text.
    """
    sides: tuple[dict[str, list[LabelledText]], ...] = ({}, {})
    other_sides: dict[str, list[LabelledText]] = {}
    for pair in pairs:
        accepted, rejected = pair_texts(pair, config.positive_label)
        sides[0].setdefault(accepted.prompt, []).append(accepted)
        sides[1].setdefault(rejected.prompt, []).append(rejected)
        other_sides.setdefault(accepted.prompt, []).append(rejected)
    times = collections.Counter(prompt for prompt in asked if prompt in sides[0])
    names = [list(times)[i] for i in rng.permutation(len(times))]
    slots = [prompt for prompt in names for _ in range(times[prompt])]
    together = 2 if config.loss == "bradley_terry" else 1
    # Every n-th slot, from a random start.
    draws = count // together
    places = ((np.arange(draws) + rng.random()) * len(slots) / draws).astype(int)
    prompts = [slots[place] for place in places for _ in range(together)]
    texts: list[LabelledText] = []
    used: collections.Counter[tuple[str, int]] = collections.Counter()
    for number, prompt in enumerate(prompts):
        kind = 0 if config.label_policy == "demonstration" else number % 2
        options = sides[kind].get(prompt) or other_sides[prompt]
        texts.append(options[used[prompt, kind] % len(options)])
        used[prompt, kind] += 1
    return texts


def compared(
    rng: np.random.Generator,
    generated: Sequence[LabelledText],
    real: Sequence[LabelledText],
    total: int,
    shared: bool = False,
) -> list[tuple[LabelledText, ...]]:
    """Arrange texts as `total` comparisons (better, worse) for the Bradley-Terry loss.

    A generated text stands against one of the other label: of the same prompt if the round has
    sampled such a one, which is what the policy's advantages compare, else a real text (as Eq. 6
    of GAPO contrasts accepted responses with generated ones). With `shared` prompts it is a real
    text of the same prompt, so that every prompt has equally many real and generated texts. The
    other comparisons are pairs as they came: accepted, rejected, accepted, ...
    """
    by_prompt: dict[tuple[str, bool], list[LabelledText]] = {}
    for text in generated:
        by_prompt.setdefault((text.prompt, text.target > 0.5), []).append(text)
    real_under: dict[tuple[str, bool], list[LabelledText]] = {}
    for text in real if shared else ():
        real_under.setdefault((text.prompt, text.target > 0.5), []).append(text)
    pairs: list[tuple[LabelledText, ...]] = []
    for text in generated:
        good = text.target > 0.5
        wanted = text.prompt, not good
        others = real_under.get(wanted) or by_prompt.get(wanted) or real[good::2]
        other = others[int(rng.integers(len(others)))]
        pairs.append((text, other) if good else (other, text))
    return pairs + list(zip(real[::2], real[1::2], strict=True))[: total - len(pairs)]


def _draw(
    rng: np.random.Generator, texts: Sequence[LabelledText], count: int
) -> list[LabelledText]:
    """Draw `count` texts without replacement, starting over when all are used."""
    drawn: list[LabelledText] = []
    while len(drawn) < count:
        order = rng.permutation(len(texts))[: count - len(drawn)]
        drawn += [texts[i] for i in order]
    return drawn


def class_weights(targets: Sequence[float], balance: bool) -> np.ndarray:
    """Return a weight for each text, float32 [B], mean 1.

    With `balance` the positive and the negative mass are equal, whatever the label policy makes
    of the generated text; a batch with one side only keeps weight 1.
    """
    targets_B = np.asarray(targets, np.float32)
    positive, count = float(targets_B.sum()), len(targets_B)
    if not balance or positive <= 0 or positive >= count:
        return np.ones(count, np.float32)
    up, down = count / (2 * positive), count / (2 * (count - positive))
    return (targets_B * up + (1 - targets_B) * down).astype(np.float32)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], config: DiscriminatorConfig
) -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    """Return ids, mask and segment ids, int32 [`config.batch_size`, T], of at most so many texts;
    the last one fills the rows that are missing."""
    padded = [*texts, *[texts[-1]] * (config.batch_size - len(texts))]
    arrays = encode_discriminator(
        tokenizer,
        [text.prompt for text in padded],
        [text.response for text in padded],
        config.max_tokens,
        pad_to=text_buckets(config.max_tokens),
    )
    tokens_BT, mask_BT, type_ids_BT = (jnp.asarray(array_BT) for array_BT in arrays)
    return tokens_BT, mask_BT, type_ids_BT


def make_batch(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    weights: Sequence[float] | np.ndarray,
    config: DiscriminatorConfig,
) -> TextBatch:
    """Encode texts as one batch of `config.batch_size` rows; missing rows get weight 0."""
    padded = [*texts, *[texts[-1]] * (config.batch_size - len(texts))]
    weights_B = np.zeros(config.batch_size, np.float32)
    weights_B[: len(texts)] = weights
    tokens_BT, mask_BT, type_ids_BT = encode_texts(tokenizer, padded, config)
    return TextBatch(
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        type_ids_BT=type_ids_BT,
        targets_B=jnp.array([text.target for text in padded], jnp.float32),
        weights_B=jnp.asarray(weights_B),
        classes_B=jnp.array([text.kind for text in padded], jnp.int32),
    )


def labelled_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    config: DiscriminatorConfig,
) -> Iterator[TextBatch]:
    """Yield the texts in their order as encoded batches, weighted over the whole of them.

    Comparisons (Bradley-Terry) have two sides of equal mass anyway and are not weighted.
    """
    balance = config.balance_classes and config.loss == "bce"
    weights_B = class_weights([text.target for text in texts], balance)
    for start in range(0, len(texts), config.batch_size):
        rows = slice(start, start + config.batch_size)
        yield make_batch(tokenizer, texts[rows], weights_B[rows], config)
