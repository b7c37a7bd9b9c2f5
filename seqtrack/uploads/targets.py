"""The registry of targets: a name, the module that knows it, and the function that opens it.

Modules are named rather than imported, because the Hub's client must not be loaded into the watching process.
"""

import importlib
from typing import Any, cast

from seqtrack.errors import UserError
from seqtrack.uploads.target import OpenTarget, Target

TARGETS: dict[str, tuple[str, str]] = {
    "huggingface": ("seqtrack.uploads.huggingface", "open_hub"),
    "folder": ("seqtrack.uploads.folder", "open_folder"),
}


def target_kind(name: str) -> str:
    """The name itself, if it is one of the registry.

    Raises:
        UserError: it is not.
    """
    if name not in TARGETS:
        raise UserError(f"UPLOAD_TARGET: there is no target {name!r:.80}; known: {', '.join(sorted(TARGETS))}")
    return name


def open_target(settings: dict[str, Any]) -> Target:
    """Open the target that `settings["kind"]` names."""
    module, function = TARGETS[target_kind(settings["kind"])]
    return cast(OpenTarget, getattr(importlib.import_module(module), function))(settings)
