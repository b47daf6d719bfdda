"""What each kind of row gives to learn from, against what a person would write down."""

from __future__ import annotations

import json

import pytest

from gapo_jax.data import schemas
from gapo_jax.data.training_rows import examples_of, kind_of, prompt_hash, texts_of

ASK, MORE = {"role": "user", "content": "Name a tree."}, {"role": "user", "content": "Another."}
OAK, ASH = ({"role": "assistant", "content": text} for text in ("An oak.", "An ash."))
KIND = {"role": "system", "content": "Be kind."}
NO_COMMA = {"id": "punctuation:no_comma", "kwargs": {}}
ROWS = {
    "completion": {"prompt": "Name a tree.", "completion": "An oak."},
    "alpaca": {"instruction": "Name it.", "input": "It is tall.", "output": "An oak."},
    "messages": {"messages": [KIND, ASK, OAK, MORE, ASH]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Name a tree."},
                                   {"from": "gpt", "value": "An oak."}]},
    "pair": {"prompt": "Name a tree.", "chosen": "An oak.", "rejected": "No."},
    "whole dialogues": {"prompt": "Name a tree.", "chosen": [ASK, OAK], "rejected": [ASK, ASH],
                        "messages": [ASK, OAK], "score_chosen": 8.0, "score_rejected": 3.5},
    "transcripts": {"chosen": "\n\nHuman: Name a tree.\n\nAssistant: An oak.",
                    "rejected": "\n\nHuman: Name a tree.\n\nAssistant: No."},
    "good": {"messages": [ASK, OAK], "label": True},
    "bad": {"prompt": "Name a tree.", "completion": "No.", "label": False},
    "scored": {"prompt": "Name a tree.", "responses": ["No.", "An oak.", "Ash?", "Tree."],
               "scores": [0.5, 9, 4, 2]},
    "objects": {"instruction": "Name a tree.",
                "completions": [{"response": "No.", "overall_score": 1.0},
                                {"response": "An oak.", "overall_score": 7.5}]},
    "preferential": {"task": "Name a tree.", "response": "An oak", "accepted": [NO_COMMA],
                     "rejected": [NO_COMMA], "prompt_accepted": "Name a tree. No commas.",
                     "prompt_rejected": "Name a tree. Use commas."},
}  # fmt: skip
TREE = (("user", "Name a tree."),)


def _examples(name, want, **options):
    """(turns before the answer, answer, reward) of every side of every example of a row."""
    record = ROWS[name]
    made = examples_of(
        record, schemas.recognise(record), want, train_on=options.pop("train_on", "all"), **options
    )
    return [
        [
            (tuple((t.role, t.text) for t in a.turns[:-1]), a.turns[-1].text, a.reward)
            for a in example
        ]
        for example in made
    ]


@pytest.mark.parametrize(
    ("row", "want", "examples"),
    [
        ("completion", "demonstrations", [[(TREE, "An oak.", 1.0)]]),
        ("alpaca", "demonstrations",
         [[((("user", "Name it.\n\nIt is tall."),), "An oak.", 1.0)]]),
        ("sharegpt", "demonstrations", [[(TREE, "An oak.", 1.0)]]),
        ("pair", "demonstrations", [[(TREE, "An oak.", 1.0)]]),
        ("good", "demonstrations", [[(TREE, "An oak.", 1.0)]]),
        ("pair", "pairs", [[(TREE, "An oak.", 1.0), (TREE, "No.", 0.0)]]),
        ("whole dialogues", "pairs", [[(TREE, "An oak.", 1.0), (TREE, "An ash.", 0.0)]]),
        ("transcripts", "pairs", [[(TREE, "An oak.", 1.0), (TREE, "No.", 0.0)]]),
        ("preferential", "pairs",
         [[((("user", "Name a tree. No commas."),), "An oak", 1.0),
           ((("user", "Name a tree. Use commas."),), "An oak", 0.0)]]),
        ("pair", "labelled", [[(TREE, "An oak.", 1.0)], [(TREE, "No.", 0.0)]]),
        ("good", "labelled", [[(TREE, "An oak.", 1.0)]]),
        ("bad", "labelled", [[(TREE, "No.", 0.0)]]),
        ("bad", "comparisons", [[(TREE, "No.", 0.0)]]),
        ("pair", "scored", [[(TREE, "An oak.", 1.0), (TREE, "No.", 0.0)]]),
        ("whole dialogues", "scored", [[(TREE, "An oak.", 8.0), (TREE, "An ash.", 3.5)]]),
        ("scored", "scored", [[(TREE, "An oak.", 9.0), (TREE, "No.", 0.5)]]),
        ("objects", "scored", [[(TREE, "An oak.", 7.5), (TREE, "No.", 1.0)]]),
        ("scored", "comparisons",
         [[(TREE, "An oak.", 1.0), (TREE, "No.", 0.0)],
          [(TREE, "Ash?", 1.0), (TREE, "Tree.", 0.0)]]),
    ],
)  # fmt: skip
def test_a_row_gives_these_examples(row, want, examples):
    assert _examples(row, want) == examples


def test_more_than_two_scored_responses_keep_the_best_and_the_worst():
    sides = _examples("scored", "scored", sides=3)
    assert [(answer, reward) for _, answer, reward in sides[0]] == [
        ("An oak.", 9.0), ("No.", 0.5), ("Tree.", 2.0)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"wanted 3 scored responses .* got 2"):
        _examples("objects", "scored", sides=3)


@pytest.mark.parametrize(("train_on", "trained"), [("all", [2, 4]), ("last", [4])])
def test_the_answers_that_are_trained_on(train_on, trained):
    record = ROWS["messages"]
    ((answer,),) = examples_of(record, "messages", "demonstrations", train_on=train_on)
    assert [i for i, turn in enumerate(answer.turns) if turn.trained] == trained
    assert [turn.role for turn in answer.turns[:2]] == ["system", "user"]


def test_the_last_answer_alone_of_whatever_has_two_sides():
    pair = {"chosen": [ASK, OAK, MORE, ASH], "rejected": [ASK, OAK, MORE, OAK]}
    ((chosen, rejected),) = examples_of(pair, "chosen_rejected", "pairs", train_on="all")
    for side in (chosen, rejected):
        assert [turn.trained for turn in side.turns] == [False, False, False, True]


@pytest.mark.parametrize(
    ("record", "want", "reason"),
    [
        (ROWS["bad"], "demonstrations", "its label is false"),
        (ROWS["messages"], "pairs", "it gives demonstrations, and the method learns from pairs"),
        (ROWS["scored"], "pairs", "it gives scored"),
        (ROWS["completion"], "labelled", "it gives demonstrations"),
        (ROWS["good"], "scored", "it gives labelled"),
        ({"prompt": "a", "completion": "  "}, "demonstrations", "answer is empty"),
        ({"messages": [ASK, OAK, MORE]}, "demonstrations", "ends with a turn of the user"),
        ({"messages": [OAK]}, "demonstrations", "an answer and no prompt"),
        ({"messages": [ASK, OAK | {"weight": 0}]}, "demonstrations", "weight 0"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "pairs", "both sides are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "labelled", "answer is empty"),
        ({"chosen": "b", "rejected": "c"}, "pairs", "no prompt"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]}, "comparisons", "are equal"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1]}, "scored", "list of 2 scores"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1, None]}, "scored", "finite number"),
        ({"messages": [ASK, OAK], "images": ["x.png"]}, "demonstrations", "'images'"),
        ({"messages": [ASK, OAK | {"tool_calls": [{}]}]}, "demonstrations", "'tool_calls'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_its_reason(record, want, reason):
    with pytest.raises(ValueError, match=reason):
        examples_of(record, schemas.recognise(record), want, train_on="all")


def test_kinds():
    kinds = {name: kind_of(record, schemas.recognise(record)) for name, record in ROWS.items()}
    assert kinds == {
        "completion": "demonstrations", "alpaca": "demonstrations", "messages": "demonstrations",
        "sharegpt": "demonstrations", "pair": "pairs", "whole dialogues": "pairs",
        "transcripts": "pairs", "good": "labelled", "bad": "labelled", "scored": "scored",
        "objects": "scored", "preferential": "preferential prompts",
    }  # fmt: skip
    asked = {"prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert kind_of(asked, "ifeval") == "prompts"
    assert kind_of({**asked, "response": "b"}, "ifeval") == "demonstrations"


def test_scored_rows_are_read_in_lint_and_mining_too():
    record = ROWS["scored"] | {"models": ["a", "b"], "other": 1}
    assert schemas.recognise(record) == "scored"
    assert schemas.unused(record, "scored") == ["other"]
    assert schemas.prompt_and_response(record, "scored") == ("Name a tree.", "An oak.")
    assert schemas.recognise({"prompt": "a", "completions": ["b"], "response": "c"}) != "scored"


def test_rows_of_one_prompt_share_a_hash():
    def hashed(record):
        schema = schemas.recognise(record)
        want = "pairs" if "chosen" in record or schema == "preferential" else "demonstrations"
        return prompt_hash(record, examples_of(record, schema, want, train_on="all")[0])

    same = [ROWS["completion"], ROWS["pair"], {"messages": json.dumps([ASK, ASH])}]
    assert len({hashed(record) for record in same}) == 1
    assert hashed(ROWS["alpaca"]) != hashed(same[0])
    other = ROWS["preferential"] | {"prompt_accepted": "Name a tree. In verse."}
    assert hashed(other) == hashed(ROWS["preferential"])


def test_dialogues_as_a_discriminator_reads_them():
    ((answer,),) = examples_of(ROWS["messages"], "messages", "demonstrations", train_on="last")
    assert texts_of(answer) == (
        "Be kind.\n\nuser: Name a tree.\n\nassistant: An oak.\n\nuser: Another.", "An ash."
    )  # fmt: skip
    record = {"messages": [KIND, ASK, OAK]}
    ((answer,),) = examples_of(record, "messages", "demonstrations", train_on="last")
    assert texts_of(answer) == ("Be kind.\n\nName a tree.", "An oak.")
