"""Federated learning algorithms as TFF learning processes."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow_federated as tff

from si_federated.algorithms.fed_avg import build_fed_avg
from si_federated.algorithms.functional_model import build_functional_model
from si_federated.algorithms.optimizers import OPTIMIZERS

ALGORITHMS: dict[str, Callable[..., tff.learning.templates.LearningProcess]] = {
  'fed_avg': build_fed_avg,
}

__all__ = [
  'ALGORITHMS',
  'OPTIMIZERS',
  'build_fed_avg',
  'build_functional_model',
]
