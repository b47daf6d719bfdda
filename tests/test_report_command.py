"""The page of runs: written, served while a run goes on, several runs laid over each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

from gapo_jax import config as configuration
from gapo_jax.cli import report
from gapo_jax.config import Config


def add_round(workdir, number, reward):
    record = {"step": number, "round": number, "phase": "rollout", "time_s": 1.0}
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record | {"reward/mean": reward, "kl/ref": 0.01 * number}) + "\n")


@pytest.fixture
def runs(tmp_path):
    """Two runs that go on, of configurations that differ in one value."""
    folders = [tmp_path / name for name in ("<first>", "second")]
    for folder, coefficient in zip(folders, (0.05, 0.1)):
        folder.mkdir()
        config = Config(name=folder.name)
        config.ppo.kl_coef = coefficient
        (folder / "config.json").write_text(json.dumps(configuration.to_json(config)))
        for number in (1, 2, 3):
            add_round(folder, number, coefficient * number)
    return folders


@pytest.fixture
def served():
    """Serves the page of workdirs and returns its address."""
    servers = []

    def start(workdirs):
        made = report.server(workdirs, every_s=0.2)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        servers.append((made, thread))
        return f"http://127.0.0.1:{made.server_port}/"

    yield start
    for made, thread in servers:
        made.shutdown()
        thread.join()
        made.server_close()


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def test_a_page_says_when_its_run_has_written_something(runs, served) -> None:
    url = served(runs[:1])
    page = get(url)
    (stamp,) = re.findall(r'await answer.text\(\) !== "([\d-]+)"', page)
    assert get(f"{url}stamp") == stamp and "<b>3</b>" in page
    add_round(runs[0], 4, 0.5)
    assert get(f"{url}stamp") != stamp
    assert "<b>4</b>" in get(url) and not (runs[0] / "report.html").exists()
    with pytest.raises(urllib.error.HTTPError):
        get(f"{url}config.json")


def test_runs_lie_over_each_other_and_say_how_they_differ(runs, tmp_path, capsys) -> None:
    out = tmp_path / "both.html"
    assert report.main([*map(str, runs), "--out", str(out)]) == 0
    page = out.read_text()
    assert "ppo.kl_coef: 0.05 -&gt; 0.1" in page and "&lt;first&gt;" in page
    assert "<first>" not in page
    assert page.count("data:image/svg+xml") == 2  # the metrics that they have: reward and KL
    assert report.main([str(tmp_path / "nothing"), str(runs[0])]) == 1
    assert "found no folder" in capsys.readouterr().err


def test_one_run_is_written_into_its_workdir(runs, capsys) -> None:
    assert report.main([str(runs[1])]) == 0
    assert capsys.readouterr().out.strip() == str(runs[1] / "report.html")
    page = (runs[1] / "report.html").read_text()
    assert "not finished" in page and "prefers-color-scheme: dark" in page


def linear_rgb(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return linear


# Machado, Oliveira and Fernandes (2009), severity 1: what the colour-blind see of linear RGB.
BLINDNESS = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
               (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
               (-0.011820, 0.042940, 0.968881)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_colours_of_one_plot_stay_apart_for_the_colour_blind(kind) -> None:
    from gapo_jax.evaluate import plots

    def seen(colour):
        linear = linear_rgb(colour)
        return [sum(a * b for a, b in zip(row, linear)) for row in BLINDNESS[kind]]

    together = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.RED, plots.GREY)
    pairs = [(a, b) for i, a in enumerate(together) for b in together[i + 1 :]]
    for one, other in pairs:
        distance = sum((x - y) ** 2 for x, y in zip(seen(one), seen(other))) ** 0.5
        assert distance > 0.12, (one, other, distance)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_scrolling_sideways(runs, tmp_path, width) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium or Chrome is installed")
    out = tmp_path / "page.html"
    report.main([str(runs[1]), "--out", str(out)])
    probe = "<script>document.title='overflow '+(document.documentElement.scrollWidth-innerWidth)"
    out.write_text(out.read_text().replace("</body>", f"{probe}</script></body>"))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", out.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (overflow,) = re.findall(r"<title>overflow (-?\d+)</title>", done.stdout)
    assert int(overflow) <= 0
