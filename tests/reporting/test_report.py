"""Tests of whole reports: pages, figures, files."""

from __future__ import annotations

import html.parser
import io
import math
import os
import re

import matplotlib.image
import pytest

from si_federated import reporting
from si_federated.reporting import baselines, curves, figures, page


def _compare(*folders):
  return reporting.compare([reporting.read_run(folder) for folder in folders])


def _texts(picture) -> list[str]:
  """Returns the words in a figure; matplotlib notes them as comments."""
  return re.findall(r'<!-- (.*?) -->', picture.svg)


def _grid(make_run):
  folders = []
  for model in ('cifg', 'si_cifg'):
    for rate in (0.1, 0.3, 1.0, 3.0, 10.0):
      values = (4000.0, 700 + rate, 300 + rate, 150.0 + rate)
      if rate == 10 and model == 'cifg':
        values = (4000.0, 900.0, 1e30, math.inf)
      folders.append(
        make_run(
          f'{model}{rate}',
          model=f'{model}:units=256',
          client_learning_rate=rate,
          perplexities=values,
        )
      )
  return folders


class _Page(html.parser.HTMLParser):
  """Collects what a page loads and checks that tags are closed."""

  _EMPTY = {'meta', 'link', 'img', 'br', 'input', 'hr'}

  def __init__(self):
    super().__init__()
    self.open, self.loads, self.ids, self.tags = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      if name in ('src', 'href', 'xlink:href', 'data', 'srcset'):
        self.loads.append(value)
      if name == 'id':
        self.ids.append(value)
    if tag not in self._EMPTY:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self._EMPTY:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_two_models_side_by_side(make_run):
  comparison = _compare(
    make_run('a'), make_run('b', model='si_cifg:units=256,embedding_size=96')
  )
  drawn = {one.name: one for one in figures.draw_all(comparison)}
  assert list(drawn) == [
    'perplexity_by_round',
    'perplexity_by_time',
    'training_loss',
    'accuracy',
  ]
  assert {'cifg', 'si_cifg', 'unigram 512', 'Round', '1,000'} <= set(
    _texts(drawn['perplexity_by_round'])
  )
  assert 'Training time (seconds)' in _texts(drawn['perplexity_by_time'])
  assert 'only knows word frequencies' in (drawn['perplexity_by_round'].caption)
  for one in drawn.values():
    height, width, _ = matplotlib.image.imread(io.BytesIO(one.png)).shape
    assert (width, height >= 700) == (1050, True)  # 3.5 inches, 300 dpi.


def test_against_bytes_where_clients_upload_different_ones(make_run):
  comparison = _compare(
    make_run('a', perplexities=(500, 200, 100)),
    make_run('b', model='lstm', perplexities=(500, 220, 110), bytes_up=470_000),
  )
  drawn = {one.name: one for one in figures.draw_all(comparison)}
  texts = _texts(drawn['perplexity_by_bytes'])
  # 20 clients upload 4.7 MB in each of 20 rounds.
  assert 'Uploaded by all clients (MB)' in texts
  ends = [
    curves.curve(group, 'eval/perplexity', against='bytes').end
    for group in comparison.groups
  ]
  assert [end and end[1] for end in ends] == [100, 110]
  assert ends[0] and ends[1]
  assert ends[0][0] == pytest.approx(10 * ends[1][0])


def test_floor_is_drawn_where_the_task_knows_it(make_run):
  task = {'reference_perplexity': {'unigram': 60.0, 'floor': 11.25}}
  comparison = _compare(make_run('a', task=task, perplexities=(70, 20, 12)))
  picture = figures.draw_all(comparison)[0]
  assert {'unigram 60', 'floor 11.2'} <= set(_texts(picture))
  assert 'the lowest that any model can reach' in picture.caption


def test_lines_of_different_tasks_name_their_task(make_run):
  comparison = _compare(
    make_run('a'),
    make_run(
      'b',
      task={'name': 'synthetic', 'reference_perplexity': {'unigram': 60.0}},
    ),
  )
  assert baselines.reference_lines(comparison) == {
    'unigram docstrings': 512.3,
    'unigram synthetic': 60.0,
  }
  assert 'cannot be compared' in page.findings(comparison)[0]


def test_diverged_run_is_marked_and_does_not_stretch_the_axis(make_run):
  comparison = _compare(
    make_run('a'),
    make_run(
      'b', clients_per_round=5, perplexities=(4000, 900, 1e25, math.nan)
    ),
  )
  picture = figures.draw_all(comparison)[0]
  ticks = [
    float(text.replace(',', ''))
    for text in _texts(picture)
    if re.fullmatch('[0-9,.e]+', text)
  ]
  assert max(ticks) < 10_000
  assert 'A cross marks where a run diverged.' in picture.caption
  assert 'diverged' in ' '.join(_texts(picture))
  assert (
    'b diverged: its perplexity passed 10 times its starting value at round 20.'
    in page.findings(comparison)
  )


def test_sweep_of_learning_rates_gets_its_own_figure(make_run):
  comparison = _compare(*_grid(make_run))
  drawn = {one.name: one for one in figures.draw_all(comparison)}
  sweep = drawn['final_by_client_learning_rate']
  assert {'0.1', '0.3', '1', '3', '10', 'cifg', 'si_cifg'} <= set(_texts(sweep))
  assert 'A cross at the top: 1 run diverged there.' in sweep.caption
  said = page.findings(comparison)
  assert said[1] == (
    'Best of 5 settings of cifg: cifg, client lr 0.1: final validation '
    'perplexity 150.1, 71% below the unigram perplexity (512.3).'
  )
  assert len(said) == 4


@pytest.mark.parametrize(
  'content',
  [
    'round_num,train/loss,eval/perplexity\n',
    'round_num,train/loss,eval/perplexity\n0,,4000\n',
    'round_num,train/loss,eval/perplexity\n1,7.5,\n',
    'round_num,train/loss,eval/perplexity\n1,nan,nan\n',
    'round_num,train/loss,eval/perplexity,round_secs\n0,,9,\n1,7,8,2\n',
    'round_num,eval/perplexity,eval/accuracy\n0,1,0\n5,1,0\n',
    'round_num,train/loss,eval/accuracy\n1,nan,0.5\n2,nan,0.5\n',
  ],
)
def test_report_of_a_barely_started_or_broken_run(make_run, tmp_path, content):
  folder = make_run('a', finished=False)
  (folder / 'metrics.csv').write_text(content)
  written = reporting.write_report(_compare(folder), tmp_path / 'out', 'T')
  assert written[0].name == 'report.html'


def test_page_is_one_valid_file(make_run, tmp_path):
  comparison = _compare(*_grid(make_run))
  written = reporting.write_report(comparison, tmp_path / 'out', 'A <b> & "c"')
  text = written[0].read_text(encoding='utf-8')
  parsed = _Page()
  parsed.feed(text)
  assert parsed.open == []
  assert parsed.tags.count('svg') == 5
  assert not {'img', 'script', 'link', 'iframe'} & set(parsed.tags)
  assert parsed.loads
  assert all(one.startswith('#') for one in parsed.loads)
  assert {one[1:] for one in parsed.loads} <= set(parsed.ids)
  clips = re.findall(r'url\((.*?)\)', text)
  assert clips
  assert {one[1:] for one in clips} <= set(parsed.ids)
  assert '@import' not in text
  assert '<h1>A &lt;b&gt; &amp; &#34;c&#34;</h1>' in text
  assert 'width=device-width' in text
  used = set(re.findall(r'var\((--\w+)\)', text))
  assert used <= set(re.findall(r'(--\w+):', text))


def test_markdown_shows_pictures_that_exist(make_run, tmp_path):
  comparison = _compare(make_run('a'), make_run('b', model_seed=1))
  written = reporting.write_report(comparison, tmp_path / 'out', 'Title')
  text = (tmp_path / 'out' / 'report.md').read_text(encoding='utf-8')
  assert text.startswith('# Title\n')
  shown = re.findall(r'!\[.*?\]\((.*?)\)', text)
  assert len(shown) == 4
  assert set(shown) <= {path.name for path in written}
  assert (
    '- cifg: final validation perplexity 200.0 ± 0.00 (mean and deviation over '
    '2 seeds), 61% below the unigram perplexity (512.3).'
  ) in text
  assert '- client learning rate: 1\n' in text
  assert 'Line: mean over seeds' not in text  # The two are the same.


def test_same_runs_give_the_same_bytes(make_run, tmp_path):
  comparison = _compare(make_run('a'))
  first = reporting.write_report(comparison, tmp_path / 'one', 'T')
  second = reporting.write_report(comparison, tmp_path / 'two', 'T')
  assert [path.name for path in first] == [path.name for path in second]
  for one, other in zip(first, second):
    assert one.read_bytes() == other.read_bytes()


def test_failed_write_keeps_the_old_report(make_run, tmp_path, monkeypatch):
  comparison = _compare(make_run('a'))
  out = tmp_path / 'out'
  written = reporting.write_report(comparison, out, 'Old')
  before = {path: path.read_bytes() for path in written}

  def full(*unused_args):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OSError, match='disk full'):
    reporting.write_report(comparison, out, 'New')
  assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_default_output_is_next_to_the_runs(make_run, tmp_path):
  one, two = make_run('a'), make_run('b')
  assert reporting.default_output([one, two]) == tmp_path / 'runs' / 'report'
  assert reporting.default_output([one, tmp_path / 'other' / 'c']) == (
    tmp_path / 'report'
  )
