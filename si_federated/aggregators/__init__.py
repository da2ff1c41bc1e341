"""How the server combines the clients' updates, privately or not."""

from __future__ import annotations

from collections.abc import Callable

from si_federated.aggregators.correlated_noise import CorrelatedNoiseFactory
from si_federated.aggregators.distributed_dp import build_distributed_dp
from si_federated.aggregators.gaussian import (
  build_adaptive_gaussian,
  build_gaussian,
)
from si_federated.aggregators.matrices import (
  build_banded,
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
  'tree': build_tree,
  'banded': build_banded,
  'blt': build_blt,
  'dense': build_dense,
  'distributed_dp': build_distributed_dp,
}

__all__ = [
  'AGGREGATORS',
  'CorrelatedNoiseFactory',
  'Mechanism',
  'build_adaptive_gaussian',
  'build_banded',
  'build_blt',
  'build_dense',
  'build_distributed_dp',
  'build_gaussian',
  'build_mean',
  'build_tree',
]
