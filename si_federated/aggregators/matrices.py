"""Matrix mechanisms: banded, with banded inverse, BLT and dense.

With server SGD, with or without momentum, these are DP-FTRL. All assume that
two rounds of one client are at least `min_separation` apart.
"""

from __future__ import annotations

from typing import Any, Optional, Union

from si_federated.aggregators.correlated_noise import build_mechanism
from si_federated.aggregators.mechanism import Mechanism
from si_federated.aggregators.private_settings import (
  PrivateSettings,
  private_builder,
)
from si_federated.privacy import (
  band_choice,
  banded_inverse,
  comparison,
  participation,
  strategies,
  strategy_files,
  workloads,
)

_DEFAULT_BANDS = 16


@private_builder(needs_separation=True)
def build_banded(
  settings: PrivateSettings,
  *,
  cache_dir: Optional[str] = None,
  bands: Union[int, str, None] = None,
  kind: str = 'toeplitz',
  momentum: float = 0.0,
  cool_down: float = 0.0,
  objective: str = 'rms',
  matrix: Optional[str] = None,
  keep_rows: Optional[bool] = None,
) -> Mechanism:
  """Builds a banded matrix mechanism, BandMF (arXiv 2306.08153).

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments;
      `min_separation` is required.
    cache_dir: A folder that keeps optimised strategies.
    bands: The number of diagonals, at most `min_separation`; by default 16, or
      `min_separation` if that is less. `'auto'` takes the fewest whose error is
      within 0.1 % of the best; it also lets cyclic Poisson sampling choose the
      number of its groups, and b-min-separation sampling its separation,
      unless `--min_separation` is given.
    kind: `'toeplitz'`, or `'general'`, which is better and takes longer to
      optimise.
    momentum: The momentum of server SGD that the strategy is optimised for.
    cool_down: The fraction of the rounds, at the end, in which the server's
      learning rate decreases.
    objective: `'rms'` or `'max'` error, for the Toeplitz kind.
    matrix: The `.npz` file of a strategy to use instead of optimising one.
    keep_rows: Whether to store the noise of the last `bands - 1` rounds rather
      than regenerate it, which takes longer in later rounds; by default with
      up to 16 bands.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range, or the file has no
      strategy for these rounds, with at most `min_separation` bands.
  """
  contract = settings.contract()
  if kind not in ('toeplitz', 'general'):
    raise ValueError(f'kind is {kind!r}; known are toeplitz and general.')
  strategy = None
  if matrix is not None:
    strategy = _load(matrix, settings)
    bands = strategy.bands
  elif contract.block and contract.separation == 1 and bands in (None, 'auto'):
    raise ValueError(
      'A client can be last in one epoch and first in the next, so that only '
      'a single band is left; choose tree:restart=true or blt, or another '
      'schedule.'
    )
  elif bands == 'auto':
    bands = band_choice.fewest_bands(
      contract,
      workload=workloads.server_sgd(
        contract.rounds, momentum=momentum, falling=cool_down
      ),
      objective=objective,
      cache=cache_dir,
    )
    if bands == 1:
      # Independent noise, which Poisson sampling amplifies.
      strategy = strategies.identity(contract.rounds)
  elif isinstance(bands, str):
    raise ValueError(f'bands is {bands!r}; it must be a number or auto.')
  elif bands is None:
    bands = min(_DEFAULT_BANDS, contract.separation)
  if not 1 <= bands <= contract.separation:
    raise ValueError(
      f'bands is {bands}; with participations {contract.separation} rounds '
      f'apart it must be 1 to {contract.separation}.'
    )
  if strategy is None:
    strategy = _optimize(
      'banded' if kind == 'general' else 'banded_toeplitz',
      contract,
      cache_dir,
      momentum,
      cool_down,
      bands=bands,
      objective=objective,
    )
  return build_mechanism(strategy, settings, keep_rows=keep_rows)


@private_builder(needs_separation=True)
def build_banded_inverse(
  settings: PrivateSettings,
  *,
  cache_dir: Optional[str] = None,
  bands: Optional[int] = None,
  kind: str = 'optimal',
  momentum: float = 0.0,
  cool_down: float = 0.0,
  objective: str = 'rms',
) -> Mechanism:
  """Builds a mechanism whose C^-1 is banded (arXiv 2505.12128).

  Its noise is a sum of the last `bands` rows of z, which are regenerated in
  each round, so that nothing is stored between rounds. With two bands a round
  cancels a part of the previous round's noise: DP-λCGD (arXiv 2601.22334).

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments;
      `min_separation` is required.
    cache_dir: A folder that keeps optimised strategies.
    bands: The number of diagonals of C^-1, up to the number of rounds and
      independent of `min_separation`; by default 16.
    kind: `'optimal'`, BandInvMF, or `'square_root'`, BISR: the truncated
      inverse square root of the workload.
    momentum: The momentum of server SGD that the strategy is made for.
    cool_down: The fraction of the rounds, at the end, in which the server's
      learning rate decreases; not for the square root.
    objective: `'rms'` or `'max'` error, for the optimal kind.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  if kind not in ('optimal', 'square_root'):
    raise ValueError(f'kind is {kind!r}; known are optimal and square_root.')
  rounds = settings.total_rounds
  if bands is None:
    bands = min(banded_inverse.DEFAULT_BANDS, rounds)
  if isinstance(bands, str):
    raise ValueError(
      f'bands is {bands!r}; here more bands are better but slower, so give a '
      'number.'
    )
  if not 1 <= bands <= rounds:
    raise ValueError(
      f'bands is {bands}; {rounds} rounds take 1 to {rounds} bands.'
    )
  strategy = _optimize(
    'banded_inverse' if kind == 'optimal' else 'inverse_square_root',
    settings.contract(),
    cache_dir,
    momentum,
    cool_down,
    bands=bands,
    objective=objective,
  )
  return build_mechanism(strategy, settings)


@private_builder(needs_separation=True)
def build_blt(
  settings: PrivateSettings,
  *,
  cache_dir: Optional[str] = None,
  num_buffers: Optional[int] = None,
  momentum: float = 0.0,
  cool_down: float = 0.0,
  objective: str = 'rms',
) -> Mechanism:
  """Builds a buffered linear Toeplitz mechanism (arXiv 2408.08868).

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments;
      `min_separation` is required.
    cache_dir: A folder that keeps optimised strategies.
    num_buffers: The number of buffers, each of the size of the model; by
      default the fewest, up to 4, whose error is within 0.1 % of the best.
    momentum: The momentum of server SGD that the strategy is optimised for.
    cool_down: The fraction of the rounds, at the end, in which the server's
      learning rate decreases.
    objective: `'rms'` or `'max'` error.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  strategy = _optimize(
    'blt',
    settings.contract(),
    cache_dir,
    momentum,
    cool_down,
    num_buffers=num_buffers,
    objective=objective,
  )
  return build_mechanism(strategy, settings)


@private_builder(needs_separation=True)
def build_dense(
  settings: PrivateSettings,
  *,
  cache_dir: Optional[str] = None,
  cyclic: bool = True,
  momentum: float = 0.0,
  cool_down: float = 0.0,
  matrix: Optional[str] = None,
) -> Mechanism:
  """Builds the optimal matrix mechanism for fixed cycles (arXiv 2211.06530).

  It is a reference for the others, for up to about 2,000 rounds: optimising
  takes minutes, and round t makes t rows of z.

  Args:
    settings: The fields of `PrivateSettings`, as keyword arguments;
      `min_separation` is required.
    cache_dir: A folder that keeps optimised strategies.
    cyclic: Whether distances of a client's rounds are multiples of
      `min_separation`, as in fixed cycles; otherwise its sensitivity is only an
      upper bound.
    momentum: The momentum of server SGD that the strategy is optimised for.
    cool_down: The fraction of the rounds, at the end, in which the server's
      learning rate decreases.
    matrix: The `.npz` file of a strategy to use instead of optimising one.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  contract = settings.contract(cyclic=cyclic)
  if matrix is not None:
    strategy = _load(matrix, settings)
  else:
    strategy = _optimize('dense', contract, cache_dir, momentum, cool_down)
  return build_mechanism(strategy, settings, contract)


def _load(path: str, settings: PrivateSettings) -> strategies.Strategy:
  strategy = strategy_files.load(path)
  if strategy.rounds < settings.total_rounds:
    raise ValueError(
      f'{path} is a strategy for {strategy.rounds} rounds; '
      f'{settings.total_rounds} are requested.'
    )
  return strategy


def _optimize(
  kind: str,
  contract: participation.Participation,
  cache_dir: Optional[str],
  momentum: float,
  cool_down: float,
  **options: Any,
) -> strategies.Strategy:
  """Returns the strategy for server SGD with momentum and cool-down."""
  workload = workloads.server_sgd(
    contract.rounds, momentum=momentum, falling=cool_down
  )
  if workload is None:
    return comparison.build(kind, contract, cache=cache_dir, **options)
  return strategy_files.cached(
    cache_dir,
    {
      'kind': kind,
      'rounds': contract.rounds,
      'participations': contract.participations,
      'separation': contract.separation,
      'momentum': momentum,
      'cool_down': cool_down,
      **options,
    },
    lambda: comparison.build(kind, contract, workload=workload, **options),
  )
