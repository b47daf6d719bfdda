"""`config.data.types` is checked before any model is loaded, and plug-in files are read."""

import pytest

from gapo_jax.config import finalize
from gapo_jax.config.presets import tiny
from gapo_jax.constraints import plugins
from gapo_jax.train.datasets.self_generated import training_types
from gapo_jax.train.datasets.user import check_source

PLUGIN = """
from gapo_jax import constraints


class Checked:
    id = "of_types_test:checked"
    def describe(self, constraint): return "Be short."
    def check(self, constraint, response): return len(response) < 5


class Mined(constraints.TrainableType):
    id = "of_types_test:mined"
    train, heldout = ("Say abc.",), ("The word abc must occur.",)
    def check(self, constraint, response, prompt=""): return "abc" in response
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_TYPES", {})
    monkeypatch.setattr(plugins, "_FILES", {})
    path = tmp_path / "types.py"
    path.write_text(PLUGIN)
    return path


def _config(*types, **data):
    config = tiny("gapo")
    config.data.types = types
    for name, value in data.items():
        setattr(config.data, name, value)
    return finalize(config)


@pytest.mark.parametrize("source", ["", "somewhere"])
@pytest.mark.parametrize("types", [("no_comma", "emoji"), ("ifbench",), ("format:emoji",)])
def test_ifbench_is_not_trained_on(tmp_path, source, types):
    with pytest.raises(ValueError, match="of IFBench, a test .*config.data.types"):
        check_source(_config(*types, source=source), tmp_path)


def test_plugin_files_are_read(tmp_path, path):
    config = _config("no_comma", "mined", plugins=(str(path),))
    assert training_types(config) == ("punctuation:no_comma", "of_types_test:mined")
    check_source(config, tmp_path)
    with pytest.raises(FileNotFoundError, match="config.data.plugins"):
        check_source(_config("no_comma", plugins=("no/such.py",)), tmp_path)


def test_a_type_without_sample_needs_rows_that_ask_for_it(tmp_path, path):
    with pytest.raises(ValueError, match="of_types_test:checked has no `sample`"):
        check_source(_config("checked", plugins=(str(path),)), tmp_path)
    config = _config("checked", plugins=(str(path),), source=str(tmp_path))
    assert training_types(config) == ("of_types_test:checked",)
