"""The paper's tables 4 and 6 at the size of the quickstart: SmolLM2-135M, its data and its budget.

    python scripts/study.py --config configs/studies/table_a.py [--processes N] [--only PATTERN]

Every arm makes 30 updates of its policy, of 16 rows each (8 pairs for a pairwise method), from the
same bootstrap of 288 responses and the same 800 pairs. Online arms sample 960 responses besides.
ppo is the quickstart with a discriminator that stays as its warm-up left it; gapo differs from it
by nothing but the discriminator's updates. Held-out sets have 192 prompts each; choices were made
on 96 development prompts of other topics.
"""

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


def get_study() -> Study:
    """Return the study."""
    verified = {"discriminator.label_policy": "verified"}
    paper = {"discriminator.label_policy": "paper"}
    return Study(
        about=(
            "Does a discriminator that is trained online teach constraints better than a frozen "
            "one, than preferential responses, than offline methods?"
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
            Arm("ppo", QUICKSTART, {"method": "ppo"}, "ppo, frozen discriminator", "online", FIVE),
            Arm(
                "gapo_verified_rollouts", QUICKSTART, verified,
                "gapo, labels verified, text on other prompts", "gapo", (0, 1),
            ),
            Arm(
                "gapo_paper_rollouts", QUICKSTART, paper,
                "gapo, labels of the paper, text on other prompts", "gapo", (0, 1),
            ),
            Arm(
                "ppo_responses", QUICKSTART, {"method": "ppo"} | RESPONSES,
                "ppo, preferential responses", "responses", FIVE,
            ),
            Arm(
                "gapo_responses", QUICKSTART, verified | RESPONSES,
                "gapo, preferential responses, labels verified", "responses", FIVE,
            ),
        ),
    )  # fmt: skip
