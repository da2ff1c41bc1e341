"""Exported models give what the checkpoint gives."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment
from si_federated.inference import export, trained_model
from tests import tiny

_OPTIONS = {
  'si_cifg': 'units=64,embedding_size=8',
  'si_transformer': (
    'embedding_size=8,intermediate_dim=16,num_heads=2,num_layers=1'
  ),
  'si_conformer': (
    'embedding_size=8,intermediate_dim=16,num_heads=2,num_layers=1,'
    'kernel_size=4'
  ),
}


@pytest.fixture(name='runs', scope='module')
def _runs(tmp_path_factory):
  """Returns the folder of an untrained run of a model."""
  root = tmp_path_factory.mktemp('runs')

  @functools.lru_cache
  def run_of(name):
    settings = tiny.tiny_config(
      name,
      model=f'{name}:{_OPTIONS[name]}',
      sequence_length=4,
      total_rounds=0,
    )
    experiment.run(settings, str(root))
    return str(root / name)

  return run_of


def _sentences(trained):
  vocabulary = trained.vocabulary
  generator = np.random.default_rng(0)
  length = trained.config.sequence_length
  ids = np.zeros([4, length], np.int32)
  for row, known in zip(ids, (0, 1, 2, length - 1)):
    row[0] = vocabulary.beginning
    row[1 : known + 1] = generator.integers(1, 21, size=known)
  return ids


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    'si_cifg',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ('si_transformer', 'si_conformer')
    ),
  ],
)
def test_same_next_words_as_the_checkpoint(runs, name, tmp_path):
  facts = export.export_model(runs(name), str(tmp_path), top=3)
  trained = trained_model.load_model(runs(name))
  assert json.loads((tmp_path / 'export.json').read_text()) == facts
  words = (tmp_path / 'vocabulary.txt').read_text().splitlines()
  assert tuple(words) == trained.vocabulary.words

  saved = tf.saved_model.load(str(tmp_path / 'saved_model'))
  lite = tf.lite.Interpreter(str(tmp_path / 'model.tflite'))
  runners = {
    'saved_model': saved.signatures,
    'tflite': {
      key: lite.get_signature_runner(key) for key in ('next_token', 'logits')
    },
  }
  for row in _sentences(trained):
    known = int(np.sum(row != 0))
    expected = trained.model(row[np.newaxis]).numpy()[:, :known]
    best = trained.next_words(row[1:known].tolist(), top=3)
    for kind, signatures in runners.items():
      ids = tf.constant(row[np.newaxis])
      logits = np.asarray(signatures['logits'](ids=ids)['logits'])
      np.testing.assert_allclose(logits[:, :known], expected, atol=1e-5)
      answer = signatures['next_token'](ids=ids)
      assert np.asarray(answer['ids'])[0].tolist() == [
        word for ((word,), _) in best
      ], kind
      np.testing.assert_allclose(
        np.asarray(answer['probabilities'])[0],
        [probability for _, probability in best],
        rtol=1e-4,
      )


@pytest.mark.slow
def test_any_shape_of_batch(runs, tmp_path):
  export.export_model(runs('si_cifg'), str(tmp_path), formats=('saved_model',))
  saved = tf.saved_model.load(str(tmp_path / 'saved_model'))
  trained = trained_model.load_model(runs('si_cifg'))
  ids = np.random.default_rng(1).integers(1, 21, size=(3, 13)).astype('int32')
  np.testing.assert_allclose(
    saved.signatures['logits'](tf.constant(ids))['logits'],
    trained.model(ids),
    atol=1e-5,
  )
  assert not (tmp_path / 'model.tflite').exists()


@pytest.mark.slow
def test_smaller_weights(runs, tmp_path):
  sizes = {}
  for precision in export.PRECISIONS:
    facts = export.export_model(
      runs('si_cifg'),
      str(tmp_path),
      formats=('tflite',),
      tflite_precision=precision,
    )
    sizes[precision] = facts['written']['tflite']['bytes']
    assert (tmp_path / 'model.tflite').stat().st_size == sizes[precision]
  assert sizes['float16'] < sizes['float32']


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'formats': ('onnx',)}, "'onnx' is not a format"),
    ({'tflite_precision': 'int4'}, "'int4' is not a precision"),
    ({'top': 100}, '--top must be from 1'),
  ],
)
def test_options_are_checked(runs, tmp_path, options, message):
  with pytest.raises(config.ConfigError, match=message):
    export.export_model(runs('si_cifg'), str(tmp_path / 'new'), **options)
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('name', ['saved_model', 'tflite'])
def test_a_full_disk_is_one_sentence_with_the_path(runs, tmp_path, name):
  run = runs('si_cifg')
  with (
    tiny.small_disk(2000),
    pytest.raises(OSError, match=r'^/\S+ was not written \(File too large\)'),
  ):
    export.export_model(run, str(tmp_path), formats=(name,))
  assert not list(tmp_path.glob('*saved_model*'))


def test_binary(runs, tmp_path, run_binary):
  run = tmp_path / 'private'
  shutil.copytree(runs('si_cifg'), run)
  privacy = {'private': True, 'simulated': True, 'epsilon': 2.5, 'delta': 1e-6}
  (run / 'privacy.json').write_text(json.dumps(privacy))
  code, output, errors = run_binary(
    'export',
    f'--run={run}',
    f'--output={tmp_path / "out"}',
  )
  assert code == 0, errors
  assert 'model.tflite' in output
  assert 'Privacy (simulated): epsilon 2.500 at delta 1e-06' in output
  facts = json.loads((tmp_path / 'out' / 'export.json').read_text())
  assert facts['privacy'] == privacy
  assert (tmp_path / 'out' / 'saved_model' / 'saved_model.pb').exists()
  code, _, errors = run_binary('predict', f'--run={run}', '--text=the')
  assert code == 0
  assert 'Privacy (simulated): epsilon 2.500 at delta 1e-06' in errors
  with pytest.raises(config.ConfigError, match='config.json'):
    export.export_model(str(tmp_path), str(tmp_path / 'new'))
