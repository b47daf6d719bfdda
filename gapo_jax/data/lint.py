"""Check training data before anything is trained: what is wrong, and what the loss covers.

`lint` counts rows that are malformed, empty, truncated, duplicated or wholly masked. It shows the
first example as the model will read it, with marks around the trained part. `LintReport.errors`
lists what would silently train the model on something else than intended.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from gapo_jax import constraints
from gapo_jax.constraints.rows import instance
from gapo_jax.data.chat import dialogue_ids
from gapo_jax.data.schemas import SCHEMAS, Segment, recognise, segments, unused, unused_text
from gapo_jax.data.sources import prompt_row
from gapo_jax.records import Json, JsonObject
from gapo_jax.types import PreferentialPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = ("⟦", "⟧")
_MOST = 0.5  # share of rows from which a fault is no accident
_NAMED = 20  # malformed rows named one by one
_FAULTS = {
    "echoed": "the response begins with the whole prompt: the loss would be taken on the prompt",
    "same_sides": "chosen and rejected, or both prompts, are the same: nothing to prefer",
    "no_prompt": "chosen and rejected come without a prompt: the loss would be taken on all turns; "
    "split these into prompt, chosen and rejected",
    "last_is_user": "the conversation ends with a user turn: its last answer is missing",
}


@dataclasses.dataclass
class LintReport:
    """The findings of `lint`.

    Attributes:
      rows: rows read; `schemas`: rows of each schema.
      malformed: rows that fit no schema or whose fields do not fit; `problems`: the first of them,
        each with its number and the reason.
      empty, truncated, duplicated, all_masked: rows of that kind; truncated needs a limit.
      faults: fault -> rows; labels: label -> rows; unused: field that is not read -> rows.
      example: the first good row as text, with marks around the trained parts.
      lengths: tokens (or words, without a tokenizer) of each good row.
      unit: "tokens" or "words".
    """

    rows: int = 0
    schemas: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    malformed: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    empty: int = 0
    truncated: int = 0
    duplicated: int = 0
    all_masked: int = 0
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    labels: collections.Counter[bool] = dataclasses.field(default_factory=collections.Counter)
    unused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    example: str = ""
    lengths: list[int] = dataclasses.field(default_factory=list)
    unit: str = "words"

    @property
    def errors(self) -> list[str]:
        """Return why this data would train on something else, a sentence each; [] if it is fine."""
        good = self.rows - self.malformed
        errors = []
        if not good:
            first = f": {self.problems[0]}" if self.problems else ""
            errors.append(f"no usable row among {self.rows}{first}")
        if len(self.schemas) > 1:
            errors.append(f"several schemas in one source ({dict(self.schemas)}): split it")
        for fault, rows in self.faults.items():
            if rows > _MOST * good:
                errors.append(f"{rows} of {good} rows: {_FAULTS[fault]}")
        if good and self.all_masked > _MOST * good and set(self.schemas) != {"ifeval"}:
            errors.append(f"{self.all_masked} of {good} rows have nothing to train on")
        if good and self.truncated > _MOST * good:
            errors.append(f"{self.truncated} of {good} rows are cut: raise the length limit")
        if len(self.labels) == 1:
            errors.append(f"every label is {next(iter(self.labels))}: both are needed")
        return errors

    def refuse(self) -> None:
        """Raise ValueError with all `errors`, if there are any."""
        if self.errors:
            raise ValueError(
                "this data would train on something else:\n  " + "\n  ".join(self.errors)
            )

    def to_json(self) -> JsonObject:
        """Return the counts as a JSON-ready dictionary."""
        record = dataclasses.asdict(self)
        for name in ("schemas", "faults", "unused"):
            record[name] = dict(getattr(self, name))
        record["labels"] = {str(label).lower(): rows for label, rows in self.labels.items()}
        record.pop("lengths")
        return {**record, "errors": self.errors}

    def lines(self) -> list[str]:
        """Return the report as lines to print."""
        counts = (
            f"{self.rows} rows ({', '.join(f'{n} {s}' for s, n in self.schemas.items()) or 'none'})"
            f": malformed {self.malformed}, empty {self.empty}, truncated {self.truncated},"
            f" duplicated {self.duplicated}, all masked {self.all_masked}"
        )
        lines = [counts, *(f"  {problem}" for problem in self.problems)]
        if self.lengths:
            ordered = sorted(self.lengths)
            middle, high = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
            lines.append(f"{self.unit} a row: median {middle}, 95% {high}, most {ordered[-1]}")
        lines += [f"  {rows} rows: {_FAULTS[name]}" for name, rows in self.faults.items()]
        lines += [f"warning: {unused_text(self.unused)}"] if self.unused else []
        if self.example:
            lines += [f"first example, trained on between {MARKS[0]} and {MARKS[1]}:", self.example]
        return lines + [f"error: {error}" for error in self.errors]


def encode(
    turns: Sequence[Segment], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Return (ids, mask) of one sequence as training reads it (`encode_for_training`)."""
    return encode_for_training(turns, tokenizer)[:2]


def encode_for_training(
    turns: Sequence[Segment], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int], bool]:
    """Return (ids, mask) of one sequence (`chat.dialogue_ids`), and whether its last answer alone
    is trained on, since the chat template does not show where the earlier ones are.

    Raises:
      ValueError: the template refuses the turns, or rewrites the last answer.
    """
    chat = [{"role": turn.role, "content": turn.text} for turn in turns]
    trained = [index for index, turn in enumerate(turns) if turn.trained]
    try:
        return *dialogue_ids(tokenizer, chat, trained), False
    except ValueError:
        if len(trained) < 2 or trained[-1] != len(turns) - 1:
            raise
    return *dialogue_ids(tokenizer, chat, trained[-1:]), True


def _last_trained(turns: Sequence[Segment]) -> list[Segment]:
    """Return a sequence of which the last turn alone may be trained on."""
    return [*(dataclasses.replace(turn, trained=False) for turn in turns[:-1]), turns[-1]]


def marked(ids: Sequence[int], mask: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """Decode the tokens, putting each trained run between `MARKS`."""
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            text = str(tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False))
            parts.append(f"{MARKS[0]}{text}{MARKS[1]}" if mask[start] else text)
            start = end
    return "".join(parts)


def _plain(turns: Sequence[Segment]) -> str:
    return "\n".join(
        f"{MARKS[0]}{turn.text}{MARKS[1]}" if turn.trained else f"{turn.role}: {turn.text}"
        for turn in turns
    )


def _verify(record: Json, schema: str) -> None:
    """Raise ValueError if the constraints of a row are unknown, invalid or falsely claimed."""
    if schema == "ifeval":
        prompt_row(record)
    elif schema == "preferential":
        if not isinstance(record.get("accepted"), list):
            raise ValueError("wanted the constraints under 'accepted' and 'rejected'")
        pair = PreferentialPair.from_json({k: record[k] for k in _PAIR_FIELDS})
        for constraint in (*pair.accepted, *pair.rejected):
            instance(constraint.id, constraint.kwargs)
        constraints.verify_pair(pair)


_PAIR_FIELDS = tuple(field.name for field in dataclasses.fields(PreferentialPair))


def _faults(sequences: Sequence[Sequence[Segment]], schema: str) -> Iterable[str]:
    if len(sequences) == 2 and [t.text for t in sequences[0]] == [t.text for t in sequences[1]]:
        yield "same_sides"
    if schema in ("messages", "prompt_label") and sequences[0][-1].role == "user":
        yield "last_is_user"
    if schema == "chosen_rejected" and not any(t.role == "user" for t in sequences[0]):
        yield "no_prompt"
    for turns in sequences[:1]:
        prompt = next((t.text.strip() for t in turns if t.role == "user"), "")
        reply = next((t.text.strip() for t in turns if t.trained), "")
        if len(prompt) > 20 and reply.startswith(prompt):
            yield "echoed"


def _measure(report: LintReport, sequences, schema, tokenizer, limit) -> None:
    sizes, texts, trained = [], [], 0
    for turns in sequences:
        if tokenizer is None:
            sizes.append(sum(len(turn.text.split()) for turn in turns))
            trained += sum(len(turn.text.split()) for turn in turns if turn.trained)
            texts.append(_plain(turns))
        else:
            ids, mask = encode(turns, tokenizer)
            sizes.append(len(ids))
            trained += sum(mask[:limit])
            texts.append("" if report.example else marked(ids, mask, tokenizer))
    report.lengths.append(max(sizes))
    report.truncated += limit is not None and max(sizes) > limit
    report.all_masked += trained == 0
    wanted = [turn for turns in sequences for turn in turns if turn.trained] or sequences[0]
    report.empty += any(not turn.text.strip() for turn in wanted)
    report.example = report.example or "\n---\n".join(texts)


def _row(record: Json | str) -> Json:
    if isinstance(record, str):
        raise ValueError(record)  # what the reader found wrong with it
    return record


def lint(
    rows: Iterable[tuple[int, Json | str]],
    *,
    schema: str | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    limit: int | None = None,
    train_on: Literal["last", "all"] = "all",
) -> LintReport:
    """Look through rows of one source.

    Args:
      rows: (number, row) or (number, problem), as `tables.iter_rows` yields them.
      schema: one of `schemas.SCHEMAS`; None recognises it row by row.
      tokenizer: of the model to train; None counts words and shows plain text.
      limit: longest row in tokens (words without a tokenizer).
      train_on: as `config.data.train_on`.

    Raises:
      ValueError: another schema. Bad rows never raise: they are counted and named.
    """
    if schema is not None and schema not in SCHEMAS:
        raise ValueError(f"schema: wanted one of {SCHEMAS}, got {schema!r}")
    report = LintReport(unit="words" if tokenizer is None else "tokens")
    seen: set[bytes] = set()
    for number, record in rows:
        report.rows += 1
        try:
            row = _row(record)
            row_schema = schema or recognise(row)
            sequences = segments(row, row_schema)
            if train_on == "last":
                sequences = [_last_trained(turns) for turns in sequences]
            _verify(row, row_schema)
            _measure(report, sequences, row_schema, tokenizer, limit)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            report.malformed += 1
            if len(report.problems) < _NAMED:
                reason = f"field {error} is missing" if isinstance(error, KeyError) else error
                report.problems.append(f"row {number}: {reason}")
            continue
        report.schemas[row_schema] += 1
        report.unused.update(unused(row, row_schema))
        report.faults.update(_faults(sequences, row_schema))
        if row_schema == "prompt_label":
            report.labels[bool(row["label"])] += 1
        key = hashlib.blake2b(repr(sequences).encode("utf-8", "replace"), digest_size=16).digest()
        report.duplicated += key in seen
        seen.add(key)
    return report
