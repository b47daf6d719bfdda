"""The discriminator's second opinion: figures by hand, and scores against one text at a time."""

import jax
import numpy as np
import pytest

from gapo_jax.data.discriminator_text import encode_discriminator
from gapo_jax.data.tiny_tokenizer import wordpiece_tokenizer
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.evaluate.second_opinion import auc, make_scorer, second_opinion
from gapo_jax.models import Discriminator, EncoderConfig

LOGITS = {"a": 2.0, "b": -1.0, "c": 0.5, "d": 0.5}


def _verdict(response, held, prompt=None):
    return Verdict("", prompt or f"p{response}", response, ("x:y",), (held,), (held,))


def _score(prompts, responses):
    assert len(prompts) == len(responses)
    return np.array([LOGITS[response] for response in responses], np.float32)


def test_figures_by_hand():
    verdicts = [
        _verdict("a", True),
        _verdict("b", False),
        _verdict("c", False),
        _verdict("d", True),
    ]
    found = second_opinion(_score, verdicts, resamples=500)
    assert found["accepted"]["value"] == 0.75 and found["logit_mean"] == 0.5
    assert found["agreement"] == 0.75  # wrong on c only
    assert found["auc"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert 0 <= found["accepted"]["low"] < 0.75 < found["accepted"]["high"] <= 1
    alike = second_opinion(_score, verdicts[:1], resamples=10)
    assert alike["auc"] is None and alike["accepted"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    twice = [_verdict("a", True, "p"), _verdict("b", True, "p")]  # one prompt: no spread
    assert second_opinion(_score, twice)["accepted"] == {"value": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize("levels", [1, 2, 5, 10_000])
def test_auc_by_ranks_is_auc_by_pairs(levels):
    rng = np.random.default_rng(levels)
    logits_B = (rng.integers(levels, size=300) / 7).astype(np.float32)  # few levels: many ties
    held_B = rng.random(300) < 0.3
    gap = logits_B[held_B][:, None] - logits_B[~held_B][None, :]
    wanted = ((gap > 0) + 0.5 * (gap == 0)).mean()
    assert auc(logits_B, held_B) == pytest.approx(wanted, rel=1e-12)


def test_a_batch_scores_as_each_text_by_itself():
    tokenizer = wordpiece_tokenizer()
    config = EncoderConfig(
        vocab_size=len(tokenizer), num_layers=1, d_model=8, num_heads=1, d_ff=8, max_positions=64
    )
    module = Discriminator(config)
    prompts = [f"say {'so ' * i}" for i in range(5)]
    responses = ["yes", "no " * 9, "a", "well then", "x " * 60]
    tokens_BT, mask_BT, type_ids_BT = encode_discriminator(tokenizer, prompts, responses, 48)
    init = jax.jit(module.init)
    params = init(jax.random.key(1), tokens_BT, mask_BT, type_ids_BT)["params"]
    params["head"]["out"]["kernel"] = params["head"]["out"]["kernel"] * 50
    score = make_scorer(module, params, tokenizer, max_tokens=48, batch_size=2)
    logits_B = score(prompts, responses)
    assert logits_B.dtype == np.float32 and len(set(logits_B.tolist())) == 5
    wanted_B = jax.jit(module.apply)({"params": params}, tokens_BT, mask_BT, type_ids_BT)
    np.testing.assert_allclose(logits_B, wanted_B, rtol=1e-4, atol=1e-5)
