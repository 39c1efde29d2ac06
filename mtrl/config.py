"""Settings of a run, and the conversion of a command line to plain values. `train.yaml` composes the config groups."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import mtrl
from mtrl.checks import not_negative, positive
from mtrl.files import write_atomic
from mtrl.output import unbreakable_output
from mtrl.registry import check_type, construct, names, unknown
from mtrl.run.reading import DEEPEST, read_text
from mtrl.state import shown
from mtrl.types import UserError

GROUPS = (
    "env",
    "agent",
    "data",
    "network",
    "torso",
    "core",
    "task_encoder",
    "aggregation",
    "weighting",
    "value_norm",
    "value_head",
    "task_sampling",
)
"""Config groups that choose one component each; the registry checks their content."""

OPTIONAL_GROUPS = ("experiment", "distill")
"""Groups of presets of which none is chosen by default."""

KINDS = {"network": "trunk"}
"""The kind of component that a group chooses, if it differs from the group's name."""

BY_PART = ("lr_factors", "freeze", "l2_sp")
"""Settings with a number for each of some parts of the networks."""

MAX_EPISODE_STEPS = 27_000
"""The longest time limit among Gymnasium's and Atari's environments."""

CHANGEABLE = (
    "total_steps",
    "total_updates",
    "device",
    "precision",
    "compile",
    "transport",
    "eval",
    "checkpoint",
    "log",
    "schedule_steps",
)
"""Settings that may change when a run is resumed."""


@dataclass(frozen=True)
class EvalConfig:
    """When and how the policy is evaluated during training; the final policy always is."""

    every: int
    """Environment steps over all slots; 0: only at the end."""
    episodes_per_task: int
    """Episode i runs goal i: 50 is the official protocol."""
    max_episode_steps: int = MAX_EPISODE_STEPS
    """Truncates episodes of environments that have no time limit."""
    stop_at_success: bool = False
    """Whether episodes end at their first success: the same success rates, in less time. Returns are up to there."""

    def __post_init__(self) -> None:
        not_negative(every=self.every)
        positive(episodes_per_task=self.episodes_per_task, max_episode_steps=self.max_episode_steps)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved; there is always one at the end and after a stop by signal."""

    every: int
    """Environment steps over all slots; 0: only at the end."""
    keep: int
    """Number of newest checkpoints to keep."""

    def __post_init__(self) -> None:
        not_negative(every=self.every)
        positive(keep=self.keep)


@dataclass(frozen=True)
class LogConfig:
    """Where metrics are logged besides `metrics.jsonl`."""

    every: int
    """Environment steps over all slots."""
    tensorboard: bool
    wandb: bool
    wandb_project: str = "mtrl"
    wandb_entity: str | None = None
    """User or team; None: the default one of the account."""
    wandb_group: str | None = None
    """None: the name of the sweep that the run is a job of, if any."""
    wandb_tags: list[str] = field(default_factory=list)
    lookahead: bool = False
    """Whether each row says what a step on each task does to the losses of the others."""

    def __post_init__(self) -> None:
        positive(every=self.every)


@dataclass(frozen=True)
class NetworkConfig:
    """A trunk and the kind of head on it."""

    trunk: dict[str, Any]
    head: str
    value: dict[str, Any] | None = None
    """Options of the trunk that differ in critics and value networks."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run, as plain values."""

    env: dict[str, Any]
    agent: dict[str, Any]
    data: dict[str, Any]
    network: dict[str, Any]
    torso: dict[str, Any]
    core: dict[str, Any]
    task_encoder: dict[str, Any]
    aggregation: dict[str, Any]
    weighting: dict[str, Any]
    value_norm: dict[str, Any]
    value_head: dict[str, Any]
    task_sampling: dict[str, Any]
    seed: int
    device: str
    total_steps: int
    """Environment steps over all slots."""
    run_dir: str | None
    init_from: str | None
    """Run, checkpoint or policy to take weights from."""
    init_from_parts: list[str] | None
    """Names of submodules to take, for example [trunk, obs_norm]; null for all."""
    eval: EvalConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    actors: int = 0
    """Processes that act in parallel with the learner and share the slots; 0: the learner's process acts."""
    transport: str = "local"
    """Where actors run: local, or ray for the machines of a Ray cluster."""
    precision: str = "float32"
    """Precision of torsos and trunks: float32 or bfloat16."""
    compile: bool = False
    """Whether losses are compiled."""
    schedule_steps: int | None = None
    """Where schedules (learning rates, resets) end; None: where training ends."""
    total_updates: int | None = None
    """Ends training after this many updates instead of `total_steps`; all intervals then count updates, too."""
    resets: int = 0
    """Number of times that networks and optimisers are reset, evenly spaced over training."""
    aux_losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Losses of the policy in addition to the learner's."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rates of parts."""
    freeze: dict[str, float] = field(default_factory=dict)
    """Shares of training, from its beginning, for which parts are frozen."""
    l2_sp: dict[str, float] = field(default_factory=dict)
    """Strength with which parts are pulled to the weights of `init_from`."""

    def __post_init__(self) -> None:
        positive(total_steps=self.total_steps)
        for key in ("schedule_steps", "total_updates"):
            if vars(self)[key] is not None:
                positive(**{key: vars(self)[key]})
        not_negative(seed=self.seed, actors=self.actors, resets=self.resets)
        if self.transport != "local" and not self.actors:
            raise ValueError(f"transport={self.transport} connects to actors: choose their number with actors=...")
        if self.init_from_parts is not None and self.init_from is None:
            raise ValueError("init_from_parts says what to take, but init_from does not say where from.")
        for part, factor in self.lr_factors.items():
            if not 0 < factor < float("inf"):
                raise ValueError(f"lr_factors.{part} must be positive, not {factor}: freeze.{part}=1 stops a part.")
        for part, share in self.freeze.items():
            if not 0 < share <= 1:
                raise ValueError(f"freeze.{part} must be a share of training, above 0 and at most 1, not {share}.")
        positive(**{f"l2_sp.{part}": alpha for part, alpha in self.l2_sp.items()})
        if self.l2_sp and self.init_from is None:
            raise ValueError("l2_sp pulls to the weights of init_from, which is not given.")
        if self.resets and (self.freeze or self.l2_sp):
            raise ValueError("resets moves all networks to their first values: use it without freeze and l2_sp.")
        for group in GROUPS:
            if group != "network":
                if "name" not in vars(self)[group]:
                    raise ValueError(f"{group} needs a name.")
                check_type(group, "name", vars(self)[group]["name"], str)
        for key in {"seed", "device", "slots_per_task"} & self.env.keys():
            raise ValueError(f"env.{key} does not exist: use {'data.' if key == 'slots_per_task' else ''}{key}.")
        num_envs, slots_per_task = self.env.get("num_envs"), self.data.get("slots_per_task", 1)
        if not isinstance(num_envs, int | None) or isinstance(num_envs, bool):
            raise ValueError(f"env.num_envs must be an integer or null, not {num_envs!r}.")
        if not isinstance(slots_per_task, int) or isinstance(slots_per_task, bool) or slots_per_task < 1:
            raise ValueError(f"data.slots_per_task must be a positive integer, not {slots_per_task!r}.")
        key, slots = ("data.slots_per_task", slots_per_task) if num_envs is None else ("env.num_envs", num_envs)
        if slots % max(self.actors, 1):
            raise ValueError(f"{key}={slots} cannot be shared by actors={self.actors}: use a multiple of it.")

    @property
    def total(self) -> int:
        """Where training ends, in environment steps, or in updates if `total_updates` is given."""
        return self.total_steps if self.total_updates is None else self.total_updates

    def plain(self) -> dict[str, Any]:
        """The settings as nested dicts, as stored with a run."""
        plain = dict(vars(self))
        for key in ("eval", "checkpoint", "log"):
            plain[key] = dict(vars(plain[key]))
        return plain

    def lasting(self) -> dict[str, Any]:
        """The settings that a resumed run must keep. The folder may have been moved."""
        return {key: value for key, value in self.plain().items() if key not in (*CHANGEABLE, "run_dir")}


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Makes a `TrainConfig` from plain values. Raises `UserError` for an invalid key or value."""
    sections = {"eval": EvalConfig, "checkpoint": CheckpointConfig, "log": LogConfig}
    for key, section in {**sections, "network": NetworkConfig}.items():
        if not isinstance(values.get(key), Mapping):
            expected = ", ".join(f"{key}.{field.name}" for field in fields(section))
            raise UserError(f"{key} is a group of settings ({expected}) and cannot be {values.get(key)!r}.")
    construct("network", NetworkConfig, values["network"])
    built = {key: construct(key, section, values[key]) for key, section in sections.items()}
    given = {key: value for key, value in values.items() if key not in (*sections, "resume")}
    return construct("The configuration", TrainConfig, {**given, **built})


def config_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def presets(group: str, folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The files of a group by name, including those in the user's `folders`. Raises `UserError`."""
    files: dict[str, Path] = {}
    for folder in (config_dir(), *folders):
        if not folder.is_dir():
            raise UserError(f"No folder {folder}: expected one of presets, {folder}/<group>/<name>.yaml.")
        for path in (folder / group).glob("*.yaml"):
            if path.stem in files:
                raise UserError(f"{path} has the name of {files[path.stem]}: give it another.")
            files[path.stem] = path
    return files


def registered(group: str) -> list[str]:
    """The names of the components that a group can choose, sorted."""
    import mtrl.build  # registers what learns
    import mtrl.envs

    mtrl.envs.register_all()
    return names(KINDS.get(group, group))


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The options of a group, sorted: registered components and presets."""
    return sorted({*registered(group), *presets(group, folders)})


def offer_components(folders: Sequence[Path] = ()) -> None:
    """Registers every component without a file with Hydra, with the defaults of its constructor."""
    store = ConfigStore.instance()
    for group in GROUPS:
        files = presets(group, folders)
        for name in registered(group):
            node = {"trunk": {"name": name}, "head": "per_task"} if group == "network" else {"name": name}
            if name not in files:
                store.store(name, node, group)
            elif group in store.repo:  # stored before its file existed, with which it would be merged
                store.repo[group].pop(f"{name}.yaml", None)


def to_plain(node: Any) -> Any:
    """A config as plain dicts, lists and scalars, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a stored configuration. Raises `UserError` if it cannot be read.

    It was resolved when it was stored, so interpolations, which can read environment variables, are refused.
    """
    try:
        text = read_text(path, path.parent)
        _check_plain(text)
        values = to_plain(OmegaConf.create(text))  # only resolves what `save_yaml` escaped
        _check_keys(values, "")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"No {path.name} in {path.parent}: it is not a run folder.") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}.") from error
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} cannot be read: there are no settings in it.")
    return cast(dict[str, Any], values)


def load_train_yaml(path: Path) -> TrainConfig:
    """Reads the stored configuration of a training run. Raises `UserError` if it is incomplete or invalid."""
    values = load_yaml(path)
    try:
        return train_config(values)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _check_plain(text: str) -> None:
    """Raises `ValueError` for YAML with aliases, interpolations or deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"lists or settings more than {DEEPEST} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"expected a value, found the alias *{event.anchor} in line {event.start_mark.line + 1}")
        if isinstance(event, yaml.ScalarEvent) and re.search(r"(?<!\\)(\\\\)*\$\{", event.value):
            line = event.start_mark.line + 1
            raise ValueError(f"expected a value, found the interpolation {shown(event.value)} in line {line}")


def _check_keys(values: Any, entry: str) -> None:
    """Raises `ValueError` for a key that is not a string."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(values, dict) and not isinstance(key, str):
            raise ValueError(f"{entry or 'the settings'}: a key must be text, not {shown(key)}")
        if isinstance(value, dict | list):
            _check_keys(value, f"{entry}.{key}" if entry else str(key))


def stored_entry(config: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    """The value of a dotted key in a stored configuration. Raises `UserError` if it is missing or of another type."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{path} has no {key}.")
        value = value[part]
    check_type(f"{path}", key, value, kind)
    return value


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; an empty group is a value."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def save_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Atomically writes plain values. Raises `OSError`."""
    write_atomic(path, to_yaml(values))


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML for `load_yaml`."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(values)))


def _escaped(node: Any) -> Any:
    """Plain values with interpolations escaped."""
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", node)
    if isinstance(node, Mapping):
        return {key: _escaped(value) for key, value in node.items()}
    return [_escaped(value) for value in node] if isinstance(node, list | tuple) else node


def split_paths(arguments: Sequence[str], keys: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Separates the arguments `key=path` for some keys from the other arguments, which are for `parse`.

    A path is everything after the first `=`, and may contain characters that have a meaning in overrides.
    """
    remaining: list[str] = []
    paths: dict[str, str | None] = {}
    for argument in arguments:
        key, equals, path = argument.lstrip("+").partition("=")
        if equals and key in keys:
            paths[key] = None if path == "null" else path
        else:
            remaining.append(argument)
    return remaining, paths


def parse_with_runs(arguments: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """Parses paths, as `runs`, and `key=value` arguments, of which those of `keys` are text as it stands."""
    remaining, texts = split_paths(arguments, keys)
    runs = [argument for argument in remaining if "=" not in argument or Path(argument).exists()]
    keywords = {o.key_or_group: o.value() for o in parse([one for one in remaining if one not in runs])}
    return {**keywords, **texts, "runs": runs}


def parse_with_env(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parses `key=value` arguments, and apart from them the settings of an environment: `env=name`, `env.key=value`."""
    keywords: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for override in parse(arguments):
        key, value = override.key_or_group, override.value()
        if key == "env":
            changes["name"] = value
        elif key.startswith("env."):
            changes[key.removeprefix("env.")] = value
        else:
            keywords[key] = value
    return keywords, changes


def parse(arguments: Sequence[str], sweep: bool = False) -> list[Override]:
    """Parses `key=value` arguments, which may have several values in a `sweep`.

    Raises:
        UserError: An argument is not an override, or has several values outside a sweep.
    """
    parser, overrides = OverridesParser.create(), []
    for argument in arguments:
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            raise UserError(
                f"Cannot read the command line: {argument!r} is not key=value. Quote values with special "
                "characters, once more for the shell: 'key=\"a, b\"'."
            ) from error
        if override.is_sweep_override() and not sweep:
            raise UserError(f"{argument} stands for several values, which only a sweep takes: python -m mtrl.train -m.")
        overrides.append(override)
    return overrides


def split_folders(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Separates `--config-dir DIR`, a user's folder of presets, from the other arguments. Raises `UserError`."""
    remaining: list[str] = []
    folders: list[Path] = []
    iterator = iter(arguments)
    for argument in iterator:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config-dir", "-cd"):
            remaining.append(argument)
            continue
        if not (path := value if equals else next(iterator, "")):
            raise UserError(f"{flag} needs a folder of presets: {flag} DIR.")
        folders.append(Path(path))
    return remaining, folders


def checked(arguments: Sequence[str], config_name: str, sweep: bool = False, folders: Sequence[Path] = ()) -> list[str]:
    """Checks overrides and converts them for Hydra. Errors name the nearest valid key or option.

    Options of components are passed on and checked by the component that gets them. Naming a component chooses it:
    `weighting.name=dwa` is `weighting=dwa`, and `network.trunk.name=mlp` replaces the trunk with all its options except
    those given on the command line.

    Args:
        sweep: Whether overrides may have several values.
        folders: Folders with further presets.
    """
    base, overrides = load_yaml_of(config_name), parse(arguments, sweep)
    pairs = zip(arguments, overrides, strict=True)
    passed = [_checked(argument, override, base, folders) for argument, override in pairs]
    nodes = (override.key_or_group.rpartition(".") for override in overrides if not override.is_delete())
    holders = (*GROUPS, "aux_losses")
    replaced = [node for node, _, key in nodes if key == "name" and node.count(".") and node.split(".")[0] in holders]
    dropped = [f"++{node}=null" for node in dict.fromkeys(replaced)]
    if "network.trunk" in replaced:
        dropped.append("++network.value=null")  # these are options of the trunk, too
    return [*dropped, *passed]


def _checked(argument: str, override: Override, base: Mapping[str, Any], folders: Sequence[Path]) -> str:
    key = override.key_or_group
    first, _, rest = key.partition(".")
    plain = argument.lstrip("+")
    if override.is_delete() or key.startswith(("hydra.", "hydra/")):
        return argument
    if first in GROUPS and rest == "name":
        key, plain = first, f"{first}={plain.partition('=')[2]}"
    if key in (*GROUPS, *OPTIONAL_GROUPS):
        valid = options(key, folders)
        choices = [str(choice) for choice in _choices(override, valid)]
        for choice in choices:
            if choice not in valid:
                raise UserError(unknown(key, choice, valid))
        if isinstance(override.value(), Glob):  # Hydra would not search the user's folders
            if not choices:
                raise UserError(f"{argument} matches no {key}. Valid: {', '.join(valid)}.")
            plain = f"{key}={','.join(choices)}"
        return f"+{plain}" if key in OPTIONAL_GROUPS else plain
    if first in (*GROUPS, "aux_losses", *BY_PART):
        return f"++{plain}"  # checked by the component that gets it
    section = base.get(first)
    if rest and isinstance(section, dict):
        if rest not in section:
            raise UserError(unknown("key", key, [f"{first}.{name}" for name in section]))
    elif key not in base:
        raise UserError(unknown("key", key, [*GROUPS, *base]))
    return argument


def _choices(override: Override, options: list[str]) -> Iterable[Any]:
    """The options that an override chooses; several in a sweep."""
    value: Any = override.value()
    if isinstance(value, Glob):
        return value.filter(options)
    return override.sweep_string_iterator() if override.is_sweep_override() else [value]


def load_yaml_of(config_name: str) -> dict[str, Any]:
    """The settings in a primary config file, without its groups."""
    values = to_plain(OmegaConf.load(config_dir() / f"{config_name}.yaml"))
    return {key: value for key, value in values.items() if key not in ("defaults", "hydra")}


def composed(arguments: Sequence[str], config_name: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The configuration described by a command line, as plain values. Raises `UserError`.

    An experiment's settings for a group are dropped if the command line chooses another option of that group.
    """
    overrides = checked(arguments, config_name, folders=folders)
    keys = [override.key_or_group for override in parse(overrides)]
    offer_components(folders)

    def without(left_out: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings and choices, with the overrides of some keys left out."""
        kept = [override for override, key in zip(overrides, keys, strict=True) if key not in left_out]
        config = compose(config_name, [*search_path(folders), *kept], return_hydra_config=True)
        choices = to_plain(config.hydra.runtime.choices)
        settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return to_plain(settings), choices

    try:
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            values, choices = without(())
            if "experiment" in choices:
                (_, of_experiment), (plain, _) = without(GROUPS), without(["experiment"])
                values |= {group: plain[group] for group in GROUPS if choices.get(group) != of_experiment.get(group)}
            return values
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"A preset is not valid YAML: {' '.join(str(error).split())}.") from error


def search_path(folders: Sequence[Path]) -> list[str]:
    """The override with which Hydra finds presets in the user's folders."""
    paths = [quoted(f"file://{folder.resolve()}") for folder in folders]
    return [f"hydra.searchpath=[{','.join(paths)}]"] if paths else []


def quoted(text: str) -> str:
    """Text as a value in an override, whatever its characters."""
    # Hydra's quoting: only backslashes before a quote are escaped.
    escaped = re.sub(r'\\+(?="|$)', r"\g<0>\g<0>", text).replace('"', r"\"")
    return f'"{escaped}"'


def resumed(stored: Mapping[str, Any], overrides: Sequence[Override], paths: Iterable[str] = ()) -> dict[str, Any]:
    """A stored configuration with the changes for a resumed run.

    Args:
        paths: Keys given in addition to the overrides.

    Raises:
        UserError: An override changes a setting that is not `CHANGEABLE`.
    """
    # Includes defaults of settings that are newer than the run.
    config = OmegaConf.create(_escaped({**stored, **train_config(stored).plain()}))
    absent = object()
    for key in (*paths, *(override.key_or_group for override in overrides)):
        if key != "resume" and key.split(".")[0] not in CHANGEABLE:
            raise UserError(
                f"{key} cannot be changed when a run is resumed (only {', '.join(CHANGEABLE)}): "
                "use init_from to start a new run from this one's weights."
            )
    for override in overrides:
        key = override.key_or_group
        if OmegaConf.select(config, key, default=absent) is absent:
            section = config.get(key.split(".")[0])
            names = (
                [f"{key.split('.')[0]}.{name}" for name in map(str, section)]
                if isinstance(section, DictConfig)
                else CHANGEABLE
            )
            raise UserError(unknown("key", key, names))
        OmegaConf.update(config, key, override.value())
    try:
        return to_plain(config)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error


def differing(config: TrainConfig, stored: TrainConfig) -> list[str]:
    """The settings that prevent a stored run from being continued with a configuration: `agent.gamma=0.99, now 0.9`."""
    then, now = flat(stored.lasting()), flat(config.lasting())
    return [
        f"{key}={then.get(key, '(not set)')}, now {now.get(key, '(not set)')}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def run_or_exit(
    function: Callable[[list[str]], int],
    arguments: list[str],
    reports: Callable[[BaseException], bool] = lambda error: True,
) -> None:
    """Runs a command. A `UserError` becomes one line on standard error and exit code 2.

    Args:
        reports: Whether to print it; called only if there is one.
    """
    if "--version" in arguments:
        print(f"mtrl {mtrl.__version__}")
        sys.exit(0)
    with unbreakable_output():
        try:
            code = function(arguments)
        except UserError as error:
            if reports(error):
                print(f"error: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt as error:
            if reports(error):
                print("Interrupted.", file=sys.stderr)
            code = 130
    sys.exit(code)
