"""An exported folder on the hub: its card completed from the run, what would go, and the upload."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gapo_jax import config as configuration
from gapo_jax import io
from gapo_jax.evaluate.console import levels
from gapo_jax.evaluate.report import SETS
from gapo_jax.hub import HUB_ID
from gapo_jax.models.hf.model_card import plain
from gapo_jax.records import Json
from gapo_jax.train.restore import is_run
from gapo_jax.train.workdir import CONFIG, SUMMARY

_LOAD = {
    "generator": """from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")""",
    "discriminator": """from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained("{repo}", trust_remote_code=True)""",
    "adapter": """from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("{repo}")""",
}
_LIMITS = """- It was trained to obey constraints that rules verify. Whether its answers are true,
  useful or safe was neither trained nor measured; what its base gets wrong it may get wrong too.
- Figures hold for the constraint types and the kind of prompts that they were measured on."""


def check_repo(repo: str, dry_run: bool) -> None:
    """Raise ValueError where a push would fail after the export: no ORG/NAME, no token."""
    import huggingface_hub

    if not HUB_ID.fullmatch(repo):
        raise ValueError(f"--push-to-hub wants ORG/NAME, got {repo!r}")
    if not dry_run and huggingface_hub.get_token() is None:
        raise ValueError(
            f"--push-to-hub {repo} needs a token for the hub: `hf auth login`, or set HF_TOKEN; "
            "--dry-run shows what would go"
        )


def complete_card(
    folder: Path, src: str, repo: str, what: str, licence: str | None, step: int | None = None
) -> None:
    """Add to the README.md of an exported folder what the hub's readers ask for.

    Args:
        folder: the export.
        src: what it was made of; the workdir of a run gives data and held-out figures.
        repo: ORG/NAME, for the lines that load it.
        what: "generator", "discriminator" or "adapter".
        licence: its identifier on the hub, or None.
        step: the checkpoint that was asked for; the figures are of the last one.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        text = f"---\nlibrary_name: peft\n---\n\n{text}"
    if licence:
        text = text.replace("---\n", f"---\nlicense: {plain(licence)}\n", 1)
    workdir = Path(src)
    parts = [
        "## Licence",
        plain(licence) if licence else "Not stated here; that of the base holds for what it gave.",
        "## How to load it",
        f"```python\n{_LOAD[what].format(repo=repo)}\n```",
    ]
    if is_run(workdir):
        summary = io.read_json(workdir / SUMMARY) if (workdir / SUMMARY).is_file() else {}
        parts += ["## Data", _data(io.read_json(workdir / CONFIG), summary)]
        if "heldout" in summary and step is None:
            parts += ["## Held-out rows", _rows_table(summary["heldout"])]
        elif summary and what != "discriminator" and step is None:
            parts += ["## Held-out accuracy", _table(summary)]
    parts += ["## Limits", _LIMITS]
    io.write_text(path, text.rstrip() + "\n\n" + "\n\n".join(parts) + "\n")


def _data(record: Json, summary: Json) -> str:
    """Return what a run learned from, by its configuration and, with rows of its user's, counts."""
    config = configuration.from_json(record)
    source = (
        plain(config.data.source) if config.data.source else "its own text, sampled by gapo_jax"
    )
    if "rows" in summary:
        train, heldout = (summary["rows"][part] for part in ("train", "heldout"))
        rows = f"- rows: {train} trained on, {heldout} held out"
        return f"- source: {source}\n{rows}\n- seed: {config.seed}"
    types = ", ".join(plain(name) for name in config.data.types)
    return f"- source: {source}\n- constraint types: {types}\n- seed: {config.seed}"


def _table(summary: Json) -> str:
    """Return the strict accuracies before and after, with 95% intervals, in percent."""
    lines = ["| prompts | measure | before | after | change |", "|---|---|---|---|---|"]
    for name, before in summary["before"].items():
        for measure, label in levels(name).items():
            sides = before, summary["after"][name], summary["difference"][name]
            cells = [
                "{:.1f} [{:.1f}, {:.1f}]".format(
                    *(100 * side[measure][key] for key in ("value", "low", "high"))
                )
                for side in sides
            ]
            count = f"{SETS.get(name, plain(name))} ({before['prompts']})"
            lines.append(f"| {count} | {label} | " + " | ".join(cells) + " |")
    lines.append(
        "\nPercent, decided by rules, strictly; in brackets 95% intervals of a bootstrap over "
        "prompts (their number behind the set), the change paired by prompt."
    )
    return "\n".join(lines)


def _rows_table(heldout: Mapping[str, Mapping[str, float]]) -> str:
    """Return what the held-out rows said before and after training."""
    lines = ["| measure | before | after |", "|---|---|---|"]
    for name, value in heldout["before"].items():
        lines.append(f"| {name} | {value:.4g} | {heldout['after'][name]:.4g} |")
    return "\n".join(lines)


def push(folder: Path, repo: str, *, private: bool, dry_run: bool) -> None:
    """Upload a folder, or print what would go.

    Raises:
        ValueError: the hub refuses it; the message has its answer.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    kind = "private" if private else "public"
    print(f"{'would push' if dry_run else 'pushing'} to {repo} ({kind}), {size / 1e6:.1f} MB:")
    for path in files:
        print(f"  {path.stat().st_size:>12,}  {path.relative_to(folder)}")
    if dry_run:
        print(f"\nREADME.md:\n\n{(folder / 'README.md').read_text(encoding='utf-8')}")
        return
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of gapo_jax")
    except HfHubHTTPError as error:
        raise ValueError(
            f"the hub refused {repo}: {' '.join(str(error).split())}; the export is in {folder}"
        ) from None
    print(url)
