"""GSM8K (Cobbe et al. 2021): grade-school word problems, the test set; answers are integers behind "####"."""

from evals.benches.bench import Bench
from evals.benches.rows import Row, loader
from evals.items import Item, item_id

HUB = "openai/gsm8k"


def to_item(row: Row) -> Item:
    """Columns: question, answer."""
    question, solution = row.text("question"), row.text("answer")
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise row.wrong("answer", f'no "#### N" at the end of {solution[-60:]!r}')
    return Item(item_id(question), question, Row({"answer": answer.strip()}, row.where).number("answer"))


BENCH = Bench(
    name="gsm8k",
    title="GSM8K",
    load=loader(to_item, HUB, ["main"]),
    size=1319,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=1024,
    licence="MIT",
    source=HUB,
)
