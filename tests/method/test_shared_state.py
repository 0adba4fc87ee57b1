"""Shared-state groups against one group walked on its own; where they fork, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tp_grpo.method import flow
from tp_grpo.method.completion import COMPLETIONS, Completion
from tp_grpo.method.shared_state import Forked, fork_probabilities, shared_states, updated_spread

B, G, T, LATENT = 4, 3, 6, (2, 2)
STEPS = torch.tensor([2, 0, 4, 2])
# The last state is below the sigma that cheap completions still evaluate.
SIGMAS = torch.tensor([1, 0.9, 0.7, 0.5, 0.3, 0.01, 0], dtype=torch.float64)
NAN = math.nan


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


class Recorder:
    """A velocity that differs by group and by step, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int]]] = []  # the steps and groups of the rows

    def __call__(self, x: Tensor, step: int | Tensor, rows: Tensor) -> Tensor:
        steps = torch.as_tensor(step).expand(len(x))
        self.calls.append((steps.tolist(), rows.tolist()))
        assert len(x) == len(rows)
        by_row = (1 + steps + 0.1 * rows).to(x).reshape(-1, 1, 1)
        return torch.sin(x * by_row) + x.roll(1, dims=-1) / by_row

    @property
    def rows(self) -> int:
        return sum(len(rows) for _, rows in self.calls)


def completion(name: str = "euler", **options: Any) -> Completion:
    """With the schedule's small step, and a window and branches, which must not be used."""
    whole = Completion(T, range(0, 5), (0, 1), name, **options)
    return whole.at(SIGMAS.tolist())


def fork(velocity: Recorder, rows: slice = slice(None), **options: Any) -> Forked:
    defaults = {"completion": completion(), "kind": "sde", "noise_level": 0.7, "max_rows": 5}
    return shared_states(
        velocity,
        randn(B, *LATENT)[rows],
        SIGMAS,
        randn(B, G, *LATENT, seed=1)[rows],
        **{"steps": STEPS[rows]} | defaults | options,
    )


def visited(name: str, start: int) -> list[int]:
    """The steps at which a state at `start` is evaluated on its way to the end; T comes after."""
    below = 5  # the first step that starts at a sigma below 0.02
    if name == "euler":
        return list(range(start, T))
    if start >= below:
        return [] if name == "reuse" else [start]
    if name == "reuse":
        return list(range(start, below))
    if name == "tweedie":
        return [start]
    if name == "strided":
        return list(range(start, below, 2))
    count = min(2, below - start)  # multistep of two evaluations
    return [start + i * (below - start) // count for i in range(count)]


def walked(b: int, name: str, kind: str) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], int]:
    """One group, one state at a time -> state, velocity, next states, images, evaluations."""
    velocity, row, s = Recorder(), torch.tensor([b]), int(STEPS[b])
    x, noise = randn(B, *LATENT)[b : b + 1], randn(B, G, *LATENT, seed=1)[b]
    for i in range(s):
        x = x + velocity(x, i, row) * (SIGMAS[i + 1] - SIGMAS[i])
    state, v = x, velocity(x, s, row)
    step = flow.transition(kind, state, v, SIGMAS, s, noise_level=0.7)
    candidates, images = [], []
    for g in range(G):
        x = step.mean + step.std * noise[g]
        candidates.append(x[0])
        stops = visited(name, s + 1)
        sigma, last_v, last_sigma = SIGMAS[s + 1], v, None
        for here, there in zip(stops, [*stops, T][1:], strict=True):
            u, after = velocity(x, here, row), SIGMAS[there]
            slope = u
            if name == "multistep" and last_sigma is not None:
                slope = u + (u - last_v) / (sigma - last_sigma) * (after - sigma) / 2
            x, last_v, last_sigma, sigma = x + slope * (after - sigma), u, sigma, after
        if not stops:
            x = x + v * (SIGMAS[T] - sigma)  # the fork's own velocity serves again
        images.append(x[0])
    return state[0], v[0], candidates, images, velocity.rows


@pytest.mark.parametrize("max_rows", [1, 4, 1000])
@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("name", COMPLETIONS)
def test_groups_are_as_if_each_were_walked_alone(name: str, kind: str, max_rows: int) -> None:
    velocity = Recorder()
    how = completion(name, evaluations=2, stride=2)
    got = fork(velocity, completion=how, kind=kind, max_rows=max_rows)
    evaluations = 0
    for b in range(B):
        state, v, candidates, images, made = walked(b, name, kind)
        torch.testing.assert_close(got.state[b], state, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.velocity[b], v, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.candidates[b], torch.stack(candidates), rtol=0, atol=1e-12)
        torch.testing.assert_close(got.clean[b], torch.stack(images), rtol=0, atol=1e-12)
        evaluations += made
    assert velocity.rows == evaluations


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_group_costs_its_trunk_its_state_and_its_completions(name: str) -> None:
    """s + 1 + G c."""
    how = completion(name, evaluations=2, stride=2)
    for b, s in enumerate(STEPS.tolist()):
        velocity = Recorder()
        fork(velocity, slice(b, b + 1), completion=how)
        c = len(how.forked(s).evaluated[1])
        assert c == len(visited(name, s + 1))
        assert velocity.rows == s + 1 + G * c


def test_the_states_make_one_call_and_candidates_calls_of_max_rows() -> None:
    velocity = Recorder()
    fork(velocity, max_rows=5)
    states = [call for call in velocity.calls if call == (STEPS.tolist(), [0, 1, 2, 3])]
    assert len(states) == 1
    after = velocity.calls[velocity.calls.index(states[0]) + 1 :]
    assert max(len(rows) for _, rows in after) == 5
    before = velocity.calls[: velocity.calls.index(states[0])]
    walking = [([0, 0, 0], [0, 2, 3]), ([1, 1, 1], [0, 2, 3]), ([2], [2]), ([3], [2])]
    assert before == walking, "a group that has forked is not walked on"


def test_results_do_not_depend_on_the_batch() -> None:
    whole = fork(Recorder())
    parts = [fork(OffsetRecorder(b), slice(b, b + 1), max_rows=2) for b in range(B)]
    for name in Forked._fields:
        alone = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(alone, getattr(whole, name), rtol=0, atol=1e-13)


class OffsetRecorder(Recorder):
    """The recorder of a batch that begins with another group."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def __call__(self, x: Tensor, step: int | Tensor, rows: Tensor) -> Tensor:
        return super().__call__(x, step, rows + self.first)


def test_the_state_repeats_bit_for_bit_in_the_shape_of_training() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4)

    def velocity(x: Tensor, step: int | Tensor, rows: Tensor) -> Tensor:
        return net(x.flatten(1)).unflatten(1, LATENT)

    x, noise = (randn(B, *n, *LATENT, dtype=torch.float32) for n in ((), (G,)))
    options = {"completion": completion(), "kind": "cps", "noise_level": 0.7, "max_rows": 4}
    got = shared_states(velocity, x, SIGMAS, noise, steps=STEPS, **options)
    assert torch.equal(velocity(got.state, STEPS, torch.arange(B)), got.velocity)
    assert {t.dtype for t in got} == {torch.float32}
    assert not any(t.requires_grad for t in got)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": STEPS[:3]}, r"steps \[2, 0, 4\]: 4 steps from 0 to 4 are needed"),
        (
            {"steps": torch.tensor([2, 0, 5, 2])},
            r"steps \[2, 0, 5, 2\]: 4 steps from 0 to 4 are needed; the last step of a schedule "
            "ends at sigma 0, where no noise is left to act on",
        ),
        ({"steps": torch.tensor([2, -1, 4, 2])}, r"steps \[2, -1, 4, 2\]: 4 steps from 0 to 4"),
        ({"max_rows": 0}, "max_rows = 0: at least 1 candidate must fit in a call"),
        ({"kind": "ode"}, "kind = 'ode': a stochastic step is 'sde' or 'cps'"),
    ],
)
def test_a_mistake_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fork(Recorder(), **options)


@pytest.mark.parametrize("shape", [(B, *LATENT), (B - 1, G, *LATENT), (B, G, 2, 3)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    options = {"completion": completion(), "kind": "sde", "noise_level": 0.7, "max_rows": 4}
    x, noise = randn(B, *LATENT), randn(*shape)
    with pytest.raises(ValueError, match=r"groups of x \(4, 2, 2\) need \(4, G, 2, 2\)"):
        shared_states(Recorder(), x, SIGMAS, noise, steps=STEPS, **options)


def test_groups_fork_in_proportion_to_what_is_known_of_their_spread() -> None:
    spread = torch.tensor([9.0, 1.0, NAN, 2.0, 9.0], dtype=torch.float64)
    # Steps 1 to 3: the unknown one counts as 2, so that the shares are 1, 2 and 2 of 5.
    got = fork_probabilities(spread, range(1, 4), least=0.0)
    assert got.tolist() == pytest.approx([0.2, 0.4, 0.4])
    got = fork_probabilities(spread, range(1, 4), least=0.3)
    assert got.tolist() == pytest.approx([0.14 + 0.1, 0.28 + 0.1, 0.28 + 0.1])


@pytest.mark.parametrize("value", [NAN, 0.0])
def test_groups_fork_anywhere_where_nothing_is_known_or_spreads(value: float) -> None:
    got = fork_probabilities(torch.full((5,), value, dtype=torch.float64), range(1, 5))
    assert got.tolist() == [0.25] * 4


def test_a_step_that_has_not_spread_keeps_a_small_probability() -> None:
    spread = torch.tensor([0.0, 3.0], dtype=torch.float64)
    assert fork_probabilities(spread, range(2)).tolist() == pytest.approx([0.025, 0.975])


def test_the_running_spread_by_hand() -> None:
    """Step 0 is new, 1 is averaged in, 2 was not forked at, 3 has no known std, 4 has one."""
    spread = torch.tensor([NAN, 2.0, 5.0, 7.0, NAN], dtype=torch.float64)
    step = torch.tensor([0, 1, 3, 1, 0, 4, 4])
    std = torch.tensor([1.0, 4.0, NAN, 8.0, 3.0, NAN, 6.0])
    got = updated_spread(spread, step, std)
    assert got.tolist() == pytest.approx([2.0, 0.9 * 2 + 0.1 * 6, 5.0, 7.0, 6.0])
    assert spread[0].isnan(), "the argument stays as it was"
