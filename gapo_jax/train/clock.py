"""How long each phase of a run took, and how much memory the process has held at most."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import jax
from tqdm import tqdm


class PhaseClock:
    """Adds up wall-clock seconds by phase name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.last: dict[str, float] = {}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count seconds that an earlier part of the run has spent."""
        for phase, spent in seconds.items():
            self.seconds[phase] += spent

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block and count it to `phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.last[phase] = time.perf_counter() - start
            self.seconds[phase] += self.last[phase]


@contextlib.contextmanager
def counter(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """Show how far a long phase is: a bar with the time left on a terminal, else one line at the
    end. Yields a function that is told how many of `total` rows are done."""
    start = time.perf_counter()
    terminal = sys.stderr.isatty()
    with tqdm(total=total, desc=name, disable=not terminal, leave=False) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        yield advance
    if total and jax.process_index() == 0:
        print(f"{name}: {total} responses in {time.perf_counter() - start:.1f} s", flush=True)


def peak_memory_gb() -> float:
    """Return the peak memory of the device if it reports one, else of this process, in GB."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
