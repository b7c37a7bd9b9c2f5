"""How a batch is cut into shards, which process has which shards, and the binary tree in which their sums are added.

The tree's leaves are the shards; a node (level, index) has the 2**level shards from index * 2**level on. Which process
computes a node changes nothing in it, so the sums have the same bits for any number of processes. Pure integers.
"""

Node = tuple[int, int]


def shard_range(count: int, parts: int, number: int) -> range:
    """One of `parts` contiguous parts of range(count), of equal size or the first ones with one more."""
    size, larger = divmod(count, parts)
    first = number * size + min(number, larger)
    return range(first, first + size + (number < larger))


def nodes_of(run: range) -> list[Node]:
    """The fewest nodes that together have the shards of a contiguous run, from left to right."""
    nodes, first = list[Node](), run.start
    while first < run.stop:
        level = (run.stop - first).bit_length() - 1
        if first:
            level = min(level, (first & -first).bit_length() - 1)
        nodes.append((level, first >> level))
        first += 1 << level
    return nodes


def waiting_nodes(shards: int, processes: int) -> int:
    """How many sums a process keeps at most while it computes a further shard: log2(shards) in a single process."""
    runs = [shard_range(shards, processes, rank) for rank in range(processes)]
    return max(len(nodes_of(range(run.start, shard))) for run in runs for shard in run)
