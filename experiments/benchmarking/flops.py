"""The floating-point operations of a training step."""

from __future__ import annotations

from typing import Dict, Tuple

from experiments.benchmarking import workload

GATES = {'lstm': 4, 'cifg': 3, 'si_cifg': 3}


def products(
  settings: workload.Settings, model: str
) -> Dict[str, Tuple[int, int, int, int]]:
  """Returns the matrix products of a forward pass.

  For B sentences of T words, embedding size E, H hidden units, G gates and V'
  ids: the inputs of all gates, the recurrence at each word, the projection and
  the logits.

  Args:
    settings: The sizes.
    model: `lstm`, `cifg` or `si_cifg`.

  Returns:
    The count and the sizes (m, k, n) of `[m, k] x [k, n]`, by name.
  """
  batch, length = settings.batch_size, settings.sequence_length
  size, units = settings.embedding_size, settings.units
  tokens = batch * length
  gates = GATES[model] * units
  return {
    'inputs': (1, tokens, size, gates),
    'recurrence': (length, batch, units, gates),
    'projection': (1, tokens, units, size),
    'logits': (1, tokens, size, settings.vocab_size),
  }


def step_flops(settings: workload.Settings, model: str) -> float:
  """Returns the floating-point operations of a step on full sentences.

  A product [m, k] x [k, n] takes 2 m k n, and so do its gradients with respect
  to either factor, so a step takes three times the forward products:

    3 * 2 * B * T * (E * G H + H * G H + H * E + E * V').

  Element-wise operations, the optimizer and copies of weights are not counted.

  Args:
    settings: The sizes.
    model: `lstm`, `cifg` or `si_cifg`.

  Returns:
    The number.
  """
  return 3.0 * sum(
    2.0 * count * m * k * n
    for count, m, k, n in products(settings, model).values()
  )
