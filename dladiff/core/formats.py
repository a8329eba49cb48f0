"""The formats of protected photos: one record each, from which names, choices, content types and checks derive.

Pillow is imported at first use, because the command line reads the names.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

OPT_OUT = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/">'
    "<plus:DataMining>http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED</plus:DataMining>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
"""XMP packet with the property "Data Mining: prohibited" (IPTC Photo Metadata 2023.1, PLUS vocabulary)."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of image files."""

    name: str
    """As `method.output.format` and `Codec.format` call it."""
    suffix: str
    content_type: str
    lossy: bool
    """Whether the decoded pixels differ from the encoded ones."""
    save: Callable[["Image", int, bytes | None, bool], bytes]
    """(image, quality, colour profile, opt-out) to the file; the same arguments give the same bytes."""


def _png(image: "Image", quality: int, icc: bytes | None, opt_out: bool) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    out, info = io.BytesIO(), PngInfo()
    if opt_out:
        info.add_itxt("XML:com.adobe.xmp", OPT_OUT)
    image.save(out, "PNG", compress_level=6, icc_profile=icc, pnginfo=info)
    return out.getvalue()


def _jpeg(image: "Image", quality: int, icc: bytes | None, opt_out: bool) -> bytes:
    out = io.BytesIO()
    more = {"xmp": OPT_OUT.encode()} if opt_out else {}
    image.save(out, "JPEG", quality=quality, subsampling=0, icc_profile=icc, **more)
    return out.getvalue()


FORMATS = {
    record.name: record
    for record in (
        Format(name="png", suffix=".png", content_type="image/png", lossy=False, save=_png),
        Format(name="jpeg", suffix=".jpg", content_type="image/jpeg", lossy=True, save=_jpeg),
    )
}
"""Name to record; the first is the default."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]
"""Name of a format."""
