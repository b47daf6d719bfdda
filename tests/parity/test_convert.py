"""`convert.py export` and `verify` compare with transformers by themselves."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import sys

import numpy as np
import pytest
from decoder_references import tiny_classifier, tiny_decoder
from safetensors.numpy import load_file, save_file

from gapo_jax.data.tiny_tokenizer import character_tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def convert():
    spec = importlib.util.spec_from_file_location("convert", ROOT / "scripts" / "convert.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(convert, monkeypatch, capsys, *arguments):
    """Exit status and printed text of one command."""
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    return convert.main(), capsys.readouterr().out


def _source(model, folder):
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def test_a_decoder_is_verified_and_a_damaged_one_found(convert, monkeypatch, capsys, tmp_path):
    source = _source(tiny_decoder("gemma2", max_position_embeddings=256), tmp_path / "source")
    status, printed = _run(convert, monkeypatch, capsys, "export", source, tmp_path / "out")
    difference = float(re.search(r"largest logit difference from transformers (\S+)", printed)[1])
    assert status == 0 and difference < 1e-4
    status, printed = _run(
        convert, monkeypatch, capsys, "verify", tmp_path / "out", "--prompts", 2, "--tokens", 8
    )
    assert status == 0 and "greedy tokens equal on 2 of 2 prompts over 8 tokens" in printed
    # A folder whose weights are not those that were exported.
    loaded = convert.load_any(source)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + np.float32(0.1)
    save_file(weights, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    theirs = convert._torch_model(tmp_path / "out", loaded.module)
    assert convert._compare(loaded.module, loaded.params, loaded.tokenizer, theirs) == 1


def test_a_reward_model_is_exported_in_half_precision(convert, monkeypatch, capsys, tmp_path):
    source = _source(tiny_classifier("qwen2"), tmp_path / "source")
    arguments = ("export", source, tmp_path / "out", "--dtype", "bfloat16")
    status, printed = _run(convert, monkeypatch, capsys, *arguments)
    difference = float(re.search(r"largest logit difference from transformers (\S+)", printed)[1])
    assert status == 0 and difference < 1e-4
