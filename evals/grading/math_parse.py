"""A small parser of mathematical answers, LaTeX or what people type, to a tree: the whole text or nothing."""

import re
from fractions import Fraction

from evals.grading.math_tokens import ENDS, ORDINALS, CannotParse, Cursor, tokens, whole
from evals.grading.math_tree import Tree, about_integers, joined, put
from evals.grading.math_words import FUNCTIONS, SCALES, is_hedge, unit_of

_RELATIONS = {"==": "=", "<=": "<=", ">=": ">=", "!=": "!=", "<>": "!="} | {sign: sign for sign in "=<>"}
_RELATIONS |= {r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\equiv": "=", r"\in": "in", r"\notin": "!in"}
_RELATIONS |= dict.fromkeys((r"\approx", r"\sim", r"\simeq"), "~") | dict.fromkeys((r"\to", r"\rightarrow"), "->")
_RELATIONS |= dict.fromkeys((r"\Rightarrow", r"\implies"), "=>")
_MONEY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee", "¢": "cent"}
_CONSTANTS = {r"\pi": "pi", r"\infty": "inf"}
_LETTERS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma
varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar Re
Im aleph
"""
_GREEK = frozenset(f"\\{name}" for name in _LETTERS.split())
_MATRICES = ("pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "psmallmatrix", "array", "vmatrix", "Vmatrix")


def parse(text: str, joined: bool = True) -> Tree:
    """The tree of a cleaned answer. Raises CannotParse unless every character of it has a place in the tree."""
    if special := whole(text, parse):
        return special
    found = tokens(text, joined)
    if not found:
        raise CannotParse("nothing in it")
    parser = _Parser(found)
    tree = parser.answer()
    if parser.kind != "end":
        command = parser.kind == "command" and parser.value not in _KNOWN
        raise CannotParse(f"unknown command {parser.value}" if command else f"what is {parser.value!r} here?")
    return tree


class _Parser(Cursor):
    """The grammar: a method for each of its rules, from a whole answer down to an atom."""

    def answer(self) -> Tree:
        """Statements joined by "or", "and", commas; a condition on an integer at the end is no part of the answer."""
        items, joins = self.items()
        if self.kind == "cond":
            start, self.at = self.at, len(self.found) - 1
            said = " ".join(token[1] for token in self.found[start : self.at])
            names = [token[1] for token in self.found[start : self.at] if token[0] in ("letter", "text1")]
            if (every := _EVERY.fullmatch(said)) and items[-1][0] == "rel" and f"({every[1]})" in items[-1][3]:
                return joined(items, joins)  # f(x) = x for all x
            if not _INTEGERS.fullmatch(said) or len(set(names) - {"Z", "N"}) != 1:
                raise CannotParse(f"the condition {said!r}")
            items.append(("rel", (("v", names[0]), ("v", "Z")), ("in",), ""))
            joins.append(",")
        items, self.declared = items + self.declared, []
        return joined(items, joins)

    def items(self) -> tuple[list[Tree], list[str]]:
        items, joins = [self.statement()], []
        while self.kind == "sep" or (self.kind == "sign" and self.value in ",;"):
            join = self.take()
            if self.kind == "cond":
                break
            if self.kind == "sep":  # ", and"
                join = self.take()
            joins.append(join)
            items.append(self.statement())
        return items, joins

    def statement(self) -> Tree:
        """Sides joined by =, <, \\in, ...; units and a modulus after the last one."""
        with self.deeper():
            start = self.at
            sides, operators = list[Tree](), list[str]()
            if self.kind == "words" and self.found[self.at + 1][1] in ("=", ":"):
                sides, operators = [("label", self.take().lower())], ["="]
                self.take()
            else:
                self.accept(r"\approx", "=", r"\Rightarrow", r"\implies")
            sides.append(self.side())
            while self.kind in ("sign", "command") and self.found[self.at][1] in _RELATIONS:
                operators.append(_RELATIONS[self.take()])
                sides.append(self.side())
        said = "".join(token[1] for token in self.found[start : self.at])
        tree = sides[0] if not operators else ("rel", tuple(sides), tuple(operators), said)
        return ("mod", tree, self.argument()) if self.accept(r"\pmod", r"\mod") else tree

    def side(self) -> Tree:
        tree = self.measured()
        while self.next_is(r"\cup", r"\cap", r"\setminus", r"\backslash", "\\\\"):
            operator = {r"\cup": "cup", r"\cap": "cap"}.get(self.take(), "minus")
            tree = (operator, tree, self.measured())
        return tree

    def measured(self) -> Tree:
        """A value and its unit."""
        if self.kind == "words" and (
            self.at + 1 == len(self.found) - 1
            or self.found[self.at + 1][0] in ("sep", "end")
            or self.found[self.at + 1][1] in (",", ";", ")", r"\}", "]")
        ):
            return ("text", self.take())
        sign = self.at + self.next_is("-")
        money = _MONEY.get(self.found[sign][1], "")
        if money:  # -$5 is $-5
            del self.found[sign]
        tree = self.additive()
        if self.accept(r"\choose"):
            tree = ("f", "binom", tree, self.additive())
        elif self.accept(r"\over"):
            tree = ("/", tree, self.additive())
        unit = self.unit(money) or unit_of(money) or ""
        return ("unit", tree, unit) if unit else tree

    def unit(self, money: str) -> str:
        """The unit after a value, "" for none. Words that are no unit are part of the answer, and not understood."""
        rate = money and self.kind == "words" and self.value.startswith("per ")
        said: list[str] = [money] if rate else []  # $5 per hour
        while True:
            if self.kind in ("words", "text1"):
                words = self.take()
                if not words.startswith("(") or (words.endswith(")") and unit_of(words[1:-1])):  # 10 (dollars)
                    said.append(words.strip("()"))
                elif not self.remark(words):
                    raise CannotParse(f"the remark {words!r}")
            elif not said and self.next_is(*_MONEY):
                said.append(_MONEY[self.take()])
            elif said and self.next_is("^"):
                self.take()
                power = self.argument()
                said.append(f"^-{power[1][1]}" if power[0] == "neg" else f"^{power[1]}")
            elif said and self.next_is("/", r"\cdot") and self.found[self.at + 1][0] in ("words", "text1"):
                said.append("per" if self.take() == "/" else "*")
            else:
                break
        if not said:
            return ""
        name = unit_of(" ".join(said))
        if name is None:
            raise CannotParse(f"{' '.join(said)!r} is no unit")
        return name

    def remark(self, words: str) -> bool:
        """A remark in parentheses at the end that gives the reason: (because 2+3=5). It must not hedge."""
        rest = self.found[self.at : -1]
        text = " ".join([words, *(token[1] for token in rest)])
        fine = re.match(r"\(\s*(?:because|since|as|by|using|from)\b", text) and text.rstrip().endswith(")")
        if not fine or is_hedge(text) or any(token[0] == "sep" for token in rest):
            return False
        self.at = len(self.found) - 1
        return True

    def additive(self) -> Tree:
        with self.deeper():
            terms: list[Tree] = []
            while not terms or self.next_is("+", "-", r"\pm", r"\mp"):
                sign = self.take() if self.next_is("+", "-", r"\pm", r"\mp") else "+"
                if sign == "+" and terms and self.accept("-"):  # 14 + -3i
                    sign = "-"
                term = self.product()
                if sign in (r"\pm", r"\mp"):
                    terms = [(sign[1:], _of("+", terms) if terms else ("n", Fraction(0)), term)]
                    continue
                if sign == "-":
                    marked = not terms and term[0] in ("deg", "pct")
                    term = (term[0], ("neg", term[1])) if marked else ("neg", term)
                terms.append(term)
        return _of("+", terms)

    def product(self) -> Tree:
        factors: list[Tree] = [self.factor()]
        while True:
            if self.accept("*", r"\ast", r"\star"):
                factors.append(self.signed_factor())
            elif self.kind in ("sign", "command", "function") and self.value in _BINARY:
                factors = [(*_BINARY[self.take()], _of("*", factors), self.signed_factor())]
            elif self.starts_factor():
                before, grouped = self.found[self.at - 1], self.next_is("{")
                closed = before[1] in (")", "!", "i") or (  # 5!5!, i2, 2^{10}3^5
                    factors[-1][0] == "^" and factors[-1][1][0] == "n" and before[0] != "number"
                )
                if self.kind in _NUMBERS and not closed:
                    raise CannotParse(f"a number right after {before[1]!r}")
                factor = self.factor()
                if factor[0] == "group" and about_integers(factor[1]):  # n pi (n in Z)
                    self.declared.append(factor[1])
                    continue
                name = factors[0][1] if factors[0][0] == "v" and len(factors) == 1 else ""
                if factor[0] == "tuple" and name.isupper() and name != "N":
                    factors = [factor]  # the point P(1,2), not the distribution N(0,1)
                    continue
                if grouped and factor[0] == factors[-1][0] == "n":  # {1}{2} looks like 12
                    raise CannotParse("a number right after a number")
                marked = factor[0] in ("pct", "deg")
                part = factor[1] if marked else factor
                if _plain_int(factors[-1]) and before[0] == "number" and _proper(part):
                    whole = ("mixed", factors[-1], part)
                    factors[-1] = (factor[0], whole) if marked else whole
                else:
                    factors.append(factor)
            else:
                return _of("*", factors)

    def starts_factor(self) -> bool:
        kind, value, _ = self.found[self.at]
        if kind in (*_NUMBERS, "letter", "name", "vec", "function", "begin"):
            return True
        if kind == "text1":  # 3\text{ m} is metres, 3\mathrm{i} is not
            return value in "ie" or not unit_of(value)
        if kind == "sign":
            return value in ("({" if self.square else "([{") or (value == "|" and not self.bars)
        if kind == "command":
            return value in _STARTS or value in _GREEK or value in _CONSTANTS or value.startswith(r"\mathbb")
        return False

    def signed_factor(self) -> Tree:
        if self.accept("-"):
            return ("neg", self.signed_factor())
        return self.signed_factor() if self.accept("+") else self.factor()

    def factor(self) -> Tree:
        """An atom with what stands after it: powers, factorials, percent, degrees."""
        tree = self.atom()
        while True:
            if self.accept("^", "**"):
                if self.accept(r"\circ"):
                    tree = ("deg", tree)
                else:
                    tree = _raised(tree, self.exponent())
            elif self.accept("!"):
                if self.accept("!"):
                    raise CannotParse("a double factorial")
                tree = ("!", tree)
            elif self.accept("%"):
                tree = ("pct", tree)
            elif self.accept("'"):
                tree = _primed(tree)
            elif tree[0] == "deg" and self.kind == "number" and self.found[self.at + 1][1] == "'":
                tree = ("deg", ("+", tree[1], self.minutes()))
            elif self.kind == "words" and self.value.lower() in SCALES:
                tree = ("*", tree, ("n", Fraction(SCALES[self.take().lower()])))
            elif self.kind == "words" and self.value.lower() in _MARKS:
                tree = (_MARKS[self.take().lower()], tree)
            elif self.kind == "words" and not self.found[self.at][2] and self.value in ORDINALS:
                self.take()
            else:
                return tree

    def minutes(self) -> Tree:
        """15' or 15'36'' of a degree."""
        minutes, seconds = Fraction(self.take()), Fraction(0)
        self.take()
        if self.kind == "number":
            seconds = Fraction(self.take())
            self.expect("'")
            self.expect("'")
        return ("n", minutes / 60 + seconds / 3600)

    def exponent(self) -> Tree:
        if self.next_is("-", "+"):
            sign = self.take()
            tree = self.atom()
            return ("neg", tree) if sign == "-" else tree
        if self.next_is(r"\top") or (self.kind in ("letter", "text1") and self.value == "T"):
            self.take()
            return ("v", "T")
        tree = self.argument()
        return ("^", tree, self.exponent()) if self.accept("^") else tree

    def argument(self) -> Tree:
        """What LaTeX takes for an argument: a group or one token; a number is taken whole."""
        if self.kind in ("words", "sep", "end", "cond") or self.ended():
            raise CannotParse("an argument is missing")
        if self.next_is("+", "-", "*", "/", "^", "_", "="):
            raise CannotParse(f"{self.value!r} for an argument")
        with self.deeper():
            return self.atom()

    def bare_argument(self) -> Tree:
        """`argument` of \\frac: \\frac12 is a half."""
        kind, value, _ = self.found[self.at]
        if kind == "number" and value.isdecimal() and len(value) > 1:
            self.found[self.at] = (kind, value[1:], False)
            return ("n", Fraction(int(value[0])))
        return self.argument()

    def inner(self, *closing: str) -> Tree:
        """What stands between brackets, which are closed after it."""
        bars, self.bars = self.bars, 0
        tree = self.answer()
        self.bars = bars
        self.expect(*closing)
        return tree

    def atom(self) -> Tree:
        kind, value, _ = self.found[self.at]
        if kind == "number":
            self.take()
            if value.isdecimal() and self.accept("_"):
                return self.based(value)
            return ("n", Fraction(value))
        if kind == "science":
            self.take()
            mantissa, exponent = re.split("[eE]", value)
            if abs(int(exponent)) > 2000:
                raise CannotParse("an exponent over 2,000")
            return ("n", Fraction(mantissa) * Fraction(10) ** int(exponent))
        if kind == "mixed":
            whole, top, bottom = (Fraction(digits) for digits in re.split("[ /]+", self.take()))
            if not 0 < top < bottom:
                raise CannotParse("a number right after a number")
            return ("mixed", ("n", whole), ("/", ("n", top), ("n", bottom)))
        if kind == "repeat":
            self.take()
            return ("n", _repeating(value))
        if kind in ("letter", "text1", "name"):
            self.take()
            if value in "fg" and self.next_is("(") and not self.found[self.at][2]:
                start = self.at
                self.bracket("(")
                return ("v", value + "".join(token[1] for token in self.found[start : self.at]))
            return ("c", value) if value in ("i", "e") else ("v", value + self.subscript())
        if kind == "vec":
            self.take()
            return ("vec", value + self.subscript())
        if kind == "function":
            return self.function(self.take())
        if kind == "begin":
            return self.matrix(self.take())
        if kind == "sign":
            if value in "([]":
                return self.bracket(value)
            if value == "{":
                self.take()
                return self.inner("}")
            if value == "|":
                self.take()
                return self.bar()
            raise CannotParse(f"what is {value!r} here?")
        if kind == "command":
            return self.command(value)
        raise CannotParse(f"what is {value!r} here?" if value else "it ends too early")

    def based(self, digits: str) -> Tree:
        """1121_4, within more than itself (x = 1121_4)."""
        base = self.argument()
        if base[0] != "n" or not 1 < base[1] <= 10 or any(int(digit) >= base[1] for digit in digits):
            raise CannotParse("a base that does not fit")
        return ("base", digits, int(base[1]))

    def subscript(self) -> str:
        if not self.accept("_"):
            return ""
        start = self.at
        if self.skipped_group():
            return "_" + "".join(token[1] for token in self.found[start + 1 : self.at - 1])
        if self.ended():
            raise CannotParse("a subscript is missing")
        self.at += 1
        return "_" + self.found[start][1]

    def skipped_group(self) -> bool:
        """Whether a group in braces stands here, which is passed over."""
        if not self.accept("{"):
            return False
        while not self.accept("}"):
            if self.kind == "end":
                raise CannotParse("a brace that is not closed")
            self.at += 1
        return True

    def bar(self) -> Tree:
        bars, self.bars = self.bars, 1
        tree = self.answer()
        self.bars = bars
        self.expect("|")
        return ("f", "abs", tree)

    def bracket(self, opening: str) -> Tree:
        """A group, a tuple, an interval."""
        square, self.square = self.square, self.take() != "("
        tree = self.inner(")", "]", "[")
        self.square = square
        closing = self.found[self.at - 1][1]
        if tree[0] == "list":
            if closing == "[":  # French: [a, b[
                closing = ")"
            if opening == "[" and all(item[0] == "tuple" and item[1::2] == ("[", "]") for item in tree[1]):
                return _matrix([item[2] for item in tree[1]])
            return ("tuple", "(" if opening == "]" else opening, tree[1], closing)
        if closing != {"(": ")", "[": "]"}.get(opening):
            raise CannotParse("brackets that do not match")
        return ("group", tree) if tree[0] in ("rel", "text", "any", "all") else tree

    def braces(self) -> Tree:
        """A set: listed, or by a condition."""
        if self.accept(r"\}"):
            return ("set", ())
        bars, self.bars = self.bars, 1
        items, _ = self.items()
        self.bars = bars
        if len(items) == 1 and self.accept("|", ":"):
            condition = self.inner(r"\}")
            return ("build", items[0], condition)
        self.expect(r"\}")
        return ("set", tuple(items))

    def command(self, name: str) -> Tree:
        self.take()
        if name in _CONSTANTS:
            return ("c", _CONSTANTS[name])
        if name in _GREEK:
            return ("v", name + self.subscript())
        if name in (r"\frac", r"\binom"):
            both = (self.bare_argument(), self.bare_argument())
            return ("/", *both) if name == r"\frac" else ("f", "binom", *both)
        if name == r"\sqrt":
            degree = self.inner("]") if self.accept("[") else ("n", Fraction(2))
            return ("root", degree, self.argument())
        if name == r"\{":
            return self.braces()
        if name == r"\emptyset":
            return ("set", ())
        if name.startswith(r"\mathbb"):
            sign = self.found[self.at + 1][1] if self.next_is("^") and name == r"\mathbb{R}" else ""
            if sign not in ("+", "-"):
                return ("v", name)
            self.at += 2
            zero, end = ("n", Fraction(0)), ("c", "inf")
            return ("tuple", "(", (zero, end) if sign == "+" else (("neg", end), zero), ")")
        if name in (r"\lfloor", r"\lceil"):
            return ("f", name[2:], self.inner(name.replace("l", "r", 1)))
        if name == r"\langle":
            tree = self.inner(r"\rangle")
            return ("tuple", "(", tree[1] if tree[0] == "list" else (tree,), ")")
        if name in (r"\angle", r"\triangle", r"\measuredangle", r"\parallel", r"\perp", r"\star", r"\Box"):
            start = self.at
            while self.kind in ("letter", "text1", "name", "number") or self.next_is(*_GREEK):
                self.take()
            letters = "".join(token[1] for token in self.found[start : self.at])
            if not letters:
                raise CannotParse(f"{name} of what?")
            return ("v", f"{name}_{min(letters, letters[::-1])}")
        if name in (r"\sum", r"\prod"):
            return self.series(name[1:])
        if name == r"\int":
            return self.integral()
        if name in FUNCTIONS:
            return self.function(FUNCTIONS[name])
        raise CannotParse(f"unknown command {name}")

    def function(self, name: str) -> Tree:
        """A named function: its power, its base, its arguments in brackets or the factors right after it."""
        base = power = None
        for _ in range(2):
            if self.accept("_"):
                base = self.argument()
            elif self.accept("^"):
                power = self.exponent()
        if name == "sqrt":
            tree: Tree = ("root", ("n", Fraction(2)), self.argument())
        elif self.next_is("(", "[", "{", r"\{") and name in _OF_ITEMS:
            group = self.atom()
            items = group[2] if group[0] == "tuple" else group[1] if group[0] in ("set", "list") else (group,)
            tree = ("f", name, *items)
        else:
            tree = ("f", name, self.function_argument())
        if name == "log" and base is not None:
            tree = (*tree, base)
        elif base is not None:
            raise CannotParse(f"a subscript at {name}")
        if power is None:
            return tree
        if power == ("neg", ("n", Fraction(1))) and name in _INVERSE:
            return ("f", _INVERSE[name], *tree[2:])
        return ("^", tree, power)

    def function_argument(self) -> Tree:
        if self.next_is("(", "["):
            tree = self.atom()
            while self.next_is("!") or (self.next_is("^") and self.found[self.at + 1][1] == r"\circ"):
                tree = ("!", tree) if self.take() == "!" else ("deg", tree)
                self.accept(r"\circ")
            return tree
        sign = self.accept("-")
        factors = [self.factor()]
        while (
            self.kind in ("letter", "text1", "name") or self.next_is(r"\frac", r"\sqrt", *_GREEK, *_CONSTANTS)
        ) and self.starts_factor():
            factors.append(self.factor())
        tree = _of("*", factors)
        if self.next_is("/") and self.found[self.at + 1][0] == "number" and not sign:
            self.take()
            tree = ("/", tree, self.factor())
        return ("neg", tree) if sign else tree

    def limits(self) -> tuple[Tree | None, Tree | None]:
        low = high = None
        for _ in range(2):
            if self.accept("_"):
                low = self.inner("}") if self.accept("{") else self.argument()
            elif self.accept("^"):
                high = self.exponent()
        return low, high

    def series(self, name: str) -> Tree:
        low, high = self.limits()
        if low is None or high is None or low[0] != "rel" or len(low[1]) != 2 or low[2] != ("=",):
            raise CannotParse(f"\\{name} without limits")
        (variable, first), body = low[1], self.product()
        if variable == ("c", "i"):  # an index here
            body = put(body, variable, ("v", "i"))
        elif variable[0] != "v":
            raise CannotParse(f"\\{name} over what?")
        return (name, variable[1], first, high, body)

    def integral(self) -> Tree:
        low, high = self.limits()
        if low is None or high is None:
            raise CannotParse("an integral without limits")
        for end in range(self.at, len(self.found) - 2):
            d, variable = self.found[end], self.found[end + 1]
            if d[0] in ("letter", "text1") and d[1] == "d" and variable[0] in ("letter", "text1"):
                inner = _Parser(self.found[self.at : end])
                body = inner.additive() if end > self.at else ("n", Fraction(1))
                if end > self.at and inner.kind != "end":
                    raise CannotParse(f"what is {inner.value!r} here?")
                self.at = end + 2
                return ("int", variable[1], low, high, body)
        raise CannotParse("an integral without its variable")

    def matrix(self, name: str) -> Tree:
        if name not in _MATRICES:
            raise CannotParse(f"unknown environment {name}")
        if name == "array":
            self.skipped_group()
        rows: list[tuple[Tree, ...]] = []
        row: list[Tree] = []
        while self.kind != "end":
            if self.accept(r"\hline"):
                continue
            row.append(self.additive() if not self.next_is("\\\\") else ("n", Fraction(0)))
            if self.accept("&"):
                continue
            rows.append(tuple(row))
            row = []
            if not self.accept("\\\\"):
                break
            if self.kind == "close":
                break
        if self.kind != "close" or self.value != name:
            raise CannotParse(f"{name} is not closed")
        self.take()
        tree = _matrix(rows)
        return ("f", "det", tree) if name in ("vmatrix", "Vmatrix") else tree


_FIRST = r"\frac \sqrt \binom \{ \emptyset \lfloor \lceil \langle \sum \prod \int \angle \triangle"
_STARTS = frozenset(_FIRST.split()) | {name for name in FUNCTIONS if name.startswith("\\")}
_OF_ITEMS = ("max", "min", "gcd", "lcm", "det", "abs", "exp", "floor", "ceil", "binom", "mod")
"""functions whose arguments are all in the bracket after them"""
_KNOWN = _STARTS | _GREEK | ENDS | _RELATIONS.keys() | _CONSTANTS.keys()
_INTEGERS = re.compile(
    r",? ?(?:where|for|with)(?: all| any| some| every| each)?(?: integers?| whole numbers?)?(?: of)?(?:[ ,]+[a-zA-Z])?"
    r"(?: \\in \\mathbb\{[ZN]\}(?: [_^+*>=0{}]+)?| (?:is|are|an|any|some|a|integers?|whole numbers?| )+)?"
)
_EVERY = re.compile(
    r",? ?for (?:all|any|every|each)(?: reals?| real numbers?)? ([a-zA-Z])(?: \\in (?:\\mathbb\{R\}|R))?"
)
"""says nothing of a function of x"""
_NUMBERS = ("number", "science", "repeat", "mixed")
_MARKS = dict.fromkeys(("percent", "per cent"), "pct") | dict.fromkeys(("degrees", "degree", "度"), "deg")
_BINARY = {r"\cdot": ("cdot",), r"\times": ("times",)} | dict.fromkeys(("/", r"\div"), ("/",))
_BINARY |= dict.fromkeys((r"\bmod", "mod"), ("f", "mod"))
_INVERSE = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}


def _of(operator: str, parts: list[Tree]) -> Tree:
    """A sum or product; of one part, the part."""
    return parts[0] if len(parts) == 1 else (operator, *parts)


def _matrix(rows: list[tuple[Tree, ...]]) -> Tree:
    if not rows or len({len(one) for one in rows}) != 1:
        raise CannotParse("rows of different lengths")
    return ("mat", tuple(rows))


def _raised(tree: Tree, power: Tree) -> Tree:
    """A power; 45^o is in degrees, (1, 2)^T a column."""
    if tree[0] == "n" and power == ("v", "o"):
        return ("deg", tree)
    transposed = tree[0] == "tuple" and power == ("v", "T")
    return _matrix([(item,) for item in tree[2]]) if transposed else ("^", tree, power)


def _primed(tree: Tree) -> Tree:
    return ("v", f"{tree[1]}'".replace(" ", ""))


def _plain_int(tree: Tree) -> bool:
    return tree[0] == "n" and tree[1].denominator == 1


def _proper(tree: Tree) -> bool:
    """A fraction of two numbers below one: after a whole number it makes a mixed number."""
    return tree[0] == "/" and _plain_int(tree[1]) and _plain_int(tree[2]) and 0 < tree[1][1] < tree[2][1]


def _repeating(text: str) -> Fraction:
    """0.1\\overline{6} is 1/6."""
    exact, _, repeated = text.partition("\\")
    period = re.sub(r"\D", "", repeated)
    digits = len(exact.partition(".")[2])
    return Fraction(f"0{exact}0") + Fraction(int(period), (10 ** len(period) - 1) * 10**digits)
