"""Suggests the next word, or the class of a text, with the model of a run.

  python -m experiments.predict --run=runs/first --text="returns the number of"

Without --text it reads lines until an empty one or Ctrl-D. It also works while
the run is training: it reads the newest checkpoint.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator

from absl import flags as absl_flags

from si_federated import config, flags

_RUN = absl_flags.DEFINE_string(
  'run', None, 'The folder of the run, such as runs/first.', required=True
)
_TEXT = absl_flags.DEFINE_multi_string(
  'text',
  None,
  'The beginning of a sentence; can be repeated. Read from the terminal if not '
  'given.',
)
_TOP = absl_flags.DEFINE_integer(
  'top',
  5,
  'The number of words (or characters, if those are its tokens) to suggest, or '
  'of classes to show.',
  lower_bound=1,
)
_CONTINUE = absl_flags.DEFINE_integer(
  'continue_words',
  0,
  'Also continue the text by up to this many words (or characters), taking the '
  'most likely one each time.',
  lower_bound=0,
)


def main() -> None:
  """Prints suggestions for each text."""
  from si_federated.inference import trained_model
  from si_federated.privacy import ledger

  trained = trained_model.load_model(_RUN.value)
  vocabulary = trained.vocabulary
  print(f'Model of {trained.checkpoint}.', file=sys.stderr)
  if trained.privacy.get('private'):
    print(ledger.sentence(trained.privacy), file=sys.stderr)

  def name(ids: list[int]) -> str:
    if ids == [vocabulary.end]:
      return '(end of sentence)'
    # Show an invisible character by its name.
    return vocabulary.text_of(ids).strip() or ' '.join(vocabulary.decode(ids))

  if trained.classes and _CONTINUE.value:
    raise config.ConfigError(
      f'--continue_words is for language models; {_RUN.value} is a classifier.'
    )

  def show_classes(text: str) -> None:
    print(text)
    for name, probability in trained.class_probabilities(text)[: _TOP.value]:
      print(f'  {probability:6.1%}  {name}')

  def show_words(text: str) -> None:
    ids = vocabulary.encode(text)
    print(f'{vocabulary.text_of(ids)} ...')
    for word, probability in trained.next_words(ids, top=_TOP.value):
      print(f'  {probability:6.1%}  {name(word)}')
    longer = list(ids)
    for _ in range(_CONTINUE.value):
      ((word, _),) = trained.next_words(longer, top=1)
      if word == [vocabulary.end]:
        break
      longer += word
    if _CONTINUE.value:
      print(f'  {vocabulary.text_of(longer)}')

  show = show_classes if trained.classes else show_words
  for text in _TEXT.value or _typed_lines():
    show(text)


def _typed_lines() -> Iterator[str]:
  interactive = sys.stdin.isatty()
  encoding = codecs.lookup(sys.stdin.encoding).name
  if encoding in ('utf-8', 'ascii') and isinstance(sys.stdin, io.TextIOWrapper):
    # ASCII text is UTF-8, too. A byte order mark is not part of a word. In some
    # locales Python would decode invalid bytes to surrogate characters.
    encoding = 'utf-8'
    sys.stdin.reconfigure(encoding='utf-8-sig', errors='strict')
  while True:
    if interactive:
      print('text> ', end='', flush=True)
    try:
      line = sys.stdin.readline()
    except UnicodeDecodeError as error:
      raise ValueError(
        f'The lines read are not {encoding} text ({error.reason}, byte '
        f'0x{error.object[error.start]:02x}); if they are latin1, convert them '
        'with `iconv -f latin1 -t utf8`, or set PYTHONIOENCODING=latin1.'
      ) from error
    line = line.lstrip('\ufeff')  # Left inside by joining files.
    if not line or (interactive and not line.strip()):
      return
    if line.strip():
      yield line.strip()


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
