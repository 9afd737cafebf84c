"""The page's data: compressed JSON in base64, in script elements that are never executed."""

import base64
import json
import math
import zlib
from typing import TypeVar

T = TypeVar("T")


class Chunks:
    """Numbers the chunks as they are written, for the index at the end."""

    def __init__(self) -> None:
        self.count = 0

    def element(self, value: object, name: str = "") -> str:
        """The script element of a chunk, with the id `name` or c and its number, `count - 1` afterwards."""
        name = name or f"c{self.count}"
        self.count += 1
        text = json.dumps(clean(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        packed = base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode("ascii")
        return f'<script type="text/plain" id="{name}">{packed}</script>\n'


def clean(value: object) -> object:
    """The value with NaN and infinities as null: JSON has no other."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value


def code(codes: dict[T, int], value: T) -> int:
    """A dictionary code: each distinct value gets the next number."""
    return codes.setdefault(value, len(codes))
