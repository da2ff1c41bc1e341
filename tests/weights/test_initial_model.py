"""Tests of starting from a trained model, and of training a part of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment
from si_federated.algorithms import build_functional_model
from si_federated.assembly import task_and_model
from si_federated.inference import export, trained_model
from si_federated.models import MODELS
from si_federated.tasks import Vocabulary
from si_federated.weights import initial_model, named_variables
from tests import tiny

_CIFG = 'cifg:units=8,embedding_size=4'


def _config(name='x', **changes):
  return tiny.tiny_config(
    name, **{'total_rounds': 1, 'rounds_per_checkpoint': 1, **changes}
  )


def _small_model(name):
  if name.endswith('former'):
    return (
      f'{name}:embedding_size=4,num_heads=2,intermediate_dim=8,num_layers=1'
    )
  return f'{name}:units=8,embedding_size=4'


def _weights(folder, kind='trainable'):
  newest = sorted((folder / 'checkpoints').glob('*.npz'))[-1]
  with np.load(newest) as arrays:
    names = [n for n in arrays.files if f'weights/{kind}/' in n]
    names.sort(key=lambda n: int(n.rpartition('/')[2]))
    return [arrays[n] for n in names]


def _named(settings, vocab_size=24):
  return named_variables.build_named(
    lambda: experiment.build_model(settings, vocab_size)
  )


@pytest.fixture(name='source', scope='module')
def _source(tmp_path_factory):
  """The folder of a run of one round, and its summary."""
  root = tmp_path_factory.mktemp('source')
  summary = experiment.run(_config('source'), str(root))
  return root / 'source', summary


_CLASSIFIERS = ('albert', 'bert', 'distilbert', 'transformer_classifier')
# The others take the same paths, and as much time.
_FAST = ('si_cifg', 'transformer')


@pytest.mark.parametrize(
  'name',
  [
    name if name in _FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(MODELS)
    if name not in _CLASSIFIERS
  ],
)
def test_names_have_the_order_of_functional_models(name):
  settings = _config(model=_small_model(name))
  task = experiment.build_task(settings)

  def build():
    return experiment.build_model(settings, task.vocabulary.size)

  functional = build_functional_model(
    build,
    loss=task.loss,
    element_spec=task.element_spec,
    end_of_sentence=task.vocabulary.end,
  )
  _, variables = named_variables.build_named(build)
  assert len(functional.initial_weights[0]) == len(variables)
  for (key, variable), weight in zip(
    variables.items(), functional.initial_weights[0]
  ):
    np.testing.assert_array_equal(variable, weight, err_msg=key)


@pytest.mark.slow
def test_begins_as_the_other_ended_and_says_so(source, tmp_path):
  folder, summary = source
  settings = _config(
    initial_model=str(folder),
    model_seed=7,
    total_rounds=0,
    rounds_per_eval=1,
  )
  begun = experiment.run(settings, str(tmp_path))
  assert begun['final'] == summary['final']
  for one, other in zip(_weights(tmp_path / 'x'), _weights(folder)):
    np.testing.assert_array_equal(one, other)
  facts = json.loads((tmp_path / 'x' / 'task.json').read_text())
  facts = facts['initial_model']
  assert facts['path'] == str(folder)
  assert facts['file'] == str(folder / 'checkpoints' / 'round_000001.npz')
  # The digest is of the weights, not of the file.
  loaded = initial_model.load(str(folder), experiment.build_model)
  assert facts['sha256'] == loaded.sha256()
  changed = {
    k: v + (k == 'embedding/embeddings') for k, v in (loaded.weights.items())
  }
  assert (
    dataclasses.replace(loaded, weights=changed).sha256() != (facts['sha256'])
  )


@pytest.mark.slow
def test_resumes_from_its_own_checkpoint(source, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(source[0], copy)
  settings = _config(initial_model=str(copy))
  first = experiment.run(settings, str(tmp_path))
  shutil.rmtree(copy)
  # Like an interrupted run, except for the number of rounds.
  settings = dataclasses.replace(settings, total_rounds=2)
  (tmp_path / 'x' / 'config.json').write_text(settings.to_json())
  second = experiment.run(settings, str(tmp_path))
  assert second['rounds'] == 2
  assert second['final']['eval/loss'] != first['final']['eval/loss']
  assert 'initial_model' in json.loads(
    (tmp_path / 'x' / 'task.json').read_text()
  )
  with pytest.raises(config.ConfigError, match='no such file'):
    experiment.build(settings)


def test_a_checkpoint_and_files_of_keras_give_the_same(source, tmp_path):
  folder, _ = source
  settings = _config()
  expected = initial_model.load(str(folder), experiment.build_model)
  checkpoint = folder / 'checkpoints' / 'round_000001.npz'
  # Other builds before, so that Keras has numbered its layers on.
  _named(settings)
  model, variables = _named(settings)
  named_variables.assign(variables, expected.weights)
  model.save(tmp_path / 'whole.keras')
  model.save(tmp_path / 'whole.h5')
  model.save_weights(tmp_path / 'weights.h5')
  np.savez(
    tmp_path / 'weights.npz', **{v.name: v.numpy() for v in model.variables}
  )
  paths = [checkpoint, *sorted(tmp_path.iterdir())]
  model.save_weights(tmp_path / 'places.weights.h5')
  # With the state of an optimizer and of metrics, which are not weights.
  model.compile('adam', 'mse', metrics=['mae'])
  ids = np.ones([1, 3], np.int32)
  model.fit(ids, np.zeros([1, 3, 24]), verbose=0)
  named_variables.assign(variables, expected.weights)
  model.save_weights(tmp_path / 'trained.weights.h5')
  model.save_weights(str(tmp_path / 'tf' / 'named'))
  tf.keras.models.save_model(model, tmp_path / 'saved')
  # The content determines the format, not the name.
  os.link(tmp_path / 'whole.keras', tmp_path / 'of_keras')
  os.link(tmp_path / 'whole.h5', tmp_path / 'of_keras.npz')
  paths += [
    tmp_path / 'places.weights.h5', tmp_path / 'trained.weights.h5',
    tmp_path / 'tf', tmp_path / 'tf' / 'named',
    tmp_path / 'tf' / 'named.index', tmp_path / 'saved',
    tmp_path / 'of_keras', tmp_path / 'of_keras.npz',
  ]  # fmt: skip
  for path in paths:
    loaded = initial_model.load(str(path), experiment.build_model)
    assert expected.vocabulary is not None
    start = loaded.fit(
      lambda size: experiment.build_model(settings, size),
      expected.vocabulary,
    )
    assert start.facts['sha256'] == expected.sha256(), path
    assert list(start.weights) == list(variables)


@pytest.mark.parametrize(
  ('model', 'transform'),
  [
    ('si_cifg', 'lora:rank=1'),
    ('transformer', 'freeze:variables=kernel'),
    pytest.param('si_gru', 'none', marks=pytest.mark.slow),
    pytest.param('si_conformer', 'ffa_lora:rank=1', marks=pytest.mark.slow),
  ],
)
def test_places_in_a_file_of_weights_have_names(tmp_path, model, transform):
  """A transform of this run changes the places, but not those of the file."""
  settings = _config(model=_small_model(model))
  task = experiment.build_task(settings)
  built, variables = _named(settings, task.vocabulary.size)
  for index, variable in enumerate(variables.values()):
    variable.assign(tf.fill(variable.shape, index + 0.5))
  path = str(tmp_path / 'x.weights.h5')
  built.save_weights(path)
  settings = dataclasses.replace(
    settings,
    initial_model=path,
    transform=config.ComponentSpec.parse(transform),
  )
  start, _ = task_and_model.prepare_model(settings, task, resumed=False)
  assert start is not None
  assert set(start.weights) == set(variables)
  for name, variable in variables.items():
    np.testing.assert_array_equal(start.weights[name], variable.numpy())


def _refused(**changes):
  with pytest.raises(config.ConfigError) as caught:
    experiment.build(_config(**changes))
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_another_model_is_refused_with_the_difference(source, tmp_path):
  path = str(source[0])
  message = _refused(initial_model=path, model='cifg:units=9,embedding_size=4')
  assert 'recurrent_1/cifg_cell/kernel (4, 24) (here (4, 27))' in message
  message = _refused(initial_model=path, model='lstm:units=8,embedding_size=4')
  assert 'lacks recurrent_1/lstm_cell/kernel' in message
  assert 'it also has recurrent_1/cifg_cell/kernel' in message
  for wrong, what in (
    (tmp_path / 'missing', 'no such file'),
    (tmp_path, 'config.json'),
    (tmp_path / 'x.txt', 'folder of a run'),
    (tmp_path / 'x.weights.h5', 'no weights that can be read'),
    (tmp_path / 'x.h5', 'no weights that can be read'),
    (tmp_path / 'x.keras', 'no weights that can be read'),
    (tmp_path / 'x.npz', 'no weights that can be read'),
    (tmp_path / 'round_000001.npz', 'no names of variables'),
  ):
    if wrong.suffix:
      wrong.write_bytes(b'no weights')
    message = _refused(initial_model=str(wrong))
    assert what in message
    assert str(wrong) in message


def test_a_garbled_checkpoint_falls_back_to_the_one_before(source, tmp_path):
  shutil.copytree(source[0], tmp_path / 'x')
  newest = tmp_path / 'x' / 'checkpoints' / 'round_000001.npz'
  os.truncate(newest, 100)
  loaded = initial_model.load(str(tmp_path / 'x'), experiment.build_model)
  assert loaded.file.endswith('round_000000.npz')


def test_another_vocabulary_is_refused_with_the_difference(source):
  path = str(source[0])
  vocabulary = Vocabulary(
    tuple((source[0] / 'vocabulary.txt').read_text().splitlines())
  )
  other = 'synthetic:num_clients=30,seed=1'
  message = _refused(initial_model=path, task=other)
  assert 'words differ' in message
  assert 'embedding/embeddings' in message
  # Vocabularies of equal size, or of another if dependent weights are left out.
  message = _refused(
    initial_model=path, task=other, reinitialized_variables='recurrent'
  )
  assert 'words differ' in message
  loaded = initial_model.load(path, experiment.build_model)
  for size in (20, 15):
    settings = _config(task=other, vocab_size=size)
    words = experiment.build_task(settings).vocabulary

    def build(number, settings=settings):
      return experiment.build_model(settings, number)

    start = loaded.fit(build, words, 'embedding/|logits')
    assert start.facts['reinitialized_variables'] == ['embedding/embeddings']
    _, fresh = _named(settings, words.size)
    model = start.build(functools.partial(build, words.size))
    for name, variable in zip(fresh, model.variables):
      own = name.startswith('embedding/')
      expected = fresh[name] if own else loaded.weights[name]
      np.testing.assert_array_equal(variable, expected, err_msg=name)
  difference = initial_model.vocabulary_difference
  assert difference(vocabulary, vocabulary) is None
  assert difference(Vocabulary(('a', 'b', 'c')), Vocabulary(('a', 'x'))) == (
    "2 of 3 words differ, the first of them word 2, 'b' there and 'x' here"
  )


def test_reinitialized_variables_need_an_initial_model_and_names(source):
  with pytest.raises(config.ConfigError, match='--initial_model'):
    _config(reinitialized_variables='embedding')
  message = _refused(
    initial_model=str(source[0]), reinitialized_variables='nothing'
  )
  assert 'embedding/embeddings' in message


@pytest.fixture(name='frozen', scope='module')
def _frozen(tmp_path_factory, source):
  """The folder of a run whose embedding and a kernel are frozen."""
  root = tmp_path_factory.mktemp('frozen')
  settings = _config(
    'frozen',
    initial_model=str(source[0]),
    transform='freeze:variables=embedding/|/recurrent_kernel',
  )
  summary = experiment.run(settings, str(root))
  return root / 'frozen', settings, summary


def test_frozen_variables_stay_and_are_not_sent(frozen, source):
  folder, settings, summary = frozen
  _, variables = _named(settings)
  source_weights = dict(zip(variables, _weights(source[0])))
  kept = {
    n: w
    for n, w in source_weights.items()
    if n.startswith('embedding/') or n.endswith('/recurrent_kernel')
  }
  assert len(kept) == 2
  for weight, expected in zip(_weights(folder, 'non_trainable'), kept.values()):
    np.testing.assert_array_equal(weight, expected)
  trained = [w for n, w in source_weights.items() if n not in kept]
  after = _weights(folder)
  assert [w.shape for w in after] == [w.shape for w in trained]
  assert all(not np.array_equal(a, b) for a, b in zip(after, trained))

  size = sum(w.nbytes for w in trained)
  assert summary['num_parameters'] * 4 == size
  lines = (folder / 'metrics.csv').read_text().splitlines()
  row = dict(zip(lines[0].split(','), lines[-1].split(',')))
  assert float(row['bytes_up_per_client']) == size
  assert float(row['bytes_down_per_client']) == size + sum(
    w.nbytes for w in kept.values()
  )


def test_frozen_variables_are_evaluated_predicted_with_and_exported(
  frozen, tmp_path
):
  folder, settings, summary = frozen
  trained = trained_model.load_model(str(folder))
  task = experiment.build_task(settings)
  examples = task.validation.sample_examples(16, seed=0)
  logits = trained.model(examples[:, :-1])
  loss = float(task.loss(examples[:, 1:], logits))
  assert loss == pytest.approx(summary['final']['eval/loss'], rel=1e-5)
  export.export_model(str(folder), str(tmp_path), formats=('saved_model',))
  saved = tf.saved_model.load(str(tmp_path / 'saved_model'))
  np.testing.assert_allclose(
    saved.signatures['logits'](tf.constant(examples[:2, :-1]))['logits'],
    logits[:2],
    atol=1e-5,
  )
  # Another run that trains all variables can start from its end.
  again = experiment.build(_config(initial_model=str(folder)))
  weights = again.process.get_model_weights(again.process.initialize())
  assert not weights.non_trainable
  assert again.evaluate(weights)['loss'] == summary['final']['eval/loss']


def _ancestors(tensors):
  """The operations that some tensors of a graph depend on."""
  pending, found = [t.op for t in tensors], set()
  while pending:
    op = pending.pop()
    if op not in found:
      found.add(op)
      pending += [t.op for t in op.inputs] + list(op.control_inputs)
  return found


@pytest.mark.parametrize(
  ('model', 'pattern', 'frozen'),
  [
    (
      'cifg:units=7,embedding_size=4,tied_embeddings=false',
      'embedding/',
      'embedding/embeddings',
    ),
    (_CIFG, '/recurrent_kernel', 'recurrent_1/cifg_cell/recurrent_kernel'),
    pytest.param(
      'transformer:embedding_size=4,num_heads=2,intermediate_dim=9,'
      'num_layers=1',
      'intermediate/kernel',
      'block_1/feed_forward/intermediate/kernel',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_frozen_variables_have_no_gradient_in_a_clients_step(
  model, pattern, frozen
):
  counts = {}
  for transform in ('none', f'freeze:variables={pattern}'):
    settings = _config(model=model, transform=transform)
    task = experiment.build_task(settings)
    functional = build_functional_model(
      functools.partial(experiment.build_model, settings, task.vocabulary.size),
      loss=task.loss,
      element_spec=task.element_spec,
      end_of_sentence=task.vocabulary.end,
    )
    _, variables = _named(settings)
    shape = variables[frozen].shape
    assert sum(v.shape == shape for v in variables.values()) == 1
    parts = functional.initial_weights
    assert len(parts[1]) == (transform != 'none')
    # Five times six positions, which is not the size of a weight.
    ids = task.validation.sample_examples(5, seed=0)
    # Inlining functions shows the operations that are not used.
    tf.config.run_functions_eagerly(True)
    try:
      with tf.Graph().as_default() as graph:
        weights = [
          tuple(tf.compat.v1.placeholder(w.dtype, w.shape) for w in part)
          for part in parts
        ]
        with tf.GradientTape() as tape:
          tape.watch(weights[0])
          output = functional.predict_on_batch(
            tuple(weights), tf.constant(ids[:, :-1])
          )
          loss = functional.loss(output, tf.constant(ids[:, 1:]))
        forward = set(graph.get_operations())
        gradients = [
          tf.convert_to_tensor(g) for g in tape.gradient(loss, weights[0])
        ]
        backward = _ancestors(gradients) - forward
    finally:
      tf.config.run_functions_eagerly(False)
    # Gradients and sums of them have the variable's shape.
    counts[transform] = [
      op.type
      for op in backward
      for output in op.outputs
      if output.shape == shape
    ]
    assert len(gradients) == len(variables) - (transform != 'none')
  all_trained, part_trained = counts.values()
  assert all_trained
  assert not [
    kind for kind in part_trained if kind in ('MatMul', 'UnsortedSegmentSum')
  ]
  assert len(part_trained) < len(all_trained)


def test_freezing_missing_variables_is_refused():
  message = _refused(transform='freeze:variables=nothing')
  assert message.startswith('--transform=freeze:variables=nothing: ')
  assert 'embedding/embeddings' in message
  message = _refused(transform='freeze:variable=x')
  assert "did you mean 'variables'" in message
