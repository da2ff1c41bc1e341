"""The runs of a sweep, as written to `sweep.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Union

from si_federated import config, files
from si_federated.config import ExperimentConfig
from si_federated.sweeps.axes import Axis

PLAN_NAME = 'sweep.json'
SEED_FLAGS = ('model_seed', 'client_seed', 'noise_seed')
_FORMAT_VERSION = 1
_MOST_CHARACTERS = 100
_MOST_LISTED = 3
# The one aggregator without noise.
_NOT_PRIVATE = 'mean'
# Flags whose values appear in names without the name of the flag.
_NAMELESS = ('model', 'aggregator', 'algorithm', 'task')
_SHORT = {
  'client_learning_rate': 'client_lr',
  'server_learning_rate': 'server_lr',
}


@dataclasses.dataclass(frozen=True)
class Base:
  """The flags that a family of runs shares.

  Attributes:
    label: Distinguishes it from other bases in names; can be empty.
    arguments: Flags, as on a command line.
  """

  label: str
  arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The runs of a sweep.

  Attributes:
    runs: The settings of the runs in the order in which to run them;
      `experiment_name` is the name of a run's folder.
  """

  runs: tuple[ExperimentConfig, ...]

  def to_json(self) -> str:
    """Returns the plan as JSON: shared settings, and each run's own."""
    runs = [json.loads(run.to_json()) for run in self.runs]
    for run in runs:
      del run['experiment_name']
    shared = {
      flag: value
      for flag, value in runs[0].items()
      if all(run[flag] == value for run in runs)
    }
    content = {
      'format_version': _FORMAT_VERSION,
      'shared': shared,
      'runs': {
        run.experiment_name: {
          flag: value for flag, value in one.items() if flag not in shared
        }
        for run, one in zip(self.runs, runs)
      },
    }
    return json.dumps(content, indent=2) + '\n'

  def write(self, folder: Union[str, os.PathLike]) -> None:
    """Writes `sweep.json` into a folder, created if missing."""
    files.write_atomically(os.path.join(folder, PLAN_NAME), self.to_json())

  def extend(self, new: Plan, *, add: bool, where: str) -> Plan:
    """Returns the plan that continues this one.

    Args:
      new: The requested plan. Runs with equal settings are the same run,
        whatever their names.
      add: Whether to allow that `new` lacks runs of this plan; they are kept.
      where: The location of this plan, for the message.

    Returns:
      The runs of this plan, then those that `new` adds.

    Raises:
      config.ConfigError: If `new` lacks runs of this plan, and `add` is false.
    """
    held = {_settings(run): run for run in self.runs}
    wanted = {_settings(run): run for run in new.runs}
    gone = [run for key, run in held.items() if key not in wanted]
    if gone and not add:
      raise config.ConfigError(
        f'{where} plans {_count(len(gone))} that these flags do not '
        f'({_difference(gone, new.runs)}); repeat the earlier flags to '
        'continue it, use --add to run these as well, or another '
        '--experiment_name.'
      )
    runs = {run.experiment_name: run for run in self.runs}
    for key, run in wanted.items():
      if key not in held:
        _add(runs, run, run.experiment_name)
    return Plan(tuple(runs.values()))


def read_plan(folder: Union[str, os.PathLike]) -> Plan | None:
  """Reads the plan of a folder.

  Args:
    folder: The folder of a sweep.

  Returns:
    The plan, or None if the folder has none.

  Raises:
    config.ConfigError: If `sweep.json` is garbled.
  """
  path = os.path.join(folder, PLAN_NAME)
  try:
    with open(path, encoding='utf-8') as file:
      content = json.load(file)
    if content['format_version'] != _FORMAT_VERSION:
      raise ValueError(f'its format is {content["format_version"]!r}')
    runs = [
      ExperimentConfig.from_json(
        json.dumps({**content['shared'], **own, 'experiment_name': name})
      )
      for name, own in content['runs'].items()
    ]
    if not runs:
      raise ValueError('it has no runs')
    return Plan(tuple(runs))
  except FileNotFoundError:
    return None
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise config.ConfigError(
      f'{path} is not a plan of a sweep ({error}); restore it, or remove it to '
      'start over.'
    ) from error


def build_plan(
  bases: Sequence[Base],
  axes: Sequence[Axis],
  resolve: Callable[[Sequence[str]], ExperimentConfig],
  *,
  num_seeds: int = 1,
  seed_flags: Sequence[str] = SEED_FLAGS,
  num_random: int | None = None,
  random_seed: int = 0,
) -> Plan:
  """Lists the runs of a grid or of a random search.

  Args:
    bases: The bases; each is combined with every setting of the axes.
    axes: The flags to vary. All combinations are run, unless `num_random` is
      given.
    resolve: Turns flags, as on a command line, into a configuration; if a flag
      is given twice, the last value counts.
    num_seeds: Runs of each setting, with seeds that count up from those of the
      base. All settings run with the first seeds, then all with the next.
    seed_flags: The seeds that count up; `noise_seed` counts only for private
      aggregators, from 0 if the base has none.
    num_random: Number of settings to draw, each flag independently, instead of
      all combinations.
    random_seed: Seeds the draws.

  Returns:
    The plan, a function of the arguments only; more values, seeds or draws add
    runs to it.

  Raises:
    config.ConfigError: If the arguments contradict one another or a setting is
      invalid.
  """
  _check(axes, num_seeds, seed_flags, num_random)
  flags = [flag for axis in axes for flag in axis.flags]
  combinations: Iterable[tuple[tuple[str, ...], ...]]
  if num_random is None:
    combinations = list(itertools.product(*(axis.values for axis in axes)))
  else:
    combinations = [
      tuple(axis.draw(random_seed, index) for axis in axes)
      for index in range(num_random)
    ]
  shortened = {
    flag: _short_values([value[place] for value in axis.values])
    for axis in axes
    for place, flag in enumerate(axis.flags)
  }
  runs: dict[str, ExperimentConfig] = {}
  planned: set[ExperimentConfig] = set()
  for number in range(num_seeds):
    for base, chosen in itertools.product(bases, combinations):
      values = list(itertools.chain.from_iterable(chosen))
      settings = [f'--{flag}={value}' for flag, value in zip(flags, values)]
      run = resolve(['--experiment_name=run', *base.arguments, *settings])
      seeds = _seeds(run, seed_flags, number)
      run = _settings(dataclasses.replace(run, **seeds))
      if run in planned:
        if num_random is None:
          raise config.ConfigError(
            f'{" ".join(settings) or base.label or "A run"} occurs twice in '
            'the sweep; list each value and each recipe once.'
          )
        continue
      planned.add(run)
      pieces = [base.label] if base.label else []
      for flag, value in zip(flags, values):
        short = shortened[flag].get(value, value)
        prefix = '' if flag in _NAMELESS else f'{_SHORT.get(flag, flag)}='
        pieces.append(prefix + short)
      if num_seeds > 1:
        pieces.append(f'seed={number}')
      _add(runs, run, _name(pieces, run))
  return Plan(tuple(runs.values()))


def _add(
  runs: dict[str, ExperimentConfig], run: ExperimentConfig, name: str
) -> None:
  """Adds a run under a name, made unique by a hash of its settings."""
  if name in runs:
    name = f'{name}-{_hash(run)}'
  runs[name] = dataclasses.replace(run, experiment_name=name)


def command_line(
  run: ExperimentConfig,
  resolve: Callable[[Sequence[str]], ExperimentConfig],
) -> list[str]:
  """Returns the flags that give a run its settings, without defaults.

  Args:
    run: The run.
    resolve: See `build_plan`.
  """
  name = f'--experiment_name={run.experiment_name}'
  default = resolve([name])
  flags = _differing(run, default)
  # Defaults can depend on other flags, such as the task.
  for _ in range(2):
    arguments = [name, *(f'--{flag}={value}' for flag, value in flags.items())]
    missed = _differing(run, resolve(arguments))
    if not missed:
      break
    flags.update(missed)
  return arguments


def _differing(
  run: ExperimentConfig, other: ExperimentConfig
) -> dict[str, Any]:
  """Returns the flags of a run whose values differ from another's."""
  return {
    flag: value
    for flag, value in vars(run).items()
    if str(value) != str(getattr(other, flag))
  }


def _check(
  axes: Sequence[Axis],
  num_seeds: int,
  seed_flags: Sequence[str],
  num_random: int | None,
) -> None:
  flags = [flag for axis in axes for flag in axis.flags]
  for flag in flags:
    if flags.count(flag) > 1:
      raise config.ConfigError(
        f'--grid has {flag} twice; list all of its values in one --grid.'
      )
  if 'experiment_name' in flags:
    raise config.ConfigError(
      '--grid=experiment_name: the sweep names its runs itself; leave it out.'
    )
  for flag in seed_flags:
    if flag not in SEED_FLAGS:
      raise config.ConfigError(
        f'--seed_flags={",".join(seed_flags)}: there is no seed {flag!r}; '
        f'known are {", ".join(SEED_FLAGS)}.'
      )
    if flag in flags and num_seeds > 1:
      raise config.ConfigError(
        f'--grid={flag} and --seeds={num_seeds} both set --{flag}; give one of '
        'them, or remove it from --seed_flags.'
      )
  if num_seeds < 1:
    raise config.ConfigError(f'--seeds must be at least 1, found {num_seeds}.')
  if num_random is None:
    for axis in axes:
      if axis.range:
        raise config.ConfigError(
          f'--grid={axis.flags[0]} is a range, from which --random=N draws; '
          'list values for a grid.'
        )
  elif num_random < 1:
    raise config.ConfigError(
      f'--random must be at least 1, found {num_random}.'
    )
  elif not axes:
    raise config.ConfigError(
      '--random draws settings of --grid; give the flags to vary, as in '
      '--grid=client_learning_rate=log:0.01..3.'
    )


def _seeds(
  run: ExperimentConfig, seed_flags: Sequence[str], number: int
) -> dict[str, Any]:
  seeds = {}
  for flag in seed_flags:
    if flag != 'noise_seed' or run.aggregator.name != _NOT_PRIVATE:
      seeds[flag] = (getattr(run, flag) or 0) + number
  return seeds


def _short_values(values: Sequence[str]) -> dict[str, str]:
  """Shortens values for names: options appear only where they differ."""
  options: dict[str, dict[str, list[str]]] = {}
  for value in values:
    name, _, rest = value.partition(':')
    options.setdefault(name, {})[value] = rest.split(',') if rest else []
  short = {}
  for name, alike in options.items():
    common = set.intersection(*map(set, alike.values()))
    for value, pieces in alike.items():
      own = ','.join(piece for piece in pieces if piece not in common)
      short[value] = f'{name}:{own}' if own else name
  return short


def _name(pieces: Sequence[str], run: ExperimentConfig) -> str:
  name = re.sub(r'[^\w.+=-]', '+', '-'.join(pieces), flags=re.ASCII)
  name = name.lstrip('._+=-') or 'run'
  if len(name) <= _MOST_CHARACTERS:
    return name
  return f'{name[:_MOST_CHARACTERS]}-{_hash(run)}'


def _settings(run: ExperimentConfig) -> ExperimentConfig:
  """Returns the settings that identify a run: all but its name."""
  return dataclasses.replace(run, experiment_name='run')


def _hash(run: ExperimentConfig) -> str:
  return hashlib.sha256(_settings(run).to_json().encode()).hexdigest()[:8]


def _count(number: int) -> str:
  return f'{number} run' if number == 1 else f'{number} runs'


def _difference(
  gone: Sequence[ExperimentConfig], wanted: Sequence[ExperimentConfig]
) -> str:
  """Describes how missing runs differ from the most similar requested ones."""
  texts = []
  for run in gone[:_MOST_LISTED]:
    nearest: list[str] = min(
      (_settings(run).differences(_settings(one)) for one in wanted), key=len
    )
    text = ', '.join(nearest[:_MOST_LISTED])
    if len(nearest) > _MOST_LISTED:
      text += f' and {len(nearest) - _MOST_LISTED} more'
    texts.append(
      f'{run.experiment_name}: '
      + text.replace(' here', ' in the plan').replace(' there', ' now')
    )
  if len(gone) > _MOST_LISTED:
    texts.append('...')
  return '; '.join(texts)
