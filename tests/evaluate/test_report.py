"""The report: complete, self-contained, safe with model text, and there for unfinished runs."""

from __future__ import annotations

import base64
import html.parser
import json
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from gapo_jax.evaluate import plots
from gapo_jax.evaluate.report import write_report

TYPES = ["punctuation:no_comma", "detectable_format:title", "keywords:existence"]


def interval(value: float, width: float = 0.06) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def accuracy(level: float) -> dict[str, Any]:
    types = {
        name: {"strict": interval(level + 0.05 * index), "count": 40 + index}
        for index, name in enumerate(TYPES)
    }
    return {
        "instruction_strict": interval(level),
        "prompt_strict": interval(level - 0.1),
        "types": types,
    }


def records(rounds: int = 10) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = []

    def add(number: int, phase: str, **values: float) -> None:
        head = {"step": number * 8, "round": number, "phase": phase, "time_s": 1.0}
        found.append(head | {name.replace("__", "/"): value for name, value in values.items()})

    add(0, "warmup", disc__loss=0.5, disc__acc_accepted=0.7, time__warmup_s=90.0)
    for number in range(rounds + 1):
        if number in (0, rounds):
            level = 0.45 if number == 0 else 0.63
            heldout = {}
            for name in ("heldout_topics", "heldout_phrasings"):
                for measure in ("instruction_strict", "prompt_strict"):
                    for part, value in interval(level).items():
                        end = "" if part == "value" else f"_{part}"
                        heldout[f"eval/{name}/{measure}{end}"] = value
            add(number, "eval", time__eval_s=40.0, **heldout)
        if number == 0:
            continue
        progress = number / rounds
        noise = rng.normal(0, 0.02, 12)
        types = {
            f"constraint/type/{name}": min(1.0, 0.2 + 0.25 * index + 0.3 * progress + noise[index])
            for index, name in enumerate(TYPES)
        }
        rollout = {
            "constraint/instruction_strict": 0.45 + 0.2 * progress + noise[3],
            "constraint/prompt_strict": 0.35 + 0.2 * progress + noise[4],
            "reward/mean": 0.5 * progress + noise[5],
            "reward/std": 1.0 + noise[6],
            "reward/score_mean": -0.4 + progress + noise[7],
            "kl/ref": 0.05 * progress,
            "response/length": 40 - 4 * progress,
            "response/eos_rate": 0.6 + 0.2 * progress,
            "response/echo_rate": 0.02,
            "response/repetition": 0.05 + 0.03 * progress,
        }
        times = {"time/rollout_s": 22.0, "time/experience_s": 6.0, "time/score_s": 3.0}
        add(number, "rollout", **rollout, **types, **times)
        judged = {
            "disc/acc_accepted": 0.75 + 0.1 * progress,
            "disc/acc_rejected": 0.7 + 0.1 * progress,
            "disc/acc_generated": 0.65 + noise[8],
            "disc/score_gap": 1.0 + progress,
        }
        add(number, "discriminator", **judged, time__discriminator_s=9.0)
        learned = {
            "policy/clip_fraction": 0.08 + noise[9],
            "policy/entropy": 1.6 - 0.3 * progress,
            "value/explained_variance": 0.4 * progress,
        }
        add(number, "policy", **learned, time__policy_s=24.0)
        add(number, "save", time__save_s=0.8)
    return found


def summary() -> dict[str, Any]:
    names = ("heldout_topics", "heldout_phrasings")
    change = {"instruction_strict": interval(0.18), "prompt_strict": interval(0.02)}
    sample = {
        "prompt": "Write a <b>short</b> note about bees.\n\nDo not use commas.",
        "constraints": TYPES[:2],
        "before": "Bees, as we know, make honey & wax.",
        "after": "<<A note>>\n<script>alert('bees')</script> Bees make honey.",
        "verdicts_before": [False, False],
        "verdicts_after": [True, True],
    }
    return {
        "before": {name: accuracy(0.45) for name in names},
        "after": {name: accuracy(0.63) for name in names},
        "difference": {name: change for name in names},
        "time_s": {"bootstrap": 95.0, "warmup": 90.0, "rollout": 220.0, "policy": 240.0},
        "throughput": {"throughput/real_tokens_per_s": 241.3},
        "peak_memory_gb": 4.21,
        "relative_change": {"policy": 3.1e-3, "critic": 0.42, "discriminator": 0.08},
        "samples": [sample, sample | {"after": ""}],
        "export": "runs/quickstart/export",
    }


def fill(workdir: pathlib.Path) -> pathlib.Path:
    lines = "".join(json.dumps(record) + "\n" for record in records())
    (workdir / "metrics.jsonl").write_text(lines)
    (workdir / "summary.json").write_text(json.dumps(summary()))
    (workdir / "config.json").write_text(json.dumps({"name": "gapo_quick", "method": "gapo"}))
    return workdir


class Page(html.parser.HTMLParser):
    """Collects tags and text, and checks that what is opened is closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text())
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def test_a_finished_run_has_every_part(tmp_path: pathlib.Path) -> None:
    page = Page(write_report(fill(tmp_path)))
    text = " ".join(" ".join(page.text).split())
    for wanted in ("gapo_quick", "held-out topics", "held-out phrasings", "45.0%", "63.0%"):
        assert wanted in text
    assert "+18.0 [+12.0, +24.0]" in text and "not finished" not in text
    for name in [*TYPES, "policy", "0.0031", "4.2 GB", "runs/quickstart/export", "configuration"]:
        assert name in text
    # The figure of preferences is for the offline methods.
    assert len([tag for tag, _ in page.tags if tag == "img"]) == len(plots.FIGURES) - 1


def test_a_change_is_green_only_if_its_interval_excludes_zero(tmp_path: pathlib.Path) -> None:
    page = write_report(fill(tmp_path)).read_text()
    assert re.findall(r'class="(better|worse|open)">([+−.\d]+)<', page) == [
        ("better", "+18.0"),
        ("open", "+2.0"),
        ("better", "+18.0"),
        ("open", "+2.0"),
    ]


def test_it_needs_nothing_from_elsewhere(tmp_path: pathlib.Path) -> None:
    page = Page(write_report(fill(tmp_path)))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        source = attributes.get("src") or "data:"
        assert source.startswith("data:"), source
        if tag == "img":
            svg = base64.b64decode(source.split(",", 1)[1])
            assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_model_text_is_shown_not_run(tmp_path: pathlib.Path) -> None:
    page = Page(write_report(fill(tmp_path)))
    assert "<script>alert('bees')</script>" in "".join(page.text)
    assert "script" not in {tag for tag, _ in page.tags} and "b" in {tag for tag, _ in page.tags}
    assert "<b>short</b>" in "".join(page.text)


def test_the_same_run_gives_the_same_page(tmp_path: pathlib.Path) -> None:
    first = write_report(fill(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_an_unfinished_run_has_a_page_too(tmp_path: pathlib.Path) -> None:
    fill(tmp_path)
    (tmp_path / "summary.json").unlink()
    lines = [json.dumps(record) + "\n" for record in records() if record["round"] < 3]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 17, "rou')
    sample = {"step": 8, "round": 1, "prompt": "P?", "response": "R & R", "score": 0.1}
    sample |= {"constraints": [{"id": TYPES[0], "kwargs": {}}], "verdicts": [True]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    text = " ".join(Page(write_report(tmp_path)).text)
    assert "not finished" in text and "R & R" in text and TYPES[0] in text


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\r"])
def test_line_marks_in_a_text_end_no_record(tmp_path: pathlib.Path, mark: str) -> None:
    sample = {"step": 8, "round": 1, "prompt": "P?", "response": f"one{mark}two", "score": 0.1}
    lines = [json.dumps(sample, ensure_ascii=False), json.dumps({**sample, "response": "last"})]
    (tmp_path / "samples.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    text = " ".join(Page(write_report(tmp_path)).text)
    assert "two" in text and "last" in text


@pytest.mark.parametrize("phase", ["rollout", "eval"])
def test_any_phase_may_be_missing(tmp_path: pathlib.Path, phase: str) -> None:
    fill(tmp_path)
    lines = [json.dumps(record) + "\n" for record in records() if record["phase"] != phase]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    Page(write_report(tmp_path))


def test_an_empty_workdir_has_a_page_and_none_has_an_error(tmp_path: pathlib.Path) -> None:
    assert "not finished" in write_report(tmp_path).read_text()
    with pytest.raises(FileNotFoundError, match="missing"):
        write_report(tmp_path / "missing")


def test_a_malformed_file_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "round": 0, "phase": "eval"}\nnot json\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        write_report(tmp_path)


def test_series_leaves_null_values_out() -> None:
    found = [
        {"round": 1, "phase": "policy", "kl/ref": 0.1},
        {"round": 2, "phase": "policy", "kl/ref": None},
        {"round": 3, "phase": "eval", "kl/ref": 0.3},
    ]
    rounds, values = plots.series(found, "kl/ref")
    np.testing.assert_array_equal(rounds, [1, 3])
    np.testing.assert_array_equal(values, [0.1, 0.3])
    assert plots.series(found, "kl/ref", "eval")[0].tolist() == [3]


def test_a_plot_shows_the_numbers_of_the_run() -> None:
    figure = plots.divergence(records())
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), 0.05 * np.arange(1, 11) / 10)
    stacked = plots.phase_times(records())
    assert stacked is not None
    tops = [patch.get_y() + patch.get_height() for patch in stacked.axes[0].patches]
    assert max(tops) == pytest.approx(22 + 6 + 3 + 9 + 24 + 0.8 + 40)
