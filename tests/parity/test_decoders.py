"""Tiny random decoders of every family: in, equal; out again, bit-identical and loadable.

Texts are longer than the windows, with padding on the left and on the right.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from decoder_references import FAMILIES, VARIANTS, tiny_classifier, tiny_decoder
from parity_references import padded_batch, torch_greedy, torch_logits, torch_outputs
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.models import (
    Decoder,
    generation,
    inspect,
    load_decoder,
    load_reward_model,
    save_hf,
)
from gapo_jax.models.hf import parameter_map
from gapo_jax.rollout.sampler import make_sampler

TOLERANCE = 1e-4
# Compiling is nearly all that these tests do; this halves it.
FAST = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
compiled = functools.partial(jax.jit, compiler_options=FAST)
PROMPT = 16  # of the 24 columns; the rest is decoded with the cache


def _load_torch(folder, auto=AutoModelForCausalLM, **options):
    """The model of a folder, eager attention (the others have no soft cap); nothing left over."""
    model, info = auto.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", **options
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def _assert_same_files(a, b):
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and np.array_equal(tensor, right[name]), name


@functools.cache
def _weights_BTV():
    return np.random.default_rng(1).standard_normal((4, 24, 120)).astype(np.float32)


def _torch_loss(logits_BTV, mask_BT):
    weights_BTV = torch.tensor(_weights_BTV()) * torch.tensor(mask_BT)[..., None]
    return (logits_BTV.log_softmax(-1) * weights_BTV).sum()


def _with_gradient(decoder):
    """A compiled function of (params, tokens, mask): ((loss, (logits, hidden)), gradient)."""

    def loss(params, tokens_BT, mask_BT):
        def run(module):
            hidden_BTD = module.hidden(tokens_BT, mask_BT)
            return module.logits(hidden_BTD), hidden_BTD

        logits_BTV, hidden_BTD = decoder.apply({"params": params}, method=run)
        weights_BTV = _weights_BTV() * mask_BT[..., None]
        return (jax.nn.log_softmax(logits_BTV) * weights_BTV).sum(), (logits_BTV, hidden_BTD)

    return compiled(jax.value_and_grad(loss, has_aux=True))


@functools.partial(compiled, static_argnums=1)
def _decode(params, config, tokens_BT, mask_BT):
    """Logits [B, R + 1, V] after the prompt and after each further token, by the cache."""
    weights = generation.decode_weights(params, config)
    prompt_mask_BP = mask_BT[:, :PROMPT]
    hidden_BD, prompt_cache = generation.prefill(
        params, config, tokens_BT[:, :PROMPT], prompt_mask_BP
    )
    cache = generation.empty_cache(config, len(tokens_BT), tokens_BT.shape[1] - PROMPT)

    def step(cache, inputs):
        step, tokens_B = inputs
        hidden_BD, cache = generation.decode_step(
            weights, config, tokens_B, step, prompt_mask_BP, prompt_cache, cache
        )
        return cache, hidden_BD

    tokens_RB = tokens_BT[:, PROMPT:].T
    _, hidden_RBD = jax.lax.scan(step, cache, (jnp.arange(len(tokens_RB)), tokens_RB))
    hidden_RBD = jnp.concatenate([hidden_BD[None], hidden_RBD])
    logits = jax.vmap(lambda h: generation.next_logits(weights, h, softcap=config.final_softcap))
    return logits(hidden_RBD).swapaxes(0, 1)


def _check_gradients(decoder, gradient, theirs):
    """Every parameter's gradient, under its Hugging Face name."""
    arch = parameter_map.architecture_of(decoder.config)
    wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    ours = dict(parameter_map.export_tensors(arch, decoder.config, gradient))
    assert ours.keys() == wanted.keys()
    for name, want in wanted.items():
        np.testing.assert_allclose(ours[name], want, atol=1e-3 * np.abs(want).max(), err_msg=name)


def _check_folder(tmp_path, decoder, params, batch, want):
    """Out again: the tensors bit for bit, and transformers computes the same logits."""
    exported = save_hf(decoder, params, tmp_path / "exported")
    _assert_same_files(tmp_path / "source", exported)
    assert np.array_equal(torch_logits(_load_torch(exported), *batch), want)
    assert load_decoder(exported)[0].config == decoder.config


@pytest.mark.parametrize("case", FAMILIES)
def test_families(case, tmp_path):
    theirs = tiny_decoder(case)
    theirs.save_pretrained(tmp_path / "source")
    decoder, params = load_decoder(tmp_path / "source")
    forward = _with_gradient(decoder)
    for side in ("right", "left"):
        tokens_BT, mask_BT = padded_batch(120, side)
        real = mask_BT > 0
        out = torch_outputs(theirs, tokens_BT, mask_BT)
        want, hidden = out.logits.detach().numpy(), out.hidden_states[-1].detach().numpy()
        (_, (got, got_hidden)), gradient = forward(params, tokens_BT, mask_BT)
        assert want[real].std() > 0.5
        np.testing.assert_allclose(got[real], want[real], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(got_hidden[real], hidden[real], atol=TOLERANCE, rtol=0)
    _torch_loss(out.logits, mask_BT).backward()
    _check_gradients(decoder, gradient, theirs)
    # The last row has no prompt.
    decoded = _decode(params, decoder.config, tokens_BT, mask_BT)[:3]
    np.testing.assert_allclose(decoded, got[:3, PROMPT - 1 :], atol=1e-5, rtol=0)
    _check_folder(tmp_path, decoder, params, (tokens_BT, mask_BT), want)


@pytest.mark.parametrize("case", VARIANTS)
def test_variants(case, tmp_path):
    theirs = tiny_decoder(case)
    theirs.save_pretrained(tmp_path / "source")
    decoder, params = load_decoder(tmp_path / "source")
    tokens_BT, mask_BT = padded_batch(120, "left")
    want = torch_logits(theirs, tokens_BT, mask_BT)
    got = np.asarray(compiled(decoder.apply)({"params": params}, tokens_BT, mask_BT))
    np.testing.assert_allclose(got[mask_BT > 0], want[mask_BT > 0], atol=TOLERANCE, rtol=0)
    # The last row has no prompt.
    decoded = _decode(params, decoder.config, tokens_BT, mask_BT)[:3]
    np.testing.assert_allclose(decoded, got[:3, PROMPT - 1 :], atol=1e-5, rtol=0)
    _check_folder(tmp_path, decoder, params, (tokens_BT, mask_BT), want)


def test_sharded_torch_folder_in_bfloat16(tmp_path):
    tiny_decoder().to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    theirs = _load_torch(tmp_path, dtype=torch.float32)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    decoder, params = load_decoder(tmp_path)
    tokens_BT, mask_BT = padded_batch(120, "left")
    want = torch_logits(theirs, tokens_BT, mask_BT)
    got = np.asarray(compiled(decoder.apply)({"params": params}, tokens_BT, mask_BT))
    np.testing.assert_allclose(got[mask_BT > 0], want[mask_BT > 0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_tied_config_with_another_output_matrix_in_the_file(case, tmp_path):
    """transformers 5 reads the matrix of the file, with a warning, and so do we."""
    model = tiny_decoder(case, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    tokens_BT, mask_BT = padded_batch(120, "left")
    want = torch_logits(_load_torch(tmp_path), tokens_BT, mask_BT)
    with pytest.warns(UserWarning, match="has a lm_head.weight that differs from .*transformers"):
        decoder, params = load_decoder(tmp_path)
    got = np.asarray(compiled(decoder.apply)({"params": params}, tokens_BT, mask_BT))
    np.testing.assert_allclose(got[mask_BT > 0], want[mask_BT > 0], atol=TOLERANCE, rtol=0)
    assert np.abs(torch_logits(model, tokens_BT, mask_BT) - want).max() < TOLERANCE
    with pytest.warns(UserWarning):
        assert inspect(tmp_path)[0] == decoder.config and not decoder.config.tie_embeddings
    # Exported, the config says what the file holds.
    exported = save_hf(decoder, params, tmp_path / "exported")
    assert load_decoder(exported)[0].config == decoder.config


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_greedy_text_of_the_export(case, tmp_path):
    tiny_decoder(case).save_pretrained(tmp_path / "source")
    decoder, params = load_decoder(tmp_path / "source")
    folder = save_hf(decoder, params, tmp_path / "exported", character_tokenizer())
    theirs = _load_torch(folder)
    tokens_BP, mask_BP = padded_batch(120, "left")
    sample = make_sampler(decoder, max_new_tokens=64, eos_ids=(2,), pad_id=0)
    rollout = sample(params, tokens_BP, mask_BP, jax.random.split(jax.random.key(0), 4), 0.0)
    for row in range(4):
        kept = np.asarray(rollout.response_mask_BR[row]) > 0
        got = np.asarray(rollout.tokens_BT[row, 24:])[kept].tolist()
        prompt = tokens_BP[row][mask_BP[row] > 0].tolist()
        assert got == torch_greedy(theirs, prompt, 64, [2])


@pytest.mark.parametrize("case", ["qwen2", "gemma3", "gpt2"])
def test_reward_models_are_sequence_classifiers(case, tmp_path):
    theirs = tiny_classifier(case)
    theirs.save_pretrained(tmp_path / "source")
    module, params = load_reward_model(tmp_path / "source")
    apply = compiled(module.apply)
    for side in ("left", "right"):
        tokens_BT, mask_BT = padded_batch(120, side)
        with torch.no_grad():
            want = torch_outputs(theirs, tokens_BT, mask_BT).logits[:, 0].numpy()
        got = np.asarray(apply({"params": params}, tokens_BT, mask_BT))
        assert want.std() > 0.1
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)
    exported = save_hf(module, params, tmp_path / "exported")
    _assert_same_files(tmp_path / "source", exported)
    again = _load_torch(exported, AutoModelForSequenceClassification)
    with torch.no_grad():
        logits = torch_outputs(again, tokens_BT, mask_BT).logits[:, 0].numpy()
    assert np.array_equal(logits, want)


def test_a_reward_model_from_a_language_model_has_a_fresh_head(tmp_path):
    tiny_decoder("llama, untied, multi-head").save_pretrained(tmp_path)
    (module, params), (_, again) = (load_reward_model(tmp_path, seed=0) for _ in range(2))
    _, other = load_reward_model(tmp_path, seed=1)
    head = params["head"]["out"]["kernel"]
    assert head.shape == (32, 1) and 0.01 < head.std() < 0.03
    assert np.array_equal(head, again["head"]["out"]["kernel"])
    assert not np.array_equal(head, other["head"]["out"]["kernel"])
    _, decoder = load_decoder(tmp_path)
    assert decoder.keys() - params["decoder"].keys() == {"lm_head"}
    tokens_BT, mask_BT = padded_batch(120, "left")
    hidden_BTD = Decoder(module.config).apply(
        {"params": params["decoder"]}, tokens_BT, mask_BT, method="hidden"
    )
    got = module.apply({"params": params}, tokens_BT, mask_BT)
    np.testing.assert_allclose(got, hidden_BTD[:, -1] @ head[:, 0], atol=1e-5)
