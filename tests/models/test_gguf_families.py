"""GGUF files of every family we read, and the K-quants, against plain readings of the formats."""

from __future__ import annotations

import gguf
import jax
import numpy as np
import pytest
from gguf_files import begin, finish

from gapo_jax.models import Decoder, DecoderConfig, load_decoder
from gapo_jax.models.hf import parameter_map
from gapo_jax.models.hf.gguf_file import GGUFSource

SIZES = dict(
    vocab_size=60,
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=64,
    eos_ids=(2,),
    bos_id=1,
    max_positions=64,
)
GEMMA = dict(
    norm="rms_plus_one",
    norm_placement="both",
    activation="gelu_tanh",
    query_scalar=8.0,
    scale_embeddings=True,
)
CONFIGS = {
    "qwen2": DecoderConfig(**SIZES, family="qwen2", attn_bias="qkv", rope_theta=1e6),
    "qwen3": DecoderConfig(**SIZES, family="qwen3", qk_norm="head", tie_embeddings=False),
    "gemma2": DecoderConfig(
        **SIZES, **GEMMA, family="gemma2", windows=(16, 0), attn_softcap=50.0, final_softcap=30.0
    ),
    "gemma3": DecoderConfig(
        **SIZES,
        **GEMMA,
        family="gemma3_text",
        windows=(16, 16),
        qk_norm="head",
        rope_theta=1e6,
        rope_local_theta=1e4,
        rope_scaling=(8.0,),
    ),
    "phi3": DecoderConfig(**SIZES, family="phi3", windows=(16, 16), tie_embeddings=False),
    "olmo2": DecoderConfig(
        **SIZES, family="olmo2", norm_placement="post", qk_norm="all", tie_embeddings=False
    ),
}


def _params(config):
    tokens = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _write(path, name, config, params):
    """A GGUF file as llama.cpp's converter writes it, with the tensor names of the gguf package."""
    writer = begin(path, name, config)
    writer.add_key_length(config.head_dim)
    if config.window:
        writer.add_sliding_window(config.window)
    if config.rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling[0])
    if config.attn_softcap:
        writer.add_attn_logit_softcapping(config.attn_softcap)
        writer.add_final_logit_softcapping(config.final_softcap)
    (kind,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(kind, config.num_layers)
    arch = parameter_map.architecture_of(config)
    for hf_name, tensor in parameter_map.export_tensors(arch, config, params):
        if name.startswith("gemma") and hf_name.endswith("norm.weight"):
            tensor = tensor + 1.0
        found = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        assert found is not None, hf_name
        writer.add_tensor(found, tensor)
    finish(writer)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_families(tmp_path, name):
    config = CONFIGS[name]
    params = _params(config)
    decoder, back = load_decoder(_write(tmp_path / "m.gguf", name, config, params))
    assert decoder.config == config
    # Adding 1 to Gemma's norms and taking it off again rounds.
    atol = 3e-7 if name.startswith("gemma") else 0.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), back, params)


def _halves(block, offset):
    return np.frombuffer(block[offset : offset + 2], np.float16).astype(np.float32)[0]


def _six_bits(packed, group):
    """Scale and minimum of a group of 32 weights, 6 bits each, out of 12 bytes."""
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    scale = (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4)
    return scale, (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4)


def _q4_k(block):
    """256 weights of ggml's block_q4_K, one at a time: d, dmin, 12 bytes of 6-bit scales and
    minima, 128 bytes of nibbles."""
    return _q5_k(block[:16] + b"\0" * 32 + block[16:])


def _q5_k(block):
    """256 weights of ggml's block_q5_K: as block_q4_K, with 32 bytes of fifth bits before the
    nibbles, bit g of byte i for the weight i of group g."""
    scale, minimum = _halves(block, 0), _halves(block, 2)
    packed, high, nibbles = block[4:16], block[16:48], block[48:]
    out = np.zeros(256, np.float32)
    for group in range(8):
        sc, m = _six_bits(packed, group)
        for i in range(32):
            byte = nibbles[32 * (group // 2) + i]
            quant = (byte >> 4 if group % 2 else byte & 15) + 16 * (high[i] >> group & 1)
            out[32 * group + i] = scale * np.float32(sc) * np.float32(quant) - minimum * m
    return out


def _q6_k(block):
    """256 weights of ggml's block_q6_K: 128 bytes of low nibbles, 64 of upper bits, 16 signed
    scales, d."""
    low, high = block[:128], block[128:192]
    scales = np.frombuffer(block[192:208], np.int8)
    scale = _halves(block, 208)
    out = np.zeros(256, np.float32)
    for i in range(256):
        half, rest = divmod(i, 128)
        quarter, column = divmod(rest, 32)
        byte = low[64 * half + 32 * (quarter % 2) + column]
        nibble = byte >> 4 if quarter >= 2 else byte & 15
        bits = (high[32 * half + column] >> (2 * quarter)) & 3
        out[i] = scale * np.float32(scales[i // 16]) * np.float32((nibble | bits << 4) - 32)
    return out


def _q2_k(block):
    """256 weights of ggml's block_q2_K: 16 bytes of 4-bit scales and minima, 64 of 2-bit weights,
    d, dmin."""
    scales, quants = block[:16], block[16:80]
    scale, minimum = _halves(block, 80), _halves(block, 82)
    out = np.zeros(256, np.float32)
    for i in range(256):
        half, rest = divmod(i, 128)
        quant = (quants[32 * half + rest % 32] >> (2 * (rest // 32))) & 3
        packed = scales[i // 16]
        out[i] = scale * (packed & 15) * quant - minimum * (packed >> 4)
    return out


def _q3_k(block):
    """256 weights of ggml's block_q3_K: 32 bytes of upper bits, 64 of lower ones, 12 of 6-bit
    scales, d. Where the upper bit is not set, 4 is taken off."""
    upper, lower, packed = block[:32], block[32:96], block[96:108]
    scale = _halves(block, 108)
    out = np.zeros(256, np.float32)
    for i in range(256):
        half, rest = divmod(i, 128)
        shift, column, group = rest // 32, rest % 32, i // 16
        nibble = packed[group % 8] >> (4 * (group // 8)) & 15
        sixth = packed[8 + group % 4] >> (2 * (group // 4)) & 3
        bit = (upper[column] >> (4 * half + shift)) & 1
        quant = ((lower[32 * half + column] >> (2 * shift)) & 3) - (0 if bit else 4)
        out[i] = scale * np.float32((nibble | sixth << 4) - 32) * np.float32(quant)
    return out


# Bytes of a block, where its float16 scales lie, and a plain reading of it.
BLOCKS = {
    "Q2_K": (84, (80, 82), _q2_k),
    "Q3_K": (110, (108,), _q3_k),
    "Q4_K": (144, (0, 2), _q4_k),
    "Q5_K": (176, (0, 2), _q5_k),
    "Q6_K": (210, (208,), _q6_k),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_k_quants(tmp_path, name):
    """Random blocks with finite scales, as the embedding of a model of width 256."""
    size, offsets, plain = BLOCKS[name]
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
    for offset in offsets:
        blocks[:, offset : offset + 2] = (
            rng.normal(size=3).astype(np.float16).view(np.uint8).reshape(3, 2)
        )
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[name])
    finish(writer)
    config = DecoderConfig(**{**SIZES, "vocab_size": 3, "d_model": 256})
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    source = GGUFSource(reader, parameter_map.ARCHITECTURES["llama"], config)
    got = source.read("model.embed_tokens.weight")
    want = np.stack([plain(bytes(block)) for block in blocks])
    assert got.shape == (3, 256) and np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
