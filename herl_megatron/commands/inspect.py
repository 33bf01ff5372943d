"""Browse rollouts in the terminal: drafts with verdicts, what revisions changed, replays.

    herl inspect runs/quickstart/herl                  the newest step
    herl inspect runs/quickstart/herl --step 10 --accepted
    herl inspect FILE.jsonl --prompt toy-train-0098 | less -R

Green `+` means met, red `-` missed, `?` not judged. Lines are plain text when piped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from herl_megatron.files.os_errors import absent, explain
from herl_megatron.report.records import Record, read_records
from herl_megatron.report.rollouts import CriterionNames, changes
from herl_megatron.report.runs import read_run

_STOPPED = "the run stopped before the join"
_STYLES = {"added": "green", "removed": "red strike", "same": ""}
# A pipe shows no colours, so what changed is bracketed as well: {+added+} and [-removed-].
_BRACKETS = {"added": ("{+", "+}"), "removed": ("[-", "-]"), "same": ("", "")}


def files_of(path: Path, step: int | None) -> list[Path]:
    """The rollout files to look at: a file itself; of a run, one step's, else the newest.

    Raises:
        ValueError: neither a rollout file nor a run with rollouts, or no such step.
    """
    if not absent(path, "file"):
        return [path]
    if absent(path, "folder"):
        raise ValueError(f"no such file or run: {path}")
    found = sorted((path / "rollouts").glob("*.jsonl"))
    if not found:
        raise ValueError(f"{path} holds no rollouts; was it run with train.log_rollouts=true?")
    steps = [file for file in found if file.stem.startswith("step_")]
    if step is None:
        return [(steps or found)[-1]]
    wanted = [file for file in found if file.stem.endswith(f"_{step:06d}")]
    if not wanted:
        have = f"{steps[0].stem} to {steps[-1].stem}" if steps else found[-1].stem
        raise ValueError(f"{path} has no rollouts of step {step}, it has {have}")
    return wanted


def matches(record: Record, options: argparse.Namespace) -> bool:
    """Whether the group is asked for.

    --failed: no rollout meets the whole rubric. --accepted: a revision or a replay joined training.
    """
    if options.prompt and record["prompt_id"] != options.prompt:
        return False
    if options.failed and any(r["satisfied"] and not r["unmet"] for r in record["rollouts"]):
        return False
    revised = any(r.get("accepted") for r in record.get("revisions", ()))
    return not options.accepted or revised or any(r.get("row") for r in record.get("replays", ()))


def names_for(path: Path) -> CriterionNames:
    """Texts of criteria; of a file inside a run, also from the rows that the run was given."""
    folder = path.parent.parent if path.is_file() else path
    try:
        run = read_run(folder)
    except ValueError:
        return CriterionNames(())
    return CriterionNames.of(run)


def show_group(record: Record, names: CriterionNames, *, where: str, plain: bool) -> Panel:
    """One group: prompt, every rollout, then each revision against its draft."""
    criteria = names.text(record)
    parts: list[Text] = []
    for message in record["messages"]:
        parts.append(Text(f"{message['role']}: {message['content']}\n", style="bold"))
    for rollout in record["rollouts"]:
        row = rollout.get("row")
        fate = _advantage(row) if row else ""
        fate = ", gave way" if "row" in rollout and row is None else fate
        parts.append(Text(f"rollout {rollout['index']}: {_reward(rollout)}{fate}", style="cyan"))
        parts.append(_said(rollout))
        parts.append(_verdicts(rollout, criteria))
    for revision in record.get("revisions", ()):
        draft = record["rollouts"][revision["parent"]]
        fate = _fate(revision)
        title = f"revision of rollout {draft['index']}: {_reward(draft)} -> {_reward(revision)}"
        parts.append(Text(f"{title}, {fate}", style="magenta"))
        parts.append(_changed(draft["text"], revision["text"], plain=plain))
        parts.append(_verdicts(revision, criteria))
    for replay in record.get("replays", ()):
        title = f"replay of rollout {replay['of']} as a success: {_replayed(replay)}"
        parts.append(Text(title, style="magenta"))
        parts.append(Text(f"{replay['prompt']}\n"))
    return Panel(Group(*parts), title=Text(f"{where}  {record['prompt_id']}"), title_align="left")


def visible(value: Any) -> Any:
    """The value with control characters spelled out, so that no text commands the terminal."""
    if isinstance(value, str):
        kept = (c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in value)
        return "".join(kept)
    if isinstance(value, list):
        return [visible(item) for item in value]
    if isinstance(value, dict):
        return {key: visible(item) for key, item in value.items()}
    return value


def _said(rollout: Mapping[str, Any]) -> Text:
    """The answer; of several turns all of them, and what was said between."""
    turns = rollout.get("turns", ())
    if not turns:
        return Text(rollout["text"])
    lines = (Text(turn["text"], style="" if turn["drawn"] else "dim") for turn in turns)
    return Text("\n").join(lines)


def _changed(draft: str, revision: str, *, plain: bool) -> Text:
    text = Text()
    for kind, words in changes(draft, revision):
        before, after = _BRACKETS[kind] if plain else ("", "")
        core = words.rstrip()
        text.append(f"{before}{core}{after}", style=_STYLES[kind])
        text.append(words[len(core) :])
    return text


def _verdicts(response: Mapping[str, Any], criteria: Mapping[str, str]) -> Text:
    text = Text()
    known = [*criteria, *(v["criterion"] for v in response["verdicts"])]
    reasons = {v["criterion"]: v["reason"] for v in response["verdicts"]}
    for criterion in dict.fromkeys(known):
        met, missed = criterion in response["satisfied"], criterion in response["unmet"]
        mark, style = ("+", "green") if met else ("-", "red") if missed else ("?", "yellow")
        reason = f" ({reasons[criterion]})" if reasons.get(criterion) else ""
        text.append(f"  {mark} {criteria.get(criterion, criterion)}{reason}\n", style=style)
    if response["unscored"]:
        text.append(f"  unscored: {response['unscored']}\n", style="yellow")
    return text


def _reward(response: Mapping[str, Any]) -> str:
    return "no reward" if response["reward"] is None else f"reward {response['reward']:.3g}"


def _advantage(row: Mapping[str, Any]) -> str:
    return f", advantage {row['advantage']:+.2f}"


def _replayed(replay: Mapping[str, Any]) -> str:
    if "row" not in replay:
        return _STOPPED
    row = replay["row"]
    return f"reward {row['reward']:.3g}{_advantage(row)}" if row else "did not join"


def _fate(revision: Mapping[str, Any]) -> str:
    if "accepted" not in revision:
        return _STOPPED
    if not revision["accepted"]:
        return "did not join"
    replaced = revision["replaces"]
    return "joined" if replaced is None else f"joined in place of rollout {replaced}"


def find(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """The asked groups with the name of their file, in order."""
    for file in files_of(options.path, options.step):
        for record in read_records(file):
            if matches(record, options):
                yield file.stem, visible(record)


def browse(options: argparse.Namespace, console: Console) -> int:
    """Print up to `--count` groups; returns how many were printed."""
    names = names_for(options.path)
    shown = 0
    for where, record in find(options):
        if shown == options.count:
            console.print(f"there are more: --count {options.count * 2}", style="dim")
            break
        panel = show_group(record, names, where=where, plain=not console.is_terminal)
        console.print(panel, highlight=False)
        shown += 1
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 shown, 1 nothing matches, 2 no such file, run or step."""
    parser = argparse.ArgumentParser(prog="herl inspect", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a run's folder or a rollouts/*.jsonl")
    parser.add_argument("--step", type=int, help="of a run; the newest by default")
    parser.add_argument("--prompt", default="", help="only this prompt id")
    parser.add_argument("--failed", action="store_true", help="no rollout met everything")
    parser.add_argument(
        "--accepted", action="store_true", help="a revision or replay joined training"
    )
    parser.add_argument("--count", type=int, default=3, help="groups to show")
    options = parser.parse_args(arguments)
    try:
        shown = browse(options, Console())
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: {explain(error, elsewhere='name another file or run')}\n")
    if not shown:
        parser.exit(1, f"no group in {options.path} matches\n")
    return 0
