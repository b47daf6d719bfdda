"""What a compiled program says about its cost: cycles of the TPU compiler, bytes on the wire.

XLA's own `cost_analysis` counts the body of every loop once, so a network of 28 scanned layers
reads 28 times too cheap. Here the text of the program is read instead: every loop counts as often
as it runs. The text is the TPU compiler's dump "after_codegen", whose instructions carry
`estimated_cycles`; programs for other devices carry none, and then only the wire is counted.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: opcode, shape of the result, and the line itself."""

    opcode: str
    shape: str
    line: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A program by the names of its computations; `entry` names the first."""

    computations: Mapping[str, list[Instruction]]
    entry: str


def read_program(text: str) -> Program:
    """Read the HLO text of a scheduled program.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(match[3], match[2], line))
    if not entry:
        raise ValueError(f"wanted the text of an HLO program, got {text[:80]!r}...")
    return Program(computations, entry)


def _named(line: str, key: str) -> list[str]:
    """Return the computations that an attribute such as `body=%name` names."""
    match = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", line)
    if match is None:
        return []
    return [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]


def trips(program: Program, instruction: Instruction) -> int:
    """Return how often the body of a `while` runs: what the compiler knows, else the bound that
    its condition compares with (the most, for a loop that may end before), else 1."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.line)
    if known:
        return int(known[1])
    bounds = [1]
    for name in _named(instruction.line, "condition"):
        for inner in program.computations.get(name, []):
            constant = re.search(r"= s32\[\].* constant\((\d+)\)", inner.line)
            bounds += [int(constant[1])] if constant else []
    return max(bounds)


def cycles(program: Program, computation: str = "") -> int:
    """Return the estimated cycles of one run of a computation (the whole program by default).

    Without communication, and without Pallas kernels, of which the compiler estimates nothing.
    """

    @functools.cache
    def total(name: str) -> int:
        result = 0
        for item in program.computations.get(name, []):
            match = _CYCLES.search(item.line)
            result += int(match[1]) if match else 0
            if item.opcode == "while":
                result += trips(program, item) * sum(map(total, _named(item.line, "body")))
            elif item.opcode == "conditional":
                branches = _named(item.line, "branch_computations") or [
                    *_named(item.line, "true_computation"),
                    *_named(item.line, "false_computation"),
                ]
                result += max(map(total, branches), default=0)
            elif item.opcode == "call":
                result += sum(map(total, _named(item.line, "to_apply")))
        return result

    return total(computation or program.entry)


def loop_cycles(program: Program, turns: int) -> int:
    """Return the estimated cycles of one turn of the loop of the entry that takes most of them,
    among those that run `turns` times; 0 where there is none."""
    loops = (x for x in program.computations[program.entry] if x.opcode == "while")
    per_turn = (
        sum(cycles(program, body) for body in _named(loop.line, "body"))
        for loop in loops
        if trips(program, loop) == turns
    )
    return max(per_turn, default=0)


def collectives(program: Program) -> Iterator[tuple[str, Instruction, int]]:
    """Yield (opcode, instruction, how often it runs) of what devices do together, once for each
    channel."""
    seen: set[str] = set()

    def visit(name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for item in program.computations.get(name, []):
            base = item.opcode.removesuffix("-start")
            if base in _COLLECTIVES:  # whose to_apply is the sum of two numbers
                channel = re.search(r"channel_id=(\d+)", item.line)
                if channel is None or channel[1] not in seen:
                    seen.update([channel[1]] if channel else [])
                    yield base, item, times
                continue
            inner = times * (trips(program, item) if item.opcode == "while" else 1)
            for key in ("body", "to_apply", "calls", "branch_computations"):
                for called in _named(item.line, key):
                    yield from visit(called, inner)

    return visit(program.entry, 1)


def wire_bytes(program: Program) -> dict[str, float]:
    """Return the bytes that one device sends in a run, by cause: "opcode dtype source operation".

    A ring is assumed: of n devices, an all-gather or a reduce-scatter sends (n - 1) / n of the
    whole, an all-reduce twice as much. A collective is counted once for each of its channels and
    as often as its loop runs.
    """
    causes: dict[str, float] = defaultdict(float)
    for opcode, item, times in collectives(program):
        causes[_cause(opcode, item)] += times * _sent(opcode, item)
    return dict(sorted(causes.items(), key=lambda pair: -pair[1]))


def _sizes(shape: str) -> list[tuple[str, int]]:
    """Return (dtype, bytes) of every array of a shape."""
    result = []
    for dtype, dims in _SHAPE.findall(shape):
        count = 1
        for size in filter(None, dims.split(",")):
            count *= int(size)
        result.append((dtype, count * (1 if dtype.startswith("f8") else _BYTES.get(dtype, 4))))
    return result


def _sent(opcode: str, item: Instruction) -> float:
    sizes = [size for _, size in _sizes(item.shape)]
    # An asynchronous start holds its operands beside its results: the largest array is the whole.
    started = item.opcode.endswith("-start")
    size = max(sizes, default=0) if started else sum(sizes)
    n = group_size(item.line)
    share = (n - 1) / n
    if opcode == "all-reduce":
        return 2 * size * share
    if opcode == "reduce-scatter":
        return size * share if started else size * (n - 1)
    return size if opcode == "collective-permute" else size * share


def group_size(line: str) -> int:
    """Return how many devices take part in each group of a collective (at least 1)."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        axes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", match[1]))
        size = 1
        for name in re.findall(r"'?([\w.]+)'?", match[2]):
            size *= int(axes.get(name, 1))
        return size
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    return 2


def _cause(opcode: str, item: Instruction) -> str:
    """Name a collective by what it moves and the operation that it was made for."""
    dtype = max(_sizes(item.shape), key=lambda pair: pair[1], default=("?", 0))[0]
    name = re.search(r'op_name="([^"]*)"', item.line)
    parts = re.sub(r"jit\([^)]*\)/?", "", name[1] if name else "").split("/")
    noise = {"while", "body", "closed_call", "checkpoint", "rematted_computation", ""}
    return " ".join([opcode, dtype, "/".join([p for p in parts if p not in noise][-4:]) or "?"])
