"""The configuration of an experiment: named parts and plain numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union

Value = Union[bool, int, float, str, None]

_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')


class ConfigError(ValueError):
  """A request that can't be met; the message says what to change."""


def near_matches(word: str, known: Iterable[str]) -> str:
  """Returns a clause that names the known words nearest to a wrong one."""
  known = sorted(known)
  near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
  if near:
    return 'did you mean ' + ' or '.join(repr(n) for n in near) + '?'
  return 'known are ' + ', '.join(known) + '.' if known else 'there are none.'


def expand_path(path: str) -> str:
  """Returns a path that a user gave, with `~` and `~NAME` replaced.

  Args:
    path: The path.

  Raises:
    ConfigError: If the user has no home folder.
  """
  expanded = os.path.expanduser(path)
  if expanded.startswith('~') and not os.path.exists(expanded):
    raise ConfigError(
      f'{path} begins in a home folder that is not known here; give the '
      'absolute path, or set HOME.'
    )
  return expanded


def _parse_value(text: str) -> Value:
  lowered = text.lower()
  if lowered in ('true', 'false'):
    return lowered == 'true'
  if lowered == 'none':
    return None
  for number in (int, float):
    with contextlib.suppress(ValueError):
      return number(text)
  if text.startswith('~/'):
    return expand_path(text)
  return text


def _format_value(value: Value) -> str:
  if value is None or isinstance(value, bool):
    return str(value).lower()
  return repr(value) if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class ComponentSpec:
  """A part's name and its options, written as `name:key=value,key=value`.

  Attributes:
    name: The part's name in its registry.
    options: Pairs of option name and value.
  """

  name: str
  options: tuple[tuple[str, Value], ...] = ()

  @classmethod
  def parse(cls, text: str) -> ComponentSpec:
    """Parses `name:key=value,key=value`.

    Args:
      text: The text; values are numbers, true, false, none, or words.

    Returns:
      The specification.

    Raises:
      ConfigError: If the text does not follow the grammar.
    """
    name, colon, rest = text.strip().partition(':')
    if not _NAME.fullmatch(name) or (colon and not rest):
      raise ConfigError(
        f'{text!r} is not of the form name:key=value,key=value.'
      )
    options: dict[str, Value] = {}
    for part in rest.split(',') if rest else ():
      key, equals, value = part.partition('=')
      key, value = key.strip(), value.strip()
      if not equals or not _NAME.fullmatch(key) or not value:
        raise ConfigError(f'{part!r} in {text!r} is not of the form key=value.')
      if key in options:
        raise ConfigError(f'{key!r} occurs twice in {text!r}.')
      options[key] = _parse_value(value)
    return cls(name, tuple(options.items()))

  def __str__(self) -> str:
    options = ','.join(f'{k}={_format_value(v)}' for k, v in self.options)
    return f'{self.name}:{options}' if options else self.name

  def check(
    self, registry: Mapping[str, Callable], flag: str, given: Iterable[str]
  ) -> None:
    """Checks the name against a registry and the options against its builder.

    Args:
      registry: The parts by name.
      flag: The flag with this specification, for the message.
      given: Arguments of the builder that do not come from the options.

    Raises:
      ConfigError: If there is no such part, or it has no such option.
    """
    if self.name not in registry:
      raise ConfigError(
        f'--{flag}={self}: there is no {flag} {self.name!r}; '
        f'{near_matches(self.name, registry)}'
      )
    parameters = inspect.signature(registry[self.name]).parameters
    known = set(parameters) - set(given)
    for key, _ in self.options:
      if key not in known:
        raise ConfigError(
          f'--{flag}={self}: {self.name} has no option {key!r}; '
          f'{near_matches(key, known)}'
        )

  def build(
    self, registry: Mapping[str, Callable], flag: str, **available: Any
  ) -> Any:
    """Builds the part.

    Args:
      registry: The parts by name.
      flag: The flag with this specification, for messages.
      **available: Arguments that do not come from the options. The builder gets
        those that it accepts; None leaves the builder's default.

    Returns:
      The part.

    Raises:
      ConfigError: If `check` fails, or the builder refuses an option's value.
    """
    self.check(registry, flag, available)
    builder = registry[self.name]
    accepted = {
      name: available[name]
      for name, parameter in inspect.signature(builder).parameters.items()
      if name in available
      and (available[name] is not None or parameter.default is parameter.empty)
    }
    try:
      return builder(**accepted, **dict(self.options))
    except (ValueError, TypeError) as error:
      # Our own messages are one sentence; TensorFlow's have several lines.
      if isinstance(error, ConfigError) or '\n' in str(error).strip():
        raise
      raise ConfigError(f'--{flag}={self}: {error}') from error


@dataclasses.dataclass(frozen=True)
class CompressionSpec:
  """The compression of updates and models in transit.

  Written `upload=NAME:key=value,download=NAME:key=value`, either part alone, a
  NAME alone for the upload, or `none`.

  Attributes:
    upload: How clients send their updates; None sends them uncompressed.
    download: How the server sends the model; None sends it uncompressed.
  """

  upload: Union[ComponentSpec, None] = None
  download: Union[ComponentSpec, None] = None

  @classmethod
  def parse(cls, text: str) -> CompressionSpec:
    """Parses the class's grammar; raises ConfigError if it is not followed."""
    if text.strip() == 'none':
      return cls()
    ways: dict[str, str] = {}
    way = 'upload'
    for part in text.split(','):
      name, equals, rest = part.strip().partition('=')
      if equals and name in ('upload', 'download'):
        if name in ways:
          raise ConfigError(f'{name!r} occurs twice in {text!r}.')
        way = name
        ways[way] = rest
      else:
        ways[way] = f'{ways[way]},{part}' if way in ways else part
    return cls(**{way: ComponentSpec.parse(ways[way]) for way in ways})

  def __str__(self) -> str:
    return (
      ','.join(f'{way}={spec}' for way, spec in vars(self).items() if spec)
      or 'none'
    )

  def check(
    self, registry: Mapping[str, Callable], flag: str, given: Iterable[str]
  ) -> None:
    """Checks both parts, as `ComponentSpec.check` does."""
    for spec in vars(self).values():
      if spec is not None:
        spec.check(registry, flag, given)


# Types of flags that have a grammar of their own.
_SPECS = (ComponentSpec, CompressionSpec)
PRECISIONS = ('float32', 'bfloat16')
# The ranges of numbers in the words of the message, with their flags and tests.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
  'at least 1': (
    'clients_per_round client_epochs_per_round client_batch_size '
    'max_elements_per_client sequence_length vocab_size rounds_per_eval '
    'num_validation_examples rounds_per_checkpoint personalize_clients',
    lambda value: value >= 1,
  ),
  'at least 0': ('total_rounds personalize_epochs', lambda value: value >= 0),
  'a finite number of at least 0': (
    'client_learning_rate server_learning_rate',
    lambda value: 0 <= value < math.inf,
  ),
  'at least 0 and below 1': ('server_momentum', lambda value: 0 <= value < 1),
  'from 0 to 1': ('client_similarity', lambda value: 0 <= value <= 1),
  'above 0': (
    'min_separation max_participations noise_cohort_size',
    lambda value: value > 0,
  ),
  # Beyond these ranges, noise and updates overflow or vanish in float32.
  'from 0 to 1e10': ('noise_multiplier', lambda value: 0 <= value <= 1e10),
  'from 1e-10 to 1e10': ('clip_norm', lambda value: 1e-10 <= value <= 1e10),
  # TensorFlow's generators take no others.
  'from 0 to 2^32 - 1': ('model_seed', lambda value: 0 <= value < 1 << 32),
  'above 0 and below 1': ('delta', lambda value: 0 < value < 1),
  'above 0 and below inf': (
    'personalize_learning_rate target_epsilon',
    lambda value: 0 < value < math.inf,
  ),
}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that determines a training run; `flags.py` describes it.

  Attributes have the names and the meaning of the flags of `experiments.train`.
  """

  experiment_name: str
  task: ComponentSpec = ComponentSpec('docstrings')
  data_dir: Union[str, None] = None
  vocabulary: ComponentSpec = ComponentSpec('words')
  model: ComponentSpec = ComponentSpec('si_cifg')
  transform: ComponentSpec = ComponentSpec('none')
  initial_model: Union[str, None] = None
  reinitialized_variables: Union[str, None] = None
  algorithm: ComponentSpec = ComponentSpec('fed_avg')
  aggregator: ComponentSpec = ComponentSpec('mean')
  compression: CompressionSpec = CompressionSpec()
  runtime: ComponentSpec = ComponentSpec('local')
  precision: str = 'float32'
  client_optimizer: ComponentSpec = ComponentSpec('sgd')
  client_learning_rate: float = 1.0
  server_optimizer: ComponentSpec = ComponentSpec(
    'adam', (('beta_2', 0.99), ('epsilon', 0.001))
  )
  server_learning_rate: float = 0.01
  server_learning_rate_schedule: ComponentSpec = ComponentSpec('constant')
  server_momentum: float = 0.9
  clients_per_round: int = 20
  total_rounds: int = 100
  client_epochs_per_round: int = 1
  client_batch_size: int = 16
  max_elements_per_client: int = 256
  sequence_length: int = 20
  vocab_size: int = 10000
  num_validation_examples: int = 10000
  rounds_per_eval: int = 20
  rounds_per_checkpoint: int = 20
  stop_when_diverged: bool = False
  personalize_epochs: int = 0
  personalize_clients: int = 50
  personalize_learning_rate: Union[float, None] = None
  participation: ComponentSpec = ComponentSpec('uniform')
  clip_norm: Union[float, None] = None
  clip_norm_from: Union[str, None] = None
  noise_multiplier: Union[float, None] = None
  target_epsilon: Union[float, None] = None
  delta: Union[float, None] = None
  min_separation: Union[int, None] = None
  max_participations: Union[int, None] = None
  noise_cohort_size: Union[int, None] = None
  noise_seed: Union[int, None] = None
  model_seed: int = 0
  client_seed: int = 0
  client_similarity: Union[float, None] = None
  diagnostics: ComponentSpec = ComponentSpec('none')

  def __post_init__(self):
    for name in ('data_dir', 'initial_model', 'clip_norm_from'):
      if (path := getattr(self, name)) is not None:
        object.__setattr__(self, name, expand_path(path))
    if not re.fullmatch(r'[A-Za-z0-9][\w.+=-]*', self.experiment_name):
      raise ConfigError(
        f'--experiment_name={self.experiment_name!r} names a folder: use '
        'letters, digits and . _ + = - only.'
      )
    for words, (names, is_inside) in _RANGES.items():
      for name in names.split():
        value = getattr(self, name)
        # Flags without a value have the default None.
        if value is None and getattr(type(self), name) is None:
          continue
        if not is_inside(value):
          raise ConfigError(f'--{name} must be {words}, found {value}.')
    if self.precision not in PRECISIONS:
      raise ConfigError(
        f'--precision={self.precision} must be one of {", ".join(PRECISIONS)}.'
      )
    if self.reinitialized_variables is not None and self.initial_model is None:
      raise ConfigError(
        '--reinitialized_variables has no effect without --initial_model; give '
        'both or leave it out.'
      )
    for one, other in (
      ('clip_norm', 'clip_norm_from'),
      ('noise_multiplier', 'target_epsilon'),
    ):
      if getattr(self, one) is not None and getattr(self, other) is not None:
        raise ConfigError(
          f'--{one} and --{other} exclude each other; give one of them.'
        )

  def to_json(self) -> str:
    """Returns the configuration as JSON, parts in the flags' grammar."""
    values = {
      key: str(value) if isinstance(value, _SPECS) else value
      for key, value in vars(self).items()
    }
    return json.dumps(values, indent=2) + '\n'

  @classmethod
  def from_json(cls, text: str) -> ExperimentConfig:
    """Reads the result of `to_json`; raises ConfigError for anything else."""
    try:
      values = json.loads(text)
      defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(cls)
      }
      if unknown := set(values) - set(defaults):
        raise ConfigError(
          f'The configuration has unknown entries: {sorted(unknown)}.'
        )
      return cls(
        **{
          key: type(defaults[key]).parse(value)
          if isinstance(defaults[key], _SPECS)
          else value
          for key, value in values.items()
        }
      )
    except ConfigError:
      raise
    except (AttributeError, TypeError, ValueError) as error:
      raise ConfigError(f'The configuration is garbled: {error}') from error

  def differences(self, other: ExperimentConfig) -> list[str]:
    """Returns `--flag: this value, other value` for each flag that differs.

    Flags that change no round are left out, so that a resumed run can change
    them: those of personalization, and whether to end before the last round.
    """
    return [
      f'--{key}: {value} here, {vars(other)[key]} there'
      for key, value in vars(self).items()
      if str(value) != str(vars(other)[key])
      and not key.startswith(('personalize_', 'stop_'))
    ]
