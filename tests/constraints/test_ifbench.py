"""IFBench: official verdicts and wording, no way to train on it; any text has a verdict."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from by_path import load
from hypothesis import example, given, settings
from hypothesis import strategies as st
from if_verifiable import evaluate_output_for_sample
from if_verifiable.types import IFBenchSample

from gapo_jax import constraints
from gapo_jax.constraints import ifbench_checks
from gapo_jax.constraints.fields import FIELDS, IFBENCH
from gapo_jax.constraints.text import MAX_TEXT
from gapo_jax.types import Constraint

probes_of = load("tests/constraints/probes.py").probes_of
NEW = (*constraints.types("ifbench"), *constraints.types("product"))
HERE = [t for t in FIELDS if ifbench_checks.missing_data(t) is None]
WORDS = ("harbor", "lantern", "water", "garden")
# Inputs of this project with the verdicts of allenai/IFBench (19 August 2026), recorded by running
# its classes: `build_description(**kwargs)`, then `check_following`.
RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "ifbench_verdicts.jsonl").read_text("utf-8").splitlines()
]


def skip_without_data(type_id):
    command = ifbench_checks.missing_data(type_id)
    if command:
        pytest.skip(f"{type_id} needs `{command}`")


def test_families():
    assert constraints.types("ifbench") == tuple(IFBENCH)
    assert set(IFBENCH) == set(ifbench_checks.registry())
    assert len(IFBENCH) == 58 and len(constraints.types("product")) == 2
    assert len(FIELDS) == 25 + 29 + 58 + 2 and set(FIELDS) <= set(constraints.types("all"))
    with pytest.raises(ValueError, match="family of types: expected one of"):
        constraints.types("ifbenhc")


@pytest.mark.parametrize("type_id", NEW)
def test_probes_by_hand(type_id):
    skip_without_data(type_id)
    assert probes_of(type_id)
    for kwargs, good, bad in probes_of(type_id):
        assert constraints.check(good, [type_id], [kwargs]) == [True]
        assert constraints.check(bad, [type_id], [kwargs]) == [False]
        assert constraints.check_loose(f"Sure!\n{good}", [type_id], [kwargs]) == [True]


@pytest.mark.parametrize("type_id", IFBENCH)
def test_the_wording_is_the_official_one(type_id):
    kind = constraints.get(type_id)
    for kwargs, _, _ in probes_of(type_id):
        said = kind.describe(Constraint(type_id, kwargs))
        wanted = ifbench_checks.registry()[type_id](type_id).build_description(**kwargs)
        assert said == wanted and said.strip()
    with pytest.raises(ValueError, match=f"kwargs of {type_id}: expected the fields"):
        kind.describe(Constraint(type_id, {"odd": 1}))


def test_an_index_of_zero_is_worded_as_it_is():
    kwargs = {"prompt_to_repeat": "Write about a river.", "n_start": 0, "n_end": 2}
    said = constraints.get("repeat:repeat_span").describe(Constraint("repeat:repeat_span", kwargs))
    assert "index 0 and 2" in said


@pytest.mark.parametrize("type_id", IFBENCH)
def test_no_prompt_is_made_with_ifbench(type_id):
    kind = constraints.get(type_id)
    assert not kind.can_sample and not hasattr(kind, "sample") and not hasattr(kind, "modify")
    with pytest.raises(ValueError, match=f"{type_id} has no `sample` and `modify`"):
        constraints.trainable(type_id)
    with pytest.raises(ValueError, match=f"got {type_id} of IFBench, a test of constraints"):
        constraints.resolve(["no_comma", type_id])


def test_ifbench_is_refused_as_training_data_with_the_way_out():
    for names in (["ifbench"], ["ifeval", "emoji"]):
        with pytest.raises(ValueError, match=r"not seen \(arXiv 2507.02833\)") as caught:
            constraints.resolve(names)
        assert "config.data.types" in str(caught.value) and "evaluate.py" in str(caught.value)
    with pytest.raises(ValueError, match="and 53 more of IFBench"):
        constraints.resolve(["ifbench"])
    assert not set(constraints.resolve(["all"])) & set(IFBENCH)
    assert {*constraints.types("ifeval"), *constraints.types("product")} <= set(
        constraints.resolve(["all"])
    )


@pytest.mark.parametrize("type_id", sorted({case["id"] for case in RECORDED}))
def test_verdicts_are_those_of_ifbench(type_id):
    """Where the package that carries the checkers is older, IFBench decides."""
    seen, of_package = set(), []
    for case in RECORDED:
        if case["id"] == type_id:
            package = ifbench_checks.registry()[type_id](type_id)
            package.build_description(**case["kwargs"])
            for text, wanted in case["verdicts"]:
                got = constraints.check(text, [type_id], [case["kwargs"]])
                assert got == [wanted], (case["kwargs"], text)
                seen.add(wanted)
                of_package.append(bool(package.check_following(text)) == wanted)
    assert seen == {True, False}
    assert all(of_package) == (type_id not in ifbench_checks._DECIDED_HERE)


def test_sentences_end_as_in_ifbench():
    """By Punkt: in the package's own rules an ellipsis ends a sentence, and so does p.m."""
    text = "It ran... until 3.30 p.m. on Monday. It is deep. Is it far?"
    assert constraints.check(text, ["ratio:sentence_type"], [{}]) == [True]
    kwargs = {"word": "deep", "N": 2}
    assert constraints.check(text, ["sentence:keyword"], [kwargs]) == [True]


def test_verdicts_are_those_of_the_package():
    """Strict and loose, through the package's own evaluation; where it raises, ours is False."""
    here = [t for t in IFBENCH if t in HERE and t not in ifbench_checks._DECIDED_HERE]
    cases = [(t, kw) for t in here for kw, _, _ in probes_of(t)]
    texts = [text for t in NEW for _, *both in probes_of(t) for text in both][::5]
    ifbench_checks.registry()  # the replacements, so that nothing is downloaded
    seen = {True: 0, False: 0}
    for (type_id, kwargs), text in itertools.product(cases, texts):
        ids = [type_id]
        sample = IFBenchSample(key="1", prompt="p", instruction_id_list=ids, kwargs=[kwargs])
        try:
            (result,), _ = evaluate_output_for_sample("ifbench", sample, text)
        except (IndexError, ValueError):
            continue
        assert constraints.check(text.strip(), ids, [kwargs]) == [result.strict_pass]
        assert constraints.check_loose(text.strip(), ids, [kwargs]) == [result.loose_pass]
        seen[result.strict_pass] += 1
    assert min(seen.values()) > 50


ODD = (
    "..", "?!?!", '"', '""', ",,\n,,", "\0", "a\0b", "<stop>", "İ", "ßﬁ", "…", "١٢", "\ud800",
    "¼ ²", "\n\n", "ProductID,Category,Brand,Price,Stock\n\"\n", "Question 1\n" * 3, "[" * 400,
)  # fmt: skip


@pytest.fixture(scope="module")
def instances():
    rng = np.random.default_rng(1)
    probes = [(t, dict(kwargs)) for t in HERE for kwargs, _, _ in probes_of(t)]
    drawn = [
        (t, dict(constraints.trainable(t).sample(rng).kwargs)) for t in HERE if t not in IFBENCH
    ]
    return [pair for pair in probes + drawn if pair[0] != "language:response_language"]


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(text=st.text(st.characters(), max_size=300))
@example(text=" ".join(ODD))
def test_any_text_gets_a_verdict(instances, text):
    ids, kwargs = [pair[0] for pair in instances], [pair[1] for pair in instances]
    verdicts = constraints.check(text, ids, kwargs)
    assert all(isinstance(verdict, bool) for verdict in verdicts)
    assert text.strip() or not any(verdicts)


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_get_a_verdict(instances, text):
    for type_id, kwargs in instances:
        assert constraints.check(text, [type_id], [kwargs]) in ([True], [False])
        assert constraints.check_loose(text, [type_id], [kwargs]) in ([True], [False])


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(text=st.text(st.characters(), min_size=1, max_size=200), satisfied=st.booleans())
@example(text=" ".join(ODD), satisfied=True)
@example(text=" ".join(ODD), satisfied=False)
def test_any_text_can_be_mined(text, satisfied):
    rng = np.random.default_rng(0)
    for type_id in constraints.resolve(["ifeval", "iftrain", "product"]):
        if type_id == "language:response_language":
            continue
        kind = constraints.trainable(type_id)
        made = kind.sample(rng, response=text, satisfied=satisfied, words=WORDS, task=text)
        assert made is None or constraints.holds(made, text) == satisfied
        if made is not None and satisfied:
            near = constraints.modify(made, text, rng, WORDS, task=text)
            assert near is None or not constraints.holds(near, text)
            for style in kind.train_styles:
                kind.describe(made, style)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(keyword=st.text(min_size=1, max_size=30), number=st.integers(0, 10**30))
def test_arguments_are_data_never_programs(keyword, number):
    """Any text as an argument: either refused with the reason or judged literally enough."""
    for type_id, kwargs in (
        ("keywords:existence", {"keywords": [keyword]}),
        ("words:words_position", {"keyword": keyword}),
        ("format:list", {"sep": keyword}),
        ("format:options", {"options": keyword}),
        ("product:states_facts", {"facts": [keyword]}),
        ("repeat:repeat_span", {"prompt_to_repeat": keyword, "n_start": number, "n_end": 2}),
        ("count:numbers", {"N": number}),
        ("sentence:keyword", {"word": keyword, "N": number}),
    ):
        try:
            verdicts = constraints.check("(a+)+b __import__ 1 {0}", [type_id], [kwargs])
        except ValueError as error:
            assert "expected" in str(error) and type_id in str(error)
        else:
            assert verdicts in ([True], [False])


BOMBS = {
    "newlines": "a" + "\n" * 60_000 + "b",
    "blank lines": "a\n \n" * 12_000,
    "brackets": "[" * 60_000,
    "csv": 'ProductID,Category,Brand,Price,Stock\n1,2,3,4,"' + "!" * 60_000 + "\n1,2,3,4,5" * 13,
}


@pytest.mark.parametrize("name", BOMBS)
def test_long_texts_end(instances, name):
    """Each of these takes the package's own checkers minutes or for ever in some type."""
    ids = [p[0] for p in instances if p[0] in IFBENCH or p[0].startswith("product:")]
    kwargs = [p[1] for p in instances if p[0] in IFBENCH or p[0].startswith("product:")]
    assert len(constraints.check(BOMBS[name], ids, kwargs)) == len(ids)


def test_beyond_the_limit_nothing_is_followed():
    text = "tea " * (MAX_TEXT // 4 + 1)
    assert constraints.check(text, ["keywords:existence"], [{"keywords": ["tea"]}]) == [False]


_LINES = st.lists(
    st.sampled_from(["", " ", "a", "b c", ",", " d", '"!', '1,2,"x!",4,5']), max_size=9
)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(lines=_LINES, rows=st.integers(0, 15))
def test_linear_forms_are_the_packages(lines, rows):
    texts = ["\n".join(lines)]
    head = "ProductID,Category,Brand,Price,Stock\n"
    texts.append(head + "\n".join([*lines, *["1,2,3,4,5"] * rows]))
    for type_id, form in (
        ("format:newline", ifbench_checks.word_a_line),
        ("custom:csv_special_character", ifbench_checks.special_character),
        ("format:line_indent", ifbench_checks.stairs),
    ):
        checker = ifbench_checks.registry()[type_id](type_id)
        for text in filter(str.strip, texts):
            assert form(checker, text) == checker.check_following(text)


def test_zero_is_not_drawn_at_random():
    kwargs = {"prompt_to_repeat": "Write about a river.", "n_start": 0, "n_end": 2}
    for _ in range(5):
        assert constraints.check("wri", ["repeat:repeat_span"], [kwargs]) == [True]
    with pytest.raises(ValueError, match="N to be a whole number, 1 or more"):
        constraints.check("a b", ["count:words_japanese"], [{"N": 0}])
