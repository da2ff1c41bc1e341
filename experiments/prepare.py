"""Converts texts of many users to data for --task=stackoverflow.

Input can be a dump of a Stack Exchange site
(https://archive.org/details/stackexchange): Posts.xml, plain or .xz, optionally
with Comments.xml in the same folder; or a .7z archive:

  python -m experiments.prepare --source=stackexchange --input=dump/coffee \\
    --output=data/coffee
  python -m experiments.train --experiment_name=coffee --task=stackoverflow \\
    --data_dir=data/coffee

Or a table with a text and a user in each row, as JSON Lines or CSV, plain or
compressed (.xz, .gz):

  python -m experiments.prepare --source=jsonl --input=messages.jsonl \\
    --text_column=text --client_column=user --output=data/messages

The columns creation_date, title, score, tags and type are kept if present.

Or a tree of source files (C, C++, Java, JavaScript, TypeScript, Go, Rust,
Python) and documents (.rst, .md). Their comments become sentences, without
repetitions, and each file becomes a user:

  python -m experiments.prepare --source=comments --input=linux-source-6.1 \\
    --min_sentences=8 --output=data/comments

The output folder contains stackoverflow.sqlite, client data in TFF's format,
and the word and tag counts of the training users.
"""

from __future__ import annotations

from absl import flags as absl_flags

from si_federated import config, flags

_SOURCE = absl_flags.DEFINE_enum(
  'source',
  None,
  ['stackexchange', 'jsonl', 'csv', 'comments'],
  'The kind of the input.',
)
_INPUT = absl_flags.DEFINE_string('input', None, 'The file or the folder.')
_OUTPUT = absl_flags.DEFINE_string(
  'output', None, 'The folder to write to, made if missing.'
)
_SPLIT = absl_flags.DEFINE_enum(
  'split',
  None,
  ['date', 'hash'],
  "How to split texts. date, the default for dumps, is TFF's split: users "
  'whose number is a multiple of 10 are held out, and later texts are for '
  'tests. hash, the default for tables and comments, holds out a tenth of the '
  'users, and takes another tenth for tests.',
)
_SPLIT_DATE = absl_flags.DEFINE_string(
  'split_date', '2018-01-01', 'Texts from this day on are for tests.'
)
_COMMENTS = absl_flags.DEFINE_bool(
  'comments', True, "Include a dump's comments; TFF's data have none."
)
_MIN_SENTENCES = absl_flags.DEFINE_integer(
  'min_sentences', 1, "Leave out users with fewer sentences (TFF's data: 100)."
)
_TEXT_COLUMN = absl_flags.DEFINE_string(
  'text_column', 'text', 'The column of a table that contains the text.'
)
_CLIENT_COLUMN = absl_flags.DEFINE_string(
  'client_column',
  'client_id',
  "The column of a table that contains the user's name.",
)
_IS_HTML = absl_flags.DEFINE_bool(
  'html', False, 'Texts of a table are HTML; those of dumps always are.'
)
_ENCODING = absl_flags.DEFINE_string(
  'encoding',
  None,
  'The encoding of a table, such as latin-1 or cp1252, or of those files of a '
  'source tree that are not UTF-8. By default, a byte order mark gives the '
  'encoding of a table; without one it is UTF-8.',
)
_OVERWRITE = absl_flags.DEFINE_bool(
  'overwrite', False, 'Replace the content of the output folder.'
)
for _name in ('source', 'input', 'output'):
  absl_flags.mark_flag_as_required(_name)


def main() -> None:
  """Prepares the data and prints a summary."""
  # TensorFlow takes seconds to load; report invalid flags first.
  from si_federated import preparation

  default = 'date' if _SOURCE.value == 'stackexchange' else 'hash'
  try:
    settings = preparation.Settings(
      source=_SOURCE.value,
      input=_INPUT.value,
      output=_OUTPUT.value,
      split=_SPLIT.value or default,
      split_date=_SPLIT_DATE.value,
      comments=_COMMENTS.value,
      min_sentences=_MIN_SENTENCES.value,
      text_column=_TEXT_COLUMN.value,
      client_column=_CLIENT_COLUMN.value,
      is_html=_IS_HTML.value,
      encoding=_ENCODING.value,
      overwrite=_OVERWRITE.value,
    )
  except ValueError as error:
    raise config.ConfigError(str(error)) from error
  summary = preparation.prepare(settings)
  for note in summary['notes']:
    print(note)
  for split, clients in summary['clients'].items():
    sentences = summary['sentences'][split]
    print(f'{split}: {clients:,} users, {sentences:,} sentences')
  print(f'The data are in {settings.output}.')


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
