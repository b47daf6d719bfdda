"""GAPO on SmolLM2-135M-Instruct against MiniLM, from nothing to a report on 2 CPU cores.

    bash scripts/quickstart.sh
    python scripts/train.py --config configs/gapo_quickstart.py [--config.seed=1 --workdir DIR]

Ten rounds of 12 prompts x 8 samples; of each prompt's samples the two best and the two worst are
learned from. The top 10 of 30 layers are trained; the lower ones run once a round for reference,
old policy and update together. The discriminator is warmed up on 800 preferential pairs (one
epoch) and updated in every round on pairs and on the generator's text, labelled by the verifiers
(the paper labels all of it 0: `--config.discriminator.label_policy=paper`); it scores a round's
text after that update. Rewards are its probabilities, normalised among the
samples of a prompt.

Which constraint types: those that this discriminator learns to score within such a warm-up.
Measured on 199 held-out pairs after 1,500 training pairs of nine types (accepted prompt scored
above rejected): postscript 1.00, title 1.00, end_checker .90, no_comma .73, bullets .68,
number_words .68; number_sentences .57, existence .55, forbidden_words .48 were no better than a
coin, so their reward would be noise and they are left out here (add them to `data.types` with 4
times the pairs). Quotation never occurs by itself, so there is nothing to reinforce.

Measured 2026-11-22, 2 CPU cores, jax 0.10.2 (held-out constraint accuracy, strict, percentage
points, 95% interval of the paired bootstrap over 96 prompts a set):

| seed | topics, instruction | topics, prompt | phrasings, instruction | phrasings, prompt |
|---|---|---|---|---|
| 0* | +24.6 [+15.1, +34.5] | +26.0 [+14.6, +37.5] | +25.8 [+16.3, +35.7] | +21.9 [+12.5, +32.3] |
| 0* | +21.0 [+12.0, +30.3] | +19.8 [+8.3, +31.2] | +17.2 [+6.2, +28.6] | +16.7 [+6.2, +28.1] |
| 0 | +23.2 [+13.4, +32.9] | +21.9 [+9.4, +34.4] | +27.3 [+16.7, +38.6] | +22.9 [+11.5, +34.4] |
| 1 | +15.3 [+7.0, +23.6] | +14.6 [+5.2, +24.0] | +10.6 [+1.5, +18.9] | +11.5 [+1.0, +20.8] |
| 2 | +20.6 [+10.6, +30.3] | +19.8 [+8.3, +31.2] | +17.3 [+6.8, +27.4] | +17.7 [+6.2, +29.2] |

* As it is, before and after a change of how logits are rounded: as far apart may two runs of one
seed lie that are not of the same code on the same machine. The other rows are of 8 updates of the
discriminator in a round, in batches of any lengths; now it makes 5, in batches of like length.

Why the discriminator's rates are what they are: at twice these (3e-4 in the warm-up, 1e-4 in the
rounds) seed 2's fell back to a constant. It ordered 66% of held-out pairs after the warm-up (78%
now), its logits for the samples of one prompt differed by .03, so there was hardly a reward to
learn from, and phrasings gained 6.0 [-3.1, +15.2]; seed 0 gained as much as now.

Time: seed 0 is the whole of `bash scripts/quickstart.sh` in a fresh clone on a quiet machine: 19
minutes 54 seconds, of which 2 minutes 52 for the environment and the weights, 29 minutes of
processor time, 5.5 GB at the peak; its compiled programs were in the cache. Seed 1, environment in
place, beside other work: 17 minutes 46 seconds. As it is now, on one core alone: 22 minutes 46
seconds, 22.5 minutes of processor time; in a fresh clone with no compiled programs, beside other
work: 22 minutes 48 seconds, of which 2 minutes 10 for the environment and the weights.

What it learns is postscripts (held-out topics, seeds 0 and 1: 30 -> 96% and 52 -> 65%), titles (43
-> 87, 41 -> 82) and to do without commas (39 -> 65, 54 -> 71); exact endings stay rare, since the
starting model almost never writes one and there is little to reinforce. What it pays: answers
become shorter (26 words -> 16 and 18), which the end penalty furthers (at .25 instead of .1 bullets
and minimum lengths suffered), and under held-out phrasings minimum lengths are kept less often (65
-> 57, 58 -> 38). How it gets hacked: without the penalty on repetition
(`discriminator.max_repetition`) some answers were nothing but their postscript, nine times over
(share of repeated 3-grams .01 -> .11); with it that share went from .02 to .06 in seed 0 and from
.01 to .02 in seed 1. The share of answers that echo the prompt rose from .03 to .05 in seed 0 and
stayed at .04 in seed 1. As it is now, in seed 0: answers of 26 words -> 14, repeated 3-grams .02 ->
.04, echoes .03 -> .06 on topics and .16 -> .20 under held-out phrasings.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2("gapo", "gapo_quickstart")
    config.discriminator.score_with = "post"
    config.ppo.clip_high = 0.28
    config.reward.standardise, config.reward.squash = "group", "sigmoid"
    return config
