"""Rows of one's own as the arrays of a batch.

Rows lie at the right edge, as `buckets.cut_rows` leaves them: their last tokens in the last column,
what pads them before. The networks read positions and visibility from the mask. A batch is as wide
as one of few widths; each width that occurs is compiled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gapo_jax.config import Config
from gapo_jax.data.batching import bucket, bucket_widths, round_up
from gapo_jax.data.row_table import Encoded, RowTable
from gapo_jax.data.training_rows import Want
from gapo_jax.methods import method_of
from gapo_jax.train.discriminator.texts import LabelledText
from gapo_jax.train.offline.examples import mismatched_examples
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.types import ACCEPTED, REJECTED, Rollout

# Rows of one's own differ in length, so there are several widths even where none are asked for.
_WIDTHS = 4
_LONG, _UNIT = 1024, 128


@dataclasses.dataclass(frozen=True)
class Widths:
    """The widths that batches of a table come in, and the columns of their answers."""

    widths: tuple[int, ...]
    answer: int

    @classmethod
    def of(cls, config: Config, table: RowTable) -> Widths:
        """Choose them for the lengths of a table."""
        limit = 2 * int(table.lengths.max())
        answer = round_up(int(table.answers.max()) + 1, limit)
        top = int(table.lengths.max())
        if method_of(config).layout == "halves":  # a prompt before the response of another
            top = int((table.lengths - table.answers).max() + table.answers.max())
        top = round_up(top, 2 * top + _UNIT, 8 if top < _LONG else _UNIT)
        count = max(_WIDTHS, config.offline.length_buckets)
        return cls(bucket_widths(count, float(table.lengths.min()), top), answer)

    @classmethod
    def up_to(cls, config: Config, max_tokens: int) -> Widths:
        """Choose them for rows of which only the greatest length is known."""
        top = max_tokens * (2 if method_of(config).layout == "halves" else 1)
        count = max(_WIDTHS, config.offline.length_buckets)
        return cls(bucket_widths(count, top / 2**count, top), top)

    def rows(self, sides: Sequence[Encoded], pad_id: int) -> Rollout:
        """Return sides as the rows of a batch, numpy arrays; `logprobs_BR` is not known and 0."""
        width = bucket(max(len(side.ids) for side in sides), self.widths)
        answer = min(self.answer, width - 1)
        tokens_BT = np.full((len(sides), width), pad_id, np.int32)
        mask_BT = np.zeros((len(sides), width), np.int32)
        trained_BT = np.zeros((len(sides), width), np.int32)
        for row, side in enumerate(sides):
            start = width - len(side.ids)
            tokens_BT[row, start:], mask_BT[row, start:] = side.ids, 1
            for first, end in zip(side.cuts[::2], side.cuts[1::2], strict=True):
                # Nothing comes before the first token of a text, so nothing can foretell it.
                trained_BT[row, start + max(first, 1) : start + end] = 1
        fields: dict[str, Any] = {
            "tokens_BT": tokens_BT,
            "mask_BT": mask_BT,
            "response_mask_BR": trained_BT[:, width - answer :],
            "logprobs_BR": np.zeros((len(sides), answer), np.float32),
        }
        return Rollout(**fields)


def sides_at(columns: Mapping[str, list[Any]]) -> list[Encoded]:
    """Return the sides of the examples of `RowTable.take`, those of one example together."""
    return [
        Encoded(*side)
        for ids, cuts in zip(columns["ids"], columns["cuts"], strict=True)
        for side in zip(ids, cuts, strict=True)
    ]


def mismatched_sides(sides: Sequence[Encoded], prompts: np.ndarray) -> list[Encoded]:
    """Return each prompt with the response of another row, of another prompt where there is one;
    `prompts` are the hashes of the rows' prompts."""
    mismatched = []
    for side, other in zip(sides, mismatched_examples(prompts), strict=True):
        prompt, response = side.ids[: side.cuts[0]], sides[other]
        ids = [*prompt, *response.ids[response.cuts[0] :]]
        mismatched.append(Encoded(ids, (side.cuts[0], len(ids))))
    return mismatched


def make_batch(
    table: RowTable, want: Want, shapes: Widths, places: np.ndarray, pad_id: int
) -> OfflineBatch:
    """Return the examples at some places of a table as a batch."""
    columns = table.take(places)
    sides = sides_at(columns)
    numbers: dict[str, Any] = {
        "rewards_B": np.array([r for rewards in columns["rewards"] for r in rewards], np.float32)
    }
    if want == "labelled":
        numbers["desirable_B"] = (numbers["rewards_B"] > 0.5).astype(np.int32)
        others = mismatched_sides(sides, np.array(columns["prompt"], np.int64))
        numbers["mismatched"] = shapes.rows(others, pad_id)
    return OfflineBatch(rows=shapes.rows(sides, pad_id), **numbers)


def labelled_texts(columns: Mapping[str, list[Any]], positive: float) -> list[LabelledText]:
    """Return the texts of examples with their targets, those of one example together."""
    return [
        LabelledText(prompt, response, ACCEPTED, positive)
        if reward > 0.5
        else LabelledText(prompt, response, REJECTED, 0.0)
        for sides in zip(columns["prompts"], columns["responses"], columns["rewards"], strict=True)
        for prompt, response, reward in zip(*sides, strict=True)
    ]
