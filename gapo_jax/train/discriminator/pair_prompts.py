"""Share prompts between the round's rollouts and the pairs that the discriminator learns from.

Algorithm 1 of GAPO (arXiv 2503.20194), lines 10 to 12, generates from the accepted prompts of the
same pairs that it learns from. With `discriminator.generated_prompts="pairs"` the rollouts' prompts
are accepted prompts of the training pairs, and the real texts of a round stand under the very
prompts that its generated texts stand under, as often as those. So a prompt says nothing about
where its text comes from; with prompts of their own it may, and a discriminator whose generated
text is labelled 0 would learn the prompt instead of the constraint.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from gapo_jax.config import Config
from gapo_jax.data.curriculum import cycles_of
from gapo_jax.data.sources import accepted_prompts
from gapo_jax.evaluate.second_opinion import auc
from gapo_jax.rng import Stream, stream
from gapo_jax.train.build import Models
from gapo_jax.train.datasets.self_generated import Pairs, Prompts, fitting, prompt_widths
from gapo_jax.train.discriminator.batches import pairs_in_use
from gapo_jax.types import PromptRow


def with_prompts_of_pairs(
    config: Config, models: Models, prompts: Prompts, pairs: Pairs
) -> Prompts:
    """Return the prompts of a run with the accepted prompts of its training pairs to learn on.

    Raises:
        ValueError: most are longer than `data.max_prompt_tokens`.
    """
    rows = accepted_prompts(pairs.train, "pair")
    train = fitting(config, models, rows, len(rows), "of the pairs")
    width, train_width = prompt_widths(
        config, models, train, [*prompts.heldout.values(), prompts.bootstrap]
    )
    return dataclasses.replace(prompts, train=train, width=width, train_width=train_width)


def prompts_of_round(
    config: Config, pool: Sequence[PromptRow], pairs: Pairs, index: int, attempt: int = 0
) -> list[PromptRow]:
    """Return `ppo.prompts_per_round` accepted prompts of the pairs that are in use in a round.

    An epoch has every prompt once. The prompts of a cycle come one after the other, so that both
    sides of most pairs are answered in the same round.

    Args:
        config: the run.
        pool: the accepted prompts of all pairs.
        pairs: the pairs of the run.
        index: of the round, from 0.
        attempt: further ones have other orders (`grpo.dynamic_sampling`).
    """
    known = pairs_in_use(config, len(pairs.compared), index / config.rounds)
    in_use = {pair.sides[0][0] for pair in pairs.compared[:known]}
    rows = [row for row in pool if row.prompt in in_use]
    cycle_of = {
        pair.prompt_accepted: int(cycle)
        for pair, cycle in zip(pairs.train, cycles_of(pairs.train), strict=True)
    }
    cycles_A = np.unique([cycle_of[row.prompt] for row in rows], return_inverse=True)[1]
    count, chosen = config.ppo.prompts_per_round, []
    while len(chosen) < count:
        epoch, offset = divmod(index * count + len(chosen), len(rows))
        rng = stream(config.seed, Stream.PAIR_PROMPT_ORDER, attempt, epoch)
        places_A = rng.permutation(int(cycles_A.max()) + 1)[cycles_A]
        order = np.argsort(places_A, kind="stable")[offset : offset + count - len(chosen)]
        chosen += [rows[i] for i in order]
    return chosen


def prompt_auc(prompts: Sequence[str], generated: Sequence[bool]) -> float:
    """Return how well prompts alone tell generated text from real text: the area under the ROC
    curve, .5 for not at all, 1 for always; NaN where all texts are of one kind.

    A naive Bayes classifier of the words that a prompt has, with add-one smoothing, scores each
    half of the texts after learning from the other half. A prompt's generated texts are shared out
    equally among the halves, and so are its real ones: what can be learned of a prompt that comes
    again and again counts, as it does for the discriminator. Both begin with the same half, as a
    prompt's one generated and one real text in different halves would be told the wrong way round.
    """
    kinds_B = np.asarray(generated, bool)
    if kinds_B.all() or not kinds_B.any():
        return float("nan")
    words = [set(prompt.casefold().split()) for prompt in prompts]
    column = {word: place for place, word in enumerate(sorted(set().union(*words)))}
    has_BV = np.zeros((len(prompts), len(column)))
    for b, some in enumerate(words):
        has_BV[b, [column[word] for word in some]] = 1
    first = {prompt: place % 2 for place, prompt in enumerate(dict.fromkeys(prompts))}
    seen: collections.Counter[tuple[str, bool]] = collections.Counter()
    half_B = np.zeros(len(prompts), int)
    for b, text in enumerate(zip(prompts, kinds_B.tolist(), strict=True)):
        half_B[b] = (first[text[0]] + seen[text]) % 2
        seen[text] += 1
    scores_B = np.zeros(len(prompts))
    for half in (0, 1):
        known_B, held_B = half_B != half, half_B == half
        shares = [
            (has_BV[rows_B].sum(axis=0) + 1) / (rows_B.sum() + 2)
            for rows_B in (known_B & kinds_B, known_B & ~kinds_B)
        ]
        scores_B[held_B] = has_BV[held_B] @ np.log(shares[0] / shares[1])
    return auc(scores_B, kinds_B)
