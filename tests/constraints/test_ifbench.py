"""IFBench types and product facts: verdicts, phrasings, samples, near misses, any text at all."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from if_verifiable import evaluate_output_for_sample
from if_verifiable.types import IFBenchSample

from gapo_jax import constraints
from gapo_jax.constraints import facts, ifbench_official, official
from gapo_jax.constraints.fields import FIELDS, IFBENCH
from gapo_jax.types import Constraint

NEW = (*constraints.types("ifbench"), *constraints.types("product"))
HERE = [t for t in constraints.types("all") if ifbench_official.missing_data(t) is None]
WORDS = ("harbor", "lantern", "water", "garden")


def skip_without_data(type_id):
    command = ifbench_official.missing_data(type_id)
    if command:
        pytest.skip(f"{type_id} needs `{command}`")


def test_families():
    assert set(constraints.types("ifbench")) == set(IFBENCH) == set(ifbench_official.registry())
    assert len(IFBENCH) == 58 and len(constraints.types("product")) == 2
    assert len(constraints.types("all")) == len(FIELDS) == 25 + 58 + 2
    assert constraints.resolve(["emoji", "states_facts"]) == (
        "format:emoji",
        "product:states_facts",
    )
    with pytest.raises(ValueError, match="family of types: wanted one of"):
        constraints.types("ifbenhc")


@pytest.mark.parametrize("type_id", NEW)
def test_probes_by_hand(type_id):
    skip_without_data(type_id)
    kind = constraints.get(type_id)
    assert kind.probes and kind.difference
    for kwargs, good, bad in kind.probes:
        assert constraints.check(good, [type_id], [kwargs]) == [True]
        assert constraints.check(bad, [type_id], [kwargs]) == [False]
        assert constraints.check_loose(f"Sure!\n{good}", [type_id], [kwargs]) == [True]


@pytest.mark.parametrize("type_id", NEW)
def test_phrasings_samples_and_near_misses(type_id):
    skip_without_data(type_id)
    kind = constraints.get(type_id)
    assert len(kind.train_styles) >= 3 and len(kind.heldout_styles) >= 1
    rng = np.random.default_rng(0)
    for _ in range(5):
        free = kind.sample(rng)
        assert free is not None
        said = [kind.describe(free, style) for style in kind.train_styles + kind.heldout_styles]
        assert len({re.sub(r"\W+", " ", text).lower() for text in said}) == len(said)
    good = [text for other in NEW for _, text, _ in constraints.get(other).probes]
    texts = [text for _, text, _ in kind.probes] + good[::7]
    modified = 0
    for text, satisfied in itertools.product(texts, (True, False)):
        made = kind.sample(rng, response=text, satisfied=satisfied, words=WORDS)
        if made is not None:
            assert constraints.check(text, [type_id], [made.kwargs]) == [satisfied]
        if made is not None and satisfied:
            after = kind.modify(made, text, rng, WORDS)
            if after is not None:
                modified += 1
                assert after != made and not constraints.holds(after, text)
                assert 0 < constraints.get(after.id).shortfall(after, text) <= 1
    for kwargs, text, _ in kind.probes:
        modified += kind.modify(Constraint(type_id, kwargs), text, rng, WORDS) is not None
    assert modified or not kind.sample(rng, response=texts[0], satisfied=True, words=WORDS)


def test_verdicts_are_those_of_the_package():
    """Strict and loose, through the package's own evaluation; where it raises, ours is False."""
    cases = [(t, dict(kw)) for t in IFBENCH if t in HERE for kw, _, _ in constraints.get(t).probes]
    texts = [text for t in NEW for _, *both in constraints.get(t).probes for text in both][::5]
    ifbench_official.registry()  # the replacements, so that nothing is downloaded
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


def test_types_that_dictate_the_whole_text_stand_alone():
    for type_id in IFBENCH:
        found = constraints.get(type_id).conflicts
        assert type_id in found and found <= set(FIELDS)
    csv = constraints.get("custom:csv_city")
    assert {"format:emoji", "punctuation:no_comma"} <= csv.conflicts
    assert "format:emoji" not in constraints.get("count:numbers").conflicts


ODD = (
    "..", "?!?!", '"', '""', ",,\n,,", "\0", "a\0b", "<stop>", "İ", "ßﬁ", "…", "١٢", "\ud800",
    "¼ ²", "\n\n", "ProductID,Category,Brand,Price,Stock\n\"\n", "Question 1\n" * 3, "[" * 400,
)  # fmt: skip


@pytest.fixture(scope="module")
def instances():
    rng = np.random.default_rng(1)
    probes = [(t, dict(kwargs)) for t in HERE for kwargs, _, _ in constraints.get(t).probes]
    drawn = [(t, dict(constraints.get(t).sample(rng).kwargs)) for t in HERE]
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
    for type_id in HERE:
        if type_id == "language:response_language":
            continue
        kind = constraints.get(type_id)
        made = kind.sample(rng, response=text, satisfied=satisfied, words=WORDS, task=text)
        assert made is None or constraints.holds(made, text) == satisfied
        if made is not None and satisfied:
            near = kind.modify(made, text, rng, WORDS, task=text)
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
            assert "wants" in str(error) and type_id in str(error)
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
    text = "tea " * (official.MAX_TEXT // 4 + 1)
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
        ("format:newline", ifbench_official.word_a_line),
        ("custom:csv_special_character", ifbench_official.special_character),
        ("format:line_indent", ifbench_official.stairs),
    ):
        checker = ifbench_official.registry()[type_id](type_id)
        for text in filter(str.strip, texts):
            assert form(checker, text) == checker.check_following(text)


def test_zero_is_not_drawn_at_random():
    kwargs = {"prompt_to_repeat": "Write about a river.", "n_start": 0, "n_end": 2}
    for _ in range(5):
        assert constraints.check("write about", ["repeat:repeat_span"], [kwargs]) == [True]
    with pytest.raises(ValueError, match="N wants a whole number, 1 or more"):
        constraints.check("a b", ["count:words_japanese"], [{"N": 0}])


# Sentences labelled by hand: (text, value, whether the text states it).
LABELLED = (
    ("A red kettle for two.", "red", True),
    ("The kettle comes in a bright red.", "red", True),
    ("It is not red but blue.", "red", False),
    ("It is not only red, it shines.", "red", True),
    ("Rather than red, we chose blue.", "red", False),
    ("Bored of black? This one is red.", "red", True),
    ("We covered it in leather.", "red", False),
    ("No plastic, no fuss: a glass body.", "glass", True),
    ("Made without glass.", "glass", False),
    ("Its frame is stainless-steel.", "stainless steel", True),
    ("Stainless steel, brushed.", "stainless steel", True),
    ("Steel that is stainless.", "stainless steel", False),
    ("A two-litre tank.", "2 l", True),
    ("A tank of 2 liters", "2 l", True),
    ("It holds 2L of water.", "2 l", True),
    ("It holds 1.2 l of water.", "2 l", False),
    ("It holds 12 l of water.", "2 l", False),
    ("It draws 1,500 watts.", "1500 W", True),
    ("1500W are enough.", "1500 W", True),
    ("With 2 years of warranty", "2 years", True),
    ("A two-year warranty is included.", "2 years", True),
    ("There is no two-year warranty.", "2 years", False),
    ("It weighs 500 grams", "500 g", True),
    ("It doesn't weigh 500 g", "500 g", False),
    ("A colour between grey and blue", "gray", True),
    ("The ALUMINUM body", "aluminium", True),
    ("Unlike oak, beech is light.", "oak", False),
    ("Soak it in water.", "oak", False),
    ("An oak. Not a beech.", "oak", True),
    ("It lacks a timer.", "timer", False),
    ("Available in crimson.", "red", False),
    ("The handle is crimson red", "red", True),
    ("T-shirt in red", "red", True),
    ("It is 30cm wide.", "30 cm", True),
    ("Five burners side by side", "5 burners", True),
    ("A 5-burner hob", "5 burners", True),
    ("Less than 40 dB", "40 dB", False),
    ("A whisper of forty decibels", "40 dB", True),
    ("It isn't available in blue or green.", "green", False),
    ("Not everybody needs a boiler; you want this blue one.", "blue", True),
)


def test_precision_and_recall_of_the_fact_verifier():
    """Measured on the sentences above; the one it gets wrong is named."""
    wrong = [
        (text, value)
        for text, value, label in LABELLED
        if bool(facts.mentions(text, value)) != label
    ]
    assert wrong == [("A whisper of forty decibels", "40 dB")]
    held = sum(label for _, _, label in LABELLED)
    assert (len(LABELLED), held) == (40, 25)  # precision 24/24, recall 24/25


# Labelled by hand, of a product whose facts are _OWN: whether the text states another value of
# _OF_A_KETTLE.
_OF_A_KETTLE = [
    "colour: red | blue | green | grey",
    "material: steel | stainless steel | glass | plastic",
    "capacity: 1 l | 1.5 l | 2 l",
    "warranty: 1 year | 2 years",
]
_OWN = ["colour: red", "material: stainless steel", "capacity: 1.5 l"]
LABELLED_OTHERS = (
    ("A red kettle of stainless steel that holds 1.5 l.", False),
    ("A red kettle with a blue lid.", True),
    ("Red outside, grey inside.", True),
    ("It is red, never blue.", False),
    ("No plastic anywhere: stainless steel throughout.", False),
    ("Stainless steel with a plastic handle.", True),
    ("Its steel is stainless.", False),
    ("It holds 2 litres.", True),
    ("It holds one and a half litres.", False),
    ("Comes with a two-year warranty.", True),
    ("Comes without a warranty.", False),
    ("A warranty of one year is included.", True),
    ("It boils in 2 minutes.", False),
    ("Red, not blue or green.", False),
    ("The water stays as clear as glass.", False),
    ("Also available in green.", True),
    ("Unlike plastic kettles it lasts.", False),
    ("The 1.5-litre kettle in red.", False),
    ("The body is glass rather than stainless steel.", True),
    ("A kettle.", False),
    ("Azure like the sea.", True),
    ("It greets you in green each morning.", True),
    ("It isn't made of plastic or glass.", False),
    ("A RED KETTLE, 2L", True),
    ("A gray base carries it.", True),
    ("Two colours, red and blue, meet in it.", True),
    ("You will not find plastic in it, nor glass.", False),
    ("Brushed stainless-steel, red handle.", False),
    ("Glass walls show the water.", True),
    ("Plastic is a thing of the past.", False),
)


def test_precision_and_recall_of_the_verifier_of_other_facts():
    wrong = [
        text
        for text, label in LABELLED_OTHERS
        if bool(facts.others_stated(text, _OWN, _OF_A_KETTLE)) != label
    ]
    assert wrong == [
        "Its steel is stainless.",
        "The water stays as clear as glass.",
        "Azure like the sea.",
        "Plastic is a thing of the past.",
    ]
    held = sum(label for _, label in LABELLED_OTHERS)
    assert (len(LABELLED_OTHERS), held) == (30, 14)  # precision 13/16, recall 13/14


def test_other_values_are_found_and_parts_of_given_ones_are_not():
    values = ["material: steel | stainless steel | oak", "colour: red | blue"]
    given_facts = ["material: stainless steel"]
    for text, wanted in (
        ("A stainless steel pan.", []),
        ("A stainless steel pan, blue inside.", ["colour: blue"]),
        ("A stainless steel pan with a steel lid.", ["material: steel"]),
        ("A stainless steel pan, not blue.", []),
        ("A pan.", []),
    ):
        assert facts.others_stated(text, given_facts, values) == wanted
        kwargs = {"facts": given_facts, "values": values}
        verdict = constraints.check(text, ["product:no_other_facts"], [kwargs])
        assert verdict == [not wanted]
    with pytest.raises(ValueError, match="facts wants a list of texts"):
        constraints.check("x", ["product:states_facts"], [{"facts": ["red"]}])
