"""Which checkpoints may be deleted. Decided again from the folder each time; needs no torch."""

from collections.abc import Callable, Sequence

from seqtrack.checkpoints.store import Manifest


def checkpoints_to_delete(
    manifests: Sequence[Manifest], *, keep: int, is_safe: Callable[[Manifest], bool]
) -> list[Manifest]:
    """The checkpoints that are no longer needed, oldest first.

    Checkpoints inside an epoch are deleted as soon as a newer checkpoint exists. Of the epochs' checkpoints the newest
    `keep` stay (all of them for 0), and so does the one of the best IoU; another one is deleted only if `is_safe`.

    Args:
        manifests: of one folder, oldest first.
        keep: >= 0.
        is_safe: whether an epoch's checkpoint is verified elsewhere.
    """
    if not manifests:
        return []
    newest = manifests[-1]
    going = [item for item in manifests if item.kind == "step" and item.step < newest.step]
    epochs = [item for item in manifests if item.kind == "epoch"]
    if keep > 0 and len(epochs) > keep:
        best = max(epochs, key=lambda item: item.iou if item.iou is not None else -1.0)
        going += [item for item in epochs[:-keep] if item is not best and is_safe(item)]
    return sorted(going, key=lambda item: item.step)
