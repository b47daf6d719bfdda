"""Building blocks of the configuration: the base of all sections, optimisers, LoRA."""

# No postponed annotations: the flags of nested sections read the types of the fields.

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adafactor")
POSITIVE = (1e-9, math.inf)
_BELOW_1 = (0, 1 - 1e-9)
OPTIM_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "final_fraction": (0, 1),
    "b1": _BELOW_1,
    "b2": _BELOW_1,
    "eps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "clip_norm": POSITIVE,
}


class Section:
    """Base of all sections: refuses unknown fields at once, and any change once final."""

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_final"):
            raise dataclasses.FrozenInstanceError(f"config is final: cannot set {name!r}")
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        if name not in names:
            raise AttributeError(
                f"{type(self).__name__} has no field {name!r}{nearest(name, names)}"
            )
        super().__setattr__(name, value)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the end of an error message: the nearest valid name, or all of them."""
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {list(names)}"


@dataclasses.dataclass
class OptimConfig(Section):
    """Optimiser: warm-up, then constant, linear or cosine decay to `final_fraction` of the peak.

    `optimizer` is `adamw`, or `adafactor` (arXiv 1804.04235): factored second moments and no first
    ones, so its state is a small part of the parameters' size; `b1`, `b2` and `eps` are AdamW's.
    Weight decay is decoupled in both and scaled by the learning rate.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: str = "constant"
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclasses.dataclass
class LoraConfig(Section):
    """Adapters of low rank instead of trained matrices (LoRA, arXiv 2106.09685); rank 0 is off.

    The generator's own weights then stand still and serve policy and reference alike. `targets` are
    names of projections (`q`, `k`, `v`, `o`, `gate`, `up`, `down`) or regular expressions over
    parameter paths (`layers/mlp/.*`), in the layers that `model.trainable_layers` leaves. The
    update is scaled by alpha / rank. Learning rates are about ten times those of full training.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = dataclasses.field(
        default_factory=lambda: ("q", "k", "v", "o", "gate", "up", "down")
    )


def check_trained_parts(config: Any) -> None:
    """Check `config.lora` and `config.model.freeze` as far as no weights are needed.

    Raises:
        ValueError: names the key, what it holds and what would work.
    """
    lora, model = config.lora, config.model
    expressions = [("model.freeze", model.freeze), *(("lora.targets", t) for t in lora.targets)]
    for key, expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(
                f"config.{key} must be a regular expression, got {expression!r} ({error})"
            ) from error
    if not lora.rank:
        return
    if not lora.targets:
        raise ValueError("config.lora.targets is empty; name at least one projection, such as q")
    for key in ("freeze", "train_embeddings"):
        if getattr(model, key):
            raise ValueError(
                f"config.lora.rank={lora.rank} trains adapters and nothing else, so "
                f"config.model.{key}={getattr(model, key)!r} has no meaning; choose what is "
                "adapted by config.lora.targets, or set config.lora.rank=0"
            )
