"""Everything is one identity."""

from pipeline.sources.grouping import row
from pipeline.sources.layouts.record import Layout, Listing


def one(listing: Listing) -> None:
    """Name every photo by the input's folder."""
    listing.spool.add(row(photo, listing.root) for photo in listing.photos)


LAYOUT = Layout(name="one", about="everything is one identity, named as the input's folder", group=one)
