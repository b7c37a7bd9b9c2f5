"""The allocator's settings of docker/entrypoint, for benchmarks that are started without it."""

import os
import sys

# Freed activations are kept and reused. Otherwise each step requests about 140,000 new pages, which takes 0.2 to 3 s.
# The last one is torch's own: large tensors start on pages of 2 MiB, which avoids fragmentation.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def start_again_with_the_allocator_set() -> None:
    """Restart this process, because glibc reads its settings once. Variables that are set are kept."""
    if not set(ALLOCATOR) <= set(os.environ) and "LD_PRELOAD" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ALLOCATOR, **os.environ})
