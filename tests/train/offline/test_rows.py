"""Training on rows of one's own: batches, losses and measures against slow plain versions."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import types

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gapo_jax import io
from gapo_jax.config import Config, change, finalize
from gapo_jax.config.presets import tiny
from gapo_jax.data.row_table import Reading, RowTable, token_encoder, write_table
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.methods import offline_loss
from gapo_jax.models import Decoder, DecoderConfig
from gapo_jax.rng import Stream, stream
from gapo_jax.train import row_evaluation
from gapo_jax.train.datasets import rows as own
from gapo_jax.train.datasets.user import check_source
from gapo_jax.train.forward import PolicySpec
from gapo_jax.train.main import execute
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.offline.row_arrays import Widths, make_batch
from gapo_jax.train.offline.row_batches import batch_places, row_batches
from gapo_jax.train.offline.steps import RowSums, make_sum_rows, score_batch
from gapo_jax.train.runtime import StopRequest
from gapo_jax.train.state import merge_trainable

TOKENIZER = character_tokenizer()
CONFIG = DecoderConfig(
    vocab_size=len(TOKENIZER), num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8,
    d_ff=24, eos_ids=(TOKENIZER.eos_token_id,),
)  # fmt: skip
SPEC = PolicySpec(CONFIG, 1, 1.0, 8, "none", 8)
WIDTH = 80
PAIRS = [
    {"prompt": "Name a tea.", "chosen": "Green", "rejected": "No"},
    {"prompt": "Say hi.", "chosen": "Hi there, you", "rejected": "Hm"},
    {"prompt": "A tale of the sea, please", "chosen": "Waves", "rejected": "A longer tale of it"},
    {"prompt": "Rain?", "chosen": "Wet", "rejected": "Dry"},
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row, side in zip(PAIRS, ("chosen", "rejected", "rejected", "rejected"), strict=True)
]
TALK = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Ha ha"},
]  # fmt: skip


def _table(folder, rows, want, tokenizer=TOKENIZER):
    reading = Reading(want)
    write_table(folder / want, enumerate(rows, 1), reading, token_encoder(tokenizer, reading), str)
    return RowTable(folder / want)


def _config(method, **options):
    config = Config(method=method)
    config.offline.batch_size = 4
    return change(config, {k.replace("__", "."): v for k, v in options.items()})


@pytest.fixture(scope="module")
def base(distinct_weights):
    return distinct_weights(CONFIG)


@pytest.fixture(scope="module")
def trained(base, moved_layers):
    return moved_layers(base, SPEC.first_trainable_layer)


@jax.jit
def _log_softmax(params, tokens):
    logits = Decoder(CONFIG).apply({"params": params}, tokens, jnp.ones_like(tokens))
    return jax.nn.log_softmax(logits[0].astype(jnp.float32))


def _plain(params, prompt, response):
    """(log-probs, which are the likeliest) of the tokens of a response, by the whole model."""
    rows = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in (prompt, response)]
    ids = rows[0] + rows[1]
    table = np.asarray(_log_softmax(params, jnp.array([ids + [0] * (WIDTH - len(ids))])), float)
    at = np.arange(len(rows[0]), len(ids))
    chosen = np.array(ids)[at]
    return table[at - 1, chosen], table[at - 1].argmax(axis=1) == chosen


def _sums(base, trained, texts):
    """(policy, reference) sums, right tokens and tokens of (prompt, response), [4, B]."""
    full = merge_trainable(base, trained, SPEC.first_trainable_layer)
    made = []
    for prompt, response in texts:
        (policy, right), (ref, _) = (_plain(p, prompt, response) for p in (full, base))
        made.append([policy.sum(), ref.sum(), right.sum(), len(policy)])
    return np.array(made).T


def _asked(prompt, response):
    return f"<s>{prompt}\n>", f"{response}</s>"


def _texts(rows, *sides):
    return [_asked(row["prompt"], row[side]) for row in rows for side in sides]


def test_batches_hold_each_row_at_the_right_edge_with_its_own_mask(tmp_path):
    config = _config("dpo")
    table = _table(tmp_path, PAIRS, "pairs")
    shapes = Widths.of(config, table)
    batch = make_batch(table, "pairs", shapes, np.array([2, 0]), pad_id=0).rows
    width, responses = batch.tokens_BT.shape[1], batch.response_mask_BR.shape[1]
    assert width in shapes.widths and width >= table.lengths[2]
    texts = _texts([PAIRS[2], PAIRS[0]], "chosen", "rejected")
    for row, (prompt, response) in enumerate(texts):
        ids = TOKENIZER(prompt + response, add_special_tokens=False)["input_ids"]
        pad = width - len(ids)
        np.testing.assert_array_equal(batch.tokens_BT[row], [0] * pad + ids)
        np.testing.assert_array_equal(batch.mask_BT[row], [0] * pad + [1] * len(ids))
        count = len(TOKENIZER(response, add_special_tokens=False)["input_ids"])
        wanted = [0] * (responses - count) + [1] * count
        np.testing.assert_array_equal(batch.response_mask_BR[row], wanted)


def test_all_answers_of_a_dialogue_are_trained_on_and_nothing_between_them(tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}>{{ m.content }}</s>{% else %}"
        "<s>{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    table = _table(tmp_path, [{"messages": TALK}], "demonstrations", tokenizer)
    shapes = Widths.of(_config("sft"), table)
    batch = make_batch(table, "demonstrations", shapes, np.array([0]), pad_id=0).rows
    trained = batch.tokens_BT[0, -batch.response_mask_BR.shape[1] :][batch.response_mask_BR[0] > 0]
    assert tokenizer.decode(trained) == "Ho</s>Ha ha</s>"
    read = batch.tokens_BT[0][batch.mask_BT[0] > 0]
    assert tokenizer.decode(read) == "<s>Hi\n>Ho</s><s>And?\n>Ha ha</s>"


def test_a_template_that_hides_earlier_answers_leaves_the_last_one(tmp_path):
    """As the tiny one does, whose earlier answers look like questions; it is counted and said."""
    table = _table(tmp_path, [{"messages": TALK}, PAIRS[0]], "demonstrations")
    columns = table.take([0])
    ids, cuts = columns["ids"][0][0], columns["cuts"][0][0]
    assert TOKENIZER.decode(ids[: cuts[0]]) == "<s>Hi\n<s>Ho\n<s>And?\n>"
    assert TOKENIZER.decode(ids[cuts[0] :]) == "Ha ha</s>" and cuts[1] == len(ids)
    assert table.facts.last_only == 1


def test_dpo_on_rows_is_dpo_on_their_texts(base, trained, tmp_path):
    """Loss, and the metrics by the formulas of TRL's DPOTrainer, from log-probs row by row."""
    config = _config("dpo")
    table = _table(tmp_path, PAIRS, "pairs")
    places = batch_places(config, table.lengths, 0, 4)
    assert sorted(places) == [0, 1, 2, 3]
    batch = make_batch(table, "pairs", Widths.of(config, table), places, pad_id=0)
    score = functools.partial(score_batch, spec=SPEC, config=config)
    loss, metrics = jax.jit(lambda *x: offline_loss(config)(score(*x)))(trained, base, batch)
    texts = _texts([PAIRS[i] for i in places], "chosen", "rejected")
    policy, ref, right, tokens = _sums(base, trained, texts).reshape(4, 4, 2)
    chosen, rejected = (0.1 * (policy - ref)[:, k] for k in (0, 1))
    wanted = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/accuracies": (chosen > rejected).mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        "nll_loss": -policy[:, 0].sum() / tokens[:, 0].sum(),
        "mean_token_accuracy": right[:, 0].sum() / tokens[:, 0].sum(),
    }
    assert float(loss) == pytest.approx(np.log1p(np.exp(rejected - chosen)).mean(), rel=1e-4)
    for name, value in wanted.items():
        assert float(metrics[name]) == pytest.approx(value, rel=2e-3, abs=1e-6), name


def test_kto_takes_the_labels_of_the_rows(base, trained, tmp_path):
    """One good row and three bad ones: Eq. 7 and 8 of the paper with TRL's mismatched rows."""
    config = _config("kto")
    table = _table(tmp_path, LABELLED, "labelled")
    assert table.facts.labels == {"true": 1, "false": 3}
    batch = make_batch(table, "labelled", Widths.of(config, table), np.arange(4), pad_id=0)
    score = functools.partial(score_batch, spec=SPEC, config=config)
    loss, metrics = jax.jit(lambda *x: offline_loss(config)(score(*x)))(trained, base, batch)
    texts = [_asked(row["prompt"], row["completion"]) for row in LABELLED]
    others = [(texts[i][0], texts[(i + 1) % 4][1]) for i in range(4)]
    policy, ref, _, _ = _sums(base, trained, texts)
    drift = np.subtract(*_sums(base, trained, others)[:2])
    z0 = max(drift.mean(), 0.0)
    rho, good = policy - ref, np.array([row["label"] for row in LABELLED])
    margin = np.where(good, 0.1 * (rho - z0), 0.1 * (z0 - rho))
    assert float(loss) == pytest.approx((1 - 1 / (1 + np.exp(-margin))).mean(), rel=1e-4)
    assert float(metrics["rewards/chosen"]) == pytest.approx(0.1 * rho[0], rel=2e-3)
    assert float(metrics["rewards/rejected"]) == pytest.approx(0.1 * rho[1:].mean(), rel=2e-3)


def test_a_prompt_meets_no_response_of_its_own_in_the_kl_term(tmp_path):
    """Both labels of one pair stand next to each other; the rotation goes past them."""
    rows = [row for row in PAIRS[:2]]
    table = _table(tmp_path, rows, "labelled")
    batch = make_batch(table, "labelled", Widths.of(_config("kto"), table), np.arange(4), pad_id=0)
    for tokens, mask in zip(batch.mismatched.tokens_BT, batch.mismatched.mask_BT, strict=True):
        prompt, _, response = TOKENIZER.decode(tokens[mask > 0]).partition("\n>")
        (row,) = (row for row in rows if prompt == f"<s>{row['prompt']}")
        assert response.removesuffix("</s>") not in (row["chosen"], row["rejected"])


def test_held_out_rows_are_measured_as_they_are_trained_on(base, trained, tmp_path):
    config = _config("dpo", offline__batch_size=3)
    table = _table(tmp_path, PAIRS, "pairs")
    places = np.array([3, 0, 2, 1])
    ctx = types.SimpleNamespace(
        config=config,
        rows=own.OwnRows("pairs", table, np.arange(0), np.arange(0), table, places),
        models=types.SimpleNamespace(ref_params=base, decoder=Decoder(CONFIG)),
        steps=types.SimpleNamespace(sum_rows=make_sum_rows(SPEC, config)),
    )
    state = types.SimpleNamespace(policy=types.SimpleNamespace(params=trained))
    metrics = row_evaluation.heldout_metrics(ctx, state)
    texts = _texts([PAIRS[i] for i in places], "chosen", "rejected")
    policy, ref, right, tokens = _sums(base, trained, texts).reshape(4, 4, 2)
    chosen, rejected = (0.1 * (policy - ref)[:, k] for k in (0, 1))
    nll = -policy[:, 0].sum() / tokens[:, 0].sum()
    wanted = {
        "preference_accuracy": (chosen > rejected).mean(),
        "preference_margin": (chosen - rejected).mean(),
        "logps/rejected": policy[:, 1].mean(),
        "nll_loss": nll,
        "perplexity": np.exp(nll),
        "mean_token_accuracy": right[:, 0].sum() / tokens[:, 0].sum(),
    }
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(value, rel=2e-3, abs=1e-6), name
    assert set(metrics) == set(own.MEASURES["pairs"])


def test_rewards_without_a_reference_are_means_over_tokens():
    sums = RowSums(*np.array([[-8.0, -9.0], [-1.0, -1.0], [0.0, 0.0], [4.0, 3.0]]))
    rewards, logps = row_evaluation.implicit_rewards(Config(method="simpo"), sums)
    np.testing.assert_allclose(rewards, 2.0 * np.array([-2.0, -3.0]))
    np.testing.assert_allclose(logps, [-2.0, -3.0])
    ipo = change(Config(method="dpo"), {"dpo.variant": "ipo", "dpo.reduce": "mean"})
    rewards, _ = row_evaluation.implicit_rewards(ipo, sums)
    np.testing.assert_allclose(rewards, 0.1 * np.array([-2 + 1 / 4, -3 + 1 / 3]))


def test_labels_and_texts_by_hand():
    good = np.array([True, False, True, False])
    scores = np.array([2.0, 2.0, -1.0, -3.0])
    assert row_evaluation.auc(scores, good) == (0.5 + 1 + 0 + 1) / 4
    assert row_evaluation.text_metrics(scores, good, pairs=True) == {
        "accuracy": 0.5, "preference_accuracy": 0.5, "preference_margin": 1.0
    }  # fmt: skip
    sums = RowSums(scores, np.zeros(4), np.array([1.0, 9, 2, 9]), np.array([2.0, 9, 2, 9]))
    metrics = row_evaluation.label_metrics(Config(method="kto"), sums, good)
    assert metrics["rewards/chosen"] == pytest.approx(0.1 * 0.5)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * (0.5 + 0.5))
    assert metrics["nll_loss"] == -1.0 / 4 and metrics["mean_token_accuracy"] == 3 / 4
    assert set(metrics) == set(own.MEASURES["labelled"])


def test_every_row_comes_once_an_epoch_in_batches_of_like_length():
    config = _config("sft", offline__steps_per_round=5)
    sizes = np.array(stream(0, Stream.EXAMPLES).integers(5, 100, 40))
    for epoch in range(2):
        batches = [batch_places(config, sizes, epoch * 10 + n, 4) for n in range(10)]
        assert sorted(np.concatenate(batches)) == list(range(40))
        for window in (batches[:5], batches[5:]):
            spans = sorted((sizes[b].min(), sizes[b].max()) for b in window)
            assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:]))


def test_parts_are_split_by_prompt():
    prompts = np.repeat(np.arange(50), 3)
    parts = own.split_by_prompt(prompts, [20, 10], stream(0, Stream.HELDOUT_ROWS))
    assert [len(part) for part in parts] == [18, 9, 123]
    assert sorted(np.concatenate(parts)) == list(range(150))
    sets = [set(prompts[part]) for part in parts]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    again = own.split_by_prompt(prompts, [20, 10], stream(0, Stream.HELDOUT_ROWS))
    other = own.split_by_prompt(prompts, [20, 10], stream(1, Stream.HELDOUT_ROWS))
    np.testing.assert_array_equal(again[0], parts[0])
    assert set(other[0]) != set(parts[0])
    nothing, rest = own.split_by_prompt(np.zeros(9, int), [1], stream(0, Stream.HELDOUT_ROWS))
    assert not len(nothing) and len(rest) == 9


def _file(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _run_config(method, source, **options):
    config = tiny(method)
    config.data.source, config.export = str(source), False
    config.offline.steps_per_round, config.offline.batch_size = 2, 2
    config.data.heldout_fraction = 0.2
    config.offline.optim.schedule = "constant"
    return finalize(change(config, {k.replace("__", "."): v for k, v in options.items()}))


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        ("dpo", LABELLED, r"'dpo' learns from pairs or preferential prompts, but .*rows.jsonl has "
         r"labelled.* needs the fields chosen and rejected.* suit sft, discriminator, kto"),
        ("kto", [{"messages": TALK}], r"'kto' .*has demonstrations.*a response and a label"),
        ("rpo", LABELLED, r"'rpo' learns from pairs or scored"),
        ("sgpo", PAIRS, r"'sgpo' learns from preferential prompts: mine them by"),
        ("inverse_q", PAIRS, r"'inverse_q' learns from preferential prompts"),
        ("sft", [{"a": 1}], r"has no row that can be read; line 1: no schema fits"),
        ("sft", [{"messages": TALK, "images": ["x"]}] * 3, "",),
    ],
)  # fmt: skip
def test_what_a_method_cannot_use_is_said_before_a_model_is_loaded(tmp_path, method, rows, message):
    config = _run_config(method, _file(tmp_path, rows), data__max_prompt_tokens=64)
    if not message:  # its kind fits: that nothing of it can be used is found when it is encoded
        check_source(config, tmp_path / "work")
        return
    with pytest.raises(ValueError, match=message):
        check_source(config, tmp_path / "work")


def test_other_errors_name_the_key(tmp_path):
    source = _file(tmp_path, PAIRS)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone.jsonl"):
        check_source(_run_config("dpo", tmp_path / "gone.jsonl"), tmp_path)
    best = _run_config("dpo", source, checkpoint__best="eval/preference_acuracy")
    with pytest.raises(ValueError, match=r"did you mean 'eval/preference_accuracy'"):
        check_source(best, tmp_path)
    judged = _run_config("rpo", source, rpo__reward="discriminator")
    with pytest.raises(ValueError, match=r"config.rpo.reward='discriminator' warms up"):
        check_source(judged, tmp_path)
    labelled = _file(tmp_path, LABELLED, "l.jsonl")
    ordered = _run_config("discriminator", labelled, discriminator__loss="bradley_terry")
    with pytest.raises(ValueError, match=r"loss='bradley_terry' compares two texts"):
        check_source(ordered, tmp_path)
    with pytest.raises(ValueError, match=r"chat_template_kwargs must be a JSON object"):
        _run_config("dpo", source, data__chat_template_kwargs="thinking=False")


SMALL = [
    {"prompt": f"Name tree {n}.", "chosen": f"Oak {n}, which is tall", "rejected": "No" + "!" * n}
    for n in range(12)
]


def _execute(config, workdir):
    return execute(config, workdir, StopRequest())


def test_a_run_on_pairs_goes_on_where_it_stopped(tmp_path):
    """Losses and measures of two rounds are those of one round and then another, though the source
    is gone by then; what does not fit is named, and the best round is the one that is reported."""
    options = {"checkpoint__best": "eval/nll_loss", "rounds": 2}
    bad = [
        {"prompt": "Long", "chosen": "x" * 2000, "rejected": "y"},
        {"prompt": "a", "chosen": "b"},
    ]
    source = _file(tmp_path, [*SMALL, *bad])
    whole = _execute(_run_config("dpo", source, **options), tmp_path / "whole")
    assert not list((tmp_path / "whole").glob("bootstrap*"))
    left_out = (tmp_path / "whole" / "left_out.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in left_out] == [f"{source}, line {n}" for n in (13, 14)]
    first = _run_config("dpo", source, **(options | {"rounds": 1}))
    _execute(first, tmp_path / "parts")
    source.unlink()
    parts = _execute(_run_config("dpo", source, **options), tmp_path / "parts")
    keys = ("policy/loss", "rewards/margins", "dev/nll_loss", "eval/nll_loss")

    def numbers(workdir):
        lines = [line for line in read_metrics(workdir) if any(key in line for key in keys)]
        return {(line["step"], key): line[key] for line in lines for key in keys if key in line}

    assert numbers(tmp_path / "whole").items() <= numbers(tmp_path / "parts").items()
    assert parts["heldout"] == whole["heldout"]
    development = {
        line["round"]: line["dev/nll_loss"]
        for line in read_metrics(tmp_path / "whole")
        if "dev/nll_loss" in line
    }
    assert whole["exported_round"] == min(development, key=development.__getitem__)
    rows = io.read_jsonl(tmp_path / "whole" / "row_tables.jsonl")[0]["rows"]
    assert rows == {"train": 8, "development": 2, "heldout": 2}
    assert whole["rows"]["left_out"] == 2
    assert "Held-out rows" in (tmp_path / "whole" / "report.html").read_text()


def test_changed_rows_are_refused_in_a_run_that_goes_on(tmp_path):
    source = _file(tmp_path, SMALL)
    config = _run_config("dpo", source)
    models = types.SimpleNamespace(tokenizer=TOKENIZER, decoder=Decoder(CONFIG))
    rows = own.open_rows(config, models, tmp_path)
    again = own.open_rows(config, models, tmp_path)
    np.testing.assert_array_equal(rows.train, again.train)
    _file(tmp_path, SMALL[1:])
    with pytest.raises(ValueError, match=r"is not what this run began with"):
        own.open_rows(config, models, tmp_path)
    one = [{**row, "label": True} for row in LABELLED]
    config = _run_config("kto", _file(tmp_path, one, "one.jsonl"))
    (tmp_path / "kto").mkdir()
    with pytest.raises(ValueError, match=r"every label .* is true, and .*'kto' needs both"):
        own.open_rows(config, models, tmp_path / "kto")
    few = _file(tmp_path, [PAIRS[0] | {"chosen": "No"}], "few.jsonl")
    config = _run_config("dpo", few)
    (tmp_path / "few").mkdir()
    with pytest.raises(
        ValueError, match=r"'dpo' 0 examples: of 1 rows 1 are left out .such as .*sides are"
    ):
        own.open_rows(config, models, tmp_path / "few")


def test_held_out_rows_of_another_source_are_not_trained_on(tmp_path):
    source, other = _file(tmp_path, SMALL), _file(tmp_path, SMALL[3:5], "held.jsonl")
    config = _run_config("dpo", source, data__heldout_source=str(other))
    models = types.SimpleNamespace(tokenizer=TOKENIZER, decoder=Decoder(CONFIG))
    rows = own.open_rows(config, models, tmp_path)
    assert len(rows.heldout) == 2 and rows.heldout_table is not rows.table
    assert sorted(rows.table.take(rows.train)["line"]) == [1, 2, 3, 6, 7, 8, 9, 10, 11, 12]


def test_a_stream_is_learned_from_without_its_held_out_prompts(tmp_path, monkeypatch):
    """Batches depend on the number of the update alone, though the blocks are made one by one."""
    monkeypatch.setattr(own, "_BLOCK", 4)
    rows = [SMALL[n % 12] | {"chosen": f"Tree {n}"} for n in range(18)]
    config = _run_config("dpo", _file(tmp_path, rows), data__streaming=True)
    models = types.SimpleNamespace(tokenizer=TOKENIZER, decoder=Decoder(CONFIG))

    def batches(folder, updates):
        folder.mkdir(exist_ok=True)
        made = own.open_rows(config, models, folder)
        ctx = types.SimpleNamespace(config=config, models=models)
        source = row_batches(ctx, made)
        held = {TOKENIZER.decode(made.table.take(made.heldout)["ids"][0][0]).split("\n")[0]}
        return held, [source.batch(update).rows for update in updates]

    held, whole = batches(tmp_path / "a", range(10))
    texts = [TOKENIZER.decode(t[m > 0]) for b in whole for t, m in zip(b.tokens_BT, b.mask_BT)]
    assert held and not any(text.split("\n")[0] in held for text in texts)
    assert {text.split("\n")[0] for text in texts} | held == {
        f"<s>{row['prompt']}" for row in SMALL
    }
    _, again = batches(tmp_path / "b", [9, 3])
    for rollout, update in zip(again, (9, 3), strict=True):
        np.testing.assert_array_equal(rollout.tokens_BT, whole[update].tokens_BT)


@pytest.mark.parametrize("kind", ["jsonl.gz", "json", "csv", "parquet", "saved", "folder"])
def test_every_kind_of_source_gives_the_same_rows(tmp_path, kind):
    rows = [
        {"messages": [{"role": "user", "content": row["prompt"]},
                      {"role": "assistant", "content": row["chosen"]}]} for row in SMALL
    ]  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["messages"])
            writer.writeheader()
            writer.writerows({"messages": json.dumps(row["messages"])} for row in rows)
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "saved":
        datasets.Dataset(table).save_to_disk(path)
    else:
        path.mkdir()
        pyarrow.parquet.write_table(table, path / "train-00000-of-00001.parquet")
    config = _run_config("sft", path)
    (tmp_path / "work").mkdir()
    check_source(config, tmp_path / "work")
    models = types.SimpleNamespace(tokenizer=TOKENIZER, decoder=Decoder(CONFIG))
    made = own.open_rows(config, models, tmp_path / "work")
    read = [TOKENIZER.decode(sides[0]) for sides in made.table.take(range(12))["ids"]]
    assert read == [f"<s>{row['prompt']}\n>{row['chosen']}</s>" for row in SMALL]
    again = own.open_rows(config, models, tmp_path / "work")
    assert again.table.path == made.table.path
