"""Whose a workdir and its checkpoints are, and what a run that stopped itself may change."""

import json
from types import SimpleNamespace

import pytest

from gapo_jax.config import change, finalize
from gapo_jax.config.presets import tiny
from gapo_jax.train.history import mend_history
from gapo_jax.train.metrics import MetricsWriter, read_metrics
from gapo_jax.train.runtime import Processes
from gapo_jax.train.workdir import STOPPED, claim_checkpoints, claim_workdir


def _config(**changes):
    return finalize(
        change(tiny("gapo"), {path.replace("__", "."): x for path, x in changes.items()})
    )


def test_a_run_that_stopped_itself_goes_on_with_another_rate_and_nothing_else(tmp_path, caplog):
    claim_workdir(_config(), tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}")
    lower = _config(ppo__optim__learning_rate=1e-6, ppo__kl_coef=0.5)
    with pytest.raises(ValueError, match="run of another configuration.*ppo.kl_coef"):
        claim_workdir(lower, tmp_path)
    note = {"round": 3, "reason": "KL to the reference is 3", "saved": 1}
    (tmp_path / STOPPED).write_text(json.dumps(note))
    with pytest.raises(ValueError, match="ppo.epochs"):  # what no message names
        claim_workdir(_config(ppo__kl_coef=0.5, ppo__epochs=7), tmp_path)
    with caplog.at_level("INFO", logger="gapo_jax"):
        claim_workdir(lower, tmp_path)
    assert "KL to the reference is 3" in caplog.text and "1e-06" in caplog.text
    # It is the run of the new configuration now, and that alone.
    claim_workdir(lower, tmp_path)
    with pytest.raises(ValueError, match="ppo.kl_coef"):
        claim_workdir(_config(), tmp_path)


def test_two_workdirs_cannot_share_a_folder_of_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    claim_checkpoints(str(folder), tmp_path / "one")
    claim_checkpoints(str(folder), tmp_path / "one")
    with pytest.raises(ValueError, match=r"holds the checkpoints of the run in .*one; .*two") as e:
        claim_checkpoints(str(folder), tmp_path / "two")
    assert "\n" not in str(e.value)


@pytest.fixture
def ctx(tmp_path):
    """A run of three rounds that are on record, about to continue."""
    with MetricsWriter(tmp_path) as writer:
        for number in range(4):
            if number:
                writer.write(2 * number, number, "policy", {"policy/loss": 0.1})
                writer.sample({"step": 2 * number, "round": number, "response": "a\u2028b"})
            writer.write(2 * number, number, "save", {"time/save_s": 0.1})
    writer = MetricsWriter(tmp_path, resume_step=6)
    yield SimpleNamespace(
        config=_config(),
        workdir=tmp_path,
        writer=writer,
        updates_per_round=2,
        processes=Processes(),
    )
    writer.close()


def test_a_whole_history_is_left_as_it_is(ctx, caplog):
    before = (ctx.workdir / "metrics.jsonl").read_bytes()
    mend_history(ctx, 3)
    assert (ctx.workdir / "metrics.jsonl").read_bytes() == before and not caplog.text


def test_a_lost_line_of_the_last_save_is_written(ctx, caplog):
    path = ctx.workdir / "metrics.jsonl"
    *lines, last = path.read_text().splitlines(keepends=True)
    assert json.loads(last)["phase"] == "save"
    path.write_text("".join(lines))
    mend_history(ctx, 3)
    wanted = {name: json.loads(last)[name] for name in ("step", "round", "phase")}
    assert wanted.items() <= read_metrics(path)[-1].items()
    assert not caplog.text


@pytest.mark.parametrize("kept", [0, 4])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_missing_rounds_are_named(ctx, caplog, name, kept):
    path = ctx.workdir / name
    lines = path.read_text().split("\n")[:-1]
    path.write_text("".join(f"{line}\n" for line in lines[:kept]))
    mend_history(ctx, 3)
    missing = "3" if kept else "1, 2, 3"
    if (name, kept) == ("samples.jsonl", 4):  # all three are there
        assert not caplog.text
        return
    assert f"{path} lacks" in caplog.text and f"({missing})" in caplog.text
