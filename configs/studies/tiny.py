"""Two arms and two seeds on networks from random weights: the whole of `study` in two minutes.

    python scripts/study.py --config configs/studies/tiny.py --out results --runs runs/studies

The text is not worth reading and the gains say nothing. The tests run it.
"""

from gapo_jax.cli.studies.definition import Arm, Study


def get_study() -> Study:
    """Return the study."""
    return Study(
        about="Networks from random weights: whether a study runs, not what a method does.",
        seeds=(0, 1),
        reference="sft",
        set={
            "rounds": 2,
            "offline.steps_per_round": 1,
            "data.bootstrap_responses": 32,
            "data.pairs": 16,
            "data.pairs_heldout": 4,
            "data.prompts": 8,
            "sampling.max_new_tokens": 12,
            "eval.prompts_per_set": 8,
            "eval.development_prompts": 8,
            "eval.trip_wires": True,
        },
        arms=(
            Arm("sft", "configs/sft.py:tiny", label="SFT"),
            Arm("dpo", "configs/dpo.py:tiny", {"dpo.beta": 0.2}, label="DPO"),
        ),
    )
