"""train.sh: every algorithm by its name, on one machine and on several."""

from __future__ import annotations

import importlib

import pytest

from config import algorithms
from tests.launching import ROOT, Scripts, free_port, trained, value
from tp_grpo.plan import make_plan
from tp_grpo.settings import Settings

ALGORITHMS = ["awm", "dgpo", "elbo_pg", "flow_grpo", "nft", "shared_state", "tp_grpo"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_script_runs_every_algorithm(scripts: Scripts, algorithm: str) -> None:
    scripts.gpus(8)
    env = {"ALGORITHM": algorithm, "MODEL_NAME": "flux", "REWARD": "geneval"}
    launched = scripts.launched("single_node/train.sh", "--config.epochs=3", **env)
    assert trained(launched) == [
        f"--config=config/{algorithm}.py:geneval_flux",
        "--config.epochs=3",
    ]
    assert (ROOT / f"config/{algorithm}.py").is_file()


def test_an_algorithm_is_a_file_that_takes_a_recipe(scripts: Scripts) -> None:
    assert algorithms() == ALGORITHMS, "config/"
    (scripts.root / "config/mine.py").write_text("def get_config(recipe):\n    ...\n")
    scripts.gpus(1)
    launched = scripts.launched("single_node/train.sh", ALGORITHM="mine")
    assert trained(launched) == ["--config=config/mine.py:pickscore_sd3"]


def test_without_a_name_it_is_tp_grpo(scripts: Scripts) -> None:
    scripts.gpus(1)
    launched = scripts.launched("single_node/train.sh")
    assert trained(launched) == ["--config=config/tp_grpo.py:pickscore_sd3"]


@pytest.mark.parametrize(
    "algorithm, reward, processes, batch",
    [
        ("shared_state", "tiny", 1, 6),
        ("shared_state", "tiny", 2, 3),
        ("shared_state", "smoke", 2, 1),
        ("nft", "tiny", 2, 24),
        ("dgpo", "smoke", 1, 4),
        ("dgpo", "smoke", 2, 4),
        ("dgpo", "tiny", 3, 16),
    ],
)
def test_a_share_of_the_embedded_models_batch_plans(
    scripts: Scripts, algorithm: str, reward: str, processes: int, batch: int
) -> None:
    """Of images, or of shared_state groups."""
    env = {"ALGORITHM": algorithm, "REWARD": reward, "NUM_GPUS": str(processes)}
    launched = scripts.launched("single_node/train.sh", MODEL_NAME="shapes", **env)
    assert trained(launched) == [
        f"--config=config/{algorithm}.py:shapes_{reward}",
        f"--config.sample.batch_size={batch}",
    ]
    config = importlib.import_module(f"config.{algorithm}").get_config(f"shapes_{reward}")
    config.sample.batch_size = batch
    assert make_plan(Settings.read(config), processes).batch_size == batch


def test_every_algorithm_on_several_machines(scripts: Scripts) -> None:
    env = {
        "MASTER_ADDR": "127.0.0.1",
        "NUM_MACHINES": "2",
        "NUM_PROCESSES": "2",
        "MASTER_PORT": free_port(),
    }
    launched = scripts.launched(
        "multi_node/train.sh", "0", ALGORITHM="shared_state", MODEL_NAME="shapes", **env
    )
    assert trained(launched) == [
        "--config=config/shared_state.py:shapes_tiny",
        "--config.sample.batch_size=3",
    ]
    assert value(launched, "--num_processes") == "2"


@pytest.mark.parametrize("script", ["single_node/train.sh", "multi_node/train.sh 0"])
@pytest.mark.parametrize("algorithm", ["ppo", "base", "tp_grpo.py", "TP_GRPO"])
def test_an_unknown_algorithm_is_refused(scripts: Scripts, script: str, algorithm: str) -> None:
    scripts.gpus(8)
    done = scripts.run(*script.split(), ALGORITHM=algorithm, MASTER_ADDR="127.0.0.1")
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert (
        done.stderr == f"error: ALGORITHM = '{algorithm}' is not one of {', '.join(ALGORITHMS)}\n"
    )
