"""The parts that a row is composed of: one table for the paper's runs, one for the toy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config
from herl_megatron.reproduce.data_sets import EVALUATION, MODEL_NAMES, TRAINING, Origin
from herl_megatron.reproduce.needs import (
    all_of,
    checks_problem,
    data_problem,
    judge_problem,
    model_problem,
)
from herl_megatron.reproduce.paper_rows import PaperRow
from herl_megatron.reproduce.prepared_rows import REPORT, WantedRows
from herl_megatron.reproduce.stage import ChainOptions, Stage, run_stage, setting

LAYOUTS: Mapping[tuple[str, str], str] = {
    ("qwen2.5_7b", "if"): "8gpu_tp2_if",
    ("qwen2.5_7b", "medical"): "8gpu_tp4_medical",
    ("llama3.2_3b", "if"): "8gpu_if",
    ("llama3.2_3b", "medical"): "8gpu_medical",
    ("qwen3_4b", "if"): "8gpu_if",
    ("qwen3_4b", "medical"): "8gpu_medical",
}
"""Model and task -> the file of `configs/scale/`."""
_JUDGED = ("writingbench", "llmeval_med", "healthbench_500")
_RELEASED_REWARD = "herl_reference"
"""What the released code rewards medical answers by: a matter of the rows, which
`configs/presets/released_medical.yaml` names."""


@dataclass(frozen=True)
class Evaluation:
    """One benchmark: its files and settings, the stage that makes its rows, what else it needs, and
    whether a judge scores it."""

    name: str
    files: tuple[Path, ...]
    settings: tuple[str, ...]
    data: Stage
    problem: Callable[[], str] = str
    judged: bool = False


@dataclass(frozen=True)
class RowParts:
    """What the chain of a row is made of.

    before: stages that come first: training data, a warm start.
    model: settings that name the model which is trained or, of `base`, evaluated.
    model_problem: why it cannot be had, or its training rows not be scored.
    train, last: files of the train stage before and behind the method's. rows: its prompts.
    train_settings: of the train stage. samples: files with which the model answers the prompts.
    references: whether the rows have reference answers.
    config: what `train` loads to, for the judge of the training rows.
    """

    before: tuple[Stage, ...]
    model: tuple[str, ...]
    model_problem: Callable[[], str]
    train: tuple[Path, ...]
    last: tuple[Path, ...]
    rows: Path
    train_settings: tuple[str, ...]
    samples: tuple[Path, ...]
    references: bool
    evaluations: tuple[Evaluation, ...]
    config: Config | None = None


def parts_of(row: PaperRow, asked: ChainOptions) -> RowParts:
    """The parts of a row at the scale that is asked for.

    Raises:
        ConfigError: a file of `configs/` is missing or does not load.
    """
    return _full(row, asked) if asked.scale == "full" else _toy(row, asked)


def shared_home(asked: ChainOptions, name: str) -> Path:
    """Where lock and record are of a stage that several rows share."""
    return asked.folder / "shared/stages" / name


def _full(row: PaperRow, asked: ChainOptions) -> RowParts:
    def part(kind: str, name: str) -> Path:
        return asked.configs / kind / f"{name}.yaml"

    model, engines = part("models", row.model), part("scale", "8gpu_engines")
    named = (setting("model.path", asked.model),) if asked.model else ()
    path = load_config(model, named).model.path
    evaluations = tuple(_benchmark(name, (model, engines), asked) for name in row.benchmarks)
    problem = model_problem(path, MODEL_NAMES[row.model])
    if row.task == "if":
        problem = all_of(problem, checks_problem)
    common = (named, problem)
    if not row.task:
        return RowParts((), *common, (), (), Path(), (), (), False, evaluations)
    task = part("tasks", row.task)
    layout = part("scale", LAYOUTS[row.model, row.task])
    files = (model, task, layout, _preset(asked, row.task))
    judge = tuple(text for text in asked.overrides if text.startswith("judge."))
    config = load_config(files, judge)
    data, rows = _training_data(row.task, config, asked), Path(config.data.train)
    samples = (model, task, engines, part("methods", "samples"))
    references = row.task == "medical"
    return RowParts((data,), *common, files, (), rows, (), samples, references, evaluations, config)


def _preset(asked: ChainOptions, task: str) -> Path:
    """What a preset sets for one task besides is in a file of its own."""
    own = asked.configs / "presets" / f"{asked.preset}_{task}.yaml"
    return own if own.is_file() else asked.configs / "presets" / f"{asked.preset}.yaml"


def _training_data(task: str, config: Config, asked: ChainOptions) -> Stage:
    """The stage that prepares a task's rows."""
    origin, folder = TRAINING[task], Path(config.data.train).parent
    released = task == "medical" and asked.preset == "released"
    options = (*origin.options, *(("--aggregation", _RELEASED_REWARD) if released else ()))
    files = (folder / "train.jsonl", folder / "eval.jsonl", folder / REPORT)
    return _data_stage(task, origin, folder, options, files, asked)


def _benchmark(name: str, before: tuple[Path, ...], asked: ChainOptions) -> Evaluation:
    file = asked.configs / "benchmarks" / f"{name}.yaml"
    config = load_config((*before, file), asked.evaluation)
    rows, *others = _paths(config.data.eval)
    if others:
        raise ValueError(
            f"{file}: data.eval names {1 + len(others)} files; of a benchmark it is one"
        )
    origin, folder = EVALUATION[name], Path(rows).parent
    finished = (Path(rows), folder / REPORT)
    data = _data_stage(name, origin, folder, origin.options, finished, asked)
    judged = judge_problem(name, config.judge, option="--eval ")
    problem = judged if name in _JUDGED else checks_problem
    return Evaluation(name, (*before, file), (), data, problem, name in _JUDGED)


def _paths(value: object) -> list[str]:
    """`data.eval` as a list, be it one file or several."""
    return [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]


def _data_stage(
    name: str,
    origin: Origin,
    folder: Path,
    options: tuple[str, ...],
    finished: tuple[Path, ...],
    asked: ChainOptions,
) -> Stage:
    place = asked.inputs.get(name, origin.place)
    argv = ("data", origin.source, "--input", place, *options, "--out", str(folder))
    problem = data_problem(name, origin, place)
    rows = tuple(file for file in finished if file.name != REPORT)
    wanted = WantedRows(name, origin, asked.inputs.get(name, ""), options, folder, rows)
    return Stage(
        f"data_{name}", argv, folder, finished, folder, problem, rows, differs=wanted.differs
    )


def _toy(row: PaperRow, asked: ChainOptions) -> RowParts:
    """The quickstart's task and model: random weights that a warm start teaches to write."""
    quickstart, last = asked.configs / "quickstart_cpu.yaml", asked.configs / "scale/toy.yaml"
    data, model = asked.folder / "data", asked.folder / "shared/warm_start/policy"
    written = tuple(data / name for name in ("train.jsonl", "heldout.jsonl", "sft.jsonl"))
    task = Stage(
        "data_toy", ("tasks", "toy", "--train", "256", "--heldout", "64", "--out", str(data)),
        data, (*written, data / "model/model.safetensors"), shared_home(asked, "data_toy"),
    )  # fmt: skip
    warm = run_stage(
        "warm_start", "sft",
        (asked.configs / "quickstart_sft_cpu.yaml", last, asked.configs / "scale/toy_warm.yaml"),
        (setting("model.path", data / "model"), setting("sft.data", data / "sft.jsonl")),
        folder=asked.folder, run="shared/warm_start", home=shared_home(asked, "warm_start"),
    ).reading([task])  # fmt: skip
    heldout = setting("data.eval", data / "heldout.jsonl")
    rows = (setting("data.train", data / "train.jsonl"), heldout)
    evaluation = Evaluation("toy", (quickstart, last), (heldout,), task)
    return RowParts(
        before=(task, warm),
        model=(setting("model.path", model),),
        model_problem=str,
        train=(quickstart, _preset(asked, row.task or "if")),
        last=(last,),
        rows=data / "train.jsonl",
        train_settings=rows,
        samples=(quickstart, last, asked.configs / "methods/samples.yaml"),
        references=False,
        evaluations=(evaluation,),
    )
