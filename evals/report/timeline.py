"""What each rank did when in a training step, from the times that the trainer stored."""

import re
import statistics
from dataclasses import dataclass

from evals.groups import grouped
from evals.store import Store

NAME = re.compile(r"speed/timeline/(\d+)/(\d+)\.(.+)/(from|to)")
"""rank, number of the bar, phase, edge; seconds since the step began"""
COLOURS = {"sync": "#CC79A7", "sampling": "#0072B2", "grading": "#E69F00", "update": "#009E73", "ahead": "#56B4E9"}
COLOURS |= {"thrown away": "#BCBD22"}
OTHER = "#7F7F7F"
BESIDE = ("ahead", "thrown away")
"""sampling for the next step, which goes on beside the rest: drawn in a lane of its own"""


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
        """(phase, colour) by first appearance."""
        bars = sorted((bar for bars in self.ranks for bar in bars), key=lambda bar: bar.start)
        return [(phase, COLOURS.get(phase, OTHER)) for phase in dict.fromkeys(bar.phase for bar in bars)]


def timeline(store: Store, run_id: str) -> Timeline | None:
    """Of the step with the median time; None if the store has none."""
    steps: dict[int, dict[tuple[int, int, str], dict[str, float]]] = {}
    for at, name, value in store.metrics(run_id):
        if found := NAME.fullmatch(name):
            rank, number, phase, edge = found.groups()
            steps.setdefault(at, {}).setdefault((int(rank), int(number), phase), {})[edge] = value
    if not steps:
        return None
    took = {at: max(edges["to"] for edges in bars.values()) for at, bars in steps.items()}
    middle = statistics.median_low(took.values())
    step = next(at for at, seconds in took.items() if seconds == middle)
    ranks = grouped(sorted(steps[step].items()), lambda bar: bar[0][0]).values()
    return Timeline(step, [[Bar(phase, edges["from"], edges["to"]) for (*_, phase), edges in of] for of in ranks])
