"""Show runs while they go on, one alone or several over each other, in a browser.

    gapo-jax report WORKDIR [WORKDIR ...] [--serve [--port 8000]] [--out FILE]

Of one workdir it writes report.html there, of several one page that compares them (runs.html, or
--out). --serve shows the page on this machine alone (127.0.0.1) instead and makes it anew whenever
a run has written something; nothing is written then. It never takes an accelerator from a run.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before jax is imported: the devices belong to the run that is watched.
os.environ["JAX_PLATFORMS"] = "cpu"

from gapo_jax import io  # noqa: E402
from gapo_jax.cli import program, summary  # noqa: E402
from gapo_jax.evaluate.overlay import render_overlay  # noqa: E402
from gapo_jax.evaluate.report import render_report  # noqa: E402

_FILES = ("metrics.jsonl", "samples.jsonl", "summary.json", "config.json")
# Loads the page again when its runs have written something, at the place where the reader is.
_RELOAD = """<script>
setInterval(async () => {{
  const answer = await fetch("/stamp").catch(() => null);
  if (answer && answer.ok && await answer.text() !== "{stamp}") location.reload();
}}, {milliseconds});
</script>
</body>"""


def render(workdirs: Sequence[Path]) -> str:
    """Return the page of one run, or of several.

    Raises:
        FileNotFoundError, ValueError: as `render_report`.
    """
    if len(workdirs) == 1:
        return render_report(workdirs[0], devices=False)
    return render_overlay(workdirs)


def stamp(workdirs: Sequence[Path]) -> str:
    """Return a text that changes whenever one of the runs writes something."""
    paths = [workdir / name for workdir in workdirs for name in _FILES]
    return "-".join(str(path.stat().st_mtime_ns) for path in paths if path.exists())


class _Page(http.server.BaseHTTPRequestHandler):
    """Answers with the page of the runs and with their stamp."""

    def __init__(self, *arguments, workdirs: Sequence[Path], every_s: float):
        self.workdirs, self.every_s = workdirs, every_s
        super().__init__(*arguments)

    def do_GET(self) -> None:
        status, kind = 200, "text/plain; charset=utf-8"
        try:
            text = stamp(self.workdirs)
            if self.path == "/":
                kind = "text/html; charset=utf-8"
                script = _RELOAD.format(stamp=text, milliseconds=int(1000 * self.every_s))
                text = render(self.workdirs).replace("</body>", script)
            elif self.path != "/stamp":
                status, text = 404, "not here"
        except (OSError, ValueError) as error:
            status, text = 500, f"error: {error}"
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing of requests."""


def server(
    workdirs: Sequence[Path], port: int = 0, every_s: float = 5.0
) -> http.server.ThreadingHTTPServer:
    """Return a server of the page on 127.0.0.1; port 0 takes a free one."""
    handler = functools.partial(_Page, workdirs=list(workdirs), every_s=every_s)
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or serve the page; return the exit status."""
    parser = argparse.ArgumentParser(program("report"), description=summary(__doc__))
    parser.add_argument("workdir", type=Path, nargs="+", help="of a run, finished or not")
    parser.add_argument("--serve", action="store_true", help="on 127.0.0.1, fresh all the time")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--out", type=Path, help="where to write the page")
    args = parser.parse_args(argv)
    try:
        page = render(args.workdir)
        if not args.serve:
            alone = len(args.workdir) == 1
            path = args.out or (args.workdir[0] / "report.html" if alone else Path("runs.html"))
            io.write_text(path, page)
            print(path)
            return 0
        with server(args.workdir, args.port) as page_server:
            print(f"http://127.0.0.1:{page_server.server_port}/  (Ctrl-C ends it)", flush=True)
            page_server.serve_forever()
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
