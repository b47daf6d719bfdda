"""Talking to a model: constraints read out of a prompt, and a talk through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys

import numpy as np
import pytest
from by_path import ROOT

from gapo_jax import constraints
from gapo_jax.cli import chat
from gapo_jax.cli.recognise import recognise
from gapo_jax.records import Constraint

WORDS = ("river", "tea", "stone")


@pytest.mark.parametrize("type_id", constraints.types("ifeval"))
def test_every_phrasing_of_a_type_is_recognised(type_id) -> None:
    kind = constraints.trainable(type_id)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn = kind.sample(rng, words=WORDS, task="Write about tea")
        wanted = (Constraint(type_id, kind.clean(drawn.kwargs)),)
        for style in kind.train_styles + kind.heldout_styles:
            assert recognise(f"Write about a lamp. {kind.describe(drawn, style)}") == wanted


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
def test_several_constraints_are_recognised_in_any_layout(phrasing) -> None:
    names = ("no_comma", "number_words", "forbidden_words", "title", "postscript")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn = [constraints.trainable(name).sample(rng, words=WORDS) for name in names]
        wanted = [Constraint(c.id, constraints.get(c.id).clean(c.kwargs)) for c in drawn]
        prompt = constraints.compose_prompt("Write about tea", drawn, rng, phrasing)
        assert sorted(recognise(prompt), key=str) == sorted(wanted, key=str), prompt


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ('Do not include the word "tea" in your answer.', ["keywords:forbidden_words"]),
        ('please include the word "tea"   in your answer', ["keywords:existence"]),
        ("Answer with at least 1 words.", []),  # not how we say it, so it may mean something else
        ("Be brief and mention tea.", []),
        ("", []),
    ],
)
def test_only_what_is_said_is_recognised(prompt, ids) -> None:
    assert [constraint.id for constraint in recognise(prompt)] == ids


def test_constraints_of_flags() -> None:
    found = chat.constraint_of(
        'length_constraints:number_words:{"num_words": 9, "relation": "at least"}'
    )
    assert found.id == "length_constraints:number_words" and found.kwargs["num_words"] == 9
    assert chat.constraint_of("no_comma").id == "punctuation:no_comma"
    for text, message in (
        ("no_coma", "nearest: punctuation:no_comma"),
        ("number_words:{num_words", "the arguments are no JSON"),
        ('number_words:{"num_words": 9}', "relation"),
    ):
        with pytest.raises(ValueError, match=message):
            chat.constraint_of(text)


def read_until(terminal: int, wanted: str, count: int) -> str:
    """Return what a program writes to its terminal until it has written `wanted` so often."""
    text = ""
    while text.count(wanted) < count:
        ready, _, _ = select.select([terminal], [], [], 100)
        assert ready, f"no {wanted!r} in {text!r}"
        try:
            text += os.read(terminal, 65536).decode("utf-8", "replace")
        except OSError:  # the program has ended
            raise AssertionError(text) from None
    return text


def test_a_talk_in_a_terminal() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "scripts" / "chat.py"), "random:tiny", "--against"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    talk = subprocess.Popen(
        [*command, "--max-new-tokens", "8", "--constraint", "title"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    try:
        read_until(ours, "> ", 1)
        os.write(ours, b"Name a tree. Answer with at least 1 word.\n")
        shown = read_until(ours, "> ", 1)
        os.write(ours, b"Name a tree.\n")
        second = read_until(ours, "> ", 1)
        os.write(ours, b"\x04")
        assert talk.wait(60) == 0
    finally:
        talk.kill()
        talk.wait()
        os.close(ours)
    views = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", view) for view in shown.split("\x1b[2K")]
    views = [view for view in "\n".join(views).split("random:tiny")]
    # Two models, redrawn for each of their tokens, and each constraint below each answer.
    assert len(views) > 2 * 8
    marks = [re.findall(r"([✓✗]) Answer with at least 1 word", view) for view in views]
    marks = [mark for group in marks for mark in group]
    assert marks[:2] == ["✗", "✗"] and marks[-2:] == ["✓", "✓"]
    assert "✗ Add a title" in shown and chat.NOTHING not in shown
    assert chat.NOTHING[:40] in second and "Answer with" not in second


def test_what_cannot_answer_is_refused(capsys, tmp_path) -> None:
    assert chat.main([str(tmp_path / "nothing")]) == 1
    assert chat.main(["random:tiny", "--constraint", "no_coma"]) == 1
    assert capsys.readouterr().err.count("error: ") == 2
