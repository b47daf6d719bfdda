"""Write and read pairs as TensorFlow Datasets in ArrayRecord files, without TensorFlow.

    from gapo_jax.data import tfds_builders
    source = tfds_builders.data_source("product_descriptions", folder, split="train")
    pair = tfds_builders.to_pair(source[0])

`preferential_prompts` holds pairs that `build_data.py mine` made, `product_descriptions` the
generated product set. After this import `tfds.builder(name, data_dir=...)` and
`tfds.data_source(name, data_dir=..., split=...)` know both names. `write_on_beam` mines and writes
`preferential_prompts` on many machines, the same rows in the same order.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gapo_jax.data import beam_mining
from gapo_jax.data.recipe import Recipe
from gapo_jax.records import Json, JsonObject
from gapo_jax.types import PreferentialPair

FORMAT = "array_record"
_TEXTS = ("task", "response", "prompt_accepted", "prompt_rejected", "edit", "type")


def _features() -> tfds.features.FeaturesDict:
    names = (*_TEXTS, "accepted", "rejected")
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})


def to_record(pair: PreferentialPair) -> dict[str, str]:
    """Return a pair in the features of the builders; constraints are JSON texts."""
    record: JsonObject = pair.to_json()
    for side in ("accepted", "rejected"):
        record[side] = json.dumps(record[side], ensure_ascii=False)
    return record


def to_pair(record: Json) -> PreferentialPair:
    """Rebuild a pair from a row of a data source (texts as UTF-8 bytes or str)."""
    fields = {
        name: value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for name, value in record.items()
    }
    parsed = {side: json.loads(fields[side]) for side in ("accepted", "rejected")}
    return PreferentialPair.from_json({**fields, **parsed})


def _example(pair: PreferentialPair) -> tuple[str, dict[str, str]]:
    """Return (key, record). The key is derived from the pair, so the order in which TFDS stores
    rows does not depend on the order in which they were made."""
    record = to_record(pair)
    text = json.dumps(record, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest(), record


def _only_example(pair: PreferentialPair) -> tuple[str, dict[str, str]]:
    """Return the example of a pair that occurs once, as `selection.choose` guarantees."""
    key, record = _example(pair)
    return f"{key}-0", record


class _PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features and splits that both builders share."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = ""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=_features(),
            homepage="https://arxiv.org/abs/2503.20194",
        )

    def _pairs(self) -> Mapping[str, Sequence[PreferentialPair]]:
        raise NotImplementedError

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> JsonObject:
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(pairs) for name, pairs in self._pairs().items()}

    def _generate_examples(
        self, pairs: Sequence[PreferentialPair]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        seen: collections.Counter[str] = collections.Counter()
        for key, record in map(_example, pairs):
            yield f"{key}-{seen[key]}", record
            seen[key] += 1


class PreferentialPrompts(_PairBuilder):
    """`preferential_prompts`: pairs mined from anyone's data, passed in as splits."""

    DESCRIPTION = "One response and two prompts: it satisfies the first and violates the second."

    def __init__(
        self, *, splits: Mapping[str, Sequence[PreferentialPair]] | None = None, **kwargs: Any
    ) -> None:
        self._splits = splits
        super().__init__(**kwargs)

    def _pairs(self) -> Mapping[str, Sequence[PreferentialPair]]:
        if not self._splits:
            raise ValueError(
                "preferential_prompts has no pairs of its own: make them by "
                "`python scripts/build_data.py mine --source F --out DIR --tfds`"
            )
        return {name: pairs for name, pairs in self._splits.items() if pairs}


class _MinedOnBeam(PreferentialPrompts, skip_registration=True):
    """`preferential_prompts`, mined by the pipeline that writes it."""

    name = "preferential_prompts"

    def __init__(self, *, recipe: Recipe, **kwargs: Any) -> None:
        self._recipe = recipe
        self.left_out = 0
        super().__init__(**kwargs)

    def _split_generators(  # pyright: ignore
        self, dl_manager: tfds.download.DownloadManager, pipeline: Any
    ) -> JsonObject:
        del dl_manager
        examples = beam_mining.import_beam().Map(_only_example)
        sides = beam_mining.mined_pairs(pipeline, self._recipe)
        return {name: pairs | f"Examples_{name}" >> examples for name, pairs in sides.items()}

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        wanted = (
            beam_mining.import_beam().metrics.MetricsFilter().with_name(beam_mining.LEFT_OUT[1])
        )
        counters = pipeline_result.metrics().query(wanted)["counters"]
        self.left_out = sum(counter.result for counter in counters)


class ProductDescriptions(_PairBuilder):
    """`product_descriptions`: products to describe by all given facts and no others."""

    DESCRIPTION = "Descriptions of generated products; prompts that list their facts, or others."

    def __init__(self, *, products: int = 3300, seed: int = 0, **kwargs: Any) -> None:
        self._count, self._seed = products, seed
        super().__init__(**kwargs)

    def _pairs(self) -> Mapping[str, Sequence[PreferentialPair]]:
        from gapo_jax.data.products import make_set

        return make_set(self._count, seed=self._seed)


BUILDERS = {
    "preferential_prompts": PreferentialPrompts,
    "product_descriptions": ProductDescriptions,
}


def _config(**options: Any) -> tfds.download.DownloadConfig:
    """Return settings that overwrite an older dataset; by default TFDS would keep it silently."""
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    return tfds.download.DownloadConfig(download_mode=mode, **options)


def _write(builder: tfds.core.DatasetBuilder) -> Path:
    builder.download_and_prepare(download_config=_config())
    return Path(builder.data_dir)


def write_preferential(
    splits: Mapping[str, Sequence[PreferentialPair]], folder: str | Path
) -> Path:
    """Write splits of pairs as a TFDS dataset in ArrayRecord files; return its folder."""
    return _write(PreferentialPrompts(splits=splits, data_dir=str(folder), file_format=FORMAT))


def write_products(folder: str | Path, products: int = 3300, seed: int = 0) -> Path:
    """Write the product description set as a TFDS dataset; return its folder."""
    options = {"products": products, "seed": seed}
    return _write(ProductDescriptions(**options, data_dir=str(folder), file_format=FORMAT))


def write_on_beam(
    recipe: Recipe, folder: str | Path, pipeline_options: Sequence[str] = ()
) -> tuple[Path, int]:
    """Mine and write a TFDS dataset by an Apache Beam pipeline.

    Args:
      recipe: what to mine and how.
      folder: where TFDS datasets lie; all workers must reach it.
      pipeline_options: of Beam, such as ["--runner=FlinkRunner", ...]; without a runner it runs in
        this process.

    Returns:
      The dataset's folder, and how many rows did not fit and were left out.

    Raises:
      ModuleNotFoundError: Apache Beam is not installed; the message has the command.
    """
    beam = beam_mining.import_beam()
    options = beam.options.pipeline_options.PipelineOptions(list(pipeline_options))
    builder = _MinedOnBeam(recipe=recipe, data_dir=str(folder), file_format=FORMAT)
    named = any(option.startswith("--runner") for option in pipeline_options)
    runner = None if named else beam_mining.this_process()
    config = _config(beam_options=options, beam_runner=runner)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir), builder.left_out


def data_source(name: str, folder: str | Path, split: str = "train") -> Sequence[JsonObject]:
    """Return the rows of a split, by index and without TensorFlow.

    Raises:
        ValueError: another name. FileNotFoundError: nothing was written to the folder.
    """
    if name not in BUILDERS:
        raise ValueError(f"TFDS builder: wanted one of {sorted(BUILDERS)}, got {name!r}")
    if not (Path(folder) / name).is_dir():
        raise FileNotFoundError(
            f"no {name} in {folder}: write it by `python scripts/build_data.py ... --tfds`"
        )
    builder = BUILDERS[name](data_dir=str(folder), file_format=FORMAT)
    return builder.as_data_source(split=split)  # pyright: ignore
