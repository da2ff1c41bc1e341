"""The task of classifying texts."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Callable, ClassVar, Mapping, Sequence

import numpy as np
import tensorflow as tf

from si_federated.tasks import objective, tokenizer
from si_federated.tasks.labelled_population import (
  LabelledPopulation,
  text_and_label,
)
from si_federated.tasks.vocabulary import Vocabulary

# The numbers of each client's texts, by the client's name.
Clients = Mapping[str, np.ndarray]
# Room for the beginning and end tokens and a word between them.
MIN_LENGTH = 3


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
  """Classification of the texts of many clients; a sibling of `Task`.

  A text is the beginning token, at most T - 2 tokens, the end token, and zeros.

  Attributes:
    name: The task's name in `TASKS`.
    vocabulary: The words and ids of all three populations.
    sequence_length: T, the maximum number of ids of a text.
    classes: The names of the C classes, by label.
    texts: All texts, by number.
    train: The training clients.
    validation: The validation texts, as one client.
    test: The test texts, as one client.
  """

  MODEL_ARGUMENTS: ClassVar[tuple[str, ...]] = ('vocab_size', 'num_classes')
  OBJECTIVE: ClassVar[str] = 'class'

  name: str
  vocabulary: Vocabulary
  sequence_length: int
  classes: tuple[str, ...]
  texts: tuple[str, ...] = dataclasses.field(repr=False)
  train: LabelledPopulation
  validation: LabelledPopulation
  test: LabelledPopulation

  def __post_init__(self):
    if self.sequence_length < MIN_LENGTH:
      raise ValueError(
        f'sequence_length must be {MIN_LENGTH} or more, for a word between the '
        f'beginning and end tokens; got {self.sequence_length}.'
      )
    if len(self.classes) < 2:
      raise ValueError(
        f'Task {self.name} has {len(self.classes)} classes; give two or more.'
      )
    for split in ('train', 'validation', 'test'):
      population = getattr(self, split)
      if not len(population):
        raise ValueError(
          f'The {split} split of task {self.name} has no examples; give it '
          'more data.'
        )
      if population.sequence_length != self.sequence_length:
        raise ValueError(
          f'The {split} split of task {self.name} has texts of '
          f'{population.sequence_length} ids, but the task has '
          f'{self.sequence_length}; give both the same length.'
        )

  @property
  def element_spec(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """The type of a batch: `(x [b, T], y [b])` int32."""
    return (
      tf.TensorSpec([None, self.sequence_length], tf.int32),
      tf.TensorSpec([None], tf.int32),
    )

  @property
  def loss(self) -> tf.keras.losses.Loss:
    """Mean cross-entropy of the classes, from logits."""
    return objective.ClassLoss()

  @property
  def model_arguments(self) -> dict[str, int]:
    """The values of `MODEL_ARGUMENTS`."""
    return {
      'vocab_size': self.vocabulary.size,
      'num_classes': len(self.classes),
    }

  @property
  def objective_options(self) -> dict[str, Any]:
    """The options of the objective that depend on the labels."""
    return {'num_classes': len(self.classes)}

  @staticmethod
  def inputs_and_labels(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids `[N, T]` and labels `[N]` of `[N, T + 1]` examples."""
    return text_and_label(examples)

  def facts(self, examples: np.ndarray) -> dict[str, Any]:
    """Returns facts about the data as plain values.

    Args:
      examples: The examples for evaluation, `[N, T + 1]`.
    """
    _, labels = self.inputs_and_labels(examples)
    numbers = np.concatenate([numbers for _, numbers in self.train.clients])
    counts = np.bincount(
      self.train.labels[numbers], minlength=len(self.classes)
    )
    return {
      'num_words': len(self.vocabulary.words),
      'classes': list(self.classes),
      'num_train_examples': len(numbers),
      'reference_accuracy': {
        'majority': float(np.mean(labels == counts.argmax()))
      },
    }

  def recode(
    self, learn: Callable[[Mapping[str, int]], Vocabulary]
  ) -> ClassificationTask:
    """Returns the same task with another vocabulary.

    Args:
      learn: Builds the vocabulary from word counts of the training texts.
    """
    splits = {
      split: dict(getattr(self, split).clients)
      for split in ('train', 'validation', 'test')
    }
    return build_task(
      self.name,
      texts=self.texts,
      labels=self.train.labels,
      classes=self.classes,
      splits=splits,
      learn=learn,
      sequence_length=self.sequence_length,
    )


def build_task(
  name: str,
  *,
  texts: tuple[str, ...],
  labels: np.ndarray,
  classes: tuple[str, ...],
  splits: Mapping[str, Clients],
  learn: Callable[[Mapping[str, int]], Vocabulary],
  sequence_length: int,
) -> ClassificationTask:
  """Learns a vocabulary from the training texts and encodes all texts.

  Args:
    name: The task's name.
    texts: N texts.
    labels: `[N]` int32 classes.
    classes: The names of the classes.
    splits: The clients of `train`, `validation` and `test`.
    learn: See `ClassificationTask.recode`.
    sequence_length: T.

  Returns:
    The task.

  Raises:
    ValueError: If a split is empty or the length too small.
  """
  counts: collections.Counter[str] = collections.Counter()
  for numbers in splits['train'].values():
    for number in numbers:
      counts.update(tokenizer.tokenize(texts[number]))
  vocabulary = learn(counts)
  ids = encode_texts(vocabulary, texts, sequence_length)
  return ClassificationTask(
    name,
    vocabulary,
    sequence_length,
    classes,
    texts,
    **{
      split: LabelledPopulation(ids, labels, tuple(clients.items()))
      for split, clients in splits.items()
    },
  )


def most_frequent(counts: Mapping[str, int], size: int) -> Vocabulary:
  """Returns the vocabulary of the most frequent words.

  Args:
    counts: The count of each word.
    size: V, the maximum number of words.

  Raises:
    ValueError: If there are no words.
  """
  if not counts:
    raise ValueError('The training texts contain no words; give others.')
  order = sorted(counts, key=lambda w: (-counts[w], w.encode()))
  return Vocabulary(tuple(order[:size]))


def encode_texts(
  vocabulary: Vocabulary, texts: Sequence[str], sequence_length: int
) -> np.ndarray:
  """Returns the ids of texts, padded with 0.

  Args:
    vocabulary: The vocabulary.
    texts: N texts.
    sequence_length: T.

  Returns:
    `[N, T]` unsigned integers: the beginning token, at most T - 2 tokens, the
    end token.
  """
  kind = np.uint16 if vocabulary.size <= 1 << 16 else np.uint32
  ids = np.zeros([len(texts), sequence_length], kind)
  for row, found in zip(ids, vocabulary.encode_all(texts)):
    tokens = found[: sequence_length - 2]
    tokens = [vocabulary.beginning, *tokens, vocabulary.end]
    row[: len(tokens)] = tokens
  return ids
