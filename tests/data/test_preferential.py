"""Preferential pairs: each proven, balanced, and without a shortcut past the response."""

import collections
import re

import numpy as np
import pytest
from by_path import load

from gapo_jax import constraints
from gapo_jax.data import groups, preferential, prompts
from gapo_jax.data.cycles import KINDS
from gapo_jax.data.edits import EDITABLE, rule_edit, sentences
from gapo_jax.data.groups import compatible
from gapo_jax.data.prompts import feasible
from gapo_jax.data.tasks import tasks
from gapo_jax.types import Constraint, PreferentialPair

_ROWS = load("tests/data/rows.py")
ROWS, TYPES = _ROWS.rows(), _ROWS.TYPES


def _build(seed=0, num_pairs=120, **options):
    rng = np.random.default_rng(seed)
    return preferential.build_pairs(
        ROWS, type_ids=options.pop("type_ids", TYPES), num_pairs=num_pairs, rng=rng, **options
    )


@pytest.fixture(scope="module")
def pairs():
    return _build()


def _verdicts(chosen, response):
    return constraints.check(response, [c.id for c in chosen], [dict(c.kwargs) for c in chosen])


def test_every_pair_is_proven_by_the_official_verdicts(pairs):
    assert len(pairs) == 120
    for pair in pairs:
        assert all(_verdicts(pair.accepted, pair.response))
        assert not all(_verdicts(pair.rejected, pair.response))
        assert pair.task in pair.prompt_accepted and pair.task in pair.prompt_rejected
        assert compatible(pair.accepted) and compatible(pair.rejected)


def test_neither_prompt_nor_response_alone_tells_the_label(pairs):
    """Exact, so no classifier of prompts alone, or responses alone, can do better than chance."""
    accepted = collections.Counter(pair.prompt_accepted for pair in pairs)
    rejected = collections.Counter(pair.prompt_rejected for pair in pairs)
    assert accepted == rejected
    assert preferential.pair_statistics(pairs)["prompt_balance"] == 1.0


def _words(text):
    return re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text.lower())


def _held_out_auc(train, test):
    """Fit a bag-of-words logistic regression to (texts, labels); return its AUC on the other."""
    vocabulary = {w: i for i, w in enumerate(sorted({w for t in train[0] for w in _words(t)}))}

    def counts(texts):
        found = np.zeros((len(texts), len(vocabulary) + 1))
        for row, text in enumerate(texts):
            for word in _words(text):
                if word in vocabulary:
                    found[row, vocabulary[word]] += 1
            found[row, -1] = len(text) / 100
        return found

    features, labels = counts(train[0]), np.array(train[1], dtype=float)
    weights = np.zeros(features.shape[1])
    for _ in range(400):
        chance = 1 / (1 + np.exp(-features @ weights))
        weights -= 0.02 * (features.T @ (chance - labels) / len(labels) * 10 + 0.01 * weights)
    scores, truth = counts(test[0]) @ weights, np.array(test[1])
    difference = scores[truth == 1][:, None] - scores[truth == 0][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _texts(pairs, text_of):
    texts = [text_of(p, prompt) for p in pairs for prompt in (p.prompt_accepted, p.prompt_rejected)]
    return texts, [1, 0] * len(pairs)


def test_a_bag_of_words_of_the_prompt_is_at_chance_and_finds_a_planted_shortcut(pairs):
    names = sorted({pair.task for pair in pairs})
    train = [pair for pair in pairs if pair.task not in names[:2]]
    test = [pair for pair in pairs if pair.task in names[:2]]
    auc = _held_out_auc(*(_texts(part, lambda p, prompt: prompt) for part in (train, test)))
    assert auc == pytest.approx(0.5, abs=1e-9)
    # The same probe does see a shortcut where there is one: insertion alone adds to the rejected.
    naive = [[p for p in part if p.edit == "insert"] for part in (train, test)]
    assert _held_out_auc(*(_texts(part, lambda p, prompt: prompt) for part in naive)) > 0.8


def test_types_and_kinds_are_all_there_and_none_dominates(pairs):
    counts = preferential.pair_statistics(pairs)
    assert set(counts["types"]) == set(constraints.resolve(TYPES))
    totals = {name: sum(kinds.values()) for name, kinds in counts["types"].items()}
    assert min(totals.values()) >= 3 and max(totals.values()) <= 0.25 * len(pairs)
    assert set(counts["kinds"]) == set(KINDS)
    for name in ("keywords:existence", "keywords:forbidden_words"):
        assert counts["types"][name]["polarity"] >= 2
        assert counts["types"][name]["modify"] >= 2
    assert counts["type_accepted"] == counts["type_rejected"]


def test_polarity_pairs_keep_words_and_response(pairs):
    found = 0
    for pair in pairs:
        if pair.edit != "polarity":
            continue
        gone = [c for c in pair.accepted if c not in pair.rejected]
        come = [c for c in pair.rejected if c not in pair.accepted]
        assert len(gone) == len(come) == 1 and gone[0].id != come[0].id
        (old,), (new,) = gone[0].kwargs.values(), come[0].kwargs.values()
        assert list(old) == list(new)
        found += 1
    assert found


def test_keywords_come_from_answers_to_the_same_task(pairs):
    """Words of other tasks' answers would turn being on topic into the label."""
    own = collections.defaultdict(str)
    for task, response in ROWS:
        own[task] += " " + response.lower()
    for pair in pairs:
        for constraint in (*pair.accepted, *pair.rejected):
            words = [w for key in ("keywords", "forbidden_words")
                     for w in constraint.kwargs.get(key, ())]  # fmt: skip
            for word in words:
                edited = any(word in p.response.lower() for p in pairs if p.task == pair.task)
                assert word in own[pair.task] or edited, (word, pair.task)


def test_no_pair_twice_and_the_seed_decides(pairs):
    assert len(set(map(repr, pairs))) == len(pairs)
    assert _build() == pairs
    assert _build(seed=1) != pairs


def test_single_constraint_pairs_and_heldout_phrasing():
    single = _build(num_pairs=24, max_constraints=1, phrasing="heldout")
    assert {len(p.accepted) for p in single} == {len(p.rejected) for p in single} == {1}
    train = {
        constraints.get(c.id).describe(c, style)
        for p in single for c in p.accepted for style in constraints.get(c.id).train_styles
    }  # fmt: skip
    assert not any(sentence in p.prompt_accepted for p in single for sentence in train)


def test_a_tampered_pair_is_refused(pairs):
    pair = pairs[0]
    swapped = PreferentialPair(
        pair.task, pair.response, pair.rejected, pair.accepted, pair.prompt_rejected,
        pair.prompt_accepted, pair.edit, pair.type,
    )  # fmt: skip
    with pytest.raises(ValueError, match="accepted prompt: expected constraints that all hold"):
        constraints.verify_pair(swapped)


def test_shortage_warns_and_nothing_is_an_error():
    few = ROWS[:2]
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="of 5000 preferential pairs"):
        made = preferential.build_pairs(few, type_ids=["no_comma"] + TYPES[-2:], num_pairs=5000,
                                        rng=rng, edited_fraction=0.3)  # fmt: skip
    assert 0 < len(made) < 5000
    with pytest.raises(ValueError, match="no preferential pair could be made"):
        preferential.build_pairs([("Say it.", "Yes.")], type_ids=["no_comma"], num_pairs=4, rng=rng)
    with pytest.raises(ValueError, match="0 tasks with a response"):
        preferential.build_pairs([("t", " ")], type_ids=TYPES, num_pairs=4, rng=rng)


def test_hindsight_holds_and_uses_each_type_once():
    rng = np.random.default_rng(0)
    type_ids = constraints.resolve(TYPES)
    for _, response in ROWS:
        found = groups.hindsight(response, type_ids, rng, words=["kettle", "garden"])
        assert all(_verdicts(found, response))
        assert len({c.id for c in found}) == len(found) >= 3


@pytest.mark.parametrize("type_id", sorted(EDITABLE))
def test_rule_edits_bring_about_their_property(type_id):
    """On most texts an edit makes some instance of its type true that the text violated."""
    rng = np.random.default_rng(0)
    kind = constraints.get(type_id)
    gained = 0
    for task, response in ROWS:
        edited = rule_edit(response, type_id, rng)
        if edited is None:
            continue
        assert edited != response and edited.strip()
        for _ in range(12):
            made = kind.sample(rng, response=edited, satisfied=True, task=task)
            if made is not None and not kind.check(made, response):
                gained += 1
                break
    assert gained >= 5


def test_edits_drop_an_unfinished_sentence_and_markers():
    assert sentences("One. Two! Thr") == ["One.", "Two!"]
    assert sentences("* one thing\n2. another") == ["one thing"]
    assert sentences("only half a") == ["only half a"]
    made = rule_edit("It is hot. Bring wat", "detectable_content:postscript",
                     np.random.default_rng(0))  # fmt: skip
    assert made and "wat" not in made
    assert rule_edit("x", "language:response_language", np.random.default_rng(0)) is None
    assert rule_edit("", "detectable_format:title", np.random.default_rng(0)) is None


def test_prompts_are_balanced_feasible_and_reproducible():
    rows = prompts.make_prompts(
        tasks("heldout_phrasings"), TYPES, 150, np.random.default_rng(0), "heldout", 2, max_words=35
    )
    assert rows == prompts.make_prompts(
        tasks("heldout_phrasings"), TYPES, 150, np.random.default_rng(0), "heldout", 2, max_words=35
    )
    assert len({row.key for row in rows}) == len({row.prompt for row in rows}) == 150
    counts = collections.Counter(c.id for row in rows for c in row.constraints)
    assert set(counts) == set(constraints.resolve(TYPES))
    assert max(counts.values()) <= 1.3 * min(counts.values())
    assert {len(row.constraints) for row in rows} == {1, 2}
    assert collections.Counter(row.task for row in rows).most_common(1)[0][1] == 1
    for row in rows:
        assert row.task in row.prompt and feasible(row.constraints, 35)
        for constraint in row.constraints:
            for key in ("keywords", "forbidden_words"):
                for word in constraint.kwargs.get(key, ()):
                    assert word not in row.task.lower()


def test_infeasible_combinations_are_refused():
    words = Constraint("length_constraints:number_words", {"relation": "less than", "num_words": 9})
    lines = Constraint("detectable_format:number_bullet_lists", {"num_bullets": 4})
    assert not feasible((words, lines)) and feasible((words,))
    many = Constraint("length_constraints:number_words", {"relation": "at least", "num_words": 60})
    assert feasible((many,)) and not feasible((many,), max_words=36)
    have = Constraint("keywords:existence", {"keywords": ["tea"]})
    avoid = Constraint("keywords:forbidden_words", {"forbidden_words": ["tea", "cup"]})
    assert not compatible((have, avoid)) and not compatible((have, have))
    with pytest.raises(ValueError, match="needs 1 of each"):
        prompts.make_prompts([], TYPES, 3, np.random.default_rng(0))
