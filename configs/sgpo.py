"""SGPO-style learning (after arXiv 2507.20181): refine, then prefer the refinement.

    python scripts/train.py --config configs/sgpo.py[:tiny]

On SmolLM2-135M-Instruct, with the models, data and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 18 minutes of processor time, 5.5 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +5.1 [-3.8,
+13.9], phrasings +7.8 [-2.4, +17.3]. Both intervals hold 0. Of 128 refinements of stage 1 the
filters keep 56 (19 too far from the answer, 48 not nearer to the good one), of 128 comparisons of
stage 2 they keep 91; the refinements of stage 1 are often no improvement: a model of this size
repeats the request or writes another answer. Titles come more often (43 -> 65%), minimum lengths
are kept less often (75 -> 62%). Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 64 seconds of processor time (8 programs compiled, 10
that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 2.3e-2 (policy)
of their norm, the discriminator by nothing; the share of pairs in order went from 0.344 in the
first round to 0.75 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("sgpo", preset)
    if preset == "tiny":
        config.sgpo.refine_template = "{prompt}\n{response}\n{reference}\n"
        config.sgpo.improve_template = "{prompt}\n{response}\n"
        # Random text is far from any other, and seldom nearer to the good answer than before.
        config.sgpo.max_edit, config.sgpo.max_length_ratio = 1.0, 10.0
        config.sgpo.max_prompt_tokens, config.sgpo.prompts = 512, 64
    else:
        # A model of this size rewrites an answer rather than edits it: at .6, 7 of 128 are kept.
        config.sgpo.prompts, config.sgpo.max_edit = 128, 0.85
    return config
