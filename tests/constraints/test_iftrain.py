"""The 29 training types of IF-RLVR: the verdicts of open-instruct, and rows in AI2's form."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.constraints.fields import FIELDS, IFTRAIN, RELATIONS
from gapo_jax.constraints.rows import constraints_of
from gapo_jax.types import Constraint

ALL = constraints.types("iftrain")
# Inputs of this project with the verdicts of open-instruct's IFEvalG (20 August 2026), recorded by
# running its classes: `build_description(**kwargs)`, then `check_following`.
CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "iftrain_cases.jsonl").read_text("utf-8").splitlines()
]
REQUEST = "Write about a quiet river."
# Texts that satisfy the types which ordinary prose never does.
TEXTS = (
    "The quiet river runs to the sea, and it carries sand. It is deep and slow in summer.",
    "Tea is warm!",
    "[Rivers] [run] [far]",
    "<<The quiet>> <<river runs>>",
    "The river runs.-It is deep!",
    "Rivers run.\n***\nLakes lie.",
    "Rivers run.\n\nLakes lie.",
    "It runs far.\n***\nIt is deep.\n***\nWe go there.",
    "Rivers run. Rivers sleep. Rivers rest at noon",
    "We dive deep. It is deep.",
    "rivers feed lakes and lakes feed rivers",
    "bread with jam and honey, bread with butter or honey",
    REQUEST,
    f"{REQUEST}\n******\n{REQUEST}",
    "quiet river",
    "LOUD WATER, loud people",
    "a small ship on wide water",
)
WORDS = ("harbor", "lantern", "water", "garden")


def test_the_family():
    assert set(ALL) == set(IFTRAIN) == {case["id"] for case in CASES} and len(ALL) == 29
    assert constraints.resolve(["iftrain"]) == ALL and set(ALL) < set(constraints.resolve(["all"]))
    with pytest.raises(ValueError, match="short for keywords:palindrome and words:palindrome"):
        constraints.get("palindrome")


@pytest.mark.parametrize("type_id", ALL)
def test_verdicts_are_those_of_open_instruct(type_id):
    seen = set()
    for case in CASES:
        if case["id"] == type_id:
            for text, wanted in case["verdicts"]:
                got = constraints.check(text, [type_id], [case["kwargs"]])
                assert got == [wanted], (case["kwargs"], text)
                seen.add(wanted)
    assert seen == {True, False}


def test_what_differs_from_open_instruct():
    """A row's own 0 counts, unsafe patterns are literal, and missing arguments are errors."""
    span = {"prompt_to_repeat": REQUEST, "n_start": 0, "n_end": 5}
    for _ in range(5):  # there, 0 is a number drawn anew for each verdict
        assert constraints.check("Write", ["new:copy_span_idx"], [span]) == [True]
    for text, keyword in (("a (b", "(b"), ("a|b", "(a|a)+b"), ("so (a+)+b", "(a+)+b")):
        once = constraints.check(text, ["keywords:word_once"], [{"keyword": keyword}])
        assert once == [keyword in text]
    phrase = {"phrase": "a|b to c", "small_n": 1}
    assert constraints.check("a|b or c", ["copy:repeat_phrase"], [phrase]) == [True]
    for type_id, kwargs, problem in (
        ("letters:letter_counting", {"N": 5}, r"missing \['relation'\]"),
        ("letters:letter_counting", {"N": 0, "relation": "at least"}, "N to be .* 1 or more"),
        ("keywords:word_once", {"keyword": ["a", "b"]}, "keyword to be one word"),
        ("copy:copying_multiple", {"prompt_to_repeat": "x", "N": None}, r"missing \['N'\]"),
    ):
        with pytest.raises(ValueError, match=f"kwargs of {type_id}: expected .*{problem}"):
            constraints.check("x", [type_id], [kwargs])


@pytest.mark.parametrize("type_id", ALL)
def test_probes_and_phrasings(type_id):
    kind = constraints.trainable(type_id)
    assert kind.probes and kind.difference
    for kwargs, good, bad in kind.probes:
        assert constraints.check(good, [type_id], [kwargs]) == [True]
        assert constraints.check(bad, [type_id], [kwargs]) == [False]
    assert len(kind.train_styles) >= 3 and len(kind.heldout_styles) >= 1
    rng = np.random.default_rng(0)
    for _ in range(10):
        made = kind.sample(rng)
        assert made is not None
        said = [kind.describe(made, style) for style in kind.train_styles + kind.heldout_styles]
        assert len({re.sub(r"\W+", " ", text).lower() for text in said}) == len(said)
        for text in said:
            assert (text[0].isupper() or text[0] == '"') and not re.search(r"\{\w+\}|  ", text)
            for field, value in made.kwargs.items():
                if "relation" not in field:
                    number = {"1": "1|once", "2": "2|twice"}.get(str(value), re.escape(str(value)))
                    assert re.search(number, text), (field, text)
        if kind.relation:
            for style in range(len(said)):
                both = [Constraint(type_id, {**made.kwargs, kind.relation: r}) for r in RELATIONS]
                assert len({kind.describe(one, style) for one in both}) == 2


@pytest.mark.parametrize("type_id", ALL)
def test_samples_and_near_misses_are_verified(type_id):
    kind = constraints.trainable(type_id)
    found = {True: 0, False: 0}
    modified = 0
    for seed, text, satisfied in itertools.product(range(4), TEXTS, (True, False)):
        rng = np.random.default_rng([seed, satisfied])
        made = kind.sample(rng, response=text, satisfied=satisfied, words=WORDS, task=REQUEST)
        if made is None:
            continue
        found[satisfied] += 1
        assert constraints.check(text, [type_id], [made.kwargs]) == [satisfied]
        assert Constraint.from_json(made.to_json()) == made
        if satisfied:
            after = constraints.modify(made, text, rng, WORDS, task=REQUEST)
            if after is not None:
                modified += 1
                assert after != made and not constraints.holds(after, text)
                assert 0 < constraints.get(after.id).shortfall(after, text) <= 1
                assert not FIELDS[type_id] or after.id == type_id
    assert min(found.values()) >= 4 and modified >= 4


def test_pairs_are_made_of_these_types_and_of_ifevals():
    rng = np.random.default_rng(0)
    allowed = constraints.types() + ALL
    edited = set()
    for _ in range(60):
        for text in TEXTS[:2]:
            made = [constraints.get(i).sample(rng, response=text, satisfied=True) for i in ALL]
            first = [c for c in made if c is not None and c.id not in edited][:1]
            if first:
                pair = constraints.make_pair(REQUEST, first, text, rng, type_ids=allowed)
                assert pair is not None
                edited.add(first[0].id)
    assert len(edited) >= 15


def test_conflicts_name_known_types_and_copies_stand_alone():
    for type_id in ALL:
        assert type_id in constraints.get(type_id).conflicts <= set(FIELDS)
    for other in ("punctuation:no_comma", "keywords:word_once"):
        assert constraints.conflict("copy:copy", other) and constraints.conflict(other, "copy:copy")
    assert constraints.conflict("detectable_content:postscript", "punctuation:punctuation_dot")


def test_rows_in_the_form_of_if_multi_constraints():
    """`ground_truth` is a text: a list of one dictionary with ids and kwargs side by side."""
    ids = ["keywords:word_once", "last_word:last_word_answer", "punctuation:no_comma"]
    truth = [{"instruction_id": ids, "kwargs": [{"keyword": "tea"}, {"last_word": "cup"}, None]}]
    for text in (str(truth), json.dumps(truth)):
        row = {
            "key": "1", "messages": [{"role": "user", "content": "Write about tea."}],
            "ground_truth": text, "dataset": "ifeval", "constraint_type": "multi",
            "constraint": "Use the word tea once. ...",
        }  # fmt: skip
        read = constraints_of(row)
        assert [c.id for c in read] == ids and read[1].kwargs == {"last_word": "cup"}
        answer = "<think>tea, tea</think>Tea in a cup."
        verdicts = constraints.check(answer, [c.id for c in read], [c.kwargs for c in read])
        assert verdicts == [True, True, True]
    listed = [{"instruction_id": ["first_word:first_word_sent"], "kwargs": [{"first_word": ["I"]}]}]
    assert constraints_of({"ground_truth": str(listed)})[0].kwargs == {"first_word": "I"}
