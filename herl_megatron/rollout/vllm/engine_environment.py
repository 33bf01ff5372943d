"""Environment variables of a process that hosts vLLM; importing this imports no vLLM."""

from __future__ import annotations


def engine_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of a process that hosts an engine on `device` (`cpu` or `cuda`).

    They act only when set before torch and vllm are imported: start the process with them (a Ray
    actor's `runtime_env`). `rollout.vllm.setup` mends at import what they cannot say.

    threads: OpenMP threads of the engine; more than one pays only when cores are idle, because
        waiting OpenMP threads spin and slow down every other process of the machine.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # The engine is stepped by our own thread; no EngineCore child process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Workers of an engine over several GPUs are started by that thread: no place to fork.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Seconds before workers of a lost engine are ended by force; they have nothing to save.
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Models are local folders; a missing file is an error, not a download.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if device == "cpu":
        # The sampler's compiled helpers take 15 s to build and gain nothing on CPU.
        environment["TORCH_COMPILE_DISABLE"] = "1"
        # Engines and trainers share the cores; vLLM's default pins every engine to the same one.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Splitting one sequence's attention over threads makes its sum depend on the batch.
        environment["VLLM_CPU_ATTN_SPLIT_KV"] = "0"
    return environment
