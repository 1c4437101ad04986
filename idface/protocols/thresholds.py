"""What a distance means to a recogniser, as far as its calibration tells."""

import logging
from collections.abc import Mapping

import numpy as np

from idface.recognition.base import Recognizer
from idface.recognition.calibration import Calibration

log = logging.getLogger(__name__)


def known_calibration(recognizer: Recognizer) -> Calibration | None:
    """A recogniser's calibration; None, with a warning, where none is stored for its weights."""
    try:
        return recognizer.calibration
    except LookupError as error:
        log.warning("goes on without thresholds: %s", error)
        return None


def percentile(distance: float, percentiles: Mapping[str, float]) -> float:
    """Where a distance stands among pairs whose percentiles are known, interpolated between them.

    Args:
        distance: squared distance of unit embeddings.
        percentiles: distances by the percentile that they are, as `Verification` has them.

    Returns:
        Between the lowest percentile known, for what is nearer still, and the highest.
    """
    return float(np.interp(distance, list(percentiles.values()), [float(each) for each in percentiles]))
