"""Exports on the hub: a local server that speaks its interface, the card, and the dry run."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest
from by_path import ROOT

from gapo_jax import config as configuration
from gapo_jax import io, models
from gapo_jax.cli import convert, push
from gapo_jax.train.toy_models import TINY, TOY_MODELS

REPO = "someone/obedient"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of the tiny network."""
    shape, tokenizer = TOY_MODELS[TINY].generator()
    decoder, ones = models.Decoder(shape), jnp.ones((1, 2), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(0), ones, ones)["params"]
    path = tmp_path_factory.mktemp("models") / "tiny"
    return models.save_hf(decoder, params, path, tokenizer)


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload meets: create, preupload, LFS, commit."""

    def log_message(self, *arguments):
        pass

    def answer(self, record, status=200):
        body = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        self.answer({"sha": "0" * 40, "siblings": [], "id": REPO})

    def do_PUT(self):
        data = self.body()
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def do_POST(self):
        data, server = self.body(), self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        url = f"http://127.0.0.1:{server.server_port}"
        if server.refuse:
            self.answer({"error": "You are not a member of someone"}, 403)
        elif self.path == "/api/repos/create":
            server.created = json.loads(data)
            self.answer({"url": f"{url}/{REPO}"})
        elif "/preupload/" in self.path:
            names = [item["path"] for item in json.loads(data)["files"]]
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": n, "uploadMode": modes[n.endswith("tensors")], "shouldIgnore": False}
                for n in names
            ]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{url}/blob"}}}
                for item in json.loads(data)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in data.decode().splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    server.files[value["path"]] = base64.b64decode(value["content"])
                if item["key"] == "lfsFile":
                    server.files[value["path"]] = server.blobs[value["oid"]]
            oid = "1" * 40
            self.answer(
                {"commitUrl": f"{url}/{REPO}/commit/{oid}", "commitOid": oid, "success": True}
            )
        else:
            self.answer({})


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.blobs, server.files, server.asked = {}, {}, []
    server.created, server.refuse = {}, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def export(hub, *arguments):
    """Run the command in a process of its own: the client reads HF_ENDPOINT when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "convert.py"), "export", *map(str, arguments)]
    return subprocess.run(
        [*command, "--no-compare"], env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_hub_gets_the_folder_byte_for_byte(folder, hub, tmp_path) -> None:
    done = export(
        hub, folder, tmp_path / "out", "--push-to-hub", REPO, "--private", "--license", "apache-2.0"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert hub.files == written
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(written)
    assert hub.created["name"] == "obedient" and hub.created["organization"] == "someone"
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert all(token == "Bearer hf_test" for path, token in hub.asked if "/api/" in path)
    assert f"/{REPO}" in done.stdout.splitlines()[-1]


def test_a_refusal_of_the_hub_is_one_line(folder, hub, tmp_path) -> None:
    hub.refuse = True
    done = export(hub, folder, tmp_path / "out", "--push-to-hub", REPO)
    assert done.returncode == 1 and not hub.files
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert f"the hub refused {REPO}" in line and str(tmp_path / "out") in line


def test_a_dry_run_shows_what_would_go_and_asks_nobody(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    arguments = ["--no-compare", "--push-to-hub", REPO, "--dry-run"]
    assert convert.main(["export", str(folder), str(tmp_path / "out"), *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"would push to {REPO} (public)" in shown
    assert all(path.name in shown for path in (tmp_path / "out").iterdir())
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}")' in shown


@pytest.mark.parametrize(
    ("repo", "message"), [("obedient", "wants ORG/NAME"), (REPO, "hf auth login")]
)
def test_what_cannot_be_pushed_is_refused_before_the_export(
    folder, tmp_path, capsys, monkeypatch, repo, message
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert convert.main(["export", str(folder), str(tmp_path / "out"), "--push-to-hub", repo]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_card_of_a_run_has_data_licence_figures_and_limits(tmp_path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    config = configuration.Config()
    config.data.source, config.data.types = "mined|by`me", ("no_comma",)
    io.write_json(run / "config.json", configuration.to_json(config))
    (run / "metrics.jsonl").touch()
    cell = {"value": 0.25, "low": 0.125, "high": 0.5}
    measures = dict.fromkeys(("instruction_strict", "prompt_strict"), cell)
    side = {"heldout_topics": measures | {"prompts": 96}}
    io.write_json(run / "summary.json", {"before": side, "after": side, "difference": side})
    for what in ("generator", "adapter", "discriminator"):
        io.write_text(out / "README.md", "# A model\n" if what == "adapter" else "---\nx: y\n---\n")
        push.complete_card(out, str(run), REPO, what, "mit")
        card = (out / "README.md").read_text()
        assert card.startswith("---\nlicense: mit\n") and "## Limits" in card
        assert r"source: mined\|by\`me" in card and "no_comma" in card
        row = "| held-out topics (96) | per prompt | " + " | ".join(3 * ["25.0 [12.5, 50.0]"])
        assert (row in card) == (what != "discriminator")  # it writes no text
    push.complete_card(out, str(run), REPO, "generator", None, step=1)
    assert "Not stated here" in (out / "README.md").read_text()


def test_the_card_of_a_run_on_rows_has_their_numbers_and_measures(tmp_path) -> None:
    config = configuration.Config()
    config.data.source = "mine.jsonl"
    io.write_json(tmp_path / "config.json", configuration.to_json(config))
    (tmp_path / "metrics.jsonl").touch()
    heldout = {"before": {"nll_loss": 2.5}, "after": {"nll_loss": 1.25}}
    summary = {"rows": {"train": 950, "heldout": 50}, "heldout": heldout}
    io.write_json(tmp_path / "summary.json", summary)
    io.write_text(tmp_path / "README.md", "---\nx: y\n---\n")
    push.complete_card(tmp_path, str(tmp_path), REPO, "generator", "mit")
    card = (tmp_path / "README.md").read_text()
    assert "950 trained on, 50 held out" in card and "constraint types: " not in card
    assert "| nll_loss | 2.5 | 1.25 |" in card
