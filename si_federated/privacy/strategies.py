"""Strategies C: the correlation of a mechanism's noise.

Each strategy has `kind`, `rounds`, `bands`, `matrix()`, `sensitivity(contract)`
and `errors(workload)`, and is frozen. A mechanism releases x + C^-1 z, where z
is independent noise of standard deviation noise_multiplier times clip norm in
each round. `aggregators.noise_generators` makes C^-1 z row by row.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Optional, Union

import numpy as np
import numpy.typing as npt
from scipy import linalg

from si_federated.privacy import (
  binary_tree,
  blt,
  participation,
  sensitivity,
  toeplitz,
  workloads,
)


@dataclasses.dataclass(frozen=True)
class Errors:
  """Errors of the iterates for noise z of standard deviation 1.

  Multiply by the sensitivity to compare mechanisms at equal privacy.

  Attributes:
    maximum: The largest standard deviation over rounds.
    rms: The root mean square over rounds of the standard deviation.
  """

  maximum: float
  rms: float


class _Square:
  """A strategy with a square, lower-triangular C."""

  kind: str
  rounds: int

  def matrix(self) -> np.ndarray:
    """Returns C, shape `[rounds, rounds]`."""
    raise NotImplementedError

  @functools.cached_property
  def bands(self) -> int:
    """The number of diagonals up to the last that is not zero."""
    rows, columns = np.nonzero(self.matrix())
    return int((rows - columns).max()) + 1

  @functools.cached_property
  def has_negative_entries(self) -> bool:
    """Whether C has negative entries, so that updates may cancel."""
    return bool((self.matrix() < 0).any())

  def sensitivity(
    self, contract: participation.Participation
  ) -> sensitivity.Sensitivity:
    """Returns the sensitivity of the first `contract.rounds` rounds."""
    check_rounds(self.rounds, contract)
    return sensitivity.of_matrix(self.matrix(), contract)

  def errors(self, workload: Optional[np.ndarray] = None) -> Errors:
    """Returns the errors for a workload A, by default prefix sums."""
    if workload is None:
      workload = workloads.prefix_sum(self.rounds)
    workload = workloads.check_workload(workload, self.rounds)
    decoder = workloads.decoder(workload, self.matrix())
    return _errors(np.einsum('ij,ij->i', decoder, decoder))

  def noise_variances(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the variances of each round's update and of the prefix sums.

    Returns:
      The variance of the noise in each update, and in their prefix sums, for
      noise z of standard deviation 1; each of shape `[rounds]`.
    """
    inverse = linalg.solve_triangular(
      self.matrix(), np.eye(self.rounds), lower=True
    )
    sums = np.cumsum(inverse, axis=0)
    return (inverse**2).sum(axis=1), (sums**2).sum(axis=1)

  def forward_row(self, t: int) -> tuple[np.ndarray, float]:
    """Returns the weights that solve C y = z for y_t, given earlier rows of y.

    Args:
      t: The round, from 0 on.

    Returns:
      Weights w_s of y_s, for s from max(0, t - bands + 1) to t - 1, and a
      divisor d, so that y_t = (z_t - sum w_s y_s) / d.
    """
    row = self.matrix()[t, max(0, t - self.bands + 1) : t + 1]
    return row[:-1].copy(), float(row[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Toeplitz(_Square):
  """A Toeplitz strategy; a single coefficient gives independent noise.

  Attributes:
    coefficients: The first column of C; zero after its end.
    rounds: The number of rounds.
    kind: `'identity'`, `'banded_toeplitz'` or `'toeplitz'`.
  """

  coefficients: np.ndarray
  rounds: int
  kind: str = 'banded_toeplitz'

  def __post_init__(self):
    column = _frozen(self.coefficients)
    if not (
      column.ndim == 1
      and 1 <= len(column) <= self.rounds
      and np.isfinite(column).all()
      and column[0] > 0
    ):
      raise ValueError(
        f'A Toeplitz strategy for {self.rounds} rounds needs 1 to '
        f'{self.rounds} finite coefficients, the first positive.'
      )
    object.__setattr__(self, 'coefficients', column)

  @functools.cached_property
  def bands(self) -> int:
    """The number of coefficients up to the last that is not zero."""
    return int(np.flatnonzero(self.coefficients)[-1]) + 1

  @functools.cached_property
  def has_negative_entries(self) -> bool:
    """Whether coefficients are negative, so that updates may cancel."""
    return bool((self.coefficients < 0).any())

  def matrix(self) -> np.ndarray:
    """Returns C, shape `[rounds, rounds]`."""
    return toeplitz.matrix(self.coefficients, self.rounds)

  def sensitivity(self, contract):
    """Returns the sensitivity of the first `contract.rounds` rounds."""
    check_rounds(self.rounds, contract)
    return sensitivity.of_toeplitz(self.coefficients, contract)

  def errors(self, workload=None):
    """Returns the errors for a workload A, by default prefix sums."""
    if workload is not None:
      return super().errors(workload)
    return _errors(self.noise_variances()[1])

  def noise_variances(self):
    """Returns the variances of each round's update and of the prefix sums."""
    return (
      np.cumsum(self.inverse**2),
      np.cumsum(np.cumsum(self.inverse) ** 2),
    )

  @functools.cached_property
  def inverse(self) -> np.ndarray:
    """The first column of C^-1, shape `[rounds]`."""
    return toeplitz.inverse(self.coefficients, self.rounds)

  def forward_row(self, t):
    """See `_Square.forward_row`."""
    newest = self.coefficients[1 : min(self.bands, t + 1)]
    return newest[::-1].copy(), float(self.coefficients[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Blt(Toeplitz):
  """A buffered linear Toeplitz strategy; create it with `from_parameters`.

  Attributes:
    decay: Each buffer's decay (theta in the papers), shape `[num_buffers]`.
    scale: Each buffer's scale (omega in the papers), shape `[num_buffers]`.
  """

  kind: str = 'blt'
  decay: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  scale: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

  @classmethod
  def from_parameters(
    cls, decay: np.ndarray, scale: np.ndarray, rounds: int
  ) -> Blt:
    """Returns the strategy with these decays and scales, after checks."""
    decay, scale = blt.check_parameters(decay, scale)
    column = blt.coefficients(decay, scale, rounds)
    return cls(column, rounds, 'blt', _frozen(decay), _frozen(scale))


@dataclasses.dataclass(frozen=True, eq=False)
class BandedInverse(Toeplitz):
  """A strategy whose inverse is banded; create it with `from_inverse`.

  Attributes:
    leading: The first column of C^-1; zero after its end.
  """

  kind: str = 'banded_inverse'
  leading: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(1))

  @classmethod
  def from_inverse(cls, leading: npt.ArrayLike, rounds: int) -> BandedInverse:
    """Returns the strategy with this first column of C^-1.

    Args:
      leading: The column, shape `[bands]`; finite, its first entry positive.
      rounds: The number of rounds, at least `bands`.

    Raises:
      ValueError: If the column is out of range, or C is not finite.
    """
    leading = Toeplitz(np.asarray(leading, np.float64), rounds).coefficients
    column = toeplitz.inverse(leading, rounds)
    return cls(column, rounds, 'banded_inverse', leading)

  @functools.cached_property
  def inverse(self) -> np.ndarray:
    """The first column of C^-1, shape `[rounds]`."""
    return np.append(self.leading, np.zeros(self.rounds - len(self.leading)))


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix(_Square):
  """A strategy with any lower-triangular matrix.

  Attributes:
    lower: C, shape `[rounds, rounds]`, lower triangular.
    kind: `'banded'` or `'dense'`.
  """

  lower: np.ndarray
  kind: str = 'dense'

  def __post_init__(self):
    object.__setattr__(self, 'lower', _check_lower(_frozen(self.lower)))

  @property
  def rounds(self) -> int:  # type: ignore[override]
    """The number of rounds."""
    return len(self.lower)

  def matrix(self) -> np.ndarray:
    """Returns C, shape `[rounds, rounds]`."""
    return self.lower


@dataclasses.dataclass(frozen=True)
class Tree:
  """Tree aggregation, with or without restarts.

  Attributes:
    rounds: The number of rounds.
    decoder: `'plain'`, `'honaker'` (TensorFlow Privacy's efficient tree) or,
      for comparison only, `'full'`.
    restart_every: The number of rounds of a tree; 0 for a single tree.
    complete: Whether a tree is completed with virtual rounds at its end, so
      that its sum, which stays in the model, has the noise of one node.
  """

  rounds: int
  decoder: str = 'honaker'
  restart_every: int = 0
  complete: bool = False
  kind: str = 'tree'

  @property
  def bands(self) -> int:
    """The longest distance over which noise is correlated."""
    return max(self.steps)

  @property
  def steps(self) -> tuple[int, ...]:
    """The number of rounds of each tree."""
    return binary_tree.tree_sizes(self.rounds, self.restart_every)

  @property
  def has_negative_entries(self) -> bool:
    """Whether C has negative entries; it never has."""
    return False

  def matrix(self) -> np.ndarray:
    """Returns C, with a row for each node and a column for each round."""
    return binary_tree.strategy_matrix(self.steps, complete=self.complete)

  def sensitivity(
    self, contract: participation.Participation
  ) -> sensitivity.Sensitivity:
    """Returns the sensitivity of the first `contract.rounds` rounds."""
    check_rounds(self.rounds, contract)
    steps = binary_tree.tree_sizes(contract.rounds, self.restart_every)
    if contract.block and contract.participations > 1:
      return self._once_in_each_block(steps, contract)
    square = binary_tree.square_sensitivity(steps, contract, self.complete)
    return sensitivity.Sensitivity(
      float(np.sqrt(square)), not contract.cyclic, 'worst counts in tree nodes'
    )

  def _once_in_each_block(self, steps, contract):
    """Returns the sensitivity for a client once in each block of rounds."""
    matrix = binary_tree.strategy_matrix(steps, complete=self.complete)
    every = self.restart_every
    if every and contract.block % every == 0 and contract.min_separation == 1:
      # Blocks consist of whole trees, which have no node in common.
      starts = np.arange(0, contract.rounds, contract.block)
      best = np.maximum.reduceat(np.einsum('ij,ij->j', matrix, matrix), starts)
      square, is_exact = np.sort(best)[-contract.participations :].sum(), True
    else:
      square, is_exact = (
        min(
          binary_tree.square_sensitivity(steps, contract, self.complete),
          sensitivity.of_blocks(matrix.T @ matrix, contract),
        ),
        False,
      )
    return sensitivity.Sensitivity(
      float(np.sqrt(square)), is_exact, 'once in each block of rounds'
    )

  def errors(self, workload: Optional[np.ndarray] = None) -> Errors:
    """Returns the errors for prefix sums.

    Raises:
      ValueError: If another workload is given: trees answer prefix sums.
    """
    if workload is not None:
      raise ValueError('Errors of trees are known for prefix sums only.')
    return _errors(
      binary_tree.restarted_variances(self.steps, self.decoder, self.complete)
    )

  def noise_variances(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the variances of each round's update and of the prefix sums."""
    tree = self.steps, self.decoder, self.complete
    return (
      binary_tree.update_variances(*tree),
      binary_tree.restarted_variances(*tree),
    )


Strategy = Union[Toeplitz, Blt, BandedInverse, Matrix, Tree]


def identity(rounds: int) -> Toeplitz:
  """Returns the strategy of independent noise, as in DP-SGD and DP-FedAvg."""
  return Toeplitz(np.ones(1), rounds, 'identity')


def _check_lower(matrix: np.ndarray) -> np.ndarray:
  """Returns a matrix after checking that it is a lower-triangular strategy."""
  if matrix.dtype != np.float64:
    raise ValueError(
      f'A strategy matrix is of type float64; found {matrix.dtype}.'
    )
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
    raise ValueError(f'A strategy matrix is square; found {matrix.shape}.')
  if not np.isfinite(matrix).all():
    raise ValueError('A strategy matrix has an entry that is not finite.')
  if np.triu(matrix, 1).any():
    raise ValueError('A strategy matrix has entries above its diagonal.')
  if not (matrix.diagonal() > 0).all():
    raise ValueError('A strategy matrix has a diagonal entry not above zero.')
  return matrix


def check_rounds(rounds: int, contract: participation.Participation) -> None:
  """Raises ValueError if a contract has more rounds than a strategy."""
  if contract.rounds > rounds:
    raise ValueError(
      f'A strategy for {rounds} rounds cannot serve {contract.rounds} rounds.'
    )


def _errors(variances):
  return Errors(
    float(np.sqrt(np.max(variances))), float(np.sqrt(np.mean(variances)))
  )


def _frozen(array):
  array = np.array(array)
  array.flags.writeable = False
  return array
