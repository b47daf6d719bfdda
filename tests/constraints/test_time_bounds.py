"""No text, argument or pattern makes a check slow: sizes are bounded, slow forms have fast ones."""

import contextlib
import re
import signal
import unicodedata

import pytest
from by_path import load
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gapo_jax import constraints
from gapo_jax.constraints import fields, ifbench_checks
from gapo_jax.constraints import product_checks as facts
from gapo_jax.constraints.text import LONG_TEXT, MAX_TEXT, bounded_pattern, short_marks

probes_of = load("tests/constraints/probes.py").probes_of
SIZE = MAX_TEXT
HEAD = "ProductID,Category,Brand,Price,Stock\n"


@contextlib.contextmanager
def processor_time(seconds):
    """Fail after so many seconds of this process's own time, however busy the machine is."""

    def end(*_):
        raise AssertionError(f"took more than {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fill(piece):
    return (piece * (SIZE // len(piece) + 1))[:SIZE]


_MARKS = "\u0301\u0323"  # in the wrong order, so that sorting a run takes the longest
_STEEL = {
    "facts": ["material: stainless steel"],
    "values": ["material: steel | stainless steel"] + ["colour: " + "red | " * 80] * 90,
}
# (type, kwargs or None for those of its probe, text); each took minutes or hours in some form that
# a check has had, the package's own among them.
SLOW = [
    ("custom:european_capitals_sort", None, "a" + fill(_MARKS)[1:]),
    ("custom:reverse_newline", None, "Zimbabwe" + fill(_MARKS)[8:]),
    ("product:states_facts", None, "a" + fill(_MARKS)[1:]),
    ("product:no_other_facts", _STEEL, fill("stainless steel ")),
    ("product:no_other_facts", _STEEL, fill("not red or ")),
    ("custom:mcq_count_length", None, fill("\n" * 999 + "Q")),
    ("count:punctuation", None, fill(" " * 999 + "a")),
    ("format:no_bullets_bullets", None, fill("A.\n")),
    ("format:newline", None, "a" + "\n" * (SIZE - 2) + "b"),
    ("format:line_indent", None, fill("a\n \n")),
    ("custom:csv_special_character", None, HEAD + '1,2,3,4,"' + "!" * 150_000 + "\n1,2,3,4,5" * 13),
    ("detectable_format:title", None, fill("<<a")),
    ("detectable_format:number_bullet_lists", None, " " * SIZE),
    ("detectable_content:postscript", None, fill("p. ")),
    ("detectable_content:postscript", None, fill(" \t\n")),
    ("detectable_content:number_placeholders", None, "[" * SIZE),
    ("detectable_format:json_format", None, "[" * SIZE),
    ("change_case:capital_word_frequency", None, "Mr." + " " * (SIZE - 4) + "x"),
    ("keywords:forbidden_words", {"forbidden_words": ["a" * 199 + "b"] * 5}, "a" * SIZE),
    ("keywords:forbidden_words", {"forbidden_words": ["a?" + "a" * 197 + "b"] * 5}, "a" * SIZE),
    ("keywords:frequency", {"keyword": "a?a?a?" + "a" * 190 + "b", "frequency": 1,
     "relation": "at least"}, "a" * LONG_TEXT),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "x*", "num_sections": 2},
        "x" * SIZE,
    ),
    ("copy:repeat_phrase", {"phrase": "the old man", "small_n": 2}, fill("the ")),
    ("keywords:word_once", {"keyword": "(a|a)*b"}, "a" * SIZE),
    ("count:count_increment_word", {"keyword1": "a" * 199, "keyword2": "a?" * 99}, "a" * SIZE),
    ("count:counting_composition", {"n_sent": 2, "n_words": 3}, fill("A. ")),
    ("first_word:first_word_sent", {"first_word": "a"}, fill("a.a ")),
    ("detectable_format:sentence_hyphens", None, fill("-a. ")),
    ("paragraphs:paragraphs", None, fill(" *** \n")),
    ("count:count_unique", None, fill("x' ")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("type_id", "kwargs", "text"), SLOW, ids=[f"{i}-{t}" for i, (t, _, _) in enumerate(SLOW)]
)
def test_what_was_slow_at_the_longest_text(type_id, kwargs, text):
    assert len(text) <= SIZE
    if kwargs is None:
        kwargs = dict(probes_of(type_id)[0][0])
    with processor_time(10):
        assert constraints.check(text, [type_id], [kwargs]) in ([True], [False])


# The fields that are searched for everywhere are patterns or short; all others are bounded too.
def test_every_argument_is_bounded():
    sizes = {
        "text": fields.MAX_TEXT, "pattern": fields.MAX_PATTERN, "words": fields.MAX_PATTERN,
        "facts": fields.MAX_PATTERN, "values": fields.MAX_VALUES, "word": fields.MAX_PATTERN,
    }  # fmt: skip
    unbounded = {"count", "positive", "relation", "letter", "language"}  # not texts, or one letter
    for type_id, kinds in fields.FIELDS.items():
        probe = probes_of(type_id)[0][0]
        for field, kind in kinds.items():
            assert kind in sizes or kind in unbounded
            if kind not in sizes:
                continue
            word = "a: " + "b" * (sizes[kind] - 2)
            listed = kind not in ("text", "pattern", "word")
            with pytest.raises(ValueError, match=f"{field} to be .* of at most {sizes[kind]} char"):
                fields.clean_kwargs(type_id, {**probe, field: [word] if listed else word})
            if listed:
                with pytest.raises(ValueError, match=f"1 to {fields.MAX_WORDS} of at most"):
                    fields.clean_kwargs(type_id, {**probe, field: ["a: b"] * 101})
            if kind == "words":
                with pytest.raises(ValueError, match="1000 in all"):
                    fields.clean_kwargs(type_id, {**probe, field: ["b" * 101] * 10})


HOSTILE = (
    "(a|aa)" * 20 + "b", "a?" * 30 + "a" * 30, ".{50}x.{50}y", "(.*)\\1x", "(a*)(a*)b", "(?=a*)b",
    "(?:a|aa)" * 9, "(a+)+$", "a{1,9}a{1,9}a{1,9}b", "[ab]*[ab]*c", "(a?){30}",
)  # fmt: skip


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_with_many_ways_to_match_are_literal(pattern):
    assert bounded_pattern(pattern) == re.escape(pattern)
    assert constraints.check(f"so {pattern} it", ["keywords:existence"], [{"keywords": [pattern]}])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(st.sampled_from("aab?|()[]{}*+.,\\1^$"), min_size=1, max_size=60))
@example("a?a?a?" + "a" * 60)
def test_what_stays_a_pattern_has_few_ways_to_match(text):
    for long, size in ((False, 2_000), (True, 20_000)):
        pattern = bounded_pattern(text, long=long)
        if pattern != re.escape(text):
            plain = re.sub(r"([*+?])\+", r"\1", pattern)
            assert len(re.findall(r"[?|]", plain)) <= (1 if long else 3)
            assert len(re.findall(r"[*+{]", plain)) <= (0 if long else 1)
        with processor_time(5):
            re.findall(pattern, "a" * size + "b")


def test_ordinary_keywords_stay_patterns():
    assert bounded_pattern(".{50}x") == ".{50}x"  # but not in a long text
    assert bounded_pattern(".{50}x", long=True) == re.escape(".{50}x")
    for word in ("what?", "e.g.", "colou?r", "tea|coffee", "C++", "so...", "[name]", "^Dear"):
        assert bounded_pattern(word) == word


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["a", " ", "\n", "\u0301", "\u0323", _MARKS * 40, "é", "漢"])))
def test_runs_of_marks_are_cut_and_nothing_else(pieces):
    text = "".join(pieces)
    short = short_marks(text)
    run = longest = 0
    for char in short:
        run = run + 1 if unicodedata.combining(char) else 0
        longest = max(longest, run)
    assert longest <= 32 and short_marks(short) == short
    plain = [c for c in text if not unicodedata.combining(c)]
    assert [c for c in short if not unicodedata.combining(c)] == plain
    if all(piece != _MARKS * 40 for piece in pieces) and len(pieces) <= 32:
        assert short == text
    # What the checkers read of a normalised text is its ASCII part.
    both = [unicodedata.normalize("NFKD", t).encode("ascii", "ignore") for t in (text, short)]
    assert both[0] == both[1]


def plain_others(text, given_facts, values):
    """`facts.others_stated` as its definition says it, mention by mention."""
    known = [facts.split_fact(fact)[1] for fact in given_facts]
    spans = [span for value in known for span in facts.mentions(text, value)]
    found = []
    for line in values:
        name, options = facts.split_fact(line)
        for option in (part.strip() for part in options.split("|")):
            if option and facts.tokens(option) not in {facts.tokens(value) for value in known}:
                inside = [
                    any(low <= start and end <= high for low, high in spans)
                    for start, end in facts.mentions(text, option)
                ]
                found += [f"{name}: {option}"] if not all(inside) else []
    return found


_WORDS = ("steel", "stainless", "red", "not", "2", "l", ".", "dark")
_VALUES = ["a: steel | stainless steel | stainless", "b: red | dark red | dark", "c: 2 l | 2"]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(_WORDS), max_size=14), st.integers(0, 5))
def test_other_facts_are_found_as_by_the_definition(words, which):
    given_facts = (
        ["a: stainless steel"], ["b: dark red", "a: steel"], ["c: 2 l"], ["a: stainless steel",
        "a: steel"], ["b: dark red", "b: red", "c: 2"], ["a: none"],
    )[which]  # fmt: skip
    text = " ".join(words)
    assert facts.others_stated(text, given_facts, _VALUES) == plain_others(
        text, given_facts, _VALUES
    )


_PROSE = st.lists(st.sampled_from(["", " ", "* a", "*", "a", "A. B.", ".", "-", "<stop>"]))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(_PROSE)
def test_prose_then_bullets_is_the_packages(lines):
    checker = ifbench_checks.registry()["format:no_bullets_bullets"]("x")
    text = "\n".join(lines)
    if text.strip():
        wanted = bool(checker.check_following(text))
        assert ifbench_checks.prose_then_bullets(checker, text) == wanted
