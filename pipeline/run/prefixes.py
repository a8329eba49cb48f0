"""The folders of the buckets that an index file's photos are in."""

from itertools import takewhile


class Prefixes:
    """The longest common prefix of an index file's photos in each bucket."""

    def __init__(self) -> None:
        self._folders: dict[str, list[str]] = {}

    def add(self, uri: str) -> None:
        """Add the address of a photo; local paths are ignored."""
        if uri.startswith("s3://"):
            bucket, *folders = uri.removeprefix("s3://").split("/")[:-1]
            known = self._folders.setdefault(bucket, folders)
            same = (one == other for one, other in zip(known, folders, strict=False))
            self._folders[bucket] = known[: len([*takewhile(bool, same)])]

    def addresses(self) -> tuple[str, ...]:
        """Return the prefixes as addresses for `open_storage`."""
        return tuple("/".join(("s3:/", bucket, *folders)) for bucket, folders in self._folders.items())
