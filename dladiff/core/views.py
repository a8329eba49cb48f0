"""Views of a photo: the rectangles that fine-tuning scripts cut from it, each resized to the working resolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dladiff.core.pixels import Images
from dladiff.core.tiles import Square, covering_squares, positions, shrink

VIEW_MARGIN = 2.0
"""Side of a face's view over the longer side of its box, as dataset crops of portraits have it."""
SAME_VIEW = 0.9
"""Views whose intersection over union is above this count as one."""


@dataclass(frozen=True)
class View:
    """A rectangle of a photo in whole pixels, and its name.

    Beyond the photo's edge it repeats the edge pixels. Resized to a square, a rectangle is stretched.
    """

    name: str
    x: int
    y: int
    width: int
    height: int

    @classmethod
    def of(cls, name: str, square: Square) -> "View":
        """Return a square as a view."""
        return cls(name, square.x, square.y, square.side, square.side)

    def read(self, image: Images, resolution: int) -> Images:
        """Return the rectangle of `1 3 h w` resized to `1 3 r r`, bilinear with antialiasing."""
        height, width = image.shape[-2:]
        rows, columns = positions(self.y, self.height, height), positions(self.x, self.width, width)
        return shrink(image[..., rows, :][..., columns], resolution)


def attacker_views(
    height: int, width: int, boxes: Sequence[tuple[float, float, float, float]], max_views: int
) -> list[View]:
    """Return the views that layer 1 optimises in `region: photo`, at most `max_views`, the likeliest first.

    The middle square (resize and centre crop, as DreamBooth scripts do), each face with a margin, the whole photo
    (stretched to a square), and the squares of the short side that cover the rest of the photo. `boxes`: x0, y0, x1, y1
    of the faces, the largest first.
    """
    side = min(height, width)
    views = [View("middle", (width - side) // 2, (height - side) // 2, side, side)]
    faces = [_around(box, height, width, f"face {i}") for i, box in enumerate(boxes, start=1)]
    covering = [View.of(f"square {i}", s) for i, s in enumerate(_covering(height, width), start=1)]
    for view in (*faces[:1], View("whole", 0, 0, width, height), *covering, *faces[1:]):
        if all(_iou(view, other) <= SAME_VIEW for other in views):
            views.append(view)
    return views[:max_views]


def _covering(height: int, width: int) -> list[Square]:
    return covering_squares(height, width, -(-max(height, width) // min(height, width)))


def _around(box: tuple[float, float, float, float], height: int, width: int, name: str) -> View:
    """Return the square around a face, moved into the photo."""
    x0, y0, x1, y1 = box
    side = min(height, width, max(8, round(VIEW_MARGIN * max(x1 - x0, y1 - y0))))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    return View(name, int(np.clip(left, 0, width - side)), int(np.clip(top, 0, height - side)), side, side)


def _iou(a: View, b: View) -> float:
    across = max(0, min(a.x + a.width, b.x + b.width) - max(a.x, b.x))
    down = max(0, min(a.y + a.height, b.y + b.height) - max(a.y, b.y))
    shared = across * down
    return shared / (a.width * a.height + b.width * b.height - shared)
