"""CelebA-HQ, by the lists that came with it."""

from pipeline.sources import released
from pipeline.sources.layouts.record import Layout, Listing


def celeba_hq(listing: Listing) -> None:
    """Name each photo by the number of the person on it."""
    released.celeba_hq(listing.spool, listing.photos, listing.places)


LAYOUT = Layout(name="celeba_hq", about="the release's lists say who is on photo <index>", group=celeba_hq)
