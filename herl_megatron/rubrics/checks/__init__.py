"""Rule checks, by name. Importing the package registers every check that comes with it."""

from herl_megatron.rubrics.checks import (
    final_answers,
    ifbench_counts,
    ifbench_custom,
    ifbench_format,
    ifbench_words,
    ifeval_counts,
    ifeval_format,
    muldimif,
    text,
)

__all__ = [
    "final_answers",
    "ifbench_counts",
    "ifbench_custom",
    "ifbench_format",
    "ifbench_words",
    "ifeval_counts",
    "ifeval_format",
    "muldimif",
    "text",
]
