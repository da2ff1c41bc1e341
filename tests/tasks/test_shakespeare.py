"""Speeches as windows of characters, from both kinds of files and bad ones."""

from __future__ import annotations

import collections
import json
import lzma
import os
import sqlite3

import numpy as np
import pytest
import tensorflow as tf

from si_federated.tasks import TASKS
from si_federated.tasks.client_database import ClientDatabase

tff = pytest.importorskip('tensorflow_federated')

SPEECHES = {
  f'PLAY_ROLE_{i}': [f'Speak, {i}!\nAnon.', 'Ay'] for i in range(10)
} | {'PLAY_HERO': ['To be, or not to be: that is the question:\nWhether', 'O']}


def write_speeches(path, clients=None, **fields):
  clients = SPEECHES if clients is None else clients
  # Roles take turns, as in a play.
  turns = max(map(len, clients.values()))
  lines = [
    json.dumps({'client_id': name, 'text': texts[turn], 'n': turn, **fields})
    for turn in range(turns)
    for name, texts in clients.items()
    if turn < len(texts)
  ]
  content = ''.join(line + '\n' for line in lines).encode()
  path.write_bytes(lzma.compress(content) if path.suffix == '.xz' else content)


def load(folder, length=20, **options):
  return TASKS['shakespeare'](
    data_dir=str(folder), sequence_length=length, **options
  )


def populations(task):
  return (task.train, task.validation, task.test)


def text_by_client(task):
  """Joins the characters of all windows of each client."""
  found = {}
  for population in populations(task):
    for i in range(len(population)):
      arrays = population.arrays
      start, stop = arrays.client_offsets[i : i + 2]
      tokens = arrays.tokens[
        arrays.sentence_offsets[start] : arrays.sentence_offsets[stop]
      ]
      found[population.client_id(i)] = len(tokens)
  return found


@pytest.mark.parametrize('name', ['speeches.jsonl', 'speeches.jsonl.xz'])
@pytest.mark.parametrize('length', [1, 7, 20, 80])
def test_no_text_is_lost(tmp_path, name, length):
  write_speeches(tmp_path / name)
  task = load(tmp_path, length)
  assert task.element_spec[0].shape == [None, length]
  seen = {}
  for population in populations(task):
    for i in range(len(population)):
      rows = population.examples(i)
      assert (rows[:, 0] == task.vocabulary.beginning).all()
      labels = rows[:, 1:][rows[:, 1:] != 0]
      characters = labels[labels != task.vocabulary.end]
      seen[population.client_id(i)] = len(characters)
      if population is task.train:
        # Nothing is unknown, so decoding returns the same text.
        assert task.vocabulary.text_of(characters) == ''.join(
          SPEECHES[population.client_id(i)]
        )
  assert seen == {k: len(''.join(v)) for k, v in SPEECHES.items()}


def test_windows_by_hand(tmp_path):
  clients = {f'c{i}': ['ab b\nb', 'abba', 'ba'] for i in range(9)}
  write_speeches(tmp_path / 'speeches.jsonl', clients)
  task = load(tmp_path, 4)
  vocabulary = task.vocabulary
  assert set(vocabulary.words) == {'a', 'b', '\u2420', '\u240a'}
  a, b, space, line = (vocabulary.encode(c)[0] for c in 'ab \n')
  begin, end = vocabulary.beginning, vocabulary.end
  np.testing.assert_array_equal(
    task.train.examples(0),
    [
      [begin, a, b, space, b],
      [begin, line, b, end, 0],
      [begin, a, b, b, a],  # As long as a window: no end token.
      [begin, b, a, end, 0],
    ],
  )


def test_short_speeches_are_as_in_tffs_baseline(tmp_path):
  from tensorflow_federated.python.simulation.baselines.shakespeare import (
    char_prediction_preprocessing as baseline,
  )

  clients = {f'c{i}': ['To be,\nor not', 'Ay!'] for i in range(9)}
  write_speeches(tmp_path / 'speeches.jsonl', clients)
  task = load(tmp_path, 20)
  preprocess = baseline.create_preprocess_fn(
    tff.simulation.baselines.ClientSpec(
      num_epochs=1, batch_size=5, shuffle_buffer_size=1
    ),
    sequence_length=20,
  )
  raw = tf.data.Dataset.from_tensor_slices({'snippets': clients['c0']})
  ((x, y),) = preprocess(raw).as_numpy_iterator()
  # Theirs -> ours, character by character and special id by special id.
  _, _, begin, end = baseline.get_special_tokens()
  ids = np.zeros([end + 1], np.int32)
  for i, character in enumerate(baseline.CHAR_VOCAB, start=1):
    (ids[i],) = task.vocabulary.encode(character)
  ids[begin], ids[end] = task.vocabulary.beginning, task.vocabulary.end
  ((ours_x, ours_y),) = task.train.client_batches(
    0, batch_size=5, seed=None
  ).as_numpy_iterator()
  np.testing.assert_array_equal(ours_x, ids[x])
  np.testing.assert_array_equal(ours_y, ids[y])


def test_clients_are_held_out_whole(tmp_path):
  write_speeches(tmp_path / 'speeches.jsonl')
  task = load(tmp_path)
  names = [{p.client_id(i) for i in range(len(p))} for p in populations(task)]
  assert [len(part) for part in names] == [9, 1, 1]
  assert set.union(*names) == set(SPEECHES)


def test_play_and_speaker_make_a_client(tmp_path):
  lines = [
    {'play': f'p{i % 2}', 'speaker': f's{i % 3}', 'text': f'line {i}'}
    for i in range(12)
  ]
  path = tmp_path / 'mine.txt'
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n\n')
  task = load(tmp_path, path='mine.txt')
  assert set(text_by_client(task)) == {
    f'p{i}/s{j}' for i in range(2) for j in range(3)
  }
  assert text_by_client(task)['p0/s0'] == len('line 0') + len('line 6')


def test_tffs_file_both_splits(tmp_path):
  """As in TFF, the last speeches of each client are its test split."""
  path = tmp_path / 'shakespeare.sqlite'
  for split, part in (('test', slice(-1, None)), ('train', slice(0, -1))):
    tff.simulation.datasets.save_to_sql_client_data(
      list(SPEECHES),
      lambda name, part=part: tf.data.Dataset.from_tensor_slices(
        collections.OrderedDict(snippets=SPEECHES[name][part])
      ),
      str(tmp_path / split),
      split_names_by_client_id=dict.fromkeys(SPEECHES, split),
    )
  os.rename(tmp_path / 'test', path)
  with sqlite3.connect(path) as connection:
    connection.execute('ATTACH ? AS part', (str(tmp_path / 'train'),))
    for table in ('examples', 'client_metadata'):
      connection.execute(f'INSERT INTO {table} SELECT * FROM part.{table}')
  assert ClientDatabase(str(path), 'snippets').splits() == {
    'test': 11,
    'train': 11,
  }
  task = load(tmp_path)
  assert text_by_client(task) == {
    name: len(''.join(texts)) for name, texts in SPEECHES.items()
  }
  first = task.vocabulary.text_of(task.train.examples(0)[0])
  assert first.startswith('<BOS>' + SPEECHES[task.train.client_id(0)][0][:10])


def test_a_speech_of_tffs_file_in_another_encoding_is_refused(tmp_path):
  tff.simulation.datasets.save_to_sql_client_data(
    ['a', 'b', 'c'],
    lambda name: tf.data.Dataset.from_tensors(
      collections.OrderedDict(snippets=b'caf\xe9')
    ),
    str(tmp_path / 'shakespeare.sqlite'),
  )
  with pytest.raises(ValueError, match=r"of 'a' .* at position 3\); make"):
    load(tmp_path)


def test_built_once_for_a_length_and_again_for_another_file(
  tmp_path, finished_stores
):
  path = tmp_path / 'speeches.jsonl'
  write_speeches(path)
  for length in (20, 10, 20, 10):
    assert load(tmp_path, length).sequence_length == length
  assert len(finished_stores) == 2
  clients = {**SPEECHES, 'PLAY_FOOL': ['Nuncle!']}
  write_speeches(path, clients)
  assert set(text_by_client(load(tmp_path, 20))) == set(clients)


def test_the_vocabulary_can_be_smaller(tmp_path):
  write_speeches(tmp_path / 'speeches.jsonl')
  task = load(tmp_path, vocab_size=5)
  assert len(task.vocabulary.words) == 5
  assert (task.train.examples(0) == task.vocabulary.out_of_vocabulary).any()


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'clients'),
    (b'{"client_id": "a", "text": "b"}\n', 'clients'),
    (b'{"client_id": "a", "text": "b"}\n{"client_id"', 'line 2'),
    (b'["a"]\n', 'line 1.*not a JSON object'),
    (b'{"client_id": "a"}\n', 'line 1.*`text`'),
    (b'{"client_id": [7], "text": "b"}\n', 'line 1.*not text'),
    (b'{"play": "a", "text": "b"}\n', 'line 1.*`speaker`'),
    (b'{"client_id": "a", "text": "\xff"}\n', 'UTF-8.*position 28'),
  ],
)
def test_bad_files_are_reported_in_one_sentence(tmp_path, content, words):
  (tmp_path / 'speeches.jsonl').write_bytes(content)
  with pytest.raises(ValueError, match=words) as caught:
    load(tmp_path)
  assert str(tmp_path / 'speeches.jsonl') in str(caught.value)
  assert '\n' not in str(caught.value)
  assert os.listdir(tmp_path) == ['speeches.jsonl']


def test_truncated_archive_is_reported_in_one_sentence(tmp_path):
  path = tmp_path / 'speeches.jsonl.xz'
  write_speeches(path)
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match='damaged or incomplete'):
    load(tmp_path)


def test_half_a_character_is_replaced(tmp_path):
  clients = {f'c{i}': ['a\ud83d', 'b'] for i in range(5)}
  write_speeches(tmp_path / 'speeches.jsonl', clients)
  assert '?' in load(tmp_path).vocabulary.words


def test_missing_files_name_what_to_do(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r'speeches\.jsonl.*shakespeare\.sqlite'):
    load(tmp_path)
  with pytest.raises(ValueError, match=r'none\.xz'):
    load(tmp_path, path='none.xz')

  def refuse(*_, **__):
    raise OSError('no route to host')

  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr('urllib.request.urlopen', refuse)
  with pytest.raises(ValueError, match=r'no route.*shakespeare\.sqlite.*\.tff'):
    TASKS['shakespeare']()
  assert not (tmp_path / '.tff' / 'shakespeare.sqlite').exists()
