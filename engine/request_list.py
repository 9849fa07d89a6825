"""A list of requests in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from .request import Request


def _order(request: Request) -> tuple[int, int]:
    return request.order


class RequestList:
    """Requests sorted by `order`. Adding and removing search by bisection."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def oldest(self) -> Request:
        """Who is served first."""
        return self._requests[0]

    @property
    def newest(self) -> Request:
        """Who is served last, and preempted first."""
        return self._requests[-1]

    def add(self, request: Request) -> None:
        """Puts a request in its place."""
        insort(self._requests, request, key=_order)

    def remove(self, request: Request) -> None:
        """Takes a request out; it must be there."""
        index = bisect_left(self._requests, request.order, key=_order)
        assert self._requests[index] is request, "a request is missing in its list"
        del self._requests[index]

    def newest_first(self) -> list[Request]:
        """A copy, the other way round."""
        return self._requests[::-1]
