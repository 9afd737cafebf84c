"""Our engine and verl's on the same mini-batches, each under several numbers of ranks: the table of docs/scale.md.

    python tests/integrations/engines.py .venv-verl/bin/python

Ranks of our own are processes of this file: `python tests/integrations/engines.py RANK WORLD MEET OUT`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "agpo")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from conformance import CASES, VOCABULARY, one_call, trainer  # noqa: E402

NATIVE, VERL = (1, 2, 4), (1, 2)
BUDGETS = (1, 40, 10_000)
"""tokens of a micro-batch; verl's are 1 row, 2 rows and 40 tokens"""
SHOWN = {
    "agpo": ("kept", "dead group of 0.2", "opposite signs, kept", "not scorable, aborted"),
    "agpo, ratio not 1": ("moved, kept",),
    "agpo, clipped": ("clipped", "dead group of 0.2, clipped", "opposite signs, clipped", "tie", "moved, clipped"),
    "agpo, all dead": ("all dead",),
    "grpo": ("dead group of 0.2, kept in the mean",),
    "grpo, all dead": ("all dead, kept in the mean",),
    "agpo, softplus": ("softplus",),
    **{name: (f"{name}, moved",) for name in ("dr_grpo", "dapo", "gspo", "cispo", "nsr")},
}
"""row of the table -> its cases"""


def work(rank: str, world: str, meet: str, out: str) -> None:
    torch.set_num_threads(1)
    if int(world) > 1:
        dist.init_process_group("gloo", init_method=meet, rank=int(rank), world_size=int(world))
    wanted = {name for names in SHOWN.values() for name in names}
    found = [(case.name, trainer(case, n).moved) for case in CASES if case.name in wanted for n in BUDGETS]
    torch.save(found, out)
    if int(world) > 1:
        dist.barrier()
        dist.destroy_process_group()


def native(world: int, folder: Path) -> dict[str, float]:
    """case -> how far its step is from that of one call, as a share of the step; the largest over micro-batches."""
    folder.mkdir()
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    words = [(folder / "meet").as_uri(), str(folder / "out.pt")]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), words[0], words[1] if rank == 0 else os.devnull],
            env={**environment, **os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    assert [process.wait() for process in ranks] == [0] * world
    by_name, off = {case.name: case for case in CASES}, {}
    for name, moved in torch.load(folder / "out.pt", weights_only=True):
        expected = one_call(by_name[name], torch.float32).moved
        size = float(expected.abs().max()) or 1.0
        off[name] = max(off.get(name, 0.0), float((moved - expected).abs().max()) / size)
    return off


def verl(world: int, folder: Path, python: str) -> dict[str, float]:
    from tools.tiny_model import make_model, make_tokenizer

    torch.manual_seed(0)
    make_model(VOCABULARY).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    script, path = str(ROOT / "tests/integrations/verl_engine.py"), os.pathsep.join(sys.path[:2])
    command = [python, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, script, str(folder), str(folder / "out.json")], env=environment, check=True, capture_output=True
    )
    off: dict[str, float] = {}
    for one in json.loads((folder / "out.json").read_text())["results"]:
        share = one["from_reference"] / one["moved"] if one["outcome"] == "kept" else one["moved"]
        off[one["case"]] = max(off.get(one["case"], 0.0), share)
    return off


def table(python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = [native(n, Path(folder) / f"native-{n}") for n in NATIVE]
        found += [verl(n, Path(folder) / f"verl-{n}", python) for n in VERL]
    names = [f"native, {n}" for n in NATIVE] + [f"verl, {n}" for n in VERL]
    print("| mini-batch | " + " | ".join(names) + " |\n|---" * 1 + "|---" * len(names) + "|")
    for row, cases in SHOWN.items():
        cells = []
        for of_engine in found:
            values = [of_engine[name] for name in cases if name in of_engine]
            cells.append("refused" if not values else f"{max(values):.1e}" if max(values) else "0")
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        work(*sys.argv[1:])
    else:
        table(sys.argv[1] if len(sys.argv) > 1 else str(ROOT / ".venv-verl/bin/python"))
