"""Reward functions in worker processes: TRL's convention, and every way to fail."""

import math
import os
import textwrap

import pytest

from gapo_jax.rewards.functions import Call, RewardFunction, TrainerState, filled

# The forms of TRL's GRPO documentation: by ids, by text, with a column, on messages, `async`, with
# None for rows of another task, with extra columns and metrics. Then what goes wrong.
FUNCTIONS = """
import asyncio, os, re, sys
import numpy as np

LIMIT = 4


def by_ids(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def by_text(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def boxed(completions, ground_truth, **kwargs):
    matches = [re.search(r"\\\\boxed\\{(.*?)\\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]


def think_format(completions, **kwargs):
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content) else 0.0 for content in contents]


async def asynchronous(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(prompt)) for prompt in prompts]


def maths_only(prompts, completions, task, **kwargs):
    return [1.0 if t == "math" else None for t in task]


def logging(completions, log_extra=None, log_metric=None, **kwargs):
    log_extra("half", [text[: len(text) // 2] for text in completions])
    log_metric("accuracy", 0.25)
    log_metric("accuracy", 0.75)
    return np.arange(len(completions), dtype=np.float32)


def few_arguments(completions, trainer_state):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)


def raises(completions, **kwargs):
    return [1.0 / len(text) for text in completions]


def hangs(completions, **kwargs):
    while "hang" in completions:
        pass
    return [1.0] * len(completions)


def dies(completions, **kwargs):
    if "die" in completions:
        os._exit(3)
    return [2.0] * len(completions)


def exits(completions, **kwargs):
    sys.exit("enough")


def too_few(completions, **kwargs):
    return [1.0] * (len(completions) - 1)


def no_list(completions, **kwargs):
    return 1.0


def odd_values(completions, **kwargs):
    odd = {"nan": float("nan"), "inf": float("inf"), "text": "1.0"}
    return [odd.get(completion, -3) for completion in completions]


def by_position(completions, /):
    return [0.0]
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "my_rewards.py"
    path.write_text(textwrap.dedent(FUNCTIONS))
    return path


@pytest.fixture
def score(path):
    """Calls a function of the file, or of a module, once."""
    opened = []

    def call(name, completions, timeout_s=60.0, prompts=None, again=0, **columns):
        target = name if ":" in name else f"{path}:{name}"
        function = RewardFunction(target, timeout_s)
        opened.append(function)
        function.start()
        prompts = prompts or ["p" * (i + 1) for i in range(len(completions))]
        ids = [list(range(len(text))) for text in completions]
        call = Call(prompts, completions, ids, columns, TrainerState(5, 20))
        for _ in range(again + 1):
            function.submit(call)
            scores = function.collect()
        return scores

    yield call
    for function in opened:
        function.close()


def _content(text):
    return [{"role": "assistant", "content": text}]


def test_functions_of_trl_run_unchanged(score):
    texts = [" blue.", " in the sky."]
    assert score("by_ids", texts).values == [6.0, 12.0]
    assert score("by_text", texts).values == [6.0, 12.0]
    answers = [r" It is \boxed{2}.", r" It is \boxed{6}."]
    assert score("boxed", answers, ground_truth=["2", "5"]).values == [1.0, 0.0]
    thought = "<think>2 + 2 is 4.</think><answer>4</answer>"
    assert score("think_format", [_content(thought), _content("4")]).values == [1.0, 0.0]
    assert score("asynchronous", texts).values == [1.0, 2.0]
    scores = score("maths_only", texts, task=["math", "code"])
    assert scores.values[0] == 1 and math.isnan(scores.values[1]) and not any(scores.failed)
    scores = score("logging", ["abcd", "ef"])
    assert scores.values == [0.0, 1.0]
    assert (scores.extra, scores.metrics) == ({"half": ["ab", "e"]}, {"accuracy": 0.5})
    assert score("few_arguments", texts, unknown=["x", "y"]).values == [0.25, 0.25]


def test_a_function_of_a_module_and_our_verifiers_as_one(score):
    columns = {"instruction_id_list": [["punctuation:no_comma"]] * 2, "kwargs": [[{}]] * 2}
    scores = score("gapo_jax.constraints:reward", ["No, never.", "Never."], **columns)
    assert scores.values == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("exits", "failed with SystemExit: enough"),
        ("too_few", "returned 2 values for 3 completions"),
        ("no_list", "returned 1.0; wanted a list of numbers"),
    ],
)
def test_a_call_that_always_fails_has_no_values(score, name, reason):
    scores = score(name, ["a", "bb", "ccc"])
    assert all(scores.failed) and all(map(math.isnan, scores.values))
    assert scores.reasons[0] == reason
    assert all(map(math.isnan, filled(scores, 0.0)))


@pytest.mark.parametrize(
    ("name", "texts", "values", "reason"),
    [
        ("raises", ["a", "", "ab"], [1.0, 0.0, 0.5], "failed with ZeroDivisionError"),
        ("dies", ["a", "die", "ab"], [2.0, 0.0, 2.0], "its process died"),
        ("odd_values", ["nan", "x", "inf", "text"], [-3.0] * 4, "returned nan for a completion"),
    ],
)
def test_one_bad_completion_does_not_spoil_the_others(score, name, texts, values, reason):
    """It gets the floor, or the lowest value of the others if that is lower; the next call works as
    if nothing had happened."""
    for again in (0, 1):
        scores = score(name, texts, again=again)
        assert filled(scores, 0.0) == values
        assert sum(scores.failed) == (3 if name == "odd_values" else 1)
        assert any(reason in each for each in scores.reasons)


def test_a_function_that_hangs_is_ended(score):
    scores = score("hangs", ["hang"], timeout_s=0.2)
    assert scores.failed == [True] and "took longer than" in scores.reasons[0]
    # Two completions share the time: what is left after the one that hangs is the other's.
    scores = score("hangs", ["hang", "a"], timeout_s=4.0)
    assert filled(scores, -1.0) == [-1.0, 1.0]


def test_the_worker_has_no_jax_and_ends_with_close(path):
    function = RewardFunction(f"{path}:by_text", 60.0)
    function.start()
    process = function._process
    maps = f"/proc/{process.pid}/maps"
    if os.path.exists(maps):
        with open(maps) as file:
            assert "jaxlib" not in file.read()
    function.close()
    assert not process.is_alive()


@pytest.mark.parametrize(
    ("target", "columns", "message"),
    [
        ("{folder}/other.py:f", None, r"names no file: there is none at .*other\.py"),
        ("{path}:by_txt", None, r"has no function 'by_txt'; there is \['by_ids', 'by_text'"),
        ("{path}:LIMIT", None, r"has no function 'LIMIT'"),
        ("no_such_module:f", None, r"ModuleNotFoundError: No module named 'no_such_module'"),
        ("{path}:by_position", None, r"takes 'completions' by position only"),
        ("{path}:boxed", ("answer", "task"), r"needs the column 'ground_truth'.*\['answer', 'task"),
        ("{folder}/broken.py:f", None, r"failed with SyntaxError"),
    ],
)
def test_a_wrong_function_is_named_before_it_is_called(path, target, columns, message):
    (path.parent / "broken.py").write_text("def f(:")
    function = RewardFunction(target.format(path=path, folder=path.parent), 60.0)
    with pytest.raises(ValueError, match=message) as caught:
        function.start(columns)
    assert "\n" not in str(caught.value)
    function.close()
