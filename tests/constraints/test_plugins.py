"""Constraint types of one's own: found like built-in ones, and they fail closed."""

import logging
import time

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.constraints import plugins, verifiers
from gapo_jax.constraints.verifiers import Verdicts, VerifierPool, make_request
from gapo_jax.evaluate import accuracy
from gapo_jax.types import Constraint, PromptRow

FILE = """
class Polite:
    id = "mine:polite"

    def describe(self, constraint, style=0):
        return f"Say please {constraint.kwargs.get('times', 1)} times."

    def check(self, constraint, response):
        return response.lower().count("please") >= constraint.kwargs.get("times", 1)


class _Helper:
    id = describe = check = "no type"
"""


class Polite:
    """A type of this module."""

    id = "tests:polite"

    def describe(self, constraint, style=0):
        return "Say please."

    def check(self, constraint, response, prompt):
        return "please" in response and prompt != "Do not."


@pytest.fixture(autouse=True)
def none_registered(monkeypatch):
    monkeypatch.setattr(plugins, "_TYPES", {})
    monkeypatch.setattr(plugins, "_FILES", {})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "my_constraints.py"
    path.write_text(FILE)
    return path


def test_id_check_and_describe_are_enough():
    assert constraints.register(Polite) is Polite
    kind = constraints.get("polite")
    assert kind is constraints.get("tests:polite") and not kind.can_sample
    assert kind.describe(Constraint(kind.id)) == "Say please."
    ids, kwargs = ["tests:polite", "no_comma"], [{"any": None}, None]
    assert constraints.check("please, do", ids, kwargs) == [True, False]
    assert constraints.check("please do", ids, kwargs, prompt="Do not.") == [False, True]
    assert constraints.check_loose("Sure!\nplease do", ids, kwargs) == [True, True]
    assert constraints.check("<think>please</think>no", ids[:1], kwargs[:1]) == [False]
    assert constraints.check("", ids[:1], kwargs[:1]) == [False]
    assert "tests:polite" in constraints.types("plugins") and kind.id in constraints.types("all")
    assert constraints.resolve(["polite", "plugins"]) == ("tests:polite",)
    assert constraints.reward(["p"], ["please"], constraints=[[{"id": kind.id}]]) == [1.0]
    row = PromptRow("k", "p", "p", (Constraint(kind.id), Constraint("punctuation:no_comma")))
    (verdict,) = accuracy.verify([row], ["please, do"])
    assert verdict.strict == (True, False)
    assert "tests:polite" in accuracy.format_table(accuracy.summarise([verdict], resamples=5))
    report = constraints.check_visibility([kind.id], lambda p, r: [0], max_length=8)
    assert report.visible == (kind.id,)  # nothing is known that could be invisible
    with pytest.raises(ValueError, match="tests:polite has no `sample`.*config.data.source"):
        constraints.trainable("polite")


def test_a_prompt_can_ask_for_it():
    constraints.register(Polite)
    chosen = [Constraint("tests:polite")]
    for phrasing in ("train", "heldout"):
        prompt = constraints.compose_prompt("Go.", chosen, np.random.default_rng(0), phrasing)
        assert "Say please." in prompt


def test_a_file_is_loaded_once(path):
    assert constraints.load_plugin(path) == ("mine:polite",)
    assert constraints.load_plugin(str(path)) == ("mine:polite",)
    assert constraints.check("please please", ["polite"], [{"times": 2}]) == [True]
    assert constraints.types("plugins") == ("mine:polite",)


def test_files_that_are_no_plugin_are_named(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="expected a Python file.*config.data.plugins"):
        constraints.load_plugin(tmp_path / "missing.py")
    for text, message in (
        ("x = 1", "expected a class with id, describe, check, found none"),
        ("1 / 0", "ZeroDivisionError: .*correct the file"),
        ("def f(:", "SyntaxError"),
        (FILE.replace("mine:polite", "punctuation:no_comma"), "the id of a built-in type"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            constraints.load_plugin(path)


def test_what_is_missing_is_named():
    class NoCheck:
        id, describe = "tests:x", lambda self, constraint: "x"

    class NoId(Polite):
        id = ""

    class OddCheck(Polite):
        def check(self, response):
            return True

    class Other(Polite):
        pass

    for kind, message in (
        (NoCheck, "NoCheck: expected a class with id, describe, check, got none of .*: check"),
        (NoId, "expected a text such as 'mine:polite'"),
        (OddCheck, r"can be called as check\(constraint, response\[, prompt\]\), got \(response\)"),
    ):
        with pytest.raises(ValueError, match=message):
            constraints.register(kind)
    constraints.register(Polite)
    constraints.register(Polite)  # the same class again, as in a notebook
    with pytest.raises(ValueError, match="expected an id of its own"):
        constraints.register(Other)


def test_a_type_with_sample_can_be_mined():
    class Shout(constraints.TrainableType):
        id = "tests:shout"
        train, heldout = ("End with {mark}",), ("The last sign is {mark}",)

        def check(self, constraint, response, prompt=""):
            return response.endswith(constraint.kwargs["mark"])

        def propose(self, rng, response, satisfied, words, task):
            return {"mark": "!" if response is None or satisfied else "?!"}

    constraints.register(Shout)
    rng = np.random.default_rng(0)
    kind = constraints.trainable("shout")
    good = kind.sample(rng, response="Go!", satisfied=True)
    assert good == Constraint("tests:shout", {"mark": "!"})
    near = constraints.modify(good, "Go!", rng)
    assert near is not None and not constraints.holds(near, "Go!")
    pair = constraints.make_pair("Go", [good], "Go!", rng, kind="modify", type_ids=["shout"])
    assert pair is not None and "End with" in pair.prompt_accepted


@pytest.mark.parametrize("how", ["raises", "hangs", "hangs in a pattern", "answers in words"])
def test_verdicts_fail_closed(how, monkeypatch, caplog):
    class Odd(Polite):
        id = "tests:odd"

        def check(self, constraint, response):
            if how == "raises":
                raise RuntimeError("no connection")
            if how == "hangs":
                while True:
                    try:
                        time.sleep(0.01)
                    except Exception:
                        pass
            if how == "hangs in a pattern":
                import re

                return bool(re.match("(a+)+$", "a" * 60 + "b"))
            return "no"

    monkeypatch.setattr(plugins, "TIME_LIMIT_S", 0.2)
    constraints.register(Odd)
    with caplog.at_level(logging.WARNING, "gapo_jax"):
        for _ in range(2):
            assert constraints.check("please", ["tests:odd", "no_comma"], [{}, {}]) == [False, True]
    assert caplog.text.count("the check of constraint type tests:odd failed") == 1


def test_limits_are_nested_and_end():
    with pytest.raises(plugins.TimeUp, match="0.3 s"):
        with plugins.time_limit(0.3):
            for _ in range(100):
                with plugins.time_limit(5):
                    time.sleep(0.01)
    with plugins.time_limit(0.05):
        pass
    time.sleep(0.1)  # a timer that were left on would end the process


def test_a_response_as_a_whole_has_a_limit(monkeypatch):
    def slow(*_, **__):
        time.sleep(5)

    monkeypatch.setattr(verifiers, "TIME_LIMIT_S", 0.1)
    monkeypatch.setattr(verifiers, "check", slow)
    request = make_request("a", [Constraint("punctuation:no_comma")] * 2, "p")
    assert verifiers.verify_response(request) == Verdicts((False, False), (False, False))


def test_workers_know_the_plugins(path):
    constraints.load_plugin(path)
    pool = VerifierPool(1)
    try:
        request = make_request("please", [Constraint("mine:polite")], "p")
        assert pool.submit([request])() == [Verdicts((True,), (True,))]
    finally:
        pool.close()


def test_a_response_that_kills_its_worker_fails_closed(tmp_path):
    path = tmp_path / "deadly.py"
    path.write_text(
        "import os\n"
        "class Deadly:\n"
        "    id = 'mine:deadly'\n"
        "    def describe(self, constraint): return 'Live.'\n"
        "    def check(self, constraint, response):\n"
        "        return os._exit(3) if response == 'die' else True\n"
    )
    constraints.load_plugin(path)
    texts = ["live"] * 3 + ["die"] + ["live"] * 2
    pool = VerifierPool(1)
    try:
        requests = [make_request(text, [Constraint("mine:deadly")], "p") for text in texts]
        found = pool.submit(requests)()
        assert [verdicts.strict for verdicts in found] == [(text == "live",) for text in texts]
        assert pool.submit(requests[:2])() == found[:2]
    finally:
        pool.close()


def test_workers_that_cannot_start_are_an_error(monkeypatch, tmp_path):
    """Not a reason to count every response as violating."""
    nothing = plugins.for_workers()[1]
    monkeypatch.setattr(plugins, "for_workers", lambda: ((tmp_path / "gone.py",), nothing))
    pool = VerifierPool(1)
    try:
        begun = pool.submit([make_request("a", [Constraint("punctuation:no_comma")], "p")])
        with pytest.raises(RuntimeError, match="cannot start.*config.data.verify_workers=0"):
            begun()
    finally:
        pool.close()


def test_classes_that_no_other_process_can_import_are_refused_for_workers():
    class Local(Polite):
        pass

    constraints.register(Local)
    pool = VerifierPool(1)
    with pytest.raises(ValueError, match="cannot be sent.*config.data.verify_workers=0"):
        pool.submit([make_request("a", [Constraint("tests:polite")], "p")])
    pool.close()


def test_entry_points_are_found(monkeypatch, caplog):
    class Entry:
        def __init__(self, name, load):
            self.name, self.value, self.load = name, f"package:{name}", load

    def broken():
        raise ImportError("no module")

    entries = [Entry("polite", lambda: Polite), Entry("broken", broken)]
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    monkeypatch.setattr(
        plugins.importlib.metadata,
        "entry_points",
        lambda group: entries if group == "gapo_jax.constraints" else [],
    )
    with caplog.at_level(logging.WARNING, "gapo_jax"):
        assert constraints.check("please", ["tests:polite"], [{}]) == [True]
    assert "entry point broken = package:broken" in caplog.text and "no module" in caplog.text
