"""A discriminator that is no BERT, with a byte-level tokenizer, from its folder to an update."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax import config as configuration
from gapo_jax.models import Discriminator, Encoder, EncoderConfig, save_hf
from gapo_jax.train.build import make_optimizers
from gapo_jax.train.discriminator.batches import make_batch
from gapo_jax.train.discriminator.steps import disc_update_step
from gapo_jax.train.discriminator.texts import LabelledText
from gapo_jax.train.optimizers import frozen_parameters
from gapo_jax.train.restore import load_any
from gapo_jax.train.sources import load_discriminator
from gapo_jax.train.state import TrainState
from gapo_jax.train.toy_models import TINY
from gapo_jax.types import ACCEPTED, REJECTED

FROZEN = 1


def _modernbert(tokenizer):
    return EncoderConfig(
        vocab_size=len(tokenizer),
        num_layers=2,
        d_model=16,
        num_heads=2,
        d_ff=24,
        family="modernbert",
        type_vocab_size=0,
        positions="rope",
        windows=(0, 4),
        pre_norm=True,
        use_bias=False,
        gated=True,
        hf_pooling="mean",
        pad_id=tokenizer.pad_token_id,
    )


def test_a_modernbert_trains_from_its_folder(byte_level, tmp_path):
    encoder = Encoder(_modernbert(byte_level))
    tokens_BT = jnp.ones((1, 8), jnp.int32)
    source = jax.jit(encoder.init)(jax.random.key(0), tokens_BT, tokens_BT)["params"]
    config = configuration.Config()
    config.model.generator = TINY
    config.model.discriminator = str(save_hf(encoder, source, tmp_path / "source", byte_level))
    config.model.pooling = "hf"
    config.discriminator.max_tokens = 64
    config.discriminator.batch_size = 4
    config.discriminator.frozen_layers = FROZEN
    config.discriminator.optim.learning_rate = 1e-2
    config = configuration.finalize(config)

    module, start, tokenizer = load_discriminator(config, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, start["encoder"], source)
    texts = [
        LabelledText("Write\ntwo lines.", "a\nb" * (i + 1), kind, float(kind == ACCEPTED))
        for i, kind in enumerate([ACCEPTED, REJECTED, REJECTED, ACCEPTED])
    ]
    batch = make_batch(tokenizer, texts, np.ones(4, np.float32), config.discriminator)
    assert batch.tokens_BT.shape[1] > 3 * 4  # more than the dense path takes
    optimizer = make_optimizers(config, 80)["discriminator"]
    update = functools.partial(
        disc_update_step,
        discriminator=module,
        dropout=False,
        frozen=frozen_parameters(config),
        frozen_layers=FROZEN,
        optimizer=optimizer,
    )
    step = jax.jit(update)
    network, losses = TrainState.create(start, optimizer), []
    for _ in range(80):
        network, metrics = step(network, batch, jax.random.key(2))
        losses.append(float(metrics["disc/loss"]))
    assert losses[-1] < 0.5 * losses[0]
    moved = jax.tree.map(lambda a, b: np.abs(a - b), network.params, start)
    assert not any(leaf.any() for leaf in jax.tree.leaves(moved["encoder"]["embed"]))
    for leaf in jax.tree.leaves(moved["encoder"]["layers"]):
        assert not leaf[:FROZEN].any() and leaf[FROZEN:].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(moved["head"]))
    folder = tmp_path / "export"
    exported = save_hf(Discriminator(module.config, "hf"), network.params, folder, byte_level)
    assert "ModernBertForSequenceClassification" in (exported / "config.json").read_text()
    _is_taken_up_again(config, exported, network.params, batch)


def _is_taken_up_again(config, exported, params, batch):
    """The export as discriminator of another run and as scorer: the same logits, bit for bit."""
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, discriminator=str(exported), pooling="mean")
    )
    module, start, _ = load_discriminator(config, jax.random.key(5))
    assert module.pooling == "hf"
    texts = (batch.tokens_BT, batch.mask_BT, batch.type_ids_BT)
    want, got = (np.asarray(module.apply({"params": tree}, *texts)) for tree in (params, start))
    assert np.array_equal(got, want) and np.abs(want).max() > 0.1
    loaded = load_any(exported, network="discriminator")
    assert loaded.module.pooling == "hf"
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
