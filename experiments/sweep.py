"""Trains many models: all combinations of flag values, with several seeds.

Two models, three learning rates and two seeds, twelve runs:

  python -m experiments.sweep --experiment_name=rates \\
    --flagfile=experiments/configs/docstrings.si_cifg.mean.flags \\
    --grid='model=cifg:units=256|si_cifg:units=256' \\
    --grid=client_learning_rate=0.1,0.3,1 --seeds=2

Recipes side by side, each with the flags of the command line, which take
precedence:

  python -m experiments.sweep --experiment_name=models --total_rounds=50 \\
    --recipes=experiments/configs/docstrings.cifg.mean.flags \\
    --recipes=experiments/configs/docstrings.si_cifg.mean.flags

Two flags that vary together:

  python -m experiments.sweep --experiment_name=tuned \\
    --flagfile=experiments/configs/docstrings.si_cifg.mean.flags \\
    --grid='model&client_learning_rate=cifg&0.3|si_cifg&1'

A random search:

  python -m experiments.sweep --experiment_name=search --random=20 \\
    --grid=client_learning_rate=log:0.01..3 --grid=clip_norm=0.1,0.3,1

You can give every flag of experiments.train, for all runs or in --grid. Runs
are written to runs/NAME/RUN, their output to runs/NAME/logs. As many run in
parallel as there are processors. You can stop a sweep at any time: the same
command continues it and retries failed runs. Then:

  python -m experiments.report --runs=runs/rates
"""

from __future__ import annotations

import os
import shlex
import sys

from absl import flags as absl_flags

from si_federated import config, files, flags, sweeps

flags.define_experiment_flags()
absl_flags.adopt_module_key_flags(flags)

_GRID = absl_flags.DEFINE_multi_string(
  'grid',
  [],
  'The values of a flag, FLAG=VALUE|VALUE or FLAG=NUMBER,NUMBER; with --random '
  'also FLAG=log:0.01..3, FLAG=linear:0..1 or FLAG=int:1..8. Can be repeated '
  'for other flags; FLAG&FLAG=VALUE&VALUE|VALUE&VALUE varies two together.',
)
_RECIPES = absl_flags.DEFINE_multi_string(
  'recipes',
  [],
  'Files of flags, separated by commas or in repeated flags. The sweep runs '
  'all settings with each file. Flags of the command line take precedence.',
)
_SEEDS = absl_flags.DEFINE_integer(
  'seeds', 1, 'Number of runs of each setting, with seeds that count up.'
)
_SEED_FLAGS = absl_flags.DEFINE_list(
  'seed_flags',
  list(sweeps.SEED_FLAGS),
  'The seeds that --seeds counts up; other seeds keep their values. noise_seed '
  'is for private aggregators, and secret by default.',
)
_RANDOM = absl_flags.DEFINE_integer(
  'random', None, 'Draw this many settings of --grid instead of running all.'
)
_RANDOM_SEED = absl_flags.DEFINE_integer(
  'random_seed', 0, 'The seed of the draws of --random.'
)
_JOBS = absl_flags.DEFINE_integer(
  'jobs',
  None,
  'Number of parallel runs; by default one per processor.',
)
_THREADS = absl_flags.DEFINE_integer(
  'threads_per_run',
  None,
  'Number of processors of each run; by default an equal share of them.',
)
_ADD = absl_flags.DEFINE_bool(
  'add', False, 'Add these runs to a sweep that has other runs.'
)
_DRY_RUN = absl_flags.DEFINE_bool(
  'dry_run', False, 'Print the commands of the runs, and run nothing.'
)


def main() -> None:
  """Plans the sweep and trains its unfinished runs."""
  folder = os.path.join(
    absl_flags.FLAGS.root_output_dir, absl_flags.FLAGS.experiment_name
  )
  processors = len(os.sched_getaffinity(0))
  jobs = processors if _JOBS.value is None else _JOBS.value
  threads = _THREADS.value or max(1, processors // max(jobs, 1))
  if jobs < 1 or threads < 1:
    raise config.ConfigError('--jobs and --threads_per_run must be 1 or more.')
  plan = _plan(folder)

  def command(run: config.ExperimentConfig) -> list[str]:
    arguments = sweeps.command_line(run, flags.experiment_from_arguments)
    program = [sys.executable, '-m', 'experiments.train']
    return [*program, f'--root_output_dir={folder}', *arguments]

  if _DRY_RUN.value:
    for settings in plan.runs:
      print(shlex.join(command(settings)))
    return
  with files.lock_folder(folder, 'running the sweep in'):
    plan.write(folder)
    runs = sweeps.find_runs(plan, folder)
    with sweeps.show(runs) as shown:
      sweeps.run_all(
        runs,
        lambda run: command(run.settings),
        num_jobs=jobs,
        threads_per_run=threads,
        changed=shown.changed,
      )
  failed = [run.name for run in runs if run.state == sweeps.FAILED]
  if failed:
    raise ValueError(
      f'{len(failed)} of {len(runs)} runs failed ({", ".join(failed[:5])}'
      f'{", ..." if len(failed) > 5 else ""}): see above, and '
      f'{os.path.join(folder, "logs")}; the same command retries them.'
    )
  print(
    f'Results are in {folder}; experiments.report --runs={folder} shows them.'
  )


def _plan(folder: str) -> sweeps.Plan:
  """Returns the plan that the flags describe, checked against the folder's."""
  given = flags.given_experiment_flags()
  own = given.pop('experiment_name')
  held = sweeps.read_plan(folder)
  nothing = not (given or _GRID.value or _RECIPES.value or _RANDOM.value)
  if held is not None and nothing and _SEEDS.value == 1:
    return held
  numeric = flags.numeric_experiment_flags()
  wanted = sweeps.build_plan(
    _bases(given, own),
    [sweeps.parse_axis(text, numeric, flags.ALIASES) for text in _GRID.value],
    flags.experiment_from_arguments,
    num_seeds=_SEEDS.value,
    seed_flags=_SEED_FLAGS.value,
    num_random=_RANDOM.value,
    random_seed=_RANDOM_SEED.value,
  )
  # Replace a plan if none of its runs has started.
  if held is None or not any(
    run.round_num or run.state == sweeps.FINISHED
    for run in sweeps.find_runs(held, folder)
  ):
    return wanted
  where = os.path.join(folder, sweeps.PLAN_NAME)
  return held.extend(wanted, add=_ADD.value, where=where)


def _bases(given: dict[str, str], own_name: str) -> list[sweeps.Base]:
  """Returns a base for each recipe, or the one of the command line."""
  arguments = tuple(f'--{flag}={value}' for flag, value in given.items())
  paths = [
    config.expand_path(path)
    for text in _RECIPES.value
    for path in text.split(',')
    if path
  ]
  if not paths:
    label = '' if _GRID.value else own_name
    return [sweeps.Base(label, arguments)]
  for path in paths:
    if not os.path.isfile(path):
      raise config.ConfigError(
        f'--recipes={path}: there is no such file; give files of flags, such '
        'as those in experiments/configs.'
      )
  return [
    sweeps.Base(
      os.path.basename(path).removesuffix('.flags'),
      (f'--flagfile={path}', *arguments),
    )
    for path in paths
  ]


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
