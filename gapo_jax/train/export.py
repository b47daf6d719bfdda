"""The trained network as others read it: a Hugging Face folder, and a PEFT folder of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapo_jax.methods import method_of
from gapo_jax.models import save_adapter, save_hf
from gapo_jax.records import Json, JsonObject
from gapo_jax.train.context import TrainContext
from gapo_jax.train.state import GAPOState
from gapo_jax.train.workdir import ADAPTER, EXPORT
from gapo_jax.types import Params


def exported_params(ctx: TrainContext, state: GAPOState) -> dict[str, Params]:
    """Return the parameters that `export` writes, whole in the first process: {"model": ...} and,
    of a run that trained adapters, {"lora": ...}."""
    if method_of(ctx.config).trains == "discriminator":
        params = {"model": state.discriminator.params}
    else:
        params = {"model": ctx.policy_params(state)}
        params |= {k: v for k, v in state.policy.params.items() if k == "lora"}
    return ctx.models.spec.place.host(params)


def export(ctx: TrainContext, params: Mapping[str, Params], summary: Mapping[str, object]) -> Path:
    """Write the trained model, the generator (adapters merged) or the discriminator, as an HF
    folder under the workdir; and adapters beside it as a PEFT folder. `params` are those of
    `exported_params`."""
    folder, models, method = ctx.workdir / EXPORT, ctx.models, ctx.config.method
    if method_of(ctx.config).trains == "discriminator":
        save_hf(
            models.discriminator,
            params["model"],
            folder,
            tokenizer=models.disc_tokenizer,
            method=method,
            base=ctx.config.model.discriminator,
        )
        return folder
    base = ctx.config.model.generator
    save_hf(
        models.decoder,
        params["model"],
        folder,
        tokenizer=models.tokenizer,
        method=method,
        base=base,
        metrics=card_metrics(summary),
    )
    if "lora" in params:
        adapters: Any = params["lora"]
        save_adapter(models.decoder, adapters, ctx.workdir / ADAPTER, base=base, method=method)
    return folder


def card_metrics(summary: Json) -> JsonObject:
    """Return what the model card of a run's generator says: the strict accuracies after training,
    with their intervals, of `summary.json`."""
    return {
        f"{name} {metric} (strict)": accuracies[f"{metric}_strict"]
        for name, accuracies in summary.get("after", {}).items()
        for metric in ("instruction", "prompt")
    }
