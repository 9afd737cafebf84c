"""Pieces of data inside the page: JSON, compressed, in base64, each in a script element that is never executed."""

import base64
import json
import math
import zlib
from typing import Any


class Chunks:
    """Numbers the chunks as they are written, so that the index at the end can name them."""

    def __init__(self) -> None:
        self.count = 0

    def element(self, value: Any) -> str:
        """The script element of the next chunk; its number is `count - 1` afterwards. Nothing in it needs escaping."""
        number, self.count = self.count, self.count + 1
        text = json.dumps(clean(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        packed = base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode("ascii")
        return f'<script type="text/plain" id="c{number}">{packed}</script>\n'


def clean(value: Any) -> Any:
    """The value with NaN and infinities as null, which is all that JSON has for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value


def code(codes: dict[Any, int], value: Any) -> int:
    """A dictionary code: each distinct value gets the next number."""
    return codes.setdefault(value, len(codes))
