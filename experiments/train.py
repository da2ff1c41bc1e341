"""Trains a language model by simulated federated learning.

The smallest run, real English from the Python packages of this machine:

  python -m experiments.train --experiment_name=first

A recipe, with a flag changed:

  python -m experiments.train --experiment_name=second \\
    --flagfile=experiments/configs/docstrings.si_cifg.mean.flags \\
    --client_learning_rate=0.5

Each part (task, model, optimizers and so on) is written NAME or
NAME:option=value,option=value, as in --model=si_cifg:units=670. The error for a
wrong name or option lists those that exist. --help_models lists the models with
their options, shapes and numbers of parameters.

Results go to the folder runs/NAME: metrics.csv has one row per round,
checkpoints/ the newest states (the same command resumes from there), and
logdir/ is for TensorBoard. Then:

  python -m experiments.report --runs=runs
  python -m experiments.predict --run=runs/first --text="this function returns"
"""

from __future__ import annotations

import os
import sys
from typing import Any

from absl import flags as absl_flags

from si_federated import flags


class _HelpModels(absl_flags.BooleanFlag):
  """Prints the models and exits, whatever the other flags."""

  def parse(self, argument: Any) -> None:
    """Parses; see the class."""
    super().parse(argument)
    if self.value:
      from si_federated.models import catalog

      for line in catalog.describe():
        print(line)
      sys.exit(0)


flags.define_experiment_flags()
absl_flags.DEFINE_flag(
  _HelpModels('help_models', False, 'Show the models, then exit.')
)
# Otherwise --help would omit the flags of another module.
absl_flags.adopt_module_key_flags(flags)


def main() -> None:
  """Trains, and prints the result."""
  # TensorFlow takes seconds to load, so wrong flags are reported first.
  config = flags.experiment_from_flags()
  from si_federated import experiment
  from si_federated.privacy import ledger

  root = absl_flags.FLAGS.root_output_dir
  summary = experiment.run(config, root)
  final = summary['final']
  perplexity = final.get('eval/perplexity')
  result = f'accuracy {final["eval/accuracy"]:.3f}'
  if perplexity is not None:
    result = f'perplexity {perplexity:.4g}, {result}'
  print(
    f'{config.experiment_name}: {summary["rounds"]} rounds, '
    f'{summary["num_parameters"]:,} parameters, '
    f'{summary["secs_total"]:.0f} s of training; validation {result}'
  )
  privacy = summary['privacy']
  if privacy['private']:
    print(ledger.sentence(privacy))
  print(f'Results are in {os.path.join(root, config.experiment_name)}.')


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
