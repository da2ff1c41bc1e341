"""The docstrings task on small made-up installations."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from si_federated.tasks.docstring_corpus import mining
from si_federated.tasks.docstrings import open_corpus
from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.splits import split_of


def prose(topic, count):
  return '\n\n'.join(
    f'This is the number {i} of the lines on the {topic} topic.'
    for i in range(count)
  )


def write(root, name, text):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')


@pytest.fixture
def root(tmp_path):
  """An installation of 60 modules and all kinds of special cases."""
  root = tmp_path / 'site-packages'
  for i in range(60):
    write(root, f'pack/mod{i}.py', f'"""{prose(f"t{i}", 6)}"""\n')
  write(root, 'pack/__init__.py', '"""Only one line is in this one."""\n')
  return root


def corpus(tmp_path, root, **options):
  options.setdefault('min_sentences', 4)
  return open_corpus(str(tmp_path / 'cache'), [str(root)], **options)


def clients(store):
  """Returns client name -> sentences as strings."""
  found = {}
  for arrays in store.splits.values():
    population = ClientPopulation(arrays, len(store.words), 30)
    for i in range(len(population)):
      start, stop = arrays.client_offsets[i : i + 2]
      found[population.client_id(i)] = [
        ' '.join(
          '?' if t == 65_535 else store.words[t]
          for t in arrays.tokens[
            arrays.sentence_offsets[j] : arrays.sentence_offsets[j + 1]
          ]
        )
        for j in range(start, stop)
      ]
  return found


def test_each_module_is_a_client_in_its_split(tmp_path, root):
  store = corpus(tmp_path, root)
  assert set(clients(store)) == {f'pack.mod{i}' for i in range(60)}
  for split, arrays in store.splits.items():
    population = ClientPopulation(arrays, len(store.words), 30)
    for i in range(len(population)):
      assert split_of(population.client_id(i)) == split
  held = [n for n in clients(store) if split_of(n) != 'train']
  # Words of held-out modules are not in the vocabulary.
  assert held
  assert not {'t' + name[8:] for name in held} & set(store.words)
  assert store.meta['notes']['small_modules'] == 1


def test_docstrings_of_every_kind_and_nothing_else(tmp_path, root):
  write(
    root,
    'kinds.py',
    '''"""The module has a docstring of its own."""
import os
TEXT = """This is a string but it is not a docstring."""
if os:
  class Thing:
    """The class has a docstring of its own."""
    def method(self):
      """The method has a docstring of its own."""
      def inner():
        """The inner one has a docstring of its own."""
  async def job():
    """The coroutine has a docstring of its own."""
try:
  pass
except ImportError:
  def fallback():
    """The fallback has a docstring of its own."""
''',
  )
  write(root, 'nested/deep/er.py', f'"""{prose("deep", 5)}"""')
  mined = mining.mine_file(mining.SourceFile(str(root / 'kinds.py'), 'kinds'))
  assert mined.sentences is not None
  assert [s.split()[1] for s in mined.sentences] == [
    'module', 'class', 'method', 'inner', 'coroutine', 'fallback',
  ]  # fmt: skip
  assert 'nested.deep.er' in clients(corpus(tmp_path, root))


def test_nothing_is_imported_or_run(tmp_path, root):
  trace = tmp_path / 'trace'
  write(
    root,
    'evil.py',
    f'"""{prose("evil", 6)}"""\nopen({str(trace)!r}, "w")\n1 / 0\n',
  )
  assert 'evil' in clients(corpus(tmp_path, root))
  assert not trace.exists()
  assert 'evil' not in sys.modules


def test_copies_and_boilerplate_stay_in_one_client(tmp_path, root):
  licence = 'You may use this under the terms of the licence.'
  write(root, 'lib/core.py', f'"""{licence}\n\n{prose("core", 6)}"""')
  write(
    root, 'app/_vendor/lib/core.py', f'"""{licence}\n\n{prose("core", 6)}"""'
  )
  write(root, 'app/main.py', f'"""{licence}\n\n{prose("main", 6)}"""')
  twice = prose('twice', 6)
  write(root, 'app/twice.py', f'"""{twice}"""\ndef f():\n  """{twice}"""')
  found = clients(corpus(tmp_path, root))
  assert 'app._vendor.lib.core' not in found
  assert 'lib.core' in found  # The original, though it sorts later.
  licensed = [n for n, s in found.items() if any('licence' in x for x in s)]
  assert len(licensed) <= 1
  assert len(found['app.main']) + len(found['lib.core']) == 13
  assert len(found['app.twice']) == 6


def test_unreadable_files_are_counted(tmp_path, root):
  text = f'"""{prose("bad", 6)}"""'
  write(root, 'syntax.py', text + '\nprint "python 2"\n')
  (root / 'latin.py').write_bytes(text.encode() + b'\n# \xe9\n')
  write(root, 'null.py', text + '\x00')
  write(root, 'deep.py', text + '\n' + '(' * 5000 + ')' * 5000)
  store = corpus(tmp_path, root)
  assert store.meta['notes']['unreadable_files'] == 4
  assert len(clients(store)) == 60


def test_left_out_folders_and_files(tmp_path, root):
  text = f'"""{prose("out", 6)}"""'
  for name in (
    'si_federated/models.py',
    'experiments/train.py',
    'ray/util/queue.py',
    'sentencepiece/trainer.py',
    'keras_nlp/models.py',
    'rich/table.py',
    '__pycache__/cached.py',
    'not-a-package/mod.py',
    'pack/thing_pb2.py',
    'pack/notes.txt',
  ):
    write(root, name, text)
  assert set(clients(corpus(tmp_path, root))) == {
    f'pack.mod{i}' for i in range(60)
  }


def test_built_once_and_again_when_the_installation_changes(
  tmp_path, root, finished_stores
):
  (root / 'pack-1.0.dist-info').mkdir()
  first = corpus(tmp_path, root)
  assert clients(corpus(tmp_path, root)) == clients(first)
  # This project's own installation is not part of the data, nor is an extra's.
  (root / 'PyYAML-6.0.dist-info').mkdir()
  (root / 'sentencepiece-0.2.3.dist-info').mkdir()
  (root / 'keras_nlp-0.6.4.dist-info').mkdir()
  (root / 'markdown_it_py-4.3.0.dist-info').mkdir()
  (root / 'si_federated-0.1.0.dist-info').mkdir()
  (root / '__editable__.si_federated-0.1.0.pth').write_text('')
  corpus(tmp_path, root)
  assert len(finished_stores) == 1
  (root / 'pack-1.0.dist-info').rename(root / 'pack-1.1.dist-info')
  corpus(tmp_path, root)
  assert len(finished_stores) == 2
  corpus(tmp_path, root, min_sentences=5)
  assert len(finished_stores) == 3


def test_hardly_anything_installed(tmp_path):
  root = tmp_path / 'site-packages'
  write(root, 'only.py', f'"""{prose("only", 6)}"""')
  with pytest.raises(ValueError, match='too few docstrings.*synthetic'):
    corpus(tmp_path, root)
  assert os.listdir(tmp_path / 'cache') == []


def test_cache_that_cannot_be_written(tmp_path, root):
  (tmp_path / 'cache').write_text('in the way')
  with pytest.raises(ValueError, match='cannot be written'):
    corpus(tmp_path, root)


def test_workers_and_one_process_find_the_same(root):
  sources = mining.find_sources([str(root)])
  alone = list(mining.mine(sources, num_workers=1))
  assert [m.module for m in alone] == [s.module for s in sources]
  assert list(mining.mine(sources, num_workers=3)) == alone


def test_without_other_processes_the_work_is_done_here(root, monkeypatch):
  sources = mining.find_sources([str(root)])
  expected = list(mining.mine(sources, num_workers=1))
  for executable in ('/no/such/python', '', None, '/bin/false'):
    monkeypatch.setattr(sys, 'executable', executable)
    assert list(mining.mine(sources, num_workers=2)) == expected


def test_builds_in_a_program_without_a_main_guard(tmp_path, root):
  program = tmp_path / 'program.py'
  program.write_text(
    'from si_federated.tasks.docstrings import open_corpus\n'
    f'store = open_corpus({str(tmp_path / "c")!r}, [{str(root)!r}],'
    ' min_sentences=4)\n'
    'print("clients", len(store.splits["train"].client_offsets) - 1)\n'
  )
  done = subprocess.run(
    [sys.executable, str(program)],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.count('clients') == 1
  assert 'Reading docstrings' in done.stderr


def test_the_running_installation_is_found():
  roots = mining.installation_roots()
  sources = mining.find_sources(roots)
  modules = {source.module for source in sources}
  assert {'json.decoder', 'numpy.linalg', 'pytest', 'tqdm.std'} <= modules
  assert not any('site-packages' in module for module in modules)
  # Copies come after all originals.
  order = [s.module for s in sources]
  assert order.index('pip._vendor.idna') > order.index('zipfile')


def test_bad_option(tmp_path, root):
  with pytest.raises(ValueError, match='min_sentences'):
    corpus(tmp_path, root, min_sentences=0)
