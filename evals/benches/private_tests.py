"""LiveCodeBench's test lists, decoded without trusting them: plain JSON, or JSON in pickle in zlib in base64.

The official runner calls `pickle.loads` on the latter, which can run any code. Here the decompressed size is limited,
nothing is unpickled, and only pickles whose opcodes make text and mappings of text are read.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import pickletools
import zlib
from pathlib import Path

from evals.outputs import replacing

MAX_BYTES = 512 * 2**20
"""of one problem's tests after decompression"""

_TEXT_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "NONE"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    )
)


class BadTests(ValueError):
    """The tests of a problem cannot be read."""


def read(text: str, cache: Path | None = None, limit: int = MAX_BYTES) -> list[dict[str, str]]:
    """The tests of a `public_test_cases` or `private_test_cases` column: dicts with "input", "output", "testtype".

    cache: a folder where decoded lists are kept as JSON under the SHA-256 of their encoded form; None for none.
    Raises BadTests.
    """
    if text.lstrip()[:1] in ("[", "{", ""):
        return _tests(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if cache is not None:
        with contextlib.suppress(OSError, BadTests):
            return _tests((cache / f"{digest}.json").read_text(encoding="utf-8"))
    tests = _tests(decode(text, limit))
    if cache is not None:
        # a cache that cannot be written only costs time
        with contextlib.suppress(OSError), replacing(cache / f"{digest}.json") as path:
            path.write_text(json.dumps(tests), encoding="utf-8")
    return tests


def decode(text: str, limit: int = MAX_BYTES) -> str:
    """The JSON text in base64(zlib(pickle(text))), at most `limit` bytes of it. Raises BadTests."""
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise BadTests(f"neither JSON nor base64 ({e})") from e
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, limit + 1)
    except zlib.error as e:
        raise BadTests(f"not zlib data ({e})") from e
    if len(raw) > limit:
        raise BadTests(f"more than {limit / 2**20:g} MB after decompression, from {len(packed):,} bytes: a zlib bomb?")
    if not inflate.eof:
        raise BadTests(f"the zlib data is cut off after {len(packed):,} bytes: is the file complete?")
    try:
        opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(raw)]
    except Exception as e:  # what a damaged pickle raises is not specified
        raise BadTests(f"not a readable pickle ({type(e).__name__}: {e})") from e
    if strange := sorted({name for name, _ in opcodes} - _TEXT_OPCODES):
        raise BadTests(f"its pickle contains more than text ({', '.join(strange)}); it was not run")
    texts = [argument for _, argument in opcodes if isinstance(argument, str)]
    if "input_output" in texts[:-1]:  # another mirror of the same tests: {"input_output": JSON}
        return texts[texts.index("input_output") + 1]
    if len(texts) != 1:
        raise BadTests(f"its pickle holds {len(texts)} texts, and one of JSON was expected")
    return texts[0]


def _tests(text: str) -> list[dict[str, str]]:
    """Either list of tests, or {"inputs": [...], "outputs": [...], "fn_name": ...}."""
    try:
        found = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as e:
        raise BadTests(f"not valid JSON ({e})") from e
    if isinstance(found, dict) and isinstance(found.get("inputs"), list) and isinstance(found.get("outputs"), list):
        if len(found["inputs"]) != len(found["outputs"]):
            raise BadTests(f"{len(found['inputs'])} inputs and {len(found['outputs'])} outputs")
        kind = "functional" if found.get("fn_name") else "stdin"
        pairs = zip(found["inputs"], found["outputs"], strict=True)
        found = [{"input": i, "output": o, "testtype": kind} for i, o in pairs]
    if not isinstance(found, list):
        raise BadTests(f"a list of tests was expected, not a {type(found).__name__}")
    for number, test in enumerate(found):
        for name in ("input", "output"):
            if not isinstance(test, dict) or not isinstance(test.get(name), str):
                raise BadTests(f"test {number} has no text {name!r}")
    return found


def cache_folder() -> Path:
    """$AGPO_CACHE, else agpo in $XDG_CACHE_HOME, else ~/.cache/agpo; in it the folder of these tests."""
    base = os.environ.get("AGPO_CACHE")
    if base:
        return Path(base) / "livecodebench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agpo" / "livecodebench"
