"""Which pages of the memory are free, whose they are, and which hold a beginning that others may share."""

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import sha256

from phyla.errors import GenerationError


class PagePool:
    """Numbers of `count` pages of `size` positions with owners counted; full ones may be known by content.

    A known page without owners stays until its place is needed, the longest unused first.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.owners = [0] * count
        self.free: deque[int] = deque(range(count))
        self.idle: OrderedDict[int, None] = OrderedDict()  # known, without owners
        self.known: dict[bytes, int] = {}
        self.keys: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self.free) + len(self.idle)

    def take(self) -> int:
        """A page of one's own. Raises GenerationError where none is left."""
        if self.free:
            page = self.free.popleft()
        elif self.idle:
            page, _ = self.idle.popitem(last=False)
            self.forget(page)
        else:
            raise GenerationError(f"all {self.count} pages are taken")
        self.owners[page] = 1
        return page

    def share(self, page: int) -> int:
        """The page with one more owner."""
        self.idle.pop(page, None)
        self.owners[page] += 1
        return page

    def find(self, key: bytes) -> int | None:
        """The page of that content, or None."""
        return self.known.get(key)

    def name(self, page: int, key: bytes) -> None:
        """Make a full page known by what it holds; the first of equals stays."""
        if key not in self.known and page not in self.keys:
            self.known[key], self.keys[page] = page, key

    def forget(self, page: int) -> None:
        """What a page holds is no longer known."""
        key = self.keys.pop(page, None)
        if key is not None:
            del self.known[key]

    def release(self, page: int) -> None:
        """One owner less; the last one leaves the page free, or idle where it is known."""
        self.owners[page] -= 1
        if self.owners[page] < 0:
            raise GenerationError(f"page {page} was released more often than it was taken")
        if self.owners[page]:
            return
        if page in self.keys:
            self.idle[page] = None
        else:
            self.free.append(page)

    def clear(self) -> None:
        """Forget the content of all pages."""
        for page in list(self.keys):
            self.forget(page)
        self.free.extend(self.idle)
        self.idle.clear()


def page_keys(root: bytes, ids: Sequence[int], size: int) -> list[bytes]:
    """Keys of the full pages of `ids`: each stands for its own ids and all before them."""
    keys: list[bytes] = []
    for begin in range(0, len(ids) - size + 1, size):
        root = sha256(root + array("q", ids[begin : begin + size]).tobytes()).digest()
        keys.append(root)
    return keys
