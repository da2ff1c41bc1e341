"""Trains a language model centrally, as the start of a federated run.

On text files, in the vocabulary of the federated task:

  python -m experiments.pretrain --experiment_name=before \\
    --task=stackoverflow --data_dir=DATA --model=transformer:size=small \\
    --text_files="books/**/*.txt"

and then

  python -m experiments.train --experiment_name=after \\
    --task=stackoverflow --data_dir=DATA --model=transformer:size=small \\
    --initial_model=runs/before

Without --text_files it trains on the sentences of all the task's training
clients. With --text_files but no --task, the vocabulary is that of the run
--vocabulary_from, or else consists of the words of the text. Perplexity is
measured on the task's validation clients, as in experiments.train; without a
task, on a tenth of the text.

The folder runs/NAME is like that of experiments.train, with steps instead of
rounds: the same command resumes from its newest checkpoint, and
experiments.predict, experiments.export and experiments.report can read it.
"""

from __future__ import annotations

import os

from absl import flags as absl_flags

from si_federated import flags

flags.define_config_flags(
  (
    'experiment_name',
    'task',
    'data_dir',
    'vocabulary',
    'model',
    'transform',
    'initial_model',
    'reinitialized_variables',
    'sequence_length',
    'vocab_size',
    'num_validation_examples',
    'stop_when_diverged',
    'model_seed',
  )
)
absl_flags.mark_flag_as_required('experiment_name')
_ROOT = absl_flags.DEFINE_string(
  'root_output_dir', 'runs', 'The folder for the folders of runs.'
)
_TEXT_FILES = absl_flags.DEFINE_string(
  'text_files',
  None,
  'Plain text to train on: a file, or a name with wildcards in quotes (** for '
  'all folders below); .gz and .xz are unpacked. With --task, the text is '
  "encoded in the task's vocabulary and replaces its training clients' "
  'sentences.',
)
_TEXT_BY_LINE = absl_flags.DEFINE_boolean(
  'text_by_line',
  False,
  'Whether line ends of --text_files also end sentences; otherwise lines are '
  'wrapped text, and an empty line ends a paragraph.',
)
_TEXT_ENCODING = absl_flags.DEFINE_string(
  'text_encoding',
  None,
  'The encoding of --text_files, such as latin-1 or cp1252. By default, a byte '
  'order mark gives it; without one it is UTF-8.',
)
_VOCABULARY_FROM = absl_flags.DEFINE_string(
  'vocabulary_from',
  None,
  'The folder of a run whose vocabulary to use for --text_files without '
  '--task.',
)
_LEARNING_RATE = absl_flags.DEFINE_float(
  'learning_rate', 0.001, 'The learning rate of Adam.'
)
_NUM_STEPS = absl_flags.DEFINE_integer(
  'num_steps', 10_000, 'The number of steps.'
)
_BATCH_SIZE = absl_flags.DEFINE_integer('batch_size', 64, 'Sentences per step.')
_STEPS_PER_EVAL = absl_flags.DEFINE_integer(
  'steps_per_eval', 500, 'Steps between evaluations, which also write a row.'
)
_STEPS_PER_CHECKPOINT = absl_flags.DEFINE_integer(
  'steps_per_checkpoint', 500, 'Steps between checkpoints.'
)
_DATA_SEED = absl_flags.DEFINE_integer(
  'data_seed', 0, 'The seed of the order of sentences.', lower_bound=0
)
# Otherwise --help would omit the flags of another module.
absl_flags.adopt_module_key_flags(flags)


def main() -> None:
  """Trains, and prints the result."""
  # TensorFlow takes seconds to load, so wrong flags are reported first.
  config = flags.experiment_from_flags()
  names_task = not absl_flags.FLAGS['task'].using_default_value
  from si_federated.pretraining.settings import Settings

  settings = Settings(
    text_files=_TEXT_FILES.value,
    text_by_line=_TEXT_BY_LINE.value,
    text_encoding=_TEXT_ENCODING.value,
    has_task=names_task or _TEXT_FILES.value is None,
    vocabulary_from=_VOCABULARY_FROM.value,
    learning_rate=_LEARNING_RATE.value,
    num_steps=_NUM_STEPS.value,
    batch_size=_BATCH_SIZE.value,
    steps_per_eval=_STEPS_PER_EVAL.value,
    steps_per_checkpoint=_STEPS_PER_CHECKPOINT.value,
    data_seed=_DATA_SEED.value,
  )
  from si_federated.pretraining.run import pretrain

  summary = pretrain(config, settings, _ROOT.value)
  folder = os.path.join(_ROOT.value, config.experiment_name)
  final = summary['final']
  print(
    f'{config.experiment_name}: {summary["rounds"]} steps, '
    f'{summary["num_parameters"]:,} parameters, {summary["secs_total"]:.0f} s '
    f'of training; validation perplexity {final["eval/perplexity"]:.4g}, '
    f'accuracy {final["eval/accuracy"]:.3f}'
  )
  print(f'Start a federated run from it with --initial_model={folder}')


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
