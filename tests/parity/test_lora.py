"""LoRA adapters against PEFT itself: out, in, and the same function merged or beside the base."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import torch
from decoder_references import tiny_decoder
from parity_references import padded_batch, torch_logits

from gapo_jax.models import (
    Decoder,
    init_adapters,
    load_adapter,
    load_decoder,
    merge_adapters,
    save_adapter,
)

peft = pytest.importorskip("peft")
# PEFT asks transformers in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
TOLERANCE = 1e-4
ALL = ("q", "k", "v", "o", "gate", "up", "down")
# Names, and an expression: where they are to be found in a Llama.
TARGETS = {
    "all": (ALL, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
    "as a flag spells it": (("q,v",), ["q_proj", "v_proj"]),
    "a regular expression": ((r"mlp/(gate|down)",), ["down_proj", "gate_proj"]),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a tiny random Llama of 3 layers, our decoder, its parameters, a batch."""
    folder = tmp_path_factory.mktemp("base")
    tiny_decoder("llama", num_hidden_layers=3).save_pretrained(folder)
    decoder, params = load_decoder(folder)
    return folder, decoder, params, padded_batch(120, "left")


def _theirs(base, adapter):
    """PEFT's model of a base folder and an adapter folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def _random(adapters, scale=0.1):
    """Adapters with B away from zero, as after training."""
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + scale * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)]
    return structure.unflatten(moved)


def _ours(decoder, params, adapters, batch):
    collections = {"params": params}
    if adapters is not None:
        collections["lora"] = {"layers": adapters.collection()}
    return np.asarray(jax.jit(decoder.apply)(collections, *batch))


@pytest.mark.parametrize("case", TARGETS)
def test_peft_computes_the_same_from_our_export(llama, case, tmp_path):
    folder, decoder, params, batch = llama
    targets, names = TARGETS[case]
    adapters = _random(
        init_adapters(jax.random.key(0), params["layers"], rank=4, alpha=6.0, targets=targets)
    )
    got = _ours(decoder, params, adapters, batch)
    save_adapter(decoder, adapters, tmp_path / "adapter", base=str(folder), method="gapo")
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
        == names
    )
    want = torch_logits(_theirs(folder, tmp_path / "adapter"), *batch)
    real = batch[1] > 0
    assert np.abs(got - _ours(decoder, params, None, batch))[real].max() > 0.1
    np.testing.assert_allclose(got[real], want[real], atol=TOLERANCE, rtol=0)
    # The same with A B added to the matrices, and read back, bit for bit.
    merged = params | {"layers": merge_adapters(params["layers"], adapters)}
    np.testing.assert_allclose(
        _ours(decoder, merged, None, batch)[real], got[real], rtol=1e-5, atol=1e-5
    )
    again, first = load_adapter(tmp_path / "adapter", decoder)
    assert (first, again.alpha) == (0, 6.0)
    assert jax.tree.structure(again) == jax.tree.structure(adapters)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_adapters_of_the_upper_layers(llama, tmp_path):
    folder, decoder, params, batch = llama
    upper = jax.tree.map(lambda leaf: leaf[1:], params["layers"])
    adapters = _random(
        init_adapters(jax.random.key(0), upper, rank=3, alpha=3.0, targets=("v", "up"))
    )
    save_adapter(decoder, adapters, tmp_path)
    layers = merge_adapters(params["layers"], adapters)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), layers, params["layers"])
    got = _ours(decoder, params | {"layers": layers}, None, batch)
    want = torch_logits(_theirs(folder, tmp_path), *batch)
    np.testing.assert_allclose(got[batch[1] > 0], want[batch[1] > 0], atol=TOLERANCE, rtol=0)
    again, first = load_adapter(tmp_path, decoder)
    assert first == 1
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {
            "target_modules": ["k_proj", "o_proj", "up_proj"],
            "rank_pattern": {"o_proj": 2, "layers.1.self_attn.k_proj": 7},
            "alpha_pattern": {"up_proj": 3},
        },
        {"target_modules": ["gate_proj"], "layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "ranks and alphas of their own", "one layer"],
)
def test_we_compute_the_same_from_pefts_adapter(llama, options, tmp_path):
    from transformers import AutoModelForCausalLM

    folder, decoder, params, batch = llama
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=4, lora_alpha=10, lora_dropout=0.1, task_type="CAUSAL_LM", init_lora_weights=False,
        **options,
    )  # fmt: skip
    model = peft.get_peft_model(model, settings).eval()
    model.save_pretrained(tmp_path)
    adapters, first = load_adapter(tmp_path, decoder)
    layers = merge_adapters(params["layers"], adapters)
    real = batch[1] > 0
    want = torch_logits(model, *batch)
    assert np.abs(want - _ours(decoder, params, None, batch))[real].max() > 0.1
    got = _ours(decoder, params | {"layers": layers}, None, batch)
    np.testing.assert_allclose(got[real], want[real], atol=TOLERANCE, rtol=0)
    if not first:
        unmerged = _ours(decoder, params, adapters, batch)
        np.testing.assert_allclose(unmerged[real], want[real], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_matrices_that_the_family_keeps_joined(family, tmp_path):
    """q and v of a joined q, k, v (Phi-3 [out, in], GPT-2 [in, out]): out to PEFT, and back."""
    tiny_decoder(family).save_pretrained(tmp_path / "base")
    decoder, params = load_decoder(tmp_path / "base")
    batch = padded_batch(120, "left")
    real = batch[1] > 0
    adapters = _random(
        init_adapters(
            jax.random.key(0), params["layers"], rank=3, alpha=6.0, targets=("q", "v", "o", "up")
        )
    )
    save_adapter(decoder, adapters, tmp_path / "adapter")
    got = _ours(decoder, params, adapters, batch)
    want = torch_logits(_theirs(tmp_path / "base", tmp_path / "adapter"), *batch)
    assert np.abs(got - _ours(decoder, params, None, batch))[real].max() > 0.1
    np.testing.assert_allclose(got[real], want[real], atol=TOLERANCE, rtol=0)
    again, _ = load_adapter(tmp_path / "adapter", decoder)
    np.testing.assert_allclose(
        _ours(decoder, params, again, batch)[real], got[real], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"peft_type": "IA3"}, "type LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        # PEFT subtracts these from the base when it loads them.
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"megatron_config": {"a": 1}}, "megatron_config="),
        # What a later PEFT may add.
        ({"rotates": {"by": 2}}, r"rotates=\{'by': 2\}"),
        ({"r": "4"}, "numbers above 0 as r in .*got '4'"),
        ({"lora_alpha": None}, "numbers above 0 as lora_alpha"),
        ({"rank_pattern": [3]}, r"numbers above 0 as rank_pattern in .*got \[3\]"),
        ({"alpha_pattern": {"q_proj": 0}}, "numbers above 0 as alpha_pattern"),
    ],
)
def test_other_kinds_of_adapters_are_refused(llama, change, wanted, tmp_path):
    _, decoder, params, _ = llama
    adapters = init_adapters(jax.random.key(0), params["layers"], rank=2, alpha=2, targets=("q",))
    save_adapter(decoder, adapters, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=wanted):
        load_adapter(tmp_path, decoder)


def test_options_that_change_nothing_are_accepted(llama, tmp_path):
    """What PEFT itself writes by default, and what a later one may write switched off."""
    _, decoder, params, _ = llama
    adapters = init_adapters(jax.random.key(0), params["layers"], rank=2, alpha=2, targets=("q",))
    save_adapter(decoder, adapters, tmp_path)
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    defaults = peft.LoraConfig(r=2, lora_alpha=2).to_dict() | written
    defaults |= {"rotates": False, "peft_version": "1.0", "lora_dropout": 0.3}
    path.write_text(json.dumps(defaults, default=list))
    for start in (True, False, "gaussian", "eva", "orthogonal"):
        path.write_text(json.dumps(defaults | {"init_lora_weights": start}, default=list))
        again, _ = load_adapter(tmp_path, decoder)
        jax.tree.map(np.testing.assert_array_equal, again, adapters)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_garbled_adapter_config_is_named(llama, text, tmp_path):
    _, decoder, params, _ = llama
    adapters = init_adapters(jax.random.key(0), params["layers"], rank=2, alpha=2, targets=("q",))
    save_adapter(decoder, adapters, tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/adapter_config.json"):
        load_adapter(tmp_path, decoder)


def test_an_adapter_of_another_base_is_refused(llama, tmp_path):
    _, decoder, params, _ = llama
    make = functools.partial(init_adapters, jax.random.key(0), rank=2, alpha=2, targets=("up",))
    save_adapter(decoder, make(params["layers"]), tmp_path / "adapter")
    wide = Decoder(dataclasses.replace(decoder.config, d_ff=64))
    with pytest.raises(ValueError, match=r"lora_B \[64, rank\] .*of another base"):
        load_adapter(tmp_path / "adapter", wide)
    shallow = Decoder(dataclasses.replace(decoder.config, num_layers=2))
    with pytest.raises(ValueError, match=r"fit none: \['base_model.model.model.layers.2"):
        load_adapter(tmp_path / "adapter", shallow)
    for other in (wide, shallow):
        with pytest.raises(ValueError, match="They are of another decoder"):
            save_adapter(other, make(params["layers"]), tmp_path / "other")
    assert not (tmp_path / "other").exists()
