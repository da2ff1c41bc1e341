"""How the server combines the clients' updates, privately or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from si_federated.aggregators.correlated_noise import CorrelatedNoiseFactory
from si_federated.aggregators.distributed_dp import build_distributed_dp
from si_federated.aggregators.gaussian import (
  build_adaptive_gaussian,
  build_gaussian,
  build_scaled_gaussian,
)
from si_federated.aggregators.matrices import (
  build_banded,
  build_banded_inverse,
  build_blt,
  build_dense,
)
from si_federated.aggregators.mean import build_mean
from si_federated.aggregators.mechanism import Mechanism
from si_federated.aggregators.tree import build_tree

AGGREGATORS: dict[str, Callable[..., Mechanism]] = {
  'mean': build_mean,
  'gaussian': build_gaussian,
  'adaptive_gaussian': build_adaptive_gaussian,
  'scaled_gaussian': build_scaled_gaussian,
  'tree': build_tree,
  'banded': build_banded,
  'banded_inverse': build_banded_inverse,
  'blt': build_blt,
  'dense': build_dense,
  'distributed_dp': build_distributed_dp,
}

# Clients add the noise of these aggregators, which therefore need cohorts of a
# fixed size, one release per round, and updates that can be added undecoded.
NOISE_FROM_CLIENTS = frozenset({'distributed_dp'})


def is_private(name: str) -> bool:
  """Returns whether an aggregator adds noise.

  Args:
    name: Its name in `AGGREGATORS`.
  """
  return 'noise_multiplier' in inspect.signature(AGGREGATORS[name]).parameters


__all__ = [
  'AGGREGATORS',
  'NOISE_FROM_CLIENTS',
  'CorrelatedNoiseFactory',
  'Mechanism',
  'build_adaptive_gaussian',
  'build_banded',
  'build_banded_inverse',
  'build_blt',
  'build_dense',
  'build_distributed_dp',
  'build_gaussian',
  'build_mean',
  'build_scaled_gaussian',
  'build_tree',
  'is_private',
]
