"""Numbers for people."""

from __future__ import annotations

from collections.abc import Iterable


def listed(values: Iterable[int], most: int = 8) -> str:
    """Some numbers, the first `most` of them."""
    numbers = sorted(values)
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def ranged(values: Iterable[int]) -> str:
    """Numbers: "0 to 13" where there are no gaps."""
    numbers = sorted(values)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def size(number: int) -> str:
    """Bytes: "1.2 MB"."""
    value, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
