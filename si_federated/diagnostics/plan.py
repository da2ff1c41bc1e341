"""The rounds and the data of a run's measurements, for `--diagnostics`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Optional


@dataclasses.dataclass(frozen=True)
class Plan:
  """The rounds and the data of a run's measurements.

  Attributes:
    every: Rounds between measurements; None to measure at every evaluation.
    examples: Validation sentences for gates, attention and gradients.
    clients: Clients of a round that are trained again for measurements.
  """

  every: Optional[int]
  examples: int
  clients: int

  def __post_init__(self):
    for name, least in (('every', 1), ('examples', 1), ('clients', 0)):
      value = getattr(self, name)
      if value is not None and (value < least or value != int(value)):
        raise ValueError(
          f'{name} must be a whole number of at least {least}, found {value}.'
        )


def none() -> None:
  """Measures only the weights of adaptive blending units."""


def evaluations(*, examples: int = 128, clients: int = 4) -> Plan:
  """Measures whenever the model is evaluated.

  Args:
    examples: Validation sentences for gates, attention and gradients.
    clients: Clients of a round that are trained again; 0 disables this.
  """
  return Plan(None, examples, clients)


def rounds(*, every: int = 10, examples: int = 128, clients: int = 4) -> Plan:
  """Measures regularly, and before the first and after the last round.

  Args:
    every: The number of rounds between measurements.
    examples: As for `evaluations`.
    clients: As for `evaluations`.
  """
  return Plan(every, examples, clients)


DIAGNOSTICS: dict[str, Callable[..., Optional[Plan]]] = {
  'none': none,
  'evaluations': evaluations,
  'rounds': rounds,
}
