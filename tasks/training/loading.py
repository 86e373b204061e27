"""From examples in stores to batches: read, decode, build targets, add noise; a function of step and process alone.

Pixels are read through the store and kept, decoded and at the size that the model looks at, up to a limit in bytes. The
next batch is made by a thread while the model works on this one.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.errors import DatasetError
from modelkit import VisionModel
from modelkit.augmentation import Pipeline, Sample, copy_paste, cutmix, warp
from modelkit.augmentation.draws import chance, integer
from modelkit.augmentation.geometry import scaling
from modelkit.tiling import Tiling
from modelkit.training.processes import Rank
from modelkit.training.sampling import EpochSampler, MixedSampler, repeat_factors
from modelkit.transform import Geometry
from tasks.media.decoding import EntryReader, labelled_pixels
from tasks.product import find_kind
from tasks.training.examples import Example
from tasks.training.recipe import Noise, TrainingRecipe
from tasks.training.tiles import tiles_of

CACHE_BYTES = 256 << 20
_LABELLED, _UNLABELLED = 0, 1

Batch = tuple[list[Tensor], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The images and targets of one step and process, human labels and pseudo-labels apart."""

    labelled: Batch
    unlabelled: Batch


class ExampleReader:
    """Reads examples as samples of the size that a model looks at.

    Of a model that learns from pairs of frames, the target of a frame holds an earlier frame as its reference.

    Args:
        model: decides the size (larger images are reduced to it before any noise) and what its classes are.
        kind: of the model.
        reader: of the stores.
        cache_bytes: decoded samples kept.
    """

    def __init__(
        self, model: VisionModel, kind: str, *, reader: EntryReader | None = None, cache_bytes: int = CACHE_BYTES
    ):
        self._transform, self._reference_fields = model.transform, model.reference_fields
        known = find_kind(kind)
        self._target_of, self._reader = known.target_of(model), reader or EntryReader()
        self._pieces_of = None if known.pieces_of is None else known.pieces_of(model)
        self._cache: OrderedDict[str, Sample] = OrderedDict()
        self._cache_bytes, self._held_bytes = cache_bytes, 0

    @property
    def tiling(self) -> Tiling | None:
        """What larger pictures are cut into, if the model is to learn from tiles; one of pairs of frames never is."""
        tile = None if self.wants_pairs else self._transform.tile
        return None if tile is None else Tiling(tile[0], tile[1])

    def pieces(self, examples: Sequence[Example], things: set[int]) -> Sequence[Example]:
        """What is learnt from one by one: tiles of large pictures, what the kind cuts out, or the pictures themselves.

        Args:
            examples: whole pictures. things: class ids of countable objects.
        """
        if self._pieces_of is not None:
            return [piece for example in examples for piece in self._pieces_of(example)]
        return examples if self.tiling is None else tiles_of(examples, self.tiling, things)

    @property
    def wants_pairs(self) -> bool:
        """Whether the model learns from a frame and an earlier one."""
        return self._reference_fields is not None

    def read(self, example: Example, earlier: Example | None = None) -> Sample:
        """The example without noise.

        Args:
            example: which.
            earlier: the labelled frame before it, for a model that learns from pairs.

        Raises:
            DatasetError: when an image cannot be read, or is not of the size that its labels are for.
        """
        sample = self._read(example)
        if earlier is None or self._reference_fields is None:
            return sample
        before = self._read(earlier)
        missing = set(self._reference_fields) - (before.target.keys() & sample.target.keys())
        if missing:  # of objects that nobody tracked
            return sample
        fields = {f"reference_{name}": before.target[name] for name in self._reference_fields}
        return replace(sample, target={**sample.target, "reference_image": before.image, **fields})

    def _read(self, example: Example) -> Sample:
        key = f"{example.origin}:{example.image_id}:{example.window}:{example.piece}"
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        sample = self._reduced(self._pixels(example), self._target_of(example), example.seen_hw)
        self._keep(key, sample)
        return sample

    def _pixels(self, example: Example) -> Tensor:
        whole_hw = example.picture_hw or example.size_hw
        pixels = labelled_pixels(example.uri, example.frame, whole_hw, self._reader)
        if example.window is not None:
            pixels = example.window.cut(pixels).copy()  # a view would hold the whole picture
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    def _reduced(self, image: Tensor, target: dict[str, Any], seen_hw: tuple[int, int] | None) -> Sample:
        source_hw = (image.shape[-2], image.shape[-1])
        wanted = seen_hw or self._transform.resized_hw(source_hw)
        if wanted[0] * wanted[1] >= source_hw[0] * source_hw[1]:
            return Sample.fresh(image, target)
        geometry = Geometry(source_hw, wanted, wanted)
        return Sample.fresh(self._transform.resize(image, wanted), self._transform.target(target, geometry))

    def _keep(self, key: str, sample: Sample) -> None:
        self._cache[key] = sample
        self._held_bytes += _bytes_of(sample)
        while self._held_bytes > self._cache_bytes and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._held_bytes -= _bytes_of(dropped)


def _bytes_of(sample: Sample) -> int:
    tensors = [sample.image, *(value for value in sample.target.values() if isinstance(value, Tensor))]
    return sum(tensor.nbytes for tensor in tensors)


class Batches:
    """The batches of a run, for one process.

    Args:
        reader: of examples.
        labelled, unlabelled: human and pseudo-labelled examples; the latter may be empty.
        recipe: batch size, shares and noise.
        rank: which process.
    """

    def __init__(
        self,
        reader: ExampleReader,
        labelled: Sequence[Example],
        unlabelled: Sequence[Example],
        recipe: TrainingRecipe,
        rank: Rank,
    ) -> None:
        self._reader, self._earlier = reader, _earlier_frames([*labelled, *unlabelled]) if reader.wants_pairs else {}
        things = {each.id for each in recipe.class_infos if each.is_thing}
        labelled, unlabelled = (reader.pieces(examples, things) for examples in (labelled, unlabelled))
        if not labelled:
            raise DatasetError("nothing in the labels teaches this model", hint="`visionmill inspect LABELLED`")
        labelled, unlabelled = (self._hosts(examples) for examples in (labelled, unlabelled))
        self._examples = labelled, unlabelled
        self._recipe, self._rank = recipe, rank
        self._sampler = MixedSampler(
            _sampler(labelled, recipe, _LABELLED),
            _sampler(unlabelled, recipe, _UNLABELLED) if unlabelled else None,
            recipe.batch_size,
            recipe.labelled_share,
        )
        self._noise = (recipe.labelled, recipe.unlabelled)
        self._pipelines = tuple(Pipeline(noise.augmentation) for noise in self._noise)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[StepBatches]] | None = None

    def batch(self, step: int, mixed: Callable[[int], bool]) -> StepBatches:
        """The batches of a step; that of the next one is begun.

        Args:
            step: 0-based.
            mixed: whether pseudo-labels take part in a step.
        """
        if self._ahead is not None and self._ahead[0] == step:
            ready = self._ahead[1].result()
        else:
            ready = self._make(step, mixed(step))
        following = step + 1
        if following < self._recipe.loop.steps:
            self._ahead = following, self._thread.submit(self._make, following, mixed(following))
        return ready

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _hosts(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Those that have a frame before them, if any has: the first frames of videos are references only."""
        return [each for each in examples if each.image_id in self._earlier] or examples

    def _make(self, step: int, mixed: bool) -> StepBatches:
        picked = self._sampler.pick(step, self._rank, mixed=mixed)
        wanted = ((_LABELLED, picked.labelled), (_UNLABELLED, picked.unlabelled))
        labelled, unlabelled = (self._noisy(which, indices, step) for which, indices in wanted)
        return StepBatches(labelled, unlabelled)

    def _noisy(self, which: int, indices: list[int], step: int) -> Batch:
        draws = generator_of(self._recipe.loop.seed, step, self._rank.index, which)
        chosen = [self._examples[which][index] for index in indices]
        plain = [self._reader.read(each, self._earlier.get(each.image_id)) for each in chosen]
        moved = [self._pipelines[which](sample, draws) for sample in plain]
        mixed = moved  # of two pairs of frames, what moves would be cut in two places
        if not self._reader.wants_pairs:
            mixed = [_mixed(sample, moved, self._noise[which], draws) for sample in moved]
        return [sample.image for sample in mixed], [dict(sample.target) for sample in mixed]


def _earlier_frames(examples: Sequence[Example]) -> dict[str, Example]:
    """The labelled frame before each frame of a video, by image id; first frames and images have none."""
    frames = sorted((each for each in examples if each.frame is not None), key=lambda each: (each.uri, each.frame))
    return {each.image_id: before for before, each in itertools.pairwise(frames) if before.uri == each.uri}


def _sampler(examples: Sequence[Example], recipe: TrainingRecipe, which: int) -> EpochSampler:
    repeats: list[float] = []
    if recipe.repeat_threshold > 0:
        repeats = repeat_factors([[each.label for each in one.objects] for one in examples], recipe.repeat_threshold)
    return EpochSampler(len(examples), recipe.loop.seed * 2 + which, repeats)


def _mixed(host: Sample, batch: Sequence[Sample], noise: Noise, draws: torch.Generator) -> Sample:
    """The sample with a piece of another one of its batch, or as it is; always the same number of draws to decide."""
    cut, pasted, donor = chance(draws, noise.cutmix), chance(draws, noise.copy_paste), integer(draws, 0, len(batch) - 1)
    other = batch[donor]
    if not (cut or pasted) or other is host:
        return host
    if other.size_hw != host.size_hw:
        (rows, columns), (height, width) = host.size_hw, other.size_hw
        other = warp(other, scaling(columns / width, rows / height), host.size_hw)
    if pasted and "masks" in host.target:
        host = copy_paste(host, other, draws)
    return cutmix(host, other, draws) if cut else host


def generator_of(seed: int, step: int, rank: int, which: int) -> torch.Generator:
    """Randomness of one batch: a function of run, step, process and whose labels they are."""
    state = np.random.SeedSequence([seed, step, rank, which, 0xA06]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
