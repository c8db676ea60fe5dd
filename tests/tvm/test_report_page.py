"""`sparsetvm report`: what it can be pointed at, and what stands in the page."""

import json
import struct
import zlib
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from report_cases import HOSTILE, record, records, workload

from sparsetvm import api
from sparsetvm.cli.main import cli
from sparsetvm.core.target import host_target
from sparsetvm.errors import ModelError, UsageError
from sparsetvm.log.journal import append
from sparsetvm.report.html import charts, element, picture
from sparsetvm.report.html.page import make_page
from sparsetvm.report.learned import Learned, learn
from sparsetvm.report.sources import read_story
from sparsetvm.report.story import Story, tasks_of


@pytest.fixture
def log(tmp_path, monkeypatch):
    for name in ("SPARSETVM_LOG_DIR", "SPARSETVM_RECORDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tuning_logs" / "cpu.jsonl"
    append(path, *records(), record(40, 50.0, run="fedcba654321"))
    return path


def manifest(path, **changes):
    target = json.loads(json.dumps({"kind": "cpu", "mcpu": "znver5", "isa": "avx512"}))
    layer = {"name": HOSTILE, "workload_id": workload().id, "source": "tuned", "config": "Config.of('x')"}
    twin = {**layer, "name": "twin"}
    document = {"schema": 1, "target": target, "layers": [layer, twin], "model": {"name": "m.onnx"}, **changes}
    path.write_text(json.dumps(document))
    return path


def test_log_run_and_manifest_are_told_apart(log, tmp_path):
    assert len(read_story(log).tasks) == len(read_story(log.parent).tasks) == 2
    assert len(read_story("abcd").records) == 26
    assert len(read_story("last").records) == 1
    story = read_story(manifest(tmp_path / "m.so.json"))
    assert [(task.name, task.count, task.best, task.dense) for task in story.tasks] == [(HOSTILE, 2, 31.0, 93.0)]


@pytest.mark.parametrize("source", ["nothing", "", "m.so"])
def test_what_is_no_source_is_a_usage_error_that_says_what_is(log, source):
    (log.parent.parent / "m.so").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no file, folder or run|several runs|no manifest") as caught:
        read_story(source)
    assert caught.value.hint


@pytest.mark.parametrize("changes", [{"layers": 3}, {"schema": 9}, {"target": {}}])
def test_foreign_json_is_no_manifest(log, tmp_path, changes):
    with pytest.raises(ModelError, match="manifest"):
        read_story(manifest(tmp_path / "m.so.json", **changes))


class Checker(HTMLParser):
    """Collects tags, attributes that run something or load something, and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.bad, self.text = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href") and not value.startswith(("data:image/png", "#"))):
                self.bad.append((tag, name, value))

    def handle_data(self, data):
        self.text.append(data)


def test_page_escapes_everything_and_loads_nothing(log, tmp_path):
    report = api.write_report(manifest(tmp_path / "m.so.json"), tmp_path / "r.html", log_dir=log.parent)
    page = (tmp_path / "r.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.bad == []
    assert not checker.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in page
    assert not {"\u202e", "\x1b"} & set(page)
    text = "".join(checker.text)
    assert "<script>alert(1)</script>" in text  # as text
    assert "wrong_answer" in text
    assert (report.tasks, report.bytes) == (1, len(page.encode()))


def test_model_gives_names_and_pictures(tmp_path):
    (first, *_) = tasks = tasks_of(records())
    rng = np.random.default_rng(0)
    first.weight, first.layers, first.name = rng.random((200, 300)) * (rng.random((200, 300)) > 0.9), ["a", "b"], "a"
    page = make_page(Story("a log", tasks), Learned()).decode()
    assert page.count("data:image/png") == 2
    assert "Layers that share a task" in page


def test_story_of_nothing_is_a_page_too():
    page = make_page(Story("an empty log", []), Learned()).decode()
    assert "Nothing has a time yet" in page


def test_records_without_clock_get_no_roof():
    bare = [r.__class__(**{**{f: getattr(r, f) for f in r.__struct_fields__}, "conditions": None}) for r in records()]
    assert "No roof is drawn" in make_page(Story("a log", tasks_of(bare)), Learned()).decode()


def test_replayed_cost_model_predicts_only_what_came_later():
    trials = [r for r in records() if r.workload.m == 64 and r.stage == "search"]
    learned = learn([trials], host_target(1))
    assert (learned.tasks, len(learned.points)) == (1, 13)
    assert sum(learned.importance.values()) == pytest.approx(1.0)
    assert learn([trials[:8]], host_target(1)).tasks == 0


def decode(url):
    data = b64decode(url.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    at = data.index(b"IDAT")
    size = struct.unpack(">I", data[at - 4 : at])[0]
    rows = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + size]), np.uint8).reshape(height, 1 + 4 * width)
    return rows[:, 1:].reshape(height, width, 4)[..., 3]


def test_picture_of_a_small_weight_has_a_pixel_per_weight():
    weight = np.eye(5, 7)
    assert np.array_equal(decode(picture.png_url(picture.whole_picture(weight))) > 0, weight != 0)
    assert decode(picture.png_url(picture.whole_picture(np.zeros((3, 3))))).max() == 0


def test_picture_of_a_large_weight_keeps_the_share_of_non_zeros():
    weight = (np.random.default_rng(0).random((1000, 313)) < 0.1).astype(np.float32)
    shares = picture.whole_picture(weight)
    assert shares.shape == (96, 96)
    assert shares.mean() == pytest.approx(weight.mean(), rel=0.02)


def test_axis_has_few_round_ticks_inside_of_it():
    for axis in (charts.Axis(0.013, 9000, True, ""), charts.Axis(3, 5, True, ""), charts.Axis(1, 47, False, "")):
        ticks = axis.ticks()
        assert 1 < len(ticks) <= 7
        assert all(axis.low * 0.99 <= tick <= axis.high * 1.01 for tick in ticks)
    assert charts.Axis(1, 2, False, "", whole=True).ticks() == [1, 2]


def test_element_writes_text_as_text():
    page = element.render(element.el("p", "<b>", element.el("i", "&"), "tail", class_="x", data_a='"')).decode()
    assert '<p class="x" data-a="&quot;">&lt;b&gt;<i>&amp;</i>tail</p>' in page


def test_command_writes_the_page_and_says_so(log, tmp_path):
    result = CliRunner().invoke(cli, ["report", str(log), "-o", "r.html", "--json", "-"])
    assert json.loads(result.stdout)["tasks"] == 2
    assert CliRunner().invoke(cli, ["report", "last", "-o", "no/where.html"]).exit_code == 4
