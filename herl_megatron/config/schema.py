"""What a run can be told, one model per stage.

Every key, its type, default and meaning is here; `config.load` reads YAML into these models and
`config.validate` holds the rules that involve two keys. Unknown keys are refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from herl_megatron.config.fp8 import RecipeName
from herl_megatron.types import SamplingSettings

Precision = Literal["fp32", "bf16"]


class Section(BaseModel):
    """Base of every section: unknown keys refused, values frozen, docstrings kept as help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    """Where the run writes and how it is seeded."""

    name: str = "herl"
    """Folder name under `dir`."""
    dir: str = "runs"
    """Parent folder of all runs."""
    seed: int = 0
    """Seed of prompt order, sampling and model initialisation."""
    overwrite: bool = False
    """Replace an existing folder of the same name instead of refusing to start."""
    resume: bool = False
    """Continue from the newest undamaged checkpoint in the run's folder, or start at step 0 where
    there is none yet, so that a job script can always set it."""


class ModelConfig(Section):
    """The policy."""

    path: str
    """Hugging Face folder: `config.json`, tokenizer with a chat template, safetensors weights."""
    random_init: bool = False
    """Start from random weights drawn with `run.seed` instead of reading them (shape only)."""
    megatron_path: str = ""
    """Start training from these weights instead: what `tools/convert_hf_to_megatron.py` wrote, or
    `step_N` of another run's checkpoints (weights only), of any layout. `path` still gives
    configuration and tokenizer."""


class DataConfig(Section):
    """Prompts and their limits."""

    train: str = ""
    """Canonical rows (JSONL or Parquet) to train on."""
    eval: str = ""
    """Canonical rows held out for evaluation; empty means no evaluation."""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """Longest prompt after the chat template, in tokens; a longer row is refused by id."""
    max_experience_tokens: int = Field(default=2048, gt=0)
    """Longest revision prompt in tokens; a longer one is skipped and counted, never cut."""
    shuffle: bool = True
    """Draw prompts in a seeded order, a new one each epoch."""


class RolloutConfig(Section):
    """The vLLM engines and how first samples are drawn."""

    replicas: int = Field(default=1, gt=0)
    """Independent engines; a prompt always goes to the same one."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs of an engine (TP inside vLLM), each with a process of its own; processes on the CPU. An
    engine lives on one node."""
    group_size: int = Field(default=8, gt=1)
    """Rollouts per prompt, G."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of first samples; the policy that is trained is the one at this
    temperature, so all log-probs of the loss have it too. 0 (greedy) is for evaluation only."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus truncation of first samples."""
    top_k: int = Field(default=-1, ge=-1)
    """Top-k truncation of first samples; -1 (or 0) keeps every token."""
    max_response_tokens: int = Field(default=1024, gt=0)
    """Longest response in tokens, for first samples and revisions."""
    dtype: Precision = "bf16"
    """Weights and activations of the engine."""
    quantization: Literal["fp8"] | None = None
    """`fp8`: matrices in FP8 with a scale per output channel, activations with one per token; every
    weight sync quantises anew. Slow on the CPU. What is sampled is then another distribution than
    the trainer's, so `algorithm.mismatch_weight` is needed."""
    kv_cache_bytes: int = Field(default=1 << 30, gt=0)
    """KV cache in bytes of each process of an engine (CPU); on GPU see `gpu_memory_utilization`."""
    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
    """Share of GPU memory for weights and KV cache of a colocated engine."""
    sleep: Literal[0, 1, 2] = 1
    """What the engines do while the trainer learns: stay as they are (0), or free the GPU's memory,
    the weights kept on the host (1) or dropped until the next weight sync (2). On the CPU nothing
    is freed; in `mode: one_step_off` the engines sample meanwhile and never sleep."""
    max_num_seqs: int = Field(default=256, gt=0)
    """Sequences decoded together in one engine."""
    timeout_s: float = Field(default=1800, gt=0)
    """Longest wait for one group, engine restarts included, before the run stops and says which
    engine is too slow."""
    stall_timeout_s: float = Field(default=120, gt=0)
    """An engine that finishes no step (of all its sequences together) and no bucket of weights for
    this long hangs: it is killed and started anew."""
    max_engine_restarts: int = Field(default=3, ge=0)
    """Engines of one run (counted anew after a resume) that may die or hang: each is started anew
    with the trainer's current weights and its open requests are sent again, which in `mode: sync`
    changes no number of the run. 0 ends the run at the first."""
    streamed: bool = True
    """Score and revise each group as soon as it is complete; false puts a barrier after each
    phase (the baseline schedule)."""
    mode: Literal["sync", "partial", "one_step_off"] = "sync"
    """When the rollouts of a step are drawn (`rollout.schedule`): all of them with the step's own
    weights; with more prompts than are needed, the unfinished responses going on in the next step
    under its weights; or with the weights of the step before, while the trainer learns."""
    oversample: float = Field(default=0.25, ge=0, le=1)
    """`partial`: prompts in flight beyond `train.prompts_per_step`, as a share of it."""
    max_staleness: int = Field(default=1, gt=0)
    """`partial`: a group is carried on until its first weights are this many versions old; the
    step that makes it so waits for it, so that nothing is thrown away."""

    @property
    def truncated(self) -> str:
        """Which settings take tokens out of first samples' distribution; "" for none. The trainer
        follows the temperature, but not these."""
        plain = {"top_p": 1.0, "top_k": -1}
        values = self.model_dump(include=set(plain))
        return ", ".join(
            f"rollout.{key} is {values[key]}"
            for key, value in plain.items()
            if values[key] != value
        )

    def sampling(self) -> SamplingSettings:
        """First samples' settings as the engine takes them."""
        return SamplingSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_response_tokens,
        )


class HindsightConfig(Section):
    """HeRL's own options; section 4 of the design gives each formula."""

    enabled: bool = True
    """False trains plain RLVR (group-relative policy optimisation, no revisions)."""
    reference_compat: bool = False
    """Use the released code's behaviour where it may have shaped published numbers. It sets
    `behavior: old`, `train_context: experience`, `chat_template: false`, revision sampling like
    first samples, `replace: random` and `no_qualified: copy_best`; setting one of those keys to
    something else at the same time is refused."""
    threshold: float = 1.0
    """A group whose best reward reaches this needs no hindsight."""
    select: Literal["best_failed", "all_failed", "random"] = "best_failed"
    """Which rollouts become experience: those tied for the group's best reward, every rollout
    below the threshold, or a seeded random choice among those."""
    max_experiences: int = Field(default=16, gt=0)
    """At most this many experiences per group."""
    revisions_per_experience: int = Field(default=1, gt=0)
    """Revisions sampled from each experience."""
    prompt_style: Literal["criteria", "rubric", "naive"] = "criteria"
    """Revision prompt: criteria to keep and to fix; the same with weights (medical rubrics); or
    the draft alone with a request to improve it (the NaiveHE ablation)."""
    chat_template: bool = True
    """Render the revision prompt through the chat template."""
    temperature: float = Field(default=0.3, ge=0)
    """Sampling temperature of revisions."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus truncation of revisions."""
    alpha: float = Field(default=0.05, ge=0)
    """Bonus reward coefficient; 0 gives no bonus."""
    clip_negative: bool = True
    """A revision worse than its draft takes nothing away from the draft's reward."""
    accept: Literal["better", "not_worse"] = "better"
    """A revision joins if its reward is above the group's best, or also if equal."""
    replace: Literal["worst", "random", "append"] = "worst"
    """Which group member gives way to a revision; `append` lets the group grow."""
    replace_top_n: int = Field(default=1, gt=0)
    """At most this many revisions join a group."""
    no_qualified: Literal["keep", "copy_best"] = "keep"
    """With no qualified revision the group stays as it is, or (released code) a copy of its best
    row overwrites a random slot."""
    train_context: Literal["prompt", "experience"] = "prompt"
    """Context of a revision row in training: the plain prompt x, or the revision prompt E_i."""
    behavior: Literal["sampler", "old", "one"] = "sampler"
    """Denominator of a revision token's ratio: as the engine drew it under E_i, the policy at the
    step's first weights in the training context, or 1."""
    gamma: float = Field(default=0.1, gt=0)
    """Shaping constant of f(rho) = rho / (rho + gamma)."""
    off_policy_loss: Literal["shaped", "clip"] = "shaped"
    """Loss of revisions and replays: -A f(rho) as HeRL has it, or PPO's clip of rho as HiR has."""
    method: Literal["revise", "replay"] = "revise"
    """`replay` samples no revisions: a failed response joins its group once more, as a success of
    the instruction reduced to the criteria that it meets (HiR, arXiv 2512.23457; `replay.py`)."""
    replays_per_group: int = Field(default=2, gt=0)
    """`replay`: at most this many replays join a group, beside its `rollout.group_size` rows."""
    replay_integrity: float = Field(default=2.0, ge=0)
    """`replay`: weight of the share of met criteria against a response's diversity in the choice of
    failures, at step 0."""
    replay_integrity_growth: float = Field(default=1.05, ge=1, le=1.5)
    """`replay`: factor of that weight per step."""


class AlgorithmConfig(Section):
    """Advantages and the loss."""

    baseline: Literal["with_revisions", "on_policy"] = "with_revisions"
    """Rows that give the group's mean and standard deviation."""
    normalize_std: bool = True
    """Divide by the group's standard deviation."""
    advantage_eps: float = Field(default=1e-4, gt=0)
    """Added to the standard deviation."""
    min_valid: int = Field(default=2, gt=1)
    """A group with fewer scored rows than this gives no gradient and is counted."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO clip below: ratios under 1 - clip_low are clipped."""
    clip_high: float = Field(default=0.2, gt=0)
    """PPO clip above: ratios over 1 + clip_high are clipped."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Dual clip constant c for negative advantages."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Coefficient beta of the k3 KL estimate to the reference; 0 builds no reference model."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Coefficient of the entropy bonus."""
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = "token_mean"
    """Mean over all tokens of the global batch; mean over its rows of row means; or the mean over
    its rows of row sums."""
    mismatch_weight: bool = False
    """Multiply the PPO term of on-policy tokens by min(pi_old / pi_engine, `mismatch_cap`), which
    corrects for engine and trainer computing different probabilities from the same weights."""
    mismatch_cap: float = Field(default=2.0, ge=1)
    """Upper end of the mismatch weight; also what `train/mismatch_truncated` counts."""


class TrainConfig(Section):
    """The loop and its batches, in prompts and steps."""

    steps: int = Field(default=100, ge=0)
    """Steps of the loop; one step is one weight version. 0 only evaluates and exports."""
    prompts_per_step: int = Field(default=64, gt=0)
    """Prompts sampled per step."""
    prompts_per_optimizer_step: int = Field(default=32, gt=0)
    """Groups per optimizer step; divides `prompts_per_step`."""
    eval_every: int = Field(default=0, ge=0)
    """Evaluate every so many steps; 0 evaluates before the first and after the last only."""
    log_rollouts: bool = True
    """Write rollouts with verdicts and revisions to `rollouts/step_*.jsonl`."""
    export: bool = True
    """Write the final policy as a Hugging Face folder."""

    @property
    def optimizer_steps_per_step(self) -> int:
        """Planned optimizer steps of one step; those with nothing to learn from are not taken."""
        return self.prompts_per_step // self.prompts_per_optimizer_step


class SFTConfig(Section):
    """Supervised fine-tuning with the same trainer."""

    data: str = ""
    """JSONL rows with `messages`, the last one the assistant's answer to learn."""
    steps: int = Field(default=100, gt=0)
    """Optimizer steps."""
    rows_per_step: int = Field(default=32, gt=0)
    """Rows per optimizer step over all DP ranks."""


class DPOConfig(Section):
    """Direct preference optimisation with the same trainer (`herl dpo`); the reference is the model
    as it starts, and only its log-probs are kept."""

    data: str = ""
    """JSONL rows with `id`, `messages` (the prompt), `chosen` and `rejected` (answers)."""
    steps: int = Field(default=100, gt=0)
    """Optimizer steps."""
    pairs_per_step: int = Field(default=32, gt=0)
    """Pairs per optimizer step over all DP ranks, two rows each."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's logistic loss, or IPO's squared distance; `algos.losses_dpo` has both equations."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Chance that a preference is the wrong way round (cDPO); `sigmoid` only."""


class EvalConfig(Section):
    """Held-out evaluation: the same rollout and scoring path, no training."""

    samples_per_prompt: int = Field(default=1, gt=0)
    """Responses per held-out prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus truncation."""
    seed: int = 1234
    """Sampling seed, the same before and after training."""


class ImproveConfig(Section):
    """Self-improvement at test time (`herl improve`): revise the best answer so far against the
    criteria that it misses, and keep the better one. First samples are those of `eval`, whose
    `samples_per_prompt` counts the trajectories of a prompt; revisions are asked for with
    `hindsight.prompt_style` and `chat_template`."""

    rounds: int = Field(default=3, gt=0)
    """Revisions of a trajectory, one after the other; one whose answer misses nothing stops."""
    temperature: float = Field(default=0.3, ge=0)
    """Sampling temperature of revisions."""
    best_of_n: bool = True
    """Also draw as many plain samples, and then as many tokens of them, to compare with."""


class OptimizerConfig(Section):
    """Adam with decoupled weight decay (Megatron's distributed optimizer) and its schedule."""

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay after warm-up, over the run's optimizer steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first moment decay."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Adam's second moment decay."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""


class MegatronConfig(Section):
    """Parallel layout, precision and memory of the actor."""

    tensor_parallel: int = Field(default=1, gt=0)
    """TP: ranks that share every matrix."""
    pipeline_parallel: int = Field(default=1, gt=0)
    """PP: ranks that share the layers."""
    virtual_pipeline: int | None = None
    """Model chunks per pipeline rank (interleaved 1F1B); none for plain 1F1B."""
    context_parallel: int = Field(default=1, gt=0)
    """CP: ranks that share a sequence; rows are padded to a multiple of 2 * CP."""
    expert_parallel: int = Field(default=1, gt=0)
    """EP: ranks that share the experts."""
    expert_tensor_parallel: int | None = Field(default=None, gt=0)
    """ETP: ranks that share every matrix of an expert; none takes `tensor_parallel`. ETP * EP
    divides a pipeline stage's TP * CP * DP ranks, whatever each of those is. 1 keeps experts whole,
    which are narrow already, and lets EP reach over the TP ranks."""
    data_parallel: int = Field(default=1, gt=0)
    """DP: replicas of the model; TP * PP * CP * DP ranks are started."""
    sequence_parallel: bool = False
    """Split activations of norms and residuals over TP."""
    precision: Precision = "bf16"
    """Compute precision; bf16 keeps fp32 main weights in the optimizer."""
    fp8: RecipeName | None = None
    """FP8 recipe (Transformer Engine, needs a capable GPU; see `config.fp8`); none trains in
    `precision`, which FP8 needs to be bf16."""
    fp8_bf16_layers: int = Field(default=0, ge=0)
    """Layers at each end of the model that compute in bf16 under FP8 (not with `delayed`)."""
    fp8_min_hidden: int = Field(default=2048, ge=0)
    """FP8 is refused for a model whose hidden size is below this: published H100 runs lose time at
    768 and 1024, gain 1.05 to 1.3 times at 1600 and 1664, 1.2 to 1.4 times at 4096 and more. Lower
    it where you measured a gain (`tools/bench_gpu_step.py`)."""
    distributed_optimizer: bool = True
    """Shard optimizer state over DP."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recompute: nothing, core attention only, or every layer."""
    micro_batch_tokens: int = Field(default=8192, gt=0)
    """Token budget of one micro-batch, padding included, on all its CP ranks together."""
    packing: bool = False
    """True packs rows into one sequence (THD); false pads rows of similar length."""
    timeout_s: float = Field(default=600, gt=0)
    """Longest wait of one collective or one trainer call."""
    reference: Literal["resident", "host"] = "resident"
    """Where the reference model's weights are (only with `algorithm.kl_coef`): beside the policy's,
    or in host memory, changing places with the policy's for each of its passes: one model less on
    the device, two copies of the weights' bytes each way per step."""
    log_prob_chunk_tokens: int = Field(default=512, gt=0)
    """Tokens that have logits at a time. A micro-batch with more response tokens computes them once
    more in the backward pass instead of keeping them."""

    @property
    def world_size(self) -> int:
        """Trainer ranks."""
        return (
            self.tensor_parallel
            * self.pipeline_parallel
            * self.context_parallel
            * self.data_parallel
        )

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor_parallel * self.context_parallel * self.data_parallel

    @property
    def etp(self) -> int:
        """`expert_tensor_parallel`, where that is none `tensor_parallel`."""
        return self.expert_tensor_parallel or self.tensor_parallel


class CheckpointConfig(Section):
    """Training state on disk, in `checkpoints/` of the run's folder; see `run.resume`."""

    every: int = Field(default=20, ge=0)
    """Steps between checkpoints, the last step always being one; 0 writes none."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints that stay; with two, a damaged one still has a predecessor."""
    timeout_s: float = Field(default=1800, gt=0)
    """Longest wait for all ranks to write or read one."""


class WeightSyncConfig(Section):
    """Trainer to engine transfer."""

    transport: Literal["auto", "shared_memory", "cuda_ipc"] = "auto"
    """How a bucket gets from trainer to engine: `shared_memory` by way of the host, `cuda_ipc` in
    memory of the GPU that both are on (needs a trainer rank on every GPU of the engines; takes two
    buckets of each). `auto` is `cuda_ipc` where it can be, always `shared_memory` on CPU."""
    bucket_bytes: int = Field(default=256 << 20, gt=0)
    """Bytes sent at a time; a larger single tensor travels alone."""
    timeout_s: float = Field(default=600, gt=0)
    """Longest wait for one bucket."""


class ParityConfig(Section):
    """The gate that compares engine and trainer log-probs after a weight sync.

    Limits hold for |difference| over the probe tokens, its mean and its largest value, in natural
    log units; bf16 counts if the trainer or the engine computes in it. The defaults leave room over
    what was measured along the quickstart (CPU, TP 2): fp32 mean up to 1e-6 and max 8e-6 (4 syncs),
    bf16 mean up to 0.016 and max 0.17 (16 syncs). Other sizes and GPUs were not measured: look at
    `parity/mean` and `parity/max` of a run's first steps, and narrow or widen the limits.
    """

    every: int = Field(default=10, ge=0)
    """Check every so many weight versions, and the first one that a run serves; 0 is off."""
    prompts: int = Field(default=8, gt=0)
    """Training prompts whose tokens are compared, chosen once with `run.seed`."""
    fp32_mean: float = Field(default=1e-5, gt=0)
    """Largest mean in fp32."""
    fp32_max: float = Field(default=1e-3, gt=0)
    """Largest single difference in fp32."""
    bf16_mean: float = Field(default=0.05, gt=0)
    """Largest mean in bf16."""
    bf16_max: float = Field(default=1.0, gt=0)
    """Largest single difference in bf16."""
    fp8_mean: float = Field(default=0.3, gt=0)
    """Largest mean with FP8 in the trainer or the engines. Measured once, with FP8 engines on the
    CPU and the quickstart's model with random weights: mean 0.13, max 0.35; narrow it for yours."""
    fp8_max: float = Field(default=2.0, gt=0)
    """Largest single difference with FP8."""


class ScoringConfig(Section):
    """The scoring pool."""

    workers: int = Field(default=2, gt=0)
    """Ray workers that run rule checks."""
    check_timeout_s: float = Field(default=5.0, gt=0)
    """Longest run of one check on one response."""
    timeout_s: float = Field(default=300, gt=0)
    """Longest wait for one group's scores."""
    answer_after: str = ""
    """Score, judge and revise only what follows this text in a response, as `</think>` for models
    that think before they answer; a response without it has no answer: no check follows and no
    statement is true. Empty: the whole response."""
    check_modules: tuple[str, ...] = ()
    """Python modules that register further checks; the driver and every worker import them."""


class JudgeConfig(Section):
    """The judge of criteria of kind `judge`: one model behind an OpenAI-compatible endpoint.

    A key comes from the environment alone; it is in no configuration, log, error or metric.
    """

    base_url: str = ""
    """Address up to its version, as in http://host:8000/v1; empty: rows that need a judge are
    refused. Several addresses of the same model, separated by commas, take turns."""
    model: str = ""
    """Name of the model at the endpoint; part of the cache's key."""
    api_key_env: str = ""
    """Environment variable with the key, in capitals; empty for an endpoint that needs none."""
    prompt: str = ""
    """Text file with a user message of your own, see `rubrics.judge.prompts`; empty: ours."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature; null sends none, for models that refuse it."""
    max_tokens: int = Field(default=4096, gt=0)
    """Longest answer in tokens, for all statements of a rubric together."""
    samples: int = Field(default=1, gt=0)
    """Judgements of each response, an odd number: of statements the majority counts, of grades the
    mean (LLMEval-Med takes three). One that fails leaves the response unscored."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the endpoint is told to answer in JSON; the answer is checked in any case."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, e.g. {chat_template_kwargs: {enable_thinking: false}}."""
    evidence: bool = True
    """Ask for a quote (of a grade: a reason) with each verdict; a quote must be in the response."""
    canary: bool = True
    """Hide statements whose truth is known among the others; a wrong answer voids the judgement."""
    concurrency: int = Field(default=64, gt=0)
    """Requests at the same time."""
    requests_per_minute: float = Field(default=0, ge=0)
    """Most requests in a minute, evenly spaced; 0 is no limit."""
    tokens_per_minute: float = Field(default=0, ge=0)
    """Most tokens in a minute (estimated: a token per four characters); 0 is no limit."""
    timeout_s: float = Field(default=120, gt=0)
    """Longest wait for one answer."""
    deadline_s: float = Field(default=600, gt=0)
    """Longest time spent on one response: calls and waits between them, not queues or pauses."""
    retries: int = Field(default=4, ge=0)
    """Further attempts after a failed one."""
    retry_wait_s: float = Field(default=1.0, gt=0)
    """First wait between attempts, and between probes in a pause; it doubles each time."""
    cache: str = "runs/judge_cache.sqlite"
    """SQLite file of judgements, for all runs of this machine (local disk); empty keeps none."""
    failure_window: int = Field(default=40, gt=0)
    """Latest calls that are looked at together."""
    failure_share: float = Field(default=0.5, gt=0, le=1)
    """Share of failed calls in the window from which scoring pauses until the judge is back."""
    max_pause_s: float = Field(default=3600, gt=0)
    """A longer pause ends the run; it can be resumed."""
    price_in: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, for `judge/cost`."""
    price_out: float = Field(default=0.0, ge=0)
    """Price of a million answer tokens."""


class ClusterConfig(Section):
    """Where processes run."""

    address: str = ""
    """Ray address to join; empty starts a Ray on this machine and stops it at the end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of trainer and engines; auto takes CUDA when there is one."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Longest wait for each part of the trainer's start: processes, their meeting, the model with
    its weights read."""
    threads_per_rank: int = Field(default=1, gt=0)
    """CPU threads of each trainer rank and engine."""


class Config(Section):
    """A whole run: `herl train`, `sft`, `dpo`, `eval` and `improve` read the same file format."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    hindsight: HindsightConfig = HindsightConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()
    sft: SFTConfig = SFTConfig()
    dpo: DPOConfig = DPOConfig()
    eval: EvalConfig = EvalConfig()
    improve: ImproveConfig = ImproveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    megatron: MegatronConfig = MegatronConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    parity: ParityConfig = ParityConfig()
    scoring: ScoringConfig = ScoringConfig()
    judge: JudgeConfig = JudgeConfig()
    cluster: ClusterConfig = ClusterConfig()
