"""Prompts to measure on that the user gives: IFBench's, after training on other constraints."""

import json
import logging

import numpy as np
import pytest
from by_path import load

from gapo_jax import constraints
from gapo_jax.config import finalize
from gapo_jax.config.presets import tiny
from gapo_jax.evaluate.console import GIVEN, accuracy_table, levels
from gapo_jax.rollout.generate import prompt_lengths
from gapo_jax.train.build import build_models
from gapo_jax.train.datasets.given import read_given, with_given
from gapo_jax.train.datasets.self_generated import make_all_prompts, visible_types

# As the rows of IFBench: nulls for the fields of other types, AI2's form with a text, and two that
# cannot be measured.
ROWS = (
    {"key": "0", "prompt": "Write about tea without whitespace.",
     "instruction_id_list": ["format:no_whitespace"], "kwargs": [{"N": None, "keyword": None}]},
    {"key": "1", "messages": [{"role": "user", "content": "Name Emma."}],
     "ground_truth": str([{"instruction_id": ["count:person_names"], "kwargs": [{"N": 1}]}])},
    {"key": "2", "prompt": "Odd.", "instruction_id_list": ["words:nonsense"], "kwargs": [{}]},
    {"key": "3", "prompt": "so long " * 90, "instruction_id_list": ["format:emoji"],
     "kwargs": [{}]},
)  # fmt: skip


def given_config(source, preset="tiny"):
    config = load("configs/ifbench.py").get_config(preset)
    config.eval.prompts = str(source)
    return config


@pytest.fixture(scope="module")
def models():
    return build_models(finalize(given_config("")))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_training_never_sees_what_is_tested(models, source, tmp_path, caplog):
    config = finalize(given_config(source))
    made = make_all_prompts(config, models)
    with caplog.at_level(logging.WARNING, "gapo_jax"):
        prompts = with_given(config, models, tmp_path, made)
    trained = {c.id for row in prompts.train for c in row.constraints}
    assert trained <= {*constraints.types("ifeval"), *constraints.types("iftrain")}
    assert len(trained & set(constraints.types("iftrain"))) > 10
    assert {len(row.constraints) for row in prompts.train} == {1, 2, 3, 4, 5}
    # Not one more, not one less than what can be verified and is short enough.
    assert list(prompts.heldout) == ["heldout_topics", "heldout_phrasings", GIVEN]
    tested = prompts.heldout[GIVEN]
    assert [(row.key, row.prompt, [c.id for c in row.constraints]) for row in tested] == [
        ("0", ROWS[0]["prompt"], ["format:no_whitespace"]),
        ("1", "Name Emma.", ["count:person_names"]),
    ]
    assert (prompts.train, prompts.train_width) == (made.train, made.train_width)
    assert prompts.width >= max(prompt_lengths(models.tokenizer, [ROWS[0]["prompt"]], None))
    # What is left out is counted and named.
    assert "2 of 4 rows of config.eval.prompts are left out" in caplog.text
    named = (tmp_path / "left_out_given.txt").read_text().splitlines()
    assert "line 3: constraint type" in named[0] and "words:nonsense" in named[0]
    assert "key 3: 7" in named[1] and named[1].endswith("tokens")


def test_a_continued_run_does_not_need_the_source(models, source, tmp_path):
    config = finalize(given_config(source))
    made = make_all_prompts(config, models)
    first = with_given(config, models, tmp_path, made)
    source.unlink()
    assert with_given(config, models, tmp_path, made) == first
    none = finalize(given_config(""))
    assert with_given(none, models, tmp_path / "other", made) is made


def test_what_cannot_be_used_is_named_before_any_model_is_read(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.jsonl"):
        read_given(given_config(tmp_path / "gone.jsonl"), tmp_path)
    source.write_text(json.dumps(ROWS[2]))
    with pytest.raises(ValueError, match="config.eval.prompts=.* has no prompt that can be verif"):
        read_given(given_config(source), tmp_path)


def test_a_run_that_verifies_nothing_says_so(source, tmp_path):
    config = tiny("dpo")
    config.data.source, config.eval.prompts = str(source), str(source)
    with pytest.raises(ValueError, match="config.method='dpo' learns from the rows .*evaluate.py"):
        read_given(finalize(config), tmp_path)


def test_prompts_that_are_all_too_long_are_refused(models, source, tmp_path):
    config = given_config(source)
    config.data.max_prompt_tokens = 8
    with pytest.raises(ValueError, match="at most config.data.max_prompt_tokens=8 tokens: the sho"):
        with_given(finalize(config), models, tmp_path, None)


def test_no_type_is_left_out_for_a_discriminator_that_nobody_asks(models):
    capitals = ["change_case:english_capital"]
    config = given_config("")
    config.model.discriminator = "all-minilm-l6-v2"  # uncased: it sees no capitals
    assert visible_types(finalize(config), models, capitals) == tuple(capitals)


def test_the_figure_of_ifbench_stands_beside_the_strict_ones():
    assert "prompt_loose" in levels(GIVEN) and "prompt_loose" not in levels("heldout_topics")
    rng = np.random.default_rng(0)

    def side():
        values = dict(zip(("value", "low", "high"), rng.random(3)))
        return {name: {level: values for level in levels(GIVEN)} for name in ("heldout_x", GIVEN)}

    table = accuracy_table({"before": side(), "after": side(), "difference": side()})
    assert table.count("loose") == 1 and "given prompts, per prompt, loose" in table
