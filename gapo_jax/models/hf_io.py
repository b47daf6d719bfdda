"""Models in from HF folders, hub ids and GGUF files, and out as HF folders.

Reading checks config, vocabulary, tensor names and shapes before the first weight is read. Writing
goes to a folder beside the target, which is renamed when whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gapo_jax import hub
from gapo_jax.models import gguf_io, hf_map, model_card
from gapo_jax.models.decoder import Decoder
from gapo_jax.models.encoder import Encoder
from gapo_jax.models.heads import Discriminator, RewardModel

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_Module = TypeVar("_Module")


class SafetensorsSource:
    """The tensors of a folder's safetensors, single or sharded: a `hf_map.TensorSource`."""

    def __init__(self, folder: Path) -> None:
        """Read the headers. Raises FileNotFoundError on a missing file, ValueError on a cut one."""
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(folder):
            handle = _open_safetensors(path)
            for name in handle.keys():
                self._files[name] = handle
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the dtype of the file."""
        return self._files[name].get_tensor(name)


def _open_safetensors(path: Path) -> Any:
    """Open one safetensors file, memory-mapped."""
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted {path.name} in {path.parent}, got no such file. Download the model again."
        )
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"Wanted a whole safetensors file, got {path} of {path.stat().st_size} bytes, which is "
            f"truncated or damaged ({error}). Download it again."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, from the index if there is one."""
    if (folder / _INDEX).is_file():
        index = _read_json(folder / _INDEX)
        return [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    got = sorted(path.name for path in folder.iterdir())[:12]
    raise FileNotFoundError(
        f"Wanted {_SINGLE} or {_INDEX} in {folder}, got {got}. Download the safetensors files; a "
        "pytorch_model.bin must be converted to safetensors first."
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; FileNotFoundError or ValueError if it is absent or broken."""
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted {path.name} in {path.parent}, got no such file. Give an HF model folder."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"Wanted JSON in {path}, got a broken file ({error}).") from error


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    """Raise ValueError if the folder's tokenizer.json has an id outside the embedding."""
    if not (folder / "tokenizer.json").is_file():
        return
    record = _read_json(folder / "tokenizer.json")
    vocab = record.get("model", {}).get("vocab", {})
    largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    largest = max([largest, *(token["id"] for token in record.get("added_tokens") or [])])
    if largest >= vocab_size:
        raise ValueError(
            f"Wanted token ids below vocab_size {vocab_size} of {folder / 'config.json'}, got id "
            f"{largest} in tokenizer.json. Use the tokenizer that belongs to the model."
        )


def _open_folder(
    folder: Path, kind: str
) -> tuple[hf_map.Architecture, hf_map.Config, SafetensorsSource]:
    """Return architecture, config and tensors of an HF folder, having read no weight."""
    raw = _read_json(folder / "config.json")
    arch = hf_map.architecture(raw.get("model_type"), kind)
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"Wanted weights in float32, float16 or bfloat16, got {method!r} quantisation in "
            f"{folder / 'config.json'}. Give the unquantised model or a .gguf file of it."
        )
    generation = folder / "generation_config.json"
    if kind == "decoder" and generation.is_file():
        # Chat models list their end-of-turn tokens here and often not in config.json.
        stops = _read_json(generation)
        raw |= {k: v for k in ("eos_token_id", "pad_token_id") if (v := stops.get(k)) is not None}
    config = arch.to_config(raw)
    _check_vocabulary(folder, config.vocab_size)
    return arch, config, SafetensorsSource(folder)


def network_of(src: str | os.PathLike[str]) -> str | None:
    """Return "decoder", "encoder" or "reward model", by what config.json names; None if that is
    no architecture of ours, and "decoder" for a GGUF file. Raises as `hub.resolve`."""
    path = hub.resolve(src)
    if path.is_file():
        return "decoder"
    raw = _read_json(path / "config.json")
    arch = hf_map.ARCHITECTURES.get(str(raw.get("model_type")))
    judges = (raw.get("architectures") or [""])[0].endswith("ForSequenceClassification")
    if arch is None or arch.kind == "encoder":
        return arch and arch.kind
    return "reward model" if judges else "decoder"


def load_decoder(
    src: str | os.PathLike[str], put: hf_map.Put | None = None, **overrides: Any
) -> tuple[Decoder, dict[str, Any]]:
    """Return `(decoder, params)` of an HF folder, a hub id or a `.gguf` file.

    `params` is a float32 numpy tree, read one tensor at a time; with `put(path, array)` each
    parameter is handed over as soon as it is whole (for example to be placed on devices) and what
    it returns stands in the tree. `overrides` replace fields of the `DecoderConfig` (`dtype`,
    `remat`). Raises FileNotFoundError for a missing source or file, and ValueError for an unknown
    architecture, an unsupported feature or quantisation, a truncated file, a vocabulary larger than
    the embedding, or tensors that do not fit the table one to one.
    """
    path = hub.resolve(src)
    if path.is_file():
        config, params = gguf_io.load_gguf(path, put)
    else:
        arch, config, source = _open_folder(path, "decoder")
        params = hf_map.import_params(arch, config, source, put)
    return Decoder(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def load_reward_model(
    src: str | os.PathLike[str], put: hf_map.Put | None = None, seed: int = 0, **overrides: Any
) -> tuple[RewardModel, dict[str, Any]]:
    """Return `(reward model, params)`: a decoder with a scalar head on its last real token.

    An HF sequence classifier of one label brings its head; any other decoder, as `load_decoder`
    takes them, gets a fresh one, normal with deviation 0.02 by `seed`. Raises as `load_decoder`.
    """
    path = hub.resolve(src)
    if path.is_file():
        config, decoder = gguf_io.load_gguf(path, put)
        params: dict[str, Any] = {"decoder": decoder}
        decoder.pop("lm_head", None)
    else:
        arch, config, source = _open_folder(path, "decoder")
        arch = hf_map.reward_architecture(arch)
        if "score.weight" not in source.shapes:
            rules = tuple(rule for rule in arch.rules if rule.hf != "score.weight")
            arch = dataclasses.replace(arch, rules=rules)
        params = hf_map.import_params(arch, config, source, put)
    if "head" not in params:
        kernel = np.random.default_rng(seed).normal(0.0, 0.02, (config.d_model, 1))
        leaf = kernel.astype(np.float32)
        params["head"] = {"out": {"kernel": put("head/out/kernel", leaf) if put else leaf}}
    return RewardModel(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def load_encoder(
    src: str | os.PathLike[str], put: hf_map.Put | None = None, **overrides: Any
) -> tuple[Encoder, dict[str, Any]]:
    """Return `(encoder, params)` of an HF folder or hub id; as `load_decoder`, no GGUF.

    BERT's pooler and task heads are left out: the encoder ends with its hidden states.
    """
    path = hub.resolve(src)
    if path.is_file():
        raise ValueError(f"Wanted an HF folder or hub id of an encoder, got the file {path}.")
    arch, config, source = _open_folder(path, "encoder")
    params = hf_map.import_params(arch, config, source, put)
    return Encoder(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def save_hf(
    module: nn.Module,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    dtype: str = "float32",
    method: str | None = None,
    base: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a `Decoder`, `Encoder`, `Discriminator` or `RewardModel` for transformers to load.

    config.json, safetensors in `dtype` (sharded with an index above `max_shard_bytes`), tokenizer
    files with the chat template, generation_config.json for decoders, and a README.md that names
    `method`, `base` and `metrics`. The folder appears when whole; an earlier export there is
    replaced. A discriminator with pooling "hf" (or a head that is the same function) becomes the
    AutoModelForSequenceClassification of its family; any other one is written as its encoder
    (without pooler) plus discriminator_head.safetensors, which the card explains. Returns the
    folder.

    Raises ValueError for an unknown dtype, parameters that are not the module's, a tokenizer with
    ids outside the embedding, or a folder that holds something else.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Wanted dtype in {sorted(DTYPES)}, got {dtype!r}.")
    arch, config, trees = _layout(module, params)
    if tokenizer is not None and max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise ValueError(
            f"Wanted token ids below the vocabulary of {config.vocab_size}, got a tokenizer "
            f"of {len(tokenizer)} tokens. Pass the tokenizer that belongs to the model."
        )
    raw = {
        "architectures": [arch.class_name],
        "model_type": arch.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        **arch.from_config(config),
    }
    _check_family(arch, config, raw)
    if isinstance(module, RewardModel) or (isinstance(module, Discriminator) and module.is_hf):
        raw |= {"id2label": {"0": "OBEYS"}, "label2id": {"OBEYS": 0}}
    with _replacing(Path(folder)) as target:
        tensors = hf_map.export_tensors(arch, config, trees["model"])
        _write_shards(target, tensors, np.dtype(DTYPES[dtype]), max_shard_bytes)
        _write_json(target / "config.json", raw)
        if isinstance(module, Decoder):
            keys = ("eos_token_id", "pad_token_id", "bos_token_id")
            _write_json(target / "generation_config.json", {key: raw[key] for key in keys})
        if tokenizer is not None:
            _write_tokenizer(target, tokenizer)
        if "head" in trees:
            head = {path: np.asarray(leaf) for path, leaf in hf_map.flatten(trees["head"])}
            _save_file(target / "discriminator_head.safetensors", head, "np")
        card = model_card.write(module, arch, dtype, method, base, metrics)
        (target / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def _layout(
    module: nn.Module, params: Mapping[str, Any]
) -> tuple[hf_map.Architecture, hf_map.Config, dict[str, Any]]:
    """Return the architecture to write as, the config, and the trees {"model"[, "head"]}."""
    if isinstance(module, (Decoder, Encoder)):
        return hf_map.architecture_of(module.config), module.config, {"model": params}
    if isinstance(module, RewardModel):
        arch = hf_map.reward_architecture(hf_map.architecture_of(module.config))
        return arch, module.config, {"model": params}
    if not isinstance(module, Discriminator):
        raise ValueError(
            "Wanted a Decoder, Encoder, Discriminator or RewardModel, got a "
            f"{type(module).__name__}. Pass the network and its own parameter tree."
        )
    if module.is_hf:
        return hf_map.classifier_of(module.config), module.config, {"model": params}
    trees = {"model": params["encoder"], "head": params["head"]}
    return hf_map.architecture_of(module.config), module.config, trees


def _check_family(arch: hf_map.Architecture, config: hf_map.Config, raw: Mapping[str, Any]) -> None:
    """Raise ValueError if config.json of the family cannot say what the network's config says."""
    back = arch.to_config(raw)
    # How to compute, which no config.json holds.
    skipped = ("dtype", "remat", "scan_unroll", "attention")
    lost = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in skipped and getattr(config, field.name) != getattr(back, field.name)
    }
    if lost:
        raise ValueError(
            f"Wanted a network that config.json of {arch.model_type!r} can describe, got {lost}, "
            f"which it cannot. Set `family` of the {type(config).__name__} to the one that has it."
        )


def _save_file(path: Path, tensors: dict[str, np.ndarray], kind: str) -> None:
    """Write one safetensors file that others may read (the library makes it private)."""
    save_file(tensors, path, {"format": kind})
    path.chmod(0o644)


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, limit: int
) -> None:
    """Write safetensors of at most `limit` bytes each (a larger tensor alone), holding one."""
    shards: list[list[str]] = []
    batch: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        shards.append(list(batch))
        _save_file(folder / f"shard-{len(shards)}", batch, "pt")
        batch.clear()

    for name, array in tensors:
        array = array.astype(dtype)
        if batch and size + array.nbytes > limit:
            flush()
            size = 0
        batch[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-1").rename(folder / _SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write tokenizer files, under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = _read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        _write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `folder` and rename it into place if the block succeeds."""
    if folder.exists() and any(folder.iterdir()):
        card = folder / "README.md"
        if not (card.is_file() and model_card.MARK in card.read_text(encoding="utf-8")):
            raise ValueError(
                f"Wanted a new, empty or earlier export folder, got {folder}, which holds other "
                "files. Choose another folder."
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
