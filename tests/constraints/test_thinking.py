"""What a model writes inside <think>...</think> has no part in a verdict."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapo_jax import constraints
from gapo_jax.constraints.text import final_answer
from gapo_jax.types import Constraint

CASES = [
    ("Tea, please", "Tea, please"),
    ("<think>one, two</think>Tea", "Tea"),
    ("\n<think>\none, two\n</think>\n\nTea\n", "Tea\n"),
    ("one, two\n</think>\nTea", "Tea"),  # the chat template has opened the block
    ("<think>one, two", ""),  # cut off before the answer
    ("  <think>", ""),
    ("<think>a</think><think>b, c", ""),
    ("<think>a</think>Tea<think>b, c</think> is hot", "Tea is hot"),
    ("The tag <think> opens, it", "The tag <think> opens, it"),
    ("<think></think>", ""),
    ("<think>a <think> b</think>c", "c"),
    ("", ""),
]


@pytest.mark.parametrize(("response", "answer"), CASES)
def test_the_answer_by_hand(response, answer):
    assert final_answer(response) == answer


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", ","])).map("".join))
def test_an_answer_has_no_thinking(text):
    answer = final_answer(text)
    assert "</think>" not in answer and final_answer(answer) == answer
    if "think>" not in text:
        assert answer == text


def test_every_way_to_a_verdict_leaves_the_thinking_out(responses):
    response = "<think>\nNo commas, okay.\n</think>\n\nTea is warm"
    no_comma = Constraint("punctuation:no_comma")
    ids, kwargs = [no_comma.id], [{}]
    assert constraints.check(response, ids, kwargs) == [True]
    assert constraints.check_loose(response, ids, kwargs) == [True]
    assert constraints.holds(no_comma, response)
    words = Constraint("length_constraints:number_words", {"num_words": 4, "relation": "at least"})
    assert not constraints.holds(words, response)
    assert constraints.get(words.id).shortfall(words, response) == pytest.approx(1 / 4)
    title = "<think>which?</think><<Tea>>"
    assert constraints.check(title, ["title"], [{}]) == [True]
    unfinished = "<think>Tea is warm"
    assert constraints.check(unfinished, ids, kwargs) == [False]
    assert constraints.check_loose(unfinished, ids, kwargs) == [False]


def test_long_runs_of_tags_take_linear_time():
    for piece in ("<think>", "</think>", "<think></think>", "<think>\n"):
        assert final_answer(piece * 200_000 + "</think>x") == "x"
