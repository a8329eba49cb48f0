"""A folder is an identity."""

from pipeline.sources.grouping import folder, row, warn_left_out
from pipeline.sources.layouts.record import Layout, Listing


def folders(listing: Listing) -> None:
    """Name each photo by its folder; photos at the top are left out."""
    spool = listing.spool
    spool.add(row(photo, folder(photo.key)) for photo in listing.photos)
    warn_left_out(spool.execute("DELETE FROM photo WHERE name = x''").rowcount, "lie in no folder")


LAYOUT = Layout(name="folders", about='a folder is an identity ("a/b" when nested)', group=folders)
