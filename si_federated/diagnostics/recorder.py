"""Measures a run round by round, without affecting its training.

The measurements come from the weights before and after a round, from a pass
over validation sentences, and from training a few clients a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.diagnostics import quantities, rows_file
from si_federated.diagnostics.plan import Plan
from si_federated.layers import AdaptiveBlendingUnit, tapping
from si_federated.training import callbacks
from si_federated.weights import named_variables

_BATCH = 64


class Recorder(callbacks.Callback):
  """Measures a run's model and clients, and records the results."""

  def __init__(
    self,
    folder: str,
    *,
    plan: Optional[Plan],
    build_keras_model: Callable[[], tf.keras.Model],
    client_optimizer: tff.learning.optimizers.Optimizer,
    loss: tf.keras.losses.Loss,
    examples: np.ndarray,
    seed: int,
    is_private: bool = False,
  ):
    """Initializes the recorder of a run.

    Args:
      folder: The run's folder.
      plan: The rounds and the data to measure; None measures only the weights
        of adaptive blending units.
      build_keras_model: Returns a new model, as clients train it.
      client_optimizer: Trains clients the second time.
      loss: The loss of labels and logits.
      examples: Validation sentences `[N, T + 1]`, padded with zeros.
      seed: Chooses clients.
      is_private: Whether privacy is accounted for.
    """
    self._file = rows_file.DiagnosticsFile(folder)
    self._plan = plan
    self._loss = loss
    self._seed = seed
    self._is_private = is_private
    # Draws no random numbers from TensorFlow, since training uses its sequence.
    self._keras, self._variables = named_variables.build_named(
      build_keras_model
    )
    _, variables = self._trainable()
    self._train = _build_training(
      self._keras, variables, loss, client_optimizer
    )
    size = min(len(examples), plan.examples if plan is not None else 1)
    chosen = np.linspace(0, len(examples) - 1, size).astype(int)
    self._examples = np.asarray(examples)[chosen]

  def begin(self, round_num, facts, folder):
    """Continues the file after a round; -1 for a new run."""
    del facts, folder
    self._file.open(round_num)

  def after_round(self, done):
    """Measures the model if a measurement is due; adds no columns."""
    if self._plan is None or self._plan.every is None:
      is_due = 'eval/loss' in done.row
    else:
      is_due = done.is_last or done.round_num % self._plan.every == 0
    if is_due:
      # Only when due, since reading the weights of a state copies them.
      self.record(
        done.round_num,
        after=done.weights(),
        before=done.weights_before and done.weights_before(),
        cohort=done.cohort,
        measured=done.row,
      )
    return {}

  def record(
    self,
    round_num: int,
    *,
    after: tff.learning.models.ModelWeights,
    before: Optional[tff.learning.models.ModelWeights] = None,
    cohort: Optional[callbacks.Cohort] = None,
    measured: Mapping[str, float],
  ) -> None:
    """Measures after a round.

    Args:
      round_num: The round; 0 is the evaluation before the first.
      after: The model after the round.
      before: The model before the round.
      cohort: The round's clients.
      measured: Columns of the metrics.
    """
    plan = self._plan
    self._assign(after)
    rows = self._blending_rows()
    if plan is not None:
      rows += self._model_rows(after, before)
      if 'train/clip_fraction' in measured:
        fraction = measured['train/clip_fraction']
        rows.append((quantities.MODEL, 'clip_fraction', fraction))
      if before is not None and cohort is not None:
        rows += self._client_rows(round_num, before, cohort, plan.clients)
    self._file.write(round_num, rows)

  def summary(self, folder):
    """Returns the entries of the run's summary on diagnostics."""
    del folder
    result: dict[str, Any] = {'file': rows_file.NAME}
    if self._is_private and self._plan is not None:
      result['outside_the_guarantee'] = list(quantities.OF_TRAINING_CLIENTS)
    return {'diagnostics': result}

  def _trainable(self) -> tuple[list[str], list[tf.Variable]]:
    own = {id(variable) for variable in self._keras.trainable_variables}
    named = [(n, v) for n, v in self._variables.items() if id(v) in own]
    return [name for name, _ in named], [variable for _, variable in named]

  def _assign(self, weights: tff.learning.models.ModelWeights) -> None:
    parts = {True: list(weights.trainable), False: list(weights.non_trainable)}
    own = {id(variable) for variable in self._keras.trainable_variables}
    for variable in self._variables.values():
      variable.assign(parts[id(variable) in own].pop(0))

  def _blending_rows(self) -> list[quantities.Row]:
    rows: list[quantities.Row] = []
    units = {
      id(part.blending_weights): part
      for part in self._keras.submodules
      if isinstance(part, AdaptiveBlendingUnit)
    }
    for name, variable in self._variables.items():
      unit = units.get(id(variable))
      if unit is None:
        continue
      layer = name.rpartition('/')[0]
      for function, factor in zip(unit.kind.functions, unit.blend().numpy()):
        rows.append((layer, f'blending_{function}', float(factor)))
      if unit.swish_beta is not None:
        rows.append((layer, 'swish_beta', float(unit.swish_beta)))
    return rows

  def _model_rows(self, after, before) -> list[quantities.Row]:
    names, variables = self._trainable()
    rows = quantities.weight_rows(
      names, after.trainable, before.trainable if before is not None else None
    )
    sums = [np.zeros(variable.shape) for variable in variables]
    taps: dict[tuple[str, str], list[Any]] = {}
    for start in range(0, len(self._examples), _BATCH):
      batch = self._examples[start : start + _BATCH]
      ids, labels = batch[:, :-1], batch[:, 1:]
      with tf.GradientTape() as tape, tapping.record() as seen:
        logits = self._keras(ids, training=False)
        total = self._loss(labels, logits) * np.count_nonzero(labels)
      gradients = tape.gradient(total, variables)
      sums = [
        s if g is None else s + tf.convert_to_tensor(g).numpy()
        for s, g in zip(sums, gradients)
      ]
      _extend(taps, seen, ids != 0)
    rows += quantities.gradient_rows(
      names,
      after.trainable,
      [s / np.count_nonzero(self._examples[:, 1:]) for s in sums],
    )
    found = quantities.tap_rows(taps, self._examples[:, :-1] != 0)
    return (
      rows
      + found
      + quantities.means(
        found,
        ('dead_gates', 'dead_units', 'attention_entropy'),
      )
    )

  def _client_rows(
    self, round_num, before, cohort, number
  ) -> list[quantities.Row]:
    generator = np.random.default_rng([self._seed, round_num, 2])
    chosen = generator.permutation(len(cohort))[:number]
    updates = []
    for position in sorted(int(p) for p in chosen):
      data = cohort[position]
      if isinstance(data, Mapping):  # In partial training.
        data = data['examples']
      self._assign(before)
      updates.append(self._train(data))
    return quantities.client_rows(self._trainable()[0], updates)


def _extend(taps, seen, valid) -> None:
  """Adds the tapped values of a batch to those of the batches before it."""
  for key, values in seen.items():
    values = [np.asarray(value) for value in values]
    if key[1] != 'attention' and len(values) > valid.shape[1]:
      values = values[-valid.shape[1] :]
    if key in taps:
      values = [np.concatenate(pair) for pair in zip(taps[key], values)]
    taps[key] = values


def _build_training(
  model: tf.keras.Model,
  variables: Sequence[tf.Variable],
  loss: tf.keras.losses.Loss,
  optimizer: tff.learning.optimizers.Optimizer,
) -> Callable[[Any], list[np.ndarray]]:
  """Returns a function from batches to the update from training on them.

  Training starts from the current values of the model's variables. It is
  federated averaging in float32, whatever the algorithm of the run.
  """

  @tf.function(reduce_retracing=True)
  def step(state, ids, labels):
    with tf.GradientTape() as tape:
      value = loss(labels, model(ids, training=True))
    gradients = tuple(
      tf.zeros_like(v) if g is None else tf.convert_to_tensor(g)
      for v, g in zip(variables, tape.gradient(value, variables))
    )
    weights = tuple(variable.read_value() for variable in variables)
    state, weights = optimizer.next(state, weights, gradients)
    for variable, weight in zip(variables, weights):
      variable.assign(weight)
    return state

  def train(batches):
    initial = [variable.numpy() for variable in variables]
    state = optimizer.initialize(
      tuple(tf.TensorSpec(v.shape, v.dtype) for v in variables)
    )
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    for ids, labels in batches:
      state = step(state, ids, labels)
    return [v.numpy() - before for v, before in zip(variables, initial)]

  return train
