"""Tasks of lm-eval that several tests share, as a user would write them: YAML over local JSONL files."""

import json
from pathlib import Path

from evals.benches import arith

GENERATE = """
task: own_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/generate.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}="
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: {until}, max_gen_toks: 64, do_sample: false}}
repeats: {repeats}
filter_list:
  - name: boxed
    filter:
      - {{function: regex, regex_pattern: "boxed{{(-?[0-9]+)}}"}}
      - {{function: take_first}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
CHOOSE = """
task: own_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choose.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}="
doc_to_target: label
doc_to_choice: choices
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
PERPLEXITY = """
task: own_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/generate.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{q}}}}={{{{a}}}}"
metric_list: [{{metric: bits_per_byte}}]
metadata: {{version: 1}}
"""


GROUP = """
group: own_group
task: [own_generate, own_few]
aggregate_metric_list: [{{metric: exact_match, filter_list: [boxed], weight_by_size: {by_size}}}]
metadata: {{version: 1}}
"""


def write_group(folder: Path, *, by_size: bool) -> None:
    """Beside `write_tasks`: a group of own_generate and own_few, which has the first three of its documents."""
    lines = (folder / "generate.jsonl").read_text().splitlines()[:3]
    (folder / "few.jsonl").write_text("\n".join(lines) + "\n")
    few = (folder / "tasks" / "generate.yaml").read_text().replace("own_generate", "own_few")
    (folder / "tasks" / "few.yaml").write_text(few.replace("generate.jsonl", "few.jsonl"))
    (folder / "tasks" / "group.yaml").write_text(GROUP.format(by_size=str(by_size).lower()))


def write_tasks(folder: Path, *, count: int = 24, until: str = "[]", repeats: int = 1) -> Path:
    """Write the tasks and their data. Returns the folder for --include-path."""
    problems = arith.items("heldout", count, seed=1)
    (folder / "generate.jsonl").write_text("".join(json.dumps({"q": p.prompt, "a": p.answer}) + "\n" for p in problems))
    rows = [{"q": p.prompt, "choices": [str(int(p.answer) + d) for d in (0, 1, -3, 7)], "label": 0} for p in problems]
    (folder / "choose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "generate.yaml").write_text(GENERATE.format(folder=folder, until=until, repeats=repeats))
    (tasks / "choose.yaml").write_text(CHOOSE.format(folder=folder))
    (tasks / "perplexity.yaml").write_text(PERPLEXITY.format(folder=folder))
    return tasks
