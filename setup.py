from setuptools import find_packages, setup

EXTRAS = {
    "geneval": ["open_clip_torch>=2.24", "scipy>=1.11"],
    "ocr": ["rapidocr>=3.10", "onnxruntime>=1.18", "rapidfuzz>=3.0"],
    "judge": ["openai>=2.0", "httpx>=0.27"],
    "server": ["fastapi>=0.110", "uvicorn>=0.29", "httpx>=0.27"],
    "data": ["datasets>=3.0"],
    "8bit": ["bitsandbytes>=0.50"],
    "dev": [
        "hypothesis>=6.100",
        "import-linter>=2.5",
        "mypy>=1.15",
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "ruff>=0.12",
    ],
}

setup(
    name="tp_grpo",
    version="0.1.0",
    description="TP-GRPO and Flow-GRPO: reinforcement learning of flow-matching image models",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(
        include=["tp_grpo", "tp_grpo.*", "reward_models", "reward_models.*", "config", "config.*"]
    ),
    package_data={
        "tp_grpo": [
            "models/architectures/*.json",
            "shapes/weights/**/*",
            "data/sets/*.json",
            "report/*",
        ]
    },
    install_requires=[
        "absl-py>=2.0",
        "accelerate>=1.10",
        "diffusers>=0.36",
        "einops>=0.8",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "ml_collections>=1.0",
        "numpy>=1.26",
        "peft>=0.18",
        "pillow>=10.0",
        "protobuf>=5.0",
        "psutil>=5.9",
        "PyYAML>=6.0",
        "safetensors>=0.5",
        "scipy>=1.11",
        "sentencepiece>=0.2",
        "tensorboard>=2.16",
        "tokenizers>=0.22",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm>=4.66",
        "transformers>=5.0",
        "wandb>=0.19",
    ],
    extras_require=EXTRAS,
)
