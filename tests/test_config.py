"""The configuration: checked as a whole before anything slow, frozen, and comparable."""

import dataclasses

import pytest
from by_path import ROOT, load

from gapo_jax import config as configuration
from gapo_jax.config import Config, finalize
from gapo_jax.config.presets import moved_config
from gapo_jax.methods import METHODS

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid_and_says_its_command(path):
    module = load(path)
    final = finalize(module.get_config())
    assert final.name == path.stem
    assert f"--config configs/{path.name}" in module.__doc__


def test_final_configs_cannot_change_and_leave_the_original_alone():
    config = Config()
    final = finalize(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        final.ppo.clip_low = 0.5
    config.ppo.clip_low = 0.5
    assert final.ppo.clip_low == 0.2


def test_a_misspelt_field_is_refused_with_the_nearest_one():
    with pytest.raises(AttributeError, match="did you mean 'clip_low'"):
        Config().ppo.clip_lo = 0.1
    with pytest.raises(ValueError, match="unknown key config.ppo.clip_lo; did you mean 'clip_low'"):
        configuration.from_json({"ppo": {"clip_lo": 0.1}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("method", "gap", r"config.method cannot be 'gap'; did you mean 'gapo'"),
        ("rounds", 2.5, r"config.rounds must be of type"),
        ("rounds", -1, r"config.rounds must lie in \[0, inf\], got -1"),
        ("export", 1, r"config.export must be of type"),
        ("ppo.gamma", float("nan"), r"config.ppo.gamma must lie in"),
        ("ppo.minibatch_size", 7, r"96 rows .* config.ppo.minibatch_size is 7"),
        ("ppo.train_samples", 3, r"config.ppo.train_samples must be even .* got 3"),
        ("sampling.batch_size", 20, r"config.sampling.batch_size=20 must be a multiple"),
        ("data.types", (), r"config.data.types is empty"),
        ("ppo.value_clip", 0.0, r"config.ppo.value_clip must lie in"),
        ("ppo.critic_epochs", 0, r"config.ppo.critic_epochs must lie in \[1"),
        ("offline.optim.clip_norm", 0.0, r"config.offline.optim.clip_norm must lie in"),
        ("ppo.optim.b2", 1.0, r"config.ppo.optim.b2 must lie in"),
        ("discriminator.label_policy", "verify", r"did you mean 'verified'"),
    ],
)
def test_bad_values_name_the_field_and_the_way_out(path, value, message):
    config = Config()
    *sections, name = path.split(".")
    setattr(configuration.lookup(config, ".".join(sections)) if sections else config, name, value)
    with pytest.raises(ValueError, match=message):
        finalize(config)


def test_fields_that_contradict_each_other():
    config = Config()
    config.model.train_embeddings, config.model.trainable_layers = True, 4
    with pytest.raises(ValueError, match="train_embeddings=True"):
        finalize(config)
    config = Config()
    config.reward.standardise, config.ppo.samples_per_prompt = "group", 1
    config.ppo.minibatch_size = 12
    with pytest.raises(ValueError, match="at least 2 samples"):
        finalize(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kto", "offline.batch_size": 1}, r"offline.batch_size=1 gives KTO no second"),
        ({"method": "dpo", "data.pairs": 4}, r"offline.batch_size=16 asks dpo .*data.pairs=4"),
        ({"method": "sft", "offline.accumulate": 3}, r"offline.accumulate=3 must divide"),
        ({"method": "kto", "offline.sft_weight": 0.1}, r"sft_weight=0.1 .*method='kto'; set it"),
        (
            {
                "method": "inverse_q",
                "inverse_q.contrast": "prompts",
                "data.preference": "responses",
            },
            r"data.preference='responses' does not give; set it to 'prompts'",
        ),
        ({"method": "sgpo", "sgpo.prompts": 8}, r"sgpo.prompts=8 .*offline.batch_size=16"),
        ({"method": "sgpo", "data.pairs": 8}, r"offline.batch_size=16 asks sgpo .*data.pairs=8"),
        ({"method": "dpo", "dpo.variant": "cdpo"}, r"label_smoothing above 0; try 0.1"),
        ({"method": "dpo", "dpo.variant": "ipo", "dpo.label_smoothing": 0.1}, r"set it to 0"),
        ({"method": "rpo", "rpo.distance": "sq", "rpo.responses": 3}, r"'sqloo'"),
        (
            {"method": "rpo", "rpo.responses": 9, "data.preference": "responses"},
            r"rpo.responses=9 .*data.responses_per_task=6",
        ),
        (
            {"method": "inverse_q", "inverse_q.contrast": "system", "inverse_q.system_prompt": ""},
            r"needs a config.inverse_q.system_prompt",
        ),
        ({"method": "sgpo", "rounds": 1}, r"sgpo.improver_rounds=1 leaves none .* raise rounds"),
        ({"method": "sgpo", "sgpo.min_edit": 0.7}, r"sgpo.min_edit=0.7 must lie below"),
        ({"method": "sgpo", "sgpo.improve_template": "{prompt}"}, r"improve_template lacks"),
        ({"method": "sgpo", "sgpo.improve_template": "{prompt}{response}{x}"}, r"no template"),
        ({"data.preference": "prompt"}, r"did you mean 'prompts'"),
        ({"ppo.optim.optimizer": "adam"}, r"did you mean 'adamw'"),
        ({"method": "sft", "data.curriculum": 0.5}, r"curriculum=0.5 .*accepted texts alone"),
        ({"method": "inverse_q", "data.curriculum": 1.0}, r"contrast='prompts' works"),
        (
            {"method": "grpo", "reward.source": "verifier", "data.curriculum": 1.0},
            r"no discriminator learns .*set curriculum=0",
        ),
        ({"ppo.length_buckets": 0}, r"config.ppo.length_buckets must lie in \[1"),
        ({"offline.length_buckets": 0}, r"config.offline.length_buckets must lie in \[1"),
        (
            {"method": "dpo", "offline.length_buckets": 2, "data.curriculum": 0.5},
            r"length_buckets=2 .*data.curriculum .*set length_buckets=1",
        ),
        ({"method": "inverse_q", "offline.length_buckets": 2}, r"samples of inverse_q"),
        ({"method": "discriminator", "offline.length_buckets": 2}, r"like length anyway"),
        ({"ppo.accumulate": 5}, r"accumulate=5 must divide config.ppo.minibatch_size=24"),
        ({"ppo.accumulate": 3, "ppo.sft_coef": 0.1}, r"must divide config.ppo.sft_rows=8"),
        ({"discriminator.accumulate": 3}, r"must divide config.discriminator.batch_size=32"),
        (
            {"discriminator.accumulate": 2, "discriminator.dropout": 0.1},
            r"dropout=0.1 would drop the same units in every microbatch",
        ),
    ],
)
def test_a_method_with_data_it_cannot_use_is_refused_before_anything_is_loaded(changes, message):
    config = Config()
    for path, value in changes.items():
        *sections, name = path.split(".")
        setattr(
            configuration.lookup(config, ".".join(sections)) if sections else config, name, value
        )
    with pytest.raises(ValueError, match=message):
        finalize(config)


def test_presets_are_valid_and_named_after_their_file():
    for path in CONFIGS:
        module = load(path)
        for name in getattr(module, "PRESETS", ()):
            assert name in module.__doc__
            assert finalize(module.get_config(name)).name == f"{path.stem}_{name}"
        for name in getattr(module, "VARIANTS", ()):
            assert finalize(module.get_config(f"tiny,{name}")).name == f"{path.stem}_tiny_{name}"


def test_every_method_has_a_configuration():
    found = {load(path).get_config().method for path in CONFIGS}
    assert found == set(METHODS)
    for name in METHODS.keys() - {"gapo"}:
        module = load(f"configs/{name}.py")
        assert module.get_config().method == module.get_config("tiny").method == name


def test_a_wrong_preset_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="configs/dpo.py has no preset 'tny'; did you mean 'tiny'"):
        load("configs/dpo.py").get_config("tny")
    with pytest.raises(ValueError, match="wanted one of the presets"):
        load("configs/dpo.py").get_config("ipo,exo")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dpo_tiny.py", "dpo.py:tiny"),
        ("dpo_tiny.py:ipo", "dpo.py:tiny,ipo"),
        ("dpo_smollm2.py", "dpo.py"),
        ("rpo_smollm2.py:k4", "rpo.py:k4"),
        ("reinforce_pp_tiny", "reinforce_pp:tiny"),
        ("gapo_tiny.py", None),
        ("dpo.py:tiny", None),
        ("nothing_tiny.py", None),
    ],
)
def test_the_former_name_of_a_configuration_leads_to_the_present_one(old, new, tmp_path):
    for folder in ("", "configs/", f"{ROOT / 'configs'}/"):
        assert moved_config(folder + old) == (new and folder + new)
    (tmp_path / "dpo_tiny.py").touch()
    assert moved_config(f"{tmp_path}/dpo_tiny.py") is None


def test_the_options_of_a_method_are_part_of_the_identity_of_its_runs_alone():
    config = Config(method="dpo")
    before = configuration.fingerprint(config)
    config.kto.beta = config.grpo.max_resamples = 1
    assert configuration.fingerprint(config) == before
    config.dpo.beta = 0.2
    assert configuration.fingerprint(config) != before
    config = Config(method="gapo")
    before = configuration.fingerprint(config)
    config.rpo.beta = 0.3  # the estimator of gapo may be that of another method
    assert configuration.fingerprint(config) != before


def test_a_configuration_of_an_earlier_version_can_be_read():
    record = configuration.to_json(Config(method="kto"))
    del record["simpo"], record["ppo"]["length_buckets"], record["kto"]["desirable_weight"]
    record["kto"]["beta"] = 0.7
    config = finalize(configuration.from_json(record))
    assert (config.kto.beta, config.kto.desirable_weight, config.simpo.beta) == (0.7, 1.0, 2.0)


def test_json_round_trip_and_identity():
    config = Config()
    config.ppo.kl_coef = 0.5
    config.data.types = ("no_comma", "title")
    again = configuration.from_json(configuration.to_json(config))
    assert again == config
    longer = configuration.from_json(configuration.to_json(config))
    longer.rounds, longer.export, longer.data.verify_workers = 99, False, 2
    assert configuration.fingerprint(longer) == configuration.fingerprint(config)
    longer.ppo.kl_coef = 0.1
    assert configuration.fingerprint(longer) != configuration.fingerprint(config)
    old, new = configuration.identity(config), configuration.identity(longer)
    assert configuration.differences(old, new) == ["ppo.kl_coef: 0.5 -> 0.1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rloo", "ppo.samples_per_prompt": 1}, r"rloo .*config.ppo.samples_per_prompt"),
        ({"method": "grpo", "ppo.samples_per_prompt": 1}, r"2 or more \(got 1\).*'ppo'"),
        (
            {"method": "reinforce_pp", "ppo.samples_per_prompt": 1, "ppo.group_baseline": True},
            r"reinforce_pp compares",
        ),
        ({"method": "rpo_online", "rpo.distance": "sq"}, r"'sq' is for 2 .*8 samples.*'sqloo'"),
        ({"method": "rpo_online", "ppo.minibatch_size": 12}, r"must be a multiple of 8"),
        ({"method": "ppo", "ppo.advantage": "rloo"}, r"config.ppo.advantage='rloo' is for"),
        ({"reward.source": "verifier"}, r"never asks; set source to 'discriminator' or 'mix'"),
        ({"reward.source": "mix"}, r"config.reward.squash='sigmoid'"),
        (
            {"method": "ppo", "reward.source": "verifier", "reward.squash": "sigmoid"},
            r"set squash='none'",
        ),
        ({"discriminator.loss": "bradley_terry", "discriminator.positive_label": 0.9}, r"soften"),
        ({"discriminator.loss": "bradley_terry", "discriminator.batch_size": 9}, r"must be even"),
        ({"method": "grpo", "grpo.variant": "gspo"}, r"3e-4 and 4e-4"),
        ({"method": "grpo", "grpo.dynamic_sampling": True}, r"set source='verifier'"),
        ({"method": "grpo", "reward.overlong_tokens": 99}, r"overlong_tokens=99 .*lower it"),
        ({"method": "rloo", "grpo.variant": "dapo"}, r"grpo.variant='dapo' .*method='grpo'"),
        ({"method": "rloo", "ppo.group_baseline": True}, r"method='reinforce_pp'"),
        ({"discriminator.optim.schedule": "cosine"}, r"no effect.*round_learning_rate"),
        ({"discriminator.gate_low": 0.9, "discriminator.gate_high": 0.8}, r"must not exceed"),
    ],
)
def test_methods_refuse_what_they_cannot_use(changes, message):
    config = Config()
    for path, value in changes.items():
        *sections, name = path.split(".")
        owner = configuration.lookup(config, ".".join(sections)) if sections else config
        setattr(owner, name, value)
    with pytest.raises(ValueError, match=message):
        finalize(config)


def test_reinforce_pp_and_ppo_work_with_one_sample_a_prompt():
    for method in ("ppo", "reinforce_pp"):
        config = Config(method=method)
        config.ppo.samples_per_prompt, config.ppo.minibatch_size = 1, 12
        assert finalize(config).method == method


def _sections(section):
    yield section
    for value in vars(section).values():
        if dataclasses.is_dataclass(value):
            yield from _sections(value)


def test_flags_can_read_the_type_of_every_field():
    # Postponed annotations are text, on which the flags of nested sections end with a TypeError.
    for section in _sections(Config()):
        for field in dataclasses.fields(section):
            assert not isinstance(field.type, str), f"{type(section).__name__}.{field.name}"
