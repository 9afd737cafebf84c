"""Stage `solve_rate`: how often a model solves a problem, and only those within bounds go on.

Every completion is in the results store as it arrives, in a run of its own that is found again by what decides a
completion (model, prompt, sampling, seed). So a killed build continues at the completion, other bounds or a larger n
use what is there, and a build with other stages before this one asks only the problems that are new. The verdict
belongs to a completion and a reference: where the answer or the tests changed, what was sampled is graded again.
"""

from collections import Counter
from dataclasses import replace

from data_curation.rates import Decision, SolveOptions, bounds, item_key, majority, open_tries, told
from data_curation.stage import Context, Drop, Result, Row, drop
from data_curation.tries import Tries, short_model
from evals.errors import UserError


def run(rows: list[Row], options: SolveOptions, context: Context) -> Result:
    asked = [row for row in rows if not options.sources or row.source in options.sources]
    if unknown := set(options.sources) - {row.source for row in rows}:
        raise UserError(f"stage solve_rate: no rows of {', '.join(sorted(unknown))}. Correct solve_rate.sources.")
    if context.store is None:
        raise UserError("stage solve_rate needs the results store.")
    least, most = bounds(options.n, options.low, options.high)
    expressed = f"{least}/{options.n} to {most}/{options.n}"
    context.say(
        f"solve rate: {options.n} tries express {expressed} ({least / options.n:g} to {most / options.n:g}) of "
        f"[{options.low:g}, {options.high:g}]; {len(asked):,} problems"
    )
    found = Tries({item_key(row): row for row in reversed(asked)}, options, context).gather()
    kept: list[Row] = []
    drops: list[Drop] = []
    names = {row.id: item_key(row) for row in asked}
    for row in rows:
        name = names.get(row.id)
        if name is None:
            kept.append(row)
        elif name in found.unfit:
            drops.append(drop(row, "does not fit the model's context", tokens=found.unfit[name]))
        elif name in found.refused:
            drops.append(drop(row, "refused by the server", why=found.refused[name]))
        else:
            verdict, numbers = told(found.tallies[name], options)
            if verdict == "keep":
                kept.append(replace(row, meta={**row.meta, **numbers}))
            else:
                drops.append(drop(row, REASONS[verdict], **numbers, **majority(found.tallies[name])))
    counted = [found.tallies[name] for name in names.values() if name in found.tallies]
    histogram = Counter(tally.right for tally in counted if not open_tries(tally, options))
    about = context.store.find_run(found.run_id)
    facts = {
        "model": short_model(about.model),
        "settings": {name: value for name, value in about.config.items() if name != "model"},
        "tries": options.n,
        "fractions within the bounds": expressed,
        "problems asked": len(asked),
        "right of n": {str(k): histogram[k] for k in sorted(histogram)},
        "stopped early": sum(open_tries(tally, options) > 0 for tally in counted),
        "completions": sum(tally.tries + tally.unscored for tally in counted),
        "truncated": sum(tally.truncated for tally in counted),
        "without a verdict": sum(tally.unscored for tally in counted),
    }
    return Result(kept, drops, facts)


REASONS: dict[Decision, str] = {
    "low": "solve rate below the bounds",
    "high": "solve rate above the bounds",
    "open": "tries without a verdict leave the solve rate open",
}
