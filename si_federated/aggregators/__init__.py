"""How the server combines the clients' updates."""

from __future__ import annotations

from collections.abc import Callable

from si_federated.aggregators.mean import build_mean
from si_federated.aggregators.mechanism import Mechanism

AGGREGATORS: dict[str, Callable[..., Mechanism]] = {
  'mean': build_mean,
}

__all__ = ['AGGREGATORS', 'Mechanism', 'build_mean']
