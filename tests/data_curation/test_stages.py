"""Normalise, answer checks, duplicates, decontamination: what goes on, what does not, and why."""

import json

import pytest

from data_curation import answers, decontaminate, dedupe, normalise
from data_curation.decontaminate import DecontaminateOptions, Reference
from data_curation.dedupe import CONFLICT, FORM, NEAR, SIBLINGS, ExactOptions, NearOptions
from data_curation.stage import CodeTests, Context, Row

CONTEXT = Context(workers=1)
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)
LONG = "A bag holds 12 red and 30 blue marbles and Ann draws marbles until she has two of one colour"


YUMMY = (
    "Say that an integer is yummy if there exist several consecutive integers, including it, that add up to 2014. What "
    "is the smallest yummy integer?"
)
YUMMY_ANEW = (
    "Determine the smallest integer such that there exist consecutive integers, including it, which sum to 2014. An "
    'integer with this property is called "yummy."'
)
FEW = (
    "A contest consists of six problems, each worth 7 points. For any given problem, a contestant can score either "
    "0, 1 or 7 points. Determine the number of possible total scores a contestant can achieve across all six problems."
)
FEW_ANEW = (
    "A contest has six problems worth seven points each. On any given problem, a contestant can score either "
    "$0$, $1$, or $7$ points. How many possible total scores can a contestant achieve over all six problems?"
)


def rows(*problems: tuple[str, str] | str, source: str = "a") -> list[Row]:
    pairs = [one if isinstance(one, tuple) else (one, "1") for one in problems]
    return [Row(f"{source}:{i}", source, problem, answer) for i, (problem, answer) in enumerate(pairs)]


def fates(result) -> dict[str, str]:
    return {one.id: one.reason for one in result.drops}


@pytest.mark.parametrize(
    ("raw", "clean", "rule"),
    [
        ("Find \x0crac{1}{2}.", "Find \\frac{1}{2}.", "eaten backslash restored"),
        ("is \\(\x08eta\\) or 2\times 3", "is \\(\\beta\\) or 2\\times 3", "eaten backslash restored"),
        ("e\u0301", "\u00e9", "composed characters (NFC)"),
        ("a\r\nb\rc", "a\nb\nc", "line ends"),
        ("x\u200b+\x00y", "x+y", "invisible and control characters"),
        (
            DAPO.format("What is 1+1?"),
            "What is 1+1?",
            "prompt template taken off",
        ),
        (
            "1+1? Let's think step by step and output the final answer within \\boxed{}.",
            "1+1?",
            "prompt template taken off",
        ),
        (
            "求 1+1.\n让我们一步一步地思考。请以“Answer: \\boxed{<final_answer>}”的格式输出最终答案。",
            "求 1+1.",
            "prompt template taken off",
        ),
        ("  a \n b  ", "a\n b", "space at the ends"),
        ("Tabs\tstay \\text{here}", "Tabs\tstay \\text{here}", None),
        ("de\x0cne fi\x0cve \x0cfirst", "dene five first", "invisible and control characters"),
        ("\\star\x88 $y \x14\\le 2$ \x0c \x0c\n|", "\\star $y \\le 2$\n|", "invisible and control characters"),
        ("m^2=\x0c\\frac{p}{q}", "m^2=\\frac{p}{q}", "invisible and control characters"),
        ("a \neq 0,\nabla f,\right)", "a \\neq 0,\\nabla f,\\right)", "eaten backslash restored"),
        ("$x\to 0$, \tan\theta, \x08igl(", "$x\\to 0$, \\tan\\theta, \\bigl(", "eaten backslash restored"),
        ("1.\tan apple\nnow", "1.\tan apple\nnow", None),
        ("there\nexists a\nmid-point", "there\nexists a\nmid-point", None),
    ],
)
def test_normalise_mends_what_means_the_same(raw, clean, rule):
    text, rules = normalise.normalise(raw)
    assert text == clean
    assert (rule in rules) if rule else not rules


def test_normalise_lists_what_is_empty_or_endless():
    result = normalise.run(rows("fine", "\u200b \n", "x" * 1_000_000), normalise.NormaliseOptions(), CONTEXT)
    assert [row.id for row in result.rows] == ["a:0"]
    assert fates(result) == {"a:1": "empty problem", "a:2": "longer than 20,000 characters"}


def test_answers_that_cannot_be_graded_do_not_go_on():
    result = answers.run(
        rows(
            ("How many?", "12"),
            ("How much?", "\\frac{1}{2}"),
            ("Which day?", "\\text{Friday}"),
            ("What?", " "),
            ("What?", "{}"),
            ("Prove that 2 is even.", "1"),
            ("Prove that it converges and find its limit.", "3"),
            ("Do this.\n(a) Find x.\n(b) Find y.", "3"),
            ("Choose what is right: (A) 3 (B) 4 (C) 5", "\\text{(A)}"),
            ("Given (1) x > 2 and (2) y > 3 and x + y = 9, what is x?", "5"),
            ("What is it?", "5} and {6"),
            ("Find it.\n(a) Find x.\n(b) Find y. Please provide the value of x + y.", "3"),
            ("(1) 求 $x$;\n(2) 求 $y$。请给出这两个值的和。", "3"),
            ("(a) Prove that it is even. (b) Find it.", "4"),
            ("Build the longest table and demonstrate that no longer one exists.", "27"),
            ("Which one?", "notfound"),
            ("Which one?", "None"),
        ),
        answers.AnswerOptions(),
        CONTEXT,
    )
    assert fates(result) == {
        "a:3": "empty answer",
        "a:4": "empty answer",
        "a:5": "asks for a proof",
        "a:7": "asks for several parts",
        "a:10": "the answer breaks out of its box",
        "a:15": "no answer",
        "a:16": "no answer",
    }
    assert len(result.rows) == 10
    assert result.facts["examples of strings"] == ["\\text{Friday}"]
    given = rows(
        ("Which day?", "\\text{Friday}"), ("Why?", "Because the 3 sides are equal"), ("x?", "10\\text{ inches}")
    )
    strict = answers.run(given, answers.AnswerOptions(unparsed="drop"), CONTEXT)
    assert [row.id for row in strict.rows] == ["a:2"]
    kept = answers.run(rows(("Prove that 2 is even.", "1")), answers.AnswerOptions(proofs="keep"), CONTEXT)
    assert len(kept.rows) == 1


PARTS = "Do this.\n(a) Find x.\n(b) "


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ("Find the sum of its roots.", False),
        ("Find the value of y.", False),
        ("What is the number of zeros?", False),
        ("Find y. Give each answer as a fraction.", False),
        ("Find y. Compute 10x + y.", True),
        ("Find y. Submit $x+y$.", True),
        ("Find y. What is the sum of your answers to (a) and (b)?", True),
        ("Find y. Give the difference between the two.", True),
        ("Find y. Report the product of both values.", True),
        ("How many are odd? Give the answer to the last part only, the value of y.", True),
        ("Prove that y is even.", True),
        ("Show that y > 2 and find it.", False),
        ("求 $y$。最后求 $x$ 与 $y$ 的和。", True),
        ("求 $y$。", False),
        ("Find y. What is the total of the two answers?", True),
        ("Find y. Report the second answer.", True),
        ("Find y. Submit the answer for (b).", True),
    ],
)
def test_several_parts_may_ask_for_one_number(end, kept):
    result = answers.run(rows((PARTS + end, "3")), answers.AnswerOptions(), CONTEXT)
    assert len(result.rows) == kept, fates(result)


@pytest.mark.parametrize(("first", "kept"), [("求 $x$", False), ("求证 $x > 2$", True), ("当 $x=2$", True)])
def test_parts_in_chinese(first, kept):
    given = rows((f"已知三角形。（1）{first}；（2）求 $y$ 的最大值。", "3"))
    assert len(answers.run(given, answers.AnswerOptions(), CONTEXT).rows) == kept


def test_exact_keeps_the_first_and_quarantines_contradictions():
    given = [
        *rows(("What is  $x+1$?", "3"), ("other", "4"), ("clash", "5"), ("half?", "\\frac12"), source="a"),
        *rows(("what is x + 1 ?", "3"), ("clash", "-1"), ("clash", "5"), ("half?", "0.5"), source="b"),
    ]
    result = dedupe.exact(given, ExactOptions(), CONTEXT)
    assert [row.id for row in result.rows] == ["a:0", "a:1", "a:3"]
    assert fates(result) == {
        "b:0": "the same problem in another source",
        "b:3": "the same problem in another source",
        "a:2": CONFLICT,
        "b:1": CONFLICT,
        "b:2": CONFLICT,
    }
    (evidence,) = {str(d.detail["answers"]) for d in result.drops if d.reason == CONFLICT}
    assert evidence == str({"a:2": "5", "b:1": "-1", "b:2": "5"})
    assert result.facts["conflicting problems"] == 1
    trusted = dedupe.exact(given, ExactOptions(trust=("a",)), CONTEXT)
    assert [row.id for row in trusted.rows] == ["a:0", "a:1", "a:2", "a:3"]


TETRA = "在正四面体 $P-A B C$ 中, $P E \\neq P F$ ，且 $A E=A F=2$, 求它的体积."
PLAIN = (
    "设 $a, b, c$ 在同一平面内的三个单位向量，且 $\\boldsymbol{a} \\perp \\boldsymbol{b}$，"
    "求 $(c-a) \\cdot(c-b)$ 的最大值。"
)
BOLD = (
    "设 $\\boldsymbol{a} 、 \\boldsymbol{b} 、 \\boldsymbol{c}$ 为同一平面内的三个单位向量，且 $a \\perp b$。求 "
    "$(\\boldsymbol{c}-\\boldsymbol{a}) \\cdot(\\boldsymbol{c}-\\boldsymbol{b})$ 的最大值。"
)
M_BY_N = "The original answer is in m/n format, give m + n."
COPY = (
    "There are 12 red and 30 blue marbles in a bag; Ann draws marbles until she has two of one colour. Find the chance."
)


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (
            (f"{LONG}. What is the probability of red?", "7"),
            (f"{LONG}, what is the probability of red now?", "7"),
            NEAR,
        ),
        ((f"{LONG}. What is the probability of red?", "7"), (COPY, "7"), NEAR),  # told anew
        ((f"{LONG}. What is the probability of red?", "7"), (COPY.replace("30", "31"), "7"), None),
        ((f"{LONG}. What is red?", "\\frac12"), (f"{LONG}; what is red?", "0.5"), NEAR),
        ((f"{LONG}. What is it?", "\\text{(A)}"), (COPY, "A"), None),  # letters are equal by chance
        ((f"{LONG}. What is red?", "7"), (f"{LONG.replace('30', '31')}. What is red?", "7"), None),
        ((f"{LONG}, what is it?", "6"), (f"{LONG}. Find what it is.", "7"), CONFLICT),
        ((f"{LONG}, with at most 5. Red?", "6"), (f"{LONG}, with at least 5. Red?", "7"), SIBLINGS),
        ((f"{LONG}. Find the sum.", "6"), (f"{LONG}. Find the product.", "7"), SIBLINGS),
        ((f"{LONG}. Find it.", "6"), (f"{LONG}. Find it. The answer is in the form m/n, give m + n.", "7"), FORM),
        ((f"{LONG}. Find $AB$ of it.", "6"), (f"{LONG}. Find $AC$ of it.", "7"), SIBLINGS),
        ((f"{LONG}. Find the least positive one.", "6"), (f"{LONG}. Find the least postive one.", "7"), CONFLICT),
        ((f"{LONG}. It is a regular one.", "6"), (f"{LONG}. It is an irregular one.", "7"), SIBLINGS),
        ((f"{LONG}, 12 or 30. Red?", "6"), (f"{LONG}, 12 or 12. Red?", "7"), SIBLINGS),
        ((f"{LONG}, xOy. Red?", "6"), (f"{LONG}, x O y. Red?", "7"), CONFLICT),
        *(  # a long text in which one sign or number is another
            ((f"{LONG * 4} $x {a} 3$?", answers[0]), (f"{LONG * 4} $x {b} 3$?", answers[1]), what)
            for answers in (("6", "7"), ("6", "6"), ("173", "173"))
            for a, b, what in (
                ("+", "-", SIBLINGS),
                ("<", "\\geq", SIBLINGS),
                ("+ 4 +", "+ 14 +", SIBLINGS if answers[0] == answers[1] else None),
                ("\u2212", "-", CONFLICT if answers[0] != answers[1] else NEAR),
            )
        ),
        ((f"{LONG * 4} $-3$?", "6"), (f"{LONG * 4} $3$?", "7"), SIBLINGS),
        (
            ("Simplify 111/9999 times 33.", "6"),
            ("Simplify 111/9999 times 33. The answer is in the form m/n, give m + n.", "7"),
            FORM,
        ),
        # one way of writing: letters of Chinese texts, macros, bold, percent, an image's address
        (("在正四面体 P-ABC 中，PE\\neq PF，AE=AF=2，求体积。", "9"), (TETRA, "9"), NEAR),
        (
            (PLAIN, "3"),
            (BOLD, "3"),
            NEAR,
        ),
        ((f"{LONG}. It is red in 75\\%, 5 of 9. How often?", "7"), (f"{LONG}, red in 0.75, 5 of 9. When?", "7"), NEAR),
        ((f"{LONG}. See ![](https://a.b/2024_1.jpg) How often?", "7"), (f"{LONG}. How often?", "6"), CONFLICT),
        # the question went into the sentence on its answer's form
        ((f"{LONG}. Is the second red with probability?", "0.3"), (f"{LONG}. {M_BY_N}", "13"), FORM),
        ((f"{LONG}. Is the second red with probability?", "0.3"), (f"{LONG}.", "13"), SIBLINGS),
        ((f"{LONG}. Find the sum of a+b.", "7"), (f"{LONG}. Is the second red with probability?", "0.3"), SIBLINGS),
        ((YUMMY, "-2013"), (YUMMY_ANEW, "-2013"), NEAR),  # six digits do not agree by chance
        ((YUMMY, "3"), (YUMMY_ANEW, "3"), None),
        (
            ("How many ways are there to arrange the letters of the word LOOP?", "12"),
            ("How many ways are there to arrange the letters of the word NINE?", "12"),
            None,
        ),
        ((f"{LONG}, 3 or 4. Red?", "6"), (f"{LONG}, 3 and 4. Red?", "7"), SIBLINGS),
        ((FEW, "28"), (FEW_ANEW, "28"), NEAR),  # a two-digit answer is seldom shared by chance
        ((FEW, "8"), (FEW_ANEW, "8"), None),
        (
            ('In the square of sums, find y + z. Its rows have the same sum. [asy] label("25",1); [/asy]', "46"),
            ('In the square of sums, find $y+z$. Its rows have the same sum. [asy] label("$25$",2); [/asy]', "46"),
            NEAR,
        ),
        (
            ("In it, what is $x$? [asy] draw(1); [/asy]", "6"),
            ("In it, what is $x$? [asy] draw(2); [/asy]", "6"),
            SIBLINGS,
        ),
    ],
)
def test_near_tells_copies_from_siblings(one, other, what):
    result = dedupe.near(rows(one, other), NearOptions(), CONTEXT)
    assert [pair["what"] for pair in result.pairs] == ([what] if what else [])
    dropped = {NEAR: ["a:1"], FORM: ["a:1"], CONFLICT: ["a:0", "a:1"]}.get(what, [])
    assert fates(result) == dict.fromkeys(dropped, what)
    for pair in result.pairs:
        assert pair["texts"] == [one[0], other[0]]
        assert (pair["done"] == "both kept") == (not dropped)


STATEMENT = (
    "You are given an array $a$ of $n$ integers. Add one to elements until all are distinct; find the fewest additions."
    "\n\nInput\nThe first line has $t$ ($1 \\le t \\le 100$), then $n$ ($1 \\le n \\le 10^{}$) and $a_i \\le 10^{}$."
)


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (STATEMENT.format(5, 9), STATEMENT.format(9, 5), 2),
        (STATEMENT.format(5, 9), STATEMENT.format(3, 9), 2),
        (f"B. Distinct\nCodeforces Round #345 (Div. 2)\n{STATEMENT.format(5, 9)}", STATEMENT.format(5, 9), 1),
        (f"Distinct (Div. 1)\n{STATEMENT.format(5, 9)}", f"Distinct (Div. 2)\n{STATEMENT.format(5, 9)}", 1),
    ],
)
def test_programs_are_one_with_the_same_limits_whatever_the_contest(one, other, kept):
    made = [Row(f"a:{at}", "a", text, "", {}, CodeTests(["1"], ["1"])) for at, text in enumerate((one, other))]
    assert len(dedupe.near(made, NearOptions(), CONTEXT).rows) == kept


def test_near_thresholds_and_trust():
    copies = rows((f"{LONG}. What is the probability of red?", "7"), (COPY, "7"))
    assert len(dedupe.near(copies, NearOptions(same_answer=0.9), CONTEXT).rows) == 2
    clash = [*rows((f"{LONG}, what is it?", "6")), *rows((f"{LONG}. Find what it is.", "7"), source="b")]
    assert [row.id for row in dedupe.near(clash, NearOptions(trust=("b",)), CONTEXT).rows] == ["b:0"]


def test_near_follows_chains_to_the_first():
    chain = [LONG + " and so on" * k + "?" for k in range(4)]
    result = dedupe.near(rows(*chain), NearOptions(same_answer=0.75, shingle=2), CONTEXT)
    assert [row.id for row in result.rows] == ["a:0"]
    assert {one.detail["kept"] for one in result.drops} == {"a:0"}


def test_decontamination_lists_both_texts_and_the_score():
    leaked = f"{LONG}. What is the probability of red?"
    given = rows(
        leaked.replace("$", ""),
        leaked + " Give the answer in lowest terms, and explain every step of what you did to find it.",
        f"Ann has 12 red and 30 blue marbles. {LONG[:20]}",
        "Short problem: 1+1?",
        "What is 1 + 1?",
    )
    references = [
        Reference("math500", "test/1", leaked),
        Reference("amc", "7", "Short problem: $1 + 1$?"),
        Reference("amc", "8", leaked.upper()),
    ]
    result = decontaminate.run(given, DecontaminateOptions(), CONTEXT, references)
    assert [row.id for row in result.rows] == ["a:2", "a:4"]
    assert fates(result) == {"a:0": "in amc and math500", "a:1": "in amc and math500", "a:3": "in amc"}
    hit = next(p for p in result.pairs if (p["left"], p["right"]) == ("a:1", "math500/test/1"))
    assert hit["texts"] == [given[1].problem, leaked]
    assert hit["score"] == 1.0  # every 13-gram of the shorter text, whatever is added to it
    assert "13-grams 1.00" in hit["what"]
    assert result.facts["benchmarks"]["amc"] == {"problems": 2, "problems found": 2, "rows flagged": {"a": 3}}


def test_reworded_problems_are_found_by_their_similarity():
    one = (
        "Ann walks 3 km north, then 4 km east, and she then walks 5 km back to where she was. How long, in km, was the "
        "whole of the walk that Ann made on that day?"
    )
    other = (
        "Ann walks 3 km north, then 4 km east, and then she walks 5 km back to where she was. How long in km was the "
        "whole walk that Ann made on that day?"
    )
    options = DecontaminateOptions(similarity=0.6)
    hits = decontaminate.run(rows(one), options, CONTEXT, [Reference("b", "1", other)])
    assert [p["what"].split(" 0")[0] for p in hits.pairs] == ["3-gram Jaccard"]
    strict = decontaminate.run(
        rows(one), DecontaminateOptions(similarity=0.95, same_words=0.95), CONTEXT, [Reference("b", "1", other)]
    )
    assert not strict.pairs


BISECTOR = "In the triangle $ABC$ with $AB = 6$, $BC = 8$ and $CA = 10$ there is a point $D$ on $BC$. If $AD$ is"


@pytest.mark.parametrize(
    ("problem", "answer", "done"),
    [
        (COPY, "7", "dropped"),
        (f"{LONG.replace('30', '31')}. What is the probability of red?", "8", decontaminate.SIBLING),
        ("In the diagram, what is $x$? [asy] draw(1); [/asy]", "7", decontaminate.UNSURE),
        ("In the diagram, what is $x$? [asy] draw(2); [/asy]", "9", "dropped"),  # the same diagram
        ("What is the largest prime factor of 2323?", "101", decontaminate.UNSURE),
        (YUMMY_ANEW, "-2013", "dropped"),
        (f"{BISECTOR} a median of $ABC$, what is $AD^2$?", "52", decontaminate.SIBLING),  # asks something else
        (f"{BISECTOR} an angle bisector of $ABC$, what is $AD$, not its square?", "6", decontaminate.SIBLING),
        (f"{BISECTOR} an angle bisector of $ABC$, what is $AD^2$ as $m/n$? Find $m+n$.", "46", "dropped"),  # the same
    ],
)
def test_answers_and_numbers_tell_leaks_from_siblings(problem, answer, done):
    references = [
        Reference("b", "1", f"{LONG}. What is the probability of red?", "7"),
        Reference("b", "2", "In the diagram, what is $x$? [asy] draw(2); [/asy]", "8"),
        Reference("b", "3", "What is the largest prime factor of 1391?", "107"),
        Reference("b", "4", YUMMY, "-2013"),
        Reference("b", "5", f"{BISECTOR} an angle bisector of $ABC$, what is $AD^2$?", "45"),
    ]
    result = decontaminate.run(rows((problem, answer)), DecontaminateOptions(), CONTEXT, references)
    assert [pair["done"] for pair in result.pairs] == [done]
    assert len(result.rows) == (done != "dropped")
    assert result.facts["rows too short to tell"] == (done == decontaminate.UNSURE)


WAGONS = "Ann's train of 12 wagons with 30 seats each leaves at noon and stops 7 times. What's the number $s \\le x^2$?"
ROOT = "Compute $\\frac{1}{2} \\cdot \\sqrt{144} - \\alpha$."
BOXED = "Let's think step by step and output the final answer within \\boxed{}."
PRIMES = "How many primes are below 97?"


@pytest.mark.parametrize(
    ("problem", "reference", "answer"),
    [
        (WAGONS.replace("'", "’").replace("\\le", "≤").replace("^2", "²"), WAGONS, ""),
        (WAGONS.translate(str.maketrans("aeo", "аео")), WAGONS, ""),  # Cyrillic
        (WAGONS.translate(str.maketrans("01237", "٠١٢٣٧")), WAGONS, ""),
        ("Compute ½ · √144 − α", "Compute 1/2 \\cdot \\sqrt{144}-\\alpha", "24"),
        ("Compute \\(\\dfrac12 \\cdot \\sqrt{144}-\\alpha\\)", ROOT, ""),
        (f"Show every step of your work, and write a number: {PRIMES} Think of the sieve first.", PRIMES, "24.0"),
    ],
)
def test_what_is_spelt_in_another_way_or_stands_in_a_longer_text_is_a_leak(problem, reference, answer):
    row, one = Row("t:0", "t", problem, answer), decontaminate.Reference("b", "0", reference, answer and "24")
    assert not decontaminate.run([row], decontaminate.DecontaminateOptions(against=("b",)), Context(), [one]).rows


@pytest.mark.parametrize(
    "row",
    [
        {"Question": PRIMES, "final_answer": [24]},
        {"question": PRIMES, "answer": "so\n#### 24"},
        {"prompt": [{"role": "user", "content": f"{PRIMES} {BOXED}"}],
         "reward_model": '{"ground_truth": "24"}'},
        {"problem": PRIMES, "solution": "it is \\boxed{24}"},
    ],
)  # fmt: skip
def test_a_reference_file_is_read_as_a_source_is(row, tmp_path):
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    (one,) = decontaminate.load_reference("b", {"b": str(tmp_path / "b.jsonl")})
    assert (one.problem, one.answer) == (PRIMES, "24")


def test_an_answer_carries_nothing_invisible():
    row = Row("t:0", "t", "What is 3 + 4?", "\ufeff7\u200b\0 ")
    assert normalise.run([row], normalise.NormaliseOptions(), Context()).rows[0].answer == "7"
