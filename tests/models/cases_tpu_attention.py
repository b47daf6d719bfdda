"""Attention kernels compiled for TPUs that are only described: needs libtpu, no TPU.

    python tests/models/cases_tpu_attention.py [TOPOLOGY ...] [--case=NAME ...]

prints one JSON object a line: topology, case, kernel, and the gigabytes of temporary arrays that
the gradient of one network takes on a device, with splash attention and with the plain version.
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
from pathlib import Path

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
# Before jax is imported.
runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "plan.py"))["prepare"](TOPOLOGIES[0])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from gapo_jax import sharding  # noqa: E402
from gapo_jax.models import Decoder, DecoderConfig, Encoder, EncoderConfig, generation  # noqa: E402

ROWS, LENGTH = 8, 4096
SHAPE = {"vocab_size": 512, "num_layers": 2, "d_model": 512, "d_ff": 1024, "dtype": "bfloat16"}
HEADS = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 64, "max_positions": LENGTH}
ENCODER = SHAPE | {"num_heads": 8, "max_positions": LENGTH, "remat": "full"}
CASES = {
    "causal": DecoderConfig(**SHAPE, **HEADS, remat="full"),
    "windows and soft cap": DecoderConfig(
        **SHAPE, **HEADS, remat="full", windows=(1024, 0), attn_softcap=50.0
    ),
    "one key head of 256": DecoderConfig(
        **SHAPE, num_heads=4, num_kv_heads=1, head_dim=256, max_positions=LENGTH, remat="full"
    ),
    "longformer": EncoderConfig(**ENCODER, windows=(256, 256), global_first=True),
    "modernbert": EncoderConfig(
        **ENCODER, windows=(0, 64), positions="rope", pre_norm=True, gated=True, use_bias=False,
        type_vocab_size=0,
    ),
    "bert": EncoderConfig(**ENCODER),
}  # fmt: skip
COMPARED = ("causal", "longformer")


def place(mesh, tree):
    """Shapes of parameters with their places."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding.param_shardings(mesh, tree),
    )


def lowered(mesh, config, attention, rows=ROWS):
    """The gradient of one network on the mesh, lowered."""
    config = type(config)(**{**vars(config), "attention": attention})
    tokens = jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32, sharding=sharding.batch_sharding(mesh))
    if isinstance(config, DecoderConfig):
        module, method = Decoder(config), "hidden"
    else:
        module, method = Encoder(config), "__call__"
    params = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)["params"]

    def loss(params, tokens_BT, mask_BT):
        hidden_BTD = module.apply({"params": params}, tokens_BT, mask_BT, method=method)
        return jnp.square(hidden_BTD.astype(jnp.float32)).mean()

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(place(mesh, params), tokens, tokens)


def prefill(mesh, config):
    """The prefill of a decoder on the mesh, lowered."""
    tokens = jax.ShapeDtypeStruct((ROWS, 1024), jnp.int32, sharding=sharding.batch_sharding(mesh))
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)["params"]
    run = jax.jit(functools.partial(generation.prefill, config=config))
    with jax.set_mesh(mesh):
        return run.lower(place(mesh, params), tokens_BP=tokens, mask_BP=tokens)


def report(name, case, attention, step):
    """Compile a step and print it; returns its number of splash kernels and its temporary bytes."""
    # Not of the compiled text, which this version of jax cannot read back for v5p and v6e.
    kernels = step.as_text().count('kernel_name = "splash_mha')
    temporary = step.compile().memory_analysis().temp_size_in_bytes
    line = {"topology": name, "case": case, "attention": attention, "kernels": kernels}
    print(json.dumps(line | {"temp_gb": round(temporary / 1e9, 3)}), flush=True)
    return kernels, temporary


def main() -> None:
    """Compile every case for every topology; splash must be there, and take less memory."""
    named = [word.removeprefix("--case=") for word in sys.argv[1:] if word.startswith("--case=")]
    given = [word for word in sys.argv[1:] if not word.startswith("--case=")]
    for name in given or TOPOLOGIES:
        described = topologies.get_topology_desc(topology_name=name, platform="tpu")
        mesh = sharding.make_mesh(data=1, fsdp=2, tensor=-1, devices=described.devices)
        for case in named or CASES:
            config = CASES[case]
            splash = report(name, case, "auto", lowered(mesh, config, "auto"))
            assert splash[0] > 0
            if case in COMPARED:
                plain = report(name, case, "xla", lowered(mesh, config, "xla"))
                assert plain[0] == 0 and splash[1] < plain[1]
        if not named:
            step = prefill(mesh, CASES["windows and soft cap"])
            assert report(name, "prefill", "auto", step)[0] > 0


if __name__ == "__main__":
    main()
