"""`convert.py export` and `verify` compare with transformers by themselves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from decoder_references import tiny_classifier, tiny_decoder
from encoder_references import classifier
from safetensors.numpy import load_file, save_file

from gapo_jax.cli import convert
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.models import Discriminator, save_hf


def _run(capsys, *arguments):
    """Exit status and printed text of one command."""
    return convert.main([*map(str, arguments)]), capsys.readouterr().out


def _differences(printed):
    """The differences that were printed."""
    return [float(x) for x in re.findall(r"largest .* difference from transformers (\S+)", printed)]


def _source(model, folder):
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def test_a_decoder_is_verified_and_a_damaged_one_found(capsys, tmp_path):
    source = _source(tiny_decoder("gemma2", max_position_embeddings=256), tmp_path / "source")
    status, printed = _run(capsys, "export", source, tmp_path / "out")
    assert status == 0 and max(_differences(printed)) < 1e-4
    status, printed = _run(capsys, "verify", tmp_path / "out", "--prompts", 2, "--tokens", 8)
    assert status == 0 and "greedy tokens equal on 2 of 2 prompts over 8 tokens" in printed
    # A folder whose weights are not those that were exported.
    loaded = convert.load_any(source)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + np.float32(0.1)
    save_file(weights, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    theirs = convert._torch_model(tmp_path / "out", loaded.module)
    assert convert._compare(loaded.module, loaded.params, loaded.tokenizer, theirs) == 1
    assert theirs.dtype == torch.float32


@pytest.mark.parametrize("kind", ["decoder", "encoder", "classifier"])
def test_what_decides_is_computed_in_float64(capsys, tmp_path, kind):
    """These have no rotary angles, which transformers always computes in float32."""
    if kind == "decoder":
        source = _source(tiny_decoder("gpt2", max_position_embeddings=256), tmp_path / "source")
    else:
        model = classifier("bert", max_position_embeddings=256)
        source = _source(model if kind == "classifier" else model.bert, tmp_path / "source")
    status, printed = _run(capsys, "verify", source, "--prompts", 1, "--tokens", 1)
    # Hidden states and logits, on either side; no classifier's logits with padding on the left.
    count = {"decoder": 4, "encoder": 2, "classifier": 3}[kind]
    assert status == 0 and len(_differences(printed)) == count, printed
    assert max(_differences(printed)) < 1e-10


def test_greedy_tokens_are_compared_beyond_the_end_of_a_turn(monkeypatch, capsys, tmp_path):
    """Whatever the model's own generation config says; a difference ends with status 1."""
    model = tiny_decoder("llama", max_position_embeddings=256)
    source = _source(model, tmp_path / "source")
    arguments = ("verify", source, "--prompts", 2, "--tokens", 12)
    loaded = convert.load_any(source)
    first = {"eos_token_id": list(range(120)), "repetition_penalty": 5.0, "max_new_tokens": 1}
    (source / "generation_config.json").write_text(json.dumps(first))
    status, printed = _run(capsys, *arguments)
    assert status == 0 and "greedy tokens equal on 2 of 2 prompts over 12 tokens" in printed
    theirs = convert._torch_model(source, loaded.module)
    with torch.no_grad():
        theirs.model.norm.weight.neg_()
    monkeypatch.setattr(convert, "_torch_model", lambda *_: theirs)
    monkeypatch.setattr(convert, "_compare", lambda *_: 0)
    status, printed = _run(capsys, *arguments)
    assert status == 1 and "greedy tokens equal on 0 of 2 prompts" in printed


def test_half_precision_comes_back_bit_for_bit(capsys, tmp_path):
    """In, as an Orbax checkpoint, and out again without a word about the dtype."""
    model = tiny_decoder("llama", max_position_embeddings=256).to(torch.bfloat16)
    source = _source(model, tmp_path / "source")
    status, _ = _run(capsys, "import", source, tmp_path / "orbax")
    assert status == 0
    for start, options in ((source, ()), (tmp_path / "orbax", ("--no-compare",))):
        out = tmp_path / f"out{len(options)}"
        status, printed = _run(capsys, "export", start, out, *options)
        assert status == 0 and ("largest" in printed) == (not options)
        stored, wanted = (load_file(folder / "model.safetensors") for folder in (out, source))
        assert stored.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert tensor.dtype == stored[name].dtype == "bfloat16"
            assert tensor.tobytes() == stored[name].tobytes(), name
    status, _ = _run(
        capsys, "export", source, tmp_path / "wide",
        "--dtype", "float32", "--no-compare",
    )  # fmt: skip
    assert (
        load_file(tmp_path / "wide" / "model.safetensors")["model.norm.weight"].dtype == "float32"
    )


def test_verify_says_what_it_cannot_verify(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    assert convert.main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "Wanted what transformers reads too" in said and "convert.py export" in said
    assert "Traceback" not in said
    for wrong in (("--first", "20"), ("--prompts", "0"), ("--tokens", "0")):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        assert (
            convert.main(["verify", str(tmp_path), *wrong]) == 1
            and "Wanted --first from 0 to 19" in capsys.readouterr().err
        )


def test_an_export_says_how_its_own_head_is_loaded(capsys, tmp_path):
    model = classifier("bert", max_position_embeddings=256)
    loaded = convert.load_any(_source(model, tmp_path / "source"))
    head = {"out": {"kernel": np.ones((32, 1), np.float32), "bias": np.zeros(1, np.float32)}}
    params = {"encoder": loaded.params["encoder"], "head": head}
    module = Discriminator(loaded.module.config, "mean")
    save_hf(module, params, tmp_path / "own", loaded.tokenizer)
    status, printed = _run(capsys, "export", tmp_path / "own", tmp_path / "x")
    assert status == 0 and "trust_remote_code=True" in printed
    assert max(_differences(printed)) < 1e-10


def test_a_reward_model_is_exported_in_half_precision(capsys, tmp_path):
    source = _source(tiny_classifier("qwen2"), tmp_path / "source")
    arguments = ("export", source, tmp_path / "out", "--dtype", "bfloat16")
    status, printed = _run(capsys, *arguments)
    assert status == 0 and len(_differences(printed)) == 4 and max(_differences(printed)) < 1e-4
