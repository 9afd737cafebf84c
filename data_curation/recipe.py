"""Recipes: what a build is made of. Shipped ones are YAML files in data_curation/recipes, a user's is any such file."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_curation import answers, code_checks, decontaminate, dedupe, filters, normalise, rates, solve_rate
from data_curation import code_sources as programs
from data_curation import sources as maths
from data_curation.export import FORMATS
from data_curation.stage import Options, Record, Result
from evals.benches import BENCHES
from evals.errors import UserError, did_you_mean, explained
from evals.prompts import find_preset

FOLDER = Path(__file__).parent / "recipes"
STAGES: dict[str, tuple[type[Options], Callable[..., Result]]] = {
    "normalise": (normalise.NormaliseOptions, normalise.run),
    "answers": (answers.AnswerOptions, answers.run),
    "filter": (filters.FilterOptions, filters.run),
    "exact": (dedupe.ExactOptions, dedupe.exact),
    "near": (dedupe.NearOptions, dedupe.near),
    "decontaminate": (decontaminate.DecontaminateOptions, decontaminate.run),
    "code": (code_checks.CodeOptions, code_checks.run),
    "solve_rate": (rates.SolveOptions, solve_rate.run),
}
"""in their usual order; a recipe names those it wants, in its own"""
AnyMaths = maths.MathSource | maths.VerlSource | maths.TableSource
AnyProgram = programs.CodeforcesSource | programs.CodeContestsSource | programs.CodeTableSource
AnySource = Annotated[AnyMaths | maths.MadeSource | AnyProgram, Field(discriminator="kind")]


class Recipe(BaseModel):
    """A build."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[\w.-]+$")
    about: str = ""
    sources: tuple[AnySource, ...] = Field(min_length=1)
    """in order of preference: of two equal problems the one of the earlier source stays"""
    stages: dict[str, Record | None]
    """stage -> its options; what is left out has its default"""
    formats: tuple[str, ...] = Field(default=("verl",), min_length=1)
    """verl (train.parquet, which agpo.train reads too), trl, openrlhf, slime, hf"""
    prompt: str = ""
    """prompt preset whose words the exports carry (train.parquet stays bare for our trainer); empty: bare problems"""
    limit: int = Field(default=0, ge=0)
    """rows of each source, drawn with a seed, for a trial; 0: all"""
    left_out: tuple[str, ...] = ()
    """stages of the recipe that were skipped, for the manifest"""

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have one name: {', '.join(names)}")
        if unknown := set(self.stages) - set(STAGES):
            raise ValueError(f"unknown stage {', '.join(sorted(unknown))}; known: {', '.join(STAGES)}")
        if unknown := set(self.formats) - set(FORMATS):
            raise ValueError(f"unknown format {', '.join(sorted(unknown))}; known: {', '.join(FORMATS)}")
        if self.prompt:
            find_preset(self.prompt)
        for name in self.stages:
            options = self.options(name)
            for option in ("trust", "sources"):
                if unknown := set(getattr(options, option, ())) - set(names):
                    raise ValueError(
                        f"{name}.{option}: no source {', '.join(sorted(unknown))}; there is {', '.join(names)}"
                    )
        return self

    def options(self, stage: str) -> Any:
        kind = STAGES[stage][0]
        try:
            return kind(**(self.stages[stage] or {}))
        except ValidationError as e:
            raise UserError(f"stage {stage}: {_said(e, kind.model_fields)}") from e


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(problem=f"{twice!r} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load(
    name: str, settings: list[str], inputs: dict[str, str], skip: list[str], references: Collection[str] = ()
) -> Recipe:
    """A recipe by name or file, with `stage.option=value` or `source.option=value` settings applied.

    references: names of benchmarks that files are given of; those that `against` lacks are added to it.

    Raises UserError for anything that does not exist or does not fit.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            known = ", ".join(sorted(shipped.stem for shipped in FOLDER.glob("*.yaml")))
            raise UserError(f"unknown recipe {name!r}. Known: {known}, or give a YAML file.")
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid YAML in UTF-8: {e}") from e
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list):
        raise UserError(f"{path}: expected a mapping with a list of sources, and stages.")
    sources: dict[str, Record] = {
        str(source.get("name")): source for source in content["sources"] if isinstance(source, dict)
    }
    stages = content["stages"] = {} if content.get("stages") is None else content["stages"]
    if not isinstance(stages, dict) or not all(isinstance(options, dict | None) for options in stages.values()):
        raise UserError(f"{path}: expected stages with their options below them, as in `near: {{threshold: 0.6}}`.")
    for stage in skip:
        if stage not in stages:
            raise UserError(f"--skip {stage}: this recipe has no such stage. It has: {', '.join(stages)}.")
        del stages[stage]
        content.setdefault("left_out", []).append(stage)
    for source, place in inputs.items():
        _section(sources, source, "--input")["path"] = place
    for setting in settings:
        key, equals, value = setting.partition("=")
        section, dot, option = key.partition(".")
        if not equals or (not dot and key not in ("formats", "prompt", "name", "limit")):
            raise UserError(f"--set {setting}: expected STAGE.OPTION=VALUE, SOURCE.OPTION=VALUE or formats=verl,trl.")
        # a template of columns, {Body} {Question}, is no mapping
        try:
            parsed = value if re.match(r"\{[^:]*\}", value) else yaml.safe_load(value)
        except yaml.YAMLError as e:
            raise UserError(f"--set {setting}: the value is not valid YAML. Put quotes around it.") from e
        if not dot:
            content[key] = [one.strip() for one in value.split(",")] if key == "formats" else parsed
        elif section in stages:
            stages[section] = {**(stages[section] or {}), option: parsed}
        else:
            _section(sources, section, "--set", stages)[option] = parsed
    try:
        recipe = Recipe(**{"name": path.stem, **content})
    except ValidationError as e:
        raise UserError(f"recipe {name}: {_said(e)}") from e
    if references and "decontaminate" not in stages:
        raise UserError(
            f"--reference {next(iter(references))}: this recipe has no stage decontaminate that would use it."
        )
    against = recipe.options("decontaminate").against if references else ()
    new = [one for one in references if one not in against]
    for one in new:
        if one not in BENCHES and (meant := difflib.get_close_matches(one, [*against, *BENCHES], 1, 0.8)):
            raise UserError(f"--reference {one}: unknown; is {meant[0]} meant? A set of your own needs another name.")
    stages |= {"decontaminate": {**(stages["decontaminate"] or {}), "against": [*against, *new]}} if new else {}
    return recipe.model_copy(update={"stages": stages})


def _section(sources: dict[str, Record], name: str, where: str, stages: Iterable[str] = ()) -> Record:
    if name not in sources:
        raise UserError(
            f"{where} {name}: this recipe has no source or stage {name!r}. It has: {', '.join([*sources, *stages])}."
        )
    return sources[name]


def _said(error: ValidationError, options: Iterable[str] = ()) -> str:
    found = error.errors()
    found = [one for one in found if one["type"] != "too_short"] or found  # a source that is wrong is also missing
    said = []
    for one in found:
        known = {"extra_forbidden": "no such option.", "tuple_type": f"expected a list, not {one['input']!r}"}
        what = known.get(one["type"], explained(one))
        if one["type"] == "extra_forbidden":
            what += did_you_mean(str(one["loc"][-1]), options)
        said.append(": ".join(filter(None, [".".join(map(str, one["loc"])), what])))
    return "; ".join(said)
