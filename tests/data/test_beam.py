"""Mining by an Apache Beam pipeline gives what one machine gives; skipped without Apache Beam."""

import importlib.util
import json

import pytest

from gapo_jax.data import sources


def _arguments(rows, folder, out):
    """Two sources that share tasks, one of them with rows that do not fit."""
    paths = [folder / "a.jsonl", folder / "b.jsonl"]
    for path, part in zip(paths, (rows[::2], rows[1::2]), strict=True):
        lines = [json.dumps({"prompt": task, "response": text}) for task, text in part]
        path.write_text("\n".join([*lines, *["{torn"] * (path == paths[1])]))
    return [
        "mine", "--source", str(paths[0]), "--also", str(paths[1]), "--out", str(out), "--types",
        "no_comma,number_words,existence,number_sentences", "--per-task", "6", "--pairs", "16",
        "--test-fraction", "0.4", "--seed", "1",
    ]  # fmt: skip


def test_without_beam_the_command_that_installs_it_is_said(tmp_path, capsys, build_data, written):
    if importlib.util.find_spec("apache_beam") is not None:
        pytest.skip("Apache Beam is installed")
    assert build_data.main([*_arguments(written.rows(), tmp_path, tmp_path / "out"), "--beam"]) == 1
    assert "pip install 'gapo-jax[beam]'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_pairs_of_a_pipeline_are_written_for_training_too(
    tmp_path, monkeypatch, build_data, pairs, written
):
    tfds_builders = pytest.importorskip("gapo_jax.data.tfds_builders")

    def write(recipe, folder, options):
        return tfds_builders.write_preferential({"train": pairs, "test": []}, folder), 2

    monkeypatch.setattr(tfds_builders, "write_on_beam", write)
    out = tmp_path / "out"
    arguments = _arguments(written.rows(), tmp_path, out)
    arguments[arguments.index("--test-fraction") + 1] = "0"
    assert build_data.main([*arguments, "--beam"]) == 0
    found = sources.read_pairs(out / sources.MINED["train"])
    assert sorted(map(repr, found)) == sorted(map(repr, pairs))
    assert (out / sources.MINED["test"]).read_bytes() == b""
    assert "2 rows did not fit" in (out / "left_out.txt").read_text()
    monkeypatch.setattr(tfds_builders, "data_source", lambda *_: [])
    monkeypatch.setattr(tfds_builders, "write_on_beam", lambda *_: (out, 0))
    assert build_data.main([*arguments, "--beam"]) == 1


# What Beam and its dependencies warn about while they are imported is theirs.
@pytest.mark.filterwarnings("ignore")
def test_many_machines_make_what_one_makes(tmp_path, build_data, written):
    pytest.importorskip("apache_beam")
    from gapo_jax.data import tfds_builders

    found, cards = [], []
    for name, extra in (("one", ["--tfds"]), ("many", ["--beam"])):
        out = tmp_path / name
        assert build_data.main([*_arguments(written.rows(), tmp_path, out), *extra]) == 0
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
