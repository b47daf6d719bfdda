"""Training from data that `gapo-jax build-data` mined instead of our own."""

import collections
import json
import shutil

import pytest

from gapo_jax import constraints
from gapo_jax.cli import build_data
from gapo_jax.config import finalize
from gapo_jax.config.presets import tiny
from gapo_jax.data.discriminator_text import pair_ids
from gapo_jax.data.sources import read_pairs
from gapo_jax.train.build import build_models
from gapo_jax.train.datasets import self_generated
from gapo_jax.train.datasets.user import asked, check_source, own_prompts
from gapo_jax.train.offline.examples import make_examples
from gapo_jax.train.workdir import claim_workdir

TYPES = ("no_comma", "number_words", "number_sentences", "english_capital")
WORDS = "stone river lamp garden bread window quiet morning paper bridge".split()


def _rows():
    """Answers of different length, with and without commas, to a dozen tasks."""
    for number in range(12):
        words = WORDS[number % 10 :] + WORDS[: number % 10]
        for size, mark in ((3, ". "), (6, ", "), (9, ". ")):
            text = mark.join(f"The {word} stays here" for word in words[:size]) + "."
            yield {"task": f"Write about place {number}.", "response": text}


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined")
    rows = [{"prompt": row["task"], "completion": row["response"]} for row in _rows()]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = f"--source {folder / 'rows.jsonl'} --out {folder} --types {','.join(TYPES)}"
    code = build_data.main(["mine", *options.split(), "--test-fraction", "0.3"])
    assert code == 0
    return folder


def _config(folder, *types, max_tokens=384):
    config = tiny("gapo")
    config.discriminator.max_tokens = max_tokens
    config.data.source, config.data.types = str(folder), types or ("no_comma",)
    config.data.pairs, config.data.pairs_heldout = 20, 8
    return finalize(config)


SIDES = {"train": "pairs.jsonl", "test": "pairs_test.jsonl"}


@pytest.fixture(scope="module")
def models():
    return build_models(_config(""))


def test_its_pairs_and_prompts_take_the_place_of_ours(mined, models, tmp_path):
    config = _config(mined, *TYPES[:3])
    prompts = own_prompts(config, models, tmp_path)
    assert list(prompts.heldout) == ["heldout_tasks"] and prompts.train
    answers = self_generated.bootstrap(config, models, prompts, tmp_path)
    pairs = self_generated.make_pairs(config, prompts.type_ids, answers, tmp_path)
    assert 10 < len(pairs.train) <= 20 and 2 <= len(pairs.heldout) <= 8

    allowed = set(constraints.resolve(TYPES[:3]))
    assert set(prompts.type_ids) == allowed
    there = {side: read_pairs(mined / name) for side, name in SIDES.items()}
    for side, kept, rows in (
        ("train", pairs.train, prompts.train),
        ("test", pairs.heldout, prompts.heldout["heldout_tasks"]),
    ):
        assert all(pair in there[side] for pair in kept)
        assert all(c.id in allowed for pair in kept for c in asked(pair))
        known = [(pair.prompt_accepted, pair.accepted) for pair in there[side]]
        assert all((row.prompt, row.constraints) in known for row in rows)
        # Whole cycles: no prompt gives its label away.
        accepted = collections.Counter(pair.prompt_accepted for pair in kept)
        assert accepted == collections.Counter(pair.prompt_rejected for pair in kept)
    tasks = [{row.task for row in rows} for rows in (prompts.train, *prompts.heldout.values())]
    assert not tasks[0] & tasks[1]


def test_a_continued_run_does_not_need_the_folder(mined, models, tmp_path):
    folder, workdir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(mined, folder)
    workdir.mkdir()
    config = _config(folder, *TYPES[:3])
    first = own_prompts(config, models, workdir)
    pairs = self_generated.make_pairs(config, first.type_ids, [], workdir)
    shutil.rmtree(folder)
    assert own_prompts(config, models, workdir) == first
    assert self_generated.make_pairs(config, first.type_ids, [], workdir) == pairs


def test_what_the_discriminator_cannot_read_to_its_end_is_left_out(mined, models, tmp_path):
    def longest(path):
        sides = [side for pair in read_pairs(path) for side in pair.sides]
        return max(len(pair_ids(models.disc_tokenizer, *side, 999)[0]) for side in sides)

    limit = longest(mined / "pairs.jsonl") - 1
    own_prompts(_config(mined, *TYPES[:3], max_tokens=limit), models, tmp_path)
    assert longest(tmp_path / "pairs.jsonl") <= limit


def test_a_family_stands_for_its_types():
    assert constraints.resolve(["ifeval"]) == constraints.types("ifeval")
    assert constraints.resolve(["no_comma", "product"])[1:] == constraints.types("product")


def test_what_cannot_be_used_is_named(mined, models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.data\.source.*pairs\.jsonl"):
        own_prompts(_config(tmp_path, "no_comma"), models, tmp_path)
    with pytest.raises(ValueError, match=r"other types.*no_comma"):
        own_prompts(_config(mined, "title"), models, tmp_path)
    shutil.copy(mined / "pairs.jsonl", tmp_path)
    (tmp_path / "pairs_test.jsonl").touch()
    with pytest.raises(ValueError, match="--test-fraction"):
        own_prompts(_config(tmp_path, "no_comma"), models, tmp_path)


def _method(folder, method, **data):
    config = tiny(method)
    config.data.source, config.data.types = str(folder), TYPES
    config.sgpo.max_prompt_tokens = config.data.max_prompt_tokens
    for name, value in data.items():
        setattr(config.data, name, value)
    return finalize(config)


def _write(folder, records):
    folder.mkdir()
    for name in SIDES.values():
        (folder / name).write_text("\n".join(map(json.dumps, records)))
    return folder


def test_data_that_a_method_cannot_use_is_refused_before_any_model_is_loaded(mined, tmp_path):
    """KTO without labels, DPO without pairs, more sides than there are; and what does work."""
    records = [json.loads(line) for line in (mined / "pairs.jsonl").read_text().splitlines()]
    unlabelled = [{k: v for k, v in r.items() if k != "rejected"} for r in records]
    with pytest.raises(ValueError, match=r"data\.source=.*line 1: field 'rejected'.*'kto' needs"):
        check_source(_method(_write(tmp_path / "a", unlabelled), "kto"), tmp_path)
    # Pairs from elsewhere, each with prompts of its own: two prompts to compare, no two responses.
    alone = _write(tmp_path / "b", [
        r | {"prompt_accepted": f"a{i}", "prompt_rejected": f"r{i}"} for i, r in enumerate(records)
    ])  # fmt: skip
    for method in ("dpo", "kto", "simpo", "orpo", "rpo", "inverse_q", "sft", "discriminator"):
        check_source(_method(alone, method), tmp_path)
    for method in ("dpo", "ppo", "discriminator"):
        with pytest.raises(ValueError, match=r"preference=.*'prompts'"):
            check_source(_method(alone, method, preference="responses"), tmp_path)
        check_source(_method(mined, method, preference="responses"), tmp_path)
    with pytest.raises(ValueError, match=r"gives sgpo 0 examples.*offline\.batch_size=8"):
        check_source(_method(alone, "sgpo"), tmp_path)
    with pytest.raises(ValueError, match=r"gives dpo 2 examples, .*config\.offline\.batch_size=8"):
        check_source(_method(_write(tmp_path / "c", records[:2]), "dpo"), tmp_path)
    config = tiny("rpo")
    config.data.source, config.data.types, config.rpo.responses = str(mined), TYPES, 50
    with pytest.raises(ValueError, match=r"50 prompts; lower config\.rpo\.responses"):
        check_source(finalize(config), tmp_path)


def test_one_key_makes_any_method_compare_prompts_or_responses(mined):
    """The two columns of the paper's table 6 (arXiv 2503.20194), of the same pairs."""
    pairs = read_pairs(mined / "pairs.jsonl")
    for method in ("dpo", "kto", "simpo", "orpo", "rpo"):
        prompts, responses = (
            make_examples(_method(mined, method, preference=name), pairs)
            for name in ("prompts", "responses")
        )
        assert all(good.response == bad.response for good, bad in prompts)
        assert all(good.prompt == bad.prompt for good, bad in responses)
        rows = [{(s.prompt, s.response) for s in sides} for sides in (*prompts, *responses)]
        half = len(prompts)
        assert set().union(*rows[:half]) == set().union(*rows[half:])
    for method in ("gapo", "ppo", "rloo", "grpo", "reinforce_pp", "rpo_online", "discriminator"):
        found = self_generated.compared_pairs(_method(mined, method, preference="responses"), pairs)
        assert all(good[0] == bad[0] for good, bad in (pair.sides for pair in found))
        assert self_generated.compared_pairs(_method(mined, method), pairs) == pairs


def test_a_configuration_that_came_to_nothing_does_not_hold_the_workdir(mined, tmp_path):
    claim_workdir(_method(mined, "dpo"), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    claim_workdir(_method(mined, "kto"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["method"] == "kto"
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(ValueError, match="method: 'kto' -> 'dpo'"):
        claim_workdir(_method(mined, "dpo"), tmp_path)
