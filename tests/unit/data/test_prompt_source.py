"""Prompt files: what is read, what is refused and how, and the resumable order."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herl_megatron.data import canonical_rows
from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.prompt_source import (
    PromptStream,
    SftRow,
    check_no_leakage,
    load_prompt_files,
    load_prompts,
    load_sft_rows,
)
from herl_megatron.data.sources import plain
from herl_megatron.types import Criterion, Message, Prompt, Rubric

COMMA = {"id": "c1", "kind": "rule", "check": "ifeval/punctuation:no_comma"}
WORDS: dict[str, Any] = {
    "id": "c2",
    "kind": "rule",
    "check": "ifeval/length_constraints:number_words",
    "params": {"num_words": 3, "relation": "at least"},
    "weight": 2,
    "description": "Three words.",
}


def row(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": "a",
        "messages": [{"role": "user", "content": "Write."}],
        "rubric": {"criteria": [COMMA, WORDS]},
    }
    return {key: value for key, value in (fields | changes).items() if value != "absent"}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return str(path)


EXPECTED = Prompt(
    id="a",
    messages=(Message("user", "Write."),),
    rubric=Rubric(
        (
            Criterion("c1", "rule", check="ifeval/punctuation:no_comma"),
            Criterion(
                "c2",
                "rule",
                check="ifeval/length_constraints:number_words",
                params={"num_words": 3, "relation": "at least"},
                description="Three words.",
                weight=2.0,
            ),
        )
    ),
)


def test_row_becomes_the_prompt_it_says_and_back(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(), "\n", row(id="b", reference_answer="x"))
    first, second = load_prompts(path)
    assert first == EXPECTED
    assert (second.id, second.reference_answer) == ("b", "x")
    again = write(tmp_path / "again.jsonl", row_from_prompt(first), row_from_prompt(second))
    assert load_prompts(again) == [first, second]


def test_parquet_gives_the_same_prompts_although_it_fills_keys_with_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row(source="s"), row(id="b", source=None)]), path)
    first, second = load_prompts(str(path))
    assert first.rubric == EXPECTED.rubric and first.source == "s"
    assert second.id == "b" and second.source == ""


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"id": "b",\n', "not JSON .*one JSON object"),
        ("[1]\n", r"row must be an object with named keys, not \[1\]"),
        (row(id="absent"), "the key 'id' is missing or null"),
        (row(id=" "), "id is empty"),
        (row(id=7), "id must be a string, not 7"),
        (row(messages="absent"), "the key 'messages' is missing"),
        (
            '{"prompt": "x", "answer": "y"}\n',
            "has 'prompt' and no 'messages'; `herl data plain .* it needs criteria too",
        ),
        (
            '{"question": "x", "criteria": ["It is short."]}\n',
            "has 'question' and no 'messages'; `herl data plain [^;]* into rows to train on$",
        ),
        (row(messages=[]), "messages is empty"),
        (row(messages=[{"role": "usr", "content": "x"}]), r"messages\[0\]\.role is 'usr'; use one"),
        (row(messages=[{"role": "user", "content": ""}]), r"messages\[0\]\.content is empty"),
        (row(messages=[{"role": "assistant", "content": "x"}]), "ends with the user's turn"),
        (row(rubrics={}), "unknown key 'rubrics'; did you mean 'rubric'"),
        (row(rubric={"criteria": []}), "the rubric has no criteria"),
        (row(rubric={"criteria": [COMMA, COMMA]}), "two criteria have the id 'c1'"),
        (
            row(rubric={"criteria": [COMMA | {"chek": "x"}]}),
            r"rubric\.criteria\[0\]: unknown key 'chek'; did you mean 'check'",
        ),
        (
            row(rubric={"criteria": [COMMA | {"check": "ifeval/startend:quotations"}]}),
            "unknown check 'ifeval/startend:quotations'; did you mean 'ifeval/startend:quotation'",
        ),
        (
            row(rubric={"criteria": [COMMA, WORDS | {"params": {"num_word": 3}}]}),
            "criterion 'c2': params are {'num_word': 3}; num_words: Field required; "
            ".*number_words takes: num_words, relation; correct them",
        ),
        (row(rubric={"criteria": [COMMA, WORDS | {"params": {}}]}), "num_words: Field required"),
        (
            row(rubric={"criteria": [WORDS | {"params": WORDS["params"] | {"num_words": "many"}}]}),
            "num_words: Input should be a valid integer.*, not 'many'",
        ),
        (
            row(rubric={"criteria": [WORDS | {"params": "many"}]}),
            r"criteria\[0\]\.params must be an object with named keys, not 'many'",
        ),
        (row(rubric={"criteria": [{"id": "c", "kind": "rule"}]}), "the key 'check' is missing"),
        (
            row(rubric={"criteria": [COMMA | {"weight": 0}]}),
            "weight is 0, it must be finite and above 0",
        ),
        (row(rubric={"criteria": [COMMA | {"weight": "1"}]}), "weight is '1'; it must be a number"),
        (
            row(rubric={"criteria": [COMMA | {"weight": 10**399}]}),
            r"criteria\[0\]\.weight is a whole number of 1326 bits",
        ),
        (
            row(rubric={"criteria": [COMMA | {"weight": 1e308}, WORDS | {"weight": 1e308}]}),
            "weights add up to more than a number holds",
        ),
        (row(rubric={"criteria": [COMMA | {"polarity": "bad"}]}), "polarity is 'bad'; use one of"),
        (row(rubric={"criteria": [COMMA], "aggregation": "sum"}), "aggregation is 'sum'; use one"),
        (
            row(rubric={"criteria": [{"id": "j", "kind": "judge", "description": " "}]}),
            "criterion 'j': .*description",
        ),
        (row(), "the id 'a' is already used in line 1"),
    ],
)
def test_wrong_rows_are_refused_with_file_and_line(tmp_path: Path, bad: Any, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", row(), "\n", bad)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:3: .*{message}"):
        load_prompts(path)


def test_absent_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: there is no such file"):
        load_prompts(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file has no rows"):
        load_prompts(write(tmp_path / "empty.jsonl", "\n"))


def test_several_files_are_one_set_with_ids_of_their_own(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", row(), row(id="b"))
    two = write(tmp_path / "two.jsonl", row(id="c"))
    assert [prompt.id for prompt in load_prompt_files([two, one])] == ["c", "a", "b"]
    assert load_prompt_files([]) == []
    again = write(tmp_path / "again.jsonl", row(id="c"), row(id="b"))
    said = r"again\.jsonl: the id 'b' is already used in .*one\.jsonl; .*leave one"
    with pytest.raises(ValueError, match=said):
        load_prompt_files([one, again])


def test_sft_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    path = write(tmp_path / "sft.jsonl", {"messages": turns})
    messages = (Message("user", "Hi"), Message("assistant", "Ho"))
    assert load_sft_rows(path) == [SftRow(f"{path}:1", messages)]
    bad = write(tmp_path / "bad.jsonl", {"messages": turns}, {"messages": turns[:1]})
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: .*the roles are user"):
        load_sft_rows(bad)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(str(i), EXPECTED.messages, EXPECTED.rubric) for i in range(count)]


def ids(batch: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in batch]


def asking(name: str, text: str) -> Prompt:
    return Prompt(name, (Message("user", text),), EXPECTED.rubric)


def test_held_out_rows_that_are_trained_on_are_refused_with_their_ids() -> None:
    train = [asking("t1", "Owls?"), asking("t2", "Ferns?")]
    check_no_leakage(train, [asking("h1", "owls?"), asking("h2", "Oaks?")])
    check_no_leakage(train, [])
    check_no_leakage([], train)
    held_out = [asking("h1", "Owls?"), asking("t2", "Oaks?"), asking("h3", "Oaks?")]
    message = (
        r"^2 of 3 rows of data\.eval are also in data\.train: 'h1' \(messages of 't1'\), "
        r"'t2' \(same id\); drop them"
    )
    with pytest.raises(ValueError, match=message):
        check_no_leakage(train, held_out)
    many = [asking(str(i), "Owls?") for i in range(7)]
    with pytest.raises(ValueError, match=r"^7 of 7 .*'4' \(messages of 't1'\) and 2 more; drop"):
        check_no_leakage(train, many)


def test_stream_in_file_order_starts_over_without_a_prompt_twice_in_a_batch() -> None:
    stream = PromptStream(prompts(5), seed=0, shuffle=False)
    assert ids(stream.next_batch(3)) == ["0", "1", "2"]
    # 3 and 4 end the first epoch; in the second they come last, as they are in this batch.
    assert ids(stream.next_batch(3)) == ["3", "4", "0"]
    assert stream.epoch == 1
    assert ids(stream.next_batch(4)) == ["1", "2", "3", "4"]
    assert stream.epoch == 2


def test_shuffled_stream_sees_every_prompt_once_per_epoch_in_new_orders() -> None:
    stream = PromptStream(prompts(12), seed=3, shuffle=True)
    epochs = [sum((ids(stream.next_batch(4)) for _ in range(3)), []) for _ in range(3)]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(12)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    same = PromptStream(prompts(12), seed=3, shuffle=True)
    assert ids(same.next_batch(12)) == epochs[0]
    other = PromptStream(prompts(12), seed=4, shuffle=True)
    assert ids(other.next_batch(12)) != epochs[0]


def test_batches_across_epochs_hold_no_prompt_twice_and_lose_none() -> None:
    stream = PromptStream(prompts(7), seed=1, shuffle=True)
    batches = [ids(stream.next_batch(5)) for _ in range(14)]  # 70 draws: ten epochs
    assert all(len(set(batch)) == 5 for batch in batches)
    assert set(Counter(sum(batches, [])).values()) == {10}


def test_resumed_stream_continues_exactly() -> None:
    whole = PromptStream(prompts(7), seed=1, shuffle=True)
    for _ in range(4):
        whole.next_batch(5)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = PromptStream(prompts(7), seed=1, shuffle=True)
    resumed.load_state_dict(state)
    for _ in range(5):
        assert ids(whole.next_batch(5)) == ids(resumed.next_batch(5))


def test_resume_with_other_data_or_seed_is_refused() -> None:
    state = PromptStream(prompts(7), seed=1, shuffle=True).state_dict()
    with pytest.raises(ValueError, match="seed was 1 and is now 2"):
        PromptStream(prompts(7), seed=2, shuffle=True).load_state_dict(state)
    with pytest.raises(ValueError, match="prompts was '7 rows .* is now '6 rows"):
        PromptStream(prompts(6), seed=1, shuffle=True).load_state_dict(state)


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 8 prompts .* only 7"):
        PromptStream(prompts(7), seed=1, shuffle=True).next_batch(8)
    with pytest.raises(ValueError, match="no prompts"):
        PromptStream([], seed=0, shuffle=True)


@pytest.mark.parametrize("text", ['{"id": ' + "9" * 5_000 + "}", "[" * 20_000])
def test_json_that_python_will_not_read_has_file_and_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n" + text + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        load_prompts(str(path))


HALF = "half \ud83d"


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (row(messages=[{"role": "user", "content": HALF}]), r"messages\[0\]\.content"),
        (row(id=HALF), "id"),
        (row(source=HALF), "source"),
        (row(reference_answer=HALF), "reference_answer"),
        (row(extra={"a": ["", {"b": HALF}]}), r"extra\.a\[1\]\.b"),
        (row(rubric={"criteria": [COMMA | {"description": HALF}]}), r"rubric\.criteria\[0\]\.d"),
        (
            row(rubric={"criteria": [COMMA | {"check": "ifeval/keywords:existence",
                                              "params": {"keywords": ["a", HALF]}}]}),
            r"rubric\.criteria\[0\]\.params\.keywords\[1\]",
        ),
    ],
)  # fmt: skip
def test_half_a_character_ends_no_run_at_the_step_that_draws_it(
    tmp_path: Path, bad: Any, place: str
) -> None:
    path = write(tmp_path / "rows.jsonl", row(id="b"), bad)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: {place}\w* holds half a character"):
        load_prompts(path)


def test_a_key_given_twice_is_not_the_last_one(tmp_path: Path) -> None:
    text = json.dumps(row()).replace('"role": "user"', '"role": "system", "role": "user"')
    path = write(tmp_path / "rows.jsonl", text + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the key 'role' is given twice"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (gzip.compress(b"{}", mtime=0), ": the file is compressed by gzip; unpack it"),
        ("{}".encode("utf-16"), ": the file is in UTF-16"),
        (b"PAR1\x15\x04", ": the file is a Parquet file; give it a name that ends in .parquet"),
        (b'{"id": "\xe9"}', r":1: not UTF-8 \(byte 0xe9 behind 8 characters\); write the file in"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, begin: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(begin + b"\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl{said}"):
        load_prompts(str(path))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(row()) + "\n", encoding="utf-8")
    assert load_prompts(str(path)) == [EXPECTED]


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row()]), path)
    whole = path.read_bytes()
    for broken in (b"", whole[:-100], b"PAR1" + b"\0" * 60, whole[:4] + b"\xff" * 60 + whole[64:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"rows\.parquet(:1)?: no Parquet that can be read"):
            load_prompts(str(path))


def test_the_keys_of_plain_rows_are_those_that_the_command_takes() -> None:
    assert canonical_rows._PLAIN_PROMPTS == tuple(
        name for name in plain.PROMPTS if name != "messages"
    )
    assert canonical_rows._PLAIN_RUBRICS == plain.RUBRICS
