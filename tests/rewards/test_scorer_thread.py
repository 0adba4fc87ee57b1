"""One scorer's thread: what each kind of failure costs, and what is never asked twice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_models import Scores, Unavailable
from tp_grpo.rewards import scorer_options
from tp_grpo.rewards.scorer_options import ScorerOptions
from tp_grpo.rewards.scorer_thread import (
    FIRST_WAIT,
    LONGEST_WAIT,
    Batch,
    ScorerThread,
    State,
    backoff,
)


def batch_of(
    values: list[int], prompts: list[str] | None = None, metadata: list[dict] | None = None
) -> Batch:
    """Images whose every pixel is the value."""
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])
    return Batch(images, prompts or [""] * len(values), metadata or [{}] * len(values))


@dataclass
class Fake:
    """score = the image's value. fails: given a call's values, the exception to raise or None."""

    fails: Callable[[list[int]], Exception | None] = lambda values: None
    calls: list[list[int]] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        values = images[:, 0, 0, 0].tolist()
        self.calls.append(values)
        self.moves.append("score")
        error = self.fails(values)
        if error:
            raise error
        score = np.array(values, dtype=np.float32)
        return Scores(score, {"half": score / 2})

    def to(self, device: Any) -> None:
        self.moves.append(str(device))


@dataclass
class Clock:
    """Sleeps at once, and remembers for how long; a call of the scorer takes no time."""

    slept: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)

    def now(self) -> float:
        return sum(self.slept)


def run(
    fake: Fake, batch: Batch, clock: Clock | None = None, **options: Any
) -> tuple[list[float], ScorerThread]:
    clock = clock or Clock()
    thread = ScorerThread("fake", ScorerOptions(**options), sleep=clock, now=clock.now)
    return thread.submit(fake, batch).result(timeout=10).score.tolist(), thread


def numbers(score: list[float]) -> list[float | None]:
    return [None if value != value else value for value in score]


def test_a_batch_is_cut_into_calls() -> None:
    fake = Fake()
    score, _ = run(fake, batch_of([5, 3, 9, 1, 7]), batch_size=2)
    assert score == [5, 3, 9, 1, 7] and fake.calls == [[5, 3], [9, 1], [7]]


def test_equal_image_prompt_and_metadata_are_scored_once() -> None:
    fake = Fake()
    batch = batch_of(
        [4, 4, 4, 4, 8, 4],
        ["a", "a", "b", "a", "a", "a"],
        [{"n": 1}, {"n": 1}, {"n": 1}, {"n": 2}, {"n": 1}, {"n": 1}],
    )
    score, _ = run(fake, batch)
    assert fake.calls == [[4, 4, 4, 8]], (
        "the second and the last equal the first; another prompt or metadata does not"
    )
    assert score == [4, 4, 4, 4, 8, 4]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_permuting_the_batch_permutes_the_scores(
    values: list[int], random: Any, batch_size: int
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)

    def fails(part: list[int]) -> Exception | None:
        return RuntimeError("odd") if 3 in part else None

    score, _ = run(Fake(fails), batch_of(values), batch_size=batch_size)
    permuted, _ = run(Fake(fails), batch_of([values[i] for i in order]), batch_size=batch_size)
    assert numbers(permuted) == numbers([score[i] for i in order])
    assert numbers(score) == [None if value == 3 else value for value in values]


@pytest.mark.parametrize(
    "error", [Unavailable("busy"), ConnectionError("refused"), TimeoutError("30 s")]
)
def test_what_is_unavailable_is_tried_again_with_growing_waits(error: Exception) -> None:
    fake, clock = Fake(), Clock()
    fake.fails = lambda values: error if len(fake.calls) <= 3 else None
    score, _ = run(fake, batch_of([1, 2]), clock, patience=60)
    assert score == [1, 2]
    assert fake.calls == [[1, 2]] * 4
    assert len(clock.slept) == 3
    for attempt, seconds in enumerate(clock.slept):
        assert FIRST_WAIT * 2**attempt / 2 <= seconds <= FIRST_WAIT * 2**attempt


def test_waits_are_bounded_and_jittered() -> None:
    waits = [backoff(attempt) for attempt in [50] * 20]
    assert min(waits) >= LONGEST_WAIT / 2
    assert max(waits) <= LONGEST_WAIT
    assert len(set(waits)) == 20


def test_a_scorer_that_is_away_for_nine_minutes_loses_nothing() -> None:
    fake, clock = Fake(), Clock()
    fake.fails = lambda values: ConnectionError("refused") if clock.now() < 540 else None
    thread = ScorerThread("fake", ScorerOptions(), sleep=clock, now=clock.now)
    pending = [thread.submit(fake, batch_of([value])) for value in (1, 2, 3)]
    assert [future.result(timeout=10).score.item() for future in pending] == [1, 2, 3]
    assert 540 <= clock.now() <= 540 + LONGEST_WAIT
    assert fake.calls.count([1]) < 60


def test_patience_is_the_time_it_is_tried_for_and_not_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake, clock = Fake(lambda values: Unavailable("down")), Clock()
    score, _ = run(fake, batch_of([1]), clock, patience=100)
    assert numbers(score) == [None]
    assert clock.now() == pytest.approx(100)
    assert "Unavailable: down" not in caplog.records[0].message
    assert "rewards.scorers.fake: down. Retrying for 100 s (its option patience)" in caplog.text
    clock = Clock()
    run(fake, batch_of([1]), clock, patience=0)
    assert clock.slept == []


def test_after_its_patience_a_call_is_nan_and_the_next_are_tried_once_until_one_goes_well() -> None:
    fake, clock = Fake(), Clock()
    down = [True]
    fake.fails = lambda values: Unavailable("connection refused") if down[0] else None
    thread = ScorerThread(
        "fake", ScorerOptions(patience=0.1, batch_size=2), sleep=clock, now=clock.now
    )
    first = thread.submit(fake, batch_of([1, 2, 3, 4])).result(timeout=10)
    assert np.isnan(first.score).all()
    assert fake.calls == [[1, 2]] * 2 + [[3, 4]]
    assert clock.slept == [0.1]
    assert thread.state() == State(
        False, "Unavailable: connection refused", (), "Unavailable: connection refused"
    )
    down[0] = False
    assert thread.submit(fake, batch_of([5, 6])).result(timeout=10).score.tolist() == [5, 6]
    down[0] = True
    thread.submit(fake, batch_of([7])).result(timeout=10)
    assert len(clock.slept) == 2, "it was up again: it is worth patience again"


@pytest.mark.parametrize(
    "error", [ValueError("odd image"), RuntimeError("odd image"), KeyError("odd")]
)
@pytest.mark.parametrize("batch_size", [0, 3])
def test_one_bad_sample_costs_exactly_one_nan(error: Exception, batch_size: int) -> None:
    fake = Fake(lambda values: error if 6 in values else None)
    values = list(range(10))
    thread = ScorerThread("fake", ScorerOptions(batch_size=batch_size))
    result = thread.submit(fake, batch_of(values)).result(timeout=10)
    assert numbers(result.score.tolist()) == [None if value == 6 else value for value in values]
    assert numbers(result.extras["half"].tolist()) == [
        None if value == 6 else value / 2 for value in values
    ]
    assert fake.calls.count([6]) == 1


def test_bisection_of_a_wholly_failing_call_costs_two_calls_a_sample_less_one() -> None:
    fake = Fake(lambda values: RuntimeError("down"))
    score, thread = run(fake, batch_of(list(range(8))))
    assert numbers(score) == [None] * 8
    assert len(fake.calls) == 15
    assert thread.state() == State(False, "RuntimeError: down", (), "RuntimeError: down")


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_out_of_memory_halves_the_calls_and_remembers(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake(lambda values: error if len(values) > 3 else None)
    thread = ScorerThread("fake", ScorerOptions())
    scores = thread.submit(fake, batch_of(list(range(10)))).result(timeout=10)
    assert scores.score.tolist() == list(range(10))
    assert [len(call) for call in fake.calls] == [10, 5, 2, 2, 1, 2, 2, 1]
    fake.calls.clear()
    thread.submit(fake, batch_of(list(range(6)))).result(timeout=10)
    assert [len(call) for call in fake.calls] == [2, 2, 2]
    assert "fake: out of memory with 10 images a call; continuing with 5" in caplog.text


def test_out_of_memory_with_one_image_is_nan_and_no_end() -> None:
    fake = Fake(lambda values: MemoryError("no room"))
    score, thread = run(fake, batch_of([1, 2]))
    assert numbers(score) == [None, None]
    assert thread.state() == State(False, "MemoryError: no room", (), "MemoryError: no room")


def wrong_shape(images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
    return Scores(np.zeros(len(images) + 1, np.float32))


def no_scores(images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Any:
    return "good"


@pytest.mark.parametrize(
    "scorer, message",
    [
        (Fake(lambda values: TypeError("two arguments")), "TypeError: two arguments"),
        (Fake(lambda values: ImportError("no module")), "ImportError: no module"),
        (
            wrong_shape,
            "NotScores: the scorer returned the score of shape (5,) for 4 images: return one "
            "number per image",
        ),
        (
            no_scores,
            "NotScores: the scorer returned the score as str: return Scores, or an array or a "
            "list with one number per image",
        ),
    ],
)
def test_a_programming_error_breaks_the_thread(
    scorer: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread = ScorerThread("fake", ScorerOptions())
    score = thread.submit(scorer, batch_of([1, 2, 3, 4])).result(timeout=10).score
    assert np.isnan(score).all()
    assert thread.broken
    assert thread.error == message
    assert caplog.records[0].exc_info, "the developer wants the traceback"
    calls = len(getattr(scorer, "calls", ()))
    assert np.isnan(thread.submit(scorer, batch_of([5])).result(timeout=10).score).all()
    assert len(getattr(scorer, "calls", ())) == calls, "a broken thread does not ask again"


def test_unequal_lengths_break_the_thread_instead_of_raising() -> None:
    images = batch_of([1, 2]).images
    thread = ScorerThread("fake", ScorerOptions())
    scores = thread.submit(Fake(), Batch(images, ["one"], [{}])).result(timeout=10)
    assert np.isnan(scores.score).all()
    assert thread.broken


def test_a_lost_score_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake(lambda values: RuntimeError(f"odd {values}") if max(values) > 1 else None)
    with caplog.at_level(logging.WARNING):
        _, thread = run(fake, batch_of([1, 2, 3, 4]))
    assert len(caplog.records) == 1
    assert "fake: no score for 1 images: RuntimeError: odd [2]" in caplog.text
    assert thread.error == "RuntimeError: odd [4]", "a stopped run reports the last one"
    assert thread.first == "RuntimeError: odd [2]", "and the first one"


@pytest.mark.parametrize(
    "reason, kept",
    [
        ("", "the scorer itself gave NaN or infinity as the score"),
        ("the judge gave no mark", "the judge gave no mark"),
    ],
)
def test_a_scorer_that_gives_nan_is_reported_with_its_reason(
    reason: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    def gives_nan(images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
        return Scores(np.array([1, np.nan, np.inf, 2], np.float32), reason=reason)

    thread = ScorerThread("fake", ScorerOptions())
    for _ in range(2):
        score = thread.submit(gives_nan, batch_of([1, 2, 3, 4])).result(timeout=10).score
        assert numbers(score.tolist()) == [1, None, None, 2]
    assert thread.state() == State(False, kept, (), kept)
    assert [record.message for record in caplog.records] == [
        f"rewards.scorers.fake: no score for 2 images: {kept}. Later ones are only counted"
    ]


def test_what_a_close_leaves_unscored_has_a_reason() -> None:
    thread = ScorerThread("fake", ScorerOptions(batch_size=1))
    fake = Fake(lambda values: thread.close())  # type: ignore[func-returns-value]
    score = thread.submit(fake, batch_of([1, 2])).result(timeout=10).score
    assert numbers(score.tolist()) == [1, None]
    assert thread.error == "the run closed its scorers before these images were scored"


def test_offload_moves_the_model_in_to_score_and_out_when_nothing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorer_options, "gpu", lambda: torch.device("meta"))
    options = ScorerOptions(placement="offload")
    options.check("fake")
    thread, fake = ScorerThread("fake", options), Fake()
    thread.place(fake)
    assert fake.moves == ["cpu"]
    fake.moves.clear()
    thread.submit(fake, batch_of([1])).result(timeout=10)
    assert fake.moves == ["meta", "score", "cpu"]


def test_offload_leaves_the_model_in_place_for_the_batch_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorer_options, "gpu", lambda: torch.device("meta"))
    thread = ScorerThread("fake", ScorerOptions(placement="offload"))
    queued = threading.Event()

    def after_both_are_queued(values: list[int]) -> None:
        queued.wait(10)

    fake = Fake(after_both_are_queued)
    pending = [thread.submit(fake, batch_of([value])) for value in (1, 2)]
    queued.set()
    assert [future.result(timeout=10).score.item() for future in pending] == [1, 2]
    assert fake.moves == ["meta", "score", "meta", "score", "cpu"], (
        "no way out and in between the two"
    )


def test_placement_on_the_gpu_is_done_once_and_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_options, "gpu", lambda: torch.device("meta"))
    for placement, device in (("", "meta"), ("cuda", "meta"), ("cpu", "cpu")):
        thread, fake = ScorerThread("fake", ScorerOptions(placement=placement)), Fake()
        thread.place(fake)
        thread.submit(fake, batch_of([1])).result(timeout=10)
        assert fake.moves == [device, "score"]
    with pytest.raises(
        ValueError, match=r"fake.placement = 'cuda': this scorer has no `to\(device\)`"
    ):
        ScorerThread("fake", ScorerOptions(placement="cuda")).place(wrong_shape)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"fake.placement = 'offload' needs a CUDA GPU; 'cpu' needs none"
    ):
        ScorerOptions(placement="offload").check("fake")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_scorer_has_its_own_stream_and_offload_leaves_no_memory_behind() -> None:
    class OnGpu:
        def __init__(self) -> None:
            self.weight = torch.ones(1024, 1024)
            self.streams: list[Any] = []

        def to(self, device: Any) -> None:
            self.weight = self.weight.to(device)

        def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict]) -> Scores:
            self.streams.append(torch.cuda.current_stream())
            value = self.weight.mean() * torch.from_numpy(images).cuda().float().mean((1, 2, 3))
            return Scores(value.cpu().numpy())

    before = torch.cuda.memory_reserved()
    thread, scorer = ScorerThread("gpu", ScorerOptions(placement="offload")), OnGpu()
    thread.place(scorer)
    assert thread.submit(scorer, batch_of([3, 5])).result(timeout=60).score.tolist() == [3, 5]
    assert scorer.streams[0] != torch.cuda.default_stream()
    assert scorer.weight.device.type == "cpu"
    assert torch.cuda.memory_reserved() == before
