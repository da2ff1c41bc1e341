"""Matrix mechanisms, for DP-FTRL: banded, buffered linear Toeplitz and dense.

With server SGD, with momentum or not, these are DP-FTRL. All presume that two
rounds of one client are at least `min_separation` apart.
"""

from __future__ import annotations

from typing import Any, Optional

from si_federated.aggregators import correlated_noise, mechanism
from si_federated.privacy import (
  comparison,
  strategy_files,
  workloads,
)

_DEFAULT_BANDS = 16


def build_banded(
  *,
  clip_norm: float,
  noise_multiplier: float,
  clients_per_round: int,
  total_rounds: int,
  min_separation: Optional[int] = None,
  max_participations: Optional[int] = None,
  noise_seed: Optional[int] = None,
  noise_cohort_size: Optional[int] = None,
  cache_dir: Optional[str] = None,
  bands: Optional[int] = None,
  kind: str = 'toeplitz',
  momentum: float = 0.0,
  cool_down: float = 0.0,
  objective: str = 'rms',
  matrix: Optional[str] = None,
  keep_rows: Optional[bool] = None,
) -> mechanism.Mechanism:
  """Builds a banded matrix mechanism, BandMF (arXiv 2306.08153).

  Args:
    clip_norm: The most that the L2 norm of a client's update counts.
    noise_multiplier: The standard deviation of z, relative to the clip norm.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    min_separation: The least distance of two rounds of one client.
    max_participations: The most rounds of one client; as many as fit if none.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.
    cache_dir: Where optimised strategies are kept.
    bands: The number of diagonals, at most `min_separation`; by default 16, or
      `min_separation` if that is less.
    kind: `'toeplitz'`, or `'general'`, which is better and takes longer to
      optimise.
    momentum: Of the server's SGD, which the strategy is optimised for.
    cool_down: The part of the rounds, at the end, in which the server's
      learning rate falls.
    objective: Of the Toeplitz kind, `'rms'` or `'max'` error.
    matrix: A strategy's `.npz` file to use instead of optimising one.
    keep_rows: Whether the noise of the last `bands - 1` rounds is kept, or made
      anew in a time that grows with the round; by default kept up to 16 bands.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range, or the file is not of
      a strategy of so many bands and rounds.
  """
  contract = mechanism.separated_contract(
    'banded', total_rounds, min_separation, max_participations
  )
  if kind not in ('toeplitz', 'general'):
    raise ValueError(f'kind is {kind!r}; known are toeplitz and general.')
  most = _separation(contract)
  if matrix is not None:
    strategy = _load(matrix, total_rounds)
    width = strategy.bands
  else:
    width = min(_DEFAULT_BANDS, most) if bands is None else bands
  if not 1 <= width <= most:
    raise ValueError(
      f'bands is {width}; with participations {most} rounds apart there may be '
      f'1 to {most}.'
    )
  if matrix is None:
    strategy = _optimize(
      'banded' if kind == 'general' else 'banded_toeplitz',
      contract,
      momentum=momentum,
      cool_down=cool_down,
      cache_dir=cache_dir,
      bands=width,
      objective=objective,
    )
  return correlated_noise.build_mechanism(
    correlated_noise.CorrelatedNoiseFactory(
      strategy,
      clip_norm=clip_norm,
      noise_multiplier=noise_multiplier,
      clients_per_round=clients_per_round,
      noise_seed=noise_seed,
      noise_cohort_size=noise_cohort_size,
      keep_rows=keep_rows,
    ),
    contract,
  )


def build_blt(
  *,
  clip_norm: float,
  noise_multiplier: float,
  clients_per_round: int,
  total_rounds: int,
  min_separation: Optional[int] = None,
  max_participations: Optional[int] = None,
  noise_seed: Optional[int] = None,
  noise_cohort_size: Optional[int] = None,
  cache_dir: Optional[str] = None,
  num_buffers: int = 4,
  momentum: float = 0.0,
  cool_down: float = 0.0,
  objective: str = 'rms',
) -> mechanism.Mechanism:
  """Builds a buffered linear Toeplitz mechanism (arXiv 2408.08868).

  Args:
    clip_norm: The most that the L2 norm of a client's update counts.
    noise_multiplier: The standard deviation of z, relative to the clip norm.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    min_separation: The least distance of two rounds of one client.
    max_participations: The most rounds of one client; as many as fit if none.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.
    cache_dir: Where optimised strategies are kept.
    num_buffers: The number of buffers, each of the size of the model.
    momentum: Of the server's SGD, which the strategy is optimised for.
    cool_down: The part of the rounds, at the end, in which the server's
      learning rate falls.
    objective: `'rms'` or `'max'` error.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  contract = mechanism.separated_contract(
    'blt', total_rounds, min_separation, max_participations
  )
  strategy = _optimize(
    'blt',
    contract,
    momentum=momentum,
    cool_down=cool_down,
    cache_dir=cache_dir,
    num_buffers=num_buffers,
    objective=objective,
  )
  return correlated_noise.build_mechanism(
    correlated_noise.CorrelatedNoiseFactory(
      strategy,
      clip_norm=clip_norm,
      noise_multiplier=noise_multiplier,
      clients_per_round=clients_per_round,
      noise_seed=noise_seed,
      noise_cohort_size=noise_cohort_size,
    ),
    contract,
  )


def build_dense(
  *,
  clip_norm: float,
  noise_multiplier: float,
  clients_per_round: int,
  total_rounds: int,
  min_separation: Optional[int] = None,
  max_participations: Optional[int] = None,
  noise_seed: Optional[int] = None,
  noise_cohort_size: Optional[int] = None,
  cache_dir: Optional[str] = None,
  cyclic: bool = True,
  momentum: float = 0.0,
  cool_down: float = 0.0,
  matrix: Optional[str] = None,
) -> mechanism.Mechanism:
  """Builds the optimal matrix mechanism for fixed cycles (arXiv 2211.06530).

  The yardstick for the others, for up to about 2,000 rounds: to optimise it
  takes minutes, and a round as many rows of z as there were rounds.

  Args:
    clip_norm: The most that the L2 norm of a client's update counts.
    noise_multiplier: The standard deviation of z, relative to the clip norm.
    clients_per_round: The number that the sum is divided by.
    total_rounds: The number of rounds.
    min_separation: The distance of two rounds of one client.
    max_participations: The most rounds of one client; as many as fit if none.
    noise_seed: Makes the noise reproducible; None for a secret one.
    noise_cohort_size: If given, the noise is that of a cohort of this size.
    cache_dir: Where optimised strategies are kept.
    cyclic: Whether rounds of one client are multiples of `min_separation`
      apart, as in fixed cycles; else its privacy is only bounded.
    momentum: Of the server's SGD, which the strategy is optimised for.
    cool_down: The part of the rounds, at the end, in which the server's
      learning rate falls.
    matrix: A strategy's `.npz` file to use instead of optimising one.

  Returns:
    The mechanism.

  Raises:
    ValueError: If an argument is missing or out of range.
  """
  contract = mechanism.separated_contract(
    'dense', total_rounds, min_separation, max_participations, cyclic
  )
  if matrix is not None:
    strategy = _load(matrix, total_rounds)
  else:
    strategy = _optimize(
      'dense',
      contract,
      momentum=momentum,
      cool_down=cool_down,
      cache_dir=cache_dir,
    )
  return correlated_noise.build_mechanism(
    correlated_noise.CorrelatedNoiseFactory(
      strategy,
      clip_norm=clip_norm,
      noise_multiplier=noise_multiplier,
      clients_per_round=clients_per_round,
      noise_seed=noise_seed,
      noise_cohort_size=noise_cohort_size,
    ),
    contract,
  )


def _separation(contract):
  """Returns how far apart rounds that meet in a client are at least."""
  if contract.participations == 1:
    return contract.rounds
  return min(contract.min_separation, contract.rounds)


def _load(path, rounds):
  strategy = strategy_files.load(path)
  if strategy.rounds < rounds:
    raise ValueError(
      f'{path} is a strategy for {strategy.rounds} rounds; {rounds} are to be '
      'run.'
    )
  return strategy


def _optimize(
  kind, contract, *, momentum, cool_down, cache_dir, **options: Any
):
  """Returns the strategy for server SGD of a momentum and a cool-down."""
  if not momentum and not cool_down:
    return comparison.build(kind, contract, cache=cache_dir, **options)
  rates = workloads.cool_down(contract.rounds, fraction=cool_down)

  def build():
    return comparison.build(
      kind,
      contract,
      workload=workloads.momentum_sgd(
        contract.rounds, momentum=momentum, learning_rates=rates
      ),
      **options,
    )

  if cache_dir is None:
    return build()
  parameters = {
    'kind': kind,
    'rounds': contract.rounds,
    'participations': contract.participations,
    'separation': _separation(contract),
    'momentum': momentum,
    'cool_down': cool_down,
    **options,
  }
  return strategy_files.cached(cache_dir, parameters, build)
