"""Rules of sections `model` and `data`: the model's folder and the files of rows.

Of a model only `config.json` and the names and sizes of the files are read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from herl_megatron.config.hub import is_hub_name
from herl_megatron.config.loop_keys import samples
from herl_megatron.config.purpose import TRAINS, Purpose
from herl_megatron.config.schema import Config
from herl_megatron.files.manifest import damage
from herl_megatron.files.os_errors import absent
from herl_megatron.files.run_files import MANIFEST
from herl_megatron.files.strict_json import read_object

SUPPORTED_MODELS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""`model_type` -> the class that writes texts, of the families that `models.known_families` has (a
test keeps the two equal)."""
_MADE_BY = {
    "sft.data": " (`herl data sft` makes one)",
    "dpo.data": " (`herl data pairs` makes one)",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def file_problems(config: Config, purpose: Purpose) -> Iterator[str]:
    """Files of rows that the command reads and that are not there."""
    held_out = config.data.eval_files
    needed: Mapping[Purpose, tuple[str, tuple[str, ...]]] = {
        "train": ("data.train", (config.data.train,)),
        "sft": ("sft.data", (config.sft.data,)),
        "dpo": ("dpo.data", (config.dpo.data,)),
        "eval": ("data.eval", held_out),
        "improve": ("data.eval", held_out),
    }
    key, values = needed[purpose]
    if values in ((), ("",)):
        yield f"{key} is empty; `herl {purpose}` needs a file of rows there{_MADE_BY.get(key, '')}"
    else:
        yield from _row_file_problems(key, values)
    if purpose in TRAINS and samples(config, purpose=purpose):
        yield from _row_file_problems("data.eval", held_out)


def _row_file_problems(key: str, values: Sequence[str]) -> Iterator[str]:
    """Files that are not there, or are named twice."""
    for value in dict.fromkeys(values):
        if not value:
            yield f"{key} is {list(values)}, with an empty name in it; leave that out"
        elif problem := absent(value, "file"):
            yield f"{key}: {problem}: {value!r} (from {Path.cwd()}); {_how_made(value)}"
    if twice := sorted({value for value in values if values.count(value) > 1}):
        yield f"{key} names {', '.join(twice)} twice; name each file once"


def _how_made(path: str, otherwise: str = "mend the path") -> str:
    """How what the configurations of the quickstart read comes to be there."""
    if is_hub_name(path) and not path.endswith((".jsonl", ".parquet", ".json")):
        name, _, revision = path.partition("@")
        at = f" --revision {revision}" if revision else ""
        return (
            "rows to train on come from a file; of a data set on the Hugging Face Hub `herl data"
            f" SOURCE --input {path} --out FOLDER` makes them, or with --input DIR after `hf"
            f" download --repo-type dataset {name}{at} --local-dir DIR`"
        )
    parts = Path(path).parts
    if parts[:2] != ("runs", "quickstart"):
        return otherwise
    if parts[2:3] == ("toy",):
        return (
            "`bash tools/quickstart.sh` makes it, as does `python tools/make_toy_task.py --out"
            " runs/quickstart/toy`"
        )
    return "`bash tools/quickstart.sh` makes it on the way to the run that this file is of"


def folder_problems(config: Config, purpose: Purpose) -> Iterator[str]:
    """What is missing in the folder `model.path`; its `config.json` is for `shape_problems`."""
    folder = Path(config.model.path)
    if not config.model.path:
        yield "model.path is empty; give the Hugging Face folder of the model"
        return
    if problem := absent(folder, "folder"):
        hub = "OWNER/NAME"
        if folder.parts[:1] == ("models",) and len(folder.parts) == 2:
            hub = f"OWNER/{folder.name}"
        fix = _how_made(
            config.model.path,
            f"it must be a Hugging Face folder on this machine (hf download {hub} --local-dir"
            f" {config.model.path}), or the model's name on the Hub (model.path={hub})",
        )
        yield f"model.path: {problem}: {config.model.path!r} (from {Path.cwd()}); {fix}"
        return
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        yield f"model.path: {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)})"
    yield from _weights(config, folder, trains=purpose in TRAINS)


def _weights(config: Config, folder: Path, *, trains: bool) -> Iterator[str]:
    """Where the first weights come from: exactly one of three places, and they are there."""
    model = config.model
    if not model.megatron_path:
        if not model.random_init and not weights_bytes(folder):
            yield (
                f"model.path: {folder} has no *.safetensors weights; add them, name converted ones"
                " in model.megatron_path, or set model.random_init=true to start from random ones"
            )
        return
    if model.random_init:
        yield (
            f"model.megatron_path is {model.megatron_path!r} and model.random_init is true: start"
            " from weights or from random ones?"
        )
    if not trains:
        yield (
            f"model.megatron_path is {model.megatron_path!r}, but evaluation reads Hugging Face"
            " weights: convert it with `herl convert to-hf` and name that in model.path"
        )
    start = Path(model.megatron_path)
    found = [part for part in (start, start / "trainer") if isfile(part / ".metadata")]
    if not found:
        yield (
            f"model.megatron_path: {model.megatron_path!r} is no Megatron checkpoint (from"
            f" {Path.cwd()}); write one with `herl convert to-megatron`"
        )
        return
    for described in (found[0], found[0].parent):
        if (described / MANIFEST).is_file() and (wrong := damage(described, hashes=False)):
            yield f"model.megatron_path: {described} is damaged: {wrong}; convert or copy it again"


def weights_bytes(folder: str | Path) -> int:
    """Total size of the folder's safetensors files, 0 if there are none."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors") if isfile(path))


def read_shape(path: Path) -> Mapping[str, Any]:
    """`config.json` with a `model_type`.

    Raises:
        ValueError: no such file, not JSON, or no model type in it.
    """
    if not isfile(path):
        raise ValueError(f"{path.parent} has no config.json; it is not a Hugging Face folder")
    shape = read_object(path)
    if "model_type" not in shape:
        raise ValueError(f"{path} names no model_type; it is not a model's config.json")
    return shape


def family_problems(shape: Mapping[str, Any]) -> Iterator[str]:
    """Whether a model's `config.json` is of a family that is supported."""
    model_type = shape["model_type"]
    if not isinstance(model_type, str) or model_type not in SUPPORTED_MODELS:
        yield (
            f"model.path: model_type {model_type!r} is not supported; one of"
            f" {', '.join(SUPPORTED_MODELS)}"
        )
        return
    language_model = SUPPORTED_MODELS[model_type]
    kinds = shape.get("architectures")
    if kinds and isinstance(kinds, list) and language_model not in kinds:
        yield (
            f"model.path: architectures in config.json is {kinds!r:.80}, which the engine would"
            f" take for another kind of model than the trainer; of a {model_type} that writes"
            f" texts it is [{language_model}]"
        )


def split_problems(
    key: str, tp: int, shape: Mapping[str, Any], names: tuple[str, ...]
) -> Iterator[str]:
    """TP cuts the sizes `names` evenly; key heads that are fewer than the ranks are repeated."""
    for name in names:
        if name in shape and shape[name] % tp:
            yield f"{key} {tp} does not divide the model's {name} {shape[name]}; choose a divisor"
    kv_heads = shape.get("num_key_value_heads")
    if kv_heads and kv_heads % tp and tp % kv_heads:
        yield (
            f"{key} {tp} and the model's num_key_value_heads {kv_heads}: one must divide the other"
        )
