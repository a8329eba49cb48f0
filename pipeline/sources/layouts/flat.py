"""A photo is an identity."""

from pipeline.sources.grouping import ALONE, row, stem, tell_apart
from pipeline.sources.layouts.record import Layout, Listing


def flat(listing: Listing) -> None:
    """Name each photo by its stem, with the extension only where stems collide."""
    listing.spool.add(row(photo, stem(photo.key), ALONE) for photo in listing.photos)
    tell_apart(listing.spool)


LAYOUT = Layout(name="flat", about="a photo is an identity, named by its stem", group=flat)
