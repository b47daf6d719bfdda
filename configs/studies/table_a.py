"""The paper's tables 4 and 6 at the size of the quickstart: SmolLM2-135M, its data and its budget.

    python scripts/study.py --config configs/studies/table_a.py [--processes N] [--only PATTERN]

Every arm makes 30 updates of its policy, of 16 rows each (8 pairs for a pairwise method), from the
same bootstrap of 288 responses and the same 800 pairs. Online arms sample 960 responses besides.
ppo is the quickstart with a discriminator that stays as its warm-up left it; gapo differs from it
by nothing but the discriminator's updates. Held-out sets have 192 prompts each; choices were made
on 96 development prompts of other topics.
"""

from typing import Any

from gapo_jax.cli.studies.definition import Arm, Study

QUICKSTART = "configs/gapo_quickstart.py"
OFFLINE = {"rounds": 3}
EVAL = {
    "eval.prompts_per_set": 192,
    "eval.development_prompts": 96,
    "eval.trip_wires": True,
    "eval.likelihood": True,
}
RESPONSES = {"data.preference": "responses"}
THREE, FIVE = (0, 1, 2), (0, 1, 2, 3, 4)


PPO = {"method": "ppo"}
VERIFIED = {"discriminator.label_policy": "verified"}
PAPER = {"discriminator.label_policy": "paper"}
# Which prompts the generated text of the discriminator answers: the paper's, or others.
PAIRS = {"discriminator.generated_prompts": "pairs"}
ROLLOUTS = {"discriminator.generated_prompts": "rollouts"}


def get_study() -> Study:
    """Return the study."""
    return Study(
        about=(
            "Does a discriminator that is trained online teach constraints better than a frozen "
            "one, than preferential responses, than offline methods? "
            "`configs/studies/table_a.py` says what is equal."
        ),
        seeds=THREE,
        set=EVAL,
        reference="ppo",
        arms=(
            Arm("sft", "configs/sft.py", OFFLINE | {"offline.batch_size": 16}, group="offline"),
            Arm("dpo", "configs/dpo.py", OFFLINE, group="offline"),
            Arm("kto", "configs/kto.py", OFFLINE, group="offline"),
            Arm("simpo", "configs/simpo.py", OFFLINE, group="offline"),
            Arm("orpo", "configs/orpo.py", OFFLINE, group="offline"),
            Arm("ppo", QUICKSTART, PPO | ROLLOUTS, "ppo, frozen discriminator", "online", FIVE),
            _gapo("gapo_verified_pairs", VERIFIED | PAIRS, "labels verified, the pairs' prompts"),
            _gapo("gapo_verified_rollouts", VERIFIED | ROLLOUTS, "labels verified, other prompts"),
            _gapo("gapo_paper_pairs", PAPER | PAIRS, "labels of the paper, the pairs' prompts"),
            _gapo("gapo_paper_rollouts", PAPER | ROLLOUTS, "labels of the paper, other prompts"),
            Arm("ppo_responses", QUICKSTART, PPO | ROLLOUTS | RESPONSES,
                "ppo, preferential responses", "responses", FIVE),
            Arm("gapo_responses", QUICKSTART, VERIFIED | ROLLOUTS | RESPONSES,
                "gapo, labels verified, preferential responses", "responses", FIVE),
        ),
    )  # fmt: skip


def _gapo(name: str, changes: dict[str, Any], label: str) -> Arm:
    # Two seeds first; the two arms that are best on development prompts get FIVE.
    return Arm(name, QUICKSTART, changes, f"gapo, {label}", "gapo", (0, 1))
