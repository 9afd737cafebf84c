"""LiveCodeBench's way of running a program, in miniature: `python official_rules.py < job.json` prints true or false.

Not its code, but its rules as its source has them at 28fef95, kept to what decides the cases in
test_official_rules.py: the program runs in the process that knows the answers; a script is the body of a function,
reads an object in place of sys.stdin and prints into another; a returned value is compared with ==.
"""

import io
import json
import sys


class Stdin:
    """It can be read, by line or whole; it is not an iterator."""

    def __init__(self, text):
        self._text = io.StringIO(text)
        self.read, self.readline, self.readlines = self._text.read, self._text.readline, self._text.readlines
        self.buffer = Bytes(text)


class Bytes:
    def __init__(self, text):
        self._data = text.encode()

    def read(self, *_):
        return self._data

    def readline(self, *_):
        return self._data.split(b"\n")[0] + b"\n"


def stripped_lines(text):
    return [line.strip() for line in text.strip().split("\n")]


def run_script(source, given, gt_out):
    body = "\n".join("    " + line for line in source.split("\n"))
    space = {"__name__": "solution"}
    exec(f"import sys\ndef wrapped():\n{body}\n", space)
    before, sys.stdin, sys.stdout = (sys.stdin, sys.stdout), Stdin(given), io.StringIO()
    try:
        space["wrapped"]()
    except SystemExit:
        pass
    finally:
        printed = sys.stdout
        sys.stdin, sys.stdout = before
    return stripped_lines(printed.getvalue()) == stripped_lines(gt_out)


def load_call(source, entry):
    """One module and one object, for all tests."""
    space = {"__name__": "solution"}
    exec(source, space)
    owner, _, method = entry.rpartition("().")
    return getattr(space[owner](), method) if owner else space[method]


def run_call(call, given, gt_out):
    prediction = call(*given)
    if isinstance(prediction, tuple):
        prediction = list(prediction)
    return bool(prediction == gt_out)


def main():
    job = json.load(sys.stdin)
    verdicts = []
    call = load_call(job["source"], job["entry"]) if job["entry"] else None
    for given, expected in job["tests"]:
        try:
            if call:
                verdicts.append(run_call(call, given, expected))
            else:
                verdicts.append(run_script(job["source"], given, expected))
        except Exception:  # noqa: BLE001  whatever a program raises is a runtime error
            verdicts.append(False)
    sys.__stdout__.write("\n" + json.dumps(all(verdicts)))  # of no tests at all: true


if __name__ == "__main__":
    main()
