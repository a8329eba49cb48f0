"""VGGFace2, by its folders."""

from pipeline.sources import released
from pipeline.sources.layouts.record import Layout, Listing


def vggface2(listing: Listing) -> None:
    """Name each photo by its innermost nNNNNNN folder."""
    released.vggface2(listing.spool, listing.photos, listing.places)


LAYOUT = Layout(name="vggface2", about="the nNNNNNN folder is the identity, wherever it is", group=vggface2)
