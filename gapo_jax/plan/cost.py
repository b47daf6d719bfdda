"""What a compiled program says about its cost: products, cycles of the TPU compiler, the wire.

XLA's own `cost_analysis` counts the body of every loop once, so a network of 28 scanned layers
reads 28 times too cheap. Here the text of the program is read instead: every loop counts as often
as it runs. The text is the TPU compiler's dump "after_codegen", whose instructions carry
`estimated_cycles`; in programs for other devices, which carry none, products are counted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) =")
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
    its condition compares with, itself or in a fusion (the most, for a loop that may end before),
    else 1."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.line)
    if known:
        return int(known[1])
    bounds, names = [1], _named(instruction.line, "condition")
    while names:
        for inner in program.computations.get(names.pop(), []):
            constant = re.search(r"= s32\[\].* constant\((\d+)\)", inner.line)
            bounds += [int(constant[1])] if constant else []
            names += _named(inner.line, "calls")
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


def executed_flops(program: Program) -> float:
    """Return the operations of all products of matrices in a run, two for each multiplication: of
    `dot`, also inside of fusions, and of the calls of cuBLAS. Without attention kernels."""

    @functools.cache
    def total(name: str) -> float:
        lines = program.computations.get(name, [])
        shapes = {_NAME.search(item.line)[1]: item.shape for item in lines}  # pyright: ignore
        result = 0.0
        for item in lines:
            if item.opcode == "dot" or '"__cublas$' in item.line:
                result += _product_flops(item, shapes)
                continue
            times = trips(program, item) if item.opcode == "while" else 1
            for key in ("body", "calls", "to_apply"):
                result += times * sum(map(total, _named(item.line, key)))
            branches = _named(item.line, "branch_computations")
            result += max(map(total, branches), default=0.0)
        return result

    return total(program.entry)


def _product_flops(item: Instruction, shapes: Mapping[str, str]) -> float:
    """Return the operations of one product, given the shapes of the names in its computation."""
    operand = re.search(rf" {re.escape(item.opcode)}\(%?([\w.\-]+)", item.line)
    keys = r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)[}\]]'
    contracted = re.search(keys, item.line)
    if operand is None or contracted is None or operand[1] not in shapes:
        return 0.0
    (_, result), *_ = _SHAPE.findall(item.shape)
    (_, left), *_ = _SHAPE.findall(shapes[operand[1]])
    sizes = [int(size) for size in left.split(",")]
    inner = math.prod(
        sizes[int(axis)] for axis in contracted[1].replace('"', "").split(",") if axis
    )
    return 2.0 * inner * math.prod(int(size) for size in result.split(",") if size)


def cudnn_workspace(program: Program, more: bool) -> int:
    """Return the most bytes that a backward pass of cuDNN's attention takes beside its arguments,
    which no compiler knows: B * T * N * (4 + 4H), 4H more where keys have fewer heads and 4H more
    on an A100 (`more`)."""
    most = 0
    for item in (item for lines in program.computations.values() for item in lines):
        if not re.search(r'custom_call_target="__cudnn\$fmha\w*Backward', item.line):
            continue
        (_, query), (_, key), *_ = _SHAPE.findall(item.shape)
        (batch, heads, length, width), (_, key_heads, *_) = (
            [int(size) for size in dims.split(",")] for dims in (query, key)
        )
        each = 4 + 4 * width * (1 + (key_heads < heads) + more)
        most = max(most, batch * length * heads * each)
    return most


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
    # Several collectives can be combined in one, with a tuple of results. An asynchronous start may
    # hold its operands before its results, and its own counters behind them.
    operands = item.line.partition(f" {item.opcode}(")[2].partition(")")[0]
    count = max(1, operands.count("%"))
    if item.opcode.endswith("-start"):
        sizes = sizes[count : 2 * count] if len(sizes) >= 2 * count else sizes[:count]
    size, n = sum(sizes), group_size(item.line)
    share = (n - 1) / n
    if opcode == "all-reduce":
        return 2 * size * share
    if opcode == "reduce-scatter":
        return size * (n - 1)
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
