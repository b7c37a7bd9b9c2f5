"""Classes drawn at random: "airplane and one other", the same other on every machine."""

import numpy as np

from seqtrack.data.lasot import class_of, official_split
from seqtrack.errors import UserError

# Apart from the streams of seqtrack.seeding: drawing classes must not share numbers with drawing samples.
_STREAM = 0xC1A55


def draw_classes(chosen: tuple[str, ...], *, count: int, seed: int) -> tuple[str, ...]:
    """The chosen classes and `count` further ones of LaSOT's 70, drawn by the seed from those not chosen.

    The lot falls among all official classes, whatever is on this disk, so that it falls the same everywhere.

    Raises:
        UserError: there are not that many classes left.
    """
    if count == 0:
        return chosen
    others = sorted({class_of(name) for name in official_split()["train"]} - set(chosen))
    if count > len(others):
        raise UserError(f"DATA.RANDOM_CLASSES is {count}, but only {len(others)} classes are left to draw from")
    generator = np.random.default_rng([_STREAM, seed])
    return (*chosen, *(others[i] for i in sorted(generator.choice(len(others), size=count, replace=False))))
