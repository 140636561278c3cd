"""The threshold of `known` for a larger share of rejected photos than the model's own: the flag --reject.

A model rejects few photos of its classes, and therefore names some pictures of other things. Where such a
name does more harm than a photo without a name, a higher threshold is better. The model file has examples of
its classes, and their `known`: the threshold rejects the wanted share of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from runtime.common.errors import ModelError

if TYPE_CHECKING:
    from runtime.inference.correction import Correction
    from runtime.model_file.loader import ModelFile


def strict_threshold(model: ModelFile, share: float, correction: Correction | None = None) -> float:
    """Returns the threshold of `known` that rejects about this share (0 to 1) of photos of the classes.

    It is never below the model's own. Raises ModelError for a model that rejects nothing, or has no examples,
    and for a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ModelError(f"reject={share:g}: give a share above 0 and below 1, such as 0.1 for 10 %")
    if "known" not in model.contract.thresholds:
        raise ModelError(f"{model.path}: does not detect unknown pictures: leave out --reject")
    if model.contract.features is None:
        raise ModelError(
            f"{model.path}: has contract version {model.contract.version}, which has no examples for "
            "--reject: export it again"
        )
    statistics = model.read_statistics()
    known = statistics.positive_known.astype(np.float64)
    if correction:
        known = correction.apply(known, statistics.positive_features)
    if not (rejected := int(share * len(known) + 1e-9)):  # 0.29 * 100 is a little less than 29
        least = math.ceil(1000 / len(known)) / 1000  # in tenths of a percent
        raise ModelError(
            f"{model.path}: has {len(known)} examples of its classes, too few for {share:.1%}: choose a "
            f"--reject of at least {least:.1%}"
        )
    return max(float(np.sort(known)[rejected]), model.contract.thresholds["known"])
