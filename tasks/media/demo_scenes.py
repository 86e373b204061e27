"""What the demo looks at: digitscape scenes and a short video of test digits, which the shipped model never saw."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from modelkit.digitscape import Digitscape, Scene

SCENE_SIZE_HW = (192, 256)
SEED = 7
FRAMES_PER_SECOND = 12


def demo_files(num_images: int, num_frames: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, what makes its bytes): so many JPEGs, an MP4 of so many frames, and a JPEG that is cut off."""
    scenes = Digitscape("test", size_hw=SCENE_SIZE_HW, seed=SEED)
    for index in range(num_images):
        yield f"scene {index:03d}.jpg", functools.partial(_jpeg, scenes, index)
    yield "clips/crossing digits.mp4", lambda: _mp4(scenes.clip(0, num_frames))
    yield "truncated.jpg", lambda: _jpeg(scenes, 0)[:2000]


def _jpeg(scenes: Digitscape, index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scenes.scene(index).image_rgb).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _mp4(frames: list[Scene]) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "18", "g": "12"})
        stream.height, stream.width = SCENE_SIZE_HW
        stream.pix_fmt = "yuv420p"
        for scene in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(scene.image_rgb), "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
