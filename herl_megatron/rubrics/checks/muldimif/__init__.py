"""MulDimIF's rules: each reads its requirement from the constraint's text (`params.text`).

A text that holds no requirement its rule understands is data of the benchmark, not a mistake in the
row: it loads, and the criterion is unverifiable for every response; the benchmark calls such
constraints always met or never met.
An empty response is judged like any other, as the benchmark does.
"""

from herl_megatron.rubrics.checks.muldimif import checks

__all__ = ["checks"]
