"""The groups of the next step: sampled with the right weights, on all ranks, possibly ahead of time, and graded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from agpo import distributed
from agpo.batch import Group
from agpo.config import TrainConfig
from agpo.distributed import all_gather, broadcast, is_main, rank, world_size
from agpo.model import weight_stream
from agpo.rollout import (
    Ahead,
    Begun,
    draw,
    draw_adaptive,
    draw_over,
    expected_live,
    learn,
    requests_of,
    resample,
    rollout,
)
from agpo.setup import Run
from agpo.telemetry import Watch
from evals.complete import Grader
from evals.engines import Engine, Output, OwnWeights, Request, Sampling
from evals.items import Item

AHEAD_AT = 0.75
"""rollout.overlap=ahead: the share of a step's answers that must be finished when the next step's begin"""


def sample_groups(
    run: Run, grader: Grader, watch: Watch | None = None, *, overlap: bool = False
) -> tuple[list[Group], list[Group], list[Begun]]:
    """(graded groups of the next step, all groups sampled for it, unfinished groups for the step after it).

    `overlap`: if the run is configured to, an engine in its own process goes on with the step after it.
    """
    config, step, watch = run.config, run.done, watch or Watch()
    knobs, over = config.objective.knobs, config.rollout.oversample
    resampled = knobs.masked_groups == "resample"
    beside = overlap and isinstance(run.engine, OwnWeights)
    early = config.rollout.overlap == "ahead" and not config.rollout.max_staleness
    here = partial(
        rollout,
        run.engine,
        grader,
        preset=config.asked,
        samples_per_prompt=config.rollout.samples_per_prompt,
        sampling=sampling_of(config),
        seed=config.seed,
        step=step,
        watch=watch,
        generate=partial(generate, run, watch),
        soon=partial(begin_soon, run, watch, step + 1) if beside and not resampled else lambda left: None,
        soon_at=AHEAD_AT if early else 1.0,
    )
    with awake(run, watch):
        if over:
            begun = draw_over(run.items, config.seed, step, config.rollout.prompts_per_step, over, run.carried)
            groups, left = here(begun)
            return groups, groups, left
        sample = partial(sample_on_ranks, lambda items: here([Begun(item, step) for item in items])[0])
        groups = sample(asked_next(run))
        if not resampled:
            return groups, groups, []
        rounds = config.rollout.resample_rounds
        kept, everything = resample(
            groups, sample, run.items, seed=config.seed, step=step, rounds=rounds, objective=knobs
        )
        if beside:
            begin_soon(run, watch, step + 1, [])
        return kept, everything, []


def generate(run: Run, watch: Watch, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
    """What was sampled ahead for these requests, or what the engine samples now."""
    ahead, run.ahead = run.ahead, None
    if ahead is None:
        return run.engine.generate(requests, sampling)
    assert ahead.asked == (requests, sampling), "what was sampled ahead is not what the step asks for"
    watch.seconds["saved"] += ahead.seconds
    return ahead.outputs()


def begin_soon(run: Run, watch: Watch, step: int, left: Sequence[Begun]) -> None:
    """Begin to sample for the step after `step` steps while the last of these is not finished."""
    if run.config.rollout.max_staleness:  # the engine has been busy with the weights of the step before
        with watch.phase("sync"):
            sync_engine(run)
    begin_ahead(run, step, left)


def asked_next(run: Run) -> list[Item]:
    """The items of the next step."""
    rollout, seed = run.config.rollout, run.config.seed
    if run.seen_2P is None:
        return draw(run.items, seed, run.done, rollout.prompts_per_step)
    asked = rollout.prompts_per_step, rollout.samples_per_prompt
    return draw_adaptive(run.items, run.seen_2P, seed, run.done, *asked)


def learn_rates(run: Run, everything: Sequence[Group], live_G: Sequence[bool]) -> dict[str, float]:
    """Update the counts that adaptive prompts are chosen by. Returns metrics of the choice, {} if not adaptive."""
    if run.seen_2P is None:
        return {}
    rollout = run.config.rollout
    asked = [group.item for group in everything[: rollout.prompts_per_step]]  # dynamic sampling adds others
    expected = expected_live(run.items, run.seen_2P, asked, rollout.samples_per_prompt)
    run.seen_2P = learn(run.items, run.seen_2P, everything, rollout.forget)
    return {"prompts/expected_live": expected, "prompts/live": sum(live_G[: len(asked)]) / len(asked)}


def begin_ahead(run: Run, step: int, left: Sequence[Begun]) -> None:
    """Begin to sample for the step after `step` steps, if the run overlaps steps and no evaluation comes first.

    The engine must have the current weights, and nothing else may use its model meanwhile: with the policy's own model
    call this after the updates.
    """
    config = run.config
    asked = config.rollout.overlap != "none" or config.rollout.max_staleness
    if run.ahead or not asked or config.evaluates_after(step) or run.engine.weight_version != run.version:
        return
    rollout = config.rollout
    begun = draw_over(run.items, config.seed, step, rollout.prompts_per_step, rollout.oversample, left)
    mine = begun[rank() :: world_size()]
    asking = config.asked, rollout.samples_per_prompt, config.seed, rollout.max_tokens
    run.ahead = Ahead(run.engine, requests_of(run.engine, mine, *asking)[1], sampling_of(config))


def drop_ahead(run: Run, watch: Watch) -> None:
    """Discard what was sampled ahead, because the weights are about to move."""
    assert run.ahead
    watch.seconds["wasted"] += run.ahead.seconds
    run.ahead.drop()
    watch.span("thrown away", run.ahead.began)
    run.ahead = None


def sampling_of(config: TrainConfig) -> Sampling:
    rollout = config.rollout
    whole = rollout.prompts_per_step if rollout.oversample else 0
    return Sampling(rollout.max_tokens, rollout.temperature, rollout.top_p, whole=whole)


@contextmanager
def awake(run: Run, watch: Watch | None = None) -> Iterator[None]:
    """Inside, the engine generates with the policy's current weights and stamps its completions with their version.
    Afterwards an engine with its own weights stays awake; the policy's own model frees what was gathered."""
    if run.ahead is None:  # else it has the weights that it samples ahead with
        with (watch or Watch()).phase("sync"):
            sync_engine(run)
    yield
    if not isinstance(run.engine, OwnWeights):
        distributed.free(run.policy.plain, run.policy.model)


def sync_engine(run: Run) -> None:
    """Give the engine the policy's current weights, unless it has them."""
    version, policy = run.version, run.policy
    if not isinstance(run.engine, OwnWeights):
        distributed.gather(policy.plain, policy.model)
    elif run.engine.weight_version != version:
        policy.trained.optimizer.zero_grad(set_to_none=True)  # the engine needs the room
        run.engine.sync(weight_stream(policy.model, policy.plain), version)
    run.engine.weight_version = version


# -- spread over the ranks -------------------------------------------------------------------------------------------


def sample_on_ranks(sample: Callable[[Sequence[Item]], list[Group]], items: Sequence[Item]) -> list[Group]:
    """`sample(items)`, each rank on its share of the groups; every rank gets all of them, in the order of the items.

    Seeds do not depend on the rank, so the groups are those of one process.
    """
    mine = items[rank() :: world_size()]
    if world_size() == 1:
        return sample(mine)
    # Items are not sent: they may carry megabytes of tests, and every rank has them.
    parts = all_gather(lambda: [(group.prompt_ids, group.samples) for group in sample(mine)])
    return [Group(item, *parts[at % world_size()][at // world_size()]) for at, item in enumerate(items)]


@contextmanager
def shared(engine: Engine) -> Iterator[Engine]:
    """On rank 0: the engines of all ranks as one, while the others are in `serve`."""
    if world_size() == 1:
        yield engine
        return
    yield _Engines(engine)
    broadcast(lambda: None)  # ends `serve`; after an error the ranks end anyway


def serve(engine: Engine) -> None:
    """On the other ranks: answer this rank's part of what rank 0 asks, until it leaves `shared`."""
    asked: tuple[Sequence[Request], Sampling] | None
    while asked := broadcast(lambda: None):  # rank 0's next requests; None: no more
        _answer(engine, *asked)


def _answer(engine: Engine, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """Every rank generates for its part of the requests and gets all outputs."""
    numbers = range(rank(), len(requests), world_size())
    parts = all_gather(
        lambda: [
            Output(numbers[at], repeat, completion)
            for at, repeat, completion in engine.generate([requests[i] for i in numbers], sampling)
        ]
    )
    return [output for part in parts for output in part]


class _Engines:
    """See `evals.engines.Engine`. Completions come when all ranks have theirs."""

    def __init__(self, own: Engine):
        self.own = own
        self.tokenizer = own.tokenizer
        self.max_context, self.eos_ids, self.weight_version = own.max_context, own.eos_ids, own.weight_version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        assert is_main()
        if requests:
            yield from _answer(self.own, *broadcast(lambda: (list(requests), sampling)))

    def close(self) -> None:
        self.own.close()
