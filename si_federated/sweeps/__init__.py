"""Sweeps: many training runs from one description, side by side."""

from si_federated.sweeps.axes import Axis, Range, parse_axis
from si_federated.sweeps.plan import (
  PLAN_NAME,
  SEED_FLAGS,
  Base,
  Plan,
  build_plan,
  command_line,
  read_plan,
)
from si_federated.sweeps.runner import (
  FAILED,
  FINISHED,
  RUNNING,
  WAITING,
  Run,
  find_runs,
  run_all,
)
from si_federated.sweeps.status import Lines, Live, show

__all__ = [
  'FAILED',
  'FINISHED',
  'PLAN_NAME',
  'RUNNING',
  'SEED_FLAGS',
  'WAITING',
  'Axis',
  'Base',
  'Lines',
  'Live',
  'Plan',
  'Range',
  'Run',
  'build_plan',
  'command_line',
  'find_runs',
  'parse_axis',
  'read_plan',
  'run_all',
  'show',
]
