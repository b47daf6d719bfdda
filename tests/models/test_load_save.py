"""Folders in and out, GGUF in: what goes wrong says so before a weight is read."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import begin, finish
from safetensors.numpy import load_file, save_file

from gapo_jax import hub, models
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.data.tokenizer import chat_prompt, load_tokenizer
from gapo_jax.models import Decoder, DecoderConfig, Encoder, EncoderConfig
from gapo_jax.models.hf import parameter_map
from gapo_jax.models.hf.load import load_decoder, load_encoder
from gapo_jax.models.hf.save import save_hf

CONFIG = DecoderConfig(
    vocab_size=110,
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=64,
    eos_ids=(2,),
    bos_id=1,
)
ENCODER = EncoderConfig(vocab_size=50, num_layers=2, d_model=16, num_heads=2, d_ff=32)


def _params(module, seed=0):
    tokens = jnp.zeros((1, 2), jnp.int32)
    variables = jax.jit(module.init)(jax.random.key(seed), tokens, jnp.ones_like(tokens))
    return jax.tree.map(np.asarray, variables["params"])


def _equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


@pytest.fixture(scope="module")
def params():
    return _params(Decoder(CONFIG))


@pytest.fixture
def folder(tmp_path, params):
    return save_hf(Decoder(CONFIG), params, tmp_path / "model", character_tokenizer())


def test_single_file_round_trip(folder, params):
    decoder, back = load_decoder(folder)
    assert decoder.config == CONFIG
    assert _equal(back, params)
    assert load_decoder(folder, dtype="bfloat16", remat="full")[0].config.dtype == "bfloat16"


def test_shards_have_an_index_and_read_back(tmp_path, params):
    folder = save_hf(Decoder(CONFIG), params, tmp_path / "sharded", max_shard_bytes=20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted({path.name for path in folder.glob("*.safetensors")})
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    stored = {name: tensor for f in files for name, tensor in load_file(folder / f).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    assert all(name in load_file(folder / f) for name, f in index["weight_map"].items())
    assert max((folder / f).stat().st_size for f in files) < 22_000
    assert _equal(load_decoder(folder)[1], params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_round_trip_is_bit_identical(tmp_path, params, dtype):
    first = save_hf(Decoder(CONFIG), params, tmp_path / "first", dtype=dtype)
    decoder, back = load_decoder(first)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(back))
    second = save_hf(decoder, back, tmp_path / "second", dtype=dtype)
    assert json.loads((first / "config.json").read_text())["dtype"] == dtype
    bits = [(path / "model.safetensors").read_bytes() for path in (first, second)]
    assert bits[0] == bits[1]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(params))
    worst = jax.tree.map(lambda a, b: np.abs(a - b).max(), back, params)
    assert 0 < max(jax.tree.leaves(worst)) < largest * 2**-8


def test_tokenizer_and_stop_tokens_travel(folder):
    tokenizer, before = load_tokenizer(folder), character_tokenizer()
    assert chat_prompt(tokenizer, "Hi") == chat_prompt(before, "Hi")
    assert tokenizer("Hi there")["input_ids"] == before("Hi there")["input_ids"]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    # Chat models name further stop tokens in generation_config.json alone.
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert load_decoder(folder)[0].config.eos_ids == (2, 5)


def test_card_names_method_base_and_metrics(tmp_path, params):
    interval = {"value": 0.5, "low": 0.41234, "high": 0.6}
    folder = save_hf(
        Decoder(CONFIG),
        params,
        tmp_path / "model",
        method="gapo",
        base="owner/name",
        metrics={"instruction_strict": interval, "rounds": 10},
    )
    card = (folder / "README.md").read_text()
    assert "base_model: owner/name" in card and "trained by gapo" in card
    assert "| instruction_strict | 0.5 (95% 0.4123 to 0.6) |" in card and "| rounds | 10 |" in card


def test_a_failed_save_leaves_the_old_export(folder, params):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = dict(params) | {"final_norm": {"scale": np.zeros(5, np.float32)}}
    with pytest.raises(ValueError, match="final_norm/scale"):
        save_hf(Decoder(CONFIG), broken, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    save_hf(Decoder(CONFIG), jax.tree.map(lambda leaf: leaf + 1, params), folder)
    assert _equal(load_decoder(folder)[1], jax.tree.map(lambda leaf: leaf + 1, params))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_save_does_not_overwrite_what_is_not_an_export(tmp_path, params):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="Choose another folder"):
        save_hf(Decoder(CONFIG), params, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_save_refuses_a_foreign_tokenizer_dtype_or_module(tmp_path, params):
    small = DecoderConfig(
        vocab_size=20, num_layers=1, d_model=8, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8
    )
    with pytest.raises(ValueError, match="below the vocabulary of 20, got a tokenizer"):
        save_hf(Decoder(small), {}, tmp_path / "x", character_tokenizer())
    with pytest.raises(ValueError, match="Wanted dtype in"):
        save_hf(Decoder(CONFIG), params, tmp_path / "x", dtype="int8")
    with pytest.raises(ValueError, match="got a ScalarHead"):
        save_hf(models.ScalarHead(), params, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_family_that_cannot_say_it_is_refused(tmp_path, params):
    windowed = dataclasses.replace(CONFIG, windows=(4, 0))
    with pytest.raises(ValueError, match=r"'llama' can describe, got \{'windows': \(4, 0\)\}"):
        save_hf(Decoder(windowed), params, tmp_path / "x")


def test_quantised_safetensors_are_refused(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "awq"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="got 'awq' quantisation.*unquantised"):
        load_decoder(folder)


def test_parameters_are_streamed(tmp_path):
    """With `put` the host never holds more than a parameter and a tensor of it."""
    config = dataclasses.replace(CONFIG, num_layers=6, d_model=128, d_ff=512)
    folder = save_hf(Decoder(config), _params(Decoder(config)), tmp_path / "model")
    sizes = {}

    def put(path, array):
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        sizes[path] = array.nbytes
        return path

    tracemalloc.start()
    _, params = load_decoder(folder, put)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert params["layers"]["mlp"]["up"]["kernel"] == "layers/mlp/up/kernel"
    assert sizes.keys() == {path for path, _ in parameter_map.flatten(params)}
    largest = max(sizes.values())
    assert largest + largest / 6 < peak < 1.5 * largest < 0.5 * sum(sizes.values())


def test_truncated_safetensors(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or damaged.*Download it again"):
        load_decoder(folder)


def test_missing_files(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="Wanted model.safetensors or"):
        load_decoder(folder)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="Wanted model-00001-of-00001.safetensors"):
        load_decoder(folder)
    with pytest.raises(FileNotFoundError, match="Wanted config.json"):
        load_decoder(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        load_decoder(folder)


def test_unknown_architecture_fails_before_the_weights(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "mamba"}))
    with pytest.raises(ValueError, match="got model_type 'mamba'"):
        load_decoder(folder)
    with pytest.raises(ValueError, match="Wanted an encoder"):
        load_encoder(folder)


def test_inspecting_a_source_tells_the_dtype_of_its_weights(tmp_path, params):
    for dtype in ("float32", "bfloat16", "float16"):
        folder = save_hf(Decoder(CONFIG), params, tmp_path / dtype, dtype=dtype)
        assert models.inspect(folder) == (CONFIG, dtype)
    # Of several dtypes: the one that holds them all.
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"] = stored["model.norm.weight"].astype(np.float32)
    save_file(stored, folder / "model.safetensors")
    assert models.inspect(folder)[1] == "float32"
    assert models.inspect(write_gguf(tmp_path / "m.gguf", params)) == (CONFIG, "float32")


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="did not answer within.*fetch_weights.py"):
        load_decoder("gapo-jax-tests/absent")
    with pytest.raises(FileNotFoundError, match="none of them"):
        load_decoder(tmp_path / "absent")


def test_encoder_round_trip(tmp_path):
    params = _params(Encoder(ENCODER))
    folder = save_hf(Encoder(ENCODER), params, tmp_path / "encoder")
    encoder, back = load_encoder(folder)
    assert encoder.config == ENCODER and _equal(back, params)


def _interleave(rows, heads):
    """llama.cpp's `LlamaModel.permute`, as in convert_hf_to_gguf.py."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, params, quantise=None, replaced=None, config=CONFIG, **metadata):
    """Write a Llama GGUF of `params`, with q and k interleaved as llama.cpp does; `replaced` are
    further or other tensors, {name: (data, type)}."""
    replaced = dict(replaced or {})
    arch = models.ARCHITECTURES["llama"]
    writer = begin(path, metadata.pop("architecture", "llama"), config)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    names = {rule.hf: rule for rule in parameter_map.rules_of(arch, config)}
    for name, tensor in parameter_map.export_tensors(arch, config, params):
        layer = name.split(".")[2] if ".layers." in name else None
        generic = name if layer is None else name.replace(f".{layer}.", ".{layer}.", 1)
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_heads if "q_proj" in name else config.num_kv_heads
            tensor = _interleave(tensor, heads)
        kind = quantise if quantise is not None and tensor.ndim == 2 else None
        data = gguf.quants.quantize(tensor, kind) if kind is not None else tensor
        gguf_name = names[generic].gguf.format(layer=layer)
        data, kind = replaced.pop(gguf_name, (data, kind))
        writer.add_tensor(gguf_name, data, raw_dtype=kind)
    for name, (data, kind) in replaced.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    finish(writer)
    return path


def test_gguf_is_read_back_with_rows_in_hf_order(tmp_path, params):
    decoder, back = load_decoder(write_gguf(tmp_path / "m.gguf", params))
    assert decoder.config == CONFIG
    assert _equal(back, params)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_quantisations(tmp_path, params, name):
    kind = gguf.GGMLQuantizationType[name]
    _, back = load_decoder(write_gguf(tmp_path / "m.gguf", params, kind))
    # The blocks run along the input axis; quantising is not affected by the order of rows.
    want = gguf.quants.dequantize(gguf.quants.quantize(params["embed"]["embedding"], kind), kind)
    assert np.array_equal(back["embed"]["embedding"], want)
    q_DH = params["layers"]["attn"]["q"]["kernel"][1]
    want = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(q_DH.T), kind), kind)
    assert np.array_equal(back["layers"]["attn"]["q"]["kernel"][1], want.T)


def test_gguf_that_cannot_be_read(tmp_path, params):
    path = write_gguf(tmp_path / "m.gguf", params)
    whole = path.read_bytes()
    for size in (6, 40, 300, 3000, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="malformed or truncated"):
            load_decoder(path)
    path.write_bytes(b"NOPE" + whole[4:])
    with pytest.raises(ValueError, match="first bytes b'GGUF'"):
        load_decoder(path)
    with pytest.raises(FileNotFoundError, match="fetch_weights.py"):
        hub.open_gguf(tmp_path / "absent.gguf")


def test_gguf_of_what_we_lack(tmp_path, params):
    with pytest.raises(ValueError, match="got 'qwen2moe'.*nearest.*'qwen2'"):
        load_decoder(write_gguf(tmp_path / "a.gguf", params, architecture="qwen2moe"))
    tensor = np.zeros((4, 18), np.uint8)
    extra = {"blk.0.attn_q.weight": (tensor, gguf.GGMLQuantizationType.IQ4_NL)}
    with pytest.raises(ValueError, match="'Q6_K'.*got IQ4_NL in blk.0.attn_q.weight"):
        load_decoder(write_gguf(tmp_path / "d.gguf", params, replaced=extra))
    extra = {"rope_freqs.weight": (np.ones(4, np.float32), None)}
    with pytest.raises(ValueError, match="rope_freqs.weight.*Give the HF folder"):
        load_decoder(write_gguf(tmp_path / "e.gguf", params, replaced=extra))
    with pytest.raises(ValueError, match="rope.scaling.type, got 'yarn'"):
        load_decoder(write_gguf(tmp_path / "b.gguf", params, llama__rope__scaling__type="yarn"))
    window = {"llama__attention__sliding_window": 4096}
    with pytest.raises(ValueError, match="llama.attention.sliding_window, got 4096: a Mistral"):
        load_decoder(write_gguf(tmp_path / "c.gguf", params, **window))


def test_a_reward_model_out_of_gguf_places_what_it_keeps(tmp_path):
    """Under the paths of its own parameters, and never the output matrix."""
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    whole = _params(Decoder(config))
    path = write_gguf(tmp_path / "m.gguf", whole, config=config)
    placed = {}
    module, params = models.load_reward_model(
        path, put=lambda name, leaf: placed.setdefault(name, leaf), seed=0
    )
    assert module.config == config
    flat = dict(parameter_map.flatten(params))
    assert placed.keys() == flat.keys() and all(placed[name] is flat[name] for name in placed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *[np.zeros((1, 2), np.int32)] * 2)
    assert jax.tree.structure(params) == jax.tree.structure(shapes["params"])
    assert _equal(params["decoder"] | {"lm_head": whole["lm_head"]}, whole)
