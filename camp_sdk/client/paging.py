"""Pages of items: what the next one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from camp_sdk.arguments import check_offset, checked_count
from camp_sdk.client.answers import Page
from camp_sdk.client.contents import conditions, to_json
from camp_sdk.client.wire import Request

PAGE_ITEMS = 200  # of which each may have metadata


@dataclass(frozen=True)
class PageRequest:
    """A page that is asked for.

    Args:
        where: The conditions, in JSON.
        offset: How many items come before it.
        left: How many more items are wanted; None for all.
    """

    where: str
    offset: int
    left: int | None

    @property
    def limit(self) -> int:
        """The most items of the page."""
        return PAGE_ITEMS if self.left is None else min(self.left, PAGE_ITEMS)

    def request(self) -> Request:
        """The request for it."""
        query = urlencode({"where": self.where, "offset": self.offset, "limit": self.limit})
        return Request("GET", f"/v1/items?{query}")

    def after(self, page: Page) -> PageRequest | None:
        """The next page; None if nothing more is wanted, or there.

        Args:
            page: The answer to this one.
        """
        left = None if self.left is None else self.left - len(page.items)
        if page.following is None or (left is not None and left <= 0):
            return None
        return replace(self, offset=page.following, left=left)


def first_page(where: Mapping[str, Any], offset: int, limit: int | None) -> PageRequest:
    """The first page of items that meet conditions.

    Args:
        where: The conditions.
        offset: How many items to leave out.
        limit: The most items; None for all.

    Raises:
        InputError: The conditions are not understood, or a number is out of range.
    """
    check_offset(offset)
    return PageRequest(to_json(conditions(where)), offset, checked_count("limit", limit))
