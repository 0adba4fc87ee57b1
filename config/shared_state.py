"""Shared-state groups (ours): images that differ by one action; their clean images are matched.

--config=config/shared_state.py:RECIPE; `--config.objective.name=grpo` trains on the next states.
"""

from ml_collections import ConfigDict

from config import changes, recipes


def get_config(recipe: str = "shapes_tiny") -> ConfigDict:
    c = recipes.build("shared_state", "terminal", recipe)
    c.sample.groups = "shared_state"
    c.objective.name = "matching"
    c.advantage.global_std = True  # of the groups with the same fork step
    c.train.step_weight = "uniform"  # the steps' weights are for next states
    if c.sample.window != "fixed":  # a group may fork wherever the window may be
        c.sample.update(window="fixed", window_size=c.sample.window_stop, window_stop=0)
    changes.whole_groups(c)
    # A row is a group: its candidates make calls of max_rows.
    c.sample.batch_size = {"shapes_tiny": 6, "shapes_smoke": 2}.get(recipe, 1)
    if recipe == "shapes_smoke":
        c.sample.groups_per_epoch = 4
    if recipe == "shapes_tiny":  # an epoch takes less than half of Flow-GRPO's seconds
        c.epochs = 140
        c.eval.every = c.tracking.images_every = 70
        c.train.learning_rate = 7e-4  # the best of three on a seed of their own
    return c
