"""Every rule that involves two keys, a file or the machine, checked before any process starts.

A rule is a function that yields its problems; all problems of a run are reported together, each
with the keys, their values and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from herl_megatron.config.judge_rules import judge_problems
from herl_megatron.config.load import ConfigError
from herl_megatron.config.machine import Machine, look_at_machine
from herl_megatron.config.model_rules import model_problems, weights_bytes
from herl_megatron.config.paths import IMPROVED, folder_problem, run_path
from herl_megatron.config.purpose import RESUMES, SAMPLES, TRAINS, Purpose
from herl_megatron.config.schema import Config


def validate(config: Config, *, purpose: Purpose, machine: Machine | None = None) -> None:
    """Refuse a configuration that cannot run; `machine` defaults to the facts of this one.

    Raises:
        ConfigError: all problems found.
    """
    machine = machine or look_at_machine(config)
    problems = list(_problems(config, purpose, machine))
    if problems:
        raise ConfigError(problems)


def _problems(config: Config, purpose: Purpose, machine: Machine) -> Iterator[str]:
    if problem := folder_problem(config):
        yield problem
    if config.run.resume and purpose not in RESUMES:
        yield f"run.resume is true, but `herl {purpose}` writes no checkpoints; set it to false"
    elif config.run.resume and purpose == "train" and (run_path(config) / IMPROVED).exists():
        yield (
            f"run.resume is true, but {run_path(config)} is a run of `herl improve`, whose"
            " trajectories would be deleted; choose another run.name"
        )
    yield from _files(config, purpose)
    yield from judge_problems(config.judge)
    yield from model_problems(
        config,
        trains=purpose in TRAINS,
        samples=purpose in SAMPLES,
        device=machine.device(config.cluster.device),
    )
    yield from rule_problems(config, purpose=purpose, machine=machine)
    if purpose == "train":
        yield from _shared_memory(config, machine)


def rule_problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """The rules that need no file: between keys, and between keys and the machine."""
    yield from _devices(config, purpose, machine)
    if purpose in SAMPLES:
        yield from _engines(config)
    if purpose in TRAINS:
        yield from _layout(config)
        if machine.device(config.cluster.device) == "cuda":
            yield from _fp8(config)  # on the CPU it is refused for good
        yield from _batches(config, purpose)
        if config.optimizer.min_lr > config.optimizer.lr:
            yield (
                f"optimizer.min_lr is {config.optimizer.min_lr}, above optimizer.lr"
                f" {config.optimizer.lr}; lower it"
            )
    if purpose == "train":
        yield from _loop(config)
        yield from _staleness(config)
        yield from _hindsight(config)
    if purpose == "improve":
        yield from _improve(config)


def _files(config: Config, purpose: Purpose) -> Iterator[str]:
    needed = {
        "train": {"data.train": config.data.train},
        "sft": {"sft.data": config.sft.data},
        "dpo": {"dpo.data": config.dpo.data},
        "eval": {"data.eval": config.data.eval},
        "improve": {"data.eval": config.data.eval},
    }[purpose]
    optional = {"data.eval": config.data.eval} if purpose == "train" else {}
    for key, value in (needed | optional).items():
        if not value:
            if key in needed:
                yield f"{key} is empty; `herl {purpose}` needs a file of rows there"
        elif not Path(value).is_file():
            yield f"{key}: no such file: {value!r} (from {Path.cwd()}); mend the path"


def _devices(config: Config, purpose: Purpose, machine: Machine) -> Iterator[str]:
    trains, samples = purpose in TRAINS, purpose in SAMPLES
    if machine.device(config.cluster.device) == "cuda":
        if machine.gpus:
            yield from _gpus(config, machine, trains=trains, samples=samples)
        elif not config.cluster.address:  # a driver that joins a cluster needs none
            yield "cluster.device is 'cuda' but torch sees no CUDA device; use 'cpu' or 'auto'"
    if trains and machine.precision_problem:
        yield machine.precision_problem


def _gpus(config: Config, machine: Machine, *, trains: bool, samples: bool) -> Iterator[str]:
    megatron, rollout = config.megatron, config.rollout
    if config.cluster.address:
        return  # the GPUs of the other machines are Ray's to count
    if trains and megatron.world_size > machine.gpus:
        yield (
            f"megatron: TP {megatron.tensor_parallel} * PP {megatron.pipeline_parallel} * CP"
            f" {megatron.context_parallel} * DP {megatron.data_parallel} = {megatron.world_size}"
            f" ranks, but this machine has {machine.gpus} GPUs; make the product smaller or join"
            " a cluster with cluster.address"
        )
    engine_gpus = rollout.replicas * rollout.tensor_parallel
    if samples and engine_gpus > machine.gpus:
        yield (
            f"rollout.replicas {rollout.replicas} * rollout.tensor_parallel"
            f" {rollout.tensor_parallel} = {engine_gpus} GPUs, but this machine has"
            f" {machine.gpus}; lower one of them"
        )


def _engines(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.quantization and rollout.dtype != "bf16":
        yield (
            f"rollout.quantization is {rollout.quantization!r} with rollout.dtype"
            f" {rollout.dtype!r}; what FP8 leaves out computes in bf16: set dtype to bf16"
        )
    if rollout.max_engine_restarts and rollout.stall_timeout_s >= rollout.timeout_s:
        yield (
            f"rollout.stall_timeout_s is {rollout.stall_timeout_s:g}, not below rollout.timeout_s"
            f" {rollout.timeout_s:g}: a hung engine would end the run before it is started anew;"
            " lower it, or set max_engine_restarts to 0"
        )


def _layout(config: Config) -> Iterator[str]:
    megatron = config.megatron
    if megatron.sequence_parallel and megatron.tensor_parallel == 1:
        yield (
            "megatron.sequence_parallel is true with megatron.tensor_parallel 1; it splits over TP,"
            " so set it to false or raise tensor_parallel"
        )
    virtual = megatron.virtual_pipeline
    if virtual is not None and megatron.pipeline_parallel == 1:
        yield (
            f"megatron.virtual_pipeline is {virtual} with megatron.pipeline_parallel 1; set it to"
            " null or raise pipeline_parallel"
        )
    if virtual is not None and virtual < 2:
        yield f"megatron.virtual_pipeline is {virtual}; use 2 or more, or null for plain 1F1B"
    yield from _expert_ranks(config)


def _expert_ranks(config: Config) -> Iterator[str]:
    """Experts are laid over the ranks of a stage by ETP and EP, whatever TP, CP and DP are."""
    m = config.megatron
    if m.stage_ranks % (m.etp * m.expert_parallel) == 0:
        return
    if m.expert_tensor_parallel is None:
        yield (
            f"megatron.expert_parallel {m.expert_parallel} does not divide data_parallel *"
            f" context_parallel = {m.data_parallel * m.context_parallel}; choose a divisor, or"
            " lay experts over the TP ranks too with megatron.expert_tensor_parallel"
        )
        return
    yield (
        f"megatron.expert_tensor_parallel {m.expert_tensor_parallel} * expert_parallel"
        f" {m.expert_parallel} does not divide the {m.stage_ranks} ranks of a pipeline stage (TP"
        f" {m.tensor_parallel} * CP {m.context_parallel} * DP {m.data_parallel}); choose divisors"
    )


def _fp8(config: Config) -> Iterator[str]:
    megatron = config.megatron
    if megatron.fp8 is None:
        if megatron.fp8_bf16_layers:
            yield (
                f"megatron.fp8_bf16_layers is {megatron.fp8_bf16_layers} but megatron.fp8 is null;"
                " set it to 0, or choose a recipe"
            )
        return
    if megatron.precision != "bf16":
        yield (
            f"megatron.fp8 is {megatron.fp8!r} with megatron.precision {megatron.precision!r}; what"
            " FP8 leaves out computes in bf16: set precision to bf16"
        )
    if megatron.fp8 != "delayed":
        return
    if megatron.fp8_bf16_layers:
        yield (
            f"megatron.fp8_bf16_layers is {megatron.fp8_bf16_layers} with megatron.fp8 'delayed',"
            " whose scales span all layers; use 0 or another recipe"
        )
    if megatron.reference == "host" and config.algorithm.kl_coef:
        yield (
            "megatron.reference is 'host' with megatron.fp8 'delayed': two models in the same"
            " modules would mix their histories of largest values; use 'resident' or another recipe"
        )


def _batches(config: Config, purpose: Purpose) -> Iterator[str]:
    dp = config.megatron.data_parallel
    if purpose == "sft":
        if config.sft.rows_per_step < dp:
            yield (
                f"sft.rows_per_step is {config.sft.rows_per_step}, fewer than"
                f" megatron.data_parallel {dp}; every rank needs a row"
            )
        return
    if purpose == "dpo":
        yield from _pairs(config)
        return
    train, group = config.train, config.rollout.group_size
    if train.prompts_per_step % train.prompts_per_optimizer_step:
        yield (
            f"train.prompts_per_step {train.prompts_per_step} is not divisible by"
            f" train.prompts_per_optimizer_step {train.prompts_per_optimizer_step}"
        )
    rows = train.prompts_per_optimizer_step * group
    if rows < dp:
        yield (
            f"train.prompts_per_optimizer_step {train.prompts_per_optimizer_step} *"
            f" rollout.group_size {group} = {rows} rows, fewer than megatron.data_parallel {dp};"
            " every rank needs a row"
        )
    if config.algorithm.min_valid > group:
        yield (
            f"algorithm.min_valid is {config.algorithm.min_valid}, above rollout.group_size"
            f" {group}; no group would ever train"
        )


def _pairs(config: Config) -> Iterator[str]:
    dpo, dp = config.dpo, config.megatron.data_parallel
    if 2 * dpo.pairs_per_step < dp:
        yield (
            f"dpo.pairs_per_step is {dpo.pairs_per_step}, two rows each, fewer than"
            f" megatron.data_parallel {dp}; every rank needs a row"
        )
    if dpo.loss == "ipo" and dpo.label_smoothing:
        yield (
            f"dpo.label_smoothing is {dpo.label_smoothing} with dpo.loss 'ipo', which has none; set"
            " it to 0 or use 'sigmoid'"
        )


def _loop(config: Config) -> Iterator[str]:
    train, data = config.train, config.data
    if not train.steps and not data.eval and not train.export:
        yield "train.steps is 0, data.eval is empty and train.export is false: nothing to do"
    if train.eval_every and not data.eval:
        yield (
            f"train.eval_every is {train.eval_every} but data.eval is empty; give held-out rows or"
            " set eval_every to 0"
        )
    if config.algorithm.mismatch_weight and config.rollout.truncated:
        yield (
            f"algorithm.mismatch_weight is true but {config.rollout.truncated}: the engine's"
            " log-probs are of the truncated distribution and do not compare with the trainer's;"
            " use top_p 1.0 and top_k -1, or turn mismatch_weight off"
        )
    if train.steps and config.rollout.temperature == 0:
        yield (
            "rollout.temperature is 0, so all rollouts of a group are equal, the policy that is"
            " trained (logits divided by the temperature) has no log-probs, and nothing is"
            " learned; use 1.0"
        )


def _staleness(config: Config) -> Iterator[str]:
    """What a loss must know about tokens that the step's first weights did not draw."""
    mode, quantization = config.rollout.mode, config.rollout.quantization
    if quantization and not config.algorithm.mismatch_weight:
        yield (
            f"rollout.quantization is {quantization!r} but algorithm.mismatch_weight is false: the"
            " loss would take tokens that rounded weights drew for the policy's own; set"
            " mismatch_weight to true, or quantization to null"
        )
    if mode == "sync":
        return
    if not config.algorithm.mismatch_weight:
        yield (
            f"rollout.mode is {mode!r} but algorithm.mismatch_weight is false: the loss would take"
            " tokens that older weights drew for the current policy's; set mismatch_weight to true"
            " (decoupled PPO), or mode to 'sync'"
        )
    hindsight = config.hindsight
    if hindsight.enabled and (hindsight.reference_compat or hindsight.behavior == "old"):
        key = "reference_compat true" if hindsight.reference_compat else "behavior 'old'"
        yield (
            f"rollout.mode is {mode!r} with hindsight.{key}, which takes revisions to be drawn by"
            " the step's first weights; use behavior 'sampler', or mode 'sync'"
        )
    if mode == "partial" and not config.rollout.streamed:
        yield (
            "rollout.mode is 'partial' with rollout.streamed false: behind barriers no group is"
            " complete before all are; set streamed to true"
        )


def _hindsight(config: Config) -> Iterator[str]:
    hindsight = config.hindsight
    if not hindsight.enabled:
        return
    if hindsight.replace != "append" and hindsight.replace_top_n > config.rollout.group_size:
        yield (
            f"hindsight.replace_top_n is {hindsight.replace_top_n}, above rollout.group_size"
            f" {config.rollout.group_size}; lower it or use hindsight.replace=append"
        )
    if hindsight.method == "replay":
        yield from _replay(config)
        return
    if hindsight.temperature == 0 and not hindsight.reference_compat:
        if hindsight.behavior == "sampler":
            yield (
                "hindsight.temperature is 0 with hindsight.behavior 'sampler': a greedy sampler"
                " has no token probabilities; raise the temperature, or use behavior 'old' or 'one'"
            )
        if hindsight.revisions_per_experience > 1:
            yield (
                "hindsight.temperature is 0 with hindsight.revisions_per_experience"
                f" {hindsight.revisions_per_experience}: they would be equal; use 1"
            )


def _replay(config: Config) -> Iterator[str]:
    hindsight = config.hindsight
    if hindsight.reference_compat:
        yield (
            "hindsight.method is 'replay' with hindsight.reference_compat true, which is HeRL's"
            " released code and samples revisions; turn one of them off"
        )
    if hindsight.behavior == "sampler" and config.rollout.temperature == 0:
        yield (
            "hindsight.method is 'replay' with rollout.temperature 0: a greedy sampler has no token"
            " probabilities; raise it"
        )


def _improve(config: Config) -> Iterator[str]:
    improve = config.improve
    if improve.temperature == 0 and improve.rounds > 1:
        yield (
            f"improve.temperature is 0 with improve.rounds {improve.rounds}: a draft whose revision"
            " was no better would be revised into the same text again; raise the temperature, or"
            " use rounds 1"
        )
    if config.eval.temperature == 0 and (improve.best_of_n or config.eval.samples_per_prompt > 1):
        yield (
            "eval.temperature is 0, so all plain samples of a prompt are equal: raise it, or set"
            " improve.best_of_n to false and eval.samples_per_prompt to 1"
        )


def _shared_memory(config: Config, machine: Machine) -> Iterator[str]:
    """Two buckets are in flight at once; a bucket is never larger than the model in float32."""
    if config.weight_sync.transport == "cuda_ipc":
        if config.cluster.device == "cpu":
            yield (
                "weight_sync.transport is 'cuda_ipc' but cluster.device is 'cpu': it passes GPU"
                " memory from process to process; use 'auto' or 'shared_memory'"
            )
        return
    if config.weight_sync.transport == "auto" and machine.device(config.cluster.device) == "cuda":
        return  # buckets stay in GPU memory where every GPU of an engine has a trainer rank
    stored = weights_bytes(config.model.path)
    if machine.shared_memory_bytes is None or not stored:
        return  # `weight_sync.sync` knows the exact sizes and checks again
    need = 2 * min(config.weight_sync.bucket_bytes, 2 * stored)
    if machine.shared_memory_bytes < need:
        yield (
            f"weight_sync.bucket_bytes {config.weight_sync.bucket_bytes}: two buckets need {need}"
            f" bytes of shared memory but /dev/shm has {machine.shared_memory_bytes} free; free"
            " some, make it larger (docker run --shm-size=2g) or lower bucket_bytes"
        )
