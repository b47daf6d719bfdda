"""The protocol of IF-RLVR (arXiv 2507.02833): train on IFEval's and IFTrain's constraints by GRPO,
rewarded by the verifiers; test on IFBench's 58, none of which training has seen.

    python scripts/train.py --config configs/ifbench.py
    python scripts/train.py --config configs/ifbench.py:tiny --config.eval.prompts=rows.jsonl

Training prompts are composed of our own tasks and one to five of the 54 training types. The test
prompts come from `config.eval.prompts`: the hub's allenai/IFBench_test, or the file
IFBench_test.jsonl of its repository. They are answered greedily before and after training, and the
table at the end has IFBench's figure, `per prompt, loose`, beside the strict ones (`given
prompts`). The paper trains 7B models for thousands of steps with answers of 2,048 tokens; answers
here end at 512.

Not measured on SmolLM2, which is too small for this: see docs/results.md for what has been run.

`tiny` is a 4-layer model of random weights, which measures on its own held-out prompts and, where
`config.eval.prompts` names some, on those: all code paths, text not worth reading.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("grpo", preset)
    config.name = "ifbench" if not preset else "ifbench_tiny"
    config.data.types = ("ifeval", "iftrain")
    config.data.max_constraints = 5
    config.reward.source, config.reward.standardise = "verifier", "none"
    config.eval.temperature = 0.0
    config.data.max_prompt_tokens = 512
    if not preset:
        config.eval.prompts = "allenai/IFBench_test"
        config.sampling.max_new_tokens = 512
    return config
