"""Where a checkpoint is: a path, the name of one that comes with the program, or an address on the Hub."""

import logging
import os
from pathlib import Path

from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.uploads.fetch import fetch_files

logger = logging.getLogger(__name__)

HUB = "hf://"  # in front of a place there
PUBLISHED = {path.stem: path for path in (Path(__file__).resolve().parent / "published").glob("*.safetensors")}


def find_checkpoint(place: str) -> Path:
    """The file of a path, of a published checkpoint's name, or of `hf://[datasets/]owner/name/PATH.safetensors`, which
    is downloaded into the cache folder once, with its manifest. A UserError if it is no such address, or there is no
    such file."""
    if place in PUBLISHED:  # comes with the program
        return PUBLISHED[place]
    if not place.startswith(HUB):
        try:
            file = Path(place).expanduser().absolute()
        except RuntimeError:  # no such user
            file = Path(place).absolute()
        if not file.name or "\0" in place:
            raise UserError(f"{place!r}: is no checkpoint's file", "checkpoint.missing")
        return file
    words = place.removeprefix(HUB).split("/")
    count = 3 if words[0] == "datasets" else 2
    repo, path = "/".join(words[:count]), "/".join(words[count:])
    if not path.endswith(".safetensors"):
        text = f"{place}: expected hf://owner/name/phase_1/checkpoints/SEQTRACK_ep0010.safetensors"
        raise UserError(text, "fetch.address")
    environment = read_environment({**os.environ, "HF_REPO": repo, "HF_PREFIX": "", "UPLOAD_TARGET": ""})
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seqtrack" / repo
    names = (path, path.removesuffix(".safetensors") + ".json")
    if absent := [name for name in names if not (root / name).exists()]:
        fetch_files(environment, absent, root)
    else:
        logger.info("%s was downloaded before: %s; remove it to download it again", place, root / path)
    return root / path
