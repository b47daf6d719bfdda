"""Mining: proven, closed, balanced, split without a leak; the script and its data card."""

import collections
import dataclasses
import json
import subprocess
import sys

import pytest
from by_path import ROOT, load

from gapo_jax import constraints, io
from gapo_jax.cli import build_data as script
from gapo_jax.constraints.text import MAX_TEXT
from gapo_jax.data import mining, selection, sources
from gapo_jax.data.card import card, card_markdown, histogram
from gapo_jax.data.groups import asked_for, compatible
from gapo_jax.data.recipe import Recipe
from gapo_jax.types import Constraint, PreferentialPair

ROWS = load("tests/data/rows.py").rows()
TYPES = constraints.resolve(
    "no_comma number_words existence forbidden_words title number_sentences quotation".split()
)
SETTINGS = mining.Mining(TYPES, per_task=10)


@pytest.fixture(scope="module")
def cycles():
    groups = collections.defaultdict(list)
    for task, response in ROWS:
        groups[task].append(response)
    return [c for task, texts in groups.items() for c in mining.mine_task(task, texts, SETTINGS)]


def _pairs(cycles):
    return [pair for cycle in cycles for pair in cycle]


def _verdicts(chosen, response):
    return constraints.check(response, [c.id for c in chosen], [dict(c.kwargs) for c in chosen])


def test_cycles_are_proven_and_closed(cycles):
    pairs = _pairs(cycles)
    assert len(pairs) > 30 and {len(cycle) for cycle in cycles} == {2, 3}
    for pair in pairs:
        assert all(_verdicts(pair.accepted, pair.response))
        assert not all(_verdicts(pair.rejected, pair.response))
    for cycle in cycles:
        assert len({pair.task for pair in cycle}) == 1
        accepted = collections.Counter(pair.prompt_accepted for pair in cycle)
        assert accepted == collections.Counter(pair.prompt_rejected for pair in cycle)


def test_balance_and_split_keep_cycles_whole(cycles):
    train, test = selection.split_by_task(cycles, 0.4, seed=1)
    assert train and test
    for part in (train, test):
        chosen = selection.balance(part, 9)
        pairs = _pairs(chosen)
        assert 6 <= len(pairs) <= 9
        accepted = collections.Counter(pair.prompt_accepted for pair in pairs)
        assert accepted == collections.Counter(pair.prompt_rejected for pair in pairs)
    tasks = [{pair.task for pair in _pairs(part)} for part in (train, test)]
    texts = [{pair.response for pair in _pairs(part)} for part in (train, test)]
    assert not tasks[0] & tasks[1] and not texts[0] & texts[1]
    fewer = selection.split_by_task(cycles[::2], 0.4, seed=1)  # a task's side does not move
    assert {p.task for p in _pairs(fewer[0])} <= tasks[0]
    with pytest.raises(ValueError, match="test_fraction: wanted"):
        selection.split_by_task(cycles, 1.0)


def _pair(number, type_id, edit="modify"):
    one, two = Constraint(type_id, {"n": number}), Constraint(type_id, {"n": -number})
    prompts = f"a {type_id} {edit} {number}", f"r {type_id} {edit} {number}"
    return PreferentialPair("t", "r", (one,), (two,), *prompts, edit, type_id)


def test_balance_takes_rare_types_and_kinds_first_and_nothing_twice():
    common = [[_pair(i, "a:x")] for i in range(50)] + [
        [_pair(i, "a:x", "insert")] for i in range(9)
    ]
    rare = [[_pair(i, "b:y")] for i in range(8)]
    chosen = _pairs(selection.balance([*common, *rare, *rare], 20))
    counts = collections.Counter((pair.type, pair.edit) for pair in chosen)
    assert counts == {("b:y", "modify"): 8, ("a:x", "modify"): 6, ("a:x", "insert"): 6}
    everything = _pairs(selection.balance([*common, *rare, *rare], None))
    assert len(everything) == len(set(map(repr, everything))) == 67


def test_preferential_responses_come_of_the_same_cycles(cycles):
    rows = mining.response_pairs(cycles)
    assert len(rows) == len(_pairs(cycles))
    for row in rows:
        asked = [Constraint.from_json(item) for item in row["constraints"]]
        assert all(_verdicts(asked, row["chosen"])) and not all(_verdicts(asked, row["rejected"]))
    prompts = collections.Counter(row["prompt"] for row in rows)
    assert prompts == collections.Counter(pair.prompt_accepted for pair in _pairs(cycles))
    # Within a cycle every response is chosen as often as rejected.
    assert sorted(r["chosen"] for r in rows) == sorted(r["rejected"] for r in rows)


def test_open_pairs_leave_the_response_alone():
    settings = mining.Mining(TYPES, per_task=8, pairing="open")
    task, response = ROWS[0]
    pairs = _pairs(mining.mine_task(task, [f" {response} "], settings))
    assert len(pairs) >= 6 and {pair.response for pair in pairs} == {response}
    assert {pair.edit for pair in pairs} <= {"modify", "insert", "polarity"}
    for pair in pairs:
        constraints.verify_pair(pair)
    assert mining.response_pairs([[pair] for pair in pairs]) == []
    none = mining.Mining(("detectable_format:json_format",), pairing="closed", edited_fraction=0)
    assert mining.mine_task(task, [response], none) == []
    assert mining.mine_task(task, ["  "], SETTINGS) == mining.mine_task(" ", ["x"], SETTINGS) == []


def test_a_task_is_mined_alike_whatever_stands_beside_it():
    task = ROWS[0][0]
    own = [response for other, response in ROWS if other == task]
    alone = mining.mine(((task, r) for r in own), SETTINGS)
    among = mining.mine(ROWS, SETTINGS)
    assert alone == [cycle for cycle in among if cycle[0].task == task]
    assert alone == mining.mine_task(task, own, SETTINGS)
    with pytest.raises(ValueError, match="nothing to mine"):
        mining.mine([], SETTINGS)


def test_nothing_torn_out_of_a_response_is_asked_for():
    def asked(type_id, **kwargs):
        return asked_for(Constraint(type_id, kwargs), "Say hi.")

    assert asked("combination:repeat_prompt", prompt_to_repeat="Say hi.")
    assert not asked("combination:repeat_prompt", prompt_to_repeat="<<Hi>>\nIt was")
    assert asked("startend:end_checker", end_phrase="Good luck with it.")
    assert not asked("startend:end_checker", end_phrase="and then the")
    paragraphs = {"num_paragraphs": 2, "nth_paragraph": 1}
    first = "length_constraints:nth_paragraph_first_word"
    assert asked(first, first_word="we", **paragraphs)
    assert not asked(first, first_word="**we", **paragraphs)
    assert asked("punctuation:no_comma")


def test_variants_of_a_task_stand_on_one_side():
    forms = ("Write about {}.", " Write  about {}.\n", "WRITE\tabout {}.")
    cycles = [
        [dataclasses.replace(_pair(i, "a:x"), task=form.format(i), response=f"{form} {i}")]
        for i in range(40)
        for form in forms
    ]
    sides = selection.split_by_task(cycles, 0.4, seed=1)
    numbers = [collections.Counter(p.task.split()[-1] for p in _pairs(side)) for side in sides]
    assert all(set(counts.values()) == {len(forms)} for counts in numbers)
    assert not numbers[0].keys() & numbers[1].keys()


def test_open_prompts_ask_for_nothing_contradictory():
    """Over all types that may be trained on."""
    settings = mining.Mining(
        constraints.resolve(["all"]), per_task=40, max_constraints=3, pairing="open"
    )
    found = 0
    for task, response in ROWS[::3]:
        for pair in _pairs(mining.mine_task(task, [response], settings)):
            found += 1
            for side in (pair.accepted, pair.rejected):
                assert compatible(side), [constraint.id for constraint in side]
    assert found > 100


def test_texts_beyond_every_verifier_are_not_mined(monkeypatch):
    seen = []
    monkeypatch.setattr(mining, "_closed", lambda task, texts, *_: seen.extend(texts) or [])
    longest = "a" * MAX_TEXT
    settings = mining.Mining(TYPES, pairing="closed")
    assert mining.mine_task("Say.", [longest + "a", f" {longest} ", "b"], settings) == []
    assert seen == [longest, "b"]
    assert mining.mine_task("Say.", [longest + "a"], settings) == []


def test_responses_may_answer_the_prompts_of_any_source(tmp_path):
    paths = [tmp_path / "p1.jsonl", tmp_path / "p2.jsonl", tmp_path / "r.jsonl"]
    for path, prompts in zip(paths, ("ab", "cd", "abcdz"), strict=True):
        rows = [{"prompt": p, **({"response": p * 2} if path == paths[2] else {})} for p in prompts]
        io.write_jsonl(path, rows)
    with paths[2].open("a") as file:
        file.write("{torn\n")
    both = Recipe(tuple(map(str, paths[:2])), SETTINGS, responses=str(paths[2]))
    found = [row for source in both.sources for row in both.read(source)]
    assert [row for row in found if isinstance(row, tuple)] == [(p, p * 2) for p in "abcd"]
    (problem,) = [row for row in found if isinstance(row, str)]  # named once
    assert "not valid JSON" in problem
    one = dataclasses.replace(both, sources=both.sources[:1])
    problems = [row for row in one.read(one.sources[0]) if isinstance(row, str)]
    assert len(problems) == 4 and "answers none of the prompts" in problems[1]


def test_a_curriculum_can_ask_for_near_misses():
    near = mining.Mining(TYPES, per_task=10, difficulty=(0.4, 0.99))
    found = _pairs(mining.mine(ROWS, near))
    assert found and all(0.4 <= constraints.difficulty(pair) <= 0.99 for pair in found)
    for wrong in ({"difficulty": (0.5, 0.2)}, {"pairing": "none"}, {"per_task": 0}):
        with pytest.raises(ValueError, match="wanted|needs"):
            mining.Mining(TYPES, **wrong)


def test_the_card_counts_what_is_there(cycles):
    pairs = _pairs(cycles)
    record = card({"train": pairs, "test": []}, {"source": "rows.py"})
    split = record["splits"]["train"]
    assert split["pairs"] == len(pairs) and split["prompt_balance"] == 1.0
    assert sum(n for kinds in split["types"].values() for n in kinds.values()) == len(pairs)
    assert sum(split["response_words"].values()) == len(pairs)
    assert len(record["samples"]) == 10 and record["splits"]["test"] == {"pairs": 0}
    text = card_markdown(record)
    assert text.count("### ") == 10 and "| punctuation:no_comma |" in text and "rows.py" in text
    assert histogram(["a b", "a " * 10, "a " * 5000]) == {
        "0-9": 1, "10-19": 1, "20-39": 0, "40-79": 0, "80-159": 0, "160-319": 0, "320-639": 0,
        "640-1279": 0, "1280+": 1,
    }  # fmt: skip


def _source(tmp_path):
    lines = [json.dumps({"instruction": task, "output": text}) for task, text in ROWS]
    lines[3:3] = ["{torn", json.dumps({"instruction": "no answer"}), json.dumps([1])]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_script_mines_any_file_and_names_odd_rows(tmp_path, capsys):
    source, out = _source(tmp_path), tmp_path / "out"
    arguments = ["mine", "--source", str(source), "--out", str(out), "--per-task", "6"]
    arguments += ["--types", ",".join(TYPES), "--test-fraction", "0.4", "--seed", "1"]
    assert script.main(arguments) == 0
    error = capsys.readouterr().err
    assert "line 4: not valid JSON" in error and "line 5: no schema fits" in error
    assert "line 6: wanted a JSON object" in error
    made = {name: sources.read_pairs(out / f"{name}.jsonl") for name in ("pairs", "pairs_test")}
    assert not {p.task for p in made["pairs"]} & {p.task for p in made["pairs_test"]}
    record = json.loads((out / "card.json").read_text())
    assert record["facts"]["rows left out"] == 3 and record["facts"]["rows"] == len(ROWS) + 3
    assert len((out / "left_out.txt").read_text().splitlines()) == 3
    assert len((out / "response_pairs.jsonl").read_text().splitlines()) == len(made["pairs"])
    assert script.main([*arguments, "--strict"]) == 1
    assert "line 4" in capsys.readouterr().err
    # More processes, the same files; a process of its own, since forking after JAX warns.
    again = [*arguments[:4], str(tmp_path / "two"), *arguments[5:], "--num-proc", "2"]
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "build_data.py"), *again],
        check=True, capture_output=True, cwd=ROOT, env=_environment(),
    )  # fmt: skip
    for name in ("pairs.jsonl", "pairs_test.jsonl", "response_pairs.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (out / name).read_bytes()


def test_a_clean_mine_into_an_old_folder_leaves_no_old_list(tmp_path):
    out, source = tmp_path / "out", tmp_path / "rows.jsonl"
    arguments = ["mine", "--source", str(source), "--out", str(out), "--per-task", "2"]
    arguments += ["--types", "no_comma,number_words", "--test-fraction", "0"]
    lines = [json.dumps({"prompt": task, "completion": text}) for task, text in ROWS[:2]]
    for extra, told in ((["{torn"], True), ([], False)):
        source.write_text("\n".join([*lines, *extra]))
        assert script.main(arguments) == 0
        assert (out / "left_out.txt").exists() == told


PLUGIN = """
from gapo_jax.constraints import TrainableType

class Marked(TrainableType):
    id = "mine:marked"
    train = ("Begin with {mark}.", "Put {mark} first.", "Let {mark} stand in front.")
    heldout = ("What comes first is {mark}.",)

    def check(self, constraint, response, prompt=""):
        return response.startswith(constraint.kwargs["mark"])

    def propose(self, rng, response, satisfied, words, task):
        first = response[:1] if response else "A"
        return {"mark": first if satisfied else "AB"[first == "A"]}

class Polite:
    id = "mine:polite"

    def describe(self, constraint):
        return "Say please."

    def check(self, constraint, response):
        return "please" in response
"""


def test_constraint_types_of_ones_own_are_mined(tmp_path, capsys):
    """On several processes too, each of which loads the file."""
    plugin, out = tmp_path / "marks_to_mine.py", tmp_path / "out"
    plugin.write_text(PLUGIN)
    arguments = ["mine", "--source", str(_source(tmp_path)), "--out", str(out), "--plugin"]
    arguments += [str(plugin), "--num-proc", "2", "--types"]
    command = [sys.executable, str(ROOT / "scripts" / "build_data.py"), *arguments]
    subprocess.run(
        [*command, "no_comma,marked"], check=True, capture_output=True, cwd=ROOT,
        env=_environment(),
    )  # fmt: skip
    asked = {c.id for line in (out / "pairs.jsonl").read_text().splitlines()
             for c in PreferentialPair.from_json(json.loads(line)).accepted}  # fmt: skip
    assert "mine:marked" in asked
    # A type that only verifies makes no prompts, and the message says what it lacks.
    assert script.main([*arguments, "no_comma,polite"]) == 1
    error = capsys.readouterr().err
    assert "mine:polite has no `sample` and `modify`" in error and "--types" in error
    assert script.main([*arguments[:6], str(tmp_path / "gone.py")]) == 1
    assert "expected a Python file (.py), found none" in capsys.readouterr().err


def test_mining_nothing_is_an_error_that_says_what_to_change(tmp_path, capsys):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    io.write_jsonl(source, [{"prompt": "Say hi.", "completion": "Hi there."}])
    arguments = ["mine", "--source", str(source), "--out", str(out), "--types", "json_format"]
    assert script.main([*arguments, "--pairing", "closed", "--edited-fraction", "0"]) == 1
    error = capsys.readouterr().err
    assert "wanted pairs for training, got none" in error and "--types json_format" in error
    assert not out.exists()


def test_sources_are_mixed_by_weight(tmp_path):
    paths = []
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}{i}", "completion": "x"} for i in range(30)]
        paths.append(str(tmp_path / f"{name}.jsonl"))
        io.write_jsonl(paths[-1], rows)
    arguments = ["mine", "--source", paths[0], "--also", paths[1], "--out", str(tmp_path / "o")]
    counts = []
    for extra in ([], ["--weights", "3", "1"]):
        options = script.parse_arguments([*arguments, *extra])
        rows, problems, total = script.mixed_rows(script.make_recipe(options), options.weights)
        assert not problems and total == 60 and len(set(rows)) == len(rows)
        counts.append(collections.Counter(task[0] for task, _ in rows))
    assert counts[0] == {"a": 30, "b": 30}
    assert counts[1]["a"] == 30 and counts[1]["b"] < 25
    assert script.main([*arguments, "--weights", "1"]) == 1


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
