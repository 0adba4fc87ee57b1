"""RewardSet: names, weights, failures."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

import reward_models
from tests.scorers import Brightness
from tp_grpo.images import finite_images, to_uint8
from tp_grpo.rewards.reward_set import RewardError, RewardSet
from tp_grpo.rewards.scorer_thread import State

IMAGES = to_uint8(torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8))
BRIGHTNESS = "tests.scorers:Brightness"


def test_weights_add_up_and_a_scorer_of_ones_own_is_a_dotted_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reward_models, "_FACTORIES", dict(reward_models._FACTORIES))
    reward_models.register("brightness", BRIGHTNESS)
    rewards = RewardSet({"brightness": 2.0, BRIGHTNESS: {"weight": -1, "scale": 0.5}})
    result = rewards.submit(IMAGES, [""] * 4, [{}] * 4).result()
    expected = torch.from_numpy(IMAGES).float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(result.scores["brightness"], expected)
    torch.testing.assert_close(result.total, 1.5 * expected)


def test_an_image_with_a_nan_is_not_scored_and_has_failed() -> None:
    images = torch.rand(4, 3, 8, 8)
    images[1, 2, 3, 4], images[3, 0, 0, 0] = float("nan"), float("inf")
    finite = finite_images(images)
    assert finite.tolist() == [True, False, True, False]
    rewards = RewardSet({BRIGHTNESS: 1.0})
    pixels = to_uint8(images)
    result = rewards.submit(pixels, list("abcd"), [{}] * 4, finite).result()
    expected = pixels.mean((1, 2, 3)) / 255
    np.testing.assert_allclose(result.total, [expected[0], np.nan, expected[2], np.nan], rtol=1e-6)
    rewards.settle()
    with pytest.raises(
        RewardError,
        match=r"no score \(NaN\) for 2 of 4 .*Its last error: images that are NaN or infinite",
    ):
        rewards.check_failed(result.scores, 0.05)


def test_a_batch_without_one_finite_image_has_no_score() -> None:
    rewards = RewardSet({BRIGHTNESS: 1.0, "tests.scorers:Gaps": {"every": 2}})
    result = rewards.submit(IMAGES, [""] * 4, [{}] * 4, np.zeros(4, bool)).result()
    rewards.settle()
    assert result.total.isnan().all()
    assert all(score.shape == (4,) for score in result.scores.values())


@pytest.mark.parametrize(
    "scorers, message",
    [
        ({}, "rewards.scorers is empty"),
        ({"shape": 1.0}, "no scorer is called 'shape'; did you mean 'shapes'"),
        ({"shapes": {"exact": 1}}, "'shapes' does not take the options"),
        ({"tests.scorers:Nobody": 1.0}, "cannot be imported"),
        ({"shapes": {"weight": "much"}}, "weight = 'much' is not a number"),
        ({"shapes": {"weight": float("nan")}}, "weight = nan is not a number"),
        ({"shapes": {"batch_size": -1}}, "shapes.batch_size = -1 is not a whole number"),
        ({"shapes": {"batch_size": True}}, "shapes.batch_size = True is not a whole number"),
        ({"shapes": {"patience": -1}}, "shapes.patience = -1 is not a number of seconds"),
        ({"shapes": {"patience": "600"}}, "shapes.patience = '600' is not a number of seconds"),
        ({"shapes": {"remote": 8090}}, "shapes.remote = 8090 is not the URL"),
        (
            {"shapes": None},
            r"rewards.scorers.shapes = None is not a number, the weight, nor a dict of options",
        ),
        (
            {"shapes": "1.0"},
            r"rewards.scorers.shapes = '1.0' is not a number, the weight, nor a dict of options",
        ),
        ({"shapes": True}, r"rewards.scorers.shapes = True is not a number"),
        ({"shapes": {"weight": True}}, "weight = True is not a number"),
        (
            {"clipscore": {"device": "cpu", "placement": "cpu"}},
            "clipscore.device = 'cpu', but .*placement = 'cpu': drop",
        ),
        (
            {"shapes": {"placement": "gpu"}},
            "placement = 'gpu' is not one of cuda, offload, cpu, remote",
        ),
        ({"shapes": {"placement": "remote"}}, "needs rewards.scorers.shapes.remote, the URL"),
        ({"shapes": {"placement": "cpu", "remote": "http://localhost"}}, "drop one"),
    ],
)
def test_bad_settings(scorers: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSet(scorers)


@pytest.mark.parametrize("bad", [{"pikscore": 1.0}, {"jpeg": None}, {"jpeg": {"batch_size": -1}}])
def test_every_name_and_option_is_read_before_the_first_scorer_is_built(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"did you mean 'pickscore'|jpeg"):
        RewardSet({"tests.scorers:Unbuildable": 1.0, **bad})


def test_a_model_with_a_device_of_its_own_is_left_there_and_its_batch_size_reaches_it() -> None:
    rewards = RewardSet({"tests.scorers:Placed": {"device": "cpu", "batch_size": 64}})
    scorer: Any = rewards.scorers["tests.scorers:Placed"]
    assert (scorer.device, scorer.moves, scorer.batch_size) == ("cpu", [], 64)
    assert rewards.threads["tests.scorers:Placed"].largest == 64
    placed: Any = RewardSet({"tests.scorers:Placed": {"placement": "cpu"}}).scorers[
        "tests.scorers:Placed"
    ]
    assert (placed.device, placed.moves, placed.batch_size) == ("auto", ["cpu"], 16)


@pytest.mark.parametrize(
    "name, options",
    [
        ("jpeg", {"remote": "http://127.0.0.1:9"}),
        ("judge", {"url": "http://127.0.0.1:9/v1", "model": "m"}),
    ],
)
def test_a_server_that_is_out_of_reach_is_named_before_the_run(name: str, options: dict) -> None:
    with pytest.raises(
        ValueError,
        match=rf"rewards\.scorers\.{name} is out of reach: .*no answer from .*127\.0\.0\.1:9",
    ):
        RewardSet({name: options}).check_prompts(["a"], [{}])


def test_a_programming_error_is_held_back_until_all_ranks_can_stop() -> None:
    rewards = RewardSet(
        {"tests.scorers:Raises": {"calls": 1, "error": "TypeError"}, BRIGHTNESS: 1.0}
    )
    good = rewards.score(IMAGES, [""] * 4, [{}] * 4)
    assert good.total.isfinite().all()
    results = [rewards.submit(IMAGES, [""] * 4, [{}] * 4).result() for _ in range(2)]
    for result in results:
        assert result.total.isnan().all()
        assert result.scores[BRIGHTNESS].isfinite().all()
    with pytest.raises(
        RewardError,
        match=r"'tests.scorers:Raises' failed with TypeError: the engine is out of fuel",
    ):
        rewards.settle()
    scorer: Any = rewards.scorers["tests.scorers:Raises"]
    assert scorer.left == -1, "a broken scorer is not called again"


def test_an_error_on_one_rank_stops_every_rank_with_its_words() -> None:
    well, ill = RewardSet({BRIGHTNESS: 1.0}), RewardSet({BRIGHTNESS: 1.0})
    ill.scorers[BRIGHTNESS] = lambda *batch: None  # type: ignore[assignment]
    for rewards in (well, ill):
        rewards.submit(IMAGES, [""] * 4, [{}] * 4).result()
    states = [{BRIGHTNESS: rewards.threads[BRIGHTNESS].state()} for rewards in (well, ill)]
    for rewards in (well, ill):
        with pytest.raises(RewardError, match=r"Brightness' failed with NotScores: .* as NoneType"):
            rewards.settle(lambda mine: states)


def test_ranks_agree_on_extras_though_one_never_had_any() -> None:
    states = [
        {"a": State(False, "", ("x", "y"))},
        {"a": State(False, "RuntimeError: down", (), "OSError: gone")},
    ]
    rewards = RewardSet({BRIGHTNESS: 1.0})
    rewards.settle(lambda mine: states)
    assert rewards.extras == ["a/x", "a/y"]
    assert rewards.errors == {"a": "RuntimeError: down"}
    assert rewards.first_errors == {"a": "OSError: gone"}
    extra = rewards.score(IMAGES, [""] * 4, [{}] * 4).extra("a/x")
    assert extra.isnan().all()
    assert extra.shape == (4,)


def test_a_scorer_of_weight_0_judges_evaluations_alone_and_has_no_part_in_the_total() -> None:
    rewards = RewardSet({BRIGHTNESS: 2.0, "tests.scorers:Gaps": {"weight": 0.0, "every": 2}})
    trained = rewards.submit(IMAGES, [""] * 4, [{}] * 4, trained_only=True).result()
    judged = rewards.score(IMAGES, [""] * 4, [{}] * 4)
    assert list(trained.scores) == [BRIGHTNESS]
    assert len(judged.scores) == 2
    assert judged.scores["tests.scorers:Gaps"].isnan().sum() == 2
    assert torch.equal(judged.total, trained.total)
    assert torch.equal(trained.total, 2 * trained.scores[BRIGHTNESS])
    assert rewards.check_failed(trained.scores, 0.0) == 0


def test_scorers_work_at_the_same_time() -> None:
    meet = threading.Barrier(2, timeout=10)  # one after another they would never meet

    class Waits(Brightness):
        def __call__(
            self, images: np.ndarray, prompts: list[str], metadata: list[dict]
        ) -> reward_models.Scores:
            meet.wait()
            return super().__call__(images, prompts, metadata)

    rewards = RewardSet({BRIGHTNESS: 1.0, "shapes": 1.0})
    rewards.scorers.update({name: Waits() for name in rewards.scorers})
    assert rewards.score(IMAGES, [""] * 4, [{}] * 4).total.isfinite().all()


def test_prompts_that_could_never_be_scored_are_refused_beforehand() -> None:
    with pytest.raises(ValueError, match="general_ocr: the prompt 'a sign' has no text"):
        RewardSet({BRIGHTNESS: 1.0, "general_ocr": {"workers": 0}}).check_prompts(["a sign"], [{}])


def test_a_remote_scorer_is_built_with_its_url_name_and_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Client(Brightness):
        def __init__(self, url: str, name: str, token: str = "") -> None:
            super().__init__()
            self.options = (url, name, token)

    monkeypatch.setattr("tests.scorers.Client", Client, raising=False)
    monkeypatch.setattr("tp_grpo.rewards.scorer_options.REMOTE", "tests.scorers:Client")
    url = "http://127.0.0.1:8000"
    options = {"weight": 0.5, "remote": url, "token": "t", "batch_size": 2}
    rewards = RewardSet({"geneval": options})
    scorer: Any = rewards.scorers["geneval"]
    assert scorer.options == (url, "geneval", "t")
    assert rewards.threads["geneval"].largest == 2
    with pytest.raises(ValueError, match="does not take the options"):
        RewardSet({"geneval": {"remote": url, "scoring": "fixed"}})


def test_closing_ends_the_wait_for_a_server_and_the_scorers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tp_grpo.rewards.scorer_thread.backoff", lambda attempt: 60.0)
    rewards = RewardSet({BRIGHTNESS: {"patience": 60_000}})
    tried, closed = threading.Event(), threading.Event()

    class Down:
        def __call__(
            self, images: np.ndarray, prompts: list[str], metadata: list[dict]
        ) -> reward_models.Scores:
            tried.set()
            raise reward_models.Unavailable("connection refused")

        def close(self) -> None:
            closed.set()

    rewards.scorers[BRIGHTNESS] = Down()
    pending = rewards.submit(IMAGES, [""] * 4, [{}] * 4)
    tried.wait(10)
    rewards.close()
    assert closed.is_set()
    assert pending.result(timeout=10).total.isnan().all()


def test_too_many_failures_are_named_with_their_share() -> None:
    rewards = RewardSet({BRIGHTNESS: 1.0})
    scores = {BRIGHTNESS: torch.tensor([1.0, float("nan"), 0.0, 2.0])}
    assert rewards.check_failed(scores, 0.25) == 0.25
    words = r"Brightness' gave no score \(NaN\) for 1 of 4 images, 25%"
    with pytest.raises(RewardError, match=words):
        rewards.check_failed(scores, 0.2)
    rewards.errors = {BRIGHTNESS: "TimeoutError: 30 s"}
    with pytest.raises(RewardError, match=r"allows 20%\. Its last error: TimeoutError: 30 s"):
        rewards.check_failed(scores, 0.2)
    rewards.first_errors = {BRIGHTNESS: "OSError: no file"}
    with pytest.raises(
        RewardError,
        match=r"allows 20%\. Its first error: OSError: no file\. Its last error: Timeout",
    ):
        rewards.check_failed(scores, 0.2)


def test_a_share_of_nan_that_a_scorer_gives_is_explained() -> None:
    rewards = RewardSet({"tests.scorers:Gaps": {"every": 2}})
    result = rewards.score(IMAGES, list("abcd"), [{}] * 4)
    words = "50%.* Its last error: the scorer itself gave NaN or infinity as the score"
    with pytest.raises(RewardError, match=words):
        rewards.check_failed(result.scores, 0.05)


def test_what_is_not_finite_is_no_score_and_a_wrong_length_is_named() -> None:
    class Odd:
        def __init__(self, values: list[float]) -> None:
            self.values = values

        def __call__(
            self, images: np.ndarray, prompts: list[str], metadata: list[dict]
        ) -> reward_models.Scores:
            return reward_models.Scores(np.array(self.values))

    rewards = RewardSet({BRIGHTNESS: 1.0})
    rewards.scorers[BRIGHTNESS] = Odd([1.0, np.inf, -np.inf, np.nan])
    missing = rewards.score(IMAGES, [""] * 4, [{}] * 4).total.isnan()
    assert missing.tolist() == [False, True, True, True]
    rewards.scorers[BRIGHTNESS] = Odd([1.0])
    with pytest.raises(
        RewardError, match=r"Brightness' failed with NotScores: .*shape \(1,\) for 4 images"
    ):
        rewards.score(IMAGES, [""] * 4, [{}] * 4)
