"""The same pairs read as preferential prompts and as preferential responses."""

import collections

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.data import preferences
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.data.tokenizer import decode_responses, encode_responses


def _rows(examples, side):
    return collections.Counter((e[side].prompt, e[side].response) for e in examples)


def test_both_readings_hold_the_same_rows_with_the_same_labels(pairs):
    prompts = preferences.preferential_prompts(pairs)
    responses = preferences.preferential_responses(pairs)
    assert len(prompts) == len(responses) == len(pairs)
    for side in (0, 1):
        assert _rows(prompts, side) == _rows(responses, side)
    assert all(good.response == bad.response != "" for good, bad in prompts)
    assert all(good.prompt == bad.prompt for good, bad in responses)
    assert all(good.response != bad.response for good, bad in responses)
    for good, bad in (*prompts, *responses):
        assert good.reward == 1.0 > bad.reward


def _constraints_of(pairs):
    found = {}
    for pair in pairs:
        found |= {pair.prompt_accepted: pair.accepted, pair.prompt_rejected: pair.rejected}
    return found


@pytest.mark.parametrize("make", ["preferential_prompts", "preferential_responses"])
def test_more_sides_are_of_the_same_task_and_rewarded_by_the_verifiers(pairs, make):
    examples = getattr(preferences, make)(pairs, 4, np.random.default_rng(1))
    assert len(examples) > len(pairs) // 2
    known, tasks = _constraints_of(pairs), {p.prompt_accepted: p.task for p in pairs}
    tasks |= {p.prompt_rejected: p.task for p in pairs}
    seen = set()
    for sides in examples:
        assert len({(s.prompt, s.response) for s in sides}) == 4
        assert len({tasks[s.prompt] for s in sides}) == 1
        assert sides[0].reward == 1.0 > sides[1].reward
        for side in sides:
            chosen = known[side.prompt]
            held = constraints.check(
                side.response, [c.id for c in chosen], [dict(c.kwargs) for c in chosen]
            )
            assert side.reward == pytest.approx(sum(held) / len(held))
        seen |= {side.reward for side in sides}
    assert {0.0, 1.0} < seen  # some constraints of two hold: rewards in between
    with pytest.raises(ValueError, match="pass rng"):
        getattr(preferences, make)(pairs, 3)


def test_supervised_rows_are_the_accepted_ones_once_each(pairs):
    rows = preferences.accepted_rows([*pairs, *pairs])
    wanted = {(pair.prompt_accepted, pair.response) for pair in pairs}
    assert len(rows) == len(wanted)
    assert {(side.prompt, side.response) for (side,) in rows} == wanted


def test_texts_that_were_cut_off_get_no_end_nor_do_edits_of_their_form():
    cut = "Tea is warm, and it is grown on the slop"
    texts = [cut, f'"{cut.upper()}"', cut.replace(",", ""), "Tea is warm.", f"{cut}es of hills."]
    assert preferences.ends(texts, [cut]) == [False, False, False, True, True]
    tokenizer = character_tokenizer()
    end = tokenizer.eos_token_id
    tokens, mask = encode_responses(tokenizer, ["ab", "abc"], [True, False], 5, end)
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert tokens[0, 2] == end != tokens[1, 2]
    assert decode_responses(tokenizer, tokens, mask) == ["ab", "abc"]
    with pytest.raises(ValueError, match="at most 3 tokens, got 4 in response 1"):
        encode_responses(tokenizer, ["ab", "abcd"], [True, False], 3, end)
