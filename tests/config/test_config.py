"""Every recipe builds and plans; the fields are locked."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from config import base, flow_grpo, models, recipes, tp_grpo
from tp_grpo.method import credit
from tp_grpo.plan import Plan, make_plan
from tp_grpo.settings import Settings

ALGORITHMS = [flow_grpo, tp_grpo]
PUBLISHED = [
    f"{reward}_{model}"
    for reward in ("pickscore", "geneval", "general_ocr")
    for model in ("sd3", "flux")
]
ONE_GPU = [name for name in recipes.RECIPES if name.endswith("gb")]


def plan(algorithm: ModuleType, recipe: str, world_size: int) -> Plan:
    config = Settings.read(algorithm.get_config(recipe))
    return make_plan(config, world_size, branches=credit.needs_branches(config.credit.name))


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_recipe_plans_sets_known_fields_alone_and_says_how_to_run_it(
    algorithm: ModuleType, recipe: str
) -> None:
    config = algorithm.get_config(recipe)
    assert (
        plan(algorithm, recipe, 1).images
        == config.sample.groups_per_epoch * config.sample.group_size
    )
    assert config.run_name.endswith(recipe)
    known = _fields(base.get_config())
    assert _fields(config) - known == set()


def _fields(config: object, prefix: str = "") -> set[str]:
    """Dotted names of all fields; the scorers are the user's own names."""
    found: set[str] = set()
    for name, value in config.items():  # type: ignore[attr-defined]
        inner = hasattr(value, "items") and name != "scorers"
        found |= _fields(value, f"{prefix}{name}.") if inner else {prefix + name}
    return found


@pytest.mark.parametrize("world_size", [1, 4, 8, 32])
@pytest.mark.parametrize("recipe", PUBLISHED)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_published_recipe_is_the_same_epoch_on_any_number_of_gpus(
    algorithm: ModuleType, recipe: str, world_size: int
) -> None:
    p = plan(algorithm, recipe, world_size)
    assert (p.groups, p.group_size, p.images, p.updates) == (48, 24, 1152, 2)
    rows, K, nfe = (9, 9, 55) if recipe.endswith("sd3") else (3, 5, 21)
    assert p.batches_per_update == 1152 // 2 // world_size // rows and len(p.window) == K
    branching = algorithm is tp_grpo
    assert p.ladder == (K + 1 if branching else 1) and p.nfe == (nfe if branching else K + 1)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("recipe", ONE_GPU)
def test_a_variant_for_one_gpu_also_plans_on_a_few(recipe: str, world_size: int) -> None:
    p = plan(tp_grpo, recipe, world_size)
    model = recipe.split("_")[-2]
    groups = {"qwen": (8, 16), "klein": (12, 16), "zimage": (12, 16)}
    assert (p.groups, p.group_size) == groups.get(model, (12, 24))
    assert p.batches_per_update * p.batch_size * world_size * p.updates == p.images


@pytest.mark.parametrize("model", ["klein", "zimage"])
def test_flow_factorys_settings_for_the_models_that_it_has_recipes_for(model: str) -> None:
    c = tp_grpo.get_config(f"pickscore_{model}")
    steps, guidance, evaluated = {"klein": (8, 4.0, 28), "zimage": (10, 5.0, 40)}[model]
    assert (c.sample.steps, c.sample.guidance_scale, c.eval.steps) == (steps, guidance, evaluated)
    assert (c.sample.kind, c.sample.noise_level, c.train.clip_range) == ("sde", 0.7, 1e-4)
    assert plan(tp_grpo, f"pickscore_{model}", 8).window == range(1, 4)
    assert (c.sample.groups_per_epoch, c.sample.group_size, c.train.beta) == (48, 16, 0.0)
    assert (c.lora.rank, c.lora.alpha, c.train.learning_rate) == (64, 128, 3e-4)


def test_the_published_models_and_rewards() -> None:
    assert len(PUBLISHED) * len(ALGORITHMS) == 12 and set(PUBLISHED) < set(recipes.RECIPES)
    sd3, flux = tp_grpo.get_config("geneval_sd3"), tp_grpo.get_config("general_ocr_flux")
    assert (sd3.model.type, sd3.model.dtype, sd3.lora.rank, sd3.lora.alpha) == (
        "sd3",
        "fp16",
        32,
        64,
    )
    assert (sd3.sample.steps, sd3.eval.steps, sd3.sample.guidance_scale) == (10, 40, 4.5)
    assert (flux.model.type, flux.model.path) == ("flux", "black-forest-labs/FLUX.1-dev")
    assert (flux.model.dtype, flux.lora.rank, flux.lora.alpha) == ("bf16", 64, 128)
    assert (flux.sample.steps, flux.eval.steps, flux.sample.guidance_scale) == (6, 28, 3.5)
    for config in (sd3, flux):
        assert (config.sample.kind, config.sample.noise_level, config.model.height) == (
            "cps",
            0.7,
            512,
        )
        assert (config.train.learning_rate, config.train.clip_range, config.train.beta) == (
            3e-4,
            1e-5,
            1e-4,
        )
        assert config.lora.targets == ()
    scorer = {"weight": 1.0, "scoring": "reference"}
    assert sd3.rewards.scorers.to_dict() == {"geneval": scorer}
    assert (sd3.prompts.train, sd3.prompts.eval) == (
        "dataset/geneval/train.jsonl",
        "dataset/geneval/test.jsonl",
    )
    assert flux.rewards.scorers.to_dict() == {"general_ocr": 1.0}
    assert flux.prompts.train == "dataset/general_ocr/train.txt"


def test_the_docstring_has_the_papers_figures_and_that_they_were_not_reproduced() -> None:
    text = " ".join((recipes.__doc__ or "").split())
    for figures in ("PickScore 24.02, 24.67", "GenEval 0.9673, 0.9725", "OCR 0.9579, 0.9651"):
        assert figures in text
    assert "None has been reproduced" in text and "32 GPUs" in text
    assert "--config=config/tp_grpo.py:pickscore_sd3" in text


def test_the_settings_of_qwen_image_are_flow_grpos_public_ones() -> None:
    c = tp_grpo.get_config("pickscore_qwen")
    assert (c.model.type, c.model.path, c.model.dtype) == ("qwen", "Qwen/Qwen-Image", "bf16")
    assert (c.sample.steps, c.eval.steps, c.sample.guidance_scale) == (10, 50, 4.0)
    assert (c.sample.kind, c.sample.noise_level, c.train.beta) == ("sde", 1.2, 0.0)
    assert (c.train.clip_range, c.advantage.global_std) == (1e-4, True)
    assert (c.sample.window, c.sample.window_size, c.sample.window_stop) == ("random", 2, 5)
    assert (c.sample.groups_per_epoch, c.sample.group_size, c.sample.batch_size) == (32, 16, 4)


@pytest.mark.parametrize(
    "recipe, plain",
    [
        ("paper", "shapes_tiny"),
        ("shapes_smoke", "shapes_smoke"),
        ("pickscore_sd3", "pickscore_sd3"),
        ("geneval_flux_48gb", "geneval_flux_48gb"),
    ],
)
def test_the_paper_s_algorithms_differ_in_credit_alone(recipe: str, plain: str) -> None:
    one, other = flow_grpo.get_config(plain), tp_grpo.get_config(recipe)
    assert one.run_name == f"flow_grpo-{plain}" and other.run_name == f"tp_grpo-{recipe}"
    other.run_name, other.credit.name = one.run_name, "terminal"
    assert other == one


def test_the_faster_form_keeps_the_paper_s_credit_and_the_recipe_s_images() -> None:
    faster, paper = (tp_grpo.get_config(recipe) for recipe in ("shapes_tiny", "paper"))
    assert faster.credit == paper.credit and faster.credit.name == "turning_point"
    assert (faster.objective.name, paper.objective.name) == ("matching", "grpo")
    for section in ("model", "lora", "prompts", "rewards", "advantage", "eval"):
        assert faster[section] == paper[section], section
    assert faster.epochs == paper.epochs


@pytest.mark.parametrize("model", models.MODELS)
def test_a_model_is_a_function_that_says_what_it_is(model: str) -> None:
    assert models.MODELS[model] is getattr(models, model), "its name is the function's"
    assert inspect.getdoc(models.MODELS[model])


def test_the_recipes_are_rewards_on_models_and_their_variants() -> None:
    assert list(recipes.REWARDS) == ["pickscore", "geneval", "general_ocr"]
    assert models.MEMORY.keys() == models.MODELS.keys()
    for reward in recipes.REWARDS:
        assert f"{reward}_sd3" in recipes.RECIPES
        assert f"{reward}_klein_24gb" in recipes.RECIPES
        assert f"{reward}_flux_24gb" not in recipes.RECIPES, "its weights alone fill it"
    variants = sum(len(memory) for memory in models.MEMORY.values())
    assert len(recipes.RECIPES) == 2 + 3 * (len(models.MODELS) + variants)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="learning_rate"):
        base.get_config().train.learning_rat = 1.0


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'shapes_tiney'; did you mean 'shapes_tiny'"):
        tp_grpo.get_config("shapes_tiney")
    with pytest.raises(ValueError, match="'pickscore_sd35'; did you mean 'pickscore_sd3'"):
        tp_grpo.get_config("pickscore_sd35")
