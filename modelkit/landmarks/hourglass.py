"""Stacked Hourglass (Newell et al. 2016): pool down, come back up, several times, with a map after each time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.errors import ConfigError

_STEM = (64, 128, 128)
STRIDE = 4  # of the maps


class PreActivationBlock(nn.Module):
    """Norm and ReLU before each of 1x1, 3x3 and 1x1 convolutions; the input is added, by a 1x1 if widths differ."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, half, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(half), nn.Conv2d(half, half, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(half), nn.Conv2d(half, width, 1)
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x).relu())
        y = self.conv2(self.bn2(y).relu())
        return self.conv3(self.bn3(y).relu()) + self.skip(x)


class Hourglass(nn.Module):
    """Half the size, ``depth`` times, and back; what was seen at each size is added on the way up.

    Args:
        depth: how often the size is halved.
        width: channels.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.beside = PreActivationBlock(width, width)
        self.down = PreActivationBlock(width, width)
        self.inner = Hourglass(depth - 1, width) if depth > 1 else PreActivationBlock(width, width)
        self.up = PreActivationBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        below = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        return self.beside(x) + F.interpolate(below, scale_factor=2, mode="nearest")


class Stack(nn.Module):
    """One hourglass, its features and its maps; all but the last also what the next one is given.

    Args:
        depth, width: of the hourglass.
        num_keypoints: maps.
        is_last: nothing follows.
    """

    def __init__(self, depth: int, width: int, num_keypoints: int, is_last: bool) -> None:
        super().__init__()
        self.hourglass = Hourglass(depth, width)
        self.features = nn.Sequential(
            PreActivationBlock(width, width), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.predictor = nn.Conv2d(width, num_keypoints, 1)
        self.merge_features = None if is_last else nn.Conv2d(width, width, 1)
        self.merge_heatmaps = None if is_last else nn.Conv2d(num_keypoints, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The maps, and the input of the next stack."""
        features = self.features(self.hourglass(x))
        maps = self.predictor(features)
        if self.merge_features is None or self.merge_heatmaps is None:
            return maps, x
        return maps, x + self.merge_heatmaps(maps) + self.merge_features(features)


class StackedHourglass(nn.Module):
    """A stem to a quarter of the size, then hourglasses, each of which looks at the maps of the one before it.

    Args:
        num_keypoints: maps of each stack.
        stacks: 1 to 8.
        width: channels.
        depth: how often each hourglass halves its map; sides of the input must be divisible by 4 * 2^depth.
    """

    def __init__(self, num_keypoints: int, stacks: int, width: int, depth: int) -> None:
        super().__init__()
        if not 1 <= stacks <= 8 or depth < 1 or width < 2 or width % 2:
            raise ConfigError(
                f"hourglass needs 1 to 8 stacks, a depth of 1 or more and an even width, got {stacks}, {depth}, {width}"
            )
        self.divisor = STRIDE * 2**depth
        first, second, third = _STEM
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 7, stride=2, padding=3), nn.BatchNorm2d(first), nn.ReLU(),
            PreActivationBlock(first, second), nn.MaxPool2d(2),
            PreActivationBlock(second, third), PreActivationBlock(third, width),
        )  # fmt: skip
        self.stacks = nn.ModuleList(Stack(depth, width, num_keypoints, k == stacks - 1) for k in range(stacks))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """``heatmaps.0`` ... of each stack, (N, K, h / 4, w / 4).

        Raises:
            ConfigError: sides that halving cannot divide.
        """
        if batch.shape[-2] % self.divisor or batch.shape[-1] % self.divisor:
            raise ConfigError(
                f"an hourglass of this depth needs sides divisible by {self.divisor}, got {tuple(batch.shape[-2:])}"
            )
        x, maps = self.stem(batch), {}
        for k, stack in enumerate(self.stacks):
            maps[f"heatmaps.{k}"], x = stack(x)
        return maps
