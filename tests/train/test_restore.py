"""Networks back out of a run's workdir and out of an imported folder."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from gapo_jax import config as configuration
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.models import save_hf
from gapo_jax.train.build import build_models, build_steps, initial_state
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.train.restore import load_any, restore_state, save_imported, trained_system
from gapo_jax.train.toy_models import TINY


def _equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run whose networks moved between its two checkpoints; and its states."""
    workdir = tmp_path_factory.mktemp("run")
    config = configuration.Config()
    config.model.generator = config.model.discriminator = TINY
    config.model.trainable_layers = 2
    config = configuration.finalize(config)
    (workdir / "config.json").write_text(json.dumps(configuration.to_json(config)))
    models = build_models(config)
    state = initial_state(config, models, build_steps(config, models, num_pairs=7))
    states = {}
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        for step in (1, 2):
            state = state.replace(
                policy=state.policy.replace(
                    params=jax.tree.map(lambda leaf: leaf + 1, state.policy.params)
                )
            )
            checkpointer.save(step, state, {}, wait=True)
            states[step] = state
    found = {
        "instruction_strict": {"value": 0.5, "low": 0.4, "high": 0.6},
        "prompt_strict": {"value": 0.25, "low": 0.2, "high": 0.3},
    }
    (workdir / "summary.json").write_text(json.dumps({"after": {"topics": found}}))
    return workdir, models, states


@pytest.fixture(scope="module")
def newest(run):
    return load_any(run[0])


def _check_generator(run, loaded, step):
    _, models, states = run
    first = models.spec.first_trainable_layer
    assert first > 0
    layers = (
        loaded.params["layers"],
        models.ref_params["layers"],
        states[step].policy.params["layers"],
    )
    for got, base, trained in zip(*(jax.tree.leaves(tree) for tree in layers)):
        assert np.array_equal(got[:first], base[:first])
        assert np.array_equal(got[first:], trained) and (got[first:] != base[first:]).all()
    assert (loaded.module, loaded.method, loaded.base) == (models.decoder, "gapo", TINY)


def test_generator_of_a_run_has_the_trained_layers_in_place(run, newest):
    _check_generator(run, newest, step=2)


def test_the_system_turn_is_that_of_the_run(run, tmp_path):
    record = json.loads((run[0] / "config.json").read_text())
    record["data"]["system_prompt"] = "Be brief."
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert trained_system(tmp_path) == trained_system(tmp_path / "checkpoints" / "3") == "Be brief."
    assert trained_system(run[0]) is None  # left to the chat template
    assert trained_system(tmp_path / "checkpoints") is None


def test_generator_of_one_checkpoint_while_the_run_saves_another(run):
    under_way = run[0] / "checkpoints" / "3.orbax-checkpoint-tmp"
    under_way.mkdir()
    loaded = load_any(run[0] / "checkpoints" / "1")
    _check_generator(run, loaded, step=1)
    under_way.rmdir()  # it is still there
    assert loaded.metrics is None  # those of summary.json are the last checkpoint's


def test_the_card_of_an_export_has_what_the_run_measured(newest, tmp_path):
    assert newest.metrics == {
        "topics instruction (strict)": {"value": 0.5, "low": 0.4, "high": 0.6},
        "topics prompt (strict)": {"value": 0.25, "low": 0.2, "high": 0.3},
    }
    arguments = newest.module, newest.params, tmp_path / "export", newest.tokenizer
    folder = save_hf(*arguments, method=newest.method, base=newest.base, metrics=newest.metrics)
    card = (folder / "README.md").read_text()
    assert "| topics prompt (strict) | 0.25 (95% 0.2 to 0.3) |" in card and "method: gapo" in card


def test_discriminator_of_a_run(run, tmp_path):
    workdir, models, states = run
    loaded = load_any(workdir, network="discriminator")
    assert _equal(loaded.params, states[2].discriminator.params)
    save_hf(loaded.module, loaded.params, tmp_path / "export", loaded.tokenizer)


@pytest.mark.parametrize("averaged", [False, True])
def test_checkpoints_of_earlier_versions_are_read_beside_new_ones(run, tmp_path, averaged):
    """The average was called `judge` and the replay buffer `store`."""
    state = run[2][2]
    state = state.replace(disc_average=state.discriminator.params if averaged else None)
    former = {
        {"disc_average": "judge"}.get(field.name, field.name): getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.metadata.get("pytree_node", True)
    }
    texts = [{"prompt": "p", "response": "r", "verified": True, "round": 1}]
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, former, {"store": texts, "seconds": {"load": 1.0}}, wait=True)
        checkpointer.save(1, state, {"replay": texts, "seconds": {"load": 1.0}}, wait=True)
        for step in (0, 1):
            restored, host = restore_state(checkpointer, state, step)
            assert type(restored) is type(state) and host["seconds"] == {"load": 1.0}
            assert restored.replay == (GeneratedText(**texts[0]),) and restored.last_saved == 0
            assert _equal(restored.policy.params, state.policy.params)
            assert (restored.disc_average is not None) == averaged
            assert _equal(restored.disc_average, state.disc_average)


def test_a_discriminator_that_nothing_asks_for_stays_in_the_checkpoint(run, tmp_path):
    """Earlier versions kept one in runs whose rewards come from verifiers alone."""
    config = configuration.finalize(
        configuration.change(
            configuration.Config(),
            {"method": "grpo", "reward.source": "verifier", "model.trainable_layers": 2}
            | {"model.generator": TINY, "model.discriminator": TINY},
        )
    )
    models = build_models(config, discriminator=False)
    without = initial_state(config, models, build_steps(config, models, num_pairs=0))
    former = without.replace(
        discriminator=run[2][2].discriminator, round=without.round + 3, key=run[2][2].key
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, former, {}, wait=True)
        restored, _ = restore_state(checkpointer, without)
    assert restored.last_saved == 3 and not restored.discriminator.params
    assert _equal(restored.policy, former.policy)
    assert _equal(restored.discriminator, without.discriminator)
    # One that the run needs must be there.
    with Checkpointer(tmp_path / "other") as checkpointer:
        checkpointer.save(0, without, {}, wait=True)
        with pytest.raises(ValueError, match="discriminator/.*not in the checkpoint"):
            restore_state(checkpointer, former)


def test_imported_folder_gives_back_the_same_network(newest, tmp_path):
    loaded = newest
    save_imported(loaded.module, loaded.params, loaded.tokenizer, tmp_path, loaded.base)
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir()
    again = load_any(tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert again.module.config == loaded.module.config and again.base == TINY
    assert _equal(again.params, loaded.params)
    assert again.tokenizer("Hi 12")["input_ids"] == loaded.tokenizer("Hi 12")["input_ids"]


def test_exported_folder_is_a_source_and_the_card_hides_its_place(newest, tmp_path):
    loaded = newest
    folder = save_hf(loaded.module, loaded.params, tmp_path / "export", loaded.tokenizer)
    again = load_any(folder)
    assert _equal(again.params, loaded.params) and again.base == "export"
    with pytest.raises(ValueError, match="Wanted the workdir of a run"):
        load_any(folder, network="discriminator")


def test_a_run_without_checkpoints_and_a_source_that_is_not_there(run, tmp_path):
    workdir, _, _ = run
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="wanted checkpoint"):
        load_any(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match="wanted checkpoint"):
        load_any(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(FileNotFoundError, match="none of them"):
        load_any(tmp_path / "absent")


def test_an_adapter_that_names_no_base_asks_for_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="which names none. Give --base"):
        load_any(tmp_path)
