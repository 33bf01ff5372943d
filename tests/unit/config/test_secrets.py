"""No message and no command repeats what may be a credential."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.rules.scoring import judge_problems
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.prepared import prepare

K = "sk-proj-Ab3dEf6hIjKlMn0pQrStUv"
SECRETS = (K, "hunter2", "Ab3dEf6h")
MODEL = "model: {path: a}\n"


def refused(tmp_path: Path, text: str = MODEL, *overrides: str) -> str:
    """What the refusal says, held to repeat no secret; nor does a traceback of it."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    for said in (str(caught.value), "".join(traceback.format_exception(caught.value))):
        said = "\n".join(line for line in said.splitlines() if "File " not in line)
        assert not any(secret in said for secret in SECRETS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        (f"openai_token = {K}", "'openai_token...'"),
        (f"judge.openai_token = {K}", "'judge.openai_token...'"),
        (f"judge.api_key: {K}", "'judge.api_key...'"),
        ("--judge.key=hunter2-correct", "'judge.key...'"),
        ("--judge.pass=hunter2", "'judge.pass...'"),
        ("hunter2-correct", "section.key=value"),
        (f"{K} = 1", "section.key=value"),
        ("judge.pass=hunter2-correct", "judge.pass: unknown key"),
        ("judge.pw=hunter2", "judge.pw: unknown key"),
        ("judge.headers=[hunter2]", "judge.headers: unknown key"),
        (f"wandb.key='https://user:{K}@host'", "wandb: unknown key"),
        (f"judge.openai=postgres://u:{K}@h", "judge.openai: unknown key"),
        (f"wandb={{{K}: 1}}", "wandb: unknown key"),
        ("judge.modle=hunter2", "did you mean judge.model?"),
        (f"judge={{{K}: 1}}", "judge.(not shown"),
        (f"judge.temperature=https://user:{K}@host/v1", "judge.temperature: "),
        ("judge.samples='user:hunter2@host'", "judge.samples: "),
        ("judge.samples='token: hunter2'", "judge.samples: "),
        (f"judge.samples=id {K}", "judge.samples: "),
        (f"train.steps={{{K}: 1}}", "train.steps: a mapping"),
        (f"train.steps=[{K}]", "train.steps: a list"),
        (f"judge.base_url={K}", "judge.base_url "),
        (f"judge.api_key=${{{K}}}", "judge.api_key: unknown key"),
        (f"judge.api_key=${{{K}", "judge.api_key: unknown key"),
        ("judge.model=${hunter2", "judge.model: '${' begins"),
        (f"judge.model=${{{K}}}", "judge.model: Interpolation key"),
        (f"judge.model=${{oc.{K}:x}}", "judge.model: Unsupported"),
        (f"judge.model=!{K} x", "judge.model: not valid YAML"),
        ("judge.samples=!!int hunter2", "judge.samples: "),
        (f"judge.model={{{K}: 1, {K}: 2}}", "judge.model: not valid YAML"),
        (f"run.name={K}", "run.name may hold"),
        ("data.train=https://user:hunter2@host/x", "data.train may hold"),
        ("judge.api_key_env=hunter2", "judge.api_key_env must be"),
    ],
)  # fmt: skip
def test_a_refused_override_keeps_its_key_and_no_secret(
    tmp_path: Path, override: str, kept: str
) -> None:
    assert kept in refused(tmp_path, MODEL, override)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{K}: 1\n{MODEL}", "unknown key"),
        (f"{MODEL}judge: {{{K}: 010}}\n", "(line 2)"),
        (f"{MODEL}judge: {{model: !{K} x}}\n", "(line 2, column 16)"),
        (f"{MODEL}judge: {{samples: !!int {K}}}\n", "run.yaml"),
        (f"extends: [{K}]\n{MODEL}", "no such file"),
        (f"extends: {{{K}: 1}}\n{MODEL}", "extends: [FILE, ...]"),
    ],
)
def test_a_refused_file_keeps_its_place_and_no_secret(tmp_path: Path, text: str, kept: str) -> None:
    assert kept in refused(tmp_path, text)


def test_an_override_taken_for_a_file(tmp_path: Path) -> None:
    for name in (f"judge.api_key: {K}", "judge.key: hunter2", K):
        with pytest.raises(ConfigError, match="no such file") as caught:
            load_config(name)
        assert not any(secret in str(caught.value) for secret in SECRETS)


def test_the_judge_of_herl_score() -> None:
    for override in ("extra_body={api_key: hunter2}", "base_url=https://u:hunter2@h", "pw=hunter2"):
        with pytest.raises(ConfigError) as caught:
            prepare((), [f"judge.{override}"], command="score")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "judge",
    [
        f"{{extra_body: {{api_key: {K}}}}}",
        f"{{extra_body: {{headers: {{Authorization: Bearer {K}}}}}}}",
        "{extra_body: {x: [{Cookie: hunter2}]}}",
        "{extra_body: {key: hunter2}}",
        "{extra_body: {x-api-key: hunter2}}",
        f"{{extra_body: {{user: 'id {K}'}}}}",
        f"{{extra_body: {{{K}: 1}}}}",
        f"{{base_url: 'https://user:{K}@host/v1'}}",
        "{base_url: 'https://host/v1?key=hunter2'}",
        f"{{base_url: 'https://host/{K}/v1'}}",
    ],
)
def test_config_show_and_diff_print_no_credential(tmp_path: Path, judge: str) -> None:
    base, run, plain = (tmp_path / name for name in ("base.yaml", "run.yaml", "plain.yaml"))
    base.write_text(f"{MODEL}judge: {judge}\n")
    run.write_text("extends: [base.yaml]\ntrain: {steps: 3}\n")
    plain.write_text(MODEL)
    for arguments in (["show", str(run)], ["show", "--all", str(base)],
                      ["diff", str(plain), str(run)]):  # fmt: skip
        result = CliRunner().invoke(app, ["config", *arguments])
        assert result.exit_code == 2
        assert "judge." in result.output
        assert not any(secret in result.output for secret in SECRETS)


def test_what_is_no_credential_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MODEL)
    folder = "/m/models--Qwen--Qwen3-4B/snapshots/cdbee75f17c01a7cc42f958dc650907174af0554"
    body = (
        "{skip_special_tokens: false, prompt_cache_key: abc, guided_regex: 'a+', top_k: 20,"
        " chat_template_kwargs: {enable_thinking: false}, echo_token: true}"
    )
    config = load_config(
        path,
        [f"model.path={folder}", f"judge.extra_body={body}", "judge.api_key_env=OPENAI_API_KEY",
         "judge.base_url=http://10.0.0.1:8000/v1,https://b.example/openai/gpt-4o-2024-11-20/v1"],
    )  # fmt: skip
    assert config.model.path == folder
    assert config.judge.extra_body["top_k"] == 20


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"Stream": True}, "Stream"), ({"N": 5}, "N"), ({"maxTokens": 5}, "maxTokens"),
        ({"Response-Format": {}}, "Response-Format"),
        ({"extra_body": {"stream": True}}, "extra_body"),
        ({"options": {"Temperature": 1}}, "options.Temperature"),
        ({"Sampling_Params": {"params": {"n": 2}}}, "Sampling_Params.params.n"),
    ],
)  # fmt: skip
def test_our_fields_cannot_be_set_in_other_letters_or_deeper(
    body: dict[str, object], path: str
) -> None:
    (problem,) = judge_problems(JudgeConfig(extra_body=body))
    assert problem.startswith(f"judge.extra_body.{path} cannot be set: ")


def test_a_schema_may_name_its_parts_as_we_name_fields() -> None:
    schema = {"guided_json": {"properties": {"n": {"type": "integer"}, "model": {}}}}
    assert list(judge_problems(JudgeConfig(extra_body=schema))) == []
