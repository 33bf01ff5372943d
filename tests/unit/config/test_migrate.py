"""`herl config migrate`: what it changes, what it never touches, what it refuses."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from herl_megatron.cli import app
from herl_megatron.config import history
from herl_megatron.config.decides import keys
from herl_megatron.config.history import HISTORY, History, NewDefault, Removed, Renamed
from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.migrate import plan_migrations, write_migration
from herl_megatron.config.schema.base import Decides
from herl_megatron.config.yaml_edit import flattened, read

ROOT = Path(__file__).parents[3]
OLD_SFT = ROOT / "tests/golden/version_1/sft.yaml"


def percent(value: Any) -> Any:
    return value / 100


MADE_UP = History(
    version=4,
    renamed=(
        Renamed(2, "train.rounds", "train.passes"),
        Renamed(3, "train.passes", "train.steps"),
        Renamed(3, "train.heat", "rollout.temperature"),
        Renamed(4, "rollout.top_percent", "rollout.top_p", percent),
    ),
    removed=(Removed(3, "train.verbose", "take it out, run.log has everything"),),
    took_over=HISTORY.took_over,
)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY", MADE_UP)


def migrated(path: Path, *options: str) -> str:
    """The file's text after the command, which must succeed."""
    result = run(str(path), *options)
    assert result.exit_code == 0, result.output
    return path.read_bytes().decode()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", "migrate", *arguments])


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_the_table_names_keys_of_today() -> None:
    today = {key.path for key in keys()}
    new = {c.new for c in HISTORY.renamed} | {c.new for c in HISTORY.took_over}
    later = {c.old for c in HISTORY.renamed} | {c.old for c in HISTORY.removed}
    assert new - later <= today and {new.key for new in HISTORY.new_defaults} <= today
    assert not {change.old for change in HISTORY.removed} & today
    since = {c.since for c in HISTORY.renamed} | {c.since for c in HISTORY.removed}
    since |= {c.since for c in HISTORY.took_over} | {c.since for c in HISTORY.new_defaults}
    assert since == set(range(2, HISTORY.version + 1))


OLD = """\
# A run of mine.

model: {path: toy}   # the toy

train:  # the loop
  # how often
  rounds: 12  # twelve
  # how hot, measured on Tuesday
  heat: 0.5  # half
  log_rollouts: false

# what the engines do
rollout: {group_size: 4, top_percent: 90, top_k: 5}  # four
run:
  name: "run ${train.rounds}"
"""

NEW = """\
# A run of mine.

version: 4
model: {path: toy}   # the toy

train:  # the loop
  # how often
  steps: 12  # twelve
  # how hot, measured on Tuesday
  # half
  log_rollouts: false

# what the engines do
rollout: {group_size: 4, top_p: 0.9, top_k: 5, temperature: 0.5}  # four
run:
  name: "run ${train.steps}"
"""


def test_names_values_and_references_change_and_nothing_else(tmp_path: Path, made_up: None) -> None:
    path = write(tmp_path / "run.yaml", OLD)
    assert migrated(path) == NEW
    assert load_config(path).run.name == "run 12"
    assert load_config(path).rollout.temperature == 0.5
    assert (tmp_path / "run.yaml.before-migrate").read_text() == OLD
    before = path.read_bytes()
    assert "nothing to change" in run(str(path)).output and path.read_bytes() == before


def test_comments_move_with_their_key(tmp_path: Path, made_up: None) -> None:
    path = write(
        tmp_path / "run.yaml",
        "model: {path: toy}\ntrain:\n  # how hot\n  heat: 0.5  # half\n\n"
        "rollout:\n    group_size: 4  # four\n    # the end of rollout\n",
    )
    assert migrated(path) == (
        "version: 4\nmodel: {path: toy}\ntrain: {}\n\n"
        "rollout:\n    group_size: 4  # four\n    # how hot\n    temperature: 0.5  # half\n"
        "    # the end of rollout\n"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{model: {path: toy}, train: {heat: 0.5}}",
         "{version: 4, model: {path: toy}, train: {}, rollout: {temperature: 0.5}}"),
        ("model: {path: toy}\ntrain: {steps: 1, heat: 0.5}",
         "version: 4\nmodel: {path: toy}\ntrain: {steps: 1}\nrollout:\n  temperature: 0.5"),
        ("model: {path: toy}\r\ntrain:\r\n  heat: 0.5 # x\r\n  steps: 1\r\n",
         "version: 4\r\nmodel: {path: toy}\r\ntrain:\r\n  steps: 1\r\nrollout:\r\n"
         "  temperature: 0.5 # x\r\n"),
        ('---\nmodel: {path: toy}\ntrain: {"rounds": 3,}\n...\n',
         "---\nversion: 4\nmodel: {path: toy}\ntrain: {steps: 3,}\n...\n"),
        ("version: 2\nmodel: {path: toy}\ntrain: {passes: 3}\n",
         "version: 4\nmodel: {path: toy}\ntrain: {steps: 3}\n"),
        ("version: 1 # old\nmodel: {path: &m toy}\nrun: {name: *m}\nrollout: {mode: sync}\n"
         "train: {heat: 1}\n",
         "version: 4 # old\nmodel: {path: &m toy}\nrun: {name: *m}\n"
         "rollout: {mode: sync, temperature: 1}\ntrain: {}\n"),
    ],
)  # fmt: skip
def test_styles(tmp_path: Path, made_up: None, old: str, new: str) -> None:
    path = write(tmp_path / "run.yaml", old)
    assert migrated(path) == new
    load_config(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {rounds: 3, steps: 4}\n", "both train.passes and train.steps are given"),
        ("x: &x {heat: 0.5}\ntrain: {<<: *x}\n", "train.heat is not written out in this file"),
        ("train:\n  heat: &h 0.5\neval: {temperature: *h}\n", "one that others refer to"),
        ("rollout:\n  top_percent: |\n    90\n", "cannot rewrite it"),
        ("rollout: {top_percent: '${train.steps}'}\n", "refers to another key"),
        ("train: {heat: 0.5, # half\n  steps: 1}\n", "a comment stands between braces"),
    ],
)
def test_what_cannot_be_rewritten_stays_and_is_said(
    tmp_path: Path, made_up: None, text: str, said: str
) -> None:
    path = write(tmp_path / "run.yaml", f"model: {{path: toy}}\n{text}")
    other = write(tmp_path / "other.yaml", "model: {path: toy}\ntrain: {rounds: 1}\n")
    result = run(str(other), str(path))
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    assert path.read_text() == f"model: {{path: toy}}\n{text}"
    assert "rounds" in other.read_text()  # all files or none
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.yaml", "run.yaml"]


def test_what_was_removed_or_is_unknown_is_left_and_said(tmp_path: Path, made_up: None) -> None:
    path = write(
        tmp_path / "run.yaml", "model: {path: toy}\ntrain: {verbose: true, rounds: 3, stepz: 1}\n"
    )
    output = run(str(path)).output
    assert "train.verbose was removed in version 3 of the keys: take it out, run.log" in output
    assert "train.stepz: unknown key; did you mean train.steps?" in output
    text = path.read_text()
    assert "train: {verbose: true, steps: 3, stepz: 1}" in text
    with pytest.raises(ConfigError, match="run.log has everything"):
        load_config(path)


def test_a_check_changes_nothing(tmp_path: Path, made_up: None) -> None:
    text = "model: {path: toy}\ntrain: {rounds: 3}\n"
    path = write(tmp_path / "run.yaml", text)
    result = run("--check", str(path))
    assert result.exit_code == 1 and "+train: {steps: 3}" in result.output.splitlines()
    assert path.read_text() == text and len(list(tmp_path.iterdir())) == 1
    migrated(path)
    assert run("--check", str(path)).exit_code == 0


def test_an_earlier_text_beside_it_is_never_overwritten(tmp_path: Path, made_up: None) -> None:
    text = "model: {path: toy}\ntrain: {rounds: 3}\n"
    path = write(tmp_path / "run.yaml", text)
    kept = write(tmp_path / "run.yaml.before-migrate", "mine")
    result = run(str(path))
    assert result.exit_code == 2 and "move it" in result.output
    assert (path.read_text(), kept.read_text()) == (text, "mine")
    kept.write_text(text)  # as a start leaves it that is killed between the two writes
    assert "steps: 3" in migrated(path) and kept.read_text() == text


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_what_stands_where_the_old_text_goes_stays(
    tmp_path: Path, made_up: None, kind: str
) -> None:
    path = write(tmp_path / "run.yaml", "model: {path: toy}\ntrain: {rounds: 3}\n")
    kept = tmp_path / "run.yaml.before-migrate"
    kept.mkdir() if kind == "folder" else kept.symlink_to("nowhere")
    result = run(str(path))
    assert result.exit_code == 2 and "not its text; move it" in result.output
    assert "rounds: 3" in path.read_text() and (kept.is_dir() or kept.is_symlink())


def test_a_place_that_cannot_be_written_is_one_message(
    tmp_path: Path, made_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "run.yaml", "model: {path: toy}\ntrain: {rounds: 3}\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("herl_megatron.config.migrate.os.fsync", full)
    result = run(str(path))
    assert result.exit_code == 1 and "No space left on device" in result.output
    assert f"{path} is as it was" in result.output and "rounds: 3" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_a_section_without_keys_is_said_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "model:\ntrain: {steps: 3}\n")
    assert "model is a section and must hold keys; take it out" in run(str(path)).output


def test_a_link_stays_one_and_the_mode_stays(tmp_path: Path, made_up: None) -> None:
    (tmp_path / "real").mkdir()
    real = write(tmp_path / "real" / "a.yaml", "model: {path: toy}\ntrain: {rounds: 3}\n")
    real.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    migrated(link)
    assert link.is_symlink() and "steps: 3" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "real" / "a.yaml.before-migrate").is_file()


def test_a_default_that_decides_a_result_is_written_others_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = (NewDefault(4, "optimizer.lr", 1e-5), NewDefault(4, "rollout.timeout_s", 60.0))
    monkeypatch.setattr(history, "HISTORY", History(version=4, new_defaults=changed))
    decides = {key.path: key.decides for key in keys()}
    assert decides["optimizer.lr"] == Decides.NUMBERS
    assert decides["rollout.timeout_s"] == Decides.SPEED
    path = write(tmp_path / "run.yaml", "model: {path: toy}\n")
    result = run(str(path))
    assert "rollout.timeout_s 60.0 -> 3600.0" in result.output
    assert path.read_text() == "version: 4\nmodel: {path: toy}\noptimizer:\n  lr: 1.0e-05\n"
    other = write(tmp_path / "other.yaml", "model: {path: toy}\noptimizer: {lr: 1}\n")
    assert migrated(other, "--keep-defaults") == (
        "version: 4\nmodel: {path: toy}\noptimizer: {lr: 1}\nrollout:\n  timeout_s: 60.0\n"
    )


def test_no_default_that_changed_up_to_now_decides_a_result() -> None:
    """Which is why a file without a version may be read with the defaults of today."""
    decides = {key.path: key.decides for key in keys()}
    for new in HISTORY.new_defaults:
        assert decides[new.key] in (Decides.SPEED, Decides.NOTHING), new


def test_sft_keeps_the_longest_row_that_it_had(tmp_path: Path) -> None:
    """Before, it was what a revision prompt and a response may have together."""
    text = "model: {path: toy}\nsft: {data: rows.jsonl}\ndata: {max_experience_tokens: 100}\n"
    path = write(tmp_path / "sft.yaml", text)
    assert load_config(path).sft.max_tokens == 4096  # read with the keys of today
    assert "sft: {data: rows.jsonl, max_tokens: 1124}" in migrated(path)  # 100 + 1024
    assert load_config(path).sft.max_tokens == 1124
    assert load_config(path).dpo.max_tokens == 4096  # dpo.data is empty
    train = write(tmp_path / "train.yaml", "model: {path: toy}\ndata: {train: rows.jsonl}\n")
    assert migrated(train) == train.read_text() and "max_tokens" not in train.read_text()
    assert not (tmp_path / "train.yaml.before-migrate").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\ufeffmodel: {path: toy}\nsft: {data: x}\n",
         "\ufeffversion: 2\nmodel: {path: toy}\nsft: {data: x, max_tokens: 3072}\n"),
        ("sft:\n  data: x\n  steps: 3 # no newline",
         "version: 2\nsft:\n  data: x\n  steps: 3 # no newline\n  max_tokens: 3072"),
        ("# top\nsft:\n   data: &d x\n\n   # tail of sft\ndpo:\n   data: *d\n# end\n",
         "# top\nversion: 2\nsft:\n   data: &d x\n   max_tokens: 3072\n\n   # tail of sft\n"
         "dpo:\n   data: *d\n   max_tokens: 3072\n# end\n"),
        ("sft: {data: '${other.key}'}\ndata: {max_experience_tokens: 1}\n",
         "version: 2\nsft: {data: '${other.key}', max_tokens: 1025}\n"
         "data: {max_experience_tokens: 1}\n"),
    ],
)  # fmt: skip
def test_added_keys_in_every_style(tmp_path: Path, old: str, new: str) -> None:
    assert migrated(write(tmp_path / "run.yaml", old)) == new


def test_a_limit_that_another_file_gives_is_for_a_person(tmp_path: Path) -> None:
    text = "sft: {data: x}\nrollout: {max_response_tokens: '${other.key}'}\n"
    path = write(tmp_path / "run.yaml", text)
    result = run(str(path))
    assert result.exit_code == 2 and "sft.max_tokens must be what" in result.output
    assert path.read_text() == text


def test_a_file_that_extends_another_gets_the_row_of_both(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml",
                 "model: {path: toy}\ndpo: {data: pairs.jsonl}\n"
                 "data: {max_experience_tokens: 100}\n")  # fmt: skip
    child = write(tmp_path / "child.yaml",
                  "extends: [base.yaml]\nrollout: {max_response_tokens: '${run.seed}'}\n"
                  "run: {seed: 28}\n")  # fmt: skip
    output = run("--check", str(child)).output
    assert f"it extends {base}, which is of an earlier version too" in output
    assert run(str(child), str(base)).exit_code == 0
    assert load_config(child).dpo.max_tokens == 128
    assert load_config(base).dpo.max_tokens == 1124
    assert child.read_text().startswith("version: 2\nextends: [base.yaml]\n")


def test_a_runs_own_file_of_the_first_version(tmp_path: Path) -> None:
    """Which an earlier commit wrote. That of SFT has lost its longest row until it is migrated."""
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "herl_run.json").write_text('{"made_by": "herl_megatron", "command": "sft"}')
    saved = run_folder / "config.yaml"
    shutil.copy(OLD_SFT, saved)
    with pytest.raises(ConfigError) as caught:
        load_config(saved)
    assert "sft.max_tokens is not given, and the file is of version 1" in str(caught.value)
    assert f"`herl config migrate {saved}`" in str(caught.value)
    before = yaml.safe_load(OLD_SFT.read_text())
    migrated(saved)
    after = yaml.safe_load(saved.read_text())
    assert after.pop("version") == 2 and after["sft"].pop("max_tokens") == 192 + 48
    assert after == before and load_config(saved).sft.max_tokens == 240


def test_what_may_be_a_credential_is_not_printed(tmp_path: Path, made_up: None) -> None:
    key = "sk-abcDEF0123456789abcdef"
    path = write(tmp_path / "run.yaml",
                 f"model: {{path: toy}}\njudge: {{api_key: hunter2, model: {key}}}\n"
                 "train: {rounds: 3}\n")  # fmt: skip
    output = run("--check", str(path)).output
    assert "steps: 3" in output and key not in output and "hunter2" not in output


def test_whatever_the_layout_values_and_comments_stay(tmp_path: Path, made_up: None) -> None:
    """100 files drawn at random, in mixed styles: all that was said is said, by its new name."""
    moved = {"train.rounds": "train.steps", "train.heat": "rollout.temperature"}
    done = 0
    for number in range(100):
        draw = random.Random(number)
        text, said, comments = _drawn(draw)
        path = write(tmp_path / f"{number}.yaml", text)
        plan = plan_migrations([path])[0]
        write_migration(plan)
        result = flattened(read(path.read_text()))
        assert result.pop("version", 4) == 4
        assert result == {moved.get(key, key): value for key, value in said.items()}, text
        assert all(path.read_text().count(comment) == 1 for comment in comments), text
        done += plan.before != plan.after
    assert done > 60


def _drawn(draw: random.Random) -> tuple[str, dict[str, Any], list[str]]:
    """A text, its values by dotted path and its comments."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": "toy"},
        "train": {"rounds": 3, "heat": 0.5, "eval_every": 2, "export": True},
        "rollout": {"group_size": 4, "mode": "sync", "timeout_s": 9.0},
        "judge": {"extra_body": {"a": {"b": [1, 2]}}, "model": "it's: x"},
    }
    lines: list[str] = []
    said: dict[str, Any] = {}
    comments: list[str] = []

    def note() -> str:
        comments.append(f"# c{len(comments)}.")
        return comments[-1]

    for name in draw.sample(list(sections), 4):
        values = {k: v for k, v in sections[name].items() if name == "model" or draw.random() < 0.7}
        values = dict(draw.sample(list(values.items()), len(values)))
        if not values:
            continue
        said |= flattened({name: values})
        if draw.random() < 0.3:
            lines.append(note())
        if draw.random() < 0.4:
            flow = yaml.safe_dump(values, default_flow_style=True, width=999, sort_keys=False)
            lines.append(f"{name}: {flow.strip()}")
            continue
        lines.append(f"{name}:" + (f"  {note()}" if draw.random() < 0.3 else ""))
        step = draw.choice([" ", "  ", "    "])
        for key, value in values.items():
            if draw.random() < 0.3:
                lines.append(step + note())
            dumped = yaml.safe_dump({key: value}, width=999).strip()
            end = f"  {note()}" if draw.random() < 0.3 and "\n" not in dumped else ""
            lines += [step + line for line in (dumped + end).splitlines()]
            lines += [""] * (draw.random() < 0.2)
    return "\n".join(lines) + "\n" * (draw.random() < 0.8), said, comments
