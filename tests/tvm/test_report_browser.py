"""The report in a real browser: it fits the screen, follows the colour scheme and the console stays empty."""

import json
import re
import shutil
import subprocess

import pytest
from report_cases import records

from sparsetvm.core.target import host_target
from sparsetvm.report.html.page import make_page
from sparsetvm.report.learned import learn
from sparsetvm.report.story import Story, tasks_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")

# A page that shows the report at two widths and writes down what it sees.
FRAME = """<!DOCTYPE html><body><iframe id=phone src=report.html width=390 height=800></iframe>
<iframe id=desk src=report.html width=1200 height=800></iframe><pre id=seen></pre><script>
onload = () => { document.getElementById('seen').textContent = JSON.stringify(['phone', 'desk'].map(id => {
  const page = document.getElementById(id).contentDocument, root = page.documentElement;
  const small = [...page.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width < 250).length;
  const loaded = document.getElementById(id).contentWindow.performance.getEntriesByType('resource').length;
  return {loaded, over: root.scrollWidth - root.clientWidth, small, plots: page.querySelectorAll('svg').length,
    back: getComputedStyle(page.body).backgroundColor, color: getComputedStyle(page.body).color};
}))}</script>"""


def look(folder, *flags):
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,900",
        "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", "--enable-logging=stderr",
        "--dump-dom", *flags, (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r"<pre id=\"seen\">(.*?)</pre>", done.stdout)
    assert found, done.stderr
    return json.loads(found[1])


def test_report_fits_phone_and_desktop_in_light_and_dark(tmp_path):
    tasks = tasks_of(records())
    page = make_page(Story("a log", tasks), learn([task.trials for task in tasks], host_target(1)))
    (tmp_path / "report.html").write_bytes(page)
    (tmp_path / "frame.html").write_text(FRAME)
    light = look(tmp_path, "--blink-settings=preferredColorScheme=1")
    assert [(seen["over"], seen["small"], seen["plots"] > 3) for seen in light] == [(0, 0, True)] * 2
    assert [seen["loaded"] for seen in light] == [0, 0]  # one file, nothing from elsewhere
    dark = look(tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light[0]["back"] == "rgb(255, 255, 255)" != dark[0]["back"]
    assert light[0]["color"] != dark[0]["color"]
