"""Stack Overflow data against TFF's own baseline, and malformed files."""

from __future__ import annotations

import collections
import os
import sqlite3
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from si_federated.tasks import TASKS, VOCABULARIES
from si_federated.tasks.client_database import ClientDatabase

tff = pytest.importorskip('tensorflow_federated')

# Sentences that are short, as long as the limit, longer, with unknown words,
# double and outer spaces, and empty.
SENTENCES = {
  'ada': ['the cat sat', 'the dog sat on the mat today', 'a  b', ''],
  'bob': [
    'cat',
    'unknown words only',
    ' the cat',
    'the cat ',
    'sat on the mat',
  ],
  'cid': ['the mat', 'x y z the', 'on on on on on', "don't re-use <URL> ."],
}
HELD = {'dora': ['the dog', 'the cat'], 'eve': ['mat']}
TEST = {'fay': ['the dog sat'], 'ada': ['later the cat']}
VOCABULARY = ['the', 'cat', 'sat', 'on', 'mat', "don't"]


def save(path, clients, splits=None):
  """Writes clients with TFF's function."""

  def dataset(client_id):
    tokens = clients[client_id]
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(
        score=np.arange(len(tokens), dtype=np.int64),
        tags=['a|b'] * len(tokens),
        tokens=tokens,
      )
    )

  tff.simulation.datasets.save_to_sql_client_data(
    list(clients),
    dataset,
    str(path),
    split_names_by_client_id=splits,
  )


def merge(path, parts):
  """Writes several splits, in which a client may occur twice."""
  for number, (split, clients) in enumerate(parts.items()):
    part = f'{path}.{number}'
    save(part, clients, dict.fromkeys(clients, split))
    if number == 0:
      os.rename(part, path)
      continue
    with sqlite3.connect(path) as connection:
      connection.execute('ATTACH ? AS part', (part,))
      for table in ('examples', 'client_metadata'):
        connection.execute(
          f'INSERT INTO {table} SELECT * FROM part.{table} ORDER BY rowid'
        )
    os.unlink(part)


@pytest.fixture
def folder(tmp_path):
  merge(
    tmp_path / 'stackoverflow.sqlite',
    {'train': SENTENCES, 'heldout': HELD, 'test': TEST},
  )
  (tmp_path / 'stackoverflow.word_count').write_text(
    ''.join(f'{word} {9 - i}\n' for i, word in enumerate(VOCABULARY))
  )
  return tmp_path


def baseline_batches(path, split, client_id, *, length, **spec):
  parser = {'tokens': tf.io.FixedLenFeature([], tf.string)}
  client_data = tff.simulation.datasets.SqlClientData(str(path), split)
  raw = client_data.create_tf_dataset_for_client(client_id)
  from tensorflow_federated.python.simulation.baselines.stackoverflow import (
    word_prediction_preprocessing,
  )

  preprocess = word_prediction_preprocessing.create_preprocess_fn(
    tff.simulation.baselines.ClientSpec(shuffle_buffer_size=1, **spec),
    VOCABULARY,
    sequence_length=length,
  )
  parsed = raw.map(lambda proto: tf.io.parse_single_example(proto, parser))
  return list(preprocess(parsed).as_numpy_iterator())


@pytest.mark.parametrize('length', [1, 3, 5, 20])
@pytest.mark.parametrize(
  'spec',
  [
    {'num_epochs': 1, 'batch_size': 3},
    {'num_epochs': 2, 'batch_size': 3, 'max_elements': 7},
  ],
)
def test_batches_equal_the_baseline_of_tff(folder, length, spec):
  task = TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=len(VOCABULARY), sequence_length=length
  )
  path = folder / 'stackoverflow.sqlite'
  for split, population in (
    ('train', task.train),
    ('heldout', task.validation),
    ('test', task.test),
  ):
    for index in range(len(population)):
      expected = baseline_batches(
        path, split, population.client_id(index), length=length, **spec
      )
      batches = population.client_batches(
        index,
        batch_size=spec['batch_size'],
        epochs=spec['num_epochs'],
        max_elements=spec.get('max_elements'),
        seed=None,
      )
      assert batches.element_spec == task.element_spec
      actual = list(batches.as_numpy_iterator())
      assert len(actual) == len(expected)
      for (x, y), (expected_x, expected_y) in zip(actual, expected):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_ids_by_hand(folder):
  task = TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=6, sequence_length=4
  )
  assert [task.train.client_id(i) for i in range(3)] == ['ada', 'bob', 'cid']
  np.testing.assert_array_equal(
    task.train.examples(0),
    [
      [8, 1, 2, 3, 9],  # Shorter than 4 words: closed by the end token.
      [8, 1, 7, 3, 4],  # Cut: no end token.
      [8, 7, 7, 7, 9],  # There is an empty word between two spaces.
      [8, 7, 9, 0, 0],  # An empty sentence is one empty word.
    ],
  )


def test_one_store_serves_every_size(folder):
  TASKS['stackoverflow'](data_dir=str(folder), vocab_size=6, sequence_length=4)
  meta = folder / 'stackoverflow.tokens' / 'meta.json'
  written = meta.stat().st_mtime_ns
  task = TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=2, sequence_length=3
  )
  assert meta.stat().st_mtime_ns == written
  assert task.vocabulary.words == ('the', 'cat')
  np.testing.assert_array_equal(task.train.examples(0)[0], [4, 1, 2, 3])


def test_words_are_counted_by_users_when_the_file_is_missing(folder):
  (folder / 'stackoverflow.word_count').unlink()
  task = TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=5, sequence_length=4
  )
  # Three users have mat, on and the, two have cat and sat. By occurrences "the"
  # and "on" would come first.
  assert task.vocabulary.words == ('mat', 'on', 'the', 'cat', 'sat')


def test_counts_in_an_archive(folder):
  plain = folder / 'stackoverflow.word_count'
  with tarfile.open(f'{plain}.tar.bz2', 'w:bz2') as archive:
    archive.add(plain, 'stackoverflow.word_count')
  plain.unlink()
  task = TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=3, sequence_length=4
  )
  assert task.vocabulary.words == ('the', 'cat', 'sat')


def test_changed_file_is_read_again(folder):
  load = TASKS['stackoverflow']
  before = load(data_dir=str(folder), vocab_size=6, sequence_length=4)
  path = folder / 'stackoverflow.sqlite'
  path.unlink()
  merge(path, {'train': {'zoe': ['cat']}, 'heldout': HELD, 'test': TEST})
  after = load(data_dir=str(folder), vocab_size=6, sequence_length=4)
  assert len(before.train) == 3  # The open store stays usable.
  assert before.train.num_examples(0) == 4
  assert after.train.client_id(0) == 'zoe'


def test_scattered_rows_keep_their_order(folder):
  path = folder / 'stackoverflow.sqlite'
  with sqlite3.connect(path) as connection:
    (proto,) = connection.execute(
      "SELECT serialized_example_proto FROM examples WHERE client_id = 'cid'"
    ).fetchone()
    connection.execute(
      "INSERT INTO examples VALUES ('train', 'ada', ?)", (proto,)
    )
    connection.execute(
      "INSERT INTO client_metadata VALUES ('nobody', 'train', 0)"
    )
  database = ClientDatabase(str(path))
  clients = dict(database.clients('train'))
  assert clients['nobody'] == []
  assert clients['ada'] == [
    *(sentence.encode() for sentence in SENTENCES['ada']),
    b'the mat',
  ]
  task = TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=6, sequence_length=4
  )
  assert len(task.train) == 3  # The client without sentences is left out.


def test_a_single_split_is_divided_by_client(tmp_path):
  clients = {f'user{i}': ['the cat sat', f'word{i}'] for i in range(30)}
  save(tmp_path / 'stackoverflow.sqlite', clients)
  task = TASKS['stackoverflow'](
    data_dir=str(tmp_path), vocab_size=5, sequence_length=4
  )
  parts = [
    {p.client_id(i) for i in range(len(p))}
    for p in (task.train, task.validation, task.test)
  ]
  assert [len(part) for part in parts] == [24, 3, 3]
  assert set.union(*parts) == set(clients)
  # Words of held-out clients do not enter the vocabulary.
  assert set(task.vocabulary.words) <= {'the', 'cat', 'sat'} | {
    'word' + name[4:] for name in parts[0]
  }


def test_a_missing_split_comes_from_the_training_clients(tmp_path):
  clients = {f'user{i}': ['the cat'] for i in range(20)}
  merge(tmp_path / 'stackoverflow.sqlite', {'train': clients, 'test': TEST})
  task = TASKS['stackoverflow'](
    data_dir=str(tmp_path), vocab_size=5, sequence_length=4
  )
  assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 2)


def load(folder):
  return TASKS['stackoverflow'](
    data_dir=str(folder), vocab_size=5, sequence_length=4
  )


def test_missing_file_names_what_to_do(tmp_path):
  with pytest.raises(ValueError, match=r'stackoverflow\.sqlite.*docstrings'):
    load(tmp_path)


def test_without_network_the_message_names_folder_and_choice(
  tmp_path, monkeypatch
):
  def refuse(*_, **__):
    raise OSError('no route to host')

  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr('urllib.request.urlopen', refuse)
  with pytest.raises(ValueError, match=r'\.tff.*--data_dir.*docstrings'):
    TASKS['stackoverflow'](vocab_size=5, sequence_length=4)
  assert not (tmp_path / '.tff' / 'stackoverflow.sqlite').exists()


def test_truncated_database_is_reported_in_one_sentence(folder):
  path = folder / 'stackoverflow.sqlite'
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match='cannot be read as SQLite'):
    load(folder)
  assert not (folder / 'stackoverflow.tokens').exists()


def test_garbled_database_is_reported_in_one_sentence(tmp_path):
  (tmp_path / 'stackoverflow.sqlite').write_bytes(b'not a database' * 100)
  with pytest.raises(ValueError, match='cannot be read as SQLite'):
    load(tmp_path)


def test_locked_database_is_reported_in_one_sentence(folder, monkeypatch):
  connect = sqlite3.connect
  monkeypatch.setattr(
    sqlite3, 'connect', lambda *a, **k: connect(*a, **{**k, 'timeout': 0.01})
  )
  other = connect(folder / 'stackoverflow.sqlite', isolation_level=None)
  other.execute('BEGIN EXCLUSIVE')
  with pytest.raises(ValueError, match='locked'):
    load(folder)


def test_missing_column_is_named(tmp_path):
  with sqlite3.connect(tmp_path / 'stackoverflow.sqlite') as connection:
    connection.execute('CREATE TABLE examples (split_name, client_id)')
    connection.execute(
      'CREATE TABLE client_metadata (split_name, client_id, num_examples)'
    )
  with pytest.raises(ValueError, match='serialized_example_proto'):
    load(tmp_path)


def test_examples_without_tokens_are_refused(tmp_path):
  def dataset(_):
    return tf.data.Dataset.from_tensors(collections.OrderedDict(words='a b'))

  tff.simulation.datasets.save_to_sql_client_data(
    ['a', 'b', 'c'], dataset, str(tmp_path / 'stackoverflow.sqlite')
  )
  with pytest.raises(ValueError, match='`tokens`'):
    load(tmp_path)


def test_words_that_are_not_utf8_are_counted(tmp_path, caplog):
  tff.simulation.datasets.save_to_sql_client_data(
    [f'c{i}' for i in range(9)],
    lambda _: tf.data.Dataset.from_tensors(
      collections.OrderedDict(tokens=b'caf\xe9 the cat')
    ),
    str(tmp_path / 'stackoverflow.sqlite'),
  )
  assert load(tmp_path).vocabulary.words == ('cat', 'the')
  assert '1 words are not UTF-8 text' in caplog.text


def test_unknown_splits_are_named(tmp_path):
  merge(tmp_path / 'stackoverflow.sqlite', {'one': HELD, 'two': TEST})
  with pytest.raises(ValueError, match=r'one, two.*train, heldout and test'):
    load(tmp_path)


@pytest.mark.parametrize('content', ['the\n', 'the many\n', '', 'a b 3\n'])
def test_bad_word_counts(folder, content):
  (folder / 'stackoverflow.word_count').write_text(content)
  with pytest.raises(ValueError, match='not a list of word counts'):
    load(folder)


def test_read_only_folder_keeps_the_store_in_the_cache(
  folder, tmp_path, monkeypatch
):
  # Made before the folder becomes read-only.
  os.makedirs(tmp_path / 'cache' / 'si_federated')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(os, 'access', lambda path, _: str(path) != str(folder))
  assert len(load(folder).train) == 3
  assert not (folder / 'stackoverflow.tokens').exists()
  assert len(os.listdir(tmp_path / 'cache' / 'si_federated')) == 1


def test_pieces_of_words(folder):
  pytest.importorskip('sentencepiece')
  words = load(folder)
  task = VOCABULARIES['sentencepiece'](size=20)(words)
  vocabulary = task.vocabulary
  assert (folder / 'stackoverflow.sentencepiece-20' / 'meta.json').exists()
  np.testing.assert_array_equal(
    task.train.examples(0)[0],
    [vocabulary.beginning, *vocabulary.encode('the cat sat')][:5],
  )
  # Words beyond the list, and the empty one between two spaces, are unknown.
  assert vocabulary.text_of(task.train.examples(0)[2]) == (
    '<BOS> <UNK> <UNK> <UNK> <EOS>'
  )
