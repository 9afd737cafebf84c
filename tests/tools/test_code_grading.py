"""benchmarks/code_grading.py: what LeetCodeDataset's asserts ask of a solution."""

import json

from benchmarks import code_grading

PROMPT = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def tree_node(values):
    nodes = [None if value is None else TreeNode(value) for value in values]
    rest = nodes[1:]
    for node in filter(None, nodes):
        node.left, node.right = (rest.pop(0) if rest else None for _ in range(2))
    return nodes[0] if nodes else None
"""
REVERSE = """class Solution:
    def reverse(self, head):
        last = None
        while head:
            head.next, last, head = last, head, head.next
        return last"""
MIRROR = """class Solution:
    def mirror(self, root):
        if root:
            root.left, root.right = self.mirror(root.right), self.mirror(root.left)
        return root"""
LESS = "class Solution:\n    def less(self, a, b):\n        return a - b"


def row(name, completion, *asserts):
    test = "def check(candidate):\n" + "".join(f"    assert {one}\n" for one in asserts)
    return {"task_id": name, "entry_point": f"Solution().{name}", "prompt": PROMPT, "test": test} | {
        "completion": completion
    }


def test_references_with_nodes_and_positional_arguments(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [
        row("less", LESS, "candidate(5, b = 3) == 2", "candidate(b = 3, a = 5) == 2", "candidate(5, 5) == inf"),
        row(
            "reverse",
            REVERSE,
            "is_same_list(candidate(list_node([1, 2, 3])), list_node([3, 2, 1]))",
            "is_same_list(candidate(head = list_node([])), list_node([]))",
        ),
        row(
            "mirror",
            MIRROR,
            "is_same_tree(candidate(root = tree_node([1, 2, 3, None, 4])), tree_node([1, 3, 2, None, None, 4]))",
            "candidate(None) == None",
        ),
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    command = ["code_grading.py", "--leetcode", str(path), "--references", "--workers", "1"]
    monkeypatch.setattr("sys.argv", command)
    assert code_grading.main() == 0
    told = capsys.readouterr().out
    assert "1 asserts are left out" in told
    assert "3 problems, 6 tests, 3 programs" in told
    path.write_text(path.read_text().replace("last, head, head.next", "head, last, head.next"))
    assert code_grading.main() == 1  # the wrong one is seen
