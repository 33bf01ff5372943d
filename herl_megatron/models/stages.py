"""Which layers each pipeline stage holds (pure).

A model is cut into `pp * vpp` chunks of consecutive layers, dealt out to the `pp` ranks in turn.
Where the layers do not divide, the chunks just before the last hold one layer more each: the last
has the output layer too, and of the others the later ones keep fewer micro-batches in memory. So 94
layers on 4 stages are 23, 24, 24, 23.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=64)  # asked for once per parameter
def chunk_sizes(num_layers: int, chunks: int) -> tuple[int, ...]:
    """Layers of each chunk, from the first to the last.

    Raises:
        ValueError: fewer layers than chunks.
    """
    if num_layers < chunks:
        raise ValueError(
            f"num_hidden_layers {num_layers} is less than pipeline_parallel * virtual_pipeline"
            f" {chunks}, and every model chunk needs a layer; use fewer stages or chunks"
        )
    size, more = divmod(num_layers, chunks)
    longer = range(chunks - 1 - more, chunks - 1)
    return tuple(size + (chunk in longer) for chunk in range(chunks))


def layers_of_rank(num_layers: int, *, rank: int, pp: int, vpp: int) -> list[tuple[int, ...]]:
    """Layers of each model chunk of pipeline rank `rank`."""
    sizes = chunk_sizes(num_layers, pp * vpp)
    starts = [sum(sizes[:chunk]) for chunk in range(rank, pp * vpp, pp)]
    return [
        tuple(range(start, start + size))
        for start, size in zip(starts, sizes[rank::pp], strict=True)
    ]


def stage_of_layer(layer: int, *, num_layers: int, pp: int, vpp: int) -> int:
    """Pipeline rank that holds a layer."""
    end = 0
    for chunk, size in enumerate(chunk_sizes(num_layers, pp * vpp)):
        end += size
        if layer < end:
            return chunk % pp
    raise AssertionError(f"there is no layer {layer} among {num_layers}")
