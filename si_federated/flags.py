"""The flags of an experiment; the only module that reads absl's flags."""

from __future__ import annotations

import atexit
import dataclasses
import io
import os
import signal
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from si_federated import config, help_texts

# Defaults of a task that differ from those of the configuration.
_TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
  # As in McMahan et al. 2016 (arXiv 1602.05629), LEAF and TFF.
  'shakespeare': {'sequence_length': 80}
}
# Flags of the binaries that take a path.
_PATHS = (
  'accelerator_python fedjax_python figure input output output_dir pfl_python '
  'record root_output_dir run text_files vocabulary_from'
)
ALIASES = {
  'client_lr': 'client_learning_rate',
  'server_lr': 'server_learning_rate',
  'run_name': 'experiment_name',
}


def _number_type(hint: Any) -> Any:
  """Returns X of both X and `Union[X, None]`."""
  return next(iter(typing.get_args(hint)), hint)


class _Switch(flags.Flag):
  """A text flag with a usual value, which may be left out."""

  def _parse(self, argument: Any) -> Any:
    alone = {'true': 'evaluations', 'false': 'none'}
    return super()._parse(alone.get(argument, argument))


def _define_switch(
  name: str, default: Any, help_text: str, flag_values: flags.FlagValues
) -> None:
  flags.DEFINE_flag(
    _Switch(
      flags.ArgumentParser(),
      flags.ArgumentSerializer(),
      name,
      default,
      help_text,
      boolean=True,
    ),
    flag_values,
  )


def define_config_flags(
  names: Iterable[str], flag_values: flags.FlagValues = flags.FLAGS
) -> None:
  """Defines some of the flags of `ExperimentConfig`, with its defaults.

  Args:
    names: The names of the flags.
    flag_values: Where to define them; absl's own by default.
  """
  types = typing.get_type_hints(config.ExperimentConfig)
  names = set(names)
  for field in dataclasses.fields(config.ExperimentConfig):
    if field.name not in names:
      continue
    define: Callable[..., Any] = {
      bool: flags.DEFINE_boolean,
      int: flags.DEFINE_integer,
      float: flags.DEFINE_float,
    }.get(_number_type(types[field.name]), flags.DEFINE_string)
    default: Any = field.default
    if default is dataclasses.MISSING:
      default = None
    elif hasattr(default, 'parse'):
      default = str(default)
    if field.name == 'diagnostics':
      define = _define_switch
    define(
      field.name, default, help_texts.HELP[field.name], flag_values=flag_values
    )
  for alias, name in ALIASES.items():
    if name in names:
      flags.DEFINE_alias(alias, name, flag_values=flag_values)


def define_experiment_flags() -> None:
  """Defines all flags that determine a run, and that of its root folder."""
  _define_run_flags(flags.FLAGS)
  flags.DEFINE_string(
    'root_output_dir', 'runs', 'The folder for the folders of runs.'
  )
  flags.mark_flag_as_required('experiment_name')


def _define_run_flags(flag_values: flags.FlagValues) -> None:
  define_config_flags(
    (field.name for field in dataclasses.fields(config.ExperimentConfig)),
    flag_values,
  )
  flags.DEFINE_string(
    'ray_address',
    None,
    'The cluster of --runtime=ray: auto on one of its nodes, or HOST:PORT of '
    'its head. By default Ray is started on this machine.',
    flag_values=flag_values,
  )


def numeric_experiment_flags() -> dict[str, bool]:
  """Returns, for each flag of `ExperimentConfig`, whether it is a number."""
  types = typing.get_type_hints(config.ExperimentConfig)
  return {
    field.name: _number_type(types[field.name]) in (int, float)
    for field in dataclasses.fields(config.ExperimentConfig)
  }


def given_experiment_flags() -> dict[str, str]:
  """Returns the text of those flags given that determine a run."""
  return {
    name: str(flags.FLAGS[name].value)
    for name in [*numeric_experiment_flags(), 'ray_address']
    if flags.FLAGS[name].present
  }


def experiment_from_arguments(
  arguments: Sequence[str],
) -> config.ExperimentConfig:
  """Reads flags as on the command line of `experiments.train`.

  Args:
    arguments: The flags; the last one wins if a flag is repeated.

  Returns:
    The configuration.

  Raises:
    config.ConfigError: If a flag does not exist or has a wrong value.
  """
  flag_values = flags.FlagValues()
  _define_run_flags(flag_values)
  try:
    rest = _parse(flag_values, ['', *arguments])[1:]
  except flags.Error as error:
    raise config.ConfigError(str(error).strip().replace('\n', ' ')) from error
  if rest:
    raise config.ConfigError(f'What is {rest[0]!r}? Flags start with --.')
  return experiment_from_flags(flag_values)


def experiment_from_flags(
  flag_values: flags.FlagValues = flags.FLAGS, **given: Any
) -> config.ExperimentConfig:
  """Reads the flags.

  Args:
    flag_values: The flags; absl's own by default.
    **given: Values without a flag in this binary and without a default.

  Returns:
    The configuration.

  Raises:
    config.ConfigError: If a value does not follow the grammar or is out of its
      range.
  """
  values = dict(given)
  for field in dataclasses.fields(config.ExperimentConfig):
    if field.name not in flag_values:
      continue
    value = flag_values[field.name].value
    default: Any = field.default
    if hasattr(default, 'parse'):
      try:
        value = default.parse(value)
      except config.ConfigError as error:
        raise config.ConfigError(f'--{field.name}: {error}') from error
    values[field.name] = value
  task = values.get('task')
  defaults = _TASK_DEFAULTS.get(task.name, {}) if task is not None else {}
  for name, value in defaults.items():
    if name in flag_values and flag_values[name].using_default_value:
      values[name] = value
  address = 'ray_address' in flag_values and flag_values.ray_address
  if address:
    runtime = values['runtime']
    if runtime.name != 'ray':
      raise config.ConfigError(
        f'--ray_address={address} is for --runtime=ray, found '
        f'--runtime={runtime}.'
      )
    values['runtime'] = dataclasses.replace(
      runtime, options=(*runtime.options, ('address', address))
    )
  return config.ExperimentConfig(**values)


def _parse(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Parses flags; byte order marks of files of flags count for nothing."""
  try:
    read = flag_values.read_flags_from_files(argv[1:], force_gnu=False)
  except UnicodeDecodeError as error:
    files = ' '.join(arg for arg in argv[1:] if 'flagfile' in arg)
    raise config.ConfigError(
      f'{files} is not {error.encoding} text ({error.reason} at position '
      f'{error.start}); convert it to UTF-8 by `iconv -t utf8`.'
    ) from error
  given = [(text, text.lstrip('\ufeff')) for text in read]
  return flag_values(
    [
      argv[0],
      *(
        bare
        for text, bare in given
        if text == bare or (bare and not bare.startswith(('#', '//')))
      ),
    ]
  )


def _expand_paths() -> None:
  """Expands `~` in flags with paths; `config` does so for its own flags."""
  for name in _PATHS.split():
    if name in flags.FLAGS and isinstance(flags.FLAGS[name].value, str):
      flags.FLAGS[name].value = config.expand_path(flags.FLAGS[name].value)


def run_main(main: Callable[..., Any], *, arguments: bool = False) -> None:
  """Runs a binary: parses flags, and ends on bad input with one sentence.

  Exit codes are 0, 1 for unusable data or files, 2 for wrong flags, 130 when
  interrupted and 141 when the reader of the output is gone. `-v=1` shows the
  traceback.

  Args:
    main: The work of the binary.
    arguments: Whether `main` takes a list of positional arguments; otherwise
      they are an error.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      if arguments:
        # They may stand before flags.
        flags.FLAGS.set_gnu_getopt(True)
      rest = _parse(flags.FLAGS, argv)
      _expand_paths()
      return rest
    except SystemExit:
      # absl counts --help as a failure.
      sys.exit(0)
    except flags.Error as error:
      message = str(error).strip().replace('\n', ' ')
      _fail(f'{message} (--help lists the flags)', 2)
    except config.ConfigError as error:
      _fail(str(error), 2, error)

  def absl_main(argv: Sequence[str]) -> None:
    if len(argv) > 1 and not arguments:
      _fail(f'What is {argv[1]!r}? Flags start with --; see --help.', 2)
    try:
      main(*([argv[1:]] if arguments else []))
      sys.stdout.flush()
    except config.ConfigError as error:
      _fail(str(error), 2, error)
    except BrokenPipeError:
      # The reader, such as `head`, has closed the pipe. Without this, Python
      # would complain again at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(128 + signal.SIGPIPE)
    except (OSError, ValueError) as error:
      _fail(str(error), 1, error)
    except MemoryError as error:
      _fail(f'Out of memory. {error}'.strip(), 1, error)
    except KeyboardInterrupt:
      sys.stdout.flush()
      try:
        # Runtimes stop their processes in exit handlers.
        atexit._run_exitfuncs()
      finally:
        # Other threads may still be at a client's step: don't wait for them.
        os._exit(130)

  for stream in (sys.stdout, sys.stderr):
    # Characters that the output can't show must not end the work.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')
  # TensorFlow warns about missing GPU libraries at every start, and an old
  # dependency warns about pkg_resources.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
  # Does not use `app.run`: if TensorFlow is imported after that has begun, it
  # sets up its devices during its own import and mistakes graphs for eager
  # execution. Our binaries import it late, to reject wrong flags at once.
  app.define_help_flags()
  logging.use_absl_handler()
  absl_main(parse(sys.argv))


def _fail(
  message: str, code: int, error: BaseException | None = None
) -> NoReturn:
  if error is not None and flags.FLAGS.verbosity >= 1:
    traceback.print_exception(type(error), error, error.__traceback__)
  print(f'error: {message}', file=sys.stderr)
  sys.exit(code)
