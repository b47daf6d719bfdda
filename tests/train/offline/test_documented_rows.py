"""The examples of docs/data.md train as they are written there."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from by_path import ROOT

from gapo_jax.cli import train

_PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
_TEXT = _PAGE[_PAGE.index("## Train on your rows") : _PAGE.index("| rows | methods |")]
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
# The rate of the first update is 0.
_SHORT = ["--config.rounds=1", "--config.offline.steps_per_round=2", "--config.export=False"]


def test_there_is_an_example_of_every_kind():
    assert len(BLOCKS) == 5
    assert all(len(block.splitlines()) <= 10 for block in BLOCKS)


@pytest.mark.parametrize(
    "number", range(5), ids=["messages", "pairs", "labels", "scores", "scorer"]
)
def test_an_example_trains(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:  # the last one takes a file of another
        for name, rows in re.findall(r"cat > (\S+) <<'ROWS'\n(.*?)ROWS\n", block, re.DOTALL):
            (tmp_path / name).write_text(rows)
    (line,) = [line for line in BLOCKS[number].splitlines() if line.startswith("python")]
    arguments = shlex.split(line)[2:]
    arguments[1] = str(ROOT / arguments[1])
    assert train.main([*arguments, *_SHORT]) == 0
    summary = json.loads((tmp_path / arguments[-1] / "summary.json").read_text())
    assert summary["rows"]["left_out"] == 0 and summary["rows"]["train"] > 1
    assert summary["heldout"]["after"] != summary["heldout"]["before"] != {}
