"""Small face-recognition networks of different families."""

from __future__ import annotations

from torch import Tensor, nn

from dladiff.training.attention import MeanToken, Tokens, Transformer
from dladiff.training.layers import Block, Flatten, Pool, Shuffle, SqueezeExcite, Unit


class Network(nn.Module):
    """Layers over a 112 px crop, then one linear layer; the embedding is not normalised."""

    def __init__(self, body: list[nn.Module], features: int, dimensions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(features, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, 3, 112, 112], RGB as (value - 127.5) / 127.5, to [b, dimensions]."""
        result: Tensor = self.head(self.body(x))
        return result


def _bottleneck(into: int, middle: int, out: int, stride: int = 1) -> list[Unit]:
    return [
        Unit(into, middle, 1, activation="relu"),
        Unit(middle, middle, 3, stride, groups=middle, activation="prelu"),
        Unit(middle, out, 1),
    ]


def mobile(dimensions: int) -> Network:
    """Build the depthwise network, after MobileFaceNet: PReLU after depthwise steps, 0.4 million parameters."""
    body: list[nn.Module] = [
        Unit(3, 16, 3, 2, activation="relu"),
        Unit(16, 32, 3, 2, activation="prelu"),
        *_bottleneck(32, 96, 64, 2),
        *[Block(_bottleneck(64, 128, 64), relu=False) for _ in range(2)],
        *_bottleneck(64, 256, 128, 2),
        *[Block(_bottleneck(128, 256, 128), relu=False) for _ in range(3)],
        Unit(128, 256, 1, activation="prelu"),
        Unit(256, 256, 7, groups=256),
        Flatten(),
    ]
    return Network(body, 256, dimensions)


def residual(dimensions: int) -> Network:
    """Build the plain residual network of 3 x 3 convolutions with ReLU, 0.5 million parameters."""
    body: list[nn.Module] = []
    into = 3
    for width, blocks in ((16, 0), (32, 0), (64, 1), (128, 1)):
        body.append(Unit(into, width, 3, 2, activation="relu"))
        for _ in range(blocks):
            body.append(Block([Unit(width, width, activation="relu"), Unit(width, width)], relu=True))
        into = width
    return Network([*body, Unit(into, into, 7, groups=into), Flatten()], into, dimensions)


def irse(dimensions: int) -> Network:
    """Build a residual network with squeeze-and-excite, after ArcFace's IR-SE: 0.5 million parameters.

    The activations of all 7 x 7 places go into the linear layer.
    """
    body: list[nn.Module] = [Unit(3, 16, 3, 2, activation="relu")]
    into = 16
    for width in (32, 64, 96):
        body.append(Unit(into, width, 3, 2, activation="relu"))
        inner = [Unit(width, width, activation="relu"), Unit(width, width), SqueezeExcite(width)]
        body.append(Block(inner, relu=False))
        into = width
    return Network([*body, Unit(into, 32, 1, activation="relu"), Flatten()], 32 * 7 * 7, dimensions)


def vgg(dimensions: int) -> Network:
    """Build the plain network of 3 x 3 convolutions and maxima, after VGG: 0.5 million parameters, no residuals."""
    body: list[nn.Module] = [Unit(3, 16, 5, 2, activation="relu")]
    into = 16
    for width in (32, 64, 96):
        body += [Pool(), Unit(into, width, activation="relu"), Unit(width, width, activation="relu")]
        into = width
    return Network([*body, Unit(into, 32, 1, activation="relu"), Flatten()], 32 * 7 * 7, dimensions)


def shuffle(dimensions: int) -> Network:
    """Build a ShuffleNetV2 of three stages: 0.2 million parameters."""
    body: list[nn.Module] = [Unit(3, 24, 3, 2, activation="relu")]
    width = 24
    for side, blocks in ((28, 1), (14, 3), (7, 2)):
        body.append(Shuffle(width, side, 2))
        width *= 2
        body += [Shuffle(width, side) for _ in range(blocks)]
    body += [Unit(width, 256, 1, activation="relu"), Unit(256, 256, 7, groups=256), Flatten()]
    return Network(body, 256, dimensions)


def vit(dimensions: int) -> Network:
    """Build a vision transformer of 49 tokens behind four convolutions: 0.5 million parameters."""
    channels, side, heads, blocks = 112, 7, 4, 4
    body: list[nn.Module] = [
        Unit(3, 24, 3, 2, activation="relu"),
        Unit(24, 48, 3, 2, activation="relu"),
        Unit(48, 64, 3, 2, activation="relu"),
        Unit(64, channels, 3, 2),
        Tokens(channels, side),
        *[Transformer(channels, heads, side * side) for _ in range(blocks)],
        MeanToken(channels),
    ]
    return Network(body, channels, dimensions)


ARCHITECTURES = {
    "irse": irse,
    "mobile": mobile,
    "residual": residual,
    "shuffle": shuffle,
    "vgg": vgg,
    "vit": vit,
}
