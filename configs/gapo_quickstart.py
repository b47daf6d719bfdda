"""GAPO on SmolLM2-135M-Instruct against MiniLM, from nothing to a report on 2 CPU cores.

    bash scripts/quickstart.sh
    python scripts/train.py --config configs/gapo_quickstart.py [--config.seed=1 --workdir DIR]

Ten rounds of 12 prompts x 8 samples; of each prompt's samples the two best and the two worst are
learned from. The top 10 of 30 layers are trained; the lower ones run once a round for reference,
old policy and update together. The discriminator is warmed up on 800 preferential pairs (one
epoch) and updated in every round on pairs and on the generator's text, labelled by the verifiers;
it scores a round's text after that update. Rewards are its probabilities, normalised among the
samples of a prompt.

Which constraint types: those that this discriminator learns to judge within such a warm-up.
Measured on 199 held-out pairs after 1,500 training pairs of nine types (accepted prompt scored
above rejected): postscript 1.00, title 1.00, end_checker .90, no_comma .73, bullets .68,
number_words .68; number_sentences .57, existence .55, forbidden_words .48 were no better than a
coin, so their reward would be noise and they are left out here (add them to `data.types` with 4
times the pairs). Quotation never occurs by itself, so there is nothing to reinforce.

Measured 2026-11-22, 2 CPU cores, jax 0.10.2 (held-out constraint accuracy, strict, percentage
points, 95% interval of the paired bootstrap over prompts; 96 responses a set):

| seed | topics, per instruction | topics, per prompt | phrasings, per instruction | per prompt |
|---|---|---|---|---|
| 0 | +7.6 [-2.4, +17.9] | +8.3 [-4.2, +21.9] | +18.7 [+10.0, +28.8] | +18.8 [+10.4, +29.2] |
| 1 (.5) | +15.7 [+4.6, +26.5] | +19.8 [+8.3, +31.2] | +16.9 [+7.4, +27.3] | +16.7 [+6.2, +27.1] |
| 2 | +15.7 [+5.7, +26.4] | +15.6 [+4.2, +28.1] | +16.2 [+6.2, +27.0] | +16.7 [+5.2, +28.1] |

Seed 0 is the whole of `bash scripts/quickstart.sh` in a fresh clone: 17 minutes 23 seconds, of
which the training is 15 minutes 14; 5.6 GB at the peak. Seed 1 has been run with
`reward.missing_eos_penalty=0.5` only. On the topics of seed 0 the interval holds zero: what is won
on titles and postscripts is lost on bullets, because answers have become shorter.

What it learns is titles, postscripts and (mostly by shorter answers) to do without commas; exact
endings stay where they were, since the starting model almost never writes one and there is nothing
to reinforce. How it gets hacked: without the penalty on repetition (`discriminator.max_repetition`)
some answers were nothing but their postscript, nine times over (share of repeated 3-grams .01 ->
.11); with it that share stays at .01 to .02. The penalty on a missing end shortens answers from 25
to 13 words, which costs bullets and minimum lengths: it is the next thing to weaken.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2_rounds("gapo", "gapo_quickstart")
    config.discriminator.score_with = "post"
    config.ppo.clip_high = 0.28
    config.reward.standardise, config.reward.squash = "group", "sigmoid"
    return config
