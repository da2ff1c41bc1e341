"""Fixtures that run a binary in the tests' own process."""

from __future__ import annotations

import importlib
import pathlib
import sys
import warnings

import pytest
from absl import flags

_ROOT = pathlib.Path(__file__).parents[2]


def _forget_flags():
  """Deletes the flags of all our binaries."""
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith(('si_federated.', 'experiments.')):
      for flag in list(defined):
        if flag.name in flags.FLAGS:
          delattr(flags.FLAGS, flag.name)


@pytest.fixture
def run_binary(monkeypatch, tmp_path, capsys):
  """Gives `run_binary(name, *flags)`: exit code, output and errors.

  Each run imports the binary again, because that defines its flags.
  """
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.chdir(_ROOT)

  def run(name, *arguments):
    monkeypatch.setattr(sys, 'argv', [name, *arguments])
    _forget_flags()
    monkeypatch.delitem(sys.modules, f'experiments.{name}', raising=False)
    code: str | int = 0
    with warnings.catch_warnings():
      try:
        importlib.import_module(f'experiments.{name}').run()
      except SystemExit as ended:
        code = ended.code or 0
    return code, *capsys.readouterr()

  yield run
  _forget_flags()
