"""Predictors of landmark jobs that are more than a model: boxes from elsewhere, objects that are followed in videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import UsageError, VersionMismatch
from infra.store import open_store
from tasks.engine.job import JobSpec, PredictorSpec
from tasks.engine.model_source import local_model
from tasks.engine.predictors import load_predictor
from tasks.engine.prepare import describe_model
from tasks.output.views import views_of
from tasks.products.landmarks.boxes import EarlierBoxes
from tasks.products.landmarks.parameters import LandmarkParameters

if TYPE_CHECKING:  # torch: seconds that a driver need not wait
    from modelkit import Predictor, Weights
    from modelkit.landmarks import TopDownPredictor


def predictor_of(parameters: LandmarkParameters) -> PredictorSpec | None:
    """Who looks at items instead of the model alone; None where nothing but the model is wanted.

    What decides the rows is part of their version: the detector's digest, or the version of the earlier output.

    Raises:
        UsageError: a detector that there is not, or an output without boxes.
    """
    options: dict[str, Any] = {}
    places: dict[str, Any] = {}
    if parameters.detector is not None or parameters.boxes is not None:
        _check_top_down(parameters)
        options |= {"box_score": parameters.box_score, "box_classes": sorted(parameters.box_classes)}
    if parameters.detector is not None:
        record = checked_detector(parameters.detector, parameters.box_classes)
        options["detector"], places["detector_from"] = record.rows_digest, parameters.detector
    if parameters.boxes is not None:
        options["boxes"], places["boxes_from"] = newest_version(parameters.boxes), open_store(parameters.boxes).uri
    if parameters.track:
        options["track"] = {"smooth": parameters.smooth, "beta": parameters.smooth_beta}
    if not options:
        return None
    return PredictorSpec(f"{__name__}:predictor", options, places=places, carries_state=parameters.track)


def _check_top_down(parameters: LandmarkParameters) -> None:
    from modelkit.landmarks import is_top_down  # torch: seconds that jobs without boxes need not wait

    record = describe_model(parameters.model, parameters.weights)
    if not is_top_down(record):
        raise UsageError(
            f"{record.name} finds its objects itself: it looks at no boxes of others",
            hint="leave out --detector and --boxes, or name a top-down model: `visionmill models list`",
        )


def checked_detector(name: str, box_classes: Sequence[str]) -> Weights:
    """The record of a detector that may look for a top-down model.

    Raises:
        UsageError: there is none of this name, it has a memory, or none of these classes.
    """
    from modelkit import ModelkitError, is_video_model  # torch, as above
    from modelkit.landmarks import labels_of  # likewise

    record = describe_model(name, None)
    if is_video_model(record):
        raise UsageError(
            f"{record.name} has a memory: it cannot detect for another model",
            hint="run it by itself first, and give its output as --boxes",
        )
    try:
        labels_of(record.classes, box_classes)
    except ModelkitError as error:
        raise UsageError(str(error), hint="name classes of the detector: --box-class") from error
    return record


def newest_version(output_uri: str) -> str:
    """The fingerprint of the newest version of an output whose rows have boxes.

    Raises:
        UsageError: it has none.
    """
    views = views_of(open_store(output_uri))
    views.connection.close()
    if views.listing.newest is None or views.product is None or not views.listing.newest.parts:
        raise UsageError(
            f"{output_uri} holds no rows whose boxes could be looked at", hint="run the detector's job first"
        )
    lists = {field.name for schema in views.product.schemas().values() for field in schema}
    if not {"boxes_xyxy", "scores", "labels"} <= lists:
        raise UsageError(
            f"rows of {views.product.name} have no boxes", hint="name the output of a job that finds objects"
        )
    return views.listing.newest.fingerprint


def predictor(job: JobSpec) -> Predictor:
    """What workers call; see ``JobSpec.predictor_factory``."""
    options, found = job.predictor_options, load_predictor(job)
    if "detector" in options:
        found = _with_detector(job, found)
    if "boxes" in options:
        found = _with_boxes(job, found)
    if "track" in options:
        found = _tracking(found, **options["track"])
    return found


def _with_detector(job: JobSpec, landmarker: Predictor) -> TopDownPredictor:
    from modelkit.landmarks import DetectingPredictor  # a worker's, where torch is loaded anyhow

    return DetectingPredictor(landmarker, detector_of(job), **_choice(job))


def detector_of(job: JobSpec) -> Predictor:
    """The detector of a job. Raises VersionMismatch for another one than the job is for."""
    from modelkit import load  # a worker's, where torch is loaded anyhow

    options = job.predictor_options
    detector = load(local_model(options["detector_from"]), device=job.device, min_score=options["box_score"])
    if detector.rows_digest != options["detector"]:
        raise VersionMismatch(
            f"the detector {options['detector_from']} has the digest {detector.rows_digest[:12]} here,"
            f" but the job is for {options['detector'][:12]}",
            hint="Every machine must see the same weights and record: name them by URI, or copy both files to all.",
        )
    return detector


def _with_boxes(job: JobSpec, landmarker: Predictor) -> TopDownPredictor:
    from modelkit.landmarks import FoundBoxes, TopDownPredictor  # a worker's, where torch is loaded anyhow

    earlier = EarlierBoxes(job.predictor_options["boxes_from"], job.predictor_options["boxes"])

    class BoxedPredictor(TopDownPredictor):
        """Looks at the boxes that an earlier job found in the same item."""

        def prepare_item(self, image: np.ndarray, *, uri: str, etag: str, frame: int) -> Any:
            """See ``tasks.engine.items``."""
            return self.prepare_boxes(image, FoundBoxes(*earlier.of(uri, etag, frame)))

    return BoxedPredictor(landmarker, earlier.classes, **_choice(job))


def _choice(job: JobSpec) -> dict[str, Any]:
    return {name: job.predictor_options[name] for name in ("box_score", "box_classes")}


def _tracking(found: Predictor, smooth: float | None, beta: float) -> Predictor:
    from modelkit.landmarks import OneEuro, Tracking, TrackingPredictor  # a worker's, where torch is loaded anyhow

    smoothing = None if smooth is None else OneEuro(min_cutoff=smooth, beta=beta)
    return TrackingPredictor(found, Tracking(smoothing=smoothing))
