"""Three learning rates for every method of table_a, chosen on development prompts alone.

    python scripts/study.py --config configs/studies/learning_rates.py [--processes N]

The held-out sets have one prompt each here, so that nothing can be chosen on them. Seed 100 is none
of table_a's. Every method gets the same number of tries: the rate that its configuration has, and
that rate divided and multiplied by three (offline) or by two (online, where three collapsed in a
prototype).
"""

from gapo_jax.cli.studies.definition import Arm, Study

OFFLINE_RATES = (1e-5, 3e-5, 9e-5)
ONLINE_RATES = (3e-5, 6e-5, 1.2e-4)
QUICKSTART = "configs/gapo_quickstart.py"
PAIRS = {"discriminator.generated_prompts": "pairs"}
ONLINE = {
    "ppo": {"method": "ppo"},
    "gapo_verified_pairs": PAIRS | {"discriminator.label_policy": "verified"},
    "gapo_paper_pairs": PAIRS | {"discriminator.label_policy": "paper"},
}


def get_study() -> Study:
    """Return the study."""
    arms = [
        Arm(
            f"{method}_{rate:.0e}",
            f"configs/{method}.py",
            {"offline.optim.learning_rate": rate, "rounds": 3}
            | ({"offline.batch_size": 16} if method == "sft" else {}),
            f"{method}, {rate:g}",
            method,
        )
        for method in ("sft", "dpo", "kto", "simpo", "orpo")
        for rate in OFFLINE_RATES
    ]
    arms += [
        Arm(
            f"{name}_{rate:.1e}",
            QUICKSTART,
            {"ppo.optim.learning_rate": rate, **changes},
            f"{name.replace('_', ' ')}, {rate:g}",
            name,
        )
        for name, changes in ONLINE.items()
        for rate in ONLINE_RATES
    ]
    return Study(
        about="Which learning rate of each method, on 192 development prompts.",
        seeds=(100,),
        set={
            "eval.prompts_per_set": 1,
            "eval.development_prompts": 192,
            "eval.trip_wires": True,
            "eval.likelihood": True,
        },
        arms=tuple(arms),
    )
