"""The installed packages."""

import re
import sys
from importlib import metadata
from pathlib import Path


def installed_packages() -> dict[str, str]:
    """Versions by normalised name. Not the copies that setuptools carries, and puts on the path once it is imported."""
    places = [place for place in sys.path if Path(place).name != "_vendor"]
    found = metadata.distributions(path=places)
    return {re.sub("[-_.]+", "-", one.name).lower(): one.version for one in found}
