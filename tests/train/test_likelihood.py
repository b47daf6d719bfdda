"""Likelihood under the frozen start, against the plain forward of the whole network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import change, finalize, from_json, to_json
from gapo_jax.config.presets import tiny
from gapo_jax.train.build import build_models
from gapo_jax.train.datasets.self_generated import make_all_prompts
from gapo_jax.train.evaluation import evaluate_policy
from gapo_jax.train.likelihood import start_logprobs
from gapo_jax.types import Rollout


@pytest.fixture(scope="module")
def config():
    small = {"data.types": ("no_comma",), "sampling.max_new_tokens": 6, "sampling.batch_size": 8}
    sizes = {"eval.prompts_per_set": 5, "eval.development_prompts": 3, "eval.trip_wires": True}
    return finalize(change(tiny("sft"), small | sizes | {"data.prompts": 4}))


@pytest.fixture(scope="module")
def models(config):
    return build_models(config)


def test_it_is_the_mean_over_response_tokens_of_the_plain_forward(models):
    rng, prompt, response = np.random.default_rng(0), 7, 4
    tokens_BT = rng.integers(5, 40, size=(5, prompt + response)).astype(np.int32)
    mask_BT = np.ones_like(tokens_BT)
    mask_BT[1, :3] = 0  # a shorter prompt
    lengths = np.array([4, 3, 1, 2, 4])
    response_BR = (np.arange(response) < lengths[:, None]).astype(np.int32)
    mask_BT[:, prompt:] = response_BR
    rollout = Rollout(tokens_BT, mask_BT, response_BR, np.zeros((5, response), np.float32))
    got_B = start_logprobs(models, rollout, batch_size=2)
    for row, length in enumerate(lengths):
        # Without padding, one row at a time.
        real = mask_BT[row].astype(bool)
        tokens_1T = jnp.asarray(tokens_BT[row][real])[None]
        ones_1T = jnp.ones_like(tokens_1T)
        logits = models.decoder.apply({"params": models.ref_params}, tokens_1T, ones_1T)
        logprobs_TV = jax.nn.log_softmax(jnp.asarray(logits)[0].astype(jnp.float32))
        start = tokens_1T.shape[1] - length
        picked = [logprobs_TV[at - 1, tokens_1T[0, at]] for at in range(start, start + length)]
        assert got_B[row] == pytest.approx(np.mean(picked), rel=1e-5)


def test_a_measured_set_has_it_where_it_is_asked_for(config, models):
    prompts = make_all_prompts(config, models)
    assert list(prompts.heldout) == [
        "development", "heldout_topics", "heldout_phrasings", "trip_wires"
    ]  # fmt: skip
    assert [len(rows) for rows in prompts.heldout.values()] == [3, 5, 5, 25]
    rows = prompts.heldout["development"]
    options = {"name": "development", "width": prompts.width}
    plain = evaluate_policy(config, models, models.ref_params, rows, **options)
    asked = finalize(change(_thawed(config), {"eval.likelihood": True}))
    likely = evaluate_policy(asked, models, models.ref_params, rows, **options)
    assert [dataclasses.replace(v, start_logprob=None) for v in likely] == plain
    assert all(v.start_logprob is not None and v.start_logprob < 0 for v in likely)


def test_sets_that_are_added_change_no_other(config, models):
    extra = {"eval.development_prompts": 0, "eval.trip_wires": False}
    without = make_all_prompts(finalize(change(_thawed(config), extra)), models)
    with_them = make_all_prompts(config, models)
    assert list(without.heldout) == ["heldout_topics", "heldout_phrasings"]
    for name, rows in without.heldout.items():
        assert with_them.heldout[name] == rows
    assert (with_them.train, with_them.bootstrap) == (without.train, without.bootstrap)


def _thawed(config):
    return from_json(to_json(config))


def test_sets_of_our_own_tasks_are_refused_beside_other_data():
    other = change(tiny("sft"), {"data.source": "folder", "eval.trip_wires": True})
    with pytest.raises(ValueError, match=r"eval\.trip_wires.*data\.source"):
        finalize(other)
