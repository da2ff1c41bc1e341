"""Reports on finished and running training: tables, figures, pages."""

from si_federated.reporting.page import all_tables
from si_federated.reporting.report import default_output, write_report
from si_federated.reporting.run_groups import Comparison, Group, compare
from si_federated.reporting.runs import Divergence, Run, find_runs, read_run
from si_federated.reporting.tables import Table, groups_table, runs_table

__all__ = [
  'Comparison',
  'Divergence',
  'Group',
  'Run',
  'Table',
  'all_tables',
  'compare',
  'default_output',
  'find_runs',
  'groups_table',
  'read_run',
  'runs_table',
  'write_report',
]
