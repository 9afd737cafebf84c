"""`python -m tools.recipe_table`: the table in docs/scale.md of the memory that each GPU recipe takes."""

from agpo.config import load_config, recipes
from agpo.memory import GIB, Machine, memory, model_config, model_sizes

MACHINES = (Machine(1, 80), Machine(1, 141), Machine(4, 80), Machine(8, 80), Machine(8, 141))


def recipe_table() -> list[str]:
    titles = ("recipe", "GPUs", "at rest", "update", "sync", "rollout", "share", "sequences", "fits", "host")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in recipes():
        config = load_config(name)
        if not config.hardware.gpus:
            continue
        sizes, shown = model_sizes(model_config(config.model), config), name
        for machine in MACHINES:
            one = memory(config, sizes, machine)
            fits, run = "yes" if one.fits else "no", one
            if not one.fits:
                update = config.update.model_copy(update={"offload": True})
                less = memory(config.model_copy(update={"update": update}), sizes, machine)
                fits, run = ("offloaded", less) if less.fits else ("no", one)
            phases = (one.peaks.get(phase, 0.0) / GIB for phase in ("update", "sync", "rollout"))
            at_rest = sum(one.phases["sync"][part] for part in ("weights", "optimizer", "context")) / GIB
            full = one.cache_tokens // (1024 + config.rollout.max_tokens)
            cells = [shown, f"{machine.gpus} x {machine.gib:.0f}", f"{at_rest:.1f}"]
            cells += [f"{size:.1f}" if size else "-" for size in phases]
            host = f"{max(run.host_peaks.values()) / GIB:.0f}"
            lines.append("| " + " | ".join([*cells, f"{one.utilization:.2f}", str(full), fits, host]) + " |")
            shown = ""
    return lines


if __name__ == "__main__":
    print("\n".join(recipe_table()))
