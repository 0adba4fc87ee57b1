"""Every recipe builds and plans; the fields are locked."""

from __future__ import annotations

import pytest

from config import base, flow_grpo, recipes, tp_grpo
from tp_grpo import credit
from tp_grpo.plan import make_plan


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("algorithm", [flow_grpo, tp_grpo])
def test_every_recipe_plans(algorithm: object, recipe: str) -> None:
    config = algorithm.get_config(recipe)  # type: ignore[attr-defined]
    plan = make_plan(config, 1, branches=credit.needs_branches(config.credit.name))
    assert plan.images == config.sample.groups_per_epoch * config.sample.group_size
    assert config.run_name.endswith(recipe)


def test_the_algorithms_differ_in_credit_alone() -> None:
    one, other = (a.get_config("shapes_tiny").to_json_best_effort() for a in (flow_grpo, tp_grpo))
    assert other.replace("turning_point", "terminal").replace("tp_grpo-", "flow_grpo-") == one


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="learning_rate"):
        base.get_config().train.learning_rat = 1.0


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'shapes_tiney'; did you mean 'shapes_tiny'"):
        tp_grpo.get_config("shapes_tiney")
