"""Shards of a batch, and the tree over them."""

import numpy as np
import pytest

from seqtrack.shards import nodes_of, shard_range, waiting_nodes


@pytest.mark.parametrize("parts", [1, 3, 4, 8])
def test_the_parts_are_numpys(parts: int) -> None:
    for count in range(20):
        expected = [one.tolist() for one in np.array_split(np.arange(count), parts)]
        assert [list(shard_range(count, parts, number)) for number in range(parts)] == expected


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16, 64])
def test_every_process_sends_the_fewest_whole_nodes_and_keeps_at_most_log2_of_them(shards: int) -> None:
    for processes in range(1, shards + 1):
        runs = [shard_range(shards, processes, rank) for rank in range(processes)]
        for run in runs:
            nodes = nodes_of(run)
            covered = [shard for level, index in nodes for shard in range(index << level, (index + 1) << level)]
            assert covered == list(run)
            siblings = {(level, index ^ 1) for level, index in nodes}
            assert not siblings & set(nodes), "two halves of a node are one node"
        assert waiting_nodes(shards, processes) <= shards.bit_length() - 1
