"""The launch scripts with a fake `accelerate`, which prints its arguments."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ACCELERATE = """
import os, signal, sys

def main():
    os.kill(os.getpid(), signal.SIGUSR1)  # a program that does not ignore it dies here
    names = ("NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "GLOO_SOCKET_IFNAME")
    print(*sys.argv[1:], *(f"{name}={os.environ.get(name, 'unset')}" for name in names), sep="\\n")
"""
OURS = (
    "ALGORITHM",
    "MODEL_NAME",
    "REWARD",
    "NUM_GPUS",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MASTER_WAIT",
    "NUM_MACHINES",
    "BETA",
    "LAUNCH",
)
THEIRS = (
    "NUM_PROCESSES",
    "NCCL_DEBUG",
    "CUDA_VISIBLE_DEVICES",
    "ACCELERATE_USE_CPU",
    "GLOO_SOCKET_IFNAME",
)


class Scripts:
    """A copy of scripts/ and config/, without a .venv, on a machine with N GPUs."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tools = folder / "a copy", folder / "tools"
        shutil.copytree(ROOT / "scripts", self.root / "scripts", symlinks=True)
        shutil.copytree(ROOT / "config", self.root / "config")
        self.tools.mkdir()
        commands = folder / "pretended" / "accelerate" / "commands"
        commands.mkdir(parents=True)
        for package in (commands, commands.parent):
            (package / "__init__.py").touch()  # or the real one is taken
        (commands / "accelerate_cli.py").write_text(ACCELERATE)
        self.gpus(0)

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def gpus(self, count: int) -> None:
        listed = "".join(f"echo 'GPU {i}: NVIDIA (UUID: GPU-{i})'\n" for i in range(count))
        self.tool("nvidia-smi", f"#!/bin/bash\n{listed or 'exit 9'}\n")

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """From another working directory."""
        clean = {name: value for name, value in os.environ.items() if name not in (*OURS, *THEIRS)}
        path = f"{self.tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = ["bash", str(self.root / "scripts" / script), *arguments]
        return subprocess.run(
            command,
            env={**clean, "PATH": path, "PYTHONPATH": str(self.root.parent / "pretended"), **env},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )

    def launched(self, script: str, *arguments: str, **env: str) -> list[str]:
        """The arguments of accelerate."""
        done = self.run(script, *arguments, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


def value(launched: list[str], option: str) -> str:
    return launched[launched.index(option) + 1]


def trained(launched: list[str]) -> list[str]:
    """The arguments of scripts/train.py."""
    return [
        word for word in launched[launched.index("scripts/train.py") + 1 :] if word.startswith("--")
    ]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
