"""Each objective against its formula in plain loops, and the table that describes them."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.method import loops
from tests.method.loops import Case, noised, visited
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.method.objectives.elbo_pg import FORMS
from tp_grpo.method.points import Points, Predictions
from tp_grpo.settings.learning import ObjectiveSettings, TrainSettings

VISITED = {
    "grpo": {"clip_range": 0.003, "beta": 0.2},
    "guard": {"clip_range": 0.01, "beta": 0.2},
    "dppo": {"dppo_limit": 1e-4, "beta": 0.2},
    "matching": {"trust": 0.7, "beta": 0.2},
}
NOISED: list[tuple[str, dict[str, Any]]] = [
    ("nft", {"nft_mix": 1.0, "beta": 0.2}),
    ("nft", {"nft_mix": 0.1, "beta": 0.0}),
    *(("elbo_pg", {"elbo_form": form, "beta": 0.2}) for form in FORMS),
    ("awm", {"awm_power": 0.25, "awm_clip": 0.02, "awm_pull": 0.5, "beta": 0.2}),
    ("awm", {"awm_power": 1.0, "awm_clip": 1.0, "awm_pull": 0.0, "beta": 0.0}),
    ("dgpo", {"dgpo_sharpness": 10.0, "dgpo_clip": 0.05, "beta": 0.3}),
]
# A column of trajectories, and groups that forked at steps of their own, the first one too.
PLACES: list[tuple[int | list[int], int]] = [(2, 1), (0, 1), ([0, 3, 1], 4)]


def measured(name: str, case: Case, options: dict[str, Any]) -> tuple[Tensor, Tensor, dict]:
    """The loss, its gradient along v (R, *L), and its statistics."""
    loss = OBJECTIVES[name].loss(case.points, case.v, **options)
    (gradient,) = torch.autograd.grad(loss.value, case.v.policy)
    return loss.value, gradient, loss.stats


def check(name: str, case: Case, options: dict[str, Any]) -> dict[str, Tensor]:
    """Assert that value and gradient are the loop's; returns the statistics."""
    value, gradient, stats = measured(name, case, options)
    expected = loops.LOOPS[name](case, **options)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(expected, case.v.policy)
    torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-12)
    return stats


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("name", VISITED)
def test_on_visited_states_it_is_its_formula(
    name: str, kind: str, place: tuple[int | list[int], int]
) -> None:
    check(name, visited(kind, *place), VISITED[name])


@pytest.mark.parametrize("name, options", NOISED)
def test_on_noised_images_it_is_its_formula(name: str, options: dict[str, Any]) -> None:
    check(name, noised(), options)


@pytest.mark.parametrize(
    "name, case, options, statistic",
    [
        ("grpo", visited("cps", [0, 3, 1], 4), VISITED["grpo"], "clip_high"),
        ("grpo", visited("cps", [0, 3, 1], 4), VISITED["grpo"], "clip_low"),
        ("guard", visited("cps", [0, 3, 1], 4), VISITED["guard"], "clip_high"),
        ("dppo", visited("cps", [0, 3, 1], 4), VISITED["dppo"], "outside"),
        ("awm", noised(), NOISED[5][1], "clip_high"),
        ("dgpo", noised(), NOISED[7][1], "outside"),
    ],
)
def test_the_cases_have_entries_inside_and_outside_of_each_range(
    name: str, case: Case, options: dict[str, Any], statistic: str
) -> None:
    """Else the comparisons above would say nothing of clipping."""
    assert 0 < measured(name, case, options)[2][statistic] < 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_a_weight_all_steps_count_the_same(name: str) -> None:
    if OBJECTIVES[name].noised:
        case, options = noised(), dict(NOISED)[name]
    else:
        case, options = visited("cps", 2, 1), VISITED[name]
    plain = replace(case, points=replace(case.points, weight=None))
    ones = replace(case, points=replace(case.points, weight=torch.ones(len(case.points.x))))
    assert torch.equal(measured(name, plain, options)[0], measured(name, ones, options)[0])


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not OBJECTIVES[name].reference])
def test_without_a_reference_the_kl_is_0(name: str) -> None:
    if OBJECTIVES[name].noised:
        case, options = noised(), dict(NOISED)[name]
    else:
        case, options = visited("sde", 2, 1), VISITED[name]
    alone = replace(case, v=replace(case.v, reference=None))
    value, _, stats = measured(name, alone, options)
    assert stats["kl"] == 0
    without = measured(name, case, options | {"beta": 0.0})[0]
    torch.testing.assert_close(value, without)


LOST = [(0, 0), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3)]  # all of the last point


def with_lost(case: Case, lost: list[tuple[int, int]]) -> Case:
    """As `PointReader` gives them: mask, and 0 in the tensors and advantages."""
    p = case.points
    mask = torch.zeros_like(p.advantage, dtype=torch.bool)
    mask[tuple(zip(*lost, strict=True))] = True
    whole = mask.all(1)
    points: Points = replace(
        p,
        advantage=p.advantage.masked_fill(mask, 0),
        clean=None if p.clean is None else p.clean.masked_fill(mask[..., None, None], 0),
        candidates=p.candidates
        if p.candidates is None
        else p.candidates.masked_fill(mask[..., None, None], 0),
        x=p.x.masked_fill(whole[:, None, None], 0),
        lost=mask,
    )
    return replace(case, points=points)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lost_targets_count_as_nothing(name: str) -> None:
    """The surrogate is the sum over what is left, divided by the number of all."""
    if OBJECTIVES[name].noised:
        whole, options, lost = noised(), dict(NOISED)[name] | {"beta": 0.0}, [(2, 0), (5, 0)]
        if name == "awm":
            options["awm_pull"] = 0.0
    else:
        options = VISITED[name] | {"beta": 0.0, "trust": 0.0}
        whole, lost = visited("cps", [0, 3, 1], 4), LOST
    options = {key: value for key, value in options.items() if key in OBJECTIVES[name].options}
    case = with_lost(whole, lost)
    value, gradient, _ = measured(name, case, options)
    assert gradient.isfinite().all()
    gone = case.points.lost.all(1)  # type: ignore[union-attr]
    assert not gradient[gone].any(), "a point without a target teaches nothing"
    assert gradient[~gone].any(1).any()
    silenced = whole.points.advantage.masked_fill(case.points.lost, 0)  # type: ignore[arg-type]
    quiet = replace(whole, points=replace(whole.points, advantage=silenced))
    if OBJECTIVES[name].silent or name == "awm":
        torch.testing.assert_close(value, measured(name, quiet, options)[0])


def test_dgpo_compares_a_group_without_the_images_it_lost() -> None:
    """The loss of five images is that of six of which one is lost, but for the divisor."""
    options = dict(NOISED)["dgpo"] | {"beta": 0.0}
    whole, rest = noised(), [0, 1, 3, 4, 5]
    p = whole.points
    fewer = replace(
        p, x=p.x[rest], sigma=p.sigma[rest], advantage=p.advantage[rest],
        clean=p.clean[rest], group=p.group[rest],
    )  # fmt: skip
    v = Predictions(*(v[rest] for v in vars(whole.v).values()))
    five = OBJECTIVES["dgpo"].loss(fewer, v, **options).value
    six = measured("dgpo", with_lost(whole, [(2, 0)]), options)[0]
    torch.testing.assert_close(6 * six, 5 * five.detach())


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if "beta" in OBJECTIVES[name].options]
)
def test_a_lost_point_is_no_part_of_the_kl(name: str) -> None:
    if OBJECTIVES[name].noised:
        whole, options, lost = noised(), dict(NOISED)[name], [(2, 0), (5, 0)]
    else:
        whole, options, lost = visited("cps", [0, 3, 1], 4), VISITED[name], LOST
    case = with_lost(whole, lost)
    stats = measured(name, case, options)[2]
    kept = torch.where(~case.points.lost.all(1))[0].tolist()  # type: ignore[union-attr]
    if OBJECTIVES[name].noised or name == "matching":
        parts = [((whole.v.policy - whole.v.reference)[r] ** 2).mean() for r in kept]  # type: ignore[operator]
    else:
        parts = [loops.step_kl(whole, r) for r in kept]
    torch.testing.assert_close(stats["kl"], sum(parts).detach() / len(case.points.x))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_options_are_settings_and_the_loss_takes_them_all(name: str) -> None:
    objective = OBJECTIVES[name]
    parameters = inspect.signature(objective.loss).parameters.values()
    keywords = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == objective.options
    known = {f.name for section in (ObjectiveSettings, TrainSettings) for f in fields(section)}
    assert objective.options <= known


def test_no_name_is_a_setting_of_both_sections() -> None:
    """The updater looks an option up in both."""
    train, objective = ({f.name for f in fields(s)} for s in (TrainSettings, ObjectiveSettings))
    assert not train & objective


def test_every_objective_has_a_loop_here() -> None:
    assert loops.LOOPS.keys() == OBJECTIVES.keys()


def test_another_form_of_elbo_pg_is_refused() -> None:
    case = noised()
    with pytest.raises(ValueError, match="elbo_form 'pepg' is not one of ratio, no_ratio, par"):
        OBJECTIVES["elbo_pg"].loss(case.points, case.v, elbo_form="pepg", beta=0.0)
