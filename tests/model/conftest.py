"""Each variant of the model in turn, for any test of this folder."""

import pytest
from small_models import VARIANTS, lively, spec_of

from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> SeqTrack:
    """In eval, with weights that make the output depend on the input."""
    return lively(build_model(spec_of(**VARIANTS[request.param]), seed=1)).eval()
