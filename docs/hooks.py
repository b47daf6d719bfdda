"""Make pages of the repository's files that the documentation links to.

The pages link to source files as `../gapo_jax/...`, which works in a checkout and on a code host.
The site has no such folder beside it, so every linked file becomes a page of its own under
`source/`, and CONTRIBUTING.md becomes `contributing.md`. The same links then work in all places.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)(#[^)\s]+)?(?=\))")
_CONTRIBUTING = "CONTRIBUTING.md"


def contributing() -> str:
    """Return CONTRIBUTING.md with its links written as those of a page in docs/."""
    text = (ROOT / _CONTRIBUTING).read_text(encoding="utf-8")
    text = re.sub(r"(?<=\]\()(?!https?:|#|\.\./)([^)\s]+)(?=\))", r"../\1", text)
    return text.replace("](../docs/", "](")


def source_page(path: str) -> str:
    """Return a page with the contents of a file, or the names in a folder."""
    target = ROOT / path
    if target.is_dir():
        body = "\n".join(
            sorted(p.name for p in target.iterdir() if not p.name.startswith(("_", ".")))
        )
        kind = "text"
    else:
        body = target.read_text(encoding="utf-8")
        kind = {".py": "python", ".sh": "bash", ".yaml": "yaml"}.get(target.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n`````{kind}\n{body}\n`````\n"


def place_of(path: str) -> str:
    """Return the page that shows a file or folder of the repository."""
    path = path.rstrip("/")
    return "contributing.md" if path == _CONTRIBUTING else f"source/{path}.md"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file of the repository that some page links to."""
    texts = [file.content_string for file in files.documentation_pages()] + [contributing()]
    linked = {match[1] for text in texts for match in _LINK.finditer(text)}
    for path in sorted(linked - {_CONTRIBUTING}):
        if (
            ROOT / path
        ).exists():  # what does not exist stays a broken link, which --strict reports
            files.append(File.generated(config, place_of(path), content=source_page(path)))
    files.append(File.generated(config, "contributing.md", content=contributing()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links out of docs/ to those pages."""
    if page.file.src_uri.startswith("source/"):
        return markdown

    def within(match: re.Match[str]) -> str:
        place = place_of(match[1])
        return place + (match[2] or "") if place in files.src_uris else match[0]

    return _LINK.sub(within, markdown)
