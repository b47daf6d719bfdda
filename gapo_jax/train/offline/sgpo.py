"""SGPO-style learning: the policy learns to refine its answers, then prefers its refinements.

Sourced (arXiv 2507.20181, abstract and summary): improver and policy are one model. The improver is
trained for incremental improvements of the current response with the SFT output as a guide. Then
follows preference optimisation on policy: the refinement is chosen, the response rejected, and both
are written by that one model. What the sources leave open is this project's reconstruction:
templates, filters, weights and sizes, all in `config.sgpo`. In particular, stage 1 refines
responses that violate their prompt, guided by responses to the same prompt that satisfy it, both
from the preferential pairs; and stage 2 scores the refinement under the plain prompt.

What the two stages learn from is written to the workdir (`sgpo_improver.jsonl`,
`sgpo_pairs.jsonl`), and so are the log-probs of stage 2's reference, the policy at the end of
stage 1 (`sgpo_reference.jsonl`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from gapo_jax import rng
from gapo_jax.compilation import jit_step
from gapo_jax.config import system_text
from gapo_jax.data.batching import epoch_order, round_up
from gapo_jax.data.preferences import Example, Side, preferential_responses
from gapo_jax.io import read_jsonl, write_jsonl
from gapo_jax.losses import sequence_logprobs
from gapo_jax.options import SGPOConfig
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import generate, prompt_lengths
from gapo_jax.train.buckets import Bucketed
from gapo_jax.train.clock import counter
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.self_generated import ended_responses
from gapo_jax.train.offline.batch_sources import ExampleBatches
from gapo_jax.train.offline.examples import Encoder, cut_off_texts, fit
from gapo_jax.train.offline.steps import OfflineBatch, row_logprobs
from gapo_jax.train.state import GAPOState
from gapo_jax.types import Params, Rollout

Records = list[dict[str, Any]]
Item = TypeVar("Item")


def edit_distance(first: str, second: str) -> float:
    """Return the Levenshtein distance of two texts divided by the length of the longer one: 0 for
    the same text, 1 for nothing in common."""
    b = np.frombuffer(second.encode("utf-32-le"), np.uint32)
    places = np.arange(len(b) + 1)
    row = places.copy()
    for letter in np.frombuffer(first.encode("utf-32-le"), np.uint32):
        best = row + 1
        best[1:] = np.minimum(best[1:], row[:-1] + (b != letter))
        # Insertions run along the row: each place is at most the one before it plus 1.
        row = np.minimum.accumulate(best - places) + places
    return float(row[-1]) / max(len(first), len(second), 1)


def ask(
    ctx: TrainContext, params: Params, prompts: Sequence[str], stream: Stream, name: str
) -> list[tuple[str, bool]]:
    """Sample one response to each prompt; return (text, whether it ended within the limit). The
    console calls them by `name`."""
    config, tokenizer = ctx.config, ctx.models.tokenizer
    system = system_text(config)
    limit = config.sgpo.max_prompt_tokens
    width = round_up(max(prompt_lengths(tokenizer, prompts, system)), limit)
    with ctx.clock("rollout"), counter(len(prompts), name) as advance:
        generated = generate(
            ctx.models.sample,
            params,
            tokenizer,
            prompts,
            rng.row_keys(config.seed, stream, count=len(prompts)),
            batch_size=config.sampling.batch_size,
            width=width,
            temperature=config.sampling.temperature,
            system=system,
            stop=config.sampling.stop,
            on_batch=advance,
        )
    ended_B = ended_responses(config, ctx.models, generated.rollout)
    return list(zip(generated.texts, ended_B.tolist(), strict=True))


def short_enough(ctx: TrainContext, prompts: Sequence[str]) -> list[int]:
    """Return the indices of the prompts of at most `sgpo.max_prompt_tokens` tokens.

    Raises:
        ValueError: there is none.
    """
    limit = ctx.config.sgpo.max_prompt_tokens
    lengths = prompt_lengths(ctx.models.tokenizer, prompts, system_text(ctx.config))
    kept = [index for index, length in enumerate(lengths) if length <= limit]
    if not kept:
        raise ValueError(
            f"none of {len(prompts)} prompts to improve an answer has at most "
            f"config.sgpo.max_prompt_tokens={limit} tokens (shortest: {min(lengths)}); raise it"
        )
    return kept


def refinement_verdict(settings: SGPOConfig, text: str, response: str, reference: str) -> str:
    """Return "kept", or why the refinement `text` of a response is not learned from: a "copy" of
    the reference, "too_close" to the response, "too_far", or "not_nearer" to the reference."""
    moved = edit_distance(text, response)
    if text.strip() == reference.strip():
        return "copy"
    if not settings.min_edit <= moved <= settings.max_edit:
        return "too_close" if moved < settings.min_edit else "too_far"
    nearer = edit_distance(text, reference) < edit_distance(response, reference)
    return "kept" if nearer else "not_nearer"


def comparison_verdict(settings: SGPOConfig, chosen: str, rejected: str) -> str:
    """Return "kept", or why two answers are not compared: the "same" (or none), or their
    "length"."""
    if chosen.strip() == rejected.strip() or not chosen.strip():
        return "same"
    sizes = sorted(max(len(words.split()), 1) for words in (chosen, rejected))
    return "length" if sizes[1] > settings.max_length_ratio * sizes[0] else "kept"


def drawn(ctx: TrainContext, pool: Sequence[Item], stage: int) -> list[Item]:
    """Return up to `sgpo.prompts` of the pool, in an order that depends on seed and stage."""
    order = epoch_order(ctx.config.seed, Stream.SGPO_ORDER, stage, n=len(pool))
    return [pool[i] for i in order[: ctx.config.sgpo.prompts]]


def improver_records(ctx: TrainContext) -> Records:
    """Ask the starting policy to refine up to `sgpo.prompts` answers towards good ones; say which
    results are kept."""
    settings = ctx.config.sgpo
    examples = drawn(ctx, preferential_responses(ctx.pairs.train), 1)
    prompts = [
        settings.refine_template.format(
            prompt=good.prompt, response=bad.response, reference=good.response
        )
        for good, bad in examples
    ]
    chosen = short_enough(ctx, prompts)
    start, asked = ctx.models.for_sampling(ctx.models.ref_params), [prompts[i] for i in chosen]
    refined = ask(ctx, start, asked, Stream.SGPO_REFINEMENTS, "refinements")
    records = []
    for index, (text, whole) in zip(chosen, refined, strict=True):
        good, bad = examples[index]
        records.append(
            {
                "prompt": good.prompt,
                "response": bad.response,
                "reference": good.response,
                "refined": text,
                "ended": whole,
                "verdict": refinement_verdict(settings, text, bad.response, good.response),
            }
        )
    return records


def preference_records(ctx: TrainContext, state: GAPOState) -> Records:
    """Let the policy answer and improve its answers; say which comparisons are kept."""
    config = ctx.config
    prompts = [row.prompt for row in drawn(ctx, ctx.prompts.train, 2)]
    params = ctx.sampling_params(state)
    answers = ask(ctx, params, prompts, Stream.SGPO_ANSWERS, "answers")
    again = [
        config.sgpo.improve_template.format(prompt=prompt, response=text)
        for prompt, (text, _) in zip(prompts, answers, strict=True)
    ]
    chosen = short_enough(ctx, again)
    improved = ask(
        ctx, params, [again[i] for i in chosen], Stream.SGPO_IMPROVEMENTS, "improvements"
    )
    records = []
    for index, (text, whole) in zip(chosen, improved, strict=True):
        answer, was_whole = answers[index]
        records.append(
            {
                "prompt": prompts[index],
                "chosen": text,
                "rejected": answer,
                "cut_off": [t for t, end in ((text, whole), (answer, was_whole)) if not end],
                "verdict": comparison_verdict(config.sgpo, text, answer),
            }
        )
    return records


def stage_records(
    ctx: TrainContext, name: str, make: Callable[[], Records], index: int, first: int
) -> Records:
    """Return the kept records of a stage, made in its first round and read back in the others.

    Args:
        ctx: the run.
        name: the file in the workdir.
        make: asks for refinements and says which are kept.
        index: the present round.
        first: the first round of the stage, which writes how many are kept.

    Raises:
        ValueError: too few are kept for a batch.
    """
    path = ctx.workdir / name
    if not path.exists():
        write_jsonl(path, make())
    records = read_jsonl(path)
    counts = collections.Counter(record["verdict"] for record in records)
    if index == first:
        metrics = {f"sgpo/{verdict}": float(count) for verdict, count in sorted(counts.items())}
        metrics |= {"sgpo/asked": float(len(records)), "sgpo/kept": float(counts["kept"])}
        number = index + 1
        ctx.writer.write(number * ctx.updates_per_round, number, "rollout", metrics)
    if counts["kept"] < ctx.config.offline.batch_size:
        raise ValueError(
            f"the filters of config.sgpo kept {counts['kept']} of {len(records)} refinements "
            f"({dict(counts)}), fewer than config.offline.batch_size="
            f"{ctx.config.offline.batch_size}; widen sgpo.min_edit, sgpo.max_edit or "
            "sgpo.max_length_ratio, or raise sgpo.prompts and data.pairs"
        )
    return [record for record in records if record["verdict"] == "kept"]


def improver_batches(ctx: TrainContext, index: int) -> ExampleBatches:
    """Return stage 1: imitate the refinement under the improve template, and the good answer under
    the plain prompt with the weight `sgpo.answer_weight`."""
    settings = ctx.config.sgpo
    make = functools.partial(improver_records, ctx)
    records = stage_records(ctx, "sgpo_improver.jsonl", make, index, 0)
    examples = [
        (
            Side(
                settings.improve_template.format(prompt=r["prompt"], response=r["response"]),
                r["refined"],
                1.0,
            ),
            Side(r["prompt"], r["reference"], settings.answer_weight),
        )
        for r in records
    ]
    cut_off = (*cut_off_texts(ctx.workdir), *(r["refined"] for r in records if not r["ended"]))
    examples, encoder = fit(
        ctx.config, ctx.models, examples, cut_off, prompt_limit=settings.max_prompt_tokens
    )
    return ExampleBatches(ctx, encoder, examples)


def preference_batches(ctx: TrainContext, state: GAPOState, index: int) -> ExampleBatches:
    """Return stage 2: DPO on the policy's own answers and refinements."""
    make = functools.partial(preference_records, ctx, state)
    first = ctx.config.sgpo.improver_rounds
    records = stage_records(ctx, "sgpo_pairs.jsonl", make, index, first)
    examples = [
        tuple(Side(r["prompt"], r[side], 0.0) for side in ("chosen", "rejected")) for r in records
    ]
    cut_off = [text for r in records for text in r["cut_off"]]
    examples, encoder = fit(ctx.config, ctx.models, examples, cut_off)
    path = ctx.workdir / "sgpo_reference.jsonl"
    if not path.exists():
        write_jsonl(path, reference_records(ctx, state, encoder, examples))
    references = {(r["prompt"], r["response"]): r["logprob"] for r in read_jsonl(path)}
    return ExampleBatches(ctx, encoder, examples, references=references)


def reference_records(
    ctx: TrainContext, state: GAPOState, encoder: Encoder, examples: Sequence[Example]
) -> Records:
    """Return the log-prob of every side under the policy as it is now, stage 2's reference."""
    sides = list(dict.fromkeys(side for example in examples for side in example))
    spec = dataclasses.replace(ctx.models.spec, temperature=1.0)

    def sums(ref_params: Params, trained: Params, rows: Rollout) -> jax.Array:
        logprobs_BR, _, _ = row_logprobs(spec, ref_params, trained, False, rows)
        return sequence_logprobs(logprobs_BR, rows.response_mask_BR)

    score = jit_step(sums, place=spec.place, rows=(2,))
    size, records = ctx.config.offline.batch_size, []
    for start in range(0, len(sides), size):
        part = [sides[i % len(sides)] for i in range(start, start + size)]
        rows = encoder.rows(part, system_text(ctx.config))
        sums_B = np.asarray(score(ctx.models.ref_params, state.policy.params, rows))
        records += [
            {"prompt": side.prompt, "response": side.response, "logprob": float(value)}
            for side, value in zip(part, sums_B, strict=True)
        ]
    return records[: len(sides)]


class RefinementBatches:
    """The batches of both stages; what they learn from is made when a stage begins, or read back in
    a continued run."""

    def __init__(self, ctx: TrainContext, state: GAPOState) -> None:
        """Take a run, of which no stage has begun."""
        del state
        self.ctx, self.stage = ctx, 0

    @property
    def widths(self) -> Sequence[int]:
        """Widths of the batches of the present stage."""
        return self.examples.widths

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Make what the stage of the round learns from, if it has not begun yet."""
        stage = 1 if index < self.ctx.config.sgpo.improver_rounds else 2
        if stage == 1 != self.stage:
            self.examples = improver_batches(self.ctx, index)
        elif stage == 2 != self.stage:
            self.examples = preference_batches(self.ctx, state, index)
        self.stage = stage

    def batch(self, update: int) -> OfflineBatch | Bucketed:
        """Return the examples of an update, encoded."""
        return self.examples.batch(update)
