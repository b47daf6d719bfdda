"""Compiled programs: how steps are compiled for a device, kept on disk and counted.

What is tuned for one kind of device stands here, not in the steps and networks themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax

from gapo_jax.hub import cache_dir
from gapo_jax.sharding import ONE_DEVICE, Placement

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_HIT_EVENT = "/jax/compilation_cache/cache_hits"
_MAX_BYTES = 2 * 2**30
# What steps are compiled with. On CPU, XLA hands dense products to a library that packs the weights
# anew at every call, which pays where one program runs them many times (sampling) and costs a step
# an eighth of its time (`scripts/benchmark.py policy_update`: 6.4 s without, 7.3 s with). Of that
# library a step keeps the sums and maxima, which XLA's own code takes two to four times as long for
# (a softmax 3 ms instead of 12; `score --batch 8` 3.0 s instead of 3.5). On a v5p
# ("TPU v5") it breaks each gather of weights and its product into many small ones, which by the
# compiler's own estimate takes longer (scripts/plan.py).
_OPTIONS = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
    "TPU v5": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


def machine_id() -> str:
    """Return a short name of this machine's instruction set: programs for the CPU are not
    portable between processors, and a home folder may be shared by several."""
    features = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def keep_compiled_programs() -> None:
    """Keep compiled programs in the cache folder, so that a second start compiles nothing.

    `JAX_COMPILATION_CACHE_DIR` names another folder, which is used as it is; set but empty, it
    turns this off. Of our own folder at most 2 GiB are kept from one start to the next.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        folder = str(cache_dir() / "compiled" / machine_id())
        drop_oldest(Path(folder), _MAX_BYTES)
    if not folder:
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    # Many small programs cost more together than the few large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def drop_oldest(folder: Path, max_bytes: int) -> None:
    """Delete the files that were written first until at most `max_bytes` are left.

    JAX can hold a limit itself (`jax_compilation_cache_max_size`), but then reads the whole folder
    at every program that it stores: a tenth of a second for a thousand programs.
    """
    files = [(path, path.stat()) for path in folder.glob("*")]
    total = sum(facts.st_size for _, facts in files)
    for path, facts in sorted(files, key=lambda item: item[1].st_mtime):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= facts.st_size


@functools.cache
def step_options(kind: str) -> dict[str, str] | None:
    """Return the compiler's options for training and scoring steps on devices of a kind, None for
    its own choice.

    They are experimental, so a compiler that does not know them keeps its defaults.
    """
    options = _OPTIONS.get(kind)
    if options is None or jax.devices()[0].device_kind != kind:  # described: asked when it compiles
        return options
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return None
    return options


def jit_step(
    step: Callable[..., Any],
    donate: int | None = None,
    place: Placement = ONE_DEVICE,
    keep: Literal["rows", "whole", "network"] = "whole",
    rows: Sequence[int] = (),
    whole: Sequence[int] = (),
    embeddings_by_row: bool = False,
) -> Any:
    """Compile a training or scoring step.

    Args:
        step: pure, called by position.
        donate: the argument that gives its memory to the result.
        place: the devices; `keep`, `rows` and `whole` say what lies where (`jit_placed`).
        embeddings_by_row: hold what an embedding gives to the split of the batch's rows.
    """
    donated = () if donate is None else (donate,)
    options = step_options(place.device_kind)
    if embeddings_by_row and place.spread:
        step = split_embeddings_by_row(step, place)
    return jit_placed(step, place, keep, rows, whole, donate=donated, compiler_options=options)


def jit_placed(
    function: Callable[..., Any],
    place: Placement,
    keep: Literal["rows", "whole", "network"] = "whole",
    rows: Sequence[int] = (),
    whole: Sequence[int] = (),
    donate: Sequence[int] = (),
    compiler_options: dict[str, str] | None = None,
) -> Any:
    """Return `jax.jit(function)`, placed on the devices of `place`.

    Args:
        function: pure, called by position; networks that it takes lie on the mesh already.
        place: where; on one device the result is what `jax.jit` returns.
        keep: where its results lie: "rows", "whole", or "network" for (network, metrics), of which
            the network keeps its places. Left to XLA, a network could come back in another layout
            than it had, and the next step would be compiled anew.
        rows: which arguments are batches, placed on their way in.
        whole: which arguments every device takes all of; a step on another layout of the devices
            than the run's (`Placement.for_rows`) cannot take them as they lie.
        donate: which arguments give their memory to the result.
        compiler_options: as for `jax.jit`.
    """
    compiled = functools.partial(
        jax.jit, donate_argnums=tuple(donate), compiler_options=compiler_options
    )
    if not place.spread:
        return compiled(function)

    def kept(*inputs: Any) -> Any:
        results = function(*inputs)
        if keep == "network":
            network, metrics = results
            return place.keep(network, "params"), place.keep(metrics, "whole")
        return place.keep(results, keep)

    kept.__name__ = getattr(getattr(function, "func", function), "__name__", "step")
    return PlacedStep(place, compiled(kept), tuple(rows), tuple(whole))


@dataclasses.dataclass(frozen=True)
class PlacedStep:
    """A compiled step of several devices: places the batches among its arguments and calls it."""

    place: Placement
    jitted: Any
    rows: tuple[int, ...]
    whole: tuple[int, ...] = ()

    def __call__(self, *inputs: Any) -> Any:
        """Call the step."""
        with self._context():
            return self.jitted(*self._placed(inputs))

    def lower(self, *inputs: Any) -> jax.stages.Lowered:
        """Lower the step for arguments, or for shapes that carry their shardings."""
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs)):
            inputs = tuple(self._placed(inputs))
        with self._context():
            return self.jitted.lower(*inputs)

    def shapes(self, *inputs: Any) -> Any:
        """Return the shapes of what the step gives for such arguments."""
        with self._context():
            return jax.eval_shape(self.jitted, *inputs)

    def _placed(self, inputs: Sequence[Any]) -> list[Any]:
        placed = list(inputs)
        for i in self.rows:
            placed[i] = self.place.rows(inputs[i])
        for i in self.whole:
            placed[i] = self.place.whole(inputs[i])
        return placed

    def _context(self) -> AbstractContextManager[object]:
        # Tells kernels that XLA cannot split which mesh they are split over.
        assert self.place.mesh is not None
        return jax.set_mesh(self.place.mesh)


def split_embeddings_by_row(step: Callable[..., Any], place: Placement) -> Callable[..., Any]:
    """Return `step` with the result of every embedding held to the split of the batch's rows.

    The table is split along D over the axis that should split the rows from there on; left alone,
    XLA would go on with split features and sum them over the devices after every product.
    """

    def constrain(call: Callable[..., Any], inputs: Any, options: Any, context: Any) -> Any:
        result = call(*inputs, **options)
        embeds = isinstance(context.module, nn.Embed) and context.method_name == "__call__"
        return place.keep_rows(result) if embeds else result

    def constrained(*inputs: Any) -> Any:
        with nn.intercept_methods(constrain):
            return step(*inputs)

    return functools.update_wrapper(constrained, getattr(step, "func", step))


def decoder_layers_to_unroll(layers: int, width: int, platform: str) -> int:
    """Return how many of the `layers` trained ones, `width` wide, to compile side by side.

    A loop over layers copies each layer's weights and what its backward pass keeps: on a CPU 6 to
    10 % of a policy update at SmolLM2's size, for a third of a second of compiling a layer. Small
    layers are not worth that, and on an accelerator the copies overlap with the arithmetic.
    """
    return layers if platform == "cpu" and width >= 256 else 1


def encoder_layers_to_unroll(layers: int, platform: str) -> int:
    """Return how many layers of an encoder to compile side by side.

    On a CPU the copies of a loop (see `decoder_layers_to_unroll`) cost a third of the
    discriminator's step, and the few layers of an encoder compile quickly without it.
    """
    return layers if platform == "cpu" else 1


class CompileCounter:
    """Counts the programs that XLA compiles from its creation on; `close` ends the counting.

    A program that comes from the cache on disk was not compiled: it is counted in `loaded`, and
    `seconds` does not hold the reading of it.

    >>> with CompileCounter() as counter:
    ...     step(state, batch)
    >>> assert counter.count == 0  # nothing was compiled again
    """

    def __init__(self) -> None:
        self.count = 0
        self.loaded = 0
        self.seconds = 0.0
        self._hits = 0
        self._open = True
        jax.monitoring.register_event_listener(self._listen_hits)
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen_hits(self, event: str, **kwargs: str | int) -> None:
        self._hits += event == _HIT_EVENT

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event != _COMPILE_EVENT:
            return
        if self._hits:
            # The hit is reported inside the span that this event ends.
            self._hits -= 1
            self.loaded += 1
            return
        self.count += 1
        self.seconds += duration_secs

    def close(self) -> None:
        """Stop counting; `count` keeps its value."""
        if self._open:
            self._open = False
            jax.monitoring.unregister_event_listener(self._listen_hits)
            jax.monitoring.unregister_event_duration_listener(self._listen)

    def __enter__(self) -> CompileCounter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
