"""The layout of Anti-DreamBooth's data."""

from pipeline.sources.grouping import add_with_sets, name_root, warn_left_out
from pipeline.sources.layouts.record import Layout, Listing


def sets(listing: Listing) -> None:
    """Name each photo by the owner of its set; what belongs to no identity with a set_B is left out."""
    spool = listing.spool
    add_with_sets(spool, listing.photos, "max(mark = 'B')")
    left_out = spool.execute("DELETE FROM photo WHERE mark = ''").rowcount
    warn_left_out(left_out, "belong to no identity with a set_B")
    name_root(spool, listing.root)


LAYOUT = Layout(
    name="sets", about="<id>/set_A/* or <id>/set_A_* is clean, set_B is protected, set_C is ignored", group=sets
)
