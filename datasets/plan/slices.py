"""How a global batch is dealt to the ranks."""


def rank_slice(global_batch_size: int, rank: int, world_size: int, unit: int = 1) -> range:
    """Returns the places of a global batch that `rank` takes: contiguous, in rank order, as even as whole units allow.

    A `unit` of 2 keeps the pairs that mixup blends together on one rank, so that they do not depend on the number of ranks.
    """
    num_units = global_batch_size // unit
    assert num_units * unit == global_batch_size
    start, stop = (num_units * r // world_size * unit for r in (rank, rank + 1))
    return range(start, stop)
