"""The plan of a tiny run for the eight CPU devices here: what its steps gather and keep."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gapo_jax import sharding
from gapo_jax.config import finalize, presets
from gapo_jax.plan import compile as planning
from gapo_jax.plan import cost as hlo_cost
from gapo_jax.plan import shapes
from gapo_jax.plan.steps import planned_steps


@pytest.fixture(scope="module")
def planned():
    config = presets.tiny("gapo")
    config.model.trainable_layers, config.model.critic = 0, "decoder"
    config.model.dtype, config.model.remat = "bfloat16", "full"
    config.ppo.logprob_chunk = 64  # so that the logits take several turns of a loop
    config.mesh.data, config.mesh.fsdp, config.mesh.sampling_tensor = 1, 8, 2
    place = sharding.Placement(sharding.make_mesh(1, 8, 1), described=True)
    config = finalize(config)
    models = shapes.abstract_models(config, place)
    steps, parts = planned_steps(config, models)
    return config, models, {step.name: step for step in steps}, parts


def test_a_plan_has_every_step_of_a_round_and_what_lives_through_it(planned) -> None:
    _, models, steps, parts = planned
    assert list(steps) == [
        "prefill", "decode", "score", "policy_step", "critic_step", "disc_score", "disc_step",
    ]  # fmt: skip
    assert set(parts) == {"reference", "policy", "critic", "discriminator"}
    leaves = jax.tree.leaves(models.ref_params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    # Policy: parameters and two moments of the layers; a device holds about an eighth of them.
    layers = sum(np.prod(x.shape) for x in jax.tree.leaves(models.ref_params["layers"]))
    held = shapes.bytes_per_device(parts["policy"])
    assert 3 * 4 * layers / 8 < held < 1.2 * 3 * 4 * layers / 8
    assert models.decoding.mesh is not None and models.decoding.mesh.shape["tensor"] == 2


def test_flops_are_those_of_the_matrices(planned) -> None:
    """Six operations a parameter and token of the layers, four of the head; and attention."""
    config, models, steps, _ = planned
    base, rows = models.ref_params, config.ppo.minibatch_size
    matrices = sum(np.prod(x.shape) for x in jax.tree.leaves(base["layers"]) if len(x.shape) == 3)
    response = config.sampling.max_new_tokens
    length = config.data.max_prompt_tokens + response
    shape = models.decoder.config
    attention = 3 * 4 * rows * length * (length / 2) * shape.num_heads * shape.head_dim
    attention *= shape.num_layers
    head = 4 * rows * response * np.prod(base["embed"]["embedding"].shape)
    wanted = 6 * rows * length * matrices + attention + head
    np.testing.assert_allclose(steps["policy_step"].flops, wanted, rtol=1e-6)


def test_the_policy_step_updates_in_place_and_gathers_weights_in_bfloat16(planned, tmp_path):
    """Alias equal to the state, no float32 weight gathered, the head gathered outside its loop."""
    _, models, steps, parts = planned
    options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
    options["xla_dump_hlo_pass_re"] = "spmd-partition.*"
    compiled = steps["policy_step"].lower().compile(compiler_options=options)
    state = shapes.bytes_per_device(parts["policy"])
    assert compiled.memory_analysis().alias_size_in_bytes == pytest.approx(state, rel=0.02)
    # What XLA makes of this for a CPU is float32 throughout; the partitioner's text is for all.
    (path,) = tmp_path.glob("*after_spmd-partitioning*")
    program = hlo_cost.read_program(path.read_text())
    gathers = [
        (item.shape.partition("{")[0], times)
        for opcode, item, times in hlo_cost.collectives(program)
        if opcode == "all-gather"
    ]
    shape = models.decoder.config
    head = f"bf16[{shape.d_model},{shape.vocab_size}]"
    layers = {times for what, times in gathers if what != head}
    assert all(what.startswith("bf16") for what, _ in gathers), gathers
    assert [times for what, times in gathers if what == head] == [1]
    assert layers == {shape.num_layers}


def test_where_a_step_does_not_fit_a_change_that_helps_is_compiled(tmp_path) -> None:
    config = presets.tiny("gapo")
    config.model.discriminator, config.discriminator.max_tokens = "random:words", 64
    config.model.remat = "full"
    config.mesh.data, config.mesh.fsdp = 1, -1

    def plan_with(capacity):
        return planning.plan(finalize(config), "cpu:8", tmp_path, ["disc_step"], capacity)

    whole = plan_with(None)
    assert whole["fits"] and whole["chip_hbm_gb"] is None
    needed = whole["steps"]["disc_step"]["together_gb"]
    record = plan_with(0.9 * needed)
    assert not record["fits"]
    said = planning.find_change(config, "cpu:8", record, tmp_path)
    assert record["change"] == "--config.discriminator.accumulate=2"
    assert record["tried"][record["change"]]["disc_step"]["together_gb"] < 0.9 * needed
    assert f"and fits, with: {record['change']}" in said
    others = [flags for flags, _ in planning.changes(config, ["disc_step"])]
    assert others[0] == record["change"]
    assert others[-1] == "--config.discriminator.accumulate=8 --config.lora.rank=16"


def test_changes_build_on_each_other() -> None:
    config = presets.tiny("gapo")
    config.model.critic, config.mesh.tensor = "decoder", 2
    flags = [flag for flag, _ in planning.changes(config, ["policy_step", "decode"])]
    start = "--config.sampling.batch_size=8 --config.model.remat=full"
    parts = f"{start} --config.ppo.accumulate=8"
    mesh = f"{parts} --config.mesh.data=1 --config.mesh.fsdp=-1 --config.mesh.tensor=1"
    assert flags == [
        start,
        f"{start} --config.ppo.accumulate=2",
        f"{start} --config.ppo.accumulate=4",
        parts,
        mesh,
        f"{mesh} --config.model.critic=reference",
        f"{mesh} --config.model.critic=reference --config.lora.rank=16",
    ]
