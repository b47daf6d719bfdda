"""Examples of every built-in type: (arguments, a text that follows, a text that violates)."""

import json
from pathlib import Path

from gapo_jax import constraints

IFBENCH: dict[str, list[tuple[dict, str, str]]] = {}
for _line in (Path(__file__).parent / "ifbench_cases.jsonl").read_text("utf-8").splitlines():
    _case = json.loads(_line)
    IFBENCH.setdefault(_case["id"], []).append(
        (_case["kwargs"], _case["follows"], _case["violates"])
    )


def probes_of(type_id: str) -> list[tuple[dict, str, str]]:
    """Return the examples of a type; those of IFBench are in a file, as it makes no prompts."""
    if type_id in IFBENCH:
        return IFBENCH[type_id]
    return [(dict(kwargs), good, bad) for kwargs, good, bad in constraints.get(type_id).probes]
