"""Mining by an Apache Beam pipeline gives what one machine gives; skipped without Apache Beam."""

import importlib.util
import json
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = _load(Path(__file__).with_name("rows.py")).rows()
script = _load(_ROOT / "scripts" / "build_data.py")


def _arguments(folder, out):
    """Two sources that share tasks, one of them with rows that do not fit."""
    paths = [folder / "a.jsonl", folder / "b.jsonl"]
    for path, rows in zip(paths, (ROWS[::2], ROWS[1::2]), strict=True):
        lines = [json.dumps({"prompt": task, "response": text}) for task, text in rows]
        path.write_text("\n".join([*lines, *["{torn"] * (path == paths[1])]))
    return [
        "mine", "--source", str(paths[0]), "--also", str(paths[1]), "--out", str(out), "--types",
        "no_comma,number_words,existence,number_sentences", "--per-task", "6", "--pairs", "16",
        "--test-fraction", "0.4", "--seed", "1",
    ]  # fmt: skip


def test_without_beam_the_command_that_installs_it_is_said(tmp_path, capsys):
    if importlib.util.find_spec("apache_beam") is not None:
        pytest.skip("Apache Beam is installed")
    assert script.main([*_arguments(tmp_path, tmp_path / "out"), "--beam"]) == 1
    assert "pip install 'gapo-jax[beam]'" in capsys.readouterr().err


# What Beam and its dependencies warn about while they are imported is theirs.
@pytest.mark.filterwarnings("ignore")
def test_many_machines_make_what_one_makes(tmp_path):
    pytest.importorskip("apache_beam")
    from gapo_jax.data import tfds_builders

    found, cards = [], []
    for name, extra in (("one", ["--tfds"]), ("many", ["--beam"])):
        out = tmp_path / name
        assert script.main([*_arguments(tmp_path, out), *extra]) == 0
        rows = {
            side: tfds_builders.data_source("preferential_prompts", out / "tfds", side)
            for side in ("train", "test")
        }
        found.append({side: [part[i] for i in range(len(part))] for side, part in rows.items()})
        cards.append(json.loads((out / "card.json").read_text()))
    assert found[0] == found[1]  # the same rows in the same order
    assert 12 <= len(found[0]["train"]) <= 16 and found[0]["test"]
    for card in cards:
        assert card["facts"]["rows left out"] == 1
    for side in ("train", "test"):
        assert cards[0]["splits"][side]["types"] == cards[1]["splits"][side]["types"]
