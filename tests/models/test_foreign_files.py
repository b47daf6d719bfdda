"""Files of other people: what transformers reads is read, and whatever is wrong with a file is
said in one line that names it, before anything large is read or built."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_load_save import CONFIG, ENCODER, _equal, _params

from gapo_jax import hub, models
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.models import Decoder, Encoder, RewardModel, load_decoder, load_encoder, save_hf
from gapo_jax.models.hf.files import SafetensorsSource
from gapo_jax.models.hf.known_shapes import shape_of


@pytest.fixture(scope="module")
def params():
    return _params(Decoder(CONFIG))


@pytest.fixture
def folder(tmp_path, params):
    return save_hf(Decoder(CONFIG), params, tmp_path / "model", character_tokenizer())


def change(path, **values):
    """Change the values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# What is read


def test_a_token_beyond_the_embedding_that_no_text_gives(tmp_path, params):
    """Gemma 3's text models have one for images. Which ids a text gives is the data's business."""
    tokenizer = character_tokenizer()
    size = len(tokenizer)
    filler = [f"<unused{number}>" for number in range(CONFIG.vocab_size - size)]
    tokenizer.add_tokens([*filler, "<image_soft_token>"])
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == CONFIG.vocab_size
    folder = save_hf(Decoder(CONFIG), params, tmp_path / "model", tokenizer)
    assert _equal(load_decoder(folder)[1], params)
    assert models.inspect(folder)[0] == CONFIG


def test_an_index_of_old_shards_beside_a_newer_file(folder, params):
    """transformers reads model.safetensors, and config.json may name another file."""
    stored = load_file(folder / "model.safetensors")
    old = {name: 0 * tensor for name, tensor in stored.items()}
    save_file(old, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert _equal(load_decoder(folder)[1], params)
    for name in ("model.safetensors.index.json", "model-00001-of-00001.safetensors"):
        change(folder / "config.json", transformers_weights=name)
        assert not load_decoder(folder)[1]["embed"]["embedding"].any()


def test_a_padding_id_without_an_embedding_is_not_used(folder):
    """As -1, which older files have: it would embed as NaN."""
    (folder / "generation_config.json").unlink()
    for pad_id in (110, -1, None):
        change(folder / "config.json", pad_token_id=pad_id, eos_token_id=[7, 2])
        assert load_decoder(folder)[0].config.pad_id == 7


# What is refused before anything is read


def _with_dtype(path, name, dtype):
    """Write a safetensors file again with one tensor of another dtype, as zeros."""
    stored = load_file(path)
    header, data = {}, b""
    for key, tensor in stored.items():
        kind, width = (dtype, 1) if key == name else ("F32", 4)
        end = len(data) + tensor.size * width
        header[key] = {
            "dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), end],
        }  # fmt: skip
        data += bytes(tensor.size) if key == name else tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_quantised_tensors_are_refused_by_name(folder, monkeypatch, dtype):
    name = "model.layers.1.mlp.up_proj.weight"
    stored = load_file(folder / "model.safetensors")
    # The scales beside it have no place in the table either, but are not the reason.
    stored["model.layers.1.mlp.up_proj.weight_scale"] = np.ones(1, np.float32)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    _with_dtype(folder / "model.safetensors", name, dtype)
    monkeypatch.setattr(SafetensorsSource, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=rf"got {dtype} in 1 \({name}\)\. Give the unquantised"):
        load_decoder(folder)


def test_a_reward_model_without_its_head(tmp_path):
    module = RewardModel(CONFIG)
    folder = save_hf(module, _params(module), tmp_path / "model")
    assert models.network_of(folder) == "reward model"
    stored = load_file(folder / "model.safetensors")
    del stored["score.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match="with its scalar head .score.weight., got weights without"
    ):
        models.load_reward_model(folder)
    # A new one where it is asked for.
    _, params = models.load_reward_model(folder, seed=3)
    assert params["head"]["out"]["kernel"].std() > 0


def test_a_frozen_discriminator_must_have_its_head(tmp_path):
    folder = save_hf(Encoder(ENCODER), _params(Encoder(ENCODER)), tmp_path / "encoder")
    with pytest.raises(
        ValueError, match="Wanted a discriminator with its scalar head, got .*model"
    ):
        models.load_discriminator(folder, own_head=True)
    assert models.load_discriminator(folder)[1].keys() == {"encoder"}


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_that_leads_out_of_the_folder(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="the name of a file beside .*which leads elsewhere"):
        load_decoder(folder)
    (folder / "model.safetensors.index.json").unlink()
    change(folder / "config.json", transformers_weights=name)
    with pytest.raises(ValueError, match="which leads elsewhere"):
        load_decoder(folder)


def test_a_tensor_in_two_shards(folder):
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {}}
    for number in (1, 2):
        save_file(stored, folder / f"{number}.safetensors")
        index["weight_map"][str(number)] = f"{number}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="Wanted each tensor once, got .*2.safetensors"):
        load_decoder(folder)


# Garbled files

GARBLED = {
    "cut": b'{"model_type": "llama", "vocab',
    "empty": b"",
    "not text": b"\xff\xfe\xfa\x00\x01",
    "no object": b"[1, 2]",
    "nested": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("kind", GARBLED)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_garbled_json_is_named(folder, name, kind):
    (folder / name).write_bytes(GARBLED[kind])
    if "index" in name:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError) as error:
        load_decoder(folder)
    said = str(error.value)
    assert str(folder / name) in said and "\n" not in said and len(said) < 400


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
        {"hidden_size": "32"},
        {"num_attention_heads": 0},
        {"num_attention_heads": -4},
        {"intermediate_size": 64.5},
        {"head_dim": True},
        {"rms_norm_eps": "small"},
        {"rope_scaling": "linear"},
        {"rope_parameters": [1]},
        {"eos_token_id": "</s>"},
        {"quantization_config": "int4"},
        {"model_type": {"a": 1}},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_values_out_of_bounds_or_of_another_type(folder, values):
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", **values)
    start = time.monotonic()
    for read in (load_decoder, models.inspect, shape_of):
        with pytest.raises(ValueError) as error:
            read(folder)
        said = str(error.value)
        assert "\n" not in said
        assert str(folder / "config.json") in said or "model_type" in said
    assert time.monotonic() - start < 5


def test_layers_of_a_windowed_family_are_counted_before_they_are_listed(folder):
    change(folder / "config.json", model_type="mistral", num_hidden_layers=10**9)
    with pytest.raises(ValueError, match="integer from 1 to 4096 as num_hidden_layers, got 10000"):
        load_decoder(folder)


@pytest.mark.parametrize("weight_map", [[], "x", {}, None])
def test_an_index_without_a_map(folder, weight_map):
    (folder / "model.safetensors").unlink()
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=f"Wanted a weight_map from tensors to files in {path}"):
        load_decoder(folder)


def _gguf(tensors=0, values=0, body=b"", order="<"):
    return b"GGUF" + struct.pack(f"{order}IQQ", 3, tensors, values) + body


_KEY, _ARRAY, _STRING, _U8 = struct.pack("<Q", 1) + b"k", 9, 8, 0
HUGE = {
    "strings": _gguf(values=1, body=_KEY + struct.pack("<IIQ", _ARRAY, _STRING, 2**60)),
    "bytes": _gguf(values=1, body=_KEY + struct.pack("<IIQ", _ARRAY, _U8, 2**60)),
    "arrays": _gguf(values=1, body=_KEY + struct.pack("<IIQ", _ARRAY, _ARRAY, 2**60)),
    "one string": _gguf(values=1, body=_KEY + struct.pack("<IQ", _STRING, 2**60)),
    "one key": _gguf(values=1, body=struct.pack("<Q", 2**60) + bytes(40)),
    "values": _gguf(values=2**60),
    "tensors": _gguf(tensors=2**60),
    "dimensions": _gguf(tensors=1, body=_KEY + struct.pack("<I", 2**31) + bytes(40)),
    "a tensor": _gguf(
        tensors=1, body=_KEY + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0) + bytes(40)
    ),
    "an offset": _gguf(tensors=1, body=_KEY + struct.pack("<IQIQ", 1, 4, 0, 2**60) + bytes(40)),
    "a type": _gguf(tensors=1, body=_KEY + struct.pack("<IQIQ", 1, 4, 999, 0) + bytes(40)),
    "big endian": _gguf(
        values=1, order=">", body=struct.pack(">Q", 1) + b"k" + struct.pack(">IIQ", 9, 8, 2**60)
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_gguf_files_that_announce_more_than_they_hold(tmp_path, kind):
    path = tmp_path / "m.gguf"
    path.write_bytes(HUGE[kind])
    start = time.monotonic()
    with pytest.raises(ValueError, match="malformed or truncated one: .*m.gguf .*Fetch it again"):
        hub.open_gguf(path)
    assert time.monotonic() - start < 5


# What goes into files for others


def test_the_card_shows_texts_and_does_nothing_else(tmp_path, params):
    evil = "x\n# Headline\n<script>alert(1)</script> ![](http://a/b.png) `code` | cell"
    folder = save_hf(
        Decoder(CONFIG), params, tmp_path / "m", method=evil, base=evil, metrics={evil: evil}
    )
    card = (folder / "README.md").read_text()
    assert "<script>" not in card and "](" not in card.replace("\\]", "")
    assert "\n# Headline" not in card and "base_model" not in card
    shown = r"x # Headline &lt;script&gt;alert(1)&lt;/script&gt; !\[\](http://a/b.png) \`code\` \|"
    assert card.count(shown) == 5 and f"- base: {shown} cell\n" in card
    # A line of the front matter cannot be forged either.
    folder = save_hf(Decoder(CONFIG), params, tmp_path / "n", base="owner/name\nlicense: mit")
    assert "base_model" not in (folder / "README.md").read_text()


def test_an_encoder_of_integers_beside_its_weights(tmp_path):
    """Old BERT files hold their positions; they carry nothing, and no dtype matters there."""
    params = _params(Encoder(ENCODER))
    folder = save_hf(Encoder(ENCODER), params, tmp_path / "encoder")
    stored = load_file(folder / "model.safetensors")
    stored["embeddings.position_ids"] = np.arange(512)[None]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert _equal(load_encoder(folder)[1], params)
