"""The split of clients by name: golden names and shares."""

from __future__ import annotations

import pytest

from si_federated.tasks.splits import split_all, split_of

GOLDEN = {
  'numpy.linalg.linalg': 'validation',
  'json': 'train',
  'json.decoder': 'train',
  'os': 'validation',
  'tensorflow.python.ops.array_ops': 'train',
  'scipy.stats._stats_py': 'train',
  'asyncio.events': 'train',
  'tkinter': 'train',
  'pandas.core.frame': 'validation',
  'keras.src.backend': 'validation',
  'argparse': 'train',
  '': 'train',
  'é': 'train',
}


@pytest.mark.parametrize(('name', 'split'), GOLDEN.items())
def test_golden_names(name, split):
  assert split_of(name) == split


def test_shares():
  splits = [split_of(f'package.module_{i}') for i in range(5000)]
  assert abs(splits.count('train') / 5000 - 0.8) < 0.02
  assert abs(splits.count('validation') / 5000 - 0.1) < 0.015
  assert abs(splits.count('test') / 5000 - 0.1) < 0.015


@pytest.mark.parametrize(
  ('size', 'each'), [(3, 1), (19, 1), (20, 2), (105, 10)]
)
def test_small_populations_fill_every_split(size, each):
  names = [f'client{i}' for i in range(size)]
  held = split_all(names)
  assert sorted(held.values()) == ['test'] * each + ['validation'] * each
  assert held == split_all(reversed(names))
  assert set(held) <= set(names)


def test_too_few_clients():
  with pytest.raises(ValueError, match='3 clients or more'):
    split_all(['a', 'b'])
