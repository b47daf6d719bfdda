"""From easy to hard: the order of the pairs, and how many of them are in use."""

import collections

import numpy as np

from gapo_jax import constraints
from gapo_jax.data import curriculum, preferences


def _balance(pairs):
    """How often each prompt is accepted less how often it is rejected, where that is not 0."""
    count = collections.Counter(pair.prompt_accepted for pair in pairs)
    count.subtract(pair.prompt_rejected for pair in pairs)
    return {prompt: n for prompt, n in count.items() if n}


def test_cycles_stay_together_and_near_misses_come_last(pairs):
    order = curriculum.easiest_first(pairs)
    assert sorted(map(repr, order)) == sorted(map(repr, pairs)) and order != pairs
    cycles = curriculum.cycles_of(order)
    ends = [i + 1 for i in range(len(order)) if i + 1 == len(order) or cycles[i] != cycles[i + 1]]
    assert len(ends) == len(set(cycles)) > 10
    # Whole cycles: no prompt gives the label away among the easiest, at every cut between two.
    assert not any(_balance(order[:end]) for end in ends)
    means, start = [], 0
    for end in ends:
        means.append(np.mean([constraints.difficulty(pair) for pair in order[start:end]]))
        start = end
    assert means == sorted(means) and means[0] < means[-1]


def test_the_share_in_use_grows_from_the_start_to_all():
    def share(done, share=0.5):
        return curriculum.in_use(200, done, share=share, start=0.25)

    assert [share(done) for done in (0.0, 0.25, 0.5, 0.9)] == [50, 125, 200, 200]
    assert share(0.0, share=0.0) == 200
    assert curriculum.in_use(3, 0.0, share=1.0, start=0.01) == 1


def test_responses_as_the_discriminator_reads_them(pairs):
    found = preferences.response_pairs(pairs)
    examples = preferences.preferential_responses(pairs)
    wanted = [tuple((side.prompt, side.response) for side in sides) for sides in examples]
    assert [pair.sides for pair in found] == wanted
    # In the order of the rejected sides, so that an order of pairs is one of these too.
    rejected = [pair.sides[1] for pair in pairs]
    assert [pair.sides[1] for pair in found] == rejected
