"""Wrong answers made from right ones, for the grader: one thing changed, as a guess or a slip would change it."""

import re
from collections.abc import Iterator

_WORDS = re.compile(r"\\[a-zA-Z]+(?:\{[a-z]*matrix\})?|\\text\{[^{}]*\}|\\mbox\{[^{}]*\}")


def wrong_answers(reference: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the answer). Every one differs from the reference in value, form or order."""
    text = reference.strip().rstrip(".")
    masked = _WORDS.sub(lambda m: "\0" * len(m[0]), text)
    yield from _digits(text, masked)
    yield from _signs(text, masked)
    for m in list(re.finditer(r"\\[dtc]?frac\{([^{}]+)\}\{([^{}]+)\}", text))[:3]:
        if m[1].strip() != m[2].strip():
            yield "turned over", f"{text[: m.start()]}\\frac{{{m[2]}}}{{{m[1]}}}{text[m.end() :]}"
        yield "numerator", f"{text[: m.start()]}\\frac{{{m[1]}+1}}{{{m[2]}}}{text[m.end() :]}"
        yield "denominator", f"{text[: m.start()]}\\frac{{{m[1]}}}{{2({m[2]})}}{text[m.end() :]}"
        if text == m[0] and m[1].isdigit() and m[2].isdigit() and int(m[1]) * 10**7 % int(m[2]):
            yield "rounded", f"{int(m[1]) / int(m[2]):.6f}"
    if re.fullmatch(r"\d*\\(?:pi|sqrt\{\d+\})", text):
        number = int(re.match(r"\d*", text)[0] or 1)  # type: ignore[index]
        root = re.search(r"sqrt\{(\d+)\}", text)
        value = number * (int(root[1]) ** 0.5 if root else 3.141592653589793)
        if value != int(value):
            yield "rounded", f"{value:.4f}"
            yield "rounded", f"{value:.12f}"
    yield from _elements(text)
    if base := re.search(r"_\{?(\d)\}?$", text):
        yield "other base", f"{text[: base.start()]}_{{{int(base[1]) + 1}}}"
    variables = [m for m in re.finditer(r"(?<![a-zA-Z\\{])[a-df-hj-zA-Z](?![a-zA-Z])", masked) if "=" not in text]
    if variables and "text" not in text and len(text) > 1:
        m = variables[-1]
        yield "other variable", text[: m.start()] + ("w" if m[0] != "w" else "u") + text[m.end() :]
        if re.search(r"\d" + m[0] + "$", text) and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
            yield "dropped variable", text[: m.start()]
    for mark, other in (("[", "("), ("]", ")")):
        if text.count(mark) == 1 and "infty" not in text and "matrix" not in text and "sqrt[" not in text:
            yield "other bracket", text.replace(mark, other)


def _digits(text: str, masked: str) -> Iterator[tuple[str, str]]:
    places = [m.start() for m in re.finditer(r"\d", masked)]
    for at in {places[0], places[-1]} if places else ():
        digit = int(text[at])
        if text[:at].endswith("_") or text[:at].endswith("_{"):
            continue
        for new in (digit + 1, digit - 1) if digit < 9 else (8,):
            if new > 0 or (new == 0 and at and masked[at - 1].isdigit()):
                changed = f"{text[:at]}{new}{text[at + 1 :]}"
                yield "digit", changed


def _signs(text: str, masked: str) -> Iterator[tuple[str, str]]:
    if re.fullmatch(r"[\d.]*[1-9][\d.]*", text) or re.fullmatch(r"\\[dt]?frac\{\d*[1-9]\}\{\d+\}", text):
        yield "sign", f"-{text}"
    for m in list(re.finditer(r"(?<=[\w})]) ?([-+])", masked))[:4]:
        at = m.start(1)
        if not (set(re.findall(r"\w", masked[at + 1 :].strip()[:1])) <= {"0"}):
            yield "sign", text[:at] + ("-" if m[1] == "+" else "+") + text[at + 1 :]
    if text.startswith("-") and re.fullmatch(r"-[\d.]*[1-9]\d*", text):
        yield "sign", text[1:]


def _elements(text: str) -> Iterator[tuple[str, str]]:
    inner = re.fullmatch(r"(\\left)?\(([^()\[\]]*)(\\right)?\)", text)
    content = (
        inner[2].strip().removesuffix("\\right")
        if inner
        else text
        if re.fullmatch(r"[^()\[\]{}a-zA-Z\\]*", text)
        else ""
    )
    parts = [part.strip() for part in content.split(",")] if "\\!" not in content else []
    if len(parts) < 2 or any(re.fullmatch(r"\d{3}", part) for part in parts[1:]):
        return
    wrap = (lambda some: f"({', '.join(some)})") if inner else ", ".join
    if len(parts) > 2 or not inner:
        yield "dropped element", wrap(parts[:-1])
    yield "added element", wrap([*parts, "97"])
    if inner and parts[0] != parts[1] and "\\infty" not in text:
        yield "swapped", wrap([parts[1], parts[0], *parts[2:]])
    yield "repeated element", wrap([*parts, parts[0]])
