"""Rule checks, by name. Importing the package registers every check that comes with it."""

from herl_megatron.rubrics.checks import ifeval_counts, ifeval_format, text

__all__ = ["ifeval_counts", "ifeval_format", "text"]
