"""Every type: phrasings, instances near a response, near misses, conflicts."""

import itertools
import re

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.constraints.fields import FIELDS, LANGUAGE_CODES, RELATIONS
from gapo_jax.types import Constraint

ALL = constraints.types()


@pytest.mark.parametrize("type_id", ALL)
def test_probes_are_what_they_say(type_id):
    kind = constraints.get(type_id)
    assert kind.probes and kind.difference
    for kwargs, good, bad in kind.probes:
        assert constraints.check(good, [type_id], [kwargs]) == [True]
        assert constraints.check(bad, [type_id], [kwargs]) == [False]


@pytest.mark.parametrize("type_id", ALL)
def test_phrasings_are_many_and_disjoint(type_id):
    kind = constraints.get(type_id)
    assert len(kind.train_styles) >= 3 and len(kind.heldout_styles) >= 1
    assert not set(kind.train_styles) & set(kind.heldout_styles)
    rng = np.random.default_rng(0)
    for _ in range(20):
        constraint = kind.sample(rng)
        assert constraint is not None
        said = [kind.describe(constraint, s) for s in kind.train_styles + kind.heldout_styles]
        plain = [re.sub(r"\W+", " ", text).lower() for text in said]
        assert len(set(plain)) == len(plain)
        for text in said:
            assert text[0].isupper() and "{" not in text and "  " not in text


@pytest.mark.parametrize("type_id", ALL)
def test_descriptions_say_every_argument(type_id):
    kind = constraints.get(type_id)
    rng = np.random.default_rng(1)
    for _ in range(20):
        constraint = kind.sample(rng)
        assert constraint is not None
        for style in kind.train_styles + kind.heldout_styles:
            text = kind.describe(constraint, style).lower()
            for field, value in constraint.kwargs.items():
                if field in ("relation", "let_relation", "capital_relation"):
                    continue
                for item in value if isinstance(value, list) else [value]:
                    said = LANGUAGE_CODES[item] if field == "language" else str(item)
                    said = {"1": "1|once", "2": "2|twice"}.get(said, re.escape(said))
                    assert re.search(said.lower(), text), (field, item, text)


@pytest.mark.parametrize("type_id", [t for t in ALL if constraints.get(t).relation])
def test_descriptions_say_the_relation(type_id):
    kind = constraints.get(type_id)
    constraint = kind.sample(np.random.default_rng(2))
    assert constraint is not None
    for style in kind.train_styles + kind.heldout_styles:
        texts = {
            kind.describe(Constraint(type_id, {**constraint.kwargs, kind.relation: rel}), style)
            for rel in RELATIONS
        }
        assert len(texts) == 2


def test_describe_refuses_an_unknown_style():
    kind = constraints.get("detectable_format:title")
    with pytest.raises(ValueError, match="style of detectable_format:title: expected 0 to"):
        kind.describe(Constraint(kind.id), 99)


@pytest.mark.parametrize("type_id", ALL)
def test_sampled_instances_hold_or_fail_as_asked(type_id, responses, words):
    kind = constraints.get(type_id)
    found = {True: 0, False: 0}
    for seed, response, satisfied in itertools.product(range(6), responses, (True, False)):
        rng = np.random.default_rng([seed, satisfied])
        made = kind.sample(rng, response=response, satisfied=satisfied, words=words)
        again = np.random.default_rng([seed, satisfied])
        assert made == kind.sample(again, response=response, satisfied=satisfied, words=words)
        if made is None:
            continue
        found[satisfied] += 1
        assert made.id == type_id
        assert constraints.check(response, [made.id], [made.kwargs]) == [satisfied]
        assert Constraint.from_json(made.to_json()) == made
    # The texts hold a satisfying and a violating response for every type.
    assert found[True] >= 6 and found[False] >= 6


@pytest.mark.parametrize("type_id", ALL)
def test_modify_always_violates_and_changes_something(type_id, responses, words):
    kind = constraints.get(type_id)
    made = 0
    for seed, response in itertools.product(range(6), responses):
        rng = np.random.default_rng(seed)
        before = kind.sample(rng, response=response, satisfied=True, words=words)
        if before is None:
            continue
        after = constraints.modify(before, response, rng, words)
        if after is None:
            continue
        made += 1
        assert after != before
        assert constraints.check(response, [after.id], [after.kwargs]) == [False]
        assert 0 < constraints.get(after.id).shortfall(after, response) <= 1
        if FIELDS[kind.id]:
            assert after.id == type_id  # a near miss of the same type
    assert made >= 6


def test_near_misses_are_near(responses):
    """Three bullets become two, four or five; of two keywords one gives way to an absent one."""
    bullets = constraints.get("detectable_format:number_bullet_lists")
    three = Constraint(bullets.id, {"num_bullets": 3})
    numbers = {
        bullets.modify(three, responses[2], np.random.default_rng(seed)).kwargs["num_bullets"]
        for seed in range(30)
    }
    assert numbers == {1, 2, 4, 5}
    kind = constraints.get("keywords:existence")
    two = Constraint(kind.id, {"keywords": ["river", "summer"]})
    for seed in range(30):
        near = kind.modify(two, responses[0], np.random.default_rng(seed), ("lantern",))
        kept = {"river", "summer"} & set(near.kwargs["keywords"])
        absent = set(near.kwargs["keywords"]) - kept
        assert kept and absent and not any(word in responses[0].lower() for word in absent)


def test_modify_stays_within_the_types_allowed():
    kind = constraints.get("detectable_format:title")
    rng = np.random.default_rng(0)
    response = "<<Tea>> A warm drink."
    for allowed in (["startend:quotation"], ["startend:end_checker"]):
        made = constraints.modify(Constraint(kind.id), response, rng, types=allowed)
        assert made is not None and [made.id] == allowed
    assert constraints.modify(Constraint(kind.id), response, rng, types=[]) is None
    assert kind.modify(Constraint(kind.id), response, rng) is None  # no near miss of its own


def test_numbers_lie_near_the_response():
    rng = np.random.default_rng(0)
    text = " ".join(["word"] * 40)
    kind = constraints.get("length_constraints:number_words")
    for satisfied in (True, False):
        numbers = [
            constraint.kwargs["num_words"]
            for _ in range(200)
            if (constraint := kind.sample(rng, response=text, satisfied=satisfied))
        ]
        assert len(numbers) == 200 and 10 <= min(numbers) < 40 < max(numbers) <= 70
    text = "One. Two. Three."
    kind = constraints.get("length_constraints:number_sentences")
    for satisfied in (True, False):
        numbers = {
            constraint.kwargs["num_sentences"]
            for _ in range(200)
            if (constraint := kind.sample(rng, response=text, satisfied=satisfied))
        }
        assert numbers == {2, 3, 4, 5}


def test_both_relations_are_drawn_alike_on_either_side():
    kind = constraints.get("length_constraints:number_words")
    rng = np.random.default_rng(0)
    text = " ".join(["word"] * 30)
    for satisfied in (True, False):
        relations = [
            constraint.kwargs["relation"]
            for _ in range(400)
            if (constraint := kind.sample(rng, response=text, satisfied=satisfied))
        ]
        assert 150 < relations.count("at least") < 250


def test_keywords_come_from_the_siblings_words(responses, words):
    rng = np.random.default_rng(0)
    response = responses[0]
    inside = set(constraints.content_words(response))
    assert "river" in inside and "the" not in inside
    for type_id, field, present in (
        ("keywords:existence", "keywords", True),
        ("keywords:forbidden_words", "forbidden_words", False),
    ):
        kind = constraints.get(type_id)
        for _ in range(50):
            good = kind.sample(rng, response=response, satisfied=True, words=words)
            bad = kind.sample(rng, response=response, satisfied=False, words=words)
            assert good is not None and bad is not None
            there, elsewhere = (good, bad) if present else (bad, good)
            assert set(there.kwargs[field]) <= inside
            assert set(elsewhere.kwargs[field]) <= set(words)


def test_sample_without_a_response_takes_no_verdict():
    with pytest.raises(ValueError, match="needs a response"):
        constraints.get("detectable_format:title").sample(np.random.default_rng(0), satisfied=True)


def test_conflicts_are_the_releases_and_symmetric():
    for type_id in ALL:
        found = constraints.get(type_id).conflicts
        assert type_id in found and found <= set(ALL)
        assert all(type_id in constraints.get(other).conflicts for other in found)
    assert (
        "change_case:english_lowercase" in constraints.get("change_case:english_capital").conflicts
    )
    assert "startend:quotation" in constraints.get("detectable_format:title").conflicts
