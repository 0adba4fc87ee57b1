"""cat, index and to: what belongs to a sample moves with it, what the batch shares stays."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tp_grpo.types import Credit, PromptBatch, Rollout, Step, Trajectory, cat, index, to


@dataclass(frozen=True)
class Cond:
    tokens: Tensor
    pooled: Tensor | None
    pieces: list[Tensor]
    guidance: float


def make_rollout(first: int, count: int, steps: int = 3) -> Rollout:
    number = torch.arange(first, first + count)

    def values(*shape: int) -> Tensor:
        return (
            number.double().reshape(-1, *[1] * len(shape)) + torch.rand(count, *shape).double() / 2
        )

    return Rollout(
        cond=Cond(
            number[:, None].repeat(1, 2), None, [torch.tensor([float(i)]) for i in number], 4.5
        ),
        trajectory=Trajectory(
            values(steps + 1, 2, 2), values(steps, 2, 2), values(steps), torch.arange(steps)
        ),
        ladder=values(steps + 1),
        group_id=number // 2,
        rewards={"a": values(steps + 1), "b": values(steps + 1)},
    )


def flatten(rollout: Rollout) -> list[Tensor]:
    t = rollout.trajectory
    pieces = torch.stack(rollout.cond.pieces)
    return [
        rollout.cond.tokens,
        pieces,
        t.x,
        t.mean,
        t.log_prob,
        rollout.ladder,
        *rollout.rewards.values(),
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_index_undoes_cat(dtype):
    parts = [make_rollout(0, 2), make_rollout(2, 3)]
    joined = cat(parts)
    assert [len(t) for t in flatten(joined)] == [5] * 8
    for part, rows in zip(parts, (torch.tensor([0, 1]), torch.tensor([2, 3, 4])), strict=True):
        rows = rows if dtype == torch.int64 else torch.isin(torch.arange(5), rows)
        back = index(joined, rows)
        assert all(torch.equal(a, b) for a, b in zip(flatten(back), flatten(part), strict=True))
        assert torch.equal(back.group_id, part.group_id)


def test_index_reorders_repeats_and_slices():
    rollout = make_rollout(0, 4)
    assert index(rollout, torch.tensor([3, 1, 1])).cond.tokens[:, 0].tolist() == [3, 1, 1]
    assert [p.item() for p in index(rollout, torch.tensor([3, 1, 1])).cond.pieces] == [3, 1, 1]
    assert index(rollout, slice(1, 3)).cond.tokens[:, 0].tolist() == [1, 2]
    assert [p.item() for p in index(rollout, slice(1, 3)).cond.pieces] == [1, 2]
    with pytest.raises(IndexError):
        index(rollout, torch.tensor([4]))


def test_shared_values_stay_whole():
    joined = cat([make_rollout(0, 2), make_rollout(2, 2)])
    assert joined.trajectory.step_index.tolist() == [0, 1, 2]
    assert joined.cond.pooled is None and joined.cond.guidance == 4.5
    one = index(joined, slice(0, 1))
    assert one.trajectory.step_index.tolist() == [0, 1, 2] and one.cond.guidance == 4.5
    step = Step(torch.zeros(2, 3), torch.tensor(0.5), torch.ones(2, 1))
    assert cat([step, step]).std.item() == 0.5 and cat([step, step]).kl_scale.shape == (4, 1)
    assert index(step, slice(1, 2)).std.item() == 0.5


def test_cat_refuses_what_does_not_fit():
    credit = Credit(*[torch.zeros(2, 3)] * 2, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one"):
        cat([])
    with pytest.raises(ValueError, match="mixture"):
        cat([credit, make_rollout(0, 2)])
    with pytest.raises(ValueError, match="keys"):
        cat([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}])
    with pytest.raises(ValueError, match="share"):
        first = make_rollout(0, 2).trajectory
        cat([first, replace(first, step_index=first.step_index + 1)])
    with pytest.raises(ValueError, match="share"):
        cat([4.5, 3.5])


def test_prompt_batches():
    batch = PromptBatch(
        ["a", "b"], [{"n": 1}, {"n": 2}], torch.tensor([7, 7]), torch.tensor([0, 1])
    )
    joined = cat([batch, index(batch, torch.tensor([1, 0]))])
    assert joined.prompts == ["a", "b", "b", "a"]
    assert joined.metadata == [{"n": 1}, {"n": 2}, {"n": 2}, {"n": 1}]
    assert joined.member.tolist() == [0, 1, 1, 0]


def test_to_casts_floating_tensors_only():
    rollout = make_rollout(0, 2)
    half = to(rollout, dtype=torch.bfloat16)
    assert (
        half.trajectory.x.dtype
        == half.rewards["a"].dtype
        == half.cond.pieces[0].dtype
        == torch.bfloat16
    )
    assert half.group_id.dtype == half.trajectory.step_index.dtype == torch.int64
    assert half.cond.pooled is None
    assert to(rollout, device="meta").trajectory.step_index.device.type == "meta"
    assert to(rollout).ladder is rollout.ladder
