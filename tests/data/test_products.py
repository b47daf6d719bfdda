"""The product description set, and both TFDS builders without TensorFlow."""

import sys

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.constraints.product_checks import others_stated, stated, tokens
from gapo_jax.data import products


def test_the_catalogue_has_what_the_docstring_says():
    counts = products.catalogue_counts()
    assert counts["categories"] >= 200 and counts["property-value pairs"] >= 5000
    names = [category.name for category in products.catalogue()]
    assert len(set(names)) == len(names)
    for category in products.catalogue():
        assert len(category.properties) >= 4
        values = [tokens(v) for options in category.properties.values() for v in options]
        assert len(set(values)) == len(values) and all(values)
        assert all(len(options) > 1 for options in category.properties.values())


def test_descriptions_state_their_facts_and_no_others():
    """Precision and recall of the two verifiers on descriptions whose facts are known."""
    rng = np.random.default_rng(0)
    wrong = {"missing": 0, "others": 0}
    total = 2 * len(products.catalogue())
    for category in products.catalogue() * 2:
        facts = products.draw_facts(category, rng)
        text = products.describe(category, facts, rng)
        wrong["missing"] += stated(text, facts) != facts
        wrong["others"] += bool(others_stated(text, facts, category.values))
    # Two names hold a value: an ice cream maker is not cream, bed linen not linen.
    assert wrong["missing"] == 0 and wrong["others"] <= 0.02 * total


@pytest.mark.parametrize("edit", products.EDITS)
def test_every_edit_of_the_facts_is_noticed(edit):
    rng = np.random.default_rng(1)
    seen = 0
    for category in products.catalogue():
        facts = products.draw_facts(category, rng)
        text = products.describe(category, facts, rng)
        changed = products.edit_facts(category, facts, edit, rng)
        if changed is not None:
            seen += 1
            assert changed != facts and len({f.split(":")[0] for f in changed}) == len(changed)
            assert not all(constraints.holds(c, text) for c in products.asked(category, changed))
    assert seen > 200


def test_the_set_is_proven_split_by_category_and_reproducible():
    made = products.make_set(60, seed=2)
    assert {side: len(pairs) for side, pairs in made.items()} == {"train": 54, "test": 6}
    assert made == products.make_set(60, seed=2) != products.make_set(60, seed=3)
    for pairs in made.values():
        for pair in pairs:
            constraints.verify_pair(pair)
            assert {c.id for c in pair.rejected} == set(constraints.types("product"))
    named = [{tuple(p.accepted[1].kwargs["values"]) for p in pairs} for pairs in made.values()]
    assert not named[0] & named[1]
    assert {p.type for p in made["train"]} == set(constraints.types("product"))
    with pytest.raises(ValueError, match="wanted 2 or more"):
        products.make_set(1)


@pytest.fixture(scope="module")
def builders():
    return pytest.importorskip("gapo_jax.data.tfds_builders")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_tfds_folder_is_written_anew(builders, tmp_path):
    for count, seed in ((6, 1), (8, 2)):
        made = products.make_set(count, seed=seed)
        builders.write_preferential(made, tmp_path)
        builders.write_products(tmp_path, count, seed)
        for name in builders.BUILDERS:
            source = builders.data_source(name, tmp_path, "train")
            found = [builders.to_pair(source[i]) for i in range(len(source))]
            assert sorted(map(repr, found)) == sorted(map(repr, made["train"]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tfds_round_trip_without_tensorflow(builders, tmp_path):
    import tensorflow_datasets as tfds

    made = products.make_set(30, seed=1)
    builders.write_preferential(made, tmp_path)
    builders.write_products(tmp_path, 30, seed=1)
    for name in builders.BUILDERS:
        for split, pairs in made.items():
            source = builders.data_source(name, tmp_path, split)
            found = [builders.to_pair(source[i]) for i in range(len(source))]
            assert sorted(map(repr, found)) == sorted(map(repr, pairs))
    by_name = tfds.data_source("product_descriptions", data_dir=str(tmp_path), split="train")
    assert len(by_name) == len(made["train"])
    # By name alone, from nothing: made where it was not.
    options = {"file_format": builders.FORMAT, "products": 30, "seed": 1}
    builder = tfds.builder("product_descriptions", data_dir=str(tmp_path / "new"), **options)
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == len(made["train"])
    again = builder.as_data_source(split="train")
    assert [again[i] for i in range(len(again))] == [by_name[i] for i in range(len(by_name))]
    assert "tensorflow" not in sys.modules
    with pytest.raises(FileNotFoundError, match="no product_descriptions in"):
        builders.data_source("product_descriptions", tmp_path / "none")
    with pytest.raises(ValueError, match="wanted one of"):
        builders.data_source("products", tmp_path)
