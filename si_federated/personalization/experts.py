"""Each client's experts: fine-tuned, local, and mixed with the global model.

Listo Zec et al. 2020, arXiv 2010.02056: clients that opted in train the global
model. Each client then fine-tunes a copy of it, trains a local model from
scratch, and trains a copy and a gate jointly with the global model frozen. Each
training uses Adam and stops early by the loss on the client's validation part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_federated as tff

from si_federated.personalization import (
  client_hashing,
  early_stopping,
  learners,
  mixture,
)
from si_federated.personalization import examples as examples_lib

# Shares of a client's examples for training, validation and test.
FRACTIONS = (0.6, 0.2, 0.2)
MODELS = ('global', 'fine_tuned', 'local', 'mixture')
STARTS = ('fine_tuned', 'validated')
_EVALUATION_BATCH = 64
# Candidate biases of the gate: the expert's weight is 0.2 % to 99.8 %.
_GATE_BIASES = (-6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0)


@dataclasses.dataclass(frozen=True)
class ExpertSettings:
  """The settings of the clients' experts.

  Attributes:
    learning_rate: Adam's learning rate for the models.
    gate_learning_rate: Adam's learning rate for the gate.
    batch_size: Examples per step.
    max_epochs: The maximum number of epochs of each training.
    epochs_per_validation: The number of epochs between validations.
    patience: Training ends after this many validations without progress.
    min_drop: A validation loss makes progress if it drops by more than this.
    mix: See `mixture.mix_logits`.
    start: The start of the mixture's training. `'fine_tuned'`: the fine-tuned
      weights and a gate of one half. `'validated'`: the fine-tuned or local
      weights and the constant gate with the lowest loss on the validation part.
    gate_embedding_size: See `mixture.initial_gate`.
    gate_units: The units of the gate's hidden layer.
    seed: The seed of the gate and of the order of examples.
  """

  learning_rate: float
  gate_learning_rate: float
  batch_size: int
  max_epochs: int
  epochs_per_validation: int
  patience: int
  min_drop: float
  mix: str
  start: str
  gate_embedding_size: int
  gate_units: int
  seed: int

  def __post_init__(self):
    for name in (
      'batch_size',
      'max_epochs',
      'epochs_per_validation',
      'patience',
      'gate_embedding_size',
      'gate_units',
    ):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise ValueError(
          f'{name} must be a whole number of at least 1: {value}.'
        )
    for name in ('learning_rate', 'gate_learning_rate', 'min_drop'):
      value = getattr(self, name)
      if not 0 <= value < float('inf'):
        raise ValueError(
          f'{name} must be a finite number of at least 0: {value}.'
        )
    if self.mix not in mixture.MIXES:
      raise ValueError(
        f'mix must be one of {", ".join(mixture.MIXES)}: {self.mix!r}.'
      )
    if self.start not in STARTS:
      raise ValueError(
        f'start must be one of {", ".join(STARTS)}: {self.start!r}.'
      )


@dataclasses.dataclass(frozen=True)
class Client:
  """A client to train experts for.

  Attributes:
    client_id: The name.
    opted_in: Whether the global rounds used the training part.
    examples: Returns all examples, `[n, T + 1]`.
  """

  client_id: str
  opted_in: bool
  examples: Callable[[], np.ndarray]


def rows(
  num_examples: int, client_id: str, *, seed: int
) -> list[np.ndarray] | None:
  """Splits a client's examples into training, validation and test parts.

  Args:
    num_examples: The number of examples.
    client_id: The client's name.
    seed: The seed of the split.

  Returns:
    The rows of each part; None if there are too few for three parts.
  """
  return client_hashing.split_rows(
    num_examples, FRACTIONS, 'experts', seed, client_id
  )


class Personalizer:
  """Trains and evaluates experts, client by client."""

  def __init__(
    self,
    *,
    model: tff.learning.models.FunctionalModel,
    global_weights: tff.learning.models.ModelWeights,
    initial_weights: Sequence[np.ndarray],
    vocab_size: int,
    settings: ExpertSettings,
    read_output: mixture.ReadOutput,
    replace_logits: mixture.ReplaceLogits,
    global_examples: np.ndarray,
  ):
    """Builds the computations that all clients share.

    Args:
      model: The model of all experts.
      global_weights: The weights after the last round.
      initial_weights: The initial trainable weights of a local model; its other
        weights are those of the global model.
      vocab_size: The number of ids, for the gate.
      settings: The settings.
      read_output: See `mixture.ReadOutput`.
      replace_logits: See `mixture.ReplaceLogits`.
      global_examples: Other clients' examples, to measure forgetting.
    """
    self._settings = settings
    self._spec = model.input_spec
    self._global = tuple(global_weights.trainable)
    self._initial = tuple(initial_weights)
    frozen = tuple(global_weights.non_trainable)
    self._gate = mixture.initial_gate(
      vocab_size,
      embedding_size=settings.gate_embedding_size,
      units=settings.gate_units,
      seed=settings.seed,
    )
    self._single_fixed = {'frozen': frozen}
    self._mixture_fixed = {'frozen': frozen, 'global': self._global}

    def adam(rate: float) -> Any:
      return tff.learning.optimizers.build_adam(rate)

    self._single = learners.Learner(
      model=model,
      predict=mixture.build_single_predict(model),
      optimizers={'model': adam(settings.learning_rate)},
      trained={'model': self._global},
      fixed=self._single_fixed,
    )
    self._mixture = learners.Learner(
      model=model,
      predict=mixture.build_predict(
        model,
        read_output=read_output,
        replace_logits=replace_logits,
        mix=settings.mix,
      ),
      optimizers={
        'model': adam(settings.learning_rate),
        'gate': adam(settings.gate_learning_rate),
      },
      trained={'model': self._global, 'gate': self._gate},
      fixed=self._mixture_fixed,
    )
    self._overall = examples_lib.batches(
      global_examples, self._spec, _EVALUATION_BATCH
    )
    self._global_on_global: Any = None

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """The shapes of a client's stored arrays, by name."""
    return {
      name: array.shape
      for name, array in _flat(self._global, self._gate).items()
    }

  def personalize(
    self, client: Client
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Trains and evaluates a client's experts.

    Args:
      client: The client.

    Returns:
      The state, which has the weights of the mixture's expert and gate, and the
      results; None if the client has too few examples to split.
    """
    settings = self._settings
    examples = client.examples()
    parts = rows(len(examples), client.client_id, seed=settings.seed)
    if parts is None:
      return None
    train, validation, test = (examples[part] for part in parts)
    if self._global_on_global is None:
      self._global_on_global = self._single.evaluate(
        {'model': self._global}, self._single_fixed, self._overall
      )

    def fit(learner, start, fixed, what):
      return early_stopping.fit(
        learner,
        start,
        fixed,
        train=train,
        validation=validation,
        element_spec=self._spec,
        batch_size=settings.batch_size,
        max_epochs=settings.max_epochs,
        epochs_per_validation=settings.epochs_per_validation,
        patience=settings.patience,
        min_drop=settings.min_drop,
        words=(what, settings.seed, client.client_id),
      )

    single, mixed = self._single, self._mixture
    fine_tuned = fit(
      single, {'model': self._global}, self._single_fixed, 'fine-tuned'
    )
    local = fit(single, {'model': self._initial}, self._single_fixed, 'local')
    candidates = [fine_tuned.trained['model'], local.trained['model']]
    start = (
      {'model': candidates[0], 'gate': self._gate}
      if settings.start == 'fine_tuned'
      else self._validated_start(candidates, validation)
    )
    both = fit(mixed, start, self._mixture_fixed, 'mixture')
    held = examples_lib.batches(test, self._spec, _EVALUATION_BATCH)
    results: dict[str, Any] = {
      'client': client.client_id,
      'opted_in': client.opted_in,
      'num_train': len(train),
      'num_validation': len(validation),
      'num_test': len(test),
      'own': {},
      'overall': {'global': self._global_on_global},
      'epochs': {},
    }
    for name, learner, trained, fixed in (
      ('global', single, {'model': self._global}, self._single_fixed),
      ('fine_tuned', single, fine_tuned.trained, self._single_fixed),
      ('local', single, local.trained, self._single_fixed),
      ('mixture', mixed, both.trained, self._mixture_fixed),
    ):
      results['own'][name] = learner.evaluate(trained, fixed, held)
      if name not in results['overall']:
        results['overall'][name] = learner.evaluate(
          trained, fixed, self._overall
        )
    for name, fitted in (
      ('fine_tuned', fine_tuned),
      ('local', local),
      ('mixture', both),
    ):
      results['epochs'][name] = {
        'trained': fitted.epochs,
        'best': fitted.best_epoch,
      }
    return _flat(both.trained['model'], both.trained['gate']), results

  def _validated_start(
    self, candidates: Sequence[Any], validation: np.ndarray
  ) -> dict[str, Any]:
    """Returns the expert and constant gate with the lowest validation loss.

    Differs from the paper, whose gate begins at one half. If the global model
    is much worse or much better, a few examples do not move the gate enough.
    """
    held = examples_lib.batches(validation, self._spec, _EVALUATION_BATCH)
    starts = [
      {
        'model': expert,
        'gate': {**self._gate, 'output_bias': np.array([bias], np.float32)},
      }
      for expert in candidates
      for bias in _GATE_BIASES
    ]
    losses = [
      self._mixture.evaluate(start, self._mixture_fixed, held)['loss']
      for start in starts
    ]
    # NaN, from an expert that diverged, is never the lowest.
    return starts[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]


def _flat(expert: Sequence[Any], gate: Any) -> dict[str, np.ndarray]:
  return {
    **{f'expert/{i}': np.asarray(w) for i, w in enumerate(expert)},
    **{f'gate/{name}': np.asarray(w) for name, w in dict(gate).items()},
  }
