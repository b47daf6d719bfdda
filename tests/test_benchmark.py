"""`gapo-jax benchmark` on a tiny model: what it reports, and that torch does the same work."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.cli import benchmark as script
from gapo_jax.models import Decoder, DecoderConfig, save_hf

CONFIG = DecoderConfig(
    vocab_size=300, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48,
    rope_theta=700.0, max_positions=128, eos_ids=(2,), pad_id=0, bos_id=1,
)  # fmt: skip


@pytest.fixture
def benchmark(tmp_path, capsys):
    """A call of the script on a tiny model that returns its report."""
    decoder, ones_BT = Decoder(CONFIG), jnp.ones((1, 2), jnp.int32)
    save_hf(decoder, decoder.init(jax.random.key(3), ones_BT, ones_BT)["params"], tmp_path)

    def run(*arguments):
        options = ["--model", str(tmp_path), "--repeats", "2", "--prompt-tokens", "8"]
        assert script.main([*arguments, *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_every_step_is_measured_beside_torch(benchmark):
    steps = ("sample", "score", "sft_step", "dpo_step", "ppo_iteration")
    report = benchmark(*steps, "--batch", "3", "--minibatch", "3", "--new-tokens", "4", "--compare")
    for step in steps:
        for side in ("jax", "torch"):
            found = report[step][side]
            assert 0 < found["min_s"] <= found["median_s"] <= found["max_s"]
            assert found["real_tokens"] <= found["padded_tokens"] and found["peak_mib"] > 0
        assert report[step]["jax"]["compile_s"] >= 0
        assert report[step]["jax"]["real_tokens"] == report[step]["torch"]["real_tokens"]
    assert report["dpo_step"]["jax"]["padded_tokens"] == 3 * 2 * (8 + 4)  # two sides of three pairs
    assert report["sample"]["jax"]["real_tokens"] == 3 * 4


@pytest.mark.slow
def test_the_skewed_load_and_the_discriminator(benchmark):
    report = benchmark(
        "sample", "discriminator", "--skewed", "--batch", "4", "--rows", "20", "--new-tokens",
        "64", "--discriminator", "random:tiny",
    )  # fmt: skip
    from benchmarks.sampling import skewed_lengths

    lengths_B = np.sort(skewed_lengths(20, 64, seed=0))
    assert (lengths_B[:10] == 2).all() and (lengths_B[-2:] == 64).all() and lengths_B[12] > 2
    static, continuous = report["sample"]["static"], report["sample"]["continuous"]
    assert static["real_tokens"] == continuous["real_tokens"] == lengths_B.sum()
    # The reason why it is faster: fewer rows are decoded for nobody.
    assert lengths_B.sum() <= continuous["padded_tokens"] < 0.7 * static["padded_tokens"]
    assert report["discriminator"]["update"]["jax"]["real_tokens"] == 16 * 144


def test_chunks_hold_less_memory_than_all_logits(benchmark):
    found = benchmark("logprob_memory", "--batch", "128", "--new-tokens", "64")["logprob_memory"]
    logits_mib = 128 * 64 * 300 * 4 / 2**20
    assert found["naive_backward_mib"] >= logits_mib > 2 * found["chunked_forward_mib"]
    assert found["chunked_backward_mib"] < 0.5 * found["naive_backward_mib"]
