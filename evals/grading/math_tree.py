"""Trees of mathematical answers: what `evals.grading.math_parse` makes of a text. Nothing in them is evaluated.

A tree is a tuple whose first element says what it is:

    ("n", Fraction)  ("v", name)  ("vec", name)  ("c", "pi" | "e" | "i" | "inf")  ("text", words)
    ("+", a, ...)  ("*", a, ...)  ("times", a, b)  ("cdot", a, b)  ("/", a, b)  ("^", a, b)  ("neg", a)  ("root", n, a)
    ("pm", a, b)  ("mp", a, b)  ("!", a)  ("pct", a)  ("deg", a)  ("mixed", a, b)  ("f", name, a, ...)
    ("sum" | "prod" | "int", variable, low, high, body)  ("mat", rows)  ("base", digits, base)  ("unit", a, name)
    ("tuple", open, items, close)  ("set", items)  ("list", items)  ("build", element, condition)  ("ratio", items)
    ("time", hours, minutes, seconds, half of the day)  ("cup" | "cap" | "minus", a, b)  ("mod", a, m)
    ("rel", sides, operators, the text of it)  ("group", a statement in brackets)
    ("any" | "all" | "either", statements): joined by "or", by "and", by commas
"""

from collections.abc import Iterator, Sequence
from typing import Any

Tree = tuple[Any, ...]
WHOLE = "a whole number"
"""the name of a variable that is said to be one: k in "k pi, k in Z\""""


def put(tree: Any, old: Tree, new: Tree) -> Any:
    """The tree with one part in place of another."""
    if tree == old:
        return new
    return tuple(put(part, old, new) for part in tree) if isinstance(tree, tuple) else tree


def variables(tree: Tree) -> set[str]:
    """The free variables of a tree."""
    if tree[0] == "v":
        return {tree[1]}
    if tree[0] in ("sum", "prod", "int"):
        return variables(tree[2]) | variables(tree[3]) | (variables(tree[4]) - {tree[1]})
    found: set[str] = set()
    for part in parts(tree):
        found |= variables(part)
    return found


def parts(tree: Tree) -> Iterator[Tree]:
    """The trees right below a tree."""
    for part in tree[1:]:
        if isinstance(part, tuple):
            if part and isinstance(part[0], str):
                yield part
            else:
                yield from parts(("", *part))


def walk(tree: Any) -> Iterator[Tree]:
    """All trees in a tree, itself first."""
    if isinstance(tree, tuple) and tree:
        if isinstance(tree[0], str):
            yield tree
        for part in tree[1:] if isinstance(tree[0], str) else tree:
            yield from walk(part)


def about_integers(tree: Tree) -> bool:
    """Whether a statement says of a variable that it is an integer: k in Z."""
    if tree[0] == "text":
        return "integer" in tree[1] or "whole" in tree[1]
    integers = (r"\mathbb{Z}", r"\mathbb{N}", "Z", "N")
    return (
        tree[0] == "rel"
        and tree[2] == ("in",)
        and tree[1][0][0] == tree[1][1][0] == "v"
        and tree[1][1][1].rstrip("+^*") in integers
    )


def _named(tree: Tree) -> str:
    """The letter that an equation gives the value of, "" for none."""
    named = tree[0] == "rel" and tree[2] == ("=",) and tree[1][0][0] == "v" and not variables(tree[1][1])
    return tree[1][0][1] if named else ""


def joined(items: list[Tree], joins: Sequence[str]) -> Tree:
    """One item, a list, or statements joined by "or" and "and"."""
    kept = [item for at, item in enumerate(items) if at == 0 or not about_integers(item)]
    for item in items[1:]:
        if item[0] == "rel" and about_integers(item):  # its name is free to choose
            kept = [put(one, item[1][0], ("v", WHOLE)) for one in kept]
    first = kept[0]
    if (
        first[0] == "rel"
        and first[2] == ("!=",)
        and all(one[0] in ("n", "neg", "/", "root", "c", "pm") for one in kept[1:])
    ):
        kept[1:] = [("rel", (first[1][0], one), ("!=",), "") for one in kept[1:]]
    if len(kept) == 1:
        return kept[0]
    related = [item for item in kept if item[0] == "rel" and set(item[2]) & {"<", "<=", ">", ">=", "!=", "in"}]
    kinds = {join for join in joins if join in ("or", "and")}
    if len(related) == len(kept) or (related and kinds == {"or"} and all(item[0] == "rel" for item in kept)):
        if kinds == {"or"}:
            return ("any", tuple(kept))
        return ("all" if kinds == {"and"} else "either", tuple(kept))
    names = [_named(item) for item in kept]
    letters = len({*names})
    starts = range(0, len(kept), letters or 1)
    if all(names) and 1 < letters < len(kept) and all({*names[at : at + letters]} == {*names} for at in starts):
        groups = [kept[at : at + letters] for at in starts]
        return ("list", tuple(("list", tuple(group)) for group in groups))  # x = 2, y = 3 or x = 3, y = 2 are two pairs
    if "or" in joins and all(names) and len({name.split("_")[0] for name in names}) > 1:
        return ("list", (("any", tuple(kept)),))  # x = 2 or y = 3 is one claim, not two values
    return ("list", tuple(kept))
