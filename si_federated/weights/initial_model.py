"""The trained model that a run starts from, matched by variable name."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from si_federated import config
from si_federated.algorithms.variable_creation import zero_values
from si_federated.models import adapters, transforms
from si_federated.tasks import Vocabulary, load_vocabulary
from si_federated.training import run_folder
from si_federated.weights import run_weights, weight_files
from si_federated.weights.named_variables import assign, build_named

# Builds a model for a number of ids.
Builder = Callable[[int], tf.keras.Model]

_LISTED = 3


@dataclasses.dataclass(frozen=True)
class InitialModel:
  """The weights of a trained model.

  Attributes:
    path: The path that the user gave.
    file: The file of the weights.
    weights: The weights by name.
    vocabulary: The model's vocabulary; None if only weights are known.
    is_named: Whether the weights are keyed by variable name. Otherwise the keys
      are their places in the file of a model; see `weight_files.places`.
  """

  path: str
  file: str
  weights: Mapping[str, np.ndarray]
  vocabulary: Optional[Vocabulary] = None
  is_named: bool = True

  def sha256(self) -> str:
    """Returns a digest of the names and values of all weights."""
    digest = hashlib.sha256()
    for name in sorted(self.weights):
      value = np.ascontiguousarray(self.weights[name])
      digest.update(f'{name} {value.dtype} {value.shape}\n'.encode())
      digest.update(value.tobytes())
    return digest.hexdigest()

  def fit(
    self,
    build: Builder,
    vocabulary: Vocabulary,
    reinitialized: Optional[str] = None,
    build_plain: Optional[Builder] = None,
  ) -> Start:
    """Checks that the weights fit a model, by name and shape.

    Args:
      build: Builds the model that starts from them.
      vocabulary: The words of that model.
      reinitialized: A regular expression for the names of variables that do not
        take these weights. The vocabulary can differ if all variables that
        depend on its size are among them.
      build_plain: Builds the model without its transform, the model of a file
        without names; `build` if None.

    Returns:
      The weights to start from.

    Raises:
      config.ConfigError: If vocabulary, names or shapes differ.
    """
    if not self.is_named:
      named = self._with_names(build_plain or build, vocabulary.size)
      return named.fit(build, vocabulary, reinitialized)
    shapes = _shapes(build, vocabulary.size)
    fresh: list[str] = []
    if reinitialized is not None:
      try:
        fresh = transforms.match_names(list(shapes), reinitialized)
      except ValueError as error:
        raise config.ConfigError(
          f'--reinitialized_variables: {error}'
        ) from error
    difference = self.vocabulary and vocabulary_difference(
      self.vocabulary, vocabulary
    )
    if difference:
      larger = _shapes(build, vocabulary.size + 1)
      kept = [
        name
        for name, shape in shapes.items()
        if larger[name] != shape and name not in fresh
      ]
      if kept:
        raise config.ConfigError(
          f'--initial_model={self.path} has another vocabulary: {difference}; '
          'start from a model with the same one (experiments.pretrain makes it '
          'with this --task), or name every variable that depends on it '
          f'({_some(kept)}) in --reinitialized_variables.'
        )
    self._check_shapes(shapes, fresh, reinitialized)
    return Start(
      {name: self.weights[name] for name in shapes if name not in fresh},
      {
        'path': self.path,
        'file': os.path.abspath(self.file),
        'sha256': self.sha256(),
        'reinitialized_variables': fresh,
      },
    )

  def _with_names(self, build: Builder, vocab_size: int) -> InitialModel:
    with zero_values():
      places = weight_files.places(*build_named(lambda: build(vocab_size)))
    weights = {places.get(p, p): weight for p, weight in self.weights.items()}
    return dataclasses.replace(self, weights=weights, is_named=True)

  def _check_shapes(
    self,
    shapes: Mapping[str, tuple[int, ...]],
    fresh: Sequence[str],
    reinitialized: Optional[str],
  ) -> None:
    wanted = {n: shape for n, shape in shapes.items() if n not in fresh}
    additional = [
      name
      for name in self.weights
      if name not in shapes
      and not (reinitialized and re.search(reinitialized, name))
    ]
    problems = [
      f'{what} {_some(names)}'
      for what, names in (
        ('it lacks', [n for n in wanted if n not in self.weights]),
        ('it also has', additional),
        (
          'it has other shapes of',
          [
            f'{name} {self.weights[name].shape} (here {shape})'
            for name, shape in wanted.items()
            if name in self.weights and self.weights[name].shape != shape
          ],
        ),
      )
      if names
    ]
    if problems:
      raise config.ConfigError(
        f'--initial_model={self.path} belongs to another model: '
        f'{"; ".join(problems)}; start from a run with the same --model, or '
        'name variables to start at random in --reinitialized_variables.'
      )


@dataclasses.dataclass(frozen=True)
class Start:
  """The weights of an initial model that a run starts from.

  Attributes:
    weights: The weights by name.
    facts: The weights' origin, as plain values.
  """

  weights: Mapping[str, np.ndarray]
  facts: Mapping[str, Any]

  def build(self, build: Callable[[], tf.keras.Model]) -> tf.keras.Model:
    """Builds a model that starts from the weights.

    Args:
      build: Returns the model with random weights.

    Returns:
      The model. In a graph, which takes its weights as arguments, it is
      unchanged.
    """
    if not tf.executing_eagerly():
      return build()
    model, variables = build_named(build)
    assign(variables, self.weights)
    return model


def vocabulary_difference(there: Vocabulary, here: Vocabulary) -> Optional[str]:
  """Describes how two vocabularies differ; None if they are equal.

  Args:
    there: The initial model's vocabulary.
    here: This run's vocabulary.
  """
  if type(there) is not type(here):
    return f'it is of a {type(there).__name__}, this run of a ' + (
      type(here).__name__
    )
  differing = [
    (index, one, other)
    for index, (one, other) in enumerate(
      itertools.zip_longest(there.words, here.words), start=1
    )
    if one != other
  ]
  if not differing:
    return None
  index, *pair = differing[0]
  one, other = ('nothing' if w is None else repr(w) for w in pair)
  return (
    f'{len(differing)} of {max(len(there.words), len(here.words))} words '
    f'differ, the first of them word {index}, {one} there and {other} here'
  )


def load(path: str, build: Callable[..., tf.keras.Model]) -> InitialModel:
  """Loads the weights of a trained model.

  Args:
    path: The folder of a run, whose newest checkpoint is read; a checkpoint in
      the folder of its run; a file of Keras, recognised by its content: `.h5`,
      `.weights.h5`, `.keras`, a SavedModel, a TensorFlow checkpoint; or an
      `.npz` file of arrays by Keras variable name.
    build: Builds a run's model from its configuration and number of ids.

  Returns:
    The model's weights.

  Raises:
    config.ConfigError: If the model is missing or cannot be read.
  """
  path = os.path.normpath(path)
  try:
    found = weight_files.find(path)
    if found is None and os.path.isdir(path):
      files = run_folder.RunFolder(path).checkpoints.newest()
      if not files:
        run_folder.read_config(path)
        raise config.ConfigError(f'{path} has no checkpoint yet.')
      return _from_run(path, path, files, build)
    if found is None:
      raise config.ConfigError('There is no such file or folder.')
    run = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if re.fullmatch(r'round_\d+\.npz', os.path.basename(path)):
      if not os.path.exists(os.path.join(run, 'config.json')):
        raise config.ConfigError(
          'A checkpoint has no names of variables; leave it in the folder '
          'checkpoints of its run, next to its config.json and vocabulary.'
        )
      return _from_run(path, run, [path], build)
    weights, is_named = weight_files.read(found)
    names = transforms.stable_names(weights) if is_named else list(weights)
    return InitialModel(
      path, found, dict(zip(names, weights.values())), is_named=is_named
    )
  except ValueError as error:
    raise config.ConfigError(f'--initial_model={path}: {error}') from error


def _from_run(
  path: str,
  run: str,
  files: Sequence[str],
  build: Callable[..., tf.keras.Model],
) -> InitialModel:
  experiment = run_folder.read_config(run)
  vocabulary = load_vocabulary(run)
  file, weights = run_weights.plain_weights(
    files,
    lambda: build(experiment, vocabulary.size, **run_folder.model_labels(run)),
  )
  return InitialModel(path, file, weights, vocabulary)


def _shapes(build: Builder, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Returns shapes by name, without adapters, which always start at random."""
  with zero_values():
    model, variables = build_named(lambda: build(vocab_size))
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    return adapters.without_adapters(model, variables, shapes)


def _some(names: Sequence[str]) -> str:
  more = len(names) - _LISTED
  listed = ', '.join(names[:_LISTED])
  return f'{listed} and {more} more' if more > 0 else listed
