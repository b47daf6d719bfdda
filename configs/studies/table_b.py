"""Rules that can be fooled: which rewards keep a policy out of the holes of a blind verifier?

    python scripts/study.py --config configs/studies/table_b.py [--processes N] [--only PATTERN]

To be started in a checkout's folder. Training sees `configs/studies/rewards/blind_verifier.py`,
which looks for marks and not for answers; evaluation sees the official verifiers, and whether a
response is an answer at all (`evaluate/exploits.py`). No arm uses the official verdicts of its
samples: where the discriminator is trained online, generated text is labelled 0, as in the paper.
The pairs are trusted data. Every arm makes 45 updates in 15 rounds, half as many again as the
quickstart, and is held less to its start (KL .02), so that there is time to be fooled.
"""

from typing import Any

from gapo_jax.cli.studies.definition import Arm, Study

QUICKSTART = "configs/gapo_quickstart.py"
BLIND = "configs/studies/rewards/blind_verifier.py:visible"
PAIRS = {"discriminator.generated_prompts": "pairs"}
PAPER = PAIRS | {"discriminator.label_policy": "paper"}
BOTH = {"reward.sources": (BLIND, "discriminator")}


def get_study() -> Study:
    """Return the study."""
    return Study(
        about=(
            "The reward that training sees has holes. Does a discriminator that is trained online "
            "keep the policy out of them, alone or beside the verifier? *Genuine* gains are those "
            "that count. `configs/studies/table_b.py` says what is equal."
        ),
        seeds=(0, 1, 2, 3),
        reference="verifier",
        visible=BLIND,
        set={
            "rounds": 15,
            "ppo.kl_coef": 0.02,
            "eval.prompts_per_set": 192,
            "eval.development_prompts": 96,
            "eval.trip_wires": True,
            "eval.likelihood": True,
        },
        arms=(
            _arm("verifier", "grpo, the blind verifier alone", PAIRS | {
                "method": "grpo", "reward.sources": (BLIND,), "reward.squash": "none",
                "reward.standardise": "none",
            }),
            _arm("frozen", "ppo, frozen discriminator", PAIRS | {"method": "ppo"}),
            _arm("gapo", "gapo", PAPER),
            _arm("sum", "gapo, verifier + discriminator", PAPER | BOTH),
            _arm("stratified", "gapo, discriminator within equal verdicts",
                 PAPER | BOTH | {"reward.combine": "stratified"}),
            _arm("demonstration", "gapo, demonstrations as positives",
                 PAIRS | {"discriminator.label_policy": "demonstration"}),
        ),
    )  # fmt: skip


def _arm(name: str, label: str, changes: dict[str, Any]) -> Arm:
    return Arm(name, QUICKSTART, changes, label)
