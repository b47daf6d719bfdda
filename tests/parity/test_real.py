"""The cached real weights against transformers: SmolLM2 out of its GGUF, MiniLM from its folder."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
from parity_references import gguf_model, torch_logits
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from gapo_jax.data.tokenizer import chat_prompt, decode_responses, encode_prompts, load_tokenizer
from gapo_jax.models import Decoder, load_decoder, load_encoder, save_hf
from gapo_jax.models.hf import parameter_map
from gapo_jax.rollout.sampler import make_sampler

PROMPTS = ["Name three rivers.", "What is 17 + 25? Explain in one sentence."]


@pytest.fixture(scope="module")
def ours(smollm2):
    decoder, params = load_decoder(smollm2)
    return decoder, params, load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2):
    return gguf_model(smollm2)


@pytest.fixture(scope="module")
def encoded(ours):
    tokenizer = ours[2]
    texts = [chat_prompt(tokenizer, prompt) for prompt in PROMPTS]
    return encode_prompts(tokenizer, texts, 64, buckets=(48,))


@pytest.fixture(scope="module")
def greedy(ours, encoded):
    """64 greedy tokens a prompt, as (tokens, text)."""
    decoder, params, tokenizer = ours
    tokens_BP, mask_BP = encoded
    sample = make_sampler(decoder, max_new_tokens=64, eos_ids=(2,), pad_id=2)
    rollout = sample(params, tokens_BP, mask_BP, jax.random.split(jax.random.key(0), 2), 0.0)
    tokens_BR = np.asarray(rollout.tokens_BT)[:, tokens_BP.shape[1] :]
    mask_BR = np.asarray(rollout.response_mask_BR)
    ids = [row[mask > 0].tolist() for row, mask in zip(tokens_BR, mask_BR)]
    return ids, decode_responses(tokenizer, tokens_BR, mask_BR)


def test_every_weight_is_bit_equal_to_transformers_reading(ours, theirs):
    decoder, params, _ = ours
    want = theirs.state_dict()
    arch = parameter_map.architecture_of(decoder.config)
    names = set()
    for name, tensor in parameter_map.export_tensors(arch, decoder.config, params):
        assert np.array_equal(tensor, want[name].numpy()), name
        names.add(name)
    assert want.keys() - names == {"lm_head.weight"}


def test_logits(ours, theirs, encoded):
    """Float32 rounding grows with the logits, which reach 40 here; torch against itself in float64
    differs by 8e-5 on these prompts. Hence a bound relative to the largest logit."""
    decoder, params, _ = ours
    want = torch_logits(theirs, *encoded)
    got = np.asarray(jax.jit(decoder.apply)({"params": params}, *encoded))
    real = encoded[1] > 0
    assert np.abs(got - want)[real].max() < 1e-5 * np.abs(want)[real].max()
    assert (got.argmax(-1) == want.argmax(-1))[real].all()


def test_logits_in_float64(ours, theirs, encoded):
    """Where rounding does not hide a difference, they are held to what tiny networks are."""
    decoder, params, _ = ours
    want = torch_logits(theirs.double(), *encoded)
    theirs.float()
    with jax.enable_x64(True):
        wide = Decoder(dataclasses.replace(decoder.config, dtype="float64"))
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        got = np.asarray(jax.jit(wide.apply)({"params": params}, *encoded))
    real = encoded[1] > 0
    assert got.dtype == want.dtype == np.float64 and np.abs(want).max() > 30
    np.testing.assert_allclose(got[real], want[real], atol=1e-4, rtol=0)


def test_greedy_tokens(theirs, encoded, greedy):
    """Each of our tokens is the argmax of transformers' logits on the text before it."""
    tokens_BP, mask_BP = encoded
    width = max(len(ids) for ids in greedy[0])
    assert width > 20
    tokens_BT = np.pad(tokens_BP, ((0, 0), (0, width)))
    mask_BT = np.pad(mask_BP, ((0, 0), (0, width)))
    start = tokens_BP.shape[1]
    for row, ids in enumerate(greedy[0]):
        tokens_BT[row, start : start + len(ids)] = ids
        mask_BT[row, start : start + len(ids)] = 1
    best_BT = torch_logits(theirs, tokens_BT, mask_BT).argmax(-1)
    for row, ids in enumerate(greedy[0]):
        assert best_BT[row, start - 1 : start - 1 + len(ids)].tolist() == ids


def test_text_of_the_export(ours, encoded, greedy, tmp_path):
    """The exported folder, used as anybody would use it, writes the same text."""
    decoder, params, tokenizer = ours
    folder = save_hf(decoder, params, tmp_path / "export", tokenizer)
    exported, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs_tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = theirs_tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = exported.eval().generate(**batch, max_new_tokens=64, do_sample=False)
    new = out[0, batch["input_ids"].shape[1] :]
    assert new.tolist() == greedy[0][0]
    assert theirs_tokenizer.decode(new, skip_special_tokens=True) == greedy[1][0]


def test_minilm_hidden_states(minilm):
    encoder, params = load_encoder(minilm)
    tokenizer = load_tokenizer(minilm)
    batch = tokenizer(
        [("Name three rivers.", "The Nile, the Rhine and the Volga."), ("Hi", "x")],
        padding=True,
        return_tensors="np",
    )
    theirs = AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        want = theirs(**{k: torch.tensor(v) for k, v in batch.items()}).last_hidden_state.numpy()
    arguments = [batch[k].astype(np.int32) for k in ("input_ids", "attention_mask")]
    got = jax.jit(encoder.apply)(
        {"params": params}, *arguments, batch["token_type_ids"].astype(np.int32)
    )
    real = arguments[1] > 0
    np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=1e-4, rtol=0)
