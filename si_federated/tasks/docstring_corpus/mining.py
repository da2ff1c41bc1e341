"""Finds the docstrings of installed Python modules without importing them."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from typing import Iterator, Sequence

from si_federated.tasks.docstring_corpus import cleaning

# Increment it when the cleaning or the choice of modules changes, so that
# corpora are rebuilt.
CLEANER_VERSION = 1

_SITE_NAMES = ('site-packages', 'dist-packages')
# Left out to keep results comparable: this project's own modules, and packages
# that extras have added since the first results (Ray, subword vocabularies,
# BERT models, the JAX runtime).
_OWN_PACKAGES = ('si_federated', 'experiments')
_RAY_PACKAGES = (
  '_yaml',
  'click',
  'filelock',
  'msgpack',
  'pyyaml',
  'ray',
  'yaml',
)
_SUBWORD_PACKAGES = ('sentencepiece',)
_BERT_PACKAGES = (
  'keras_core',
  'keras_nlp',
  'markdown_it',
  'markdown_it_py',
  'mdurl',
  'namex',
  'regex',
  'rich',
  'tensorflow_hub',
  'tensorflow_text',
  'tf_keras',
)
_JAX_PACKAGES = ('tf2jax',)
_TEST_PACKAGES = ('coverage',)
_LEFT_OUT = frozenset(
  (
    *_OWN_PACKAGES,
    *_RAY_PACKAGES,
    *_SUBWORD_PACKAGES,
    *_BERT_PACKAGES,
    *_JAX_PACKAGES,
    *_TEST_PACKAGES,
  )
)
_VENDORED = frozenset(
  ('_vendor', '_vendored', 'vendor', 'vendored', 'extern', 'externals')
) | {'third_party', '_distutils', 'compat', 'packages'}
# Larger modules are data or generated code.
MAX_BYTES = 4_000_000
# With fewer files, starting other processes does not pay off.
_MIN_SHARED_FILES = 50
_MIN_BYTES_PER_SENTENCE = 20
_QUOTED = re.compile(rb'("""|\'\'\')(.*?)\1', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class SourceFile:
  """A Python file and the dotted name of the module in it."""

  path: str
  module: str


@dataclasses.dataclass(frozen=True)
class MinedModule:
  """The sentences of one file, or None if it could not be read."""

  module: str
  sentences: tuple[str, ...] | None


def installation_roots() -> list[str]:
  """Returns the folders with installed packages and the standard library."""
  paths = sysconfig.get_paths()
  candidates = [paths['purelib'], paths['platlib']]
  candidates += [
    entry for entry in sys.path if os.path.basename(entry) in _SITE_NAMES
  ]
  candidates += [paths['stdlib'], paths['platstdlib']]
  roots: list[str] = []
  for path in map(os.path.realpath, candidates):
    if os.path.isdir(path) and path not in roots:
      roots.append(path)
  return roots


def installation_fingerprint(roots: Sequence[str]) -> str:
  """Returns a hash of the installation: packages, versions, interpreter.

  Args:
    roots: Folders, from `installation_roots`.

  Returns:
    16 hexadecimal digits that change when a package is added, removed or
    changes its version, with the interpreter's version, or with the cleaner's.
  """
  digest = hashlib.sha256()
  digest.update(f'{CLEANER_VERSION} {sys.version}'.encode())
  for root in roots:
    with contextlib.suppress(OSError):
      for name in sorted(os.listdir(root)):
        if _counts_as_installed(name):
          digest.update(os.fsencode(name) + b'\n')
    digest.update(b'\n')
  return digest.hexdigest()[:16]


def _counts_as_installed(name: str) -> bool:
  return not (
    name.startswith(('.', '~', '__editable__', '__pycache__'))
    or name.partition('.')[0].partition('-')[0].lower() in _LEFT_OUT
  )


def find_sources(roots: Sequence[str]) -> list[SourceFile]:
  """Lists the modules below the given folders, each name once.

  Vendored copies come last, so that originals keep sentences that both contain.

  Args:
    roots: Folders with packages at their top level.

  Returns:
    Files in an order that depends on the modules' names alone.
  """
  found: dict[str, str] = {}
  for root in roots:
    for folder, folders, files in os.walk(root):
      is_top = folder == root
      folders[:] = sorted(
        name
        for name in folders
        if name.isidentifier()
        and name not in ('__pycache__', *_SITE_NAMES)
        and not (is_top and name in _LEFT_OUT)
      )
      relative = os.path.relpath(folder, root)
      parts = [] if relative == os.curdir else relative.split(os.sep)
      for name in sorted(files):
        stem, extension = os.path.splitext(name)
        if extension != '.py' or stem.endswith(('_pb2', '_pb2_grpc')):
          continue
        module = '.'.join(parts if stem == '__init__' else [*parts, stem])
        if module and not (is_top and stem in _LEFT_OUT):
          found.setdefault(module, os.path.join(folder, name))
  order = sorted(
    found, key=lambda m: (not _VENDORED.isdisjoint(m.split('.')), m)
  )
  return [SourceFile(found[module], module) for module in order]


def mine_file(source: SourceFile, min_sentences: int = 1) -> MinedModule:
  """Reads the sentences of one module's docstrings; never runs the module.

  Args:
    source: The file.
    min_sentences: The least number that is useful to the caller. Files with too
      few characters between triple quotes to reach it are not parsed.

  Returns:
    The sentences, or None for a file that is not valid Python in UTF-8.
  """
  try:
    if os.path.getsize(source.path) > MAX_BYTES:
      return MinedModule(source.module, None)
    with open(source.path, 'rb') as file:
      content = file.read()
    quoted = sum(len(match.group(2)) for match in _QUOTED.finditer(content))
    if quoted < _MIN_BYTES_PER_SENTENCE * min_sentences:
      return MinedModule(source.module, ())
    content.decode('utf-8')
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      tree = ast.parse(content)
    found: list[str] = []
    for docstring in _docstrings(tree):
      found.extend(cleaning.sentences(docstring))
  except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
    return MinedModule(source.module, None)
  return MinedModule(source.module, tuple(found))


def _docstrings(tree: ast.Module) -> Iterator[str]:
  """Yields docstrings in the order of the source."""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  pending: list[ast.AST] = [tree]
  while pending:
    node = pending.pop()
    if isinstance(node, kinds):
      docstring = ast.get_docstring(node, clean=False)
      if docstring:
        yield docstring
    # Expressions contain no definitions, so only statements are searched.
    children = [
      child
      for child in ast.iter_child_nodes(node)
      if isinstance(child, (ast.stmt, ast.excepthandler))
    ]
    pending.extend(reversed(children))


# The worker gets empty stand-ins for the packages, because importing them would
# load TensorFlow. A command rather than `multiprocessing`, so that the caller's
# main module does not run again, TensorFlow's threads are not forked, and it
# works in a notebook.
_WORKER = """
import sys, types
for name, path in (('si_federated', sys.argv[1]),
                   ('si_federated.tasks', sys.argv[2])):
  package = types.ModuleType(name)
  package.__path__ = [path]
  sys.modules[name] = package
from si_federated.tasks.docstring_corpus import mining
mining.serve()
"""


def serve() -> None:
  """Worker: reads a JSON list of files, writes a JSON line for each."""
  min_sentences, files = json.load(sys.stdin)
  gc.disable()  # Syntax trees have no cycles: collecting only costs time.
  try:
    for path, module in files:
      mined = mine_file(SourceFile(path, module), min_sentences)
      print(json.dumps(mined.sentences))
    sys.stdout.flush()
  except BrokenPipeError:  # The builder has ended.
    os._exit(0)


def mine(
  sources: Sequence[SourceFile],
  *,
  min_sentences: int = 1,
  num_workers: int | None = None,
) -> Iterator[MinedModule]:
  """Mines files with several processes, in the order given.

  Args:
    sources: The files.
    min_sentences: As for `mine_file`.
    num_workers: The number of processes; None means one a core, at most 8. If
      none can be started, or one dies, this process does the work.

  Yields:
    One record for each file.
  """
  if num_workers is None:
    num_workers = min(os.cpu_count() or 1, 8)
  workers: list[subprocess.Popen[bytes]] = []
  try:
    if num_workers > 1 and len(sources) >= _MIN_SHARED_FILES:
      with contextlib.suppress(OSError, ValueError, TypeError):
        for _ in range(num_workers):
          workers.append(_start_worker())
        for index, worker in enumerate(workers):
          share = sources[index::num_workers]
          _send(worker, [min_sentences, [[s.path, s.module] for s in share]])
    for index, source in enumerate(sources):
      line = b''
      if len(workers) == num_workers:
        line = workers[index % num_workers].stdout.readline()  # type: ignore
      yield _parse_line(source, line) or mine_file(source, min_sentences)
  finally:
    for worker in workers:
      worker.kill()
      worker.wait()
      worker.stdout.close()  # type: ignore


def _start_worker() -> subprocess.Popen[bytes]:
  tasks = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  command = [sys.executable, '-I', '-S', '-W', 'ignore', '-c', _WORKER]
  return subprocess.Popen(
    [*command, os.path.dirname(tasks), tasks],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )


def _send(worker: subprocess.Popen[bytes], request: object) -> None:
  worker.stdin.write(json.dumps(request).encode())  # type: ignore
  worker.stdin.close()  # type: ignore


def _parse_line(source: SourceFile, line: bytes) -> MinedModule | None:
  """Returns the record in a worker's line, None when the worker has died."""
  if not line.endswith(b'\n'):
    return None
  found = json.loads(line)
  return MinedModule(source.module, None if found is None else tuple(found))
