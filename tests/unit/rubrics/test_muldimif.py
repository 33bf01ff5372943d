"""MulDimIF's rules: what they read from a constraint, by hand, and parity with the reference."""

from __future__ import annotations

import pytest

from herl_megatron.rubrics.checks import nltk_tools, registry
from herl_megatron.rubrics.rubric import validate_rubric
from herl_megatron.types import Criterion, CriterionResult, Rubric, Verdict
from tests.unit.rubrics.check_cases import Parity, follows, reference_rows, run

TABLE = "| Name | Price |\n|---|---|\n| Owl | 5 |\n| Fern | 7 |"
KEYS = '{"Name": "OWL", "Home": "OAK"}'

KEYWORDS = "Content/Keywords"
PUNCTUATION = "Content/Punctuation"
WORDS = "Length/Words"
MARKDOWN = "Format/Markdown"

CASES: list[tuple[str, str, str, str]] = [
    (KEYWORDS, "Must include the keyword 'oak'", "An Oak.", "Oaks."),
    (KEYWORDS, "Must include 'oak' and 'fern'", "fern, oak", "oak"),
    (KEYWORDS, "Must include 'oak' or 'fern'", "fern", "owl"),
    (KEYWORDS, "Use the keyword 'oak' at least twice", "oak, oak", "oak"),
    (KEYWORDS, "Avoid using the term 'oak'", "oaks", "an oak"),
    (KEYWORDS, "Include the keyword 'oak' and avoid the keyword 'owl'", "oak", "oak owl"),
    (KEYWORDS, 'Include """deep oak"""', "a deep oak", "oak deep"),
    (KEYWORDS, "Each entry must include the keyword 'oak'", "1. oak\n2. oak", "1. oak\n2. owl"),
    (KEYWORDS, "Each entry must include the keyword 'oak'", "- oak\n- oak", "- oak\n- owl"),
    (
        KEYWORDS,
        "Each name must include 'owl'",
        "|Name|It|\n|-|-|\n|owl|a b|",
        "|Name|It|\n|-|-|\n|a|owl|",
    ),
    (KEYWORDS, "Each value must include 'owl'", '{"a": "owl"}', '{"a": "owl", "b": "oak"}'),
    (KEYWORDS, "Must include 'oak' and must end with a period", "Oak.", "Oak"),
    (KEYWORDS, "Must include '\u732b'", "\u5927\u732b\u5728", "cat"),
    (PUNCTUATION, "The answer must end with a period.", "One! Two. ", "One. Two!"),
    (PUNCTUATION, "End with a period or a question mark", "Two?", "Two!"),
    (PUNCTUATION, "The title must not end with a period", "", "Title."),
    (PUNCTUATION, "Must not end with punctuation marks", "Title", "Title,"),
    (PUNCTUATION, "Ending punctuation must be a period followed by a `~`", "End.~", "End~"),
    (PUNCTUATION, "The paragraphs must end with a period", "A.\n\nB.", "A\nB."),
    (PUNCTUATION, "Cells must end with a period", "|A|\n|--|\n|b.|", "|A|\n|--|\n|b|"),
    (WORDS, "The answer must contain at most five words", "a b c d e", "a b c d e f"),
    (WORDS, "At least 2,500 words", "w " * 2500, "w " * 2499),
    (WORDS, "Between 2 and 3 words", "a b", "a"),
    (WORDS, "Range: 2-3 words", "a b c", "a b c d"),
    (WORDS, "It must be between twenty-one to thirty words", "w " * 21, "w " * 20),
    (WORDS, "Exactly three words", "a b c", "a b"),
    (WORDS, "Keep it within a 3-word limit", "a b c", "a b c d"),
    (WORDS, "Limit the response to 3 words", "a b c", "a b c d"),
    (WORDS, "At most 9 words and at least 2 sentences", "A b. C d!", "A b."),
    (
        WORDS,
        "At most 5 words",
        "\u732b\u732b\u732b\u732b\u732b",
        "\u732b\u732b\u732b\u732b\u732b\u3002",
    ),
    (WORDS, "Each entry must be at most two words", "- a b\n- c", "- a b c\n- d"),
    (
        WORDS,
        "Each name must have at most one words",
        "|Name|It|\n|-|-|\n|a|b c|",
        "|Name|\n|-|\n|a b|",
    ),
    (WORDS, "Each word must be at most 3 characters", "owl oak", "owls"),
    ("Length/Sentences", "At least two sentences", "A. B!", "A. B"),
    ("Length/Sentences: At most", "No more than 2 sentences", "A! B?", "A. B. C."),
    ("Length/Sentences", "Be contained in a single sentence", "A.", "A. B."),
    ("Length/Sentences", "Consist of 2 to 3 sentences", "A. B.", "A."),
    ("Length/Paragraphs", "Exactly two paragraphs", "A\n\nB\n\n", "A\nB"),
    ("Length/Paragraphs", "Between 2 and 3 paragraphs", "A\n\nB", "A"),
    ("Format/Table", "Include a table with exactly 2 rows", TABLE, TABLE + "\n| Oak | 9 |"),
    ("Format/Table", "The table must not exceed two columns", TABLE, "no table"),
    ("Table/Column limit", "A table with no more than 1 columns", "|a|\n|-|\n|b|", TABLE),
    ("Format/Table", "If a table is used, it must not exceed 1 rows", "no table", TABLE),
    (
        "Format/Table",
        "The table must have columns: Name and Price",
        TABLE,
        TABLE.replace("Name", "Who"),
    ),
    (
        "Format/Table",
        'A table with columns for "Name," "Price"',
        TABLE,
        TABLE.replace("Name", "Who"),
    ),
    ("Language/English", "Written in all uppercase letters", "OWL 1", "OWl"),
    ("Language/English", "Each word must be capitalized", "The Owl 1st", "The owl"),
    ("Language/English", "All in lowercase", "the owl", "The owl"),
    ("Language/English", "All uppercase headings", "# OWL\nrests", "# Owl\nRESTS"),
    ("Language/English", "JSON keys must be in lowercase", KEYS.lower(), KEYS),
    ("Language/English", "Table headers in all uppercase", "|A|\n|-|\n|b|", "|a|\n|-|\n|B|"),
    ("Language/English", "Written in all uppercase letters", "OWL", " "),
    ("Language/Chinese", "Must be in Simplified Chinese", "\u8fd9\u662f", "\u9019\u662f"),
    ("Language/Chinese", "Must use Traditional Chinese characters", "\u9019\u662f", "\u8fd9\u662f"),
    ("Language/Chinese", "Must use Traditional Chinese characters", "\u9019", "\u9019 a"),
    (MARKDOWN, "The answer must include a level 2 heading", "## A", "# A"),
    (MARKDOWN, "Use at least two heading levels", "# A\n### B", "# A\n# B"),
    (MARKDOWN, "Use exactly two heading levels", "# A\n## B", "# A\n## B\n### C"),
    (MARKDOWN, "Use heading levels 1 and 2", "# A\n## B\n### C", "# A\n### C"),
    (MARKDOWN, "Include a level 2 heading titled 'Old Owl'", "## Old Owl", "## old owl"),
    (MARKDOWN, "Heading levels must not exceed level 2", "# A\n## B", "### A"),
    (MARKDOWN, "It must begin with a level 1 heading", "# A\n## B", "## B\n# A"),
    (MARKDOWN, "The answer should have H2 and H3", "## A\n### B", "## A"),
    (MARKDOWN, "Each part needs a level 2 heading, as a feature", "## A\n## B", "## A\n# B"),
    (MARKDOWN, "Include headings and bullet points", "# A\n- b", "# A\nb"),
    (MARKDOWN, "Include headings and bold words", "# A\n**b**", "# A\nb"),
    ("Markdown/Block quotes", "Use at least two block quotes", "> a\n> b", "> a\nb"),
    ("Format/Json", "JSON with exactly two levels of nesting", '{"a": {"b": 1}}', '{"a": 1}'),
    ("Format/Json", "JSON of no more than 1 levels", '```json\n{"a": 1}\n```', '{"a": [1]}'),
    ("Format/Json", "JSON of at least two levels of nesting", '{"a": [1]}', "a: [1]"),
    (
        "XML/Number of attributes",
        "No more than one attribute each",
        "<a b='1'/>",
        "<a b='1' c='2'/>",
    ),
    ("Content/Identifiers", "Start identifier: begin with 'Owl:'", "# owl: x", "An owl: x"),
    ("Format/Blurb", "Written as a short blurb", "o" * 200, "o" * 201),
    ("Format/Bullet Points", "No bullet points", "a\nb", "a\n- b"),
    ("Citations/In-text", "It must include in-text citations", "So [1].", "So (1)."),
]


@pytest.mark.parametrize(("label", "text", "good", "bad"), CASES)
def test_cases(label: str, text: str, good: str, bad: str) -> None:
    assert follows(f"muldimif/{label}", good, {"text": text})
    assert not follows(f"muldimif/{label}", bad, {"text": text})


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("Each sentence must end with a period", "See Dr. Owl. Rest.", "Rest? Go."),
        ("Each bullet point ends with an exclamation mark", "- Go! Run!", "- Go. Run!"),
    ],
)
def test_ends_of_sentences_are_found_by_nltk(text: str, good: str, bad: str) -> None:
    if problem := nltk_tools.missing_data(nltk_tools.PUNKT):
        pytest.skip(problem)
    assert follows(f"muldimif/{PUNCTUATION}", good, {"text": text})
    assert not follows(f"muldimif/{PUNCTUATION}", bad, {"text": text})


@pytest.mark.parametrize(
    ("label", "text", "reason"),
    [
        (KEYWORDS, "Mention the names of the players", "no quoted keyword"),
        (KEYWORDS, "Must include the keyword 'data' in each sentence", "which elements"),
        (PUNCTUATION, "End with care", "no punctuation mark is named"),
        (WORDS, "Be concise", "no number of words"),
        (WORDS, "Each row should be between 20 to 30 words", "no number of words of each"),
        ("Length/Sentences", "At least one complete sentence", "no number of sentences"),
        ("Length/Paragraphs", "Not exceeding a total of 15 paragraphs", "no number of paragraphs"),
        ("Format/Table", "The list should not exceed 10 entries", "nothing is asked of a table"),
        ("Language/English", "Written in English", "no letter case"),
        ("Language/Chinese", "Written in Chinese", "neither simplified nor traditional"),
        (MARKDOWN, "Include a heading at level 2", "no Markdown is asked for"),
        ("Format/Json", "Use JSON", "no number of nesting levels"),
        ("Format/XML", "Use XML", "no requirement that this rule knows"),
    ],
)
def test_text_without_a_requirement_is_unverifiable_for_every_response(
    label: str, text: str, reason: str
) -> None:
    for response in ("An owl.", ""):
        result = run(f"muldimif/{label}", response, {"text": text})
        assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
        assert reason in result.reason and text[:10] in result.reason


def test_unreadable_text_is_data_and_loads_but_a_missing_text_is_refused() -> None:
    def rubric(**params: object) -> Rubric:
        return Rubric((Criterion("c", "rule", check="muldimif/Format/XML", params=params),))

    validate_rubric(rubric(text="Use XML"))
    for wrong in ({}, {"text": 3}, {"txt": "Use XML"}):
        with pytest.raises(ValueError, match=r"criterion 'c': params are .*takes: text"):
            validate_rubric(rubric(**wrong))


def test_missing_text_is_unverifiable() -> None:
    result = run(f"muldimif/{WORDS}", "An owl.", {})
    assert result.for_every_response and "text: Field required" in result.reason


def test_empty_response_is_judged_as_in_the_benchmark() -> None:
    assert follows(f"muldimif/{WORDS}", "", {"text": "At most 5 words"})
    assert not follows(f"muldimif/{WORDS}", "", {"text": "At least 5 words"})


def test_loose_judges_variants() -> None:
    text = {"text": "The answer must end with a period"}
    assert not follows(f"muldimif/{PUNCTUATION}", "An owl.\nBye", text)
    assert follows(f"muldimif/{PUNCTUATION}", "An owl.\nBye", text, "loose")


def test_description_is_the_constraint() -> None:
    criterion = Criterion(
        "c", "rule", check=f"muldimif/{WORDS}", params={"text": "At most 5 words, {so}"}
    )
    assert registry.describe(criterion) == "At most 5 words, {so}"


def test_parity_with_the_reference_verdicts() -> None:
    """At least 99 % of the comparable verdicts, prompt totals within 1.

    Measured: 3 of 37,404 differ, all of them curly quotation marks, which the reference takes for
    simplified Chinese. Left out are 1,098 verdicts on 60 constraints that hold nothing the rules
    can read; of them the reference says the same for every response.
    """
    constraints = {
        row["key"]: row["constraints"] for row in reference_rows("muldimif_items.jsonl.gz")
    }
    parity = Parity()
    for row in reference_rows("muldimif_verdicts.jsonl.gz"):
        wanted = constraints[row["key"]]
        parity.add_prompt(
            (row["key"], row["text_name"]),
            [
                (text, run(f"muldimif/{first}/{second}", row["response"], {"text": text}), expected)
                for (first, second, text), expected in zip(wanted, row["verdicts"], strict=True)
            ],
        )
    assert parity.compared >= 37_000
    assert len(parity.differences) <= 0.01 * parity.compared, parity.differences
    assert abs(parity.prompts - parity.reference_prompts) <= 1


@pytest.mark.parametrize(
    ("label", "text", "met"),
    [
        ("Format/Markdown", "Structure it with two heading levels", True),
        ("Length/Sentences", "It stays one sentence", True),
        ("Format/Table", "The list names up to five towns", True),
        ("Length/Words", "Be brief", True),
        ("Length/Words", "Each row is detailed", False),
        ("Length/Paragraphs", "Keep it to few paragraphs", False),
        ("Language/English", "Write it entirely in uppercase letters", False),
        ("Content/Keywords", "Name the key players", True),
        ("Content/Keywords", "Name the rivers or the lakes", False),
        ("Content/Keywords", "Put 'owl' in the description of each bird", False),
        ("Format/Text", "The answer must be in full sentences", True),
        ("Content/Identifiers", "Be kind", False),
        ("Json/Number of attributes", "Keep it flat", False),
    ],
)
def test_the_benchmark_has_a_verdict_where_nothing_can_be_read(
    label: str, text: str, met: bool
) -> None:
    """For numbers that compare; for training such a text is left out."""
    for response in ("An owl.", "", "# A\n\n| a |\n|---|\n| b |", '{"a": 1}'):
        assert follows(f"muldimif/{label}", response, {"text": text, "benchmark": True}) is met
        assert run(f"muldimif/{label}", response, {"text": text}).for_every_response


def test_in_benchmark_mode_no_verdict_of_the_reference_is_left_out() -> None:
    constraints = {
        row["key"]: row["constraints"] for row in reference_rows("muldimif_items.jsonl.gz")
    }
    parity = Parity()
    for row in reference_rows("muldimif_verdicts.jsonl.gz"):
        verdicts: list[tuple[str, CriterionResult | None, bool]] = []
        wanted = constraints[row["key"]]
        for (first, second, text), expected in zip(wanted, row["verdicts"], strict=True):
            params = {"text": text, "benchmark": True}
            result = run(f"muldimif/{first}/{second}", row["response"], params)
            verdicts.append((text, result, expected))
        parity.add_prompt((row["key"], row["text_name"]), verdicts)
    assert not parity.left_out and parity.compared >= 38_000
    assert len(parity.differences) <= 3, parity.differences
