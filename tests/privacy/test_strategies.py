from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from si_federated import files
from si_federated.privacy import (
  participation,
  strategies,
  strategy_files,
  workloads,
)

_N = 64


def _all():
  random = np.random.default_rng(0)
  lower = np.tril(random.random((_N, _N))) + np.eye(_N)
  return {
    'identity': strategies.identity(_N),
    'banded_toeplitz': strategies.Toeplitz(np.array([1.0, 0.5, 0.2]), _N),
    'blt': strategies.Blt.from_parameters(
      np.array([0.9, 0.5, 0.2]), np.array([0.1, 0.2, 0.05]), _N
    ),
    'banded_inverse': strategies.BandedInverse.from_inverse(
      np.array([1.0, -0.5, -0.2]), _N
    ),
    'banded': strategies.Matrix(np.triu(lower, -4), 'banded'),
    'dense': strategies.Matrix(lower),
  }


_NAMES = list(_all())


@pytest.mark.parametrize('name', _NAMES)
def test_streamed_noise_is_the_dense_product(name):
  strategy = _all()[name]
  noise = np.random.default_rng(1).normal(size=(_N, 3))
  expected = np.linalg.inv(strategy.matrix()) @ noise
  forward: list[np.ndarray] = []
  for t in range(_N):
    weights, divisor = strategy.forward_row(t)
    assert len(weights) == min(strategy.bands - 1, t)
    row = noise[t].copy()
    if len(weights):
      row -= weights @ np.array(forward[-len(weights) :])
    forward.append(row / divisor)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(forward, expected, atol=1e-10 * scale)


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize('own', [False, True])
def test_errors_are_those_of_the_decoder(name, own):
  strategy = _all()[name]
  workload = workloads.momentum_sgd(
    _N, momentum=0.9, learning_rates=workloads.cool_down(_N)
  )
  workload = workload if own else workloads.prefix_sum(_N)
  decoder = workloads.decoder(workload, strategy.matrix())
  np.testing.assert_allclose(decoder @ strategy.matrix(), workload, atol=1e-9)
  norms = np.linalg.norm(decoder, axis=1)
  errors = strategy.errors(workload if own else None)
  assert errors.maximum == pytest.approx(norms.max())
  assert errors.rms == pytest.approx(np.sqrt(np.mean(norms**2)))


def test_bands():
  assert {name: s.bands for name, s in _all().items()} == {
    'identity': 1,
    'banded_toeplitz': 3,
    'blt': _N,
    'banded_inverse': _N,
    'banded': 5,
    'dense': _N,
  }


def test_momentum_workload_is_that_of_server_sgd():
  rates = workloads.cool_down(10, fraction=0.5, final=0.2)
  np.testing.assert_allclose(rates, [1] * 5 + [0.84, 0.68, 0.52, 0.36, 0.2])
  updates = np.random.default_rng(2).normal(size=10)
  velocity = weight = 0.0
  iterates = []
  for rate, update in zip(rates, updates):
    velocity = 0.9 * velocity + update
    weight += rate * velocity
    iterates.append(weight)
  workload = workloads.momentum_sgd(10, momentum=0.9, learning_rates=rates)
  np.testing.assert_allclose(workload @ updates, iterates)


@pytest.mark.parametrize('name', _NAMES)
def test_files_keep_strategies(name, tmp_path):
  strategy = _all()[name]
  strategy_files.save(tmp_path / 'new' / 's.npz', strategy)
  loaded = strategy_files.load(tmp_path / 'new' / 's.npz')
  assert type(loaded) is type(strategy)
  assert loaded.kind == name
  np.testing.assert_array_equal(loaded.matrix(), strategy.matrix())
  assert os.listdir(tmp_path / 'new') == ['s.npz']


def test_matrix_made_elsewhere(tmp_path):
  np.savez(tmp_path / 'm.npz', matrix=_all()['banded'].matrix())
  assert strategy_files.load(tmp_path / 'm.npz').kind == 'banded'
  np.savez(tmp_path / 'm.npz', matrix=_all()['dense'].matrix())
  assert strategy_files.load(tmp_path / 'm.npz').kind == 'dense'


@pytest.mark.parametrize(
  ('matrix', 'message'),
  [
    (np.eye(3, dtype=np.float32), 'float64'),
    (np.ones((2, 3)), 'square'),
    (np.zeros((0, 0)), 'square'),
    (np.ones((3, 3)), 'above its diagonal'),
    (np.diag([1.0, np.nan]), 'not finite'),
    (np.diag([1.0, 0.0]), 'not above zero'),
    (np.array([{'a': 1}]), 'cannot be read'),
  ],
)
def test_faulty_matrices_are_refused(matrix, message, tmp_path):
  np.savez(tmp_path / 'm.npz', matrix=matrix)
  with pytest.raises(ValueError, match=f'm.npz.*{message}'):
    strategy_files.load(tmp_path / 'm.npz')


def test_faulty_files_are_refused(tmp_path):
  path = tmp_path / 'm.npz'
  with pytest.raises(ValueError, match='m.npz cannot be read'):
    strategy_files.load(path)
  strategy_files.save(path, _all()['dense'])
  whole = path.read_bytes()
  for content in (b'', b'text', whole[:-100], whole[:100]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='m.npz'):
      strategy_files.load(path)
  np.savez(path, wrong=np.eye(2))
  with pytest.raises(ValueError, match="no array 'coefficients'"):
    strategy_files.load(path)
  with open(path, 'wb') as file:
    np.save(file, np.eye(2))
  with pytest.raises(ValueError, match='single array'):
    strategy_files.load(path)
  with pytest.raises(ValueError, match='tree'):
    strategy_files.save(path, strategies.Tree(4))


def test_cache_builds_once_and_again_if_damaged(tmp_path):
  built = []

  def build():
    built.append(1)
    return _all()['blt']

  for _ in range(2):
    found = strategy_files.cached(
      tmp_path, {'kind': 'blt', 'rounds': 64}, build
    )
    assert isinstance(found, strategies.Blt)
    np.testing.assert_array_equal(found.decay, [0.9, 0.5, 0.2])
  assert len(built) == 1
  strategy_files.cached(tmp_path, {'kind': 'blt', 'rounds': 65}, build)
  assert len(built) == 2
  for name in os.listdir(tmp_path):
    (tmp_path / name).write_bytes(b'')
  strategy_files.cached(tmp_path, {'kind': 'blt', 'rounds': 64}, build)
  assert len(built) == 3


@pytest.mark.parametrize(
  ('decay', 'scale'),
  [
    ([1.0], [0.1]),
    ([0.5], [-0.1]),
    ([0.5], [0.6]),
    ([0.5, 0.5], [0.1, 0.1]),
    ([0.5], [0.1, 0.1]),
    ([], []),
  ],
)
def test_faulty_blt_is_refused(decay, scale):
  with pytest.raises(ValueError, match='BLT'):
    strategies.Blt.from_parameters(decay, scale, 8)


@pytest.mark.parametrize('inverse', [[], [0.0, 1.0], [1.0] * 9, [1.0, -1e99]])
def test_faulty_banded_inverse_is_refused(inverse):
  with pytest.raises(ValueError, match='finite coefficients, the first posit'):
    strategies.BandedInverse.from_inverse(np.array(inverse), 8)


def test_other_bad_arguments_are_rejected():
  with pytest.raises(ValueError, match='Toeplitz'):
    strategies.Toeplitz(np.array([0.0, 1.0]), 8)
  with pytest.raises(ValueError, match='cannot serve'):
    strategies.identity(8).sensitivity(participation.Participation(9, 1, 1))
  for workload in (np.eye(3), np.ones((8, 8)), np.zeros((8, 8))):
    with pytest.raises(ValueError, match='workload'):
      strategies.identity(8).errors(workload)
  with pytest.raises(ValueError, match='momentum'):
    workloads.momentum_sgd(8, momentum=1.0)
  with pytest.raises(ValueError, match='learning rates'):
    workloads.momentum_sgd(8, learning_rates=np.zeros(8))
  with pytest.raises(ValueError, match='cool-down'):
    workloads.cool_down(8, fraction=2.0)


_FULL_DISK = """
import resource, signal, sys
from si_federated.privacy import strategies, strategy_files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
  strategy_files.save(sys.argv[1], strategies.Toeplitz((1.0, 0.5), 3))
except OSError as error:
  print(error)
"""


def test_a_full_disk_is_reported_in_one_sentence_with_the_path(tmp_path):
  path = tmp_path / 's.npz'
  result = subprocess.run(
    [sys.executable, '-c', _FULL_DISK, str(path)],
    capture_output=True,
    check=True,
    text=True,
    # Coverage could not write its own file.
    env={k: v for k, v in os.environ.items() if not k.startswith('COVERAGE')},
  )
  assert result.stdout == (
    f"[Errno 27] File too large; the strategy was not written: '{path}'\n"
  )
  assert result.stderr == ''
  assert list(tmp_path.iterdir()) == []


def test_variances_of_updates_and_sums_by_hand():
  # C is [[1, 0, 0], [1/2, 1, 0], [0, 1/2, 1]]: its inverse has the rows
  # [1, 0, 0], [-1/2, 1, 0] and [1/4, -1/2, 1].
  toeplitz = strategies.Toeplitz(np.array([1.0, 0.5]), 3)
  for strategy in (toeplitz, strategies.Matrix(toeplitz.matrix(), 'banded')):
    updates, sums = strategy.noise_variances()
    np.testing.assert_allclose(updates, [1, 1.25, 1.3125])
    # Their sums: [1, 0, 0], [1/2, 1, 0] and [3/4, 1/2, 1].
    np.testing.assert_allclose(sums, [1, 1.25, 1.8125])
  updates, sums = strategies.identity(4).noise_variances()
  np.testing.assert_allclose(updates, [1, 1, 1, 1])
  np.testing.assert_allclose(sums, [1, 2, 3, 4])


def test_leftovers_of_a_killed_process_are_removed(tmp_path, monkeypatch):
  def killed(*unused_arguments):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(os, 'replace', killed)
    patch.setattr(os, 'unlink', lambda path: None)
    strategy_files.save(tmp_path / 'strategy.npz', _all()['dense'])
  assert len(os.listdir(tmp_path)) == 1
  files.remove_leftovers(tmp_path)
  assert os.listdir(tmp_path) == []
