"""The comments of the .proto files and their examples, by full name. Generated: do not edit."""

from typing import Any

COMMENTS: dict[str, tuple[str, Any]] = {
    'toy.BrowseOrder.reader': ('Only books that this reader has.', None),
    'toy.FollowOrder.reader': ('Only books that this reader has.', None),
}
