"""Reading, refusing and writing configurations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from herl_megatron.config.load import ConfigError, load_config, save_resolved, split_arguments
from herl_megatron.config.migrate import plan_migrations


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  path: /models/toy\ntrain:\n  steps: 3\n")
    return path


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def test_file_overrides_and_defaults(minimal: Path) -> None:
    config = load_config(
        minimal,
        ["train.steps=10", "hindsight.alpha=0", "optimizer.lr=2e-5", "train.steps=11",
         "data.train=a=b=", "data.eval=",
         "megatron.virtual_pipeline=null", "run.name=${model.path}",
         "scoring.check_modules=[my.checks]"],
    )  # fmt: skip
    assert config.train.steps == 11  # the last one counts
    assert config.hindsight.alpha == 0
    assert config.optimizer.lr == 2e-5
    assert config.data.train == "a=b="
    assert config.data.eval == "" and config.data.eval_files == ()
    assert config.megatron.virtual_pipeline is None
    assert config.run.name == "/models/toy"
    assert config.scoring.check_modules == ("my.checks",)
    assert config.rollout.group_size == 8


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ("data.eval=a.jsonl", ("a.jsonl",)),
        ("data.eval=[a.jsonl, b.jsonl]", ("a.jsonl", "b.jsonl")),
        ("data.eval=[]", ()),
    ],
)
def test_held_out_rows_are_one_file_or_several(
    minimal: Path, given: str, files: tuple[str, ...]
) -> None:
    assert load_config(minimal, [given]).data.eval_files == files
    assert load_config(minimal, ["data.eval=[x, y]", given]).data.eval_files == files
    with pytest.raises(ConfigError, match="data.eval"):
        load_config(minimal, ["data.eval={a: 1}"])
    with pytest.raises(ConfigError, match=r"data\.eval"):
        load_config(minimal, ["data.eval=[[a], b]"])


def test_resolved_file_loads_to_an_equal_configuration(minimal: Path, tmp_path: Path) -> None:
    lists = ["scoring.check_modules=[a, b]", "data.eval=[c.jsonl, d.jsonl]"]
    config = load_config(minimal, ["optimizer.lr=3e-7", *lists])
    save_resolved(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    saved = (tmp_path / "saved.yaml").read_text()
    assert "kv_cache_bytes: 1073741824" in saved  # defaults are written too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "saved.yaml"]


def test_resolved_file_keeps_what_reference_compat_decides_open(
    minimal: Path, tmp_path: Path
) -> None:
    """Written defaults would count as choices that contradict `reference_compat` when reloaded."""
    config = load_config(minimal, ["hindsight.reference_compat=true", "hindsight.alpha=0.1"])
    save_resolved(config, tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert again == config
    assert again.hindsight.model_fields_set == {"reference_compat", "alpha"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stesp=1", "train.stesp: unknown key; did you mean train.steps?"),
        ("algorithm.alpha=1", "algorithm.alpha: unknown key; did you mean"
         " hindsight.alpha?"),
        ("rolout.top_p=1", "rolout: unknown key; did you mean rollout?"),
    ],
)  # fmt: skip
def test_unknown_key_names_the_nearest(minimal: Path, override: str, expected: str) -> None:
    assert problems(minimal, override) == (expected,)


def test_unknown_key_without_a_near_one_lists_the_section(minimal: Path) -> None:
    (problem,) = problems(minimal, "cluster.qqqq=1")
    assert problem == (
        "cluster.qqqq: unknown key; known here: cluster.address, cluster.device,"
        " cluster.gpu_table, cluster.start_timeout_s, cluster.threads_per_rank"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=ten", "train.steps: 'ten' is not allowed: input should be a valid integer"
         " (expected int | null)"),
        ("train.steps=1.5", "train.steps: 1.5 is not allowed: input should be a valid integer"
         " (expected int | null)"),
        ("train.steps=true", "train.steps: True is not allowed: input should be a valid integer"
         " (expected int | null)"),
        ("train.steps='3'", "train.steps: '3' is not allowed: input should be a valid integer"
         " (expected int | null)"),
        ("run.name=12", "run.name: 12 is not allowed: input should be a valid string"
         " (expected str); quote it to make it text"),
        ("optimizer.lr=0", "optimizer.lr: 0 is not allowed: input should be greater than 0"
         " (expected float)"),
        ("hindsight.replace=best", "hindsight.replace: 'best' is not one of 'worst', 'random' or"
         " 'append'"),
        ("megatron.virtual_pipeline=x", "megatron.virtual_pipeline: 'x' is not allowed: input"
         " should be a valid integer (expected int | null)"),
        ("model=toy", "model: 'toy' is not allowed: input should be an object (expected a section"
         " of keys)"),
    ],
)  # fmt: skip
def test_wrong_value_names_path_value_and_type(minimal: Path, override: str, expected: str) -> None:
    assert problems(minimal, override) == (expected,)


def test_all_problems_are_reported_together(minimal: Path) -> None:
    found = problems(minimal, "train.stesp=1", "optimizer.lr=fast", "rollout.group_size=1")
    assert sorted(problem.split(":")[0] for problem in found) == [
        "optimizer.lr", "rollout.group_size", "train.stesp",
    ]  # fmt: skip


def test_malformed_overrides(minimal: Path) -> None:
    found = problems(minimal, "train.steps", "train. steps=2", "=1")
    assert len(found) == 3
    assert all("section.key=value" in problem for problem in found)


def test_missing_file_names_its_neighbours(minimal: Path) -> None:
    (problem,) = problems(minimal.parent / "rum.yaml")
    assert "no such file" in problem
    assert "run.yaml" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {path: a}\nrun:\n  seed: 1\n  seed: 2\n", "line 4"),
        ("model: {path: a\n", "not valid YAML"),
        ("- a\n- b\n", "sections"),
        ("", "sections"),
        ("model: {path: '${nothing.here}'}\n", "nothing"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=.inf", "optimizer.lr=.nan", "optimizer.weight_decay=.inf",
        "optimizer.eps=.inf",
        "hindsight.alpha=.inf", "hindsight.gamma=.inf", "algorithm.kl_coef=.inf",
        "algorithm.entropy_coef=.inf", "rollout.temperature=.inf", "eval.temperature=.inf",
        "parity.bf16_mean=.inf", "hindsight.threshold=.nan", "hindsight.threshold=-.inf",
        "scoring.check_timeout_s=.inf", "judge.price_in=.inf", "dpo.beta=.inf",
    ],
)  # fmt: skip
def test_no_number_is_infinite_or_none(minimal: Path, override: str) -> None:
    (problem,) = problems(minimal, override)
    key, _, value = override.partition("=")
    assert problem.startswith(f"{key}: {float(value.replace('.', ''))!r} is not allowed: ")
    assert "finite number" in problem


@pytest.mark.parametrize("key", ["rollout", "eval", "hindsight", "improve", "judge"])
def test_temperatures(minimal: Path, key: str) -> None:
    for value in (0, 0.01, 0.3, 100):
        assert (
            getattr(load_config(minimal, [f"{key}.temperature={value}"]), key).temperature == value
        )
    for text in ("1e-300", "0.009", "101.0"):
        (problem,) = problems(minimal, f"{key}.temperature={text}")
        assert problem == (
            f"{key}.temperature: {float(text)!r} is not allowed: a temperature is 0 (greedy) or"
            f" from 0.01 to 100 (expected {'float | null' if key == 'judge' else 'float'})"
        )


def test_seconds_that_no_timer_takes(minimal: Path) -> None:
    (problem,) = problems(minimal, "scoring.check_timeout_s=1e300")
    assert "seconds are at most 1e+08" in problem


@pytest.mark.parametrize(
    ("text", "read", "how"),
    [
        ("010", 8, "octal"), ("-010", -8, "octal"), ("0_7", 7, "octal"),
        ("1:30", 90, "sixties"), ("1:30:00", 5400, "sixties"), ("1:30.5", 90.5, "sixties"),
    ],
)  # fmt: skip
def test_numbers_that_only_yaml_1_1_reads_so(
    minimal: Path, text: str, read: float, how: str
) -> None:
    (problem,) = problems(minimal, f"train.steps={text}")
    assert (
        problem.startswith(f"train.steps: {text} would be read as {read} (YAML 1.1")
        and how in problem
    )
    minimal.write_text(f"model:\n  path: a\ntrain:\n  steps: {text}\n")
    (problem,) = problems(minimal)
    assert problem.startswith(f"train.steps (line 4): {text} would be read as {read} ")


@pytest.mark.parametrize("text", ["'010'", '"1:30"', "a:30", "010a", "0.5.1"])
def test_text_stays_text(minimal: Path, text: str) -> None:
    assert load_config(minimal, [f"run.name={text}"]).run.name == text.strip("'\"")


@pytest.mark.parametrize(("text", "value"), [("10", 10), ("0", 0), ("0x10", 16), ("1_000", 1000)])
def test_numbers_that_read_as_they_are_written(minimal: Path, text: str, value: int) -> None:
    assert load_config(minimal, [f"run.seed={text}"]).run.seed == value


def test_the_environment_is_not_copied_into_the_configuration(
    minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-indeed")
    for override in (
        "judge.extra_body={k: '${oc.env:MY_KEY}'}",
        "run.name=${oc.env:MY_KEY}",
        "run.name=a-${ oc.env:MY_KEY,none}",
        "run.name=${oc.decode:${oc.env:MY_KEY}}",
    ):
        (problem,) = problems(minimal, override)
        assert "config.yaml" in problem and "judge.api_key_env" in problem
        assert "very-secret" not in problem
    minimal.write_text("model:\n  path: a\njudge:\n  model: ${oc.env:MY_KEY}\n")
    assert problems(minimal)[0].startswith("judge.model (line 4): ")


@pytest.mark.parametrize(
    ("override", "secret"),
    [
        ("judge.openai_token=abc", "abc"),
        ("judge.api_key=abc", "abc"),
        ("judge.key=abc", "abc"),
        ("judge.modle=sk-proj-aaaaaaaaaaaa", "sk-proj"),
        ("judge.x=hf_aBcDeFgHiJkL", "hf_"),
        ("judge.x=Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg", "Zm9v"),
        ("juge={login: {password: abc}}", "abc"),
        ("judge.samples=sk-proj-aaaaaaaaaaaa", "sk-proj"),
        ("judge.structured=sk-proj-aaaaaaaaaaaa", "sk-proj"),
        ("judge my_token=abc", "abc"),
        ("sk-proj-aaaaaaaaaaaa", "sk-proj"),
    ],
)
def test_what_may_be_a_credential_is_not_repeated(
    minimal: Path, override: str, secret: str
) -> None:
    (problem,) = problems(minimal, override)
    assert secret not in problem


@pytest.mark.parametrize(
    "value", ["a-long-name-of-some-model-instruct", "/data/models/v2.5/abc_12", "a.b/c-4b"]
)
def test_names_and_paths_are_repeated(minimal: Path, value: str) -> None:
    assert repr(value) in problems(minimal, f"judge.samples={value}")[0]


@pytest.mark.parametrize("text", ["010: 5", "1:30: 2", "1_000: 5", "0x10: 1", "yes: 1", "1e3: 1"])
def test_names_that_yaml_1_1_reads_as_something_else(minimal: Path, text: str) -> None:
    """`{010: 5}` would be sent as `{"8": 5}`."""
    name = text.rpartition(": ")[0]
    (problem,) = problems(minimal, f"judge.extra_body={{logit_bias: {{{text}}}}}")
    assert problem.startswith(f"judge.extra_body.logit_bias.{name}: ")
    assert "would be read as" in problem and "quotes" in problem
    minimal.write_text(f"model: {{path: a}}\njudge:\n  extra_body:\n    ? {name}\n    : 1\n")
    assert "(line 4)" in problems(minimal)[0]


def test_names_that_read_as_they_are_written(minimal: Path) -> None:
    body = "{logit_bias: {50256: -100, '010': 1, -1: 2}, ok: {true: 1}}"
    assert load_config(minimal, [f"judge.extra_body={body}"]).judge.extra_body == {
        "logit_bias": {"50256": -100, "010": 1, "-1": 2}, "ok": {"true": 1},
    }  # fmt: skip


@pytest.mark.parametrize("text", ["!!int '010'", '!!int "010"', "!!int 010", "!!int '1:30'"])
def test_a_tag_does_not_hide_a_number_of_yaml_1_1(minimal: Path, text: str) -> None:
    assert "YAML 1.1" in problems(minimal, f"train.steps={text}")[0]


@pytest.mark.parametrize("text", ["1e-400", "-1.5e-999", "0.0e-10", "!!float '2e-500'"])
def test_a_number_that_reads_as_zero_is_zero(minimal: Path, text: str) -> None:
    if text.startswith("0"):
        assert load_config(minimal, [f"rollout.temperature={text}"]).rollout.temperature == 0
    else:
        (problem,) = problems(minimal, f"rollout.temperature={text}")
        assert "would be read as 0" in problem


@pytest.mark.parametrize(
    "override",
    [
        *(f"{key}={10**22}" for key in (
            "train.steps", "run.seed", "eval.seed", "rollout.max_response_tokens",
            "rollout.kv_cache_bytes", "judge.concurrency", "judge.failure_window", "judge.retries",
            "scoring.workers", "scoring.check_memory_bytes", "megatron.virtual_pipeline",
            "improve.rounds", "checkpoint.every",
        )),
        f"run.seed=-{10**22}", f"run.seed={2**53 + 1}", "judge.samples=1000000001",
        "judge.samples=101", "judge.concurrency=65537", "scoring.workers=4097",
        f"run.seed={'1' * 5000}",
        "scoring.check_timeout_s=1e-300", "judge.timeout_s=9e-4", "judge.retry_wait_s=5e-324",
        "judge.requests_per_minute=5e-324", "judge.tokens_per_minute=1e-9",
        "optimizer.lr=1e300", "optimizer.eps=1e300", "optimizer.clip_grad=1e-300",
        "hindsight.alpha=1e200", "judge.price_in=1e-200", "hindsight.threshold=-1e40",
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing(minimal: Path, override: str) -> None:
    (problem,) = problems(minimal, override)
    assert problem.startswith(f"{override.partition('=')[0]}: ")


def test_the_largest_numbers_that_mean_something(minimal: Path) -> None:
    config = load_config(
        minimal,
        [f"run.seed=-{2**53}", "judge.samples=99", "judge.concurrency=65536",
         "judge.failure_window=1000000", "scoring.workers=4096", "judge.timeout_s=0.001",
         "optimizer.clip_grad=0", "optimizer.lr=1e30", f"rollout.kv_cache_bytes={2**45}"],
    )  # fmt: skip
    assert config.run.seed == -9007199254740992
    assert config.rollout.kv_cache_bytes == 35184372088832
    assert config.optimizer.clip_grad == 0


def test_no_number_of_a_request_is_infinite(minimal: Path) -> None:
    for body in ("{a: 1e400}", "{b: .inf}", "{c: [{d: .nan}]}"):
        (problem,) = problems(minimal, f"judge.extra_body={body}")
        assert "NaN or infinity" in problem


def test_extends_as_plain_text_shows_the_list(minimal: Path) -> None:
    minimal.write_text("extends: base.yaml\nmodel: {path: a}\n")
    assert problems(minimal) == ("extends must be a list of files; write extends: [base.yaml]",)


def test_the_environment_cannot_be_read_under_a_name_put_together(
    minimal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "word-of-the-environment")
    for override in (
        "judge.extra_body={v: env, w: '${oc.${judge.extra_body.v}:MY_KEY}'}",
        "judge.extra_body={v: oc.env, w: '${${judge.extra_body.v}:MY_KEY}'}",
        "judge.extra_body={v: env, w: '${oc.decode:${oc.${judge.extra_body.v}:MY_KEY}}'}",
    ):
        (problem,) = problems(minimal, override)
        assert "word-of" not in problem and "judge.api_key_env" in problem
    minimal.write_text("extends: ['${oc.${x}:MY_KEY}']\nx: env\nmodel: {path: a}\n")
    assert "word-of" not in problems(minimal)[0]
    # Everybody else's OmegaConf is as it was.
    assert OmegaConf.create({"a": "${oc.env:MY_KEY}"}).a == "word-of-the-environment"


def test_no_resolver_of_others_is_run(minimal: Path) -> None:
    asked: list[str] = []
    OmegaConf.register_resolver("of_others", asked.append)
    try:
        assert "of_others" in problems(minimal, "run.name=${of_others:x}")[0]
        assert asked == []
        assert OmegaConf.has_resolver("of_others")
    finally:
        OmegaConf.clear_resolver("of_others")


def test_one_text_where_a_list_belongs_is_answered_with_the_list(minimal: Path) -> None:
    (problem,) = problems(minimal, "scoring.check_modules=my_checks")
    assert problem == (
        "scoring.check_modules: 'my_checks' is not a list; write"
        " 'scoring.check_modules=[my_checks]' in a shell, check_modules: [my_checks] in a file"
    )
    (problem,) = problems(minimal, "scoring.check_modules={a: sk-proj-aaaaaaaaaaaa}")
    assert "[NAME]" in problem and "sk-proj" not in problem


def test_a_long_override_is_no_file_name(minimal: Path) -> None:
    """Longer than what file systems take for a name (255 bytes), and than a path (4,096)."""
    for length in (300, 5000):
        override = "run.dir=" + "a" * length
        assert split_arguments([str(minimal), override]) == ([minimal], [override])
        assert load_config(minimal, [override]).run.dir == "a" * length


def test_what_is_there_instead_of_a_file_is_said(tmp_path: Path, minimal: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "folder.yaml/inside.yaml").write_text("model: {path: a}\n")
    (tmp_path / "link.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    said = {
        "folder.yaml": f"{tmp_path}/folder.yaml is a folder; name a file; "
        f"{tmp_path}/folder.yaml has inside.yaml",
        "link.yaml": f"{tmp_path}/link.yaml is no regular file, nor a link to one; "
        f"{tmp_path} has run.yaml",
        "pipe.yaml": f"{tmp_path}/pipe.yaml is no regular file, nor a link to one; "
        f"{tmp_path} has run.yaml",
        "no.yaml": f"no such file: {tmp_path}/no.yaml; {tmp_path} has run.yaml",
        "run.yaml/x": f"no such file: {minimal}/x (Not a directory)",
    }
    assert {name: problems(tmp_path / name)[0] for name in said} == said
    assert "(File name too long)" in problems(tmp_path / ("n" * 300))[0]
    assert problems(Path("train.steps")) == (
        "no such file: train.steps; it is a key, give it a value: train.steps=VALUE",
    )


def test_a_file_that_another_extends_and_that_is_not_there(minimal: Path) -> None:
    minimal.write_text("extends: [gone.yaml]\n")
    with pytest.raises(ConfigError, match=f"1 problem in {minimal}\n  - no such file: .*gone.yaml"):
        load_config(minimal)


def test_many_files_beside_it_are_counted(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.yaml").touch()
    assert problems(tmp_path / "no.yaml")[0].endswith("22.yaml, 23.yaml and 6 more")


@pytest.mark.parametrize("text", ["word", "'a: b'\n", "- a\n", "null\n", "# nothing\n", ""])
def test_a_file_without_sections(minimal: Path, text: str) -> None:
    minimal.write_text(text)
    assert problems(minimal) == ("the file must hold sections such as 'model:'",)
    with pytest.raises(ConfigError, match="must hold sections"):
        plan_migrations([minimal])


@pytest.mark.parametrize("overrides", ["train.steps=10", {"train.steps": 10}, [3], [None], None])
def test_overrides_are_a_list_of_texts(minimal: Path, overrides: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, overrides)
    assert caught.value.problems == (
        "overrides must be a list of texts, such as ['train.steps=10']",
    )


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("steps", "did you mean train.steps or sft.steps or dpo.steps?"),
        ("hindsight.lr", "did you mean optimizer.lr?"),
        ("train.stepz", "did you mean train.steps?"),
        ("modle", "did you mean model?"),
        ("run.temprature", "did you mean rollout.temperature or hindsight.temperature or "),
        ("algorithm.nope", "known here: algorithm."),  # no name there is like it
    ],
)
def test_the_nearest_keys_are_named(minimal: Path, key: str, said: str) -> None:
    (problem,) = problems(minimal, f"{key}=1")
    assert problem.startswith(f"{key}: unknown key; {said}")


@pytest.mark.parametrize("text", ["first #2", "first\t#2", "[a] # b", "#2", "a\n#b"])
def test_an_override_does_not_end_where_yaml_has_a_comment(minimal: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="run.name: of .* would be lost, as a comment of YAML"):
        load_config(minimal, [f"run.name={text}"])


@pytest.mark.parametrize(
    ("text", "value"), [("'a #2'", "a #2"), ('"a #2"', "a #2"), ("a#2", "a#2")]
)
def test_a_number_sign_in_quotes_or_in_a_word_is_text(minimal: Path, text: str, value: str) -> None:
    assert load_config(minimal, [f"run.name={text}"]).run.name == value
