"""The layout that the input itself shows."""

from pipeline.sources import released
from pipeline.sources.grouping import ALONE, add_with_sets, name_root, stem, tell_apart
from pipeline.sources.layouts.parquet import add_rows
from pipeline.sources.layouts.record import Layout, Listing
from pipeline.sources.layouts.webdataset import add_members


def auto(listing: Listing) -> None:
    """Group by the lists of CelebA-HQ where they are at the top, else by sets, VGGFace2's folders, or folders."""
    if released.has_celeba_hq(listing.storage):
        released.celeba_hq(listing.spool, listing.photos, listing.places)
        return
    _by_folder(listing)
    if released.is_vggface2(listing.spool):
        released.settle_vggface2(listing.spool, listing.places)
    if not listing.spool.holds("SELECT 1 FROM photo"):
        add_rows(listing)
        add_members(listing)
        tell_apart(listing.spool)


def _by_folder(listing: Listing) -> None:
    """Sets where an identity has A and B, else folders; a photo at the top is an identity."""
    spool = listing.spool
    add_with_sets(spool, listing.photos, "max(mark = 'A') AND max(mark = 'B')")
    if spool.holds("SELECT 1 FROM owner WHERE name = x''"):
        name_root(spool, listing.root)
        return
    spool.function("stem", stem)
    if spool.execute("UPDATE photo SET name = stem(key), mark = ? WHERE name = x''", ALONE).rowcount:
        tell_apart(spool)


LAYOUT = Layout(
    name="auto",
    about="celeba_hq where its lists are at the top, sets where an identity has A and B, vggface2 where all folders "
    "are named so, else folders, and flat for photos at the top; parquet and webdataset where those are all",
    group=auto,
)
