"""Moments and durations as people read them."""

from __future__ import annotations

import time


def date(seconds: float | None) -> str:
    """A moment (seconds since 1970) in local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def duration(seconds: float | None) -> str:
    """Seconds, at a glance."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
