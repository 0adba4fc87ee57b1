"""Every algorithm's file with every recipe: it is read, it plans, it is published as it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from config import base, recipes
from tp_grpo.models.families import adapter
from tp_grpo.plan import make_plan
from tp_grpo.settings import Settings
from tp_grpo.settings.setting import stated

ROOT = Path(__file__).resolve().parents[2]
NO_ALGORITHM = {"__init__", "base", "changes", "models", "recipes"}
NAMES = sorted(p.stem for p in (ROOT / "config").glob("*.py") if p.stem not in NO_ALGORITHM)
EVERY = [(name, recipe) for name in NAMES for recipe in recipes.RECIPES]
NOISED = ["nft", "elbo_pg", "awm", "dgpo"]
KNOWN = {name for name, _, _ in stated(Settings)}


def module(name: str) -> ModuleType:
    return importlib.import_module(f"config.{name}")


def settings(name: str, recipe: str) -> Settings:
    return Settings.read(module(name).get_config(recipe))


def published(recipe: str) -> bool:
    return not recipe.startswith("shapes") and not recipe.endswith("gb")


def test_the_files_are_the_algorithms() -> None:
    others = ["shared_state", *NOISED]
    assert sorted(NAMES) == sorted(["tp_grpo", "flow_grpo", *others])


@pytest.mark.parametrize("name, recipe", EVERY)
def test_every_recipe_of_every_algorithm_is_read_and_plans(name: str, recipe: str) -> None:
    """On one GPU, which all of them must fit, and a published one on its 32."""
    config = settings(name, recipe)
    assert config.run_name == f"{name}-{recipe}"
    images = config.sample.groups_per_epoch * config.sample.group_size
    for world_size in (1, 32) if published(recipe) else (1,):
        plan = make_plan(config, world_size)
        assert plan.images == images
        rows = plan.batch_size * plan.members * plan.batches_per_update * world_size
        assert rows * plan.updates == images


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_variant_for_one_gpu_also_plans_on_a_few(name: str, world_size: int) -> None:
    for recipe in recipes.RECIPES:
        if recipe.endswith("gb"):
            assert make_plan(settings(name, recipe), world_size).world_size == world_size


@pytest.mark.parametrize("name, recipe", EVERY)
def test_a_published_recipe_gives_no_cause_for_caution(name: str, recipe: str) -> None:
    config = settings(name, recipe)
    assert not list(config.cautions(classifier_free=adapter(config.model.type).classifier_free))


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_changes_nothing_of_the_model_and_the_rewards(name: str) -> None:
    """So that algorithms can be compared by the recipe's name."""
    for recipe in ("shapes_tiny", "geneval_sd3", "pickscore_flux_48gb"):
        here, plain = settings(name, recipe), settings("flow_grpo", recipe)
        for section in ("model", "prompts", "rewards"):
            assert getattr(here, section) == getattr(plain, section), section
        if recipe == "shapes_tiny":
            assert (here.lora, here.ema) == (plain.lora, plain.ema)
        assert here.sample.group_size == plain.sample.group_size
        if (name, recipe) != ("shared_state", "shapes_tiny"):
            assert (here.train.learning_rate, here.eval) == (plain.train.learning_rate, plain.eval)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_recipe_names_the_nearest_and_the_file(name: str) -> None:
    with pytest.raises(ValueError, match=rf"config/{name}.py: .*'geneval_sd35'; did you mean"):
        module(name).get_config("geneval_sd35")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_how_to_run_it_and_names_settings_alone(name: str) -> None:
    docstring = module(name).__doc__ or ""
    assert f"--config=config/{name}.py:RECIPE" in docstring
    words = docstring.replace("`", " ").split()
    options = [
        word.removeprefix("--config.").split("=")[0] for word in words if "--config." in word
    ]
    assert set(options) <= KNOWN


@pytest.mark.parametrize("name", NOISED)
def test_clean_images_are_made_without_guidance_by_a_second_order_solver(name: str) -> None:
    config = settings(name, "geneval_sd3")
    assert config.points == "noised"
    assert config.objective.name == name
    assert config.train.guidance_scale == 1.0 or config.sample.guidance_scale == 1.0
    assert (config.sample.guidance_scale == 4.5) == (name == "dgpo"), "its default mode"
    assert (config.sample.completion, config.sample.completion_steps) == (
        "multistep",
        config.sample.steps,
    )
    assert settings(name, "geneval_flux").sample.guidance_scale == 3.5, "an input of the model"


def test_the_published_settings_of_nft() -> None:
    o = settings("nft", "geneval_sd3").objective
    assert (o.old_flat, o.old_ramp, o.old_max) == (0, 0.001, 0.5)
    assert o.timesteps == 9, "all but one of the rollout's"
    assert o.nft_mix == 1.0
    assert settings("nft", "geneval_sd3").train.beta == 1e-4
    assert settings("nft", "geneval_sd3").train.updates_per_epoch == 1
    ocr = settings("nft", "general_ocr_sd3")
    assert (ocr.objective.old_flat, ocr.objective.old_ramp) == (75, 0.0075)
    assert (ocr.objective.old_max, ocr.objective.nft_mix) == (0.999, 0.1)
    assert ocr.train.updates_per_epoch == 2


def test_the_published_settings_of_elbo_pg() -> None:
    config = settings("elbo_pg", "geneval_sd3")
    assert config.advantage.scale == 0.1
    assert config.train.beta == 1e-4
    assert config.train.max_grad_norm == 5.0
    assert (config.objective.elbo_form, config.objective.timesteps) == ("no_ratio", 9)
    assert (config.objective.old_ramp, config.objective.old_max) == (0.001, 0.5)


def test_the_published_settings_of_awm() -> None:
    config = settings("awm", "geneval_sd3")
    assert (config.sample.steps, config.objective.timesteps) == (14, 6)
    assert (config.objective.awm_power, config.objective.awm_clip) == (0.25, 1.0)
    assert config.advantage.global_std
    assert (config.objective.old_ramp, config.objective.old_max) == (0.001, 0.3), "of the pull"
    betas = [
        settings("awm", f"{reward}_sd3").train.beta
        for reward in ("geneval", "general_ocr", "pickscore")
    ]
    assert betas == [3e-3, 3e-3, 1e-4]


def test_the_published_settings_of_dgpo() -> None:
    config = settings("dgpo", "geneval_sd3")
    assert (config.objective.timesteps, config.objective.noisiest) == (4, 0.5)
    assert (config.lora.rank, config.train.beta) == (64, 1e-3)
    assert config.objective.dgpo_sharpness == 100.0
    assert config.sample.batch_size == 24, "a group"


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_shared_states_match_clean_images_with_a_std_by_fork_step(recipe: str) -> None:
    config = settings("shared_state", recipe)
    assert config.points == "shared_state"
    assert config.objective.name == "matching"
    assert config.advantage.global_std
    assert config.sample.fork == "spread"


def test_the_defaults_are_those_of_flow_grpo() -> None:
    objective, sample = base.get_config().objective, base.get_config().sample
    assert (objective.name, sample.groups, sample.window) == ("grpo", "trajectories", "fixed")
