"""Randomness as a pure function of where we are in the run.

Nothing here keeps a state: a sample's generator is made from (seed, epoch, index) and a training step's seed from
(seed, step, rank), or (seed, step, shard). A run that was interrupted and resumed, or has another number of workers,
therefore draws the same numbers.
"""

import numpy as np

# Two streams made from the same three numbers must not meet: the first word of the entropy separates them.
_SAMPLE_STREAM = 0x5A3B1E
_STEP_STREAM = 0x57E9
_PROCESS_STREAM = 0x9C0C


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The private generator of one training sample.

    Args:
        seed, epoch, index: non-negative, else ValueError; `index` counts samples of the whole epoch over all ranks, so
            the number of ranks and workers does not enter.
    """
    sequence = np.random.SeedSequence([_SAMPLE_STREAM, seed, epoch, index])
    return np.random.Generator(np.random.PCG64(sequence))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed for dropout and drop path of one optimizer step on one rank, or of one shard, in [0, 2**63).

    Seeding again before each step means that nothing that happened between two steps can shift what they draw.

    Args:
        seed, step, rank: non-negative, else ValueError; `step` counts optimizer steps of the whole run.
    """
    return _word(np.random.SeedSequence([_STEP_STREAM, seed, step, rank]))


def process_seed(seed: int, rank: int) -> int:
    """Seed for the global generators of a process that starts a run, in [0, 2**63).

    Training draws from none of them, but their states are saved, and two runs of one seed must save the same.
    """
    return _word(np.random.SeedSequence([_PROCESS_STREAM, seed, rank]))


def _word(sequence: np.random.SeedSequence) -> int:
    high, low = sequence.generate_state(2, np.uint32)
    return ((int(high) << 32) | int(low)) & 0x7FFF_FFFF_FFFF_FFFF
