"""Put the data of a run into the data folder: draw the demo, download missing classes of LaSOT."""

import logging
from collections.abc import Mapping

from seqtrack.config.environment import configure
from seqtrack.data.demo import ensure_demo
from seqtrack.data.lasot import draw_classes, find_layout
from seqtrack.data.sources import open_source
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)


def prepare_data(environ: Mapping[str, str]) -> list[str]:
    """Draw or download what a run needs and the data folder lacks; other data sets must be there.

    Returns:
        a line per data set.

    Raises:
        UserError: invalid settings, no named class, a class that cannot be downloaded, a data set missing or damaged.
    """
    environment, config = configure(environ)
    data_dir, lines = environment.data_dir, []
    for name in (one.upper() for one in config.DATA.TRAIN.DATASETS_NAME):
        if name == "DEMO":
            lines.append(f"{ensure_demo(data_dir)}: the demo data set (synthetic) is complete")
        elif name == "LASOT":
            chosen = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
            try:
                existing = find_layout(data_dir).classes
            except UserError as error:
                if not chosen:
                    text = "CLASSES: name those to download, such as book,coin; all 70 together are 248 GB"
                    raise UserError([*error.problems, Problem(text, "data.no_classes")]) from error
                existing = []
            if missing := tuple(one for one in chosen if one not in existing):
                from seqtrack.data.download import data_hub, download_classes  # slow to import

                _log.info("downloading %s to %s", ", ".join(missing), data_dir)
                download_classes(data_dir, missing, hub=data_hub(environ))
            lines.append(f"LaSOT: {', '.join(chosen or existing)} in {data_dir}")
        else:
            found = open_source(name, data_dir, classes=config.DATA.CLASSES, split="train").sequences
            lines.append(f"{name}: {len(found)} training sequences in {data_dir}")
    return lines
