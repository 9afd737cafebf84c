"""Who waited for whom in a step of training: what each rank did when, from what the trainer stored with the step."""

import re
import statistics
from dataclasses import dataclass

from evals.store import Store

NAME = re.compile(r"speed/timeline/(\d+)/(\d+)\.(.+)/(from|to)")
"""rank, number of the bar, phase, edge; seconds since the step began"""
COLOURS = {"sync": "#CC79A7", "sampling": "#0072B2", "grading": "#E69F00", "update": "#009E73", "ahead": "#56B4E9"}
COLOURS |= {"thrown away": "#BCBD22"}
OTHER = "#7F7F7F"
BESIDE = ("ahead", "thrown away")
"""what goes on beside the rest: the sampling of the next step, drawn in a lane of its own"""


@dataclass(frozen=True)
class Bar:
    phase: str
    start: float
    end: float

    @property
    def colour(self) -> str:
        return COLOURS.get(self.phase, OTHER)

    @property
    def lane(self) -> int:
        return int(self.phase in BESIDE)


@dataclass(frozen=True)
class Timeline:
    step: int
    ranks: list[list[Bar]]

    @property
    def seconds(self) -> float:
        return max(bar.end for bars in self.ranks for bar in bars)

    @property
    def phases(self) -> list[tuple[str, str]]:
        """(phase, colour), in the order in which they first come."""
        bars = sorted((bar for bars in self.ranks for bar in bars), key=lambda bar: bar.start)
        return [(phase, COLOURS.get(phase, OTHER)) for phase in dict.fromkeys(bar.phase for bar in bars)]


def timeline(store: Store, run_id: str) -> Timeline | None:
    """Of the step that took the median time; None where the store has none."""
    steps: dict[int, dict[tuple[int, int], dict[str, float | str]]] = {}
    for at, name, value in store.metrics(run_id):
        if found := NAME.fullmatch(name):
            rank, number, phase, edge = found.groups()
            bar = steps.setdefault(at, {}).setdefault((int(rank), int(number)), {"phase": phase})
            bar[edge] = value
    if not steps:
        return None
    took = {at: max(float(bar["to"]) for bar in bars.values()) for at, bars in steps.items()}
    middle = statistics.median_low(took.values())
    step = next(at for at, seconds in took.items() if seconds == middle)
    bars = sorted(steps[step].items())
    ranks = [
        [Bar(str(bar["phase"]), float(bar["from"]), float(bar["to"])) for (at, _), bar in bars if at == rank]
        for rank in sorted({at for (at, _), _ in bars})
    ]
    return Timeline(step, ranks)
