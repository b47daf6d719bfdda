"""The command line: which command runs, where --config is found, what a wrong flag says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from by_path import ROOT

from gapo_jax import cli
from gapo_jax.cli import experiment, main, train


def _refusal(call, *arguments) -> str:
    with pytest.raises(SystemExit) as refused:
        call(*arguments)
    return str(refused.value)


def test_every_command_is_a_module_and_a_script(capsys) -> None:
    assert main.main(["--help"]) == 0 and main.main([]) == 0
    shown = capsys.readouterr().out
    for name in main.COMMANDS:
        module = name.replace("-", "_")
        assert name in shown and (ROOT / "gapo_jax" / "cli" / f"{module}.py").is_file()
        assert (ROOT / "scripts" / f"{module}.py").is_file()
    assert main.main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


def test_usage_names_the_program_that_was_started(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gapo-jax", "generate"])
    assert cli.program("generate") == "gapo-jax generate"
    monkeypatch.setattr(sys, "argv", ["scripts/generate.py"])
    assert cli.program("generate") is None  # argparse's default, generate.py


@pytest.mark.parametrize("name", ["gapo_tiny", "gapo_tiny.py", "configs/gapo_tiny.py"])
def test_shipped_configurations_are_found_from_anywhere(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs" / "gapo_tiny.py"
    assert experiment.find_config(name) == str(shipped)
    assert experiment.find_config(f"{name}:x") == f"{shipped}:x"
    # A file of that name here comes first.
    own = Path(name)
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    assert experiment.find_config(name) == name


def test_a_missing_configuration_is_named_with_the_nearest(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gapo_tny; did you mean configs/gapo_tiny\.py\?"):
        experiment.find_config("gapo_tny")
    with pytest.raises(FileNotFoundError, match="no configuration mine/gapo_tiny.py"):
        experiment.find_config("mine/gapo_tiny.py")


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "gapo_tiny", "--config.rounds=3", "--workdir", "w"],
        ["--config.rounds=3", "--workdir=w", "--config", "gapo_tiny"],
        ["--config.rounds", "3", "--config=configs/gapo_tiny.py", "--workdir=w"],
    ],
)
def test_flags_may_stand_before_the_file_that_they_change(argv, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    seen = {}

    def record(config, workdir, path, join):
        seen.update(config=config, workdir=workdir, path=path, join=join)
        return 0

    monkeypatch.setattr(train, "train", record)
    monkeypatch.setattr(train, "_quieten", lambda process_id: None)
    assert train.main(argv) == 0
    assert seen["config"].rounds == 3 and seen["workdir"] == Path("w") and seen["join"] is None
    assert seen["path"].resolve() == ROOT / "configs" / "gapo_tiny.py"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "error: --config is missing"),
        (["--config", "gapo_tiny", "--config.ppo.clip_lo=1"], "did you mean 'clip_low'"),
        (["--config.ppo.clip_lo", "1", "--config", "gapo_tiny"], "did you mean 'clip_low'"),
        (["--config", "gapo_tiny", "--config.rounds=x"], "error: flag --config.rounds=x"),
        (["--config", "gapo_tpu:x"], "wanted 'ifeval', 'small', 'rehearse' or no preset, got 'x'"),
        (["--config", "gapo_tiny", "more"], "arguments that are not flags: more"),
        (["--config", "gapo_tiny", "--wrokdir=w"], "wrokdir"),
        (["--config", "gapo_tiny", "--config.rounds=-1"], "rounds"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line(argv, said, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    refusal = _refusal(train.main, argv)
    assert said in refusal and refusal.startswith("error: ") and "\n" not in refusal


def test_help_lists_the_flags(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(flag in shown for flag in ("--workdir", "--host_timeout_s", "--config.KEY=VALUE"))
    assert "75" in shown  # the exit status after a signal
