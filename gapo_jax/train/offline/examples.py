"""What the offline methods learn from: examples of one or more sides, encoded as batches."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gapo_jax.config import Config, system_text
from gapo_jax.data.batching import batch_at, bucket_widths, like_lengths, round_up
from gapo_jax.data.chat import end_id, response_ids
from gapo_jax.data.curriculum import in_use
from gapo_jax.data.preferences import (
    Example,
    Side,
    accepted_rows,
    ends,
    preferential_prompts,
    preferential_responses,
)
from gapo_jax.data.tokenizer import chat_prompt, encode_prompts, encode_responses
from gapo_jax.io import read_jsonl
from gapo_jax.losses import mismatched_rows
from gapo_jax.methods import Layout, method_of, sides_of
from gapo_jax.rng import Stream, stream
from gapo_jax.rollout.generate import prompt_lengths
from gapo_jax.train.buckets import Bucketed, in_bucket
from gapo_jax.train.build import Models
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.types import PreferentialPair, Rollout

log = logging.getLogger("gapo_jax")
# A number for every (prompt, response).
BySide = Mapping[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns sides into rows of width P + R.

    Attributes:
        models: gives the tokenizer and the end token.
        prompt_width, response_width: P and R.
        cut_off: texts that sampling cut; they get no end token.
        lengths: the tokens of the longest side of each example.
        widths: of the buckets that the batches come in, () for one.
    """

    models: Models
    prompt_width: int
    response_width: int
    cut_off: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    def rows(self, sides: Sequence[Side], system: str | None = None) -> Rollout:
        """Return the rows as numpy arrays; `logprobs_BR` is not known and 0."""
        tokenizer = self.models.tokenizer
        texts = [chat_prompt(tokenizer, side.prompt, system) for side in sides]
        width = self.prompt_width
        tokens_BP, mask_BP = encode_prompts(tokenizer, texts, width, buckets=(width,))
        responses = [side.response for side in sides]
        tokens_BR, mask_BR = encode_responses(
            tokenizer,
            responses,
            ends(responses, self.cut_off),
            self.response_width,
            end_of(self.models),
        )
        fields: dict[str, Any] = {
            "tokens_BT": np.concatenate([tokens_BP, tokens_BR], axis=1),
            "mask_BT": np.concatenate([mask_BP, mask_BR], axis=1),
            "response_mask_BR": mask_BR,
            "logprobs_BR": np.zeros(mask_BR.shape, np.float32),
        }
        return Rollout(**fields)


def end_of(models: Models) -> int | None:
    """Return the token that ends a response where the chat template has none."""
    return end_id(models.tokenizer, models.decoder.config.eos_ids)


def cut_off_texts(workdir: Path) -> tuple[str, ...]:
    """Return the bootstrap responses that reached the length limit without an end."""
    path = workdir / "bootstrap.jsonl"
    records = read_jsonl(path) if path.exists() else []
    return tuple(record["response"] for record in records if not record["ended"])


def make_examples(config: Config, pairs: Sequence[PreferentialPair]) -> list[Example]:
    """Return the examples of an offline method, a function of pairs and seed.

    Raises:
        ValueError: the pairs give none; names the key to change.
    """
    if method_of(config).layout == "accepted":
        return accepted_rows(pairs)
    preference, size = config.data.preference, max(2, sides_of(config))
    make = {"prompts": preferential_prompts, "responses": preferential_responses}[preference]
    examples = make(pairs, size, stream(config.seed, Stream.EXAMPLES))
    if not examples:
        remedy = (
            "set config.data.preference='prompts': no prompt occurs both accepted and rejected"
            if size == 2
            else "lower config.rpo.responses or raise config.data.responses_per_task and "
            "config.data.pairs"
        )
        raise ValueError(
            f"none of the {len(pairs)} pairs gives an example with {size} {preference}; {remedy}"
        )
    return examples


def side_tokens(
    config: Config, models: Models, examples: Sequence[Example], cut_off: Sequence[str]
) -> dict[Side, tuple[int, int]]:
    """Return the (prompt, response) tokens of every side, template and end token included."""
    prompts = list(dict.fromkeys(side.prompt for sides in examples for side in sides))
    responses = list(dict.fromkeys(side.response for sides in examples for side in sides))
    lengths = prompt_lengths(models.tokenizer, prompts, system_text(config))
    prompt_tokens = dict(zip(prompts, lengths, strict=True))
    response_tokens = {
        text: len(ids)
        for text, ids in zip(
            responses,
            response_ids(models.tokenizer, responses, ends(responses, cut_off), end_of(models)),
            strict=True,
        )
    }
    return {
        side: (prompt_tokens[side.prompt], response_tokens[side.response])
        for sides in examples
        for side in sides
    }


def fit(
    config: Config,
    models: Models,
    examples: Sequence[Example],
    cut_off: Sequence[str],
    *,
    prompt_limit: int = 0,
    batch_size: int = 0,
) -> tuple[list[Example], Encoder]:
    """Return the examples all of whose sides fit, and the encoder of their widths.

    Prompts may have `data.max_prompt_tokens`, or `prompt_limit` tokens if that is given; a batch
    holds `offline.batch_size` examples, or `batch_size`.

    Raises:
        ValueError: more than half are too long, or fewer are left than a batch holds; gives the
            lengths and the keys to change.
    """
    limits = (
        prompt_limit or config.data.max_prompt_tokens,
        config.offline.max_response_tokens,
    )
    batch_size = batch_size or config.offline.batch_size
    tokens = side_tokens(config, models, examples, cut_off)
    sizes = [
        tuple(max(tokens[side][axis] for side in sides) for axis in (0, 1)) for sides in examples
    ]
    kept = [i for i, size in enumerate(sizes) if size[0] <= limits[0] and size[1] <= limits[1]]
    if 2 * len(kept) < len(examples) or len(kept) < batch_size:
        median = np.median(np.array(sizes), axis=0)
        raise ValueError(
            f"only {len(kept)} of {len(examples)} examples fit (median {median[0]:.0f} prompt and "
            f"{median[1]:.0f} response tokens) and a batch holds {batch_size}; "
            f"raise the limit on prompts (config.data.max_prompt_tokens, here {limits[0]}), "
            f"config.offline.max_response_tokens={limits[1]} or config.data.pairs"
        )
    if len(kept) < len(examples):
        log.info("left out %d of %d examples: too long", len(examples) - len(kept), len(examples))
    prompt, response = (
        round_up(max(sizes[i][axis] for i in kept), limits[axis]) for axis in (0, 1)
    )
    longest = tuple(max(sum(tokens[side]) for side in examples[i]) for i in kept)
    # KTO puts prompts before the responses of others.
    top = prompt + response
    top = top if method_of(config).layout == "halves" else round_up(max(longest), top)
    widths = bucket_widths(config.offline.length_buckets, min(longest), top)
    encoder = Encoder(models, prompt, response, tuple(cut_off), longest, widths)
    return [examples[i] for i in kept], encoder


def mismatched_examples(examples_B: np.ndarray) -> list[int]:
    """Return `losses.mismatched_rows`, skipping rows of the same example: where one epoch ends and
    the next begins, a batch may hold an example twice."""
    rows = mismatched_rows(len(examples_B))
    if (examples_B == examples_B[0]).all():
        return rows
    for i, j in enumerate(rows):
        while examples_B[j] == examples_B[i]:
            j = (j + 1) % len(examples_B)
        rows[i] = j
    return rows


def drawn(config: Config, encoder: Encoder, known: int, update: int) -> np.ndarray:
    """Return the examples of an update out of the first `known`, int64 [batch_size].

    Where batches have several widths, the examples of a round (or of an epoch, if that is shorter)
    are cut into batches by length, which come in random order.
    """
    seed, size = config.seed, config.offline.batch_size
    draw = functools.partial(batch_at, seed, Stream.OFFLINE_ORDER, n=known)
    if not encoder.widths:
        return draw(step=update, batch_size=size)
    together = max(1, min(config.offline.steps_per_round, known // size))
    window, place = divmod(update, together)
    picks = draw(step=window, batch_size=together * size)
    lengths = np.array(encoder.lengths)[picks]
    rng = stream(seed, Stream.OFFLINE_WIDTHS, window)
    return picks[list(like_lengths(lengths, size, 1, rng))[place]]


def in_use_at(config: Config, examples: int, update: int) -> int:
    """Return how many of the examples, from easy to hard, an update draws from."""
    if not config.data.curriculum:
        return examples
    done = update / (config.rounds * config.offline.steps_per_round)
    share, start = config.data.curriculum, config.data.curriculum_start
    known = in_use(examples, done, share=share, start=start)
    # At least a batch of them: KTO puts a prompt beside the response of another.
    return min(examples, max(config.offline.batch_size, known))


def laid_out(
    layout: Layout, chosen: Sequence[Example], picks: np.ndarray
) -> tuple[list[Side], dict[str, list[Side]]]:
    """Return the rows of a batch to learn from, and by the name in `OfflineBatch` those beside
    them. `picks` are the numbers of the `chosen` examples."""
    if layout == "halves":
        # All accepted rows, then all rejected ones: the rotation by one then goes from one pair to
        # the next, never to the other side of the same pair, whose response may be the same.
        sides = [example[k] for k in (0, 1) for example in chosen]
        others = mismatched_examples(np.tile(picks, 2))
        mismatched = [
            Side(side.prompt, sides[i].response, 0.0) for side, i in zip(sides, others, strict=True)
        ]
        return sides, {"mismatched": mismatched}
    if layout == "conditions":
        return [example[0] for example in chosen], {"condition": [e[1] for e in chosen]}
    return [side for example in chosen for side in example], {}


def offline_batch(
    config: Config,
    encoder: Encoder,
    examples: Sequence[Example],
    update: int,
    rewards: BySide | None = None,
    references: BySide | None = None,
) -> OfflineBatch | Bucketed:
    """Return the batch of an update, in its bucket if there are any: a function of the seed, the
    number of the update and the examples alone.

    Args:
        config: the run.
        encoder: made with the examples, by `fit`.
        examples: to draw from.
        update: counted over the whole run.
        rewards: these take the place of the sides' own.
        references: the log-probs of the sides under a reference that the batch brings along.
    """
    picks = drawn(config, encoder, in_use_at(config, len(examples), update), update)
    sides, beside = laid_out(method_of(config).layout, [examples[i] for i in picks], picks)
    system = system_text(config)

    texts = [(side.prompt, side.response) for side in sides]
    rewards_B = [(rewards or {}).get(text, s.reward) for text, s in zip(texts, sides, strict=True)]
    numbers: dict[str, Any] = {"rewards_B": np.array(rewards_B, np.float32)}
    if references:
        numbers["ref_B"] = np.array([references[text] for text in texts], np.float32)
    rows = encoder.rows(sides, system)
    others = {name: encoder.rows(part, system) for name, part in beside.items()}
    batch = OfflineBatch(rows=rows, **others, **numbers)
    lengths = [np.sum(part.mask_BT, axis=1) for part in (rows, *others.values())]
    return in_bucket(batch, np.concatenate(lengths), encoder.widths)
