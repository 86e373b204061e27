"""VPSNet (Kim et al. 2020): UPSNet's parts, features fused with those of the frame before, and identities.

What a frame leaves for the next one (``VideoState``): its gathered map, its pixels when the flow needs them, and a
memory with embedding, box, class, identity and last appearance of every object ever seen. Objects are matched against
the whole memory, so one that disappears and returns gets its old identity back as long as its memory is kept.

A picture alone, and the first frame of a clip, is fused with itself: then a clip in which nothing moves gives the same
maps in every frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modelkit.carriers.fields import PairedBoxes, PairedValue
from modelkit.carriers.geometry import have_area
from modelkit.carriers.targets import register_field
from modelkit.errors import ConfigError, TargetError
from modelkit.panoptic.flow import Flow
from modelkit.panoptic.segmentor import PanopticSegmentor
from modelkit.panoptic.segments import PanopticMap, Regions
from modelkit.panoptic.temporal import TemporalFusion
from modelkit.panoptic.tracking import Tracked, TrackHead, assign, canonical_order, match_scores
from modelkit.registry import Config, build
from modelkit.transform import Geometry
from modelkit.video import VideoModel, VideoState

register_field("reference_boxes", PairedBoxes())
register_field("reference_track_ids", PairedValue())

_MEMORY = ("embeddings", "boxes", "labels", "ids", "seen")
_UPDATED = ("embeddings", "boxes", "seen")  # when an object is seen again; its class stays that of the first time


class VPSNet(PanopticSegmentor, VideoModel):
    """A panoptic segmentor with a memory.

    Args:
        flow: config of a flow part.
        temporal: config of the fusion of frames.
        match_weights: of class score, overlap and class in the matching.
        memory_frames: an object not seen for more frames than this is forgotten; None = never. Bounds the state of
            endless videos; identities are never given twice.
        options: of ``PanopticSegmentor``; its heads need one named "track".
    """

    tracks = True
    reference_fields = ("boxes", "track_ids")

    def __init__(
        self,
        *,
        flow: Config,
        temporal: Config,
        match_weights: Sequence[float],
        memory_frames: int | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if "track" not in self.detector.roi_heads or len(match_weights) != 3:
            raise ConfigError(
                f"vpsnet needs a head named 'track' and three match_weights, got {list(self.detector.roi_heads)} "
                f"and {list(match_weights)}"
            )
        self.flow: Flow = build("flow", flow, self.transform)
        self.temporal: TemporalFusion = build("temporal", temporal, self.detector.neck)
        self.match_weights = (match_weights[0], match_weights[1], match_weights[2])
        self.memory_frames = memory_frames
        self.loss_weights = {"loss_track": 1.0, **self.loss_weights}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """The losses of ``PanopticSegmentor`` and ``loss_track``.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: as there, and per image optionally ``track_ids`` (n,) long with a reference, another frame of the
                same size: ``reference_image`` (3, H, W), ``reference_boxes`` (m, 4), ``reference_track_ids`` (m,). An
                image without a reference is its own.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        batch, geometries, resized = self.prepare_training(images, targets)
        features = self.pyramid(batch)
        references = [self._reference(*each) for each in zip(images, targets or (), resized, strict=True)]
        earlier = batch.clone()
        for slot, (image, _, _), geometry in zip(earlier, references, geometries, strict=True):
            if image is not None:
                self._prepare_into(slot, image, geometry)
        earlier_features = features if all(image is None for image, _, _ in references) else self.pyramid(earlier)
        fused = self._fuse(features, batch, self.temporal.gather(earlier_features), earlier)
        head = self._track_head
        boxes = [boxes for _, boxes, _ in references]
        embeddings = head(earlier_features, boxes)["embeddings"].split([len(each) for each in boxes])
        for target, embedding, (_, _, ids) in zip(resized, embeddings, references, strict=True):
            target["reference_embeddings"], target["reference_track_ids"] = embedding, ids
            target.setdefault("track_ids", torch.arange(len(target["labels"]), device=embedding.device))
        return self.loss(self.heads(fused), geometries, resized)

    @staticmethod
    def _reference(
        image: Tensor, target: Mapping[str, Any], resized: Mapping[str, Any]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Image of the reference frame as given (None: the frame itself), boxes in resized pixels, identities."""
        if "reference_image" not in target:
            n = len(resized["labels"])
            return None, resized["boxes"], resized.get("track_ids", torch.arange(n, device=resized["boxes"].device))
        missing = {"track_ids", "reference_boxes", "reference_track_ids"} - target.keys()
        if missing or target["reference_image"].shape != image.shape:
            raise TargetError(
                f"a reference_image needs {sorted(missing)} beside it"
                if missing
                else f"reference_image must be {tuple(image.shape)}, got {tuple(target['reference_image'].shape)}"
            )
        seen = have_area(resized["reference_boxes"])  # an augmentation may have moved some out of the frame
        return target["reference_image"], resized["reference_boxes"][seen], target["reference_track_ids"][seen]

    def _prepare_into(self, slot: Tensor, image: Tensor, geometry: Geometry) -> None:
        """Fill (3, *padded) with an image prepared as the frame that it belongs to was."""
        rows, columns = geometry.resized_hw
        slot[:, :rows, :columns] = self.transform.resize(self.transform.normalise(image), geometry.resized_hw)

    @property
    def _track_head(self) -> TrackHead:
        return cast(TrackHead, self.detector.roi_heads["track"])

    def _fuse(
        self, features: dict[str, Tensor], batch: Tensor, previous: Tensor, previous_batch: Tensor
    ) -> dict[str, Tensor]:
        gathered = self.temporal.gather(features)
        return self.temporal(features, gathered, previous, self.flow(batch, previous_batch))

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """As of a first frame: (N, 3, H, W) normalised, each image fused with itself."""
        features = self.pyramid(batch)
        return self.heads(self._fuse(features, batch, self.temporal.gather(features), batch))

    @torch.inference_mode()
    def step(self, batch: Tensor, geometry: Geometry, state: VideoState) -> tuple[PanopticMap, VideoState]:
        """See ``VideoModel``; things get identities, which count up from 0 in the order of their first appearance."""
        features = self.pyramid(batch)
        gathered = self.temporal.gather(features)
        previous = state.tensors.get("gathered", gathered)
        flow = self.flow(batch, state.tensors.get("batch", batch))
        raw = self.heads(self.temporal(features, gathered, previous, flow))
        maps, [(found, things)] = self.decode_with_regions(raw, [geometry])
        embeddings = self._track_head(maps, [things.boxes])["embeddings"]
        ids, memory, next_id = self.identify(things, embeddings, state)
        tensors = {"gathered": gathered, **memory}
        if self.flow.needs_frames:
            tensors["batch"] = batch
        return found.with_track_ids(ids), VideoState(state.frame + 1, tensors, {"next_id": next_id})

    def identify(self, things: Regions, embeddings: Tensor, state: VideoState) -> tuple[Tensor, dict[str, Tensor], int]:
        """Who the things of a frame are.

        Args:
            things: in any order.
            embeddings: (n, C) of them.
            state: of the frames before.

        Returns:
            (n,) identities, the tensors of the new memory, and the next free identity.
        """
        memory, ids, seen = self._recall(state, embeddings)
        next_id = state.counters.get("next_id", 0)
        order = canonical_order(things.scores, things.boxes)
        found = Tracked(embeddings, things.boxes, things.labels)[order]
        entry = assign(match_scores(found, things.scores[order], memory, self.match_weights))
        new, known = torch.where(entry < 0)[0], torch.where(entry >= 0)[0]
        own = torch.empty_like(entry)
        own[known] = ids[entry[known]]
        own[new] = torch.arange(next_id, next_id + len(new), device=ids.device)
        before = (memory.embeddings, memory.boxes, memory.labels, ids, seen)
        after = (found.embeddings, found.boxes, found.labels, own, torch.full_like(own, state.frame))
        kept = {}
        for name, old, current in zip(_MEMORY, before, after, strict=True):
            if name in _UPDATED:
                old = old.index_copy(0, entry[known], current[known])
            kept[f"memory.{name}"] = torch.cat([old, current[new]])
        if self.memory_frames is not None:
            recent = kept["memory.seen"] >= state.frame - self.memory_frames
            kept = {name: value[recent] for name, value in kept.items()}
        result = torch.empty_like(own)
        result[order] = own
        return result, kept, next_id + len(new)

    @staticmethod
    def _recall(state: VideoState, embeddings: Tensor) -> tuple[Tracked, Tensor, Tensor]:
        """Memory, its identities (m,) and last frames (m,); empty before the first frame."""
        if "memory.ids" not in state.tensors:
            nobody = torch.zeros(0, dtype=torch.int64, device=embeddings.device)
            return Tracked(embeddings[:0], embeddings.new_zeros(0, 4), nobody), nobody, nobody
        kept = [state.tensors[f"memory.{name}"] for name in _MEMORY]
        return Tracked(kept[0], kept[1], kept[2]), kept[3], kept[4]
