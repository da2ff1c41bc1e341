"""Audits private training: an empirical lower bound on epsilon.

It trains as experiments.train does, with the same flags, and adds canaries to
the cohorts: clients whose updates are known random directions. Half of them are
held out. How accurately the releases of all rounds tell participants from
held-out canaries gives a lower bound on epsilon with 95 % confidence (one-run
auditing, arXiv 2305.08846). A bound above the guarantee reveals an error; one
below it proves nothing:

  python -m experiments.audit --experiment_name=audit \\
    --flagfile=experiments/configs/docstrings.si_cifg.blt.flags \\
    --num_canaries=500

It prints the result as JSON and writes it to audit.json in the run's folder. An
interrupted audit resumes when it is started again.
"""

from __future__ import annotations

import json
import math
import os

from absl import flags as absl_flags

from si_federated import flags

flags.define_experiment_flags()
absl_flags.adopt_module_key_flags(flags)
_NUM_CANARIES = absl_flags.DEFINE_integer(
  'num_canaries',
  500,
  'The number of canaries, of which half are held out; more make the bound '
  'tighter and rounds longer.',
  lower_bound=8,
)
_CANARY_SEED = absl_flags.DEFINE_integer(
  'canary_seed',
  0,
  "The seed of the canaries' updates, and of the choice which are held out.",
  lower_bound=0,
)


def main() -> None:
  """Trains with canaries, and prints the result."""
  config = flags.experiment_from_flags()
  from si_federated import experiment
  from si_federated.assembly import audit_stage

  root = absl_flags.FLAGS.root_output_dir
  summary = experiment.run(
    config,
    root,
    audit_stage.Canaries(_NUM_CANARIES.value, _CANARY_SEED.value),
  )
  audit = {
    key: None if isinstance(value, float) and math.isinf(value) else value
    for key, value in summary['audit'].items()
  }
  print(json.dumps(audit, indent=2))
  if audit['promise_is_broken']:
    print(
      f'A lower bound on epsilon is above {audit["epsilon_promised"]:.3f}, '
      'which was promised: the mechanism is wrong.'
    )
  print(f'Results are in {os.path.join(root, config.experiment_name)}.')


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
