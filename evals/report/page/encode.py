"""Pieces of data inside the page: JSON, compressed, in base64, each in a script element that is never executed."""

import base64
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any


class Chunks:
    """Numbers the chunks as they are written, so that the index at the end can name them."""

    def __init__(self) -> None:
        self.count = 0

    def element(self, value: Any) -> str:
        """The script element of the next chunk; its number is `count - 1` afterwards. Nothing in it needs escaping."""
        number, self.count = self.count, self.count + 1
        return f'<script type="text/plain" id="c{number}">{self._pack(value)}</script>\n'

    def _pack(self, value: Any) -> str:
        raw = json.dumps(clean(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
            "utf-8", "replace"
        )
        return base64.b64encode(zlib.compress(raw, 6)).decode("ascii")


def clean(value: Any) -> Any:
    """The value with NaN and infinities as null, which is all that JSON has for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value


class Codes:
    """A dictionary code: each distinct value gets the next number."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.numbers)
