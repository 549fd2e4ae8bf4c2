"""Requests that are not served, and why."""

from __future__ import annotations

from collections.abc import Mapping


class Refusal(Exception):  # noqa: N818  # it is an answer, and mostly nobody's error
    """A request that is not served.

    Args:
        status: Of HTTP.
        reason: One line for whoever sent the request.
        headers: Of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})
