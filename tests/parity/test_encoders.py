"""Every encoder family against transformers: in, equal, with equal gradients; out, loadable."""

from __future__ import annotations

import dataclasses
import io
import logging
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoder_references import FAMILIES, classifier, torch_batch
from parity_references import padded_batch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, dynamic_module_utils

from gapo_jax.models import (
    Discriminator,
    Encoder,
    load_discriminator,
    load_encoder,
    network_of,
    save_hf,
)
from gapo_jax.models.hf import parameter_map
from gapo_jax.models.hf.files import SafetensorsSource

TOLERANCE = 1e-4
LENGTH = 40


def _batch(model, side, length=LENGTH):
    """Tokens, mask and segment ids [4, T]; padding holds the model's padding token."""
    tokens_BT, mask_BT = padded_batch(120, side, length)
    tokens_BT = np.where(mask_BT > 0, tokens_BT, model.config.pad_token_id).astype(np.int32)
    type_ids_BT = (np.cumsum(mask_BT, axis=1) > 9).astype(np.int32)
    return tokens_BT, mask_BT, type_ids_BT


# The part of each classifier that reads the first column; ModernBERT's here takes the mean.
READS_FIRST = {
    "bert": "bert.pooler",
    "roberta": "classifier",
    "longformer": "classifier",
    "deberta-v2": "pooler",
}


def _theirs(model, batch):
    """Hidden states and logits of transformers, with a graph for the gradient.

    Their classifiers read the first column, with padding on the left a padding token: the first
    real token is put there before they do.
    """
    arguments = torch_batch(model, *batch)
    hidden_BTD = model.base_model(**arguments).last_hidden_state
    name = READS_FIRST.get(model.config.model_type)
    if name is None:
        return hidden_BTD, model(**arguments).logits[:, 0]
    first_B = torch.tensor(batch[1].argmax(axis=1))

    def turned(_, inputs):
        rows = zip(inputs[0], first_B.tolist(), strict=True)
        return (torch.stack([row.roll(-first, 0) for row, first in rows]),)

    hook = model.get_submodule(name).register_forward_pre_hook(turned)
    logits_B = model(**arguments).logits[:, 0]
    hook.remove()
    return hidden_BTD, logits_B


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A family: transformers' classifier, its folder, and our network with the same weights."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    model = classifier(family)
    model.save_pretrained(folder)
    encoder, encoder_params = load_encoder(folder)
    assert ("pooler" in encoder_params) == encoder.config.pooler == (family == "bert")
    encoder_params.pop("pooler", None)
    encoder = Encoder(dataclasses.replace(encoder.config, pooler=False))
    module = Discriminator(encoder.config, "hf")
    arch = parameter_map.classifier_of(encoder.config)
    params = parameter_map.import_params(arch, encoder.config, SafetensorsSource(folder))
    weights_BTD = np.random.default_rng(1).standard_normal((4, LENGTH, 32)).astype(np.float32)

    def loss(params, *batch):
        hidden_BTD = encoder.apply({"params": params["encoder"]}, *batch)
        logits_B = module.apply({"params": params}, hidden_BTD, batch[1], method="score_hidden")
        loss = (hidden_BTD * weights_BTD * batch[1][..., None]).sum() + logits_B.sum()
        return loss, (hidden_BTD, logits_B)

    gradients = jax.jit(jax.grad(loss, has_aux=True))
    return SimpleNamespace(**locals())


def test_hidden_states_logits_and_gradients(case):
    """40 tokens: ten blocks of Longformer's and ModernBERT's windows, two chunks of queries."""
    for side in ("left", "right"):
        batch = _batch(case.model, side)
        real = batch[1] > 0
        want_hidden, want_logits = _theirs(case.model, batch)
        grads, (hidden, logits) = case.gradients(case.params, *batch)
        want = want_hidden.detach().numpy()[real]
        assert want.std() > 0.5
        np.testing.assert_allclose(np.asarray(hidden)[real], want, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(logits, want_logits.detach().numpy(), atol=TOLERANCE, rtol=0)
    weights = torch.tensor(case.weights_BTD * batch[1][..., None])
    ((want_hidden * weights).sum() + want_logits.sum()).backward()
    theirs = {name: p.grad for name, p in case.model.named_parameters()}
    ours = dict(parameter_map.export_tensors(case.arch, case.encoder.config, grads))
    case.model.zero_grad()
    assert theirs.keys() == ours.keys()
    largest = max(g.abs().max().item() for g in theirs.values() if g is not None)
    for name, grad in theirs.items():
        grad = np.zeros_like(ours[name]) if grad is None else grad.numpy()
        # A key bias has no gradient but for rounding, hence the share of the largest one.
        bound = 1e-3 * np.abs(grad).max() + 1e-6 * largest
        np.testing.assert_allclose(ours[name], grad, atol=bound, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", ["longformer", "modernbert"], indirect=True)
def test_a_text_shorter_than_three_windows(case):
    """Then windows are a mask over one matrix."""
    apply = jax.jit(case.encoder.apply)
    for side in ("left", "right"):
        batch = _batch(case.model, side, 8)
        with torch.no_grad():
            want = _theirs(case.model, batch)[0].numpy()[batch[1] > 0]
        got = np.asarray(apply({"params": case.params["encoder"]}, *batch))[batch[1] > 0]
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


def test_the_encoder_is_that_of_the_classifier(case):
    assert jax.tree.structure(case.encoder_params) == jax.tree.structure(case.params["encoder"])
    equal = jax.tree.map(np.array_equal, case.encoder_params, case.params["encoder"])
    assert all(jax.tree.leaves(equal))
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    made = jax.eval_shape(case.module.init, jax.random.key(0), tokens_BT, tokens_BT)["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, case.params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, made)


def test_export_is_bit_identical_and_loads(case, tmp_path):
    exported = save_hf(case.module, case.params, tmp_path / "exported")
    source, stored = (load_file(f / "model.safetensors") for f in (case.folder, exported))
    assert source.keys() == stored.keys()
    assert all(np.array_equal(stored[name], source[name]) for name in source)
    again, info = AutoModelForSequenceClassification.from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(case.model)
    batch = _batch(case.model, "right")
    with torch.no_grad():
        want, got = (_theirs(model.eval(), batch)[1] for model in (case.model, again))
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)
    encoder, params = load_encoder(exported)
    assert dataclasses.replace(encoder.config, pooler=False) == case.encoder.config
    _comes_back(exported, case.module, case.params)


def _comes_back(folder, module, params):
    """A discriminator is read with its own head, whatever pooling is asked for of a fresh one."""
    assert network_of(folder) == "discriminator"
    placed = []
    again, read = load_discriminator(folder, put=lambda *leaf: placed.append(leaf[0]) or leaf[1])
    assert again == module
    assert jax.tree.structure(read) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, read, params)))
    assert sorted(placed) == sorted(path for path, _ in parameter_map.flatten(params))


def test_any_other_head_is_encoder_plus_head_as_the_card_says(case, tmp_path, monkeypatch):
    module = Discriminator(case.encoder.config, "mean", 16)
    rng = np.random.default_rng(0)
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens_BT, tokens_BT)["params"]["head"]
    head = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params = {"encoder": case.params["encoder"], "head": head}
    folder = save_hf(module, params, tmp_path / "exported")
    tokens_BT, mask_BT, _ = _batch(case.model, "right")
    # The code in the card is run as a reader would run it.
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    arrays = {"input_ids": tokens_BT, "attention_mask": mask_BT}
    batch = {name: torch.tensor(array).long() for name, array in arrays.items()}
    scope = {"folder": str(folder), "batch": batch}
    with torch.no_grad():
        exec(code, scope)
    got = jax.jit(module.apply)({"params": params}, tokens_BT, mask_BT)
    assert np.abs(got).max() > 1e-2
    np.testing.assert_allclose(got, scope["logits"].numpy(), atol=TOLERANCE, rtol=0)
    _comes_back(folder, module, params)
    _loads_as_a_classifier(folder, batch, np.asarray(got), tmp_path, monkeypatch)


def _loads_as_a_classifier(folder, batch, want, tmp_path, monkeypatch):
    """With its code transformers computes our logits; without, it says that it made up a head."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    load = AutoModelForSequenceClassification.from_pretrained
    theirs = load(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = theirs(**batch).logits
    assert logits.shape == (4, 1)
    np.testing.assert_allclose(logits[:, 0].numpy(), want, atol=TOLERANCE, rtol=0)
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    transformers.utils.logging.add_handler(handler)
    _, info = load(folder, output_loading_info=True)
    transformers.utils.logging.remove_handler(handler)
    assert any(name.startswith(("classifier", "pooler", "head")) for name in info["missing_keys"])
    assert "newly initialized" in said.getvalue() or "MISSING" in said.getvalue()


def test_an_encoder_without_a_scalar_head_gets_the_wanted_one(tmp_path):
    """Also a classifier of two labels, whose head has no place in a discriminator."""
    for family, labels in (("roberta", 2), ("bert", 2)):
        classifier(family, num_labels=labels).save_pretrained(tmp_path / family)
        assert network_of(tmp_path / family) == "encoder"
        module, params = load_discriminator(tmp_path / family, pooling="cls", hidden_dim=8)
        assert (module.pooling, module.hidden_dim) == ("cls", 8) and params.keys() == {"encoder"}


@pytest.mark.parametrize("case", ["bert"], indirect=True)
def test_a_head_that_is_not_whole_is_refused(case, tmp_path):
    shutil.copytree(case.folder, tmp_path / "model")
    leaf = np.zeros((2, 1), np.float32)
    save_file({"out/kernel": leaf}, tmp_path / "model" / "discriminator_head.safetensors")
    with pytest.raises(ValueError, match="Export the discriminator again"):
        load_discriminator(tmp_path / "model")
