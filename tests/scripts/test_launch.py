"""scripts/single_node and multi_node with a fake `accelerate`: their checks, and its arguments."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from config import models, recipes
from tests.launching import ROOT, Scripts, free_port, trained, value


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize("reward", recipes.REWARDS)
def test_model_and_reward_name_a_recipe(scripts: Scripts, model: str, reward: str) -> None:
    scripts.gpus(8)
    launched = scripts.launched("single_node/tp_grpo.sh", MODEL_NAME=model, REWARD=reward)
    assert trained(launched) == [f"--config=config/tp_grpo.py:{reward}_{model}"]
    assert f"{reward}_{model}" in recipes.RECIPES
    assert value(launched, "--num_processes") == "8"
    assert value(launched, "--num_machines") == "1"
    assert value(launched, "--config_file") == "scripts/accelerate_configs/ddp.yaml"
    assert value(launched, "--main_process_port") == "19001"
    assert "NCCL_DEBUG=WARN" in launched
    assert "CUDA_VISIBLE_DEVICES=unset" in launched


def test_the_default_is_sd3_with_pickscore_on_all_visible_gpus(scripts: Scripts) -> None:
    scripts.gpus(8)
    launched = scripts.launched("single_node/flow_grpo.sh", CUDA_VISIBLE_DEVICES="4,5")
    assert trained(launched) == ["--config=config/flow_grpo.py:pickscore_sd3"]
    assert value(launched, "--num_processes") == "2"
    assert value(scripts.launched("single_node/tp_grpo.sh", NUM_GPUS="4"), "--num_processes") == "4"
    done = scripts.run("single_node/tp_grpo.sh", CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 2 and "needs CUDA GPUs, and this machine has none" in done.stderr


@pytest.mark.parametrize(
    "name, target", [("common_op3.sh", "tp_grpo"), ("common_normal.sh", "flow_grpo")]
)
@pytest.mark.parametrize("folder, rank", [("single_node", ()), ("multi_node", ("0",))])
def test_the_published_names_are_links(
    scripts: Scripts, name: str, target: str, folder: str, rank: tuple[str, ...]
) -> None:
    assert (ROOT / "scripts" / folder / name).readlink() == Path(f"{target}.sh")
    env = {
        "MODEL_NAME": "shapes",
        "MASTER_ADDR": "127.0.0.1",
        "NUM_PROCESSES": "4",
        "MASTER_PORT": free_port(),
    }
    assert f"--config=config/{target}.py:shapes_tiny" in scripts.launched(
        f"{folder}/{name}", *rank, **env
    )


def test_beta_and_further_arguments_are_passed_on(scripts: Scripts) -> None:
    scripts.gpus(1)
    launched = scripts.launched(
        "single_node/tp_grpo.sh", "--config.epochs=3", "--config.run_name=two words", BETA="1e-3"
    )
    assert trained(launched)[1:] == [
        "--config.train.beta=1e-3",
        "--config.epochs=3",
        "--config.run_name=two words",
    ]


def test_without_cuda_the_embedded_model_runs_over_gloo_with_a_share_of_the_batch(
    scripts: Scripts,
) -> None:
    launched = scripts.launched("single_node/tp_grpo.sh", MODEL_NAME="shapes", NUM_GPUS="2")
    assert trained(launched) == [
        "--config=config/tp_grpo.py:shapes_tiny",
        "--config.sample.batch_size=24",
    ]
    assert value(launched, "--config_file") == "scripts/accelerate_configs/cpu.yaml"
    for setting in ("NCCL_DEBUG=unset", "CUDA_VISIBLE_DEVICES=", "ACCELERATE_USE_CPU=true"):
        assert setting in launched
    assert (
        value(scripts.launched("single_node/tp_grpo.sh", MODEL_NAME="shapes"), "--num_processes")
        == "1"
    )


def test_the_documented_command_of_a_node(scripts: Scripts) -> None:
    scripts.gpus(8)
    env = {
        "MASTER_ADDR": "127.0.0.1",
        "NUM_MACHINES": "4",
        "NUM_PROCESSES": "32",
        "MASTER_PORT": free_port(),
    }
    launched = scripts.launched(
        "multi_node/tp_grpo.sh", "0", "--config.epochs=3", MODEL_NAME="flux", **env
    )
    options = (
        "--num_machines",
        "--machine_rank",
        "--num_processes",
        "--main_process_ip",
        "--main_process_port",
    )
    assert [value(launched, option) for option in options] == [
        "4",
        "0",
        "32",
        "127.0.0.1",
        env["MASTER_PORT"],
    ]
    assert trained(launched) == ["--config=config/tp_grpo.py:pickscore_flux", "--config.epochs=3"]
    assert "GLOO_SOCKET_IFNAME=lo" in launched
    fsdp2 = scripts.launched("multi_node/tp_grpo.sh", "0", LAUNCH="fsdp2", MODEL_NAME="flux", **env)
    assert value(fsdp2, "--config_file") == "scripts/accelerate_configs/fsdp2.yaml"


ALONE = "single_node/tp_grpo.sh"
NODE = "multi_node/tp_grpo.sh 0"


@pytest.mark.parametrize(
    ("command", "env", "message"),
    [
        (
            ALONE,
            {"MODEL_NAME": "sd4"},
            "MODEL_NAME = 'sd4' is not one of sd3, sd35_large, flux, klein, zimage, qwen, shapes",
        ),
        (
            ALONE,
            {"REWARD": "aesthetic"},
            "REWARD = 'aesthetic' is not one of pickscore, geneval, general_ocr",
        ),
        (
            ALONE,
            {"MODEL_NAME": "shapes", "REWARD": "pickscore"},
            "REWARD = 'pickscore': the embedded model has its own reward; omit REWARD, or",
        ),
        (ALONE, {"NUM_GPUS": "all"}, "NUM_GPUS = 'all' is not a whole number from 1 on"),
        (ALONE, {"NUM_GPUS": "16"}, "16 processes on this machine are more than its 8 GPUs"),
        (ALONE, {"MASTER_PORT": "http"}, "MASTER_PORT = 'http' is not a whole number from 1 on"),
        (ALONE, {"MASTER_PORT": "70000"}, "MASTER_PORT = 70000: ports end at 65535"),
        (
            ALONE,
            {"LAUNCH": "fsdp9"},
            "LAUNCH = 'fsdp9': no file scripts/accelerate_configs/fsdp9.yaml; known: ddp, fsdp2",
        ),
        (
            ALONE,
            {"LAUNCH": "zero2"},
            "LAUNCH = 'zero2': DeepSpeed's engine casts the fp32 adapters and steps on its",
        ),
        (
            ALONE,
            {"LAUNCH": "deepspeed"},
            "take ddp, or fsdp2, which shards the frozen weights (docs/scaling.md)",
        ),
        (ALONE, {"LAUNCH": "cpu"}, "MODEL_NAME=sd3 needs CUDA GPUs"),
        ("multi_node/tp_grpo.sh", {}, "RANK = '': give this machine's number first, as in bash"),
        (
            "multi_node/tp_grpo.sh --config.epochs=3",
            {},
            "RANK = '--config.epochs=3': give this machine's number first",
        ),
        (
            "multi_node/tp_grpo.sh 4",
            {"NUM_MACHINES": "4"},
            "RANK = 4 is not below NUM_MACHINES = 4",
        ),
        (
            NODE,
            {"NUM_MACHINES": "3"},
            "NUM_PROCESSES = 32, over all machines, does not divide by NUM_MACHINES = 3",
        ),
        (NODE, {"NUM_MACHINES": "two"}, "NUM_MACHINES = 'two' is not a whole number from 1 on"),
        (NODE, {"NUM_MACHINES": "2x"}, "NUM_MACHINES = '2x' is not a whole number from 1 on"),
        (NODE, {"NUM_PROCESSES": "08"}, "NUM_PROCESSES = '08' is not a whole number from 1 on"),
        (NODE, {"MASTER_WAIT": "0"}, "MASTER_WAIT = '0' is not a whole number from 1 on"),
        (NODE, {"MASTER_ADDR": ""}, "MASTER_ADDR is not set: the address of machine 0"),
        (NODE, {"NUM_PROCESSES": "64"}, "16 processes on this machine are more than its 8 GPUs"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_launched(
    scripts: Scripts, command: str, env: dict[str, str], message: str
) -> None:
    scripts.gpus(8)
    done = scripts.run(
        *command.split(), **{"MASTER_ADDR": "127.0.0.1", "NUM_PROCESSES": "32", **env}
    )
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr


def test_a_large_model_without_cuda_is_refused(scripts: Scripts) -> None:
    done = scripts.run(ALONE, MODEL_NAME="flux")
    assert done.returncode == 2
    assert "MODEL_NAME=flux needs CUDA GPUs, and this machine has none" in done.stderr


def test_a_port_that_is_taken_is_named(scripts: Scripts) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {
            "MASTER_ADDR": "127.0.0.1",
            "NUM_PROCESSES": "4",
            "MASTER_PORT": port,
            "MODEL_NAME": "shapes",
        }
        done = scripts.run("multi_node/tp_grpo.sh", "0", **env)
    assert done.returncode == 2, done.stderr
    assert f"port {port} is taken; set MASTER_PORT" in done.stderr
