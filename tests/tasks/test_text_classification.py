"""Tests of the task that classifies texts."""

from __future__ import annotations

import gzip
import json
import lzma
from typing import Any

import numpy as np
import pytest

from si_federated.tasks import ClassificationTask, labelled_text
from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.subwords import sentencepiece
from si_federated.tasks.text_classification import text_classification
from si_federated.tasks.token_arrays import TokenArrays

_ROWS = [
  (f'{animal} number {i} sees the {animal}', animal, f'owner{i % 3}')
  for i in range(10)
  for animal in ('cat', 'dog', 'eel')
]


def _csv(rows=_ROWS, header='text,label,client'):
  return '\n'.join([header, *(','.join(row) for row in rows)]) + '\n'


def _jsonl(rows=_ROWS):
  return ''.join(
    json.dumps(dict(zip(('text', 'label', 'client'), row))) + '\n'
    for row in rows
  )


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'pets.csv'
  file.write_text(_csv())
  return str(file)


def _task(path, **options):
  given = {'vocab_size': 50, 'sequence_length': 8, **options}
  return text_classification(path=path, **given)


def _texts(task, population, index):
  return [
    task.vocabulary.text_of(row[row > 0])
    for row in population.examples(index)[:, :-1]
  ]


def test_examples_are_ids_and_label(path):
  task = _task(path, num_clients=2, held_out=0.1)
  assert isinstance(task, ClassificationTask)
  assert task.classes == ('cat', 'dog', 'eel')
  assert [task.train.num_examples(i) for i in range(2)] == [12, 12]
  rows = task.train.examples(0)
  assert rows.shape == (12, 9) and rows.dtype == np.int32
  vocabulary = task.vocabulary
  for text, row in zip(_texts(task, task.train, 0), rows):
    words = text.split()
    animal = task.classes[row[-1]]
    assert words[0] == '<BOS>' and words[-1] == '<EOS>'
    assert words[1:3] == [animal, 'number']
    assert (row[:-1][len(words) :] == vocabulary.padding).all()
  # "number", "sees" and "the" are in all texts; each class has 8 of 24 left.
  assert set(vocabulary.words[:3]) == {'number', 'sees', 'the'}
  assert task.model_arguments == {
    'vocab_size': vocabulary.size,
    'num_classes': 3,
  }


def test_texts_are_cut(path):
  task = _task(path, sequence_length=4)
  row = task.validation.examples(0)[0]
  assert row[0] == task.vocabulary.beginning
  assert row[3] == task.vocabulary.end
  assert len(row) == 5


def test_no_text_is_in_two_splits(path):
  task = _task(path, num_clients=4, split='dirichlet', alpha=0.1)
  found = []
  for split in (task.train, task.validation, task.test):
    for index in range(len(split)):
      found += _texts(task, split, index)
  assert len(found) == len(_ROWS)
  # Numbers of training texts alone are words.
  known = [text for text in found if '<UNK>' not in text]
  assert len(set(known)) == len(known)
  assert len(task.validation) == len(task.test) == 1
  labels = task.validation.examples(0)[:, -1]
  assert sorted(labels) == [0, 1, 2]


def test_clients_by_column(path):
  task = _task(path, client='client')
  assert {task.train.client_id(i) for i in range(len(task.train))} == {
    'owner0',
    'owner1',
    'owner2',
  }
  for index in range(3):
    owner = task.train.client_id(index)
    for text in _texts(task, task.train, index):
      number = text.split()[3]
      assert number == '<UNK>' or f'owner{int(number) % 3}' == owner


def test_it_depends_on_the_seed_alone(path):
  def rows(seed):
    task = _task(path, num_clients=3, seed=seed)
    return [task.train.examples(i).tolist() for i in range(3)]

  assert rows(0) == rows(0)
  assert rows(0) != rows(1)


def test_training_order_is_that_of_language_tasks(path):
  """Batches of a client have the order of `ClientPopulation`."""
  task = _task(path, num_clients=1)
  size = task.train.num_examples(0)
  other = ClientPopulation(
    TokenArrays.from_clients({'x': [[i] for i in range(size)]}), 100, 1
  )
  options: dict[str, Any] = {
    'epochs': 2,
    'max_elements': 30,
    'seed': (1, 2),
  }
  order = other.training_examples(0, **options)[:, 1] - 1
  np.testing.assert_array_equal(
    task.train.training_examples(0, **options), task.train.examples(0)[order]
  )
  batches = list(task.train.client_batches(0, batch_size=9, **options))
  assert [len(y) for _, y in batches] == [9, 9, 9, 3]
  x, y = batches[0]
  np.testing.assert_array_equal(x, task.train.examples(0)[order[:9], :-1])
  np.testing.assert_array_equal(y, task.train.examples(0)[order[:9], -1])


@pytest.mark.parametrize(
  ('name', 'write'),
  [
    ('pets.jsonl', lambda path, text: path.write_text(text)),
    ('pets.jsonl.gz', lambda p, t: p.write_bytes(gzip.compress(t.encode()))),
    ('pets.jsonl.xz', lambda p, t: p.write_bytes(lzma.compress(t.encode()))),
  ],
)
def test_json_lines_are_the_same(path, tmp_path, name, write):
  write(tmp_path / name, _jsonl())
  one, other = _task(path), _task(name, data_dir=str(tmp_path))
  assert one.vocabulary == other.vocabulary
  np.testing.assert_array_equal(one.test.examples(0), other.test.examples(0))


def test_quoted_fields_and_numbers(tmp_path):
  rows = [f'"cat, ""{i}""\nsat",{i % 2}' for i in range(8)]
  (tmp_path / 'x.csv').write_text('\n'.join(['body,topic', *rows]))
  task = _task(
    str(tmp_path / 'x.csv'), text='body', label='topic', num_clients=1
  )
  assert task.classes == ('0', '1')
  assert 'sat' in task.vocabulary.words


@pytest.mark.parametrize(
  ('content', 'options', 'message'),
  [
    (_csv(header='text,kind,client'), {}, 'has no column label; it has text'),
    (_csv() + 'a,b\n', {}, r'pets.csv:32: it has 2 fields, but the header 3'),
    (_csv() + ' ,cat,x\n', {}, r'pets.csv:32: text is empty'),
    (_csv() + 'cat,,x\n', {}, r'pets.csv:32: label is empty'),
    (_csv() + '"cat,b,x\n', {}, r'pets.csv:3\d: it is not CSV'),
    (_csv(_ROWS[::3]), {}, "are of one class, 'cat'"),
    (_csv([]), {}, 'has no examples'),
    ('', {}, 'has no column text and no column label; it has none'),
    (_csv(_ROWS[:5]), {}, "Class 'cat' has 2 examples"),
    (_csv(), {'num_clients': 25}, '25 clients are more than the 24 training'),
    (_csv(), {'split': 'client'}, 'needs the name of a column by client'),
    (_csv(), {'client': 'who'}, 'has no column who'),
    (_csv(), {'split': 'even'}, "split must be one of iid, label, .*'even'"),
    (_csv(), {'alpha': 0.1}, 'alpha has no effect with split=iid'),
    (_csv(), {'majority': 0.5}, 'majority has no effect with split=iid'),
    (_csv(), {'split': 'dirichlet', 'alpha': 0}, 'alpha must be from 0.0001'),
    (_csv(), {'num_classes': 3}, 'num_classes has no effect with path'),
    (_csv(), {'num_clients': 0}, 'num_clients must be 1 or more'),
    (_csv(), {'held_out': 0.5}, 'held_out must be above 0 and below 0.5'),
    (_csv(), {'seed': -1}, 'seed must be 0 or more'),
    (_csv(), {'sequence_length': 2}, 'sequence_length must be 3 or more'),
    (_csv(), {'examples_per_class': 2}, 'has 2 examples'),
    (_csv([('!', 'a', 'x'), ('?', 'b', 'x')] * 9), {}, None),
  ],
)
def test_bad_input(tmp_path, content, options, message):
  file = tmp_path / 'pets.csv'
  file.write_text(content)
  if message is None:
    _task(str(file), **options)
    return
  with pytest.raises(ValueError, match=message) as error:
    _task(str(file), **options)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (_jsonl() + '{"text": "a"', r'pets.jsonl:31: it is not JSON \('),
    (_jsonl() + '["a"]', r'pets.jsonl:31: it is not a JSON object'),
    (_jsonl() + '{"text": "a"}', r'pets.jsonl:31 has no column label'),
    (
      _jsonl() + '{"text": 1.5, "label": "a"}',
      r'pets.jsonl:31: text is not text',
    ),
  ],
)
def test_bad_json(tmp_path, content, message):
  file = tmp_path / 'pets.jsonl'
  file.write_text(content)
  with pytest.raises(ValueError, match=message):
    _task(str(file))


def test_missing_and_damaged_files(tmp_path):
  with pytest.raises(ValueError, match=r'none\.csv cannot be read'):
    _task('none.csv', data_dir=str(tmp_path))
  with pytest.raises(ValueError, match=r'x\.txt is neither \.csv nor'):
    _task('x.txt')
  whole = lzma.compress(_jsonl().encode())
  (tmp_path / 'cut.jsonl.xz').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r'cut\.jsonl\.xz cannot be read'):
    _task(str(tmp_path / 'cut.jsonl.xz'))
  (tmp_path / 'latin.csv').write_bytes(_csv().encode() + b'caf\xe9,cat,x\n')
  with pytest.raises(ValueError, match='not UTF-8 text'):
    _task(str(tmp_path / 'latin.csv'))


def test_examples_per_class(path):
  task = _task(path, examples_per_class=5, num_clients=1)
  assert task.train.num_examples(0) == 9


def test_subwords(path):
  pytest.importorskip('sentencepiece')
  task = _task(path, num_clients=2, sequence_length=30)
  pieces = sentencepiece(size=40)(task)
  assert pieces.classes == task.classes
  assert pieces.vocabulary != task.vocabulary
  for index in range(2):
    np.testing.assert_array_equal(
      pieces.train.examples(index)[:, -1], task.train.examples(index)[:, -1]
    )
  text = pieces.vocabulary.text_of(pieces.train.examples(0)[0, 1:8])
  assert text.split()[0] in ('cat', 'dog', 'eel')


def _speeches(folder):
  lines = [
    {'text': f'{word} {i}', 'play': play, 'speaker': speaker}
    for i in range(6)
    for play, speaker, word in (
      ('Hamlet', 'Ghost', 'swear'),
      ('Hamlet', 'Hamlet', 'words'),
      ('Lear', 'Fool', 'nuncle'),
      ('Lear', 'Lear', 'nothing'),
    )
  ]
  (folder / 'speeches.jsonl').write_text('\n'.join(map(json.dumps, lines)))


def test_speeches_by_role_and_by_play(tmp_path):
  _speeches(tmp_path)

  def task(**options):
    return text_classification(
      data_dir=str(tmp_path), sequence_length=8, num_clients=2, **options
    )

  roles = task(data='roles', num_classes=4)
  assert roles.classes == (
    'Hamlet/Ghost',
    'Hamlet/Hamlet',
    'Lear/Fool',
    'Lear/Lear',
  )
  plays = task(data='plays', num_classes=2)
  assert plays.classes == ('Hamlet', 'Lear')
  with pytest.raises(ValueError, match='num_classes must be from 2 to 2'):
    task(data='plays', num_classes=3)
  by_role = text_classification(
    data_dir=str(tmp_path),
    sequence_length=8,
    data='plays',
    num_classes=2,
    split='client',
  )
  assert len(by_role.train) == 4
  with pytest.raises(ValueError, match='data must be one of'):
    task(data='sonnets')


def test_docstrings_by_package(tmp_path, monkeypatch):
  root = tmp_path / 'site-packages'
  for package, word in (('aa', 'array'), ('bb', 'table'), ('cc', 'plot')):
    # Enough modules for each split of the store, which depends on their names.
    for i in range(30):
      module = root / package / f'm{i}.py'
      module.parent.mkdir(parents=True, exist_ok=True)
      module.write_text(
        '\n'.join(
          f'def f{j}():\n  """Returns {word} of module {i} by number {j}."""'
          for j in range(17 if package != 'cc' else 16)
        )
      )
  monkeypatch.setattr(
    labelled_text.mining,
    'installation_roots',
    lambda: [str(root)],
  )
  task = text_classification(
    data_dir=str(tmp_path), num_classes=2, split='client'
  )
  assert task.classes == ('aa', 'bb')
  assert len(task.train) > 40
  assert task.train.client_id(0).split('.')[0] in ('aa', 'bb')
  facts = task.facts(task.validation.sample_examples(100, seed=0))
  with pytest.raises(ValueError, match='max_examples must be 1 or more'):
    task.validation.sample_examples(0, seed=0)
  assert facts['reference_accuracy']['majority'] == pytest.approx(0.5)
  assert facts['num_train_examples'] == 816
