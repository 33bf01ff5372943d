"""What a run will need of each rank, before it is launched."""

import warnings

# A plan counts the bytes of Megatron-Core's modules and computes nothing with them: which fast
# kernels are missing on the machine that plans, and what it thinks of fields that keep their
# defaults or of the layouts that are tried, is nothing to its reader.
for _message in (
    r"(Transformer Engine and )?Apex (is|are) not installed",
    r"full scope is deprecated",
    r"`sequence_parallel` is set to `True`, but tensor model parallel size is 1",
):
    warnings.filterwarnings("ignore", message=_message, module=r"megatron\.core")
