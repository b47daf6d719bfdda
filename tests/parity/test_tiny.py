"""Tiny random BERT of transformers: in, equal; out again, bit-identical and loadable."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from parity_references import padded_batch, tiny_bert
from safetensors.numpy import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
)

from gapo_jax.data.tiny_tokenizer import wordpiece_tokenizer
from gapo_jax.models import Discriminator, inspect, load_encoder, save_hf

TOLERANCE = 1e-4


def _bert_hidden(model, tokens_BT, mask_BT, type_ids_BT):
    with torch.no_grad():
        return model(
            torch.tensor(tokens_BT).long(),
            attention_mask=torch.tensor(mask_BT).long(),
            token_type_ids=torch.tensor(type_ids_BT).long(),
        )


def test_bert_in_and_out(tmp_path):
    theirs = tiny_bert()
    theirs.save_pretrained(tmp_path / "source")
    encoder, params = load_encoder(tmp_path / "source")
    tokens_BT, mask_BT = padded_batch(120, "right")
    type_ids_BT = (np.arange(24)[None] > np.array([[3], [9], [12], [30]])).astype(np.int32)
    want = _bert_hidden(theirs, tokens_BT, mask_BT, type_ids_BT).last_hidden_state.numpy()
    got = np.asarray(jax.jit(encoder.apply)({"params": params}, tokens_BT, mask_BT, type_ids_BT))
    np.testing.assert_allclose(got[mask_BT > 0], want[mask_BT > 0], atol=TOLERANCE, rtol=0)
    exported = save_hf(encoder, params, tmp_path / "exported")
    source = load_file(tmp_path / "source" / "model.safetensors")
    stored = load_file(exported / "model.safetensors")
    # Nothing here computes the pooler; it is carried along.
    assert source.keys() == stored.keys() >= {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(np.array_equal(stored[name], source[name]) for name in stored)
    assert "from_pretrained(folder)" in (exported / "README.md").read_text()
    again, info = AutoModel.from_pretrained(exported, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs_again = _bert_hidden(again.eval(), tokens_BT, mask_BT, type_ids_BT)
    assert np.array_equal(theirs_again.last_hidden_state.numpy(), want)


def test_bert_without_a_pooler(tmp_path):
    """As MiniLM's heirs and older exports are."""
    theirs = tiny_bert()
    theirs.pooler = None
    theirs.save_pretrained(tmp_path / "source")
    encoder, params = load_encoder(tmp_path / "source")
    assert not encoder.config.pooler and "pooler" not in params
    exported = save_hf(encoder, params, tmp_path / "exported")
    assert "add_pooling_layer=False" in (exported / "README.md").read_text()
    assert inspect(exported)[0] == encoder.config


def _discriminator(tmp_path, pooling, hidden_dim):
    """A discriminator over the tiny BERT, with its logits on a padded batch."""
    tiny_bert().save_pretrained(tmp_path / "source")
    encoder, encoder_params = load_encoder(tmp_path / "source")
    module = Discriminator(encoder.config, pooling, hidden_dim)
    tokens_BT, mask_BT = padded_batch(120, "right")
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens_BT, mask_BT)["params"]["head"]
    rng = np.random.default_rng(0)
    head = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params = {"encoder": encoder_params, "head": head}
    got = np.asarray(jax.jit(module.apply)({"params": params}, tokens_BT, mask_BT))
    assert np.abs(got).max() > 1e-2
    return module, params, tokens_BT, mask_BT, got


def test_cls_discriminator_is_a_sequence_classifier(tmp_path):
    module, params, tokens_BT, mask_BT, got = _discriminator(tmp_path, "cls", 32)
    folder = save_hf(module, params, tmp_path / "exported", wordpiece_tokenizer())
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    want = _bert_hidden(theirs.eval(), tokens_BT, mask_BT, 0 * tokens_BT).logits[:, 0].numpy()
    np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("pooling", "hidden_dim"), [("mean", None), ("mean", 16), ("cls", None)])
def test_other_discriminators_are_encoder_plus_head_as_the_card_says(tmp_path, pooling, hidden_dim):
    module, params, tokens_BT, mask_BT, got = _discriminator(tmp_path, pooling, hidden_dim)
    folder = save_hf(module, params, tmp_path / "exported", wordpiece_tokenizer())
    # The code in the card is run as a reader would run it.
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    batch = {
        "input_ids": torch.tensor(tokens_BT).long(),
        "attention_mask": torch.tensor(mask_BT).long(),
    }
    scope = {"folder": str(folder), "batch": batch}
    with torch.no_grad():
        exec(code, scope)
    np.testing.assert_allclose(got, scope["logits"].numpy(), atol=TOLERANCE, rtol=0)
