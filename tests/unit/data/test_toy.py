"""The toy task: its mix, its answers, its tokenizer and model folder."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompt_source import check_no_leakage, load_prompts, load_sft_rows
from herl_megatron.data.toy import (
    EASY,
    HARD,
    WarmStart,
    draw_prompt,
    draw_sft_rows,
    satisfied_criteria,
)
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.data.toy_text import draw_content
from herl_megatron.hindsight.revision_prompts import DRAFT_HEADING, FIX_HEADING, KEEP_HEADING
from herl_megatron.rubrics.checks.registry import run_check
from herl_megatron.rubrics.rubric import validate_rubric
from herl_megatron.types import Criterion, Verdict
from tests.limits import HANG_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    write_toy_task(path, seed=3, train_prompts=512, heldout_prompts=128, sft_rows=200)
    return path


def test_a_perfect_answer_exists_for_every_prompt() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        toy = draw_prompt(rng)
        prompt = toy.to_prompt("p")
        validate_rubric(prompt.rubric)
        answer = toy.answer(draw_content(rng), {wish.kind for wish in toy.wishes})
        missed = {c.id for c in prompt.rubric.criteria} - satisfied_criteria(prompt, answer)
        assert not missed, (prompt.messages[0].content, answer, missed)


def test_mix_of_requirements() -> None:
    """Shares measured on the prototype: 2.8 requirements per prompt, 0.87 of them hard."""
    rng = random.Random(11)
    toys = [draw_prompt(rng) for _ in range(4000)]
    kinds = Counter(wish.kind for toy in toys for wish in toy.wishes)
    assert kinds.total() / 4000 == pytest.approx(2.8, abs=0.1)
    assert sum(kinds[kind] for kind in HARD) / 4000 == pytest.approx(0.87, abs=0.06)
    assert kinds["forbid"] / 4000 == pytest.approx(0.40, abs=0.04)
    assert kinds["quote"] / 4000 == pytest.approx(0.27, abs=0.04)
    assert kinds["bullets"] / 4000 == pytest.approx(0.03, abs=0.02)
    assert all(any(wish.kind in EASY for wish in toy.wishes) for toy in toys)


def known_criteria() -> dict[str, Criterion]:
    """Every criterion that toy prompts use, by its wording."""
    rng = random.Random(13)
    drawn = (draw_prompt(rng).to_prompt("p").rubric.criteria for _ in range(5000))
    return {criterion.description: criterion for criteria in drawn for criterion in criteria}


def follows(criterion: Criterion, answer: str) -> bool:
    return run_check(criterion, answer).verdict is Verdict.FOLLOWED


def test_direct_rows_honour_easy_often_and_hard_never() -> None:
    known = known_criteria()
    hard_words = ("capital letters", "quotation", "bullet", "title", "postscript", "[", "stars")
    rows = draw_sft_rows(random.Random(5), exclude=(), settings=WarmStart(easy=0.6, hard=0.0))
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    for prompt, answer in itertools.islice(rows, 0, 2000, 2):
        for words, criterion in known.items():
            if words in prompt.content:
                is_hard = any(word in words for word in (*hard_words, "placeholder"))
                verdicts[is_hard].append(follows(criterion, answer.content))
    assert len(verdicts[True]) > 700 and not any(verdicts[True])
    # 0.6 asked for; a neutral answer happens to follow some of the rest (no comma, few words).
    assert 0.6 < sum(verdicts[False]) / len(verdicts[False]) < 0.85


def test_revision_rows_name_the_drafts_verdicts_and_fix_what_was_missed() -> None:
    known = known_criteria()
    rows = draw_sft_rows(random.Random(5), exclude=(), settings=WarmStart(fixed=1.0))
    for request, answer in itertools.islice(rows, 1, 600, 2):
        instruction, rest = request.content.split(f"\n\n{DRAFT_HEADING}\n")
        draft, missed = rest.split(f"\n\n{FIX_HEADING}\n")
        draft = draft.split(f"\n\n{KEEP_HEADING}\n")[0]
        asked = [c for words, c in known.items() if words in instruction]
        assert 2 <= len(asked) <= 4
        for criterion in asked:
            assert follows(criterion, draft) != (criterion.description in missed)
            assert follows(criterion, answer.content), (request.content, answer.content)


def test_files_are_canonical_and_held_out_prompts_stay_out(folder: Path) -> None:
    train = load_prompts(str(folder / "train.jsonl"))
    heldout = load_prompts(str(folder / "heldout.jsonl"))
    sft = [row.messages for row in load_sft_rows(str(folder / "sft.jsonl"))]
    assert (len(train), len(heldout), len(sft)) == (512, 128, 200)
    unseen = {prompt.messages[0].content for prompt in heldout}
    seen = {prompt.messages[0].content for prompt in train}
    assert len(unseen) == 128 and len(seen) == 512 and not unseen & seen
    check_no_leakage(train, heldout)
    assert not any(messages[0].content.split("\n")[0] in unseen for messages in sft)


def test_another_process_writes_the_same_bytes_and_another_seed_does_not(
    folder: Path, tmp_path: Path
) -> None:
    tool = Path(__file__).parents[3] / "tools" / "make_toy_task.py"
    again = tmp_path / "again"
    command = [sys.executable, str(tool), "--out", str(again), "--seed", "3", "--sft-rows", "200"]
    environment = os.environ | {"PYTHONPATH": str(tool.parents[1]), "PYTHONHASHSEED": "9"}
    again.mkdir()
    (again / "train.jsonl").write_text("mine")
    refused = subprocess.run(
        command, env=environment, timeout=HANG_S, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "already has train.jsonl" in refused.stderr
    assert digests(again) == {"train.jsonl": hashlib.sha256(b"mine").hexdigest()}
    subprocess.run([*command, "--overwrite"], check=True, env=environment, timeout=HANG_S)
    assert digests(again) == digests(folder)
    other = tmp_path / "other"
    write_toy_task(other, seed=4, train_prompts=512, heldout_prompts=128, sft_rows=200)
    written = digests(folder)
    changed = {name for name, digest in digests(other).items() if written[name] != digest}
    assert changed == {"train.jsonl", "heldout.jsonl", "sft.jsonl", "model/model.safetensors"}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tokenizer_is_lossless_and_gives_toy_words_one_token(folder: Path) -> None:
    tokenizer = ChatTokenizer(str(folder / "model"))
    for text in (
        "The old owl rests.",
        '<<THE "wide" hall>>\n* a\tb',
        "caf\u00e9 \U0001f989 zx81",
        "",
    ):
        assert tokenizer.decode(tokenizer.plain_ids(text)) == text
    assert len(tokenizer.plain_ids("The old owl rests near the oak.")) == 8
    context, response = tokenizer.training_ids(load_sft_rows(str(folder / "sft.jsonl"))[0].messages)
    assert len(context) < 64 and len(response) < 48


def test_automatic_tokenizer_reads_what_the_file_says(folder: Path) -> None:
    """`transformers` rebuilds Qwen2 tokenizers; a foreign pre-tokenizer would be ignored there."""
    rebuilt = AutoTokenizer.from_pretrained(folder / "model")
    written = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    for messages in (row.messages for row in load_sft_rows(str(folder / "sft.jsonl"))):
        for message in messages:
            assert rebuilt.encode(message.content) == written.encode(message.content).ids


def test_model_folder_loads_as_a_small_qwen2(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = ChatTokenizer(str(folder / "model"))
    assert model.config.model_type == "qwen2" and model.config.tie_word_embeddings
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.end_token_ids[0]
    embedding = model.get_input_embeddings().weight
    assert embedding.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert embedding.std().item() == pytest.approx(0.08, rel=0.02)
    # Embedding, then per layer: q, o, k, v with biases on q, k, v; three MLP matrices; two norms.
    layer = 2 * 128 * 128 + 2 * 128 * 64 + (128 + 64 + 64) + 3 * 128 * 320 + 2 * 128
    expected = tokenizer.vocab_size * 128 + 3 * layer + 128
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
