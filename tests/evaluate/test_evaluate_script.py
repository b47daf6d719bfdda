"""`gapo-jax evaluate`, both modes, from the command line's side."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gapo_jax import models
from gapo_jax.cli import evaluate as script
from gapo_jax.data.tiny_tokenizer import character_tokenizer, wordpiece_tokenizer

ROWS = [
    {"key": 1, "prompt": "Say hi. No commas.", "kwargs": [{}],
     "instruction_id_list": ["punctuation:no_comma"]},
    {"key": 2, "prompt": "Say bye with a title.", "kwargs": [{}],
     "instruction_id_list": ["detectable_format:title"]},
]  # fmt: skip


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def _read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_verifying_given_responses(tmp_path, capsys):
    prompts = _write(tmp_path / "p.jsonl", ROWS)
    answers = [{"prompt": row["prompt"], "response": "Hi there"} for row in ROWS[::-1]]
    responses = _write(tmp_path / "r.jsonl", answers)
    out = tmp_path / "out"
    code = script.main(["--prompts", prompts, "--responses", responses, "--out", str(out)])
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["instruction_strict"]["value"] == summary["prompt_loose"]["value"] == 0.5
    strict = _read(out / "eval_results_strict.jsonl")
    assert [row["follow_all_instructions"] for row in strict] == [True, False]
    assert [row["prompt"] for row in strict] == [row["prompt"] for row in ROWS]
    assert "prompt_strict" in capsys.readouterr().out


def test_rows_that_do_not_fit_are_named_and_left_out(tmp_path, capsys):
    odd = [
        {**ROWS[0], "prompt": "Odd.", "instruction_id_list": ["punctuation:no_coma"]},
        {**ROWS[0], "prompt": "Unfit.", "kwargs": [{"num_words": 3}]},
        {**ROWS[0], "prompt": "Free.", "instruction_id_list": [], "kwargs": []},
        {**ROWS[0], "prompt": "Unanswered."},
    ]
    prompts = _write(tmp_path / "p.jsonl", [ROWS[0], *odd, ROWS[1]])
    with open(prompts, "a", encoding="utf-8") as file:
        file.write("{torn\n")
    answers = [{"prompt": row["prompt"], "response": "Hi"} for row in (*ROWS, *odd[:3])]
    responses = _write(tmp_path / "r.jsonl", [*answers, {"prompt": "Unanswered."}])
    arguments = ["--prompts", prompts, "--responses", responses, "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    error = capsys.readouterr().err
    for part in (
        "line 2: constraint type: expected one of", "punctuation:no_comma", "line 3: kwargs of",
        "line 7: not valid JSON", "no constraint to verify", "line 6: expected the texts",
        "left out: r.jsonl: no response for prompt 2".replace("r.jsonl", responses),
    ):  # fmt: skip
        assert part in error, part
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["skipped_rows"]) == 6 and summary["responses"] == 2
    assert script.main([*arguments, "--strict"]) == 1


def test_strangers_blanks_and_thinking(tmp_path, capsys):
    """A response to a prompt that nobody asked for is named and counted, and ends nothing."""
    prompts = _write(tmp_path / "p.jsonl", [{**ROWS[0], "kwargs": "[{}]"}, ROWS[1]])
    answers = [
        {"prompt": f"{ROWS[0]['prompt']} ", "response": "<think>\nHi, or hello?\n</think>\n\nHi"},
        {"prompt": ROWS[1]["prompt"], "response": "<think>Which title?"},
        {"prompt": "Who are you?", "response": "Nobody."},
    ]
    responses = _write(tmp_path / "r.jsonl", answers)
    arguments = ["--prompts", prompts, "--responses", responses, "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    printed = capsys.readouterr()
    assert "line 3: it answers none of the prompts: 'Who are you?'" in printed.err
    assert "1 rows did not fit" in printed.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["prompt_strict"]["value"] == 0.5 and summary["responses"] == 2
    assert len(summary["skipped_rows"]) == 1 and summary["empty_responses"] == 1
    # With --limit the other prompts of the file are no strangers.
    assert script.main([*arguments[:-1], str(tmp_path / "one"), "--limit", "1"]) == 0
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert len(summary["skipped_rows"]) == 1 and summary["prompt_strict"]["value"] == 1


def test_constraint_types_of_a_file(tmp_path):
    plugin = tmp_path / "of_script_test.py"
    plugin.write_text(
        "class Short:\n"
        "    id = 'of_script_test:short'\n"
        "    def describe(self, constraint): return 'Be short.'\n"
        "    def check(self, constraint, response): return len(response) < 5\n"
    )
    row = {**ROWS[0], "instruction_id_list": ["of_script_test:short"]}
    prompts = _write(tmp_path / "p.jsonl", [row])
    responses = _write(tmp_path / "r.jsonl", [{"prompt": row["prompt"], "response": "Hi"}])
    arguments = ["--prompts", prompts, "--responses", responses, "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 1  # an unknown type
    assert script.main([*arguments, "--plugin", str(plugin)]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["types"]["of_script_test:short"]["strict"]["value"] == 1


def test_runs_on_other_prompts_are_not_compared(tmp_path, capsys):
    folders = []
    for number, row in enumerate(ROWS):
        prompts = _write(tmp_path / f"p{number}.jsonl", [row])
        responses = _write(tmp_path / f"r{number}.jsonl", [{**row, "response": "Hi"}])
        folders.append(str(tmp_path / f"out{number}"))
        arguments = ["--prompts", prompts, "--responses", responses, "--out", folders[-1]]
        arguments += ["--compare", folders[0]] if number else []
        assert script.main(arguments) == number
    assert "no prompt in common" in capsys.readouterr().err
    assert not Path(folders[1]).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no prompts"), ("[1]\n", "no prompts"), (None, "no such file")],
)
def test_bad_files_end_with_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "p.jsonl"
    if text is not None:
        path.write_text(text)
    arguments = ["--prompts", str(path), "--responses", str(path), "--out", str(tmp_path / "o")]
    assert script.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--model", "x", "--responses", "y"],
        ["--model", "x", "--batch-size", "0"],
        ["--model", "x", "--samples", "2"],
    ],
)
def test_bad_arguments_end_before_anything_is_read(extra):
    with pytest.raises(SystemExit):
        script.main(["--prompts", "p", "--out", "o", *extra])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a decoder with 128 positions and a token a character."""
    tokenizer = character_tokenizer()
    config = models.DecoderConfig(
        vocab_size=len(tokenizer), num_layers=1, d_model=16, num_heads=2, num_kv_heads=1,
        head_dim=8, d_ff=32, rope_theta=1e4, norm_eps=1e-5, max_positions=128,
        tie_embeddings=True, eos_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.bos_token_id,
    )  # fmt: skip
    decoder = models.Decoder(config)
    ones_BT = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(0), ones_BT, ones_BT)["params"]
    return models.save_hf(decoder, params, tmp_path_factory.mktemp("made") / "model", tokenizer)


def test_asking_a_model(tmp_path, monkeypatch, model):
    prompts = _write(tmp_path / "p.jsonl", [*ROWS, {**ROWS[0], "key": 3, "prompt": "Say " * 5}])
    arguments = ["--prompts", prompts, "--model", str(model), "--max-new-tokens", "8"]
    runs = []
    for out, size in (("a", "2"), ("b", "4")):
        options = ["--out", str(tmp_path / out), "--batch-size", size, "--temperature", "1"]
        assert script.main([*arguments, *options]) == 0
        runs.append([row["response"] for row in _read(tmp_path / out / "responses.jsonl")])
        strict = _read(tmp_path / out / "eval_results_strict.jsonl")
        assert [row["response"] for row in strict] == runs[-1]
        assert [row["prompt"] for row in strict][:2] == [row["prompt"] for row in ROWS]
    assert runs[0] == runs[1], "a response must not depend on the batch size"
    assert any(runs[0])
    _resumed(tmp_path, monkeypatch, arguments, runs[0])
    options = ["--out", str(tmp_path / "k"), "--samples", "2", "--temperature", "1"]
    assert script.main([*arguments, *options, "--compare", str(tmp_path / "a")]) == 0
    rows = _read(tmp_path / "k" / "responses.jsonl")
    assert [row["prompt"] for row in rows[:2]] == [ROWS[0]["prompt"]] * 2 and len(rows) == 6
    summary = json.loads((tmp_path / "k" / "summary.json").read_text())
    assert (summary["prompts"], summary["responses"]) == (3, 6)
    assert summary["comparison"]["prompts"] == 3 and summary["comparison"]["mcnemar"] == {}


def _resumed(tmp_path, monkeypatch, arguments, wanted):
    """Stop after the first batch; the same command goes on and ends with the same responses."""
    options = ["--out", str(tmp_path / "c"), "--batch-size", "2", "--temperature", "1"]
    options.append("--whole-batches")
    add = script.ResponseStore.add

    def stop(self, batch, texts):
        add(self, batch, texts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.ResponseStore, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            script.main([*arguments, *options])
    partial = tmp_path / "c" / script.ResponseStore.NAME
    assert len(partial.read_text().splitlines()) == 2
    assert script.main([*arguments, *options, "--seed", "5"]) == 1  # not the same command
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(
            script.ResponseStore, "add", lambda s, b, t: (asked.append(b), add(s, b, t))[1]
        )
        assert script.main([*arguments, *options]) == 0
    assert asked == [1] and not partial.exists()
    assert [row["response"] for row in _read(tmp_path / "c" / "responses.jsonl")] == wanted


def test_prompts_too_long_for_the_model_are_left_out_before_it_is_asked(tmp_path, model, capsys):
    long = {**ROWS[0], "key": "long", "prompt": "Say " * 40}
    prompts = _write(tmp_path / "p.jsonl", [ROWS[0], long, ROWS[1]])
    arguments = ["--prompts", prompts, "--model", str(model), "--max-new-tokens", "8"]
    arguments += ["--batch-size", "2", "--out"]
    assert script.main([*arguments, str(tmp_path / "strict"), "--strict"]) == 1
    assert script.main([*arguments, str(tmp_path / "none"), "--max-prompt-tokens", "9"]) == 1
    assert capsys.readouterr().err.count("--max-prompt-tokens 9") == 4  # each row, and the end
    assert not (tmp_path / "strict").exists() and not (tmp_path / "none").exists()
    assert script.main([*arguments, str(tmp_path / "out")]) == 0
    assert "key 'long': wanted a prompt of 1 to 120 tokens" in capsys.readouterr().err
    rows = _read(tmp_path / "out" / "responses.jsonl")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["skipped_rows"]) == 1 and summary["prompts"] == 2


def test_a_kill_while_verifying_costs_no_response(tmp_path, monkeypatch, model):
    def killed(*_):
        raise KeyboardInterrupt

    prompts = _write(tmp_path / "p.jsonl", ROWS)
    arguments = ["--prompts", prompts, "--model", str(model), "--max-new-tokens", "8"]
    arguments += ["--batch-size", "2", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(script.accuracy, "verify", killed)
        with pytest.raises(KeyboardInterrupt):
            script.main(arguments)
    monkeypatch.setattr(script.ResponseStore, "add", killed)  # nothing is asked a second time
    assert script.main(arguments) == 0
    assert (tmp_path / "out" / "summary.json").is_file()
    assert not (tmp_path / "out" / script.ResponseStore.NAME).exists()


def test_a_scorer_gives_a_second_opinion(tmp_path, capsys):
    tokenizer = wordpiece_tokenizer()
    config = models.EncoderConfig(
        vocab_size=len(tokenizer), num_layers=1, d_model=8, num_heads=1, d_ff=8, max_positions=64
    )
    module, ones_BT = models.Discriminator(config), jnp.ones((1, 4), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), ones_BT, ones_BT)["params"]
    folder = models.save_hf(module, params, tmp_path / "run" / "scorer", tokenizer)
    prompts = _write(tmp_path / "p.jsonl", ROWS)
    answers = [{"prompt": row["prompt"], "response": "Hi there"} for row in ROWS]
    responses = _write(tmp_path / "r.jsonl", answers)
    arguments = ["--prompts", prompts, "--responses", responses, "--out", str(tmp_path / "out")]
    assert script.main([*arguments, "--scorer", str(folder), "--batch-size", "2"]) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["second_opinion"]
    assert found["scorer"] == str(folder) and found["agreement"] == 0.5 and found["auc"] is not None
    printed = capsys.readouterr()
    assert "second opinion of" in printed.out and "warning" not in printed.err
    for name in ("scorer/export", "other"):
        (folder.parent / name).mkdir()
    near = {"run": True, "run/scorer": True, "run/scorer/export": True}
    for model, told in {**near, "run/other": False, "r.jsonl": False, "no/such": False}.items():
        arguments = ["--prompts", "p", "--out", "o", "--model", str(tmp_path / model)]
        script.warn_of_own_scorer(script.parse_arguments([*arguments, "--scorer", str(folder)]))
        assert ("trained to please" in capsys.readouterr().err) == told, model
