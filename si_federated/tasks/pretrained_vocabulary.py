"""Vocabularies of pretrained models, which keep the models' own ids."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
from typing import (
  Any,
  Callable,
  ClassVar,
  Iterable,
  Iterator,
  Optional,
  Sequence,
)

import numpy as np

from si_federated import files
from si_federated.tasks import text_files
from si_federated.tasks.classification_task import ClassificationTask
from si_federated.tasks.vocabulary import Vocabulary

_CONTINUATION = '##'
# Number of texts to tokenize in one call.
_CHUNK = 4096
_BOUNDARY = '\N{LOWER ONE EIGHTH BLOCK}'
WORDPIECE, SENTENCEPIECE = 'wordpiece', 'sentencepiece'


@dataclasses.dataclass(frozen=True)
class PretrainedVocabulary(Vocabulary):
  """The tokens of a pretrained BERT, DistilBERT or ALBERT.

  Ids, special ones included, are those of the pretrained model. KerasNLP's
  tokenizers split the text.

  Attributes:
    words: All tokens, by id.
    kind: `WORDPIECE` (BERT, DistilBERT) or `SENTENCEPIECE` (ALBERT).
    lowercase: Whether text is first lower-cased and stripped of accents; a
      SentencePiece model has its own rules.
    model: The bytes of the SentencePiece model; empty for `WORDPIECE`.
  """

  FILE_NAME: ClassVar[str] = 'pretrained_vocabulary.json'

  kind: str
  lowercase: bool
  model: bytes = dataclasses.field(repr=False)

  @classmethod
  def from_tokenizer(cls, tokenizer: Any) -> PretrainedVocabulary:
    """Returns the vocabulary of a tokenizer.

    Args:
      tokenizer: KerasNLP's `BertTokenizer`, `DistilBertTokenizer` or
        `AlbertTokenizer`.

    Raises:
      ValueError: If its padding is not id 0.
    """
    words = tuple(tokenizer.get_vocabulary())
    is_wordpiece = hasattr(tokenizer, 'lowercase')
    result = cls(
      words,
      WORDPIECE if is_wordpiece else SENTENCEPIECE,
      bool(getattr(tokenizer, 'lowercase', False)),
      b'' if is_wordpiece else base64.b64decode(tokenizer.proto),
    )
    if result.padding:
      raise ValueError(
        f'Its padding token has id {result.padding}, but models expect 0; use '
        'a vocabulary whose first token is padding.'
      )
    return result

  @functools.cached_property
  def _tokenizer(self) -> Any:
    models = _package().models
    if self.kind == WORDPIECE:
      return models.BertTokenizer(list(self.words), lowercase=self.lowercase)
    return models.AlbertTokenizer(self.model)

  @property
  def padding(self) -> int:
    """Id that pads a text to the common length."""
    return self._id('[PAD]', '<pad>')

  @property
  def out_of_vocabulary(self) -> int:
    """Id of words that no other token covers."""
    return self._id('[UNK]', '<unk>')

  @property
  def beginning(self) -> int:
    """Id that begins a text."""
    return self._id('[CLS]')

  @property
  def end(self) -> int:
    """Id that ends a text."""
    return self._id('[SEP]')

  @property
  def size(self) -> int:
    """Number of ids, the `vocab_size` of a model."""
    return len(self.words)

  @functools.cached_property
  def begins_word(self) -> np.ndarray:
    """`[size]` bool: whether a token begins a word."""
    if self.kind == WORDPIECE:
      begins = [not word.startswith(_CONTINUATION) for word in self.words]
    else:
      begins = [word.startswith(_BOUNDARY) for word in self.words]
    return np.array(begins)

  @property
  def _names(self) -> tuple[str, ...]:
    return self.words

  def _id(self, *names: str) -> int:
    for name in names:
      if name in self._numbers:
        return self._numbers[name]
    raise ValueError(f'The vocabulary has no token {" or ".join(names)}.')

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {word: index for index, word in enumerate(self.words)}

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text's tokens, without special ids.

    Args:
      text: Any text.
    """
    (ids,) = self.encode_all([text])
    return ids

  def encode_all(self, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields `encode` of each text, much faster than separate calls."""
    for start in range(0, len(texts), _CHUNK):
      yield from self._tokenizer(list(texts[start : start + _CHUNK])).to_list()

  def text_of(self, ids: Iterable[int]) -> str:
    """Returns ids as text, with tokens joined into words.

    Raises:
      ValueError: An id lies outside 0..size - 1.
    """
    tokens = self.decode(ids)
    if self.kind == WORDPIECE:
      return ' '.join(tokens).replace(f' {_CONTINUATION}', '')
    return ''.join(tokens).replace(_BOUNDARY, ' ').strip()

  def save(self, path: str) -> None:
    """Writes the vocabulary as JSON."""
    content = {
      'kind': self.kind,
      'lowercase': self.lowercase,
      'words': list(self.words) if self.kind == WORDPIECE else None,
      'model': base64.b64encode(self.model).decode('ascii'),
    }
    files.write_atomically(path, json.dumps(content, ensure_ascii=False) + '\n')

  @classmethod
  def load(cls, path: str) -> PretrainedVocabulary:
    """Reads what `save` wrote.

    Raises:
      ValueError: The file is missing or damaged, or KerasNLP is missing.
    """
    models = _package().models
    try:
      with open(path, encoding='utf-8-sig') as file:
        content = json.load(file)
      if content['kind'] == WORDPIECE:
        return cls.from_tokenizer(
          models.BertTokenizer(content['words'], lowercase=content['lowercase'])
        )
      return cls.from_tokenizer(
        models.AlbertTokenizer(base64.b64decode(content['model']))
      )
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path} is not a vocabulary of a pretrained model ({error}); a '
        f'training run with --vocabulary=pretrained writes {cls.FILE_NAME} to '
        'its folder.'
      ) from error


def pretrained(
  *,
  preset: Optional[str] = None,
  file: Optional[str] = None,
  lowercase: Optional[bool] = None,
) -> Callable[[Any], Any]:
  """The tokens of a pretrained model, for text classification.

  Nothing is learned from the clients' text.

  Args:
    preset: The name of a KerasNLP model, such as `bert_tiny_en_uncased`, whose
      vocabulary is downloaded on first use.
    file: Instead of `preset`: WordPiece tokens, one a line, like BERT's
      `vocab.txt`; or a SentencePiece model, like ALBERT's, whose name ends in
      `.model` or `.spm`.
    lowercase: Whether a `vocab.txt` is for lower-case text without accents, as
      those of uncased models are; true by default.

  Returns:
    A function from a task to the same task in these tokens.

  Raises:
    ValueError: If there is no such preset or file, it can't be read or
      downloaded, or KerasNLP is missing. The function raises it too, for any
      task but `text_classification`.
  """
  if (preset is None) == (file is None):
    raise ValueError('give either a preset or a file.')
  is_list = file is not None and not file.endswith(('.model', '.spm'))
  if lowercase is not None and not is_list:
    raise ValueError(
      'lowercase only applies to a file of WordPiece tokens; leave it out.'
    )
  tokenizer = (
    _of_file(str(file), is_list, lowercase is not False)
    if preset is None
    else _of_preset(preset)
  )
  vocabulary = PretrainedVocabulary.from_tokenizer(tokenizer)

  def recode(task: Any) -> ClassificationTask:
    if not isinstance(task, ClassificationTask):
      raise ValueError(
        f'Task {task.name} predicts tokens, but pretrained vocabularies only '
        'work with --task=text_classification; leave out --vocabulary.'
      )
    return task.recode(lambda counts: vocabulary)

  return recode


def _of_file(path: str, is_list: bool, lowercase: bool) -> Any:
  models = _package().models
  if not os.path.isfile(path):
    raise ValueError(f'there is no file {path}.')
  try:
    if is_list:
      with text_files.open_text(path, newline='\n') as lines:
        pieces = [line.rstrip() for line in lines]
      return models.BertTokenizer(pieces, lowercase=lowercase)
    with open(path, 'rb') as model:
      return models.AlbertTokenizer(model.read())
  except Exception as error:
    reason = str(error).split('\n')[0].rstrip('.')
    raise ValueError(
      f'{path} is not a vocabulary of a pretrained model ({reason}).'
    ) from error


def _of_preset(preset: str) -> Any:
  models = _package().models
  tokenizers = (
    models.BertTokenizer,
    models.DistilBertTokenizer,
    models.AlbertTokenizer,
  )
  for tokenizer in tokenizers:
    if preset not in tokenizer.presets:
      continue
    try:
      return tokenizer.from_preset(preset)
    except Exception as error:
      reason = str(error).split('\n')[0].rstrip('.')
      raise ValueError(
        f'preset={preset} cannot be downloaded ({reason}); connect to the '
        'network once, or give its vocabulary as a file.'
      ) from error
  known = [name for tokenizer in tokenizers for name in tokenizer.presets]
  raise ValueError(
    f'preset={preset} does not exist; known are {", ".join(known)}.'
  )


def _package() -> Any:
  os.environ.setdefault('KERAS_BACKEND', 'tensorflow')
  try:
    import keras_nlp
  except ImportError as error:
    raise ValueError(
      'Pretrained vocabularies need the package keras-nlp; run pip '
      "install 'si_federated[nlp]', or leave out --vocabulary."
    ) from error
  return keras_nlp
