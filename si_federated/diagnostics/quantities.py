"""Diagnostics: norms, cosines, gates, attention, the spread of clients.

Plain numpy functions of weights, updates and tapped values; each returns rows
of layer, quantity and value. A layer consists of all variables whose names
differ only in the last part; `model` consists of all variables.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import numpy as np

# Layer, quantity, value.
Row = tuple[str, str, float]
MODEL = 'model'
# Quantities of the training clients' own updates, measured before noise.
OF_TRAINING_CLIENTS = (
  'client_drift',
  'client_mean_update_norm',
  'client_variance',
  'clip_fraction',
)


def by_layer(
  names: Sequence[str], arrays: Sequence[Any]
) -> dict[str, np.ndarray]:
  """Joins the variables of each layer to a vector, `model` last.

  Args:
    names: Names of the variables, such as `block_1/attention/query/kernel`.
    arrays: The variables' values, of any shape.

  Returns:
    Vectors by layer, float64.
  """
  parts: dict[str, list[np.ndarray]] = collections.OrderedDict()
  for name, array in zip(names, arrays):
    layer = name.rpartition('/')[0] or name
    parts.setdefault(layer, []).append(np.asarray(array, np.float64).ravel())
  vectors = {layer: np.concatenate(part) for layer, part in parts.items()}
  return {**vectors, MODEL: np.concatenate(list(vectors.values()))}


def _cosine(a: np.ndarray, b: np.ndarray) -> Optional[float]:
  product = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / product) if product else None


def _rows(layer: str, values: Mapping[str, Any]) -> list[Row]:
  return [
    (layer, quantity, float(value))
    for quantity, value in values.items()
    if value is not None
  ]


def weight_rows(
  names: Sequence[str],
  after: Sequence[Any],
  before: Optional[Sequence[Any]] = None,
) -> list[Row]:
  """Measures weights and the server's update.

  Args:
    names: Names of the variables.
    after: The variables' values after a round.
    before: Their values before the round; None before the first round.

  Returns:
    `weight_norm`; with `before` also `update_norm`, `effective_learning_rate`
    (the ratio of `update_norm` to the norm before) and `update_weight_cosine`.
    Quantities that would divide by zero are left out.
  """
  rows: list[Row] = []
  ends = by_layer(names, after)
  starts = by_layer(names, before) if before is not None else {}
  for layer, end in ends.items():
    values: dict[str, Any] = {'weight_norm': np.linalg.norm(end)}
    if before is not None:
      start = starts[layer]
      norm, step = np.linalg.norm(start), end - start
      values['update_norm'] = np.linalg.norm(step)
      values['effective_learning_rate'] = (
        np.linalg.norm(step) / norm if norm else None
      )
      values['update_weight_cosine'] = _cosine(step, start)
    rows += _rows(layer, values)
  return rows


def gradient_rows(
  names: Sequence[str], weights: Sequence[Any], gradients: Sequence[Any]
) -> list[Row]:
  """Measures a gradient: `gradient_norm` and `gradient_weight_cosine`.

  Args:
    names: Names of the variables.
    weights: The variables' values.
    gradients: The gradient of a loss at these values.
  """
  vectors, slopes = by_layer(names, weights), by_layer(names, gradients)
  rows: list[Row] = []
  for layer, slope in slopes.items():
    values = {
      'gradient_norm': float(np.linalg.norm(slope)),
      'gradient_weight_cosine': _cosine(slope, vectors[layer]),
    }
    rows += _rows(layer, values)
  return rows


def client_rows(
  names: Sequence[str], updates: Sequence[Sequence[Any]]
) -> list[Row]:
  """Measures how clients' updates differ.

  Args:
    names: Names of the variables.
    updates: Each client's update.

  Returns:
    `client_drift`, the root mean squared distance of the clients' trained
    models from the server's (Karimireddy et al. 2020, arXiv 1910.06378);
    `client_mean_update_norm`, the norm of the mean update; and, with at least
    two clients, `client_variance`, the unbiased estimate of the expected
    squared distance from that mean.
  """
  if not updates:
    return []
  vectors = [by_layer(names, update) for update in updates]
  rows: list[Row] = []
  for layer in vectors[0]:
    values = np.stack([vector[layer] for vector in vectors])
    mean = values.mean(axis=0)
    measured: dict[str, Any] = {
      'client_drift': np.sqrt(np.mean(np.sum(values**2, axis=1))),
      'client_mean_update_norm': np.linalg.norm(mean),
    }
    if len(values) > 1:
      squares = np.sum((values - mean) ** 2)
      measured['client_variance'] = squares / (len(values) - 1)
    rows += _rows(layer, measured)
  return rows


def gate_rows(layer: str, gates: np.ndarray) -> list[Row]:
  """Measures SI-σ gates; a gate is dead if it is exactly zero.

  Args:
    layer: The name of their layer.
    gates: `[N, H]` values of H units at N words.

  Returns:
    `dead_gates`, the fraction of zeros; `dead_units`, the fraction of units
    that are zero at every word; `dead_gate_rows`, the fraction of words at
    which every unit is zero.
  """
  dead = np.asarray(gates) == 0
  return _rows(
    layer,
    {
      'dead_gates': dead.mean(),
      'dead_units': dead.all(axis=0).mean(),
      'dead_gate_rows': dead.all(axis=1).mean(),
    },
  )


def attention_rows(
  layer: str, weights: np.ndarray, valid: np.ndarray
) -> list[Row]:
  """Measures how each head spreads its attention.

  Args:
    layer: The name of the layer.
    weights: `[B, N, T, S]` weights of N heads; rows sum to one, or are zero.
    valid: `[B, T]` booleans: the queries that count.

  Returns:
    `attention_entropy` of each head, the mean entropy of its rows in nats; for
    the layer, their mean and `dead_attention_rows`, the fraction of zero rows.
  """
  rows_of_heads = np.asarray(weights, np.float64).transpose(1, 0, 2, 3)[
    :, np.asarray(valid, bool)
  ]
  logs = np.log(np.where(rows_of_heads > 0, rows_of_heads, 1.0))
  entropies = -np.sum(rows_of_heads * logs, axis=-1).mean(axis=-1)
  rows: list[Row] = [
    (f'{layer}/head_{head}', 'attention_entropy', float(value))
    for head, value in enumerate(entropies, start=1)
  ]
  dead = np.all(rows_of_heads == 0, axis=-1).mean()
  return rows + _rows(
    layer,
    {'attention_entropy': entropies.mean(), 'dead_attention_rows': dead},
  )


def tap_rows(
  taps: Mapping[tuple[str, str], Sequence[Any]], valid: np.ndarray
) -> list[Row]:
  """Measures the values that `layers.tapping` recorded for a batch.

  Args:
    taps: (scope, name) -> values; the scope begins with the model's name. A
      recurrent gate has `[B, H]` per step, or `[M, H]` of packed tokens.
    valid: `[B, T]` booleans: the positions that are words.

  Returns:
    The rows of `gate_rows` and `attention_rows`.
  """
  rows: list[Row] = []
  for (scope, name), values in taps.items():
    layer = f'{scope.partition("/")[2] or scope}/{name}'
    if name == 'attention':
      rows += attention_rows(layer, np.asarray(values[-1]), valid)
    elif len(values) == 1 and len(values[0]) == int(valid.sum()):
      rows += gate_rows(layer, np.asarray(values[0]))
    else:
      # A loop of unknown length also records an extra first step.
      steps = np.stack([np.asarray(v) for v in values[-valid.shape[1] :]])
      rows += gate_rows(layer, steps[valid.T])
  return rows


def means(rows: Iterable[Row], quantities: Iterable[str]) -> list[Row]:
  """Returns the means of some quantities over layers, as rows of `model`."""
  found: dict[str, list[float]] = {name: [] for name in quantities}
  for layer, quantity, value in rows:
    if quantity in found and '/head_' not in layer:
      found[quantity].append(value)
  return [
    (MODEL, quantity, float(np.mean(values)))
    for quantity, values in found.items()
    if values
  ]
