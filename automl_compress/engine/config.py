"""A study's settings: typed, frozen, read once at the edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from torch import nn

from automl_compress.compress import KERNEL_CRITERIA, REPAIRS, Repair, check_criterion
from automl_compress.deploy.latency_calibration import LatencySettings
from automl_compress.deploy.measuring import FEWEST_RUNS, RUNTIMES, MeasureSettings
from automl_compress.engine.engine import ENGINES, EngineSettings
from automl_compress.engine.pipeline import PipelineSettings, read_pipeline
from automl_compress.engine.rungs import RungSettings, read_ladder
from automl_compress.errors import InputError, StudyError
from automl_compress.evaluate import LATENCY, Constraint, check_objectives
from automl_compress.evaluate.draw import DRAWS
from automl_compress.evaluate.fast_form import PRECISIONS
from automl_compress.evaluate.network import EstimateSettings
from automl_compress.search import check_strategy
from automl_compress.settings import LARGEST_SEED, Origin, Section, as_stated, file_path
from automl_compress.settings_file import read_settings
from automl_compress.space import SearchSpace, SpaceRules, load_rules
from automl_compress.space.rules import rules_from_section
from automl_compress.user_code import name_of
from automl_compress.workload import BOXED, Workload, WorkloadConfig

DEFAULT_OBJECTIVES: Final = ("error", "size_bytes", "macs")
DEFAULT_STRATEGIES: Final = ("ddpg", "nsga2", "scaled-random")
LONGEST_NAME: Final = 100
MOST_SEEDS: Final = 1000
MOST: Final = 2**20
"""Of whatever is counted: images in a batch, workers."""
MOST_THREADS: Final = 1024
BATCH: Final = "estimate.batch"
THREADS: Final = "engine.threads"


@dataclass(frozen=True)
class StudyConfig:
    """Everything a sweep file says.

    Args:
        name: the study's name, also of its folder.
        workload: what is compressed: settings to load it from, or a loaded one.
        space: rules that the network's search space is derived by.
        objectives: minimised metrics.
        constraints: limits, still relative to the baseline where written so.
        estimate: how candidates are measured.
        latency: how latencies are measured; None where the study has no latency.
        strategies: who competes: registered names, or callables of the user's.
        seeds: one contestant per strategy and seed.
        evaluations: budget of each contestant.
        engine: where it runs.
        finalists: how many of the front are measured on the final test images.
        final_repair: how their networks, and those that are recovered and exported, are repaired.
        ladder: rungs between the race and the finalists, from cheap to dear.
        automatic: `BATCH` and `THREADS`, where they are to be found on the machine.
        pipeline: stages before and after the search; None where there is only the search.
        plain: the settings as given, the precision found and the space's rules, for the manifest.
        base: folder of the sweep file, which relative paths start from.
    """

    name: str
    workload: WorkloadConfig | Workload
    space: SpaceRules
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    estimate: EstimateSettings
    latency: LatencySettings | None
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    evaluations: int
    engine: EngineSettings
    finalists: int
    final_repair: Repair = "auto"
    ladder: tuple[RungSettings, ...] = ()
    automatic: frozenset[str] = frozenset()
    pipeline: PipelineSettings | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)
    base: Path = Path()


def read_config(path: str | Path, overrides: str | Iterable[str] = ()) -> StudyConfig:
    """Read a sweep file.

    Args:
        path: the YAML file; relative paths in it start in its folder, then in the current one.
        overrides: `key.subkey=value` texts.

    Raises:
        InputError: the file is wrong; the message names file, key and line.
    """
    place = file_path(path, "a sweep file", StudyError)
    return config_of_section(read_settings(place, overrides, StudyError), place.parent)


def config_of_mapping(values: Mapping[str, Any], base: Path = Path()) -> StudyConfig:
    """Settings given as a mapping with a sweep file's keys.

    Args:
        values: as in a sweep file; `workload` may be a loaded `Workload`, a class or function
            stands for its name, a path for its text, and `SpaceRules` for what a file holds.
        base: folder that relative paths start from.

    Raises:
        InputError: a key or value is wrong.
    """
    section = Section(as_stated(values, _in_names), {(): Origin("settings")}, (), StudyError)
    return config_of_section(section, base)


def _in_names(value: Any) -> Any:
    """Classes and functions by their names, as another process reads them; rules as in a file."""
    if isinstance(value, SpaceRules):
        return value.to_dict()
    return name_of(value, StudyError) if isinstance(value, type | FunctionType) else value


def config_of_section(section: Section, base: Path) -> StudyConfig:
    """Read and close a sweep file's top-level mapping."""
    workload = _workload(section, base)
    boxed = _is_boxed(workload)
    config = StudyConfig(
        name=_name(section),
        workload=workload,
        space=_space(section, base),
        objectives=_objectives(section),
        constraints=_constraints(section),
        estimate=_estimate(section.section("estimate")),
        latency=_latency(section, base),
        strategies=_strategies(section),
        seeds=_seeds(section),
        evaluations=_budget(section.section("budget"), section),
        engine=_engine(section.section("engine")),
        finalists=section.number("finalists", int, 16, low=1),
        final_repair=section.choice("final_repair", REPAIRS, "auto"),  # type: ignore[arg-type]
        ladder=read_ladder(section, boxed),
        automatic=_automatic(section),
        pipeline=read_pipeline(section, boxed),
        base=base,
    )
    section.close()
    _check_latency(section, config)
    return replace(config, plain=_plain(section, config))


def _plain(section: Section, config: StudyConfig) -> dict[str, Any]:
    """The settings as given, with what would be found otherwise when the study goes on.

    That is the precision, on another machine, and rules, whose file may have been edited by then.
    A workload that was given loaded is none: it must be given again.
    """
    values = {k: v for k, v in section.values().items() if not isinstance(v, Workload)}
    if values.get("space", "auto") != "auto":
        values["space"] = config.space.to_dict()
    stated = {**(values.get("estimate") or {}), "precision": config.estimate.precision}
    return {**values, "estimate": stated}


def _is_boxed(workload: Workload | WorkloadConfig) -> bool:
    """Whether its images have boxes."""
    if isinstance(workload, Workload):
        return workload.splits.train.boxed
    return isinstance(workload.data.source, BOXED)


def _automatic(section: Section) -> frozenset[str]:
    """What the machine decides: keys whose value is `auto`."""
    stated = {BATCH: section.section("estimate"), THREADS: section.section("engine")}
    return frozenset(key for key, part in stated.items() if _is_auto(part, key.partition(".")[2]))


def _is_auto(section: Section, key: str) -> bool:
    return section.values().get(key) == "auto"


def _number_or_auto(section: Section, key: str, default: int, most: int = MOST) -> int:
    """A number from 1, or the default, which somebody knows better, where `auto` is given."""
    given = section.get(key, (int, str), default)
    if given == "auto":
        return default
    if isinstance(given, str) or not 1 <= given <= most:
        rule = f"at most {most}" if isinstance(given, int) and given > most else "at least 1"
        raise section.fail(
            f"'{section.name(key)}' must be 'auto' or {rule}, but is {given}; correct it", key
        )
    return int(given)


def _name(section: Section) -> str:
    name: str = section.get("study", str)
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise section.fail(
            f"'study' must be letters, digits, '-', '_' and '.', but is '{name}'; rename it",
            "study",
        )
    if len(name) > LONGEST_NAME:
        raise section.fail(
            f"'study' must have at most {LONGEST_NAME} characters, but has {len(name)}; rename it",
            "study",
        )
    return name


def _workload(section: Section, base: Path) -> WorkloadConfig | Workload:
    given = section.values().get("workload")
    if isinstance(given, nn.Module):
        raise section.fail(
            "'workload' must be a network with its data, but is a network alone; make one of both: "
            "Workload.of(network, train, test)",
            "workload",
        )
    if isinstance(given, WorkloadConfig):
        raise section.fail(
            "'workload' must be a mapping or a Workload, but is a WorkloadConfig; give "
            "load_workload(...) of it",
            "workload",
        )
    if isinstance(section.get("workload", (dict, Workload)), Workload):
        return given  # type: ignore[return-value]
    return WorkloadConfig.from_section(section.section("workload"), base)


def _space(section: Section, base: Path) -> SpaceRules:
    if isinstance(section.values().get("space"), SearchSpace):
        raise section.fail(
            "'space' must be rules, for a study derives the space from its network, but is a "
            "SearchSpace; give the SpaceRules it was made by",
            "space",
        )
    given: str | dict[str, Any] = section.get("space", (str, dict), "auto")
    if isinstance(given, dict):
        return rules_from_section(section.section("space"))
    if given == "auto":
        return SpaceRules()
    for path in (base / given, Path(given)):
        if path.is_file():
            return load_rules(path)
    raise section.fail(
        f"'space' must be 'auto' or a search-space file, but '{given}' is no file; correct it",
        "space",
    )


def _objectives(section: Section) -> tuple[str, ...]:
    names = section.items("objectives", str, DEFAULT_OBJECTIVES)
    try:
        return check_objectives(names)
    except StudyError as reason:
        if "objectives" not in section:
            raise
        raise section.fail(str(reason), "objectives") from reason


def _constraints(section: Section) -> tuple[Constraint, ...]:
    try:
        return tuple(Constraint.parse(text) for text in section.items("constraints", str, ()))
    except StudyError as reason:
        if "(" in str(reason):
            raise
        raise section.fail(str(reason), "constraints") from reason


def _estimate(section: Section) -> EstimateSettings:
    default = EstimateSettings()
    given = section.choice("precision", ("auto", *PRECISIONS), "auto")
    settings = EstimateSettings(
        images=section.number("images", int, default.images, low=1),
        calibration_images=section.number(
            "calibration_images", int, default.calibration_images, low=8
        ),
        repair=section.choice("repair", REPAIRS, default.repair),  # type: ignore[arg-type]
        precision=default.precision if given == "auto" else given,  # type: ignore[arg-type]
        batch=_number_or_auto(section, "batch", default.batch),
        floor=section.number("floor", float, default.floor, low=0.0, high=1.0),
        criterion=_criterion(section, default.criterion),
        kernel_criterion=section.choice(  # type: ignore[arg-type]
            "kernel_criterion", KERNEL_CRITERIA, default.kernel_criterion
        ),
        draw=section.choice("draw", DRAWS, default.draw),  # type: ignore[arg-type]
        seed=section.number("seed", int, default.seed, low=0, high=LARGEST_SEED),
    )
    section.close()
    return settings


def _criterion(section: Section, default: str) -> str:
    name: str = section.get("criterion", str, default)
    try:
        check_criterion(name)
    except InputError as reason:
        raise section.fail(str(reason), "criterion") from reason
    return name


def _latency(outer: Section, base: Path) -> LatencySettings | None:
    if "latency" not in outer:
        return None
    outer.get("latency", dict)
    section, default = outer.section("latency"), MeasureSettings()
    section.choice("runtime", RUNTIMES, RUNTIMES[0])
    table = section.get("table", str, None)
    measure = MeasureSettings(
        threads=section.number("threads", int, default.threads, low=1),
        batch=section.number("batch", int, default.batch, low=1),
        int8=section.get("int8", bool, default.int8),
        runs=section.number("runs", int, default.runs, low=FEWEST_RUNS),
    )
    section.close()
    return LatencySettings(measure, None if table is None else base / table)


def _check_latency(section: Section, config: StudyConfig) -> None:
    """A study that minimises or bounds the latency must say how it is measured."""
    bounded = {constraint.metric for constraint in config.constraints}
    for key, named in (("objectives", set(config.objectives)), ("constraints", bounded)):
        if LATENCY in named and config.latency is None:
            raise section.fail(
                f"'{LATENCY}' needs to know how latencies are measured, but 'latency' is missing; "
                "add latency: {threads: 1, batch: 1}",
                key,
            )


def _strategies(section: Section) -> tuple[str, ...]:
    names = section.items("strategies", str, DEFAULT_STRATEGIES)
    try:
        for name in names:
            check_strategy(name)
    except StudyError as reason:
        raise section.fail(str(reason), "strategies") from reason
    if not names or len(set(names)) != len(names):
        raise section.fail(
            f"'strategies' must name at least one strategy, each once, but is {list(names)}; "
            "correct it",
            "strategies",
        )
    return names


def _seeds(section: Section) -> tuple[int, ...]:
    given = section.get("seeds", (int, list), 2)
    if isinstance(given, int) and given > MOST_SEEDS:
        raise section.fail(
            f"'seeds' must be a count of at most {MOST_SEEDS}, but is {given}; lower it", "seeds"
        )
    seeds = tuple(range(given)) if isinstance(given, int) else section.items("seeds", int)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise section.fail(
            f"'seeds' must be a count above 0 or a list of different seeds up to {LARGEST_SEED}, "
            f"but is {given}; correct it",
            "seeds",
        )
    return seeds


def _budget(section: Section, outer: Section) -> int:
    outer.get("budget", dict)
    evaluations: int = section.number("evaluations", int, low=1)
    section.close()
    return evaluations


def engine_with(engine: EngineSettings, changes: Mapping[str, Any]) -> EngineSettings:
    """Engine settings with others in place of some, by the keys of a sweep file's `engine`.

    Args:
        engine: the settings as they are.
        changes: read as a sweep file's; workers and address may also be None, see `EngineSettings`.

    Raises:
        StudyError: a key is unknown or a value is wrong.
    """
    none = [name for name in ("workers", "address") if changes.get(name, "") is None]
    stated = {name: value for name, value in changes.items() if name not in none}
    section = Section(as_stated({"engine": stated}), {(): Origin("settings")}, (), StudyError)
    read = _engine(section.section("engine"))
    changed: dict[str, Any] = dict.fromkeys(none)
    changed |= {name: getattr(read, name) for name in stated}
    return replace(engine, **changed)


def _engine(section: Section) -> EngineSettings:
    named = "workers" in section and not _is_auto(section, "workers")
    workers = _number_or_auto(section, "workers", 1)
    settings = EngineSettings(
        kind=section.choice("kind", ENGINES, "cluster"),  # type: ignore[arg-type]
        workers=workers if named else None,
        threads=_number_or_auto(section, "threads", 1, MOST_THREADS),
        address=section.get("address", str, None),
    )
    section.close()
    return settings
