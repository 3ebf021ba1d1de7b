"""plots/report.py: whole pages from any run folder, hostile responses shown and never run, and the page in a
real browser (Chromium, headless; skipped where there is none).
"""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_plots import CONFIG, run_rows

import tinyr1
from commands import plot
from plots import behaviours, report
from runtime import runfolder

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
HOSTILE = [
    "<script>window.owned = 1</script>",
    "</script><script>window.owned = 2</script>",
    '<img src=x onerror="window.owned = 3"><svg/onload=window.owned=4>',
    "<!--<script>",
    "]]>{{DATA}}{{CSP}}\u2028\u2029\0\ud800 ‮ abc 𝟛+5=8",
    "`${window.owned = 5}` javascript:window.owned=6",
]


def sample(
    step, problem=0, text="3+5=8, 8*8=64, want 16: no\n5-3=2, 8*2=16, want 16: yes", correct=True, **more
):
    return {
        "step": step, "split": "test", "problem": problem, "example": {"nums": [3, 5, 8], "target": 16},
        "prompt": f"Make {16 + problem} from 3, 5, 8.\n",
        "completion": f"<think>{text}\n</think>\n<answer>8*(5-3)</answer>",
        "tokens": 40 + step + problem, "finished": True, "correct": correct, "verifier_error": 0.0,
    } | more  # fmt: skip


def folder(path, rows=None, samples=(), tail="", **config) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"config": CONFIG | config, "environment": {}}))
    rows = run_rows() if rows is None else rows
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if samples:
        (path / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples) + tail)
    return path


def some_samples(problems=30):
    guess = "3+5=8, 8*8=64"
    return [
        sample(step, p, *(() if step and p % 3 else (guess,)), correct=bool(step and p % 3))
        for step in (0, 5, 12)
        for p in range(problems)
    ]


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


NAN = float("nan")
ODD = {
    "nothing logged": ([], []),
    "one step": (run_rows()[1:2], []),
    "no numbers": ([dict.fromkeys(row, NAN) | {"step": i} for i, row in enumerate(run_rows())], []),
    "an odd interval": ([{"step": 0, "eval/accuracy": 0.5, "eval/accuracy_ci": [None, "x", 3]}], []),
    "one sample": (run_rows(), [sample(0)]),
    "odd samples": (
        run_rows(),
        [
            sample(0), sample(5, tokens=None), sample(5, tokens=NAN, correct=None), sample(NAN), [],
            {"completion": 3},
            {"step": 1, "completion": "no split"}, sample(5, example=None), sample(0, example={"nums": "x"}),
            sample(0, prompt=None), sample(2.5), {"step": "x", "split": "test", "completion": ""},
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_make_whole_pages(tmp_path, name):
    rows, samples = ODD[name]
    path = folder(tmp_path / "run", rows, samples, tail='{"step": 13, "rew')
    assert plot.main(["report", str(path)]) == 0
    content = data_of((path / "report.html").read_text())
    assert content["summary"] and content["aha"]["sentence"] and content["live"]
    assert [p.name for p in path.iterdir() if p.name.startswith(".")] == []


def test_the_page_says_what_the_run_did(tmp_path):
    content = data_of(report.write(folder(tmp_path / "mini", samples=some_samples())).read_text())
    assert "held-out accuracy went from 20% to 80%" in content["summary"]
    assert content["aha"]["sentence"].startswith("Aha step 5: ")
    best = next(s for s in content["samples"] if s[0] == content["aha"]["problem"] and s[1] == 5)
    assert best[2] == best[6] == 1  # right, and an aha
    assert len(content["problems"]) == 30 and len(content["samples"]) == 90
    assert {"Accuracy", "Response length", "Entropy"} <= {chart["title"] for chart in content["curves"]}
    assert {"lr", "loss", "dead_groups"} <= {chart["title"] for chart in content["metrics"]}
    control = [sample(step, p, "3+5=8, 8*8=64", correct=False) for step in (0, 5) for p in range(30)]
    content = data_of(report.write(folder(tmp_path / "guess", samples=control)).read_text())
    assert "no aha moment" in content["aha"]["sentence"] and content["aha"]["problem"] is None


def test_the_page_says_what_the_run_was_made_of(tmp_path):
    path = folder(tmp_path / "mini", lr=0.001, task="/home/me/own.py")
    content = json.loads((path / "config.json").read_text()) | {
        "preset": "mini", "differences": {"lr": 0.001, "temperature": 0.7, "task": "/home/me/own.py"},
        "environment": {"commit": "0123456789abcdef", "changes_digest": "c1", "task_digest": "t2"},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(content))
    facts = data_of(report.write(path).read_text())["facts"]
    assert "lr 0.001" in facts and facts.count("lr ") == 1 and "temperature 0.7" in facts
    assert "preset mini" in facts and "commit 0123456789 · uncommitted changes c1 · task files t2" in facts
    assert "/home" not in facts


def test_a_response_cannot_leave_its_place(tmp_path):
    samples = [sample(0, i, text, prompt=text) for i, text in enumerate(HOSTILE)]
    text = report.write(folder(tmp_path / "<b>&run", samples=samples, model=HOSTILE[1])).read_text()
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<img" not in text
    content = data_of(text)
    assert [s[8] for s in content["samples"]] == [s["completion"] for s in samples]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)


def test_spans_count_as_javascript_does():
    text = "𝟛𝟛 3+5=8, 8*8=64, want 16: no"
    (row,) = report.browser([made(text)])[1]
    start, end, kind = row[9][:3]
    units = row[8].encode("utf-16-le")
    assert kind == report.ATTEMPT and units[2 * start : 2 * end].decode("utf-16-le") == "3+5=8, 8*8=64"


def made(text):
    example = {"nums": [3, 5, 8], "target": 16}
    reading = behaviours.attempts.read(text, example)
    words = behaviours.find_words(text)
    does = behaviours.measure(text, example, reading, words)
    found = {"completion": text, "example": example, "reading": reading, "words": words, "does": does}
    return found | {"key": "k", "step": 0, "split": "test"}


def test_five_thousand_samples_take_less_than_five_seconds(tmp_path):
    def lines(n):
        return "\n".join(f"3+5=8, 8*8={value}, want 16: no" for value in range(n))

    many = [sample(step, p, lines(p % 8 + 1)) for step in range(10) for p in range(500)]
    path = folder(tmp_path / "big", samples=many)
    start = time.process_time()  # the processor's: others may be at work on this machine
    report.write(path)
    assert time.process_time() - start < 5


# ---------------------------------------------------------------- by itself, and for every task


def test_a_run_refreshes_its_report_and_draws_everything_at_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # the real ones: see conftest.py
    path = folder(tmp_path / "run", samples=some_samples())
    pictures = runfolder.Pictures(path)
    pictures.refresh()
    first = pictures.process
    pictures.refresh()
    assert pictures.process is first  # one at a time
    if hasattr(os, "getpriority"):
        assert os.getpriority(os.PRIO_PROCESS, first.pid) == runfolder.LOW_PRIORITY
    assert first.wait() == 0 and data_of((path / "report.html").read_text())["live"]
    pictures.refresh()
    assert pictures.process is first  # so soon after the last one
    monkeypatch.setattr(runfolder, "REFRESH_SECONDS", 0)
    pictures.refresh()
    assert pictures.process is not first
    (path / "summary.json").write_text(json.dumps({"base": {}, "trained": {}}))
    said = pictures.finish()
    assert "Aha step 5: " in said and f"Report: {path}/report.html" in said and "dip" not in said
    assert not data_of((path / "report.html").read_text())["live"]
    drawn = {f"{name}.{kind}" for name in ("curves", "growth", "metrics", "aha") for kind in ("png", "pdf")}
    assert {file.name for file in (path / "plots").iterdir()} == drawn
    assert not [file for file in path.iterdir() if file.name.startswith(".")]
    assert capsys.readouterr().out == ""


def test_a_report_that_fails_is_mentioned_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(runfolder, "REFRESH_SECONDS", 0)
    pictures = runfolder.Pictures(tmp_path)  # no run
    for _ in range(3):
        pictures.refresh()
        pictures.process.wait()
    said = capsys.readouterr().out
    assert said.count("could not be refreshed") == 1 and "is not a run folder" in said
    assert "the report: not drawn" in pictures.finish()
    monkeypatch.setattr(runfolder.sys, "executable", str(tmp_path / "nowhere"))
    pictures = runfolder.Pictures(tmp_path)
    pictures.refresh()
    assert "No such file" in capsys.readouterr().out and "Nothing drawn" in pictures.finish()


TASKS = {  # preset and options -> charts and rows of the table that only this task has
    "mini": ({"Attempts and checks", "Selection: do more responses search?"}, {"attempts per response"}),
    "mini-multiply": ({"Decomposition"}, {"responses that decompose", "steps of arithmetic"}),
    "--task competition_math": (set(), set()),
}


@pytest.mark.parametrize("argv", TASKS)
def test_a_run_of_every_task_has_its_report(tiny, tmp_path, argv):
    wanted, figures = TASKS[argv]
    rows = [{"problem": f"What is {i}+\\frac12? <b>", "answer": f"{i}.5"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "competition" in argv:
        argv += f" --task_args data={tmp_path / 'rows.jsonl'}"
    quick = "--prompts 2 --group 2 --max_new_tokens 8 --overlong_buffer 4 --eval_problems 4 --eval_samples 2"
    quick += f" --steps 2 --probe_every 1 --model {tiny} --out {tmp_path} --name run"
    assert tinyr1.main(["train", *argv.split(), *quick.split()]) == 0
    content = data_of(report.write(tmp_path / "run").read_text())
    charts = {chart["title"] for chart in content["curves"]}
    others = {title for titles, _ in TASKS.values() for title in titles} - wanted
    assert wanted | {"Reward", "Accuracy", "Response length"} <= charts and not charts & others
    shown = {row[0]: row[1] for row in content["table"]}
    assert figures <= shown.keys() and {"accuracy on held-out problems", "pass@2"} <= shown.keys()
    assert all("%" not in value for key, value in shown.items() if key.startswith(("tokens", "steps")))
    held = [s for s in content["samples"] if s[7]]
    assert (
        [s[1] for s in held].count(0) == 8 == [s[1] for s in held].count(2)
    )  # every sample of an evaluation
    assert [s[1] for s in held].count(1) == 4 and len(content["problems"]) >= 4
    assert {chart["title"] for chart in content["metrics"]} >= {"reward", "verifier_error", "time/step"}


# ---------------------------------------------------------------- in a browser


class Browser:
    """Chromium by its debugging pipe: JSON messages that end with a NUL, on descriptors 3 and 4."""

    def __init__(self, profile):
        (read, self.out), (self.inn, write) = os.pipe(), os.pipe()

        def plumb():
            for end, number in ((os.dup(read), 3), (os.dup(write), 4)):
                os.dup2(end, number)

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"], preexec_fn=plumb, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(read), os.close(write)
        self.buffer, self.count, self.errors, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.count:
            self.note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.inn, 1 << 16)
            assert chunk, "the browser has gone"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def note(self, event):
        """Anything that a developer would see in red, and any request except for the page itself."""
        method, params = event.get("method"), event.get("params", {})
        if (
            method == "Runtime.exceptionThrown"
            or method == "Log.entryAdded"
            and params["entry"]["level"] == "error"
        ):
            self.errors.append(params)
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("file:"):
            self.errors.append(params["request"]["url"])

    def open(self, path, fragment="", width=1280, height=900, dark=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + fragment)
        self.wait("document.documentElement?.dataset.ready && document.querySelector('figure svg')")

    def run(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=120):
        end = time.monotonic() + seconds
        while not self.run(f"!!({expression})"):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def picture(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out), os.close(self.inn)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


TEXT = "document.querySelector('section').textContent"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(browser, tmp_path, width):
    browser.errors.clear()
    hostile = [sample(step, 100 + i, text, prompt=text) for step in (0, 12) for i, text in enumerate(HOSTILE)]
    page = report.write(folder(tmp_path / "run", samples=some_samples() + hostile))
    browser.open(page, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width  # nothing to be scrolled sideways
    # the sample of the aha step is open, with every evaluation beside it, coloured
    assert browser.run("document.querySelectorAll('.card').length") == 3
    assert browser.run("document.querySelectorAll('.card .k1').length") > 0
    # another problem by a click in the list, and back by the browser's history
    browser.run("[...document.querySelectorAll('.list a')][0].click()")
    browser.wait("location.hash === '#p=0'")
    assert "Make 16 from 3, 5, 8." in browser.run(TEXT)
    # search, filter, deep link
    browser.run(
        "const s = document.querySelector('input[type=search]'); s.value = 'make 21';"
        "s.dispatchEvent(new Event('input'))"
    )
    browser.wait("location.hash.includes('make')")
    assert browser.run("document.querySelector('[role=status]').textContent") == "1 of 36 problems"
    browser.open(page, "#f=wrong&h=1&p=2", width=width)
    assert browser.run("document.querySelector('select').value") == "wrong" and "Make 18" in browser.run(TEXT)
    assert browser.run("document.querySelector('.browser').getBoundingClientRect().top < innerHeight * 0.7")
    browser.open(page, "#p=99999&f=nonsense&q=%3Cscript%3E", width=width)
    # hostile responses are shown, letter by letter, and nothing of them runs
    for i, text in enumerate(HOSTILE):
        browser.open(page, f"#p={30 + i}", width=width)
        assert text in browser.run(TEXT)
    assert (
        browser.run("window.owned") is None
        and browser.run("document.querySelectorAll('img, section script').length") == 0
    )
    browser.run("document.querySelector('details').open = true")
    browser.wait("document.querySelectorAll('details figure svg').length > 5")
    assert browser.errors == []


def test_long_prompts_go_by_what_sets_them_apart(browser, tmp_path):
    prompt = (
        "A conversation between User and Assistant.\nUser: What is {} * 2?\nAssistant: let me think.\n<think>"
    )
    samples = [sample(0, p, prompt=prompt.format(p)) for p in range(40)]
    browser.open(report.write(folder(tmp_path / "run", samples=samples)))
    names = browser.run("[...document.querySelectorAll('.list a div:first-child')].map(d => d.textContent)")
    assert names[:2] == ["…User: What is 0…", "…User: What is 1…"]
    assert "User: What is 0 * 2?" in browser.run(TEXT)


def test_five_thousand_samples_without_lag(browser, tmp_path):
    browser.errors.clear()
    page = report.write(
        folder(tmp_path / "big", samples=[sample(s, p) for s in range(10) for p in range(500)])
    )
    browser.open(page)
    assert browser.run("document.querySelectorAll('.list a').length") < 60  # only what is to be seen
    paint = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
    for action in (
        "document.querySelector('.list').scrollTop = 20000",
        "location.hash = '#p=321'",
        "location.hash = '#q=8*2=16'",
        "location.hash = '#f=longest'",
    ):
        took = browser.run(
            f"(async () => {{ let t = performance.now(); {action}; {paint};"
            " return performance.now() - t })()"
        )
        assert took < 500, (action, took)
    assert browser.errors == []
