"""Prompts and preferential pairs: one response, two prompts, one edited constraint."""

import collections
import dataclasses

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.constraints import plugins
from gapo_jax.constraints.template import draw_style, render, styles_of
from gapo_jax.types import Constraint, PreferentialPair

TASK = "Tell me about the old harbor"
TEN = constraints.resolve(
    "no_comma number_words forbidden_words existence quotation title number_bullet_lists"
    " postscript end_checker number_sentences".split()
)
NO_COMMA = Constraint("punctuation:no_comma")
LONG = Constraint("length_constraints:number_words", {"num_words": 5, "relation": "at least"})
WATER = Constraint("keywords:existence", {"keywords": ["water"]})


def satisfied_by(response, rng, type_ids, size, words):
    found = []
    for index in rng.permutation(len(type_ids)):
        kind = constraints.get(type_ids[index])
        made = kind.sample(rng, response=response, satisfied=True, words=words, task=TASK)
        if made is not None and len(found) < size:
            found.append(made)
    return tuple(found)


def descriptions(constraint, phrasing):
    kind = constraints.get(constraint.id)
    return [kind.describe(constraint, style) for style in styles_of(constraint.id, phrasing)]


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
def test_prompts_state_task_and_constraints_in_the_phrasing_asked(phrasing):
    other = "heldout" if phrasing == "train" else "train"
    seen = set()
    for seed in range(60):
        prompt = constraints.compose_prompt(
            TASK, [NO_COMMA, WATER], np.random.default_rng(seed), phrasing
        )
        seen.add(prompt)
        assert prompt.startswith(TASK)
        lowered = prompt.lower()
        for constraint in (NO_COMMA, WATER):
            assert any(text.lower() in lowered for text in descriptions(constraint, phrasing))
            assert not any(text.lower() in lowered for text in descriptions(constraint, other))
    assert len(seen) > 30
    assert any("\n" in prompt for prompt in seen) and any("\n" not in prompt for prompt in seen)
    first = [prompt.find("omma") < prompt.find("water") for prompt in seen]
    assert 0 < sum(first) < len(first)  # the order varies


def test_a_prompt_is_a_function_of_the_seed():
    made = [
        constraints.compose_prompt(TASK, [NO_COMMA, WATER], np.random.default_rng(7))
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_prompts_without_constraints_and_wrong_phrasing():
    rng = np.random.default_rng(0)
    assert constraints.compose_prompt(" Say hello. ", [], rng) == "Say hello."
    with pytest.raises(ValueError, match="phrasing: expected one of"):
        constraints.compose_prompt(TASK, [NO_COMMA], rng, "test")


def test_leaving_one_constraint_out_changes_nothing_else():
    items = [NO_COMMA, WATER, Constraint("detectable_format:title")]
    for seed in range(40):
        style = draw_style(items, np.random.default_rng(seed))
        full = render(TASK, items, style)
        for index in range(3):
            rest = [item for i, item in enumerate(items) if i != index]
            shorter = render(TASK, rest, style.without(index))
            for i, item in enumerate(items):
                said = constraints.get(item.id).describe(item, style.styles[i]).lower()
                assert said in full.lower()
                assert (said in shorter.lower()) == (i != index)


@pytest.mark.parametrize("kind", [None, "modify", "insert", "polarity"])
@pytest.mark.parametrize("type_ids", [TEN, constraints.types()], ids=["ten", "all"])
def test_every_pair_is_preferential(kind, type_ids, responses, words):
    made = collections.Counter()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for response in responses:
            chosen = satisfied_by(response, rng, type_ids, int(rng.integers(1, 4)), words)
            pair = constraints.make_pair(
                TASK, chosen, response, rng, kind=kind, words=words, type_ids=type_ids
            )
            if pair is None:
                continue
            made[pair.edit] += 1
            assert kind in (None, pair.edit)
            assert pair.accepted == chosen and pair.response == response and pair.task == TASK
            held = [constraints.check(response, [c.id], [c.kwargs])[0] for c in pair.accepted]
            broken = [c for c in pair.rejected if not constraints.holds(c, response)]
            assert all(held) and len(broken) == 1
            assert {c.id for c in pair.rejected} <= set(type_ids)
            assert len(pair.rejected) == len(chosen) + (pair.edit == "insert")
            assert all(c in chosen or c in broken for c in pair.rejected)
            edited = pair.rejected if pair.edit == "insert" else pair.accepted
            assert pair.type in {c.id for c in edited}
            assert pair.prompt_accepted != pair.prompt_rejected
            assert PreferentialPair.from_json(pair.to_json()) == pair
    assert set(made) == ({kind} if kind else {"modify", "insert", "polarity"})
    assert min(made.values()) > 20


def test_the_two_prompts_differ_in_the_edited_constraint_only(responses, words):
    rng = np.random.default_rng(0)
    response = responses[0]
    river = Constraint("keywords:existence", {"keywords": ["river"]})
    for kind in ("modify", "polarity", "insert"):
        # The twin of one of two opposites would be the other type a second time.
        chosen = (WATER_FREE, LONG if kind == "polarity" else river)
        for _ in range(40):
            pair = constraints.make_pair(TASK, chosen, response, rng, kind=kind, words=words)
            assert pair is not None
            kept = [c for c in pair.accepted if c in pair.rejected]
            for constraint in kept:
                said = [
                    [text for text in descriptions(constraint, "train") if text.lower() in prompt]
                    for prompt in (pair.prompt_accepted.lower(), pair.prompt_rejected.lower())
                ]
                assert len(said[0]) == 1 and said[0] == said[1]
            if kind != "insert":
                assert pair.prompt_accepted.count("\n") == pair.prompt_rejected.count("\n")
                assert ("Also, " in pair.prompt_accepted) == ("Also, " in pair.prompt_rejected)


WATER_FREE = Constraint("keywords:forbidden_words", {"forbidden_words": ["lantern"]})


def test_polarity_keeps_words_and_wording(responses):
    rng = np.random.default_rng(0)
    response = responses[0]
    cases = [
        (Constraint("keywords:existence", {"keywords": ["river"]}), "forbidden_words"),
        (WATER_FREE, "keywords"),
    ]
    for constraint, field in cases:
        for _ in range(40):
            pair = constraints.make_pair(TASK, [constraint], response, rng, kind="polarity")
            assert pair is not None and pair.edit == "polarity" and pair.type == constraint.id
            (asked,) = constraint.kwargs.values()
            assert pair.rejected[0].kwargs == {field: asked}
            # The same sentence but for a word or two that turn its sense.
            texts = (pair.prompt_accepted.split(), pair.prompt_rejected.split())
            change = collections.Counter(texts[0])
            change.subtract(texts[1])
            assert sum(abs(count) for count in change.values()) <= 4


def test_polarity_is_balanced_over_both_directions(responses, words):
    rng = np.random.default_rng(0)
    types = ("keywords:existence", "keywords:forbidden_words")
    seen = collections.Counter()
    for _ in range(200):
        for response in responses[:6]:
            chosen = satisfied_by(response, rng, types, 1, words)
            pair = constraints.make_pair(
                TASK, chosen, response, rng, kind="polarity", words=words, type_ids=types
            )
            seen[pair.rejected[0].id if pair else None] += 1
    assert 0.45 < seen[types[0]] / (seen[types[0]] + seen[types[1]]) < 0.55


def test_no_prompt_asks_for_a_word_and_forbids_it(responses, words):
    rng = np.random.default_rng(0)
    river = Constraint("keywords:existence", {"keywords": ["river", "summer"]})
    for kind in ("modify", "insert"):
        for _ in range(100):
            pair = constraints.make_pair(
                TASK, [river, WATER_FREE], responses[0], rng, kind=kind, words=words
            )
            assert pair is not None
            asked = collections.Counter(
                word
                for c in pair.rejected
                for field in ("keywords", "forbidden_words")
                for word in c.kwargs.get(field, ())
            )
            assert max(asked.values()) == 1


class Alone(constraints.TrainableType):
    """A type that excludes every other; only this type knows."""

    id = "tests:alone"
    train = ("Say abc and nothing else.",)
    heldout = ("The only word is abc.",)
    conflicts = frozenset(constraints.types())

    def check(self, constraint, response, prompt=""):
        return response.strip() == "abc"


def test_an_edit_goes_with_what_is_kept(responses, monkeypatch):
    """Also where only the other type knows that the two exclude each other."""
    monkeypatch.setattr(plugins, "_TYPES", {})
    constraints.register(Alone)
    assert constraints.conflict("punctuation:no_comma", Alone.id)
    assert constraints.conflict(Alone.id, "punctuation:no_comma")
    assert not constraints.conflict("punctuation:no_comma", "keywords:existence")
    rng = np.random.default_rng(0)
    for accepted, possible in (([], True), ([LONG], False)):
        pair = constraints.make_pair(
            TASK, accepted, responses[0], rng, kind="insert", type_ids=(Alone.id,)
        )
        assert (pair is not None) == possible


def test_target_chooses_the_edited_type(responses, words):
    rng = np.random.default_rng(0)
    response = responses[0]
    chosen = satisfied_by(response, rng, TEN, 2, words)
    for type_id in TEN:
        pair = constraints.make_pair(
            TASK, chosen, response, rng, kind="insert", target=type_id, type_ids=TEN
        )
        if pair is not None:
            assert pair.type == type_id and not constraints.holds(pair.rejected[-1], response)
    pair = constraints.make_pair(TASK, chosen, response, rng, kind="modify", target=chosen[1].id)
    assert pair is not None and pair.type == chosen[1].id and pair.rejected[0] == chosen[0]


def test_pairs_that_cannot_be():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="got violated .*no_comma"):
        constraints.make_pair(TASK, [NO_COMMA], "One, two", rng)
    with pytest.raises(ValueError, match="kind: expected one of"):
        constraints.make_pair(TASK, [NO_COMMA], "One two", rng, kind="delete")
    assert constraints.make_pair(TASK, [NO_COMMA], "One two", rng, kind="polarity") is None
    assert constraints.make_pair(TASK, [], "One two", rng, kind="modify") is None


def test_verify_pair_refuses_what_is_no_pair(responses):
    rng = np.random.default_rng(0)
    pair = constraints.make_pair(TASK, [LONG, WATER_FREE], responses[0], rng, kind="polarity")
    assert pair is not None
    constraints.verify_pair(pair)
    with pytest.raises(ValueError, match="Eq. 4"):
        constraints.verify_pair(dataclasses.replace(pair, rejected=pair.accepted))
    with pytest.raises(ValueError, match="all hold"):
        constraints.verify_pair(dataclasses.replace(pair, accepted=pair.rejected))
    two = (NO_COMMA, Constraint("detectable_format:title"))
    with pytest.raises(ValueError, match="one edited constraint"):
        constraints.verify_pair(dataclasses.replace(pair, rejected=two))
    constraints.verify_pair(dataclasses.replace(pair, rejected=two, edit="replace"))
    with pytest.raises(ValueError, match="replace pair: .* 0 lost"):
        more = (*pair.accepted, NO_COMMA)
        constraints.verify_pair(dataclasses.replace(pair, rejected=more, edit="replace"))


@pytest.mark.parametrize(
    ("type_id", "field", "extra", "numbers"),
    [
        ("detectable_format:number_bullet_lists", "num_bullets", {}, {4: 0.75, 5: 0.6, 9: 1 / 3}),
        ("detectable_format:number_bullet_lists", "num_bullets", {}, {2: 2 / 3, 1: 1 / 3}),
        ("length_constraints:number_words", "num_words", {"relation": "less than"},
         {13: 12 / 13, 7: 6 / 13}),
        ("length_constraints:number_words", "num_words", {"relation": "at least"},
         {14: 13 / 14, 26: 0.5}),
    ],
)  # fmt: skip
def test_difficulty_is_how_near_the_miss_is(type_id, field, extra, numbers, responses):
    response = responses[2]  # 3 bullets, 13 words
    accepted = (Constraint("keywords:existence", {"keywords": ["water"]}),)
    for number, wanted in numbers.items():
        rejected = (*accepted, Constraint(type_id, {field: number, **extra}))
        pair = PreferentialPair("t", response, accepted, rejected, "a", "b", "insert", type_id)
        constraints.verify_pair(pair)
        assert constraints.difficulty(pair) == pytest.approx(wanted)
    pair = dataclasses.replace(pair, rejected=(*accepted, Constraint("detectable_format:title")))
    assert constraints.difficulty(pair) == 0.0
