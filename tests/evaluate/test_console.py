"""What a run prints: texts of the model are shown, never obeyed by the terminal."""

import pytest

from gapo_jax.evaluate.console import printable, sample_texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("naïve ☕ 川 👨‍👩‍👧", "naïve ☕ 川 👨‍👩‍👧"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_shown(text, shown):
    assert printable(text) == shown
    shown.encode("utf-8")


def test_samples_are_printed_without_escapes():
    sample = {
        "prompt": "Say\x1b[31m hi.", "constraints": ["punctuation:no_comma", "polite"],
        "before": "\x1b[2Ja", "after": "", "verdicts_before": [True, False],
        "verdicts_after": [False, True],
    }  # fmt: skip
    text = sample_texts({"samples": [sample]})
    assert "\x1b" not in text and r"\x1b[2Ja" in text and "(empty)" in text
    assert "no_comma holds, polite violated" in text
