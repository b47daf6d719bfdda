"""The registry: what the program knows of a method, and what a new one takes."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from by_path import ROOT

from gapo_jax import config as configuration
from gapo_jax.config import Config, finalize
from gapo_jax.losses.offline import RowLogprobs
from gapo_jax.methods import (
    METHODS,
    Method,
    asks_discriminator,
    batches_of,
    estimator,
    has_critic,
    method_of,
    offline_loss,
    option_sections,
    sides_of,
)
from gapo_jax.section import Positive, Section


def test_every_method_is_found_by_its_name():
    assert all(method_of(Config(method=name)).name == name for name in METHODS)
    with pytest.raises(ValueError, match=r"config.method cannot be 'kpto'; did you mean 'kto'"):
        method_of(Config(method="kpto"))


def test_the_options_of_methods_are_sections_of_the_configuration():
    config = Config()
    for name, options in option_sections().items():
        assert type(getattr(config, name)) is options
    assert Config(method="rpo_online").rpo is not None
    assert method_of(Config(method="sft")).section_of(config) is None


def test_no_module_but_the_registry_compares_names_of_methods():
    asks = re.compile(
        r"\.method\s*(==|!=|in\b|not in\b)|\[[\w.]*\.method\]|\.get\([\w.]*\.method\b"
    )
    files = [*(ROOT / "gapo_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    found = [
        f"{path.name}: {match.group()}"
        for path in sorted(files)
        if path.name != "methods.py"
        for match in asks.finditer(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"method": "gapo"}, ("gae", True, True)),
        ({"method": "gapo", "ppo.advantage": "rloo"}, ("rloo", False, True)),
        ({"method": "ppo"}, ("gae", True, True)),
        ({"method": "grpo", "reward.source": "verifier"}, ("grpo", False, False)),
        ({"method": "rpo_online"}, ("rpo", False, True)),
    ],
)
def test_what_an_online_method_trains(changes, wanted):
    config = configuration.change(Config(), changes)
    assert (estimator(config), has_critic(config), asks_discriminator(config)) == wanted


def test_what_an_offline_method_learns_from():
    assert {name: sides_of(Config(method=name)) for name in ("sft", "dpo", "kto")} == {
        "sft": 1,
        "dpo": 2,
        "kto": 2,
    }
    config = Config(method="rpo")
    assert not asks_discriminator(config)
    config.rpo.responses, config.rpo.reward = 4, "discriminator"
    assert sides_of(config) == 4 and asks_discriminator(config)
    config = Config(method="inverse_q")
    assert batches_of(config) == "samples"
    config.inverse_q.contrast = "prompts"
    assert batches_of(config) == "examples"


class _Options(Section):
    beta: Positive = 0.1


def _loss(rows: RowLogprobs, *, beta: float, gamma: float):
    return rows.policy_BR.sum() * beta * gamma, {}


def test_a_loss_gets_the_options_of_its_own_method_or_the_entry_is_refused():
    with pytest.raises(TypeError, match=r"'new' takes \['gamma'\] .*\['sft_weight', 'beta'"):
        Method("new", "", "offline", ("pairs",), _loss, options=_Options)
    config = Config(method="dpo")
    config.dpo.beta, config.offline.sft_weight = 0.7, 0.5
    assert offline_loss(config).keywords == {
        **dataclasses.asdict(config.dpo),
        "sft_weight": 0.5,
    }
    for name, method in METHODS.items():
        if method.loop == "offline" and method.trains == "policy":
            assert offline_loss(Config(method=name)).func is method.loss


def test_the_likelihood_of_a_chosen_side_is_for_losses_that_have_one():
    pairwise = {name for name, method in METHODS.items() if method.pairwise}
    assert pairwise == {"dpo", "simpo", "orpo", "rpo", "sgpo"}


# What a new offline loss takes: a loss, its entry with its options, its test, its configuration.
LOSS = '''"""A loss for the test of the registry."""

import jax

from gapo_jax.losses.offline import RowLogprobs, with_likelihood


def dummy_loss(rows: RowLogprobs, *, beta: float, sft_weight: float):
    """softplus(-beta (chosen - rejected)) of the mean log-probs."""
    policy_AG, _ = rows.sequence(mean=True)
    margin_B = policy_AG[:, 0] - policy_AG[:, 1]
    loss = jax.nn.softplus(-beta * margin_B).mean()
    return with_likelihood(rows, (loss, {"pref/beta": beta}), sft_weight)
'''
ENTRY = '''class DummyConfig(Section):
    """A dummy."""

    beta: Positive = 0.1


METHODS["dummy"] = Method(
    "dummy", "0000.00000", "offline", ("pairs",), dummy_loss, options=DummyConfig
)
'''
TEST = """from gapo_jax.config import Config
from gapo_jax.methods import offline_loss


def test_dummy():
    assert offline_loss(Config(method="dummy")).keywords["beta"] == 0.1
"""
CONFIG = '''"""A dummy: --config configs/dummy.py"""

from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset=""):
    config, _ = sized("dummy", preset)
    config.dummy.beta = 0.2
    return config
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package, the scripts and the configurations, with a new offline loss."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("gapo_jax", "scripts", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "gapo_jax/losses/dummy.py").write_text(LOSS)
    (root / "configs/dummy.py").write_text(CONFIG)
    (root / "tests/losses").mkdir(parents=True)
    (root / "tests/losses/test_dummy.py").write_text(TEST)
    registry = root / "gapo_jax/methods.py"
    text = registry.read_text().replace(
        "from gapo_jax.losses.offline import RowLogprobs\n",
        "from gapo_jax.losses.dummy import dummy_loss\n"
        "from gapo_jax.losses.offline import RowLogprobs\n"
        "from gapo_jax.section import Positive\n",
    )
    line = re.search(r"^METHODS: .*\n", text, re.MULTILINE)
    registry.write_text(text[: line.end()] + ENTRY + text[line.end() :])
    return root


def _run(root, *command):
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=root, env=os.environ | own, capture_output=True, text=True
    )


def test_a_new_offline_loss_takes_four_files(tree, tmp_path):
    changes = {
        "rounds": 1, "offline.steps_per_round": 2, "eval.prompts_per_set": 4, "export": False,
        "dummy.beta": 0.3,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    done = _run(
        tree, "scripts/train.py", "--config", "configs/dummy.py:tiny", *flags,
        "--workdir", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    (line,) = (line for line in lines if line["phase"] == "policy")
    assert line["step"] == 2 and line["pref/beta"] == pytest.approx(0.3)
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["dummy"] == {"beta": 0.3} and record["method"] == "dummy"
    own_test = _run(
        tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/losses/test_dummy.py"
    )
    assert own_test.returncode == 0, own_test.stdout


def test_a_wrong_option_of_a_new_loss_is_refused_before_anything_is_loaded(tree):
    for flag, message in (
        ("--config.dummy.bta=1", "config.dummy has no 'bta'; did you mean 'beta'"),
        ("--config.dummy.beta=-1", "config.dummy.beta must lie in [1e-09, inf], got -1.0"),
    ):
        done = _run(tree, "scripts/train.py", "--config", "configs/dummy.py:tiny", flag)
        assert done.returncode == 1 and message in done.stderr


def test_a_final_configuration_of_every_method():
    for name in METHODS:
        assert finalize(Config(method=name)).method == name
