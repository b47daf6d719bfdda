"""Frozen reward models as sources of rewards: `model:PATH-or-hub-id` in `config.reward.sources`.

A reward model reads a dialogue as its own chat template writes it. Without a template a decoder
reads prompt and response as one text, and an encoder reads them as a pair.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from gapo_jax import models as networks
from gapo_jax import rng
from gapo_jax.compilation import jit_step
from gapo_jax.config import Config
from gapo_jax.data.chat import dialogue_text
from gapo_jax.data.chat_template import template_of
from gapo_jax.data.discriminator_text import encode_texts
from gapo_jax.models import RewardModel
from gapo_jax.models.hf.head_code import HEAD_FILE
from gapo_jax.rng import Stream
from gapo_jax.sharding import Placement
from gapo_jax.train.discriminator.steps import (
    TextReader,
    disc_score_step,
    discriminator_placement,
)
from gapo_jax.train.sources import load_discriminator, source
from gapo_jax.train.toy_models import TOY_MODELS
from gapo_jax.types import Params, PromptRow

_NARROWEST = 32  # tokens; wider batches are a power of two wide, so few widths are compiled


@dataclasses.dataclass(frozen=True)
class RewardModelSource:
    """A frozen network that scores dialogues.

    Attributes:
        module, params, tokenizer: the network, its parameters and its own tokenizer.
        score: its compiled scores of (params, tokens, mask, segment ids).
        batch_size: rows of a batch.
        normalised: whether it reads texts as our discriminators do (`data/discriminator_text.py`),
            because one of our runs exported it.
    """

    module: TextReader
    params: Params
    tokenizer: PreTrainedTokenizerFast
    score: Callable[..., jax.Array]
    batch_size: int
    normalised: bool = False

    def logits(self, rows: Sequence[PromptRow], responses: Sequence[str]) -> np.ndarray:
        """Return the logits of responses, float32 [B].

        A text that is longer than the network's positions loses its beginning (an encoder's pair:
        the middles of its texts).
        """
        encoded = [self._encode(row, text) for row, text in zip(rows, responses, strict=True)]
        order = np.argsort([len(ids) for ids, _ in encoded], kind="stable")
        logits_B, scored = np.zeros(len(rows), np.float32), []
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = _padded([encoded[i] for i in chosen], self.batch_size, self._pad_id)
            scored.append((chosen, self.score(self.params, *batch)))
        # Fetched at the end, so that a batch is made while the device scores the one before.
        for chosen, batch_logits_B in scored:
            logits_B[chosen] = np.asarray(batch_logits_B)[: len(chosen)]
        return logits_B

    @property
    def _pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return pad_id if isinstance(pad_id, int) else 0

    def _encode(self, row: PromptRow, response: str) -> tuple[list[int], list[int]]:
        """Return ids and segment ids of a prompt with its response."""
        limit = self.module.config.max_positions
        if template_of(self.tokenizer) is None and not isinstance(self.module, RewardModel):
            arrays = encode_texts(
                self.tokenizer, [row.prompt], [response], limit, as_is=not self.normalised
            )
            return arrays.tokens_BT[0].tolist(), arrays.type_ids_BT[0].tolist()
        turns: list[Mapping[str, str]] = [*row.turns]
        turns = turns or [{"role": "user", "content": row.prompt}]
        turns.append({"role": "assistant", "content": response})
        ids = dialogue_text(self.tokenizer, turns).ids[-limit:]
        return ids, [0] * len(ids)


def _padded(
    rows: Sequence[tuple[list[int], list[int]]], count: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (tokens, mask, segment ids), int32 [count, T]; the first row fills up the batch."""
    rows = [*rows, *[rows[0]] * (count - len(rows))]
    longest = max(len(ids) for ids, _ in rows)
    width = max(_NARROWEST, 1 << (longest - 1).bit_length())
    tokens_BT = np.full((count, width), pad_id, np.int32)
    mask_BT, type_ids_BT = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
    for index, (ids, segments) in enumerate(rows):
        tokens_BT[index, : len(ids)] = ids
        mask_BT[index, : len(ids)] = 1
        type_ids_BT[index, : len(ids)] = segments
    return tokens_BT, mask_BT, type_ids_BT


def check_reward_model(target: str) -> None:
    """Raise FileNotFoundError or ValueError if there is no such model; reads no weights."""
    if target not in TOY_MODELS:
        networks.inspect(source(target))


def load_reward_source(config: Config, target: str, place: Placement) -> RewardModelSource:
    """Return a reward model with its own head, on the mesh of the discriminator.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or has no head of one label.
    """
    # Loaded as a discriminator that no phase trains, so that it must bring its head.
    frozen = Config(method="ppo", seed=config.seed)
    frozen.model = dataclasses.replace(config.model, discriminator=target)
    frozen.discriminator.warmup_epochs, frozen.discriminator.max_tokens = 0, 8
    on_mesh = discriminator_placement(config, place)
    key = rng.key(config.seed, Stream.REWARD_MODEL_WEIGHTS, target)
    module, params, tokenizer = load_discriminator(frozen, key, on_mesh)
    score: Any = functools.partial(disc_score_step, discriminator=module)
    return RewardModelSource(
        module=module,
        params=params,
        tokenizer=tokenizer,
        score=jit_step(score, rows=(1, 2, 3), place=on_mesh, embeddings_by_row=True),
        batch_size=config.discriminator.batch_size,
        normalised=target in TOY_MODELS or (Path(source(target)) / HEAD_FILE).is_file(),
    )
