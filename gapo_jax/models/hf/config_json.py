"""Read the `config.json` of a folder: one error that names the file, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

from gapo_jax.models.hf.architecture import Architecture, Config, Json
from gapo_jax.models.hf.config_values import check_sizes
from gapo_jax.models.hf.files import read_json
from gapo_jax.models.hf.parameter_map import ARCHITECTURES, architecture


def read_config(folder: Path, kind: str | None = None) -> tuple[Architecture, Config, Json]:
    """Return the architecture, the config and the contents of `config.json` of a folder.

    Args:
        folder: with a config.json and, for chat models, a generation_config.json.
        kind: "decoder" or "encoder"; None for whatever it is.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: a file is no JSON object; it is another architecture, or asks for something
            that the network lacks; a value is of another type or out of bounds; the weights are
            quantised. The message names the file.
    """
    path = folder / "config.json"
    raw = read_json(path)
    model_type = raw.get("model_type")
    if kind is None:
        known = ARCHITECTURES.get(str(model_type))
        kind = "decoder" if known is None else known.kind
    arch = architecture(model_type, kind)
    quantisation = raw.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise ValueError(
            f"Wanted weights in float32, float16 or bfloat16, got {method or 'unknown'!r} "
            f"quantisation in {path}. Give the unquantised model or a .gguf file of it."
        )
    generation = folder / "generation_config.json"
    if kind == "decoder" and generation.is_file():
        # Chat models list their end-of-turn tokens here and often not in config.json.
        stops = read_json(generation)
        raw |= {k: v for k in ("eos_token_id", "pad_token_id") if (v := stops.get(k)) is not None}
    return arch, translate(arch, raw, path), raw


def translate(arch: Architecture, raw: Json, path: Path) -> Config:
    """Return our config of the contents `raw` of the file `path`, sizes checked first.

    Raises:
        ValueError: with the path, for whatever the translation stumbles over.
    """
    try:
        check_sizes(raw)
        return arch.to_config(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{path}: Wanted the config of a {arch.model_type} model, got a value of another type "
            f"({error}). Download the model's config again."
        ) from error
