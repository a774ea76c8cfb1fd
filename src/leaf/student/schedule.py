"""The learning rate as a pure function of the step: a resumed run needs no schedule state (App. A.2, Fig. 9)."""

import math

from leaf.recipe import Train


def learning_rate(step: int, steps_per_epoch: int, settings: Train) -> float:
    """The learning rate of optimizer step `step` (from 0).

    Within each cycle of `epochs_per_cycle` epochs:

    - `linear`: from `lr` in the cycle's first epoch to `final_lr` in its last, constant within an epoch (the paper's);
    - `linear-step`: the same line, but stepping down with every batch;
    - `cosine`: half a cosine from `lr` to `final_lr`, with every batch;
    - `constant`: `lr`.

    `warmup_steps` scales the very first steps from 1/warmup to 1.
    """
    steps_per_cycle = steps_per_epoch * settings.epochs_per_cycle
    within = step % steps_per_cycle
    if settings.schedule == "linear":
        done = (within // steps_per_epoch) / max(1, settings.epochs_per_cycle - 1)
    else:
        done = within / max(1, steps_per_cycle - 1)
    match settings.schedule:
        case "constant":
            remaining = 1.0
        case "cosine":
            remaining = 0.5 * (1 + math.cos(math.pi * done))
        case _:
            remaining = 1 - done
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return warmup * (settings.final_lr + (settings.lr - settings.final_lr) * remaining)


def too_short(num_steps: int, settings: Train, *, only_rows: bool) -> str | None:
    """A sentence where half or more of the `num_steps` of a training are warm-up; None where it is long enough.

    `only_rows`: whether rows of words are all that is trained. Adagrad, which `row_lr` gives them to, has no schedule.
    """
    if not 0 < num_steps <= 2 * settings.warmup_steps or (only_rows and settings.row_lr is not None):
        return None
    return (
        f"half or more of its {num_steps:,} steps are warm-up (train.warmup_steps = {settings.warmup_steps:,}); add "
        "texts, or epochs with --set train.epochs_per_cycle=…"
    )
