"""The trained model that a run starts from, matched by names of variables."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from si_federated import config
from si_federated.models import adapters, transforms
from si_federated.tasks import Vocabulary, load_vocabulary
from si_federated.training import checkpoints, run_folder
from si_federated.weights import weight_files

# Builds a model for a number of ids.
Builder = Callable[[int], tf.keras.Model]

_LISTED = 3


def build_named(
  build: Callable[[], tf.keras.Model],
) -> tuple[tf.keras.Model, dict[str, tf.Variable]]:
  """Builds a model and names its variables.

  Args:
    build: Returns a new model.

  Returns:
    The model and its variables by stable name, in the order of creation, which
    is that of TFF's functional models and of checkpoints, and need not be that
    of the layers.
  """
  created: list[tf.Variable] = []

  def record(next_creator, **options):
    created.append(next_creator(**options))
    return created[-1]

  with tf.variable_creator_scope(record):
    model = build()
  own = {id(variable) for variable in model.variables}
  variables = [variable for variable in created if id(variable) in own]
  names = transforms.stable_names(variable.name for variable in variables)
  return model, dict(zip(names, variables))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
  """Has models built whose weights are not drawn, which would take long."""

  def zeros(next_creator, **options):
    shape, dtype = options.get('shape'), options.get('dtype')
    if shape is not None and dtype is not None:
      options['initial_value'] = lambda: tf.zeros(shape, dtype)
    return next_creator(**options)

  with tf.variable_creator_scope(zeros):
    yield


def checkpoint_weights(
  file: str, model: tf.keras.Model, variables: Mapping[str, tf.Variable]
) -> dict[str, np.ndarray]:
  """Reads the weights of a model from a checkpoint of its training.

  Args:
    file: The checkpoint.
    model: The model, as it was trained.
    variables: Its variables, from `build_named`.

  Returns:
    The weights by name.

  Raises:
    checkpoints.CheckpointError: If the file is truncated or garbled.
    config.ConfigError: If it is of another model.
  """
  trainable = {id(variable) for variable in model.trainable_variables}
  parts = {True: checkpoints.read_weights(file), False: []}
  if len(trainable) < len(variables):
    parts[False] = checkpoints.read_weights(file, 'non_trainable')
  expected = {
    kind: [
      (name, tuple(variable.shape))
      for name, variable in variables.items()
      if (id(variable) in trainable) == kind
    ]
    for kind in parts
  }
  weights: dict[str, np.ndarray] = {}
  for kind, named in expected.items():
    if [shape for _, shape in named] != [w.shape for w in parts[kind]]:
      raise config.ConfigError(
        f'{file} holds weights of other shapes than its model has.'
      )
    weights.update((name, w) for (name, _), w in zip(named, parts[kind]))
  return {name: weights[name] for name in variables}


def assign(
  variables: Mapping[str, tf.Variable], weights: Mapping[str, np.ndarray]
) -> None:
  """Gives variables the weights of the same names; the others stay."""
  for name, weight in weights.items():
    variables[name].assign(tf.cast(weight, variables[name].dtype))


@dataclasses.dataclass(frozen=True)
class InitialModel:
  """The weights of a trained model.

  Attributes:
    path: Where the user said that it is.
    file: The file that its weights are from.
    weights: The weights by name.
    vocabulary: The words it knows, unless it is a mere file of weights.
  """

  path: str
  file: str
  weights: Mapping[str, np.ndarray]
  vocabulary: Optional[Vocabulary] = None

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
  ) -> Start:
    """Checks that the weights are those of a model, by name and shape.

    Args:
      build: Builds the model that is to start with them.
      vocabulary: Its words.
      reinitialized: A regular expression for names of variables that are not to
        have these weights; the vocabulary may then differ, if all variables
        that depend on its size are among them.

    Returns:
      What to start from.

    Raises:
      config.ConfigError: If vocabulary, names or shapes differ.
    """
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
          'start from a model with the same one (as experiments.pretrain makes '
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
        ('it has besides', additional),
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
        f'--initial_model={self.path} is of another model: '
        f'{"; ".join(problems)}; start from a run with the same --model, or '
        'name what is to start at random in --reinitialized_variables.'
      )


@dataclasses.dataclass(frozen=True)
class Start:
  """What of an initial model a run starts with.

  Attributes:
    weights: The weights by name.
    facts: Where they are from, as plain values.
  """

  weights: Mapping[str, np.ndarray]
  facts: Mapping[str, Any]

  def build(self, build: Callable[[], tf.keras.Model]) -> tf.keras.Model:
    """Builds a model that begins with the weights.

    Args:
      build: Returns the model as it begins without.

    Returns:
      The model; in a graph, which gets its weights from outside, as it is.
    """
    if not tf.executing_eagerly():
      return build()
    model, variables = build_named(build)
    assign(variables, self.weights)
    return model


def vocabulary_difference(there: Vocabulary, here: Vocabulary) -> Optional[str]:
  """Returns in what two vocabularies differ, as a clause; None if in nothing.

  Args:
    there: Of the initial model.
    here: Of this run.
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
    path: The folder of a run, of which the newest checkpoint is taken; a
      checkpoint in the folder of its run; or a file of weights by Keras's names
      of variables: `.h5`, `.keras`, `.npz`.
    build: Builds a run's model, from its configuration and number of ids.

  Returns:
    The model's weights.

  Raises:
    config.ConfigError: If there is no such model, or it cannot be read.
  """
  path = os.path.normpath(path)
  try:
    if os.path.isdir(path):
      files = run_folder.RunFolder(path).checkpoints.newest()
      if not files:
        run_folder.read_config(path)
        raise config.ConfigError(f'{path} has no checkpoint yet.')
      return _from_run(path, path, files, build)
    if not os.path.exists(path):
      raise config.ConfigError('There is no such file or folder.')
    run = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if re.fullmatch(r'round_\d+\.npz', os.path.basename(path)):
      if not os.path.exists(os.path.join(run, 'config.json')):
        raise config.ConfigError(
          'A checkpoint has no names of variables; leave it in the folder '
          'checkpoints of its run, whose config.json and vocabulary tell them.'
        )
      return _from_run(path, run, [path], build)
    weights = weight_files.read(path)
    names = transforms.stable_names(weights)
    return InitialModel(path, path, dict(zip(names, weights.values())))
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
  file, weights = plain_weights(
    files,
    lambda: build(experiment, vocabulary.size, **run_folder.model_labels(run)),
  )
  return InitialModel(path, file, weights, vocabulary)


def plain_weights(
  files: Sequence[str], build: Callable[[], tf.keras.Model]
) -> tuple[str, dict[str, np.ndarray]]:
  """Reads the weights of a run's model, what adapters have learned in them.

  Args:
    files: Checkpoints, the one to take first.
    build: Builds the model as it was trained.

  Returns:
    The first whole checkpoint, and the weights by name of the model without a
    transform.

  Raises:
    config.ConfigError: If none is whole, or they are of another model.
  """
  with without_values():
    model, variables = build_named(build)
    file, weights = newest_weights(files, model, variables)
    return file, adapters.merge_weights(model, variables, weights)


def newest_weights(
  files: Sequence[str],
  model: tf.keras.Model,
  variables: Mapping[str, tf.Variable],
) -> tuple[str, dict[str, np.ndarray]]:
  """Reads the weights of the first checkpoint that is whole.

  Args:
    files: Checkpoints, the one to take first.
    model: The model, as it was trained.
    variables: Its variables, from `build_named`.

  Returns:
    The checkpoint, and the weights by name.

  Raises:
    config.ConfigError: If none is whole, or they are of another model.
  """
  problems = []
  for file in files:
    try:
      return file, checkpoint_weights(file, model, variables)
    except checkpoints.CheckpointError as error:
      problems.append(str(error))
  raise config.ConfigError(' '.join(problems) or 'There is no checkpoint yet.')


def _shapes(build: Builder, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Returns the shapes by name, but of adapters, which always begin anew."""
  with without_values():
    model, variables = build_named(lambda: build(vocab_size))
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    return adapters.without_adapters(model, variables, shapes)


def _some(names: Sequence[str]) -> str:
  more = len(names) - _LISTED
  listed = ', '.join(names[:_LISTED])
  return f'{listed} and {more} more' if more > 0 else listed
