"""A model's folder is looked at before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.schema import ModelConfig
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.run.model_files import check_model, check_vocabulary
from tests.toy_copies import copy_toy_task


@pytest.fixture
def model(tmp_path: Path) -> Path:
    copy_toy_task(tmp_path, seed=0, train_prompts=2, heldout_prompts=1, sft_rows=1)
    return tmp_path / "model"


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_tokenizer_of_another_model_is_refused(model: Path) -> None:
    config = ModelConfig(path=str(model), random_init=True)
    tokenizer = ChatTokenizer(config.path)
    check_vocabulary(tokenizer, config)
    edit(model / "config.json", vocab_size=100)
    with pytest.raises(ValueError, match="the tokenizer gives ids up to .* vocab_size 100 in"):
        check_vocabulary(tokenizer, config)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, r"it is \[Qwen2ForCausalLM\]"),
        ({"torch_dtype": "float99"}, "torch_dtype is 'float99'; it must be one of float32"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32"),
    ],
)
def test_what_the_engine_would_take_for_another_model_is_refused(
    model: Path, values: dict[str, Any], said: str
) -> None:
    edit(model / "config.json", **values)
    with pytest.raises(ValueError, match=rf"config\.json.*{said}"):
        check_model(ModelConfig(path=str(model), random_init=True), trains=True)


def test_a_tokenizer_that_cannot_encode_is_refused(model: Path) -> None:
    edit(model / "tokenizer_config.json", model_max_length="NaN")
    with pytest.raises(ValueError, match="model.path=.*no tokenizer could be loaded"):
        ChatTokenizer(str(model))


def test_a_broken_link_in_place_of_a_models_file_is_not_no_file(model: Path) -> None:
    (model / "generation_config.json").unlink(missing_ok=True)
    (model / "generation_config.json").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"generation_config\.json cannot be read: a link to"):
        ChatTokenizer(str(model))


@pytest.mark.parametrize("index", ["[" * 9000, "null", '{"weight_map": {"a": 5}}'])
def test_an_index_that_means_nothing_is_named(model: Path, index: str) -> None:
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        check_model(ModelConfig(path=str(model)), trains=True)
