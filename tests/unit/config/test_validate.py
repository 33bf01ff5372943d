"""Each rule refuses what it must, names the values, and lets the neighbouring value pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.machine import Machine, look_at_machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.schema import Config
from herl_megatron.config.validate import validate
from herl_megatron.files.manifest import write_manifest
from herl_megatron.files.run_files import write_run_file
from herl_megatron.prepared import method_problems

CPU = Machine(shared_memory_bytes=1 << 30)
SHAPE = {
    "model_type": "qwen2", "hidden_size": 128, "head_dim": 32, "intermediate_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a model of SHAPE, 1000 bytes of weights, and rows."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"0" * 1000)
    for name in ("train", "eval", "sft", "dpo"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}/runs}}\n"
        f"model: {{path: {model}}}\n"
        f"data: {{train: {tmp_path}/train.jsonl, eval: {tmp_path}/eval.jsonl,"
        " max_prompt_tokens: 128, max_experience_tokens: 256}\n"
        f"sft: {{data: {tmp_path}/sft.jsonl, max_tokens: 512}}\n"
        f"dpo: {{data: {tmp_path}/dpo.jsonl, max_tokens: 512}}\n"
        "rollout: {max_response_tokens: 128}\n"
        "train: {prompts_per_step: 16, prompts_per_optimizer_step: 8}\n"
        "megatron: {precision: fp32}\n"
        "cluster: {device: auto}\n"
    )
    return tmp_path


def load(files: Path, *overrides: str) -> Config:
    return load_config(files / "run.yaml", overrides)


def problems(
    files: Path, *overrides: str, purpose: Purpose = "train", machine: Machine = CPU
) -> tuple[str, ...]:
    try:
        config = load(files, *overrides)
        further = method_problems(config, purpose)
        validate(config, purpose=purpose, machine=machine, further=further)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("purpose", ["train", "sft", "dpo", "eval", "improve"])
def test_a_good_configuration_passes(files: Path, purpose: Purpose) -> None:
    assert problems(files, purpose=purpose) == ()


# override(s), what the one message must contain, override(s) next to it that must pass
RULES = [
    ("train.only=learning train.groups_from=runs/x train.steps=0",
     ("train.only is 'learning'", "train.steps is 0"),
     "train.only=learning train.groups_from=runs/x"),
    ("train.steps=10 train.epochs=2.5",
     ("train.steps is 10 and train.epochs is 2.5", "train.epochs=null"), "train.epochs=2.5"),
    ("train.steps=null", ("neither train.steps nor train.epochs",), "train.steps=3"),
    ("train.only=rollouts train.groups_from=runs/x", ("only train.only=learning reads it",),
     "train.only=rollouts"),
    ("train.only=learning", ("train.groups_from is empty", "train.keep_groups=true"), ""),
    ("train.only=rollouts run.resume=true", ("cannot be resumed",), "run.resume=true"),
    ("train.prompts_per_optimizer_step=6", ("prompts_per_step 16", "prompts_per_optimizer_step 6"),
     "train.prompts_per_optimizer_step=4"),
    ("train.prompts_per_optimizer_step=1 megatron.data_parallel=9", ("1 *", "8 rows", "9"),
     "train.prompts_per_optimizer_step=1 megatron.data_parallel=8"),
    ("judge.deadline_s=119", ("judge.deadline_s is 119", "judge.timeout_s 120"),
     "judge.deadline_s=120"),
    ("judge.extra_body.stream=true", ("judge.extra_body.stream cannot be set",),
     "judge.extra_body.top_p=0.9"),
    ("judge.extra_body.n=5", ("judge.extra_body.n cannot be set: set judge.samples",),
     "judge.extra_body.prompt_cache_key=a"),
    ("judge.extra_body.model=x", ("judge.extra_body.model cannot be set: set judge.model",),
     "judge.extra_body.chat_template_kwargs.enable_thinking=false"),
    ("judge.extra_body.api_key=abc", ("judge.extra_body.api_key may be a credential",),
     "judge.extra_body.stop_token_ids=[1]"),
    ("judge.extra_body.a.b=[.nan]", ("judge.extra_body holds NaN",),
     "judge.extra_body.a.b=[1.5]"),
    ("judge.base_url=http://host/v1", ("judge.model is empty",),
     "judge.base_url=http://host/v1 judge.model=m"),
    ("judge.model=m", ("judge.model is 'm'", "judge.base_url is empty"),
     "judge.model=m judge.base_url=http://host/v1"),
    ("algorithm.min_valid=9", ("min_valid is 9", "group_size 8"), "algorithm.min_valid=8"),
    ("megatron.sequence_parallel=true", ("sequence_parallel", "tensor_parallel 1"),
     "megatron.sequence_parallel=true megatron.tensor_parallel=2"),
    ("megatron.virtual_pipeline=2", ("virtual_pipeline is 2", "pipeline_parallel 1"),
     "megatron.virtual_pipeline=3 megatron.pipeline_parallel=2"),
    ("megatron.virtual_pipeline=1 megatron.pipeline_parallel=2", ("virtual_pipeline is 1",),
     "megatron.pipeline_parallel=2"),
    ("megatron.pipeline_parallel=7", ("= 7 is more than", "num_hidden_layers 6"),
     "megatron.pipeline_parallel=4"),
    ("megatron.pipeline_parallel=2 megatron.virtual_pipeline=4", ("= 8", "num_hidden_layers 6"),
     "megatron.pipeline_parallel=2 megatron.virtual_pipeline=2"),
    ("rollout.tensor_parallel=8", ("rollout.tensor_parallel 8", "num_attention_heads 12"),
     "rollout.tensor_parallel=4"),
    ("cluster.device=cuda", ("'cuda'", "no CUDA device"), "cluster.device=cpu"),
    ("data.max_prompt_tokens=385", ("385 + ", "128 = 513", "512"), "data.max_prompt_tokens=384"),
    ("data.max_experience_tokens=385", ("385", "= 513", "512"), "data.max_experience_tokens=384"),
    # 2 (K and V) * 6 layers * 4 heads * (128 // 12 = 10) * 4 bytes * (256 + 128) tokens
    ("rollout.dtype=fp32 rollout.kv_cache_bytes=2359295", ("2359295", "384 tokens", "2359296"),
     "rollout.dtype=fp32 rollout.kv_cache_bytes=2359296"),
    ("rollout.kv_cache_bytes=1179647", ("1179647", "1179648"), "rollout.kv_cache_bytes=1179648"),
    # two of the four key and value heads in each process
    ("rollout.tensor_parallel=2 rollout.kv_cache_bytes=589823", ("589823", "589824"),
     "rollout.tensor_parallel=2 rollout.kv_cache_bytes=589824"),
    ("optimizer.lr=1e-6 optimizer.min_lr=2e-6", ("2e-06", "1e-06"), "optimizer.min_lr=1e-6"),
    ("train.steps=0 data.eval= train.export=false", ("nothing to do",), "train.steps=0 data.eval="),
    ("train.eval_every=5 data.eval=", ("eval_every is 5", "data.eval"), "train.eval_every=5"),
    ("rollout.stall_timeout_s=60 rollout.timeout_s=60", ("stall_timeout_s is 60", "timeout_s 60"),
     "rollout.stall_timeout_s=60 rollout.timeout_s=60 rollout.max_engine_restarts=0"),
    ("rollout.temperature=0", ("rollout.temperature is 0",), "rollout.temperature=0.1"),
    ("algorithm.mismatch_weight=true rollout.top_p=0.8 rollout.top_k=40",
     ("mismatch_weight is true", "rollout.top_p is 0.8, rollout.top_k is 40"),
     "algorithm.mismatch_weight=true rollout.temperature=0.8"),
    ("rollout.mode=partial", ("mode is 'partial'", "mismatch_weight is false"),
     "rollout.mode=partial algorithm.mismatch_weight=true"),
    ("rollout.mode=one_step_off", ("mode is 'one_step_off'", "mismatch_weight is false"),
     "rollout.mode=one_step_off algorithm.mismatch_weight=true rollout.streamed=false"),
    ("rollout.mode=partial algorithm.mismatch_weight=true hindsight.behavior=old",
     ("'partial'", "behavior 'old'"),
     "rollout.mode=partial algorithm.mismatch_weight=true hindsight.behavior=one"),
    ("rollout.mode=one_step_off algorithm.mismatch_weight=true hindsight.reference_compat=true",
     ("'one_step_off'", "reference_compat true"),
     "hindsight.reference_compat=true hindsight.enabled=false rollout.mode=one_step_off"
     " algorithm.mismatch_weight=true"),
    ("rollout.mode=partial algorithm.mismatch_weight=true rollout.streamed=false",
     ("'partial'", "streamed false"),
     "rollout.mode=sync algorithm.mismatch_weight=true rollout.streamed=false"),
    ("hindsight.temperature=0", ("temperature is 0", "'sampler'"),
     "hindsight.temperature=0 hindsight.behavior=old"),
    ("hindsight.temperature=0 hindsight.behavior=one hindsight.revisions_per_experience=2",
     ("revisions_per_experience 2",), "hindsight.revisions_per_experience=2"),
    ("hindsight.replace_top_n=9", ("replace_top_n is 9", "group_size 8"),
     "hindsight.replace_top_n=9 hindsight.replace=append"),
    ("hindsight.replace_top_n=9 hindsight.enabled=true", ("replace_top_n is 9",),
     "hindsight.replace_top_n=9 hindsight.enabled=false"),
    ("model.path=/nowhere", ("/nowhere", "Hugging Face folder"), ""),
    ("data.train=", ("data.train is empty",), ""),
    ("cluster.gpu_table=/nowhere.yaml", ("cluster.gpu_table", "/nowhere.yaml: no such file"), ""),
    ("data.train=/nowhere.jsonl", ("data.train", "'/nowhere.jsonl'"), ""),
    ("data.eval=/nowhere.jsonl", ("data.eval", "'/nowhere.jsonl'"), "data.eval="),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "parts", "good"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(files: Path, bad: str, parts: tuple[str, ...], good: str) -> None:
    (problem,) = problems(files, *bad.split())
    for part in parts:
        assert part in problem
    assert problems(files, *good.split()) == ()


def test_tensor_parallel_cuts_heads_key_value_heads_and_mlp(files: Path) -> None:
    assert problems(files, "megatron.tensor_parallel=4") == ()
    six = problems(files, "megatron.tensor_parallel=6")  # 320 / 6 and 4 against 6 do not go
    assert len(six) == 2
    assert "intermediate_size 320" in six[0]
    assert "num_key_value_heads 4" in six[1]
    eight = problems(files, "megatron.tensor_parallel=8")
    assert len(eight) == 1
    assert "num_attention_heads 12" in eight[0]


def test_an_engine_is_cut_like_the_model(files: Path) -> None:
    """Its key heads may be fewer than its processes, and its vocabulary is padded to 64s."""
    (files / "model/config.json").write_text(json.dumps(SHAPE | {"vocab_size": 1000}))  # 16 * 64
    assert problems(files, "rollout.tensor_parallel=4") == ()
    three = problems(files, "rollout.tensor_parallel=3")
    assert ["intermediate_size 320" in three[0], "1024" in three[1]] == [True, True]
    assert "rollout.tensor_parallel 3 and the model's num_key_value_heads 4" in three[2]
    one_head = SHAPE | {"num_key_value_heads": 1, "moe_intermediate_size": 66}
    (files / "model/config.json").write_text(json.dumps(one_head))
    assert problems(files, "rollout.tensor_parallel=2") == ()
    (problem,) = problems(files, "rollout.tensor_parallel=4")
    assert "moe_intermediate_size 66" in problem
    assert problems(files, "rollout.tensor_parallel=4", purpose="sft") == ()


def test_experts(files: Path) -> None:
    dense = problems(files, "megatron.expert_parallel=2")  # and DP * CP is 1
    assert ["has no experts" in dense[0], "does not divide" in dense[1]] == [True, True]
    two = ("megatron.expert_parallel=2", "megatron.data_parallel=2")
    (problem,) = problems(files, *two)
    assert "qwen2 has no experts" in problem
    moe = SHAPE | {"model_type": "qwen3_moe", "num_experts": 6, "moe_intermediate_size": 64}
    (files / "model/config.json").write_text(json.dumps(moe))
    assert problems(files, *two) == ()
    assert problems(files, "megatron.expert_parallel=2", "megatron.context_parallel=2") == ()
    four = ("megatron.expert_parallel=4", "megatron.data_parallel=4")
    assert "6 experts" in problems(files, *four)[0]
    assert "sequence_parallel=true" in problems(files, "megatron.tensor_parallel=2")[0]


def test_experts_are_laid_over_the_ranks_of_a_stage(files: Path) -> None:
    """TP 2 * DP 3: with ETP 1 EP may be 6, which without it only DP * CP could be."""
    moe = SHAPE | {"model_type": "qwen3_moe", "num_experts": 12, "moe_intermediate_size": 64}
    (files / "model/config.json").write_text(json.dumps(moe))
    six = ("megatron.tensor_parallel=2", "megatron.sequence_parallel=true",
           "megatron.data_parallel=3", "megatron.expert_parallel=6")  # fmt: skip
    (problem,) = problems(files, *six)
    assert "expert_parallel 6 does not divide data_parallel * context_parallel = 3" in problem
    assert problems(files, *six, "megatron.expert_tensor_parallel=1") == ()
    (problem,) = problems(files, *six, "megatron.expert_tensor_parallel=2")
    assert "expert_tensor_parallel 2 * expert_parallel 6 does not divide the 6 ranks" in problem


def test_context_parallel_with_a_window_is_refused_on_gpus(files: Path) -> None:
    cp, gpus = "megatron.context_parallel=2", Machine(gpus=2, transformer_engine=True)
    assert problems(files, cp) == problems(files, cp, machine=gpus) == ()
    (files / "model/config.json").write_text(json.dumps(SHAPE | {"sliding_window": 64}))
    (problem,) = problems(files, cp, machine=gpus)
    assert "context_parallel is 2 and the model's sliding_window 64" in problem
    assert problems(files, cp) == problems(files, machine=gpus) == ()
    unused = SHAPE | {"sliding_window": 64, "use_sliding_window": False}
    (files / "model/config.json").write_text(json.dumps(unused))
    assert problems(files, cp, machine=gpus) == ()


def test_sft_needs_a_row_per_rank(files: Path) -> None:
    overrides = ("sft.rows_per_step=3", "megatron.data_parallel=4")
    (problem,) = problems(files, *overrides, purpose="sft")
    assert "rows_per_step is 3" in problem
    assert "data_parallel 4" in problem
    assert problems(files, *overrides, purpose="train") == ()


def test_gpus_of_this_machine(files: Path) -> None:
    two = Machine(gpus=2, transformer_engine=False, shared_memory_bytes=1 << 30)
    assert problems(files, "megatron.tensor_parallel=2", machine=two) == ()
    (problem,) = problems(
        files, "megatron.tensor_parallel=2", "megatron.data_parallel=2", machine=two
    )
    assert "= 4 ranks" in problem
    assert "2 GPUs" in problem
    (problem,) = problems(files, "rollout.replicas=3", machine=two)
    assert "3 GPUs" in problem
    (problem,) = problems(
        files, "megatron.context_parallel=2", "megatron.data_parallel=2", machine=two
    )
    assert "CP 2 * DP 2 = 4 ranks" in problem
    cluster = ("megatron.data_parallel=16", "rollout.replicas=8", "cluster.address=head:6379")
    assert problems(files, *cluster, machine=two) == ()
    head = Machine(gpus=0, transformer_engine=True, shared_memory_bytes=1 << 30)
    assert problems(files, *cluster, "cluster.device=cuda", machine=head) == ()


def test_precision_problem_is_the_devices_own(files: Path) -> None:
    config = load(files, "megatron.fp8=delayed", "cluster.device=cpu")
    machine = look_at_machine(config)
    with pytest.raises(ConfigError, match="FP8 needs a CUDA GPU") as caught:
        validate(config, purpose="train", machine=machine)
    assert len(caught.value.problems) == 1
    validate(config, purpose="eval", machine=machine)  # no trainer, no FP8
    assert look_at_machine(load(files, "cluster.device=cpu")).precision_problem is None


def test_gpu_memory_is_not_passed_on_the_cpu(files: Path) -> None:
    ipc = "weight_sync.transport=cuda_ipc"
    (problem,) = problems(files, ipc, "cluster.device=cpu")
    assert "'cuda_ipc' but cluster.device is 'cpu'" in problem
    assert problems(files, ipc, "cluster.device=auto", machine=Machine(shared_memory_bytes=1)) == ()


def test_shared_memory_holds_two_buckets_or_the_model_twice(files: Path) -> None:
    """1000 bytes stored are at most 2000 in float32, so two buckets need at most 4000."""
    assert problems(files, machine=Machine(shared_memory_bytes=4000)) == ()
    (problem,) = problems(files, machine=Machine(shared_memory_bytes=3999))
    assert "need 4000 bytes" in problem
    assert "3999 free" in problem
    gpu = Machine(gpus=1, shared_memory_bytes=3999)
    assert problems(files, machine=gpu) == ()  # they stay in the GPU's memory
    assert problems(files, "weight_sync.transport=shared_memory", machine=gpu) == (problem,)
    small = Machine(shared_memory_bytes=600)
    assert problems(files, "weight_sync.bucket_bytes=300", machine=small) == ()
    assert problems(files, purpose="sft", machine=Machine(shared_memory_bytes=0)) == ()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "{}", "names no model_type"),
        ("config.json", '{"model_type": "gpt2"}', "'gpt2' is not supported; one of llama"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("model.safetensors", None, "model.random_init=true"),
    ],
)
def test_model_folder(files: Path, name: str, text: str | None, expected: str) -> None:
    path = files / "model" / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    (problem,) = problems(files)
    assert expected in problem
    if name == "model.safetensors":
        assert problems(files, "model.random_init=true") == ()


def test_start_weights(files: Path) -> None:
    """Converted weights: they are there, whole, and the only source."""
    folder = files / "weights"
    key = f"model.megatron_path={folder}"
    assert "is no Megatron checkpoint" in problems(files, key)[0]
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / ".metadata").write_text("index")
    (files / "model" / "model.safetensors").unlink()
    assert problems(files, key) == ()
    write_manifest(folder)
    (folder / "trainer" / ".metadata").write_text("ind")
    (problem,) = problems(files, key)
    assert "trainer/.metadata has 3 bytes instead of 5" in problem
    (folder / "trainer" / ".metadata").write_text("index")
    assert "or from random ones" in problems(files, key, "model.random_init=true")[0]


def a_run(folder: Path, command: str = "train") -> Path:
    folder.mkdir(parents=True)
    write_run_file(folder, {"command": command})
    (folder / "config.yaml").write_text("")
    return folder


def test_run_folder_is_not_overwritten_by_accident(files: Path) -> None:
    run = files / "runs" / "herl"
    run.mkdir(parents=True)
    assert problems(files) == ()  # empty
    (run / "notes.txt").write_text("mine")
    (run / "config.yaml").write_text("a user's own")
    (problem,) = problems(files, "run.overwrite=true")
    assert "never deleted" in problem
    write_run_file(run, {"command": "train"})
    assert problems(files) == ()  # herl's, and nothing to lose
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    (problem,) = problems(files)
    assert "run.name" in problem
    assert "run.overwrite=true" in problem
    assert problems(files, "run.overwrite=true") == ()
    (files / "model").rename(run / "policy")
    (run / "policy" / "herl_export.json").write_text(
        json.dumps({"files": [file.name for file in (run / "policy").iterdir()]})
    )
    (problem,) = problems(files, "run.overwrite=true", f"model.path={run}/policy")
    assert "would delete" in problem


def test_resume_is_for_runs_that_keep_what_they_have(files: Path) -> None:
    assert problems(files, "run.resume=true") == ()
    assert problems(files, "run.resume=true", purpose="improve") == ()
    for purpose in ("sft", "dpo"):
        assert problems(files, "run.resume=true", purpose=purpose) == ()
    (problem,) = problems(files, "run.resume=true", purpose="eval")
    assert "`herl eval` writes no checkpoints" in problem


@pytest.mark.parametrize("command", ["sft", "dpo", "eval", "improve"])
def test_resuming_training_touches_no_other_kind_of_run(files: Path, command: str) -> None:
    run = a_run(files / "runs" / "herl", command)
    (run / "metrics.jsonl").write_text('{"step": 0, "eval/reward": 0.5}\n')
    (problem,) = problems(files, "run.resume=true")
    assert f"is a run of `herl {command}`" in problem and "choose another run.name" in problem


def test_replay_and_the_released_code_exclude_each_other(files: Path) -> None:
    assert problems(files, "hindsight.method=replay") == ()
    (problem,) = problems(files, "hindsight.method=replay", "hindsight.reference_compat=true")
    assert "hindsight.method is 'replay' with hindsight.reference_compat true" in problem
    # What is for revisions alone does not matter.
    assert problems(files, "hindsight.method=replay", "hindsight.temperature=0") == ()


def test_pairs_that_cannot_be_trained_on_are_refused(files: Path) -> None:
    def found(*overrides: str) -> tuple[str, ...]:
        return problems(files, *overrides, purpose="dpo")

    (problem,) = found("dpo.data=''")
    assert "`herl dpo` needs a file of rows" in problem
    (problem,) = found("dpo.pairs_per_step=1", "megatron.data_parallel=3")
    assert "dpo.pairs_per_step is 1, two rows each, fewer than megatron.data_parallel 3" in problem
    assert found("dpo.pairs_per_step=1", "megatron.data_parallel=2") == ()
    (problem,) = found("dpo.loss=ipo", "dpo.label_smoothing=0.1")
    assert "dpo.loss 'ipo', which has none" in problem
    assert found("dpo.label_smoothing=0.1") == found("dpo.loss=ipo") == ()


def test_improving_with_equal_samples_is_refused(files: Path) -> None:
    def found(*overrides: str) -> tuple[str, ...]:
        return problems(files, *overrides, purpose="improve")

    (problem,) = found("improve.temperature=0")
    assert "improve.temperature is 0" in problem
    assert found("improve.temperature=0", "improve.rounds=1") == ()
    (problem,) = found("eval.temperature=0")
    assert "improve.best_of_n" in problem
    assert found("eval.temperature=0", "improve.best_of_n=false") == ()
    assert problems(files, "improve.temperature=0", "eval.temperature=0", purpose="eval") == ()


def test_all_problems_are_reported_together(files: Path) -> None:
    found = problems(
        files, "train.prompts_per_optimizer_step=5", "data.train=/nowhere", "rollout.temperature=0"
    )
    assert len(found) == 3


def test_run_that_failed_at_its_start_does_not_block_the_next(files: Path) -> None:
    run = a_run(files / "runs" / "herl")
    (run / "metrics.jsonl").write_text("")
    (run / "run.log").write_text("run ended early")
    assert problems(files) == ()
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    assert "run.overwrite=true" in problems(files)[0]


@pytest.mark.parametrize("purpose", ["sft", "dpo"])
def test_a_row_ends_where_the_models_positions_do(files: Path, purpose: Purpose) -> None:
    (problem,) = problems(files, f"{purpose}.max_tokens=513", purpose=purpose)
    assert f"{purpose}.max_tokens is 513" in problem and "is 512; lower it" in problem
    other = {"sft": "dpo", "dpo": "sft"}[purpose]
    for command in (purpose, "train", "eval"):
        assert problems(files, f"{other}.max_tokens=513", purpose=command) == ()


SLIPS = {
    "sft": ("data.max_prompt_tokens=9999", "data.eval=nowhere", "data.train=nowhere",
            "rollout.tensor_parallel=7", "rollout.temperature=0", "rollout.top_p=0.5",
            "hindsight.reference_compat=true", "hindsight.behavior=one", "algorithm.min_valid=99",
            "judge.base_url=http://host/v1", "train.prompts_per_optimizer_step=7",
            "megatron.reference=host", "algorithm.kl_coef=1"),
    "eval": ("sft.max_tokens=9999", "dpo.max_tokens=9999", "megatron.virtual_pipeline=1",
             "optimizer.min_lr=1", "train.prompts_per_optimizer_step=7", "algorithm.min_valid=99"),
}  # fmt: skip


@pytest.mark.parametrize("purpose", ["sft", "dpo", "eval"])
def test_a_section_that_a_command_does_not_read_may_hold_anything(
    files: Path, purpose: Purpose
) -> None:
    slips = SLIPS["eval" if purpose == "eval" else "sft"]
    config = effective_config(load(files, *slips), purpose=purpose)
    validate(config, purpose=purpose, machine=CPU)
    with pytest.raises(ValueError):  # and each of them was something to refuse
        validate(config, purpose="train", machine=CPU)


def test_the_quickstarts_files_are_said_to_come_from_its_script(files: Path) -> None:
    toy, policy = "runs/quickstart/toy/train.jsonl", "runs/quickstart/sft/policy"
    rows, model = problems(files, f"data.train={toy}", f"model.path={policy}")
    assert (
        toy in rows and "`bash tools/quickstart.sh` makes it, as does `python tools/make_" in rows
    )
    assert policy in model and "`bash tools/quickstart.sh` makes it" in model
    (other,) = problems(files, "data.train=runs/other.jsonl")
    assert other.endswith("mend the path")


@pytest.mark.parametrize(("name", "at"), [("org/set", ""), ("org/set@v2", " --revision v2")])
def test_a_data_set_of_the_hub_is_refused_with_the_line_that_fetches_it(
    files: Path, name: str, at: str
) -> None:
    (said,) = problems(files, f"data.train={name}")
    assert f"`herl data SOURCE --input {name} --out FOLDER` makes them" in said
    assert f"`hf download --repo-type dataset org/set{at} --local-dir DIR`" in said


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_rays_sockets_is_named(
    files: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The kernel takes names of 107 bytes."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/tmp/" + "a" * 100)
    (problem,) = problems(files)
    assert problem.startswith(f"{name} is '/tmp/aaa") and "of 105 bytes" in problem
    assert f"{name}=/tmp" in problem
    monkeypatch.setenv(name, "/tmp")
    assert problems(files) == ()
