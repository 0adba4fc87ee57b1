"""Gradients of the objectives in closed form, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.method.loops import LATENT, Case, noised, randn, visited
from tp_grpo.method.advantage import group_normalize
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.method.points import Points, Predictions

PLAIN = {
    "grpo": {"clip_range": 1e-3, "beta": 0.0},
    "guard": {"clip_range": 1e-3, "beta": 0.0},
    "dppo": {"dppo_limit": 1e-4, "beta": 0.0},
    "matching": {"trust": 1.0, "beta": 0.0},
    "nft": {"nft_mix": 0.3, "beta": 0.0},
    "elbo_pg": {"elbo_form": "no_ratio", "beta": 0.0},
    "awm": {"awm_power": 0.25, "awm_clip": 1.0, "awm_pull": 0.0, "beta": 0.0},
    "dgpo": {"dgpo_sharpness": 10.0, "dgpo_clip": 1e-3, "beta": 0.0},
}
SILENT = [name for name in OBJECTIVES if OBJECTIVES[name].silent]


def case_of(name: str, moved: float = 0.05) -> Case:
    if OBJECTIVES[name].noised:
        return noised(moved)
    return visited("cps", [0, 3, 1], 4, moved)


def slope(name: str, case: Case, **options: object) -> Tensor:
    """The gradient of the loss along the policy's v (R, *L)."""
    loss = OBJECTIVES[name].loss(case.points, case.v, **PLAIN[name] | options)
    (gradient,) = torch.autograd.grad(loss.value, case.v.policy)
    return gradient


def changed(case: Case, **fields: object) -> Case:
    return replace(case, points=replace(case.points, **fields))


def centred(case: Case) -> Case:
    A = case.points.advantage
    return changed(case, advantage=A - A.mean(1, keepdim=True), weight=None)


def clipped(case: Case) -> Case:
    """Advantages as they come: centred, then clipped, so that they no longer add up to 0."""
    A = centred(case).points.advantage.clamp(-0.5, 0.5)
    assert A.sum(1).abs().max() > 0.1
    return changed(case, advantage=A, weight=None)


def test_matching_descends_along_the_clean_images_and_in_no_other_direction() -> None:
    """The gradient of v is `(2 sigma / w) sum_i A_i x0_i`, over R points, C targets, the latent."""
    case = clipped(visited("cps", [0, 3, 1], 4, moved=0.0))
    p, v = case.points, case.v.policy
    assert p.clean is not None
    sigma = torch.as_tensor(p.sigma)[:, None, None]
    error = (p.x - sigma * v)[:, None] - p.clean
    w = error.abs().flatten(2).mean(2).mean(1)[:, None, None]
    A = p.advantage - p.advantage.mean(1, keepdim=True)
    towards = (A[..., None, None] * p.clean).sum(1)
    entries = p.advantage.numel() * LATENT[0] * LATENT[1]
    torch.testing.assert_close(slope("matching", case), (2 * sigma / w) * towards / entries)


def test_a_weight_for_each_target_would_push_along_the_prediction() -> None:
    """Which is why a point has one: the prediction, moved far off, then changes w alone."""
    near = centred(visited("cps", [0, 3, 1], 4, moved=0.0))
    shift = 50 * torch.ones_like(near.points.x)
    far = replace(
        near, v=Predictions((near.v.policy + shift).detach().requires_grad_(), near.v.old + shift)
    )
    one, other = slope("matching", near).flatten(1), slope("matching", far).flatten(1)
    cosine = nn.functional.cosine_similarity(one, other)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_matching_counts_lost_targets_neither_in_the_weight_nor_in_the_mean() -> None:
    """A group with lost candidates is the smaller group, but for the number it divides by."""
    case = clipped(visited("cps", [0, 3, 1], 4))
    lost = torch.zeros(3, 4, dtype=torch.bool)
    lost[:, 3] = True
    p = case.points
    fewer = changed(case, advantage=p.advantage[:, :3], clean=p.clean[:, :3])  # type: ignore[index]
    clean = p.clean.masked_fill(lost[..., None, None], 0)  # type: ignore[union-attr]
    masked = changed(case, advantage=p.advantage.masked_fill(lost, 0), clean=clean, lost=lost)
    torch.testing.assert_close(slope("matching", masked), slope("matching", fewer) * 3 / 4)


def test_matching_is_linear_in_the_step_weights() -> None:
    case = visited("cps", [0, 3, 1], 4)
    double = changed(case, weight=2 * case.points.weight)  # type: ignore[operator]
    torch.testing.assert_close(slope("matching", double), 2 * slope("matching", case))


@pytest.mark.parametrize(
    "name, options",
    [
        ("matching", {}),
        ("nft", {"nft_mix": 1.0}),
        ("nft", {"nft_mix": 0.1}),
        ("elbo_pg", {"elbo_form": "ratio"}),
        ("elbo_pg", {"elbo_form": "no_ratio"}),
        ("elbo_pg", {"elbo_form": "par"}),
    ],
)
def test_at_an_unmoved_policy_losses_of_clean_images_are_one(name: str, options: dict) -> None:
    """All descend along `A` times the gradient of the weighted squared error, `x0hat` to `x_0`."""
    case = noised(moved=0.0)
    p, v = case.points, case.v.policy
    case = changed(case, advantage=p.advantage.clamp(-5, 5))
    assert p.clean is not None
    sigma = torch.as_tensor(p.sigma)[:, None, None]
    error = p.x - sigma * v - p.clean[:, 0]
    w = error.abs().flatten(1).mean(1)[:, None, None]
    A = case.points.advantage[..., None]
    expected = A * (-2 * sigma / w) * error / error.numel()
    torch.testing.assert_close(slope(name, case, **options), expected.detach())


class Model(nn.Module):
    """A velocity of a state and its sigma."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        size = LATENT[0] * LATENT[1]
        self.layers = nn.Sequential(nn.Linear(size + 1, 9), nn.Tanh(), nn.Linear(9, size)).double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), sigma[:, None]], 1)).unflatten(1, LATENT)


@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("name", SILENT)
def test_one_pass_of_a_shared_state_has_the_gradient_of_its_members_one_by_one(
    name: str, kind: str
) -> None:
    """All next states are judged by one mean: a pass for each would repeat the same velocity."""
    points, model = visited(kind, [0, 3, 1], 4).points, Model()
    assert points.candidates is not None
    sigma, steps = torch.as_tensor(points.sigma), torch.as_tensor(points.step)

    def gradient(parts: list[Points]) -> list[Tensor]:
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            v = model(part.x, torch.as_tensor(part.sigma))
            old = v.detach() + 0.05
            loss = OBJECTIVES[name].loss(part, Predictions(v, old), **PLAIN[name]).value
            total = total + loss / len(parts)
        return list(torch.autograd.grad(total, list(model.parameters())))

    members = [
        replace(
            points,
            x=points.x[r : r + 1],
            sigma=sigma[r : r + 1],
            step=steps[r : r + 1],
            weight=points.weight[r : r + 1],  # type: ignore[index]
            advantage=points.advantage[r : r + 1, c : c + 1],
            candidates=points.candidates[r : r + 1, c : c + 1],
        )
        for r in range(3)
        for c in range(4)
    ]
    for at_once, alone in zip(gradient([points]), gradient(members), strict=True):
        torch.testing.assert_close(at_once, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_constant_added_to_all_rewards_of_a_group_changes_nothing(name: str) -> None:
    case = case_of(name)
    shape = case.points.advantage.shape
    reward = randn(shape.numel(), 1, seed=40)
    group = torch.arange(len(reward)) // 4 if shape[1] > 1 else case.points.group
    assert group is not None
    lifted = reward + torch.tensor([[5.0, -3.0, 11.0]]).T[group.unique(return_inverse=True)[1]]
    one, other = (
        slope(name, changed(case, advantage=group_normalize(r, group).reshape(shape)))
        for r in (reward, lifted)
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*SILENT, "matching"])
def test_the_order_of_a_groups_members_does_not_matter(name: str) -> None:
    case, order = case_of(name), torch.tensor([2, 0, 3, 1])
    p = case.points
    assert p.clean is not None
    assert p.candidates is not None
    shuffled = changed(
        case,
        advantage=p.advantage[:, order],
        clean=p.clean[:, order],
        candidates=p.candidates[:, order],
    )
    torch.testing.assert_close(slope(name, shuffled), slope(name, case), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["nft", "elbo_pg", "awm", "dgpo"])
def test_points_in_another_order_have_their_gradients_in_that_order(name: str) -> None:
    case, order = noised(), torch.tensor([3, 5, 0, 1, 4, 2])
    p, v = case.points, case.v
    assert isinstance(p.sigma, Tensor)
    assert p.clean is not None
    assert p.group is not None
    shuffled = Case(
        replace(
            p,
            x=p.x[order],
            sigma=p.sigma[order],
            advantage=p.advantage[order],
            clean=p.clean[order],
            group=p.group[order],
        ),
        Predictions(
            v.policy[order].detach().requires_grad_(),
            v.old[order],
            v.reference[order],  # type: ignore[index]
        ),
    )
    gradient = slope(name, case)
    torch.testing.assert_close(slope(name, shuffled), gradient[order], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SILENT)
def test_without_an_advantage_a_silent_objective_has_no_gradient(name: str) -> None:
    case = case_of(name)
    row = torch.tensor([[1.0], [0.0], [1.0]])
    gradient = slope(name, changed(case, advantage=case.points.advantage * row))
    assert not gradient[1].any()
    assert gradient[[0, 2]].flatten(1).any(1).all()


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if not OBJECTIVES[name].silent and name != "dgpo"]
)
def test_the_others_are_drawn_back_without_an_advantage(name: str) -> None:
    """To the old policy, or to the one that lags behind; unmoved, they rest."""
    options = {"awm_pull": 1.0} if name == "awm" else {}
    away, unmoved = case_of(name), case_of(name, moved=0.0)
    for case in (away, unmoved):
        if name == "awm":
            object.__setattr__(case.v, "lagging", case.v.old)
    quiet = torch.zeros_like(away.points.advantage)
    torch.testing.assert_close(
        slope(name, changed(unmoved, advantage=quiet), **options),
        torch.zeros_like(away.points.x),
        rtol=0,
        atol=1e-15,
    )
    pull = slope(name, changed(away, advantage=quiet), **options)
    back = away.v.policy - away.v.old  # type: ignore[operator]
    assert ((pull * back).sum() > 0).item(), "descent leads back"
    assert pull.flatten(1).any(1).all()


def test_dgpo_needs_an_advantage_too() -> None:
    case = noised()
    quiet = case.points.advantage.clone()
    quiet[[0, 5]] = 0
    gradient = slope("dgpo", changed(case, advantage=quiet), dgpo_clip=10.0)
    assert gradient.flatten(1).any(1).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("name", ["grpo", "guard", "awm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unmoved_policy_has_a_ratio_of_exactly_1(name: str, dtype: torch.dtype) -> None:
    case = as_dtype(case_of(name, moved=0.0), dtype)
    stats = OBJECTIVES[name].loss(case.points, case.v, **PLAIN[name]).stats
    assert stats["approx_kl"] == stats["clip_high"] == stats["clip_low"] == 0
    torch.testing.assert_close(stats["policy"], expected_policy(name, case.points))


def as_dtype(case: Case, dtype: torch.dtype) -> Case:
    def cast(holder: object, names: list[str]) -> dict[str, Tensor]:
        tensors = {name: getattr(holder, name) for name in names}
        return {name: t.detach().to(dtype) for name, t in tensors.items() if t is not None}

    points = cast(case.points, ["x", "sigma", "advantage", "weight", "clean", "candidates"])
    v = cast(case.v, ["policy", "old", "reference", "lagging"])
    schedule = case.points.schedule
    if schedule is not None:
        schedule = replace(schedule, sigmas=schedule.sigmas.to(dtype))
    return Case(replace(case.points, schedule=schedule, **points), replace(case.v, **v))


def expected_policy(name: str, points: Points) -> Tensor:
    """`mean(-w A)`, where every ratio is 1."""
    weight: Tensor = torch.ones_like(points.advantage)
    if name == "grpo":
        assert points.weight is not None
        weight = points.weight[:, None]
    if name == "guard":
        weight = 1 / -points.dt[:, None]
    if name == "awm":  # none is beyond 5
        weight = weight / 5
    return (-weight * points.advantage).mean()
