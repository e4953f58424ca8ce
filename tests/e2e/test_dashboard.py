# SPDX-License-Identifier: Apache-2.0
"""The dashboard as people see it: Debian's Chromium, headless, before a daemon that is being posted to.

Needs chromium, chromium-driver and python3-selenium; skipped with a message where they are missing. Pictures of what was
seen are left in build/dashboard-*.png. With SCREENSHOT=FILE the last test trains for longer and leaves README.md's there.
"""
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402

try:
    from selenium import webdriver
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.common.utils import is_connectable

    class Driver(Service):
        """Reached by its address: not every machine knows the name localhost."""

        @property
        def service_url(self):
            return "http://127.0.0.1:%d" % self.port

        def is_connectable(self):
            return is_connectable(self.port, "127.0.0.1")

except ImportError as missing:
    webdriver, reason = None, "%s is not installed" % missing.name
else:
    lacking = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    webdriver, reason = (None if lacking else webdriver), "no %s here" % " and no ".join(lacking)

PICTURES = os.path.join(lossd.ROOT, "build")
RECORD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "record.py")
LIGHT, DARK = (0x00, 0x67, 0xa8), (0x56, 0xb4, 0xe9)  # the first run's line
POLICY = {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:",
          "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"}
PIXELS = """
    const canvas = [...document.querySelectorAll(arguments[0] + " canvas")], [r, g, b] = arguments[1];
    let n = 0;
    for (const c of canvas) {
        const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        for (let i = 0; i < data.length; i += 4) {
            n += data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255;
        }
    }
    return n;"""

REACH = """
    const [canvas] = document.querySelectorAll(arguments[0] + " canvas"), [r, g, b] = arguments[1];
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let x = 0;
    for (let i = 0; i < data.length; i += 4) {
        if (data[i] === r && data[i + 1] === g && data[i + 2] === b) {
            x = Math.max(x, (i / 4) % canvas.width);
        }
    }
    return x / canvas.width;"""


class Poster:
    """Posts real predictions on real images under a run, step after step, until it is stopped."""

    def __init__(self, daemon, run, first=0, pause=0.1):
        self.daemon, self.run, self.step, self.pause = daemon, run, first, pause
        self.bodies = [lossd.bccd().pick([i, i + 1]).safetensors() for i in range(4)]
        self.failure, self.ended = None, threading.Event()
        self.thread = threading.Thread(target=self._post)

    def post(self, step):
        target = "/v1/loss?run=%s&step=%d" % (self.run, step)
        answer = self.daemon.post(target, self.bodies[step % len(self.bodies)], lossd.SAFETENSORS)
        if answer.status != 200:
            raise AssertionError(answer)

    def _post(self):
        try:
            while not self.ended.wait(self.pause):
                self.post(self.step)
                self.step += 1
        except BaseException as failure:  # noqa: B902 - told by __exit__
            self.failure = failure

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.ended.set()
        self.thread.join()
        if self.failure:
            raise self.failure


@unittest.skipIf(webdriver is None, reason)
class Dashboard(lossd.Case):
    """A browser and an empty daemon for each test."""

    FLAGS = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        options = Options()
        for argument in ("--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-dev-shm-usage",
                         "--disable-gpu", "--mute-audio", "--disable-background-networking",
                         "--force-color-profile=srgb", "--window-size=1366,900"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.binary_location = shutil.which("chromium")
        cls.browser = webdriver.Chrome(options=options, service=Driver(shutil.which("chromedriver")))
        cls.browser.set_script_timeout(lossd.PATIENCE)

    @classmethod
    def tearDownClass(cls):
        cls.browser.quit()
        super().tearDownClass()

    def setUp(self):
        self.expected = r"willReadFrequently"  # of what the console says: the readbacks are ours
        self.daemon = self.enterContext(lossd.Daemon())
        self.view(1366, 900)
        self.browser.get_log("browser")
        self.browser.get_log("performance")

    def tearDown(self):
        """The console was silent: no error, nothing that the policy forbade."""
        said = [line["message"] for line in self.browser.get_log("browser")]
        self.browser.get("about:blank")
        self.browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": self.url(""), "storageTypes": "all"})
        self.assertEqual([line for line in said if not re.search(self.expected, line)], [])
        self.healthy()

    @contextlib.contextmanager
    def instead(self, daemon):
        """The tests' daemon is another one for a while."""
        before, self.daemon = self.daemon, daemon
        try:
            yield
        finally:
            self.daemon = before

    # ---- the page

    def url(self, target="/"):
        return "http://127.0.0.1:%d%s" % (self.daemon.port, target)

    def view(self, width, height, dark=False):
        self.width = width
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700})
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

    def open(self, fragment=""):
        self.browser.get("about:blank")  # another fragment alone would load nothing
        self.browser.get(self.url("/" + fragment))
        self.wait(lambda: self.root("state") != "loading")

    def root(self, name):
        return self.browser.execute_script("return document.documentElement.dataset[arguments[0]]", name)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.script("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def wait(self, condition, seconds=lossd.PATIENCE):
        def now():
            try:
                return condition()
            except StaleElementReferenceException:  # drawn again meanwhile
                return False
        self.assertTrue(lossd.until(now, seconds, .1), "it did not happen")

    def numbers(self):
        """Rows of the table: run -> cells."""
        rows = self.script("return [...document.querySelectorAll('#numbers tr')].map((r) => [...r.cells].map((c) => c.textContent))")
        return {cells[0]: cells[1:] for cells in rows}

    def shows(self, run, step):
        return self.numbers().get(run, ["-1"])[0] == str(step)

    def pixels(self, chart, colour=LIGHT):
        return self.script(PIXELS, chart, list(colour))

    def reach(self, chart, colour=LIGHT):
        """The right end of a line, as a share of the chart's width."""
        return self.script(REACH, chart, list(colour))

    def last_place(self, chart):
        """The largest label of the x axis."""
        return max(int(label) for label in self.text(chart + " .dygraph-axis-label-x") if label.isdigit())

    def picture(self, name, whole=False, path=None):
        """Left in build/."""
        options = {"format": "png"}
        if whole:
            width, height = self.script("return [innerWidth, document.documentElement.scrollHeight]")
            options.update(captureBeyondViewport=True, clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        data = self.browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        os.makedirs(PICTURES, exist_ok=True)
        with open(path or os.path.join(PICTURES, "dashboard-%s.png" % name), "wb") as file:
            file.write(base64.b64decode(data))

    def requests(self, to="/v1/runs"):
        """(path, status) of what was answered since the last look."""
        out = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.responseReceived":
                answer = message["params"]["response"]
                path = answer["url"][len(self.url("")):]
                if path.startswith(to):
                    out.append((path, answer["status"]))
        return out

    def window(self, state):
        window = self.browser.execute_cdp_cmd("Browser.getWindowForTarget", {})["windowId"]
        self.browser.execute_cdp_cmd("Browser.setWindowBounds", {"windowId": window, "bounds": {"windowState": state}})

    def no_sideways_scrolling(self):
        self.assertLessEqual(self.script("return document.documentElement.scrollWidth"), self.width)

    # ---- tests

    def test_files(self):
        """What a browser gets: the policy, types, and nothing twice."""
        page = self.daemon.get("/")
        self.assertEqual((page.status, page.header("Content-Type")), (200, "text/html; charset=utf-8"))
        self.assertEqual({part.strip() for part in page.header("Content-Security-Policy").split(";")}, POLICY)
        self.assertEqual((page.header("Referrer-Policy"), page.header("X-Frame-Options")), ("no-referrer", "DENY"))
        text = page.body.decode()
        self.assertNotRegex(text, r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|(src|href)=\"(https?:)?//")
        files = re.findall(r'(?:src|href)="(/web/[^"]+)"', text)
        scripts = self.daemon.get("/web/app.js").body.decode()
        files += ["/web/" + name for name in re.findall(r'from "\./([^"]+)"', scripts)]
        self.assertGreaterEqual(len(set(files)), 6)
        for target in ["/", "/openapi.yaml", *files]:
            with self.subTest(target):
                answer = self.daemon.get(target)
                self.assertEqual(answer.status, 200)
                kind = {"js": "text/javascript", "ss": "text/css", "ml": "application/yaml", "/": "text/html"}
                self.assertEqual(answer.type, kind[target[-2:]])
                self.assertEqual(answer.header("Cache-Control"), "no-cache")
                tag = answer.header("ETag")
                again = self.daemon.get(target, **{"If-None-Match": tag})
                self.assertEqual((again.status, again.body, again.header("ETag")), (304, b"", tag))
                self.assertEqual(self.daemon.get(target, **{"If-None-Match": '"x"'}).body, answer.body)
        tags = {self.daemon.get(target).header("ETag") for target in {"/", *files}}
        self.assertEqual(len(tags), len({"/", *files}))
        self.problem(self.daemon.get("/web/x.js"), 404, "not_found")
        self.assertEqual(self.daemon.request("HEAD", "/").header("Content-Length"), str(len(page.body)))

    def test_the_empty_page_says_how_to_fill_it(self):
        self.open()
        self.assertEqual(self.root("state"), "none")
        self.assertTrue(self.find("#empty-title").is_displayed())
        self.assertFalse(self.find("#total").is_displayed())
        command = self.find("#command").text
        self.assertIn(self.url("/v1/loss?run=first&step=1"), command)
        self.picture("empty")
        self.find("#copy").click()
        self.wait(lambda: self.find("#copy").text == "Copied")
        self.view(390, 844)
        self.no_sideways_scrolling()
        self.picture("empty-phone")
        done = subprocess.run(["sh", "-c", command], cwd=lossd.ROOT, capture_output=True, check=True)
        total = json.loads(done.stdout)["loss"]["total"]
        self.wait(lambda: self.root("state") == "some" and self.shows("first", 1))
        self.lossd_near(total, self.numbers()["first"][2])
        self.assertFalse(self.find("#empty-title").is_displayed())
        self.assertIn("first", self.browser.current_url)

    def lossd_near(self, number, text):
        self.near(float(text), number, 1e-3)

    def test_it_asks_for_a_token(self):
        """The page is open, what it shows is not: a wrong token and a right one, a reload, another tab, one that is
        taken back."""
        self.expected += r"|status of 401"
        with tempfile.TemporaryDirectory() as home:
            path = os.path.join(home, "tokens")

            def put(text):
                with open(path, "w", encoding="ascii") as out:
                    out.write(text)
                os.chmod(path, 0o600)

            put("read viewer a-token-for-the-page\nwrite trainer a-token-for-training\n")
            with lossd.Daemon("--token-file", path) as daemon, self.instead(daemon):
                write = {"Authorization": "Bearer a-token-for-training"}
                for step in range(3):
                    body = lossd.bccd().pick([0]).safetensors()
                    target = "/v1/loss?run=guarded&step=%d" % step
                    self.assertEqual(daemon.post(target, body, lossd.SAFETENSORS, write).status, 200)
                self.browser.get("about:blank")
                self.browser.get(self.url("/"))
                self.wait(lambda: self.find("#door").is_displayed())
                self.assertEqual(self.find("#trouble").text, "lossd asks for a token.")
                self.assertEqual(self.find("#state").text, "No token")
                self.assertFalse(self.find("#empty-title").is_displayed())
                self.no_sideways_scrolling()
                self.picture("token")
                self.assertGreater(len(self.requests("/v1/runs")), 0)
                time.sleep(3)
                self.assertEqual(self.requests("/v1/runs"), [])   # nothing is asked meanwhile
                self.find("#token").send_keys("a-wrong-token", Keys.ENTER)
                self.wait(lambda: self.find("#trouble").text == "lossd does not know this token.")
                self.assertEqual(self.find("#token").get_attribute("value"), "a-wrong-token")
                self.find("#token").clear()
                self.find("#token").send_keys("  Bearer a-token-for-the-page ")
                self.find("#door button").click()
                self.wait(lambda: self.shows("guarded", 2))
                self.wait(lambda: self.text("#version")[0])
                self.assertFalse(self.find("#door").is_displayed())
                self.assertEqual(self.find("#trouble").text, "")
                self.assertNotIn("token-for", self.browser.current_url + self.browser.page_source)
                self.browser.refresh()
                self.wait(lambda: self.shows("guarded", 2))   # it is kept
                put("write trainer a-token-for-training\n")
                daemon.signal(signal.SIGHUP)
                self.wait(lambda: self.find("#door").is_displayed())
                self.assertEqual(self.find("#trouble").text, "lossd does not know this token.")
                self.assertEqual(self.script("return sessionStorage.length"), 0)
                self.assertEqual(self.script("return localStorage.getItem('lossd')").find("token"), -1)
                self.assertNotIn("a-token-for", daemon.log())

    def test_it_grows_while_results_come(self):
        with Poster(self.daemon, "live", pause=.04) as poster:
            self.wait(lambda: poster.step > 45)  # so many are drawn without dots, and only prolonged from then on
            self.open()
            self.wait(lambda: self.pixels("#total") > 20)
            first = int(self.numbers()["live"][0])
            drawn = self.last_place("#total")
            self.wait(lambda: int(self.numbers()["live"][0]) >= first + 15)
            self.wait(lambda: self.last_place("#total") > drawn)
            for chart in ("#total", "#positives", "#unmatched", "#parts", "#iou"):
                self.assertGreater(self.pixels(chart), 20, chart)
            self.find("#pause").click()
            self.wait(lambda: self.root("link") == "paused")
            stopped, shown = poster.step, self.numbers()["live"][0]
            self.wait(lambda: poster.step > stopped + 22)
            self.assertEqual(self.numbers()["live"][0], shown)
            self.find("#pause").click()
            self.wait(lambda: int(self.numbers()["live"][0]) > stopped)
        self.wait(lambda: self.shows("live", poster.step - 1))
        for chart in ("#total", "#positives", "#unmatched", "#parts"):
            self.wait(lambda: self.reach(chart) > .95)  # noqa: B023
        latest = self.daemon.get("/v1/runs/live").json()["latest"]
        row = self.numbers()["live"]
        for cell, number in zip(row[2:], (latest["total"], latest["loc"], latest["conf"], latest["positives"] / 2,
                                          latest["unmatched_objects"] / 2, latest["best_iou_mean"])):
            self.lossd_near(number, cell)
        self.assertIn("%d " % max(latest["best_iou_histogram"]), self.find("#iou .plot").get_attribute("aria-label")
                      .replace(";", " ") + " ")

    def test_what_changes_behind_its_back(self):
        """Replaced, late and deleted steps are drawn as they are, not as they were."""
        poster = Poster(self.daemon, "changing")
        for step in (0, 1, 3):
            poster.post(step)
        Poster(self.daemon, "kept").post(5)
        self.open("#runs=changing,kept")
        self.wait(lambda: self.shows("changing", 3) and self.shows("kept", 5))
        rows = lambda: self.script("return document.querySelector('#total .plot').getAttribute('aria-label')")  # noqa: E731
        before = rows()
        self.daemon.post("/v1/loss?run=changing&step=1&criterion={%22base%22:%22ssd-multibox%22,%22weights%22:{%22loc%22:50}}",
                         poster.bodies[1], lossd.SAFETENSORS)
        self.wait(lambda: rows() != before)
        highest = max(row["total"] for row in self.daemon.get("/v1/runs/changing/steps").json()["steps"])
        shown = float(re.search(r"changing: .*?highest ([0-9.]+)", rows()).group(1))
        self.lossd_near(highest, str(shown))
        poster.post(2)
        self.wait(lambda: "4 steps" in " ".join(self.text("#list .about")))
        self.daemon.delete("/v1/runs/changing")
        self.wait(lambda: list(self.numbers()) == ["kept"] and self.text("#list .name") == ["kept"])
        self.assertNotIn("changing", self.browser.current_url)

    def test_long_runs(self):
        """However many steps there are, the page holds a few thousand; and those that the daemon keeps."""
        body = lossd.tiny().safetensors()

        def post(first, last):
            with self.daemon.connect() as connection:
                for step in range(first, last):
                    answer = connection.request("POST", "/v1/loss?run=long&step=%d" % step, body)
                    self.assertEqual(answer.status, 200, answer)
            self.wait(lambda: self.shows("long", last - 1))

        def counted():
            return self.daemon.get("/v1/runs/long").json()["steps"]

        with lossd.Daemon("--keep-steps", "4200", "--durability", "process") as daemon, self.instead(daemon):
            self.browser.get(self.url())
            post(0, 1200)
            post(1200, 1300)
            post(1300, 4500)
            asked = [path.split("?")[1] for path, _ in self.requests("/v1/runs/long/steps")]
            self.assertEqual(asked[0], "points=1000")
            self.assertIn("after=1199&limit=1000", asked)
            self.assertGreater(asked.count("points=1000"), 1, "all was kept")
            self.wait(lambda: counted() < 4500 and "%d steps" % counted() in self.text("#list .about")[0])
            self.browser.get("about:blank")

    def test_choosing_runs(self):
        for i in range(9):
            Poster(self.daemon, "run-%d" % i).post(i)
        self.open()
        self.wait(lambda: list(self.numbers()) == ["run-8"])  # the newest
        self.assertEqual(self.text("#list .name"), ["run-%d" % i for i in range(8, -1, -1)])
        boxes = {box.find_element(By.XPATH, "./..").text.split()[0]: box
                 for box in self.browser.find_elements(By.CSS_SELECTOR, "#list input")}
        boxes["run-0"].click()
        self.wait(lambda: list(self.numbers()) == ["run-8", "run-0"])
        self.wait(lambda: "run-0 added" in self.text("#news")[0])
        self.assertEqual([name.split()[0] for name in self.text("#total .legend li")], ["run-8", "run-0"])
        for i in range(1, 7):
            boxes["run-%d" % i].click()
        self.wait(lambda: len(self.numbers()) == 8)
        self.assertFalse(boxes["run-7"].is_enabled())
        self.assertIn("8 runs", self.text("#hint")[0])
        dashes = self.script("return [...document.querySelectorAll('#numbers line')].map((l) => l.getAttribute('stroke') "
                             "+ '/' + l.getAttribute('stroke-dasharray'))")
        self.assertEqual(len(set(dashes)), 8)
        self.find("#one").send_keys("run-0")
        self.wait(lambda: "step 0" in self.text("#iou .at"))
        self.find("#filter").send_keys("N-7")
        self.wait(lambda: self.text("#list .name") == ["run-7"])
        self.find("#log").click()
        self.find("#smooth").send_keys(Keys.END)
        self.browser.refresh()
        self.wait(lambda: len(self.numbers()) == 8)
        self.assertEqual((self.find("#log").is_selected(), self.find("#smooth").get_attribute("value"),
                          self.find("#one").get_attribute("value")), (True, "0.99", "run-0"))

    def test_one_run_is_one_of_the_chosen(self):
        """Also while nothing is recorded, when the list never changes."""
        Poster(self.daemon, "older").post(1)
        Poster(self.daemon, "newer").post(2)
        self.open()
        self.wait(lambda: "step 2" in self.text("#iou .at")[0])
        older, newer = [self.find("#list li:nth-child(%d) input" % i) for i in (2, 1)]
        older.click()
        self.wait(lambda: list(self.numbers()) == ["newer", "older"])
        newer.click()
        self.wait(lambda: "step 1" in self.text("#iou .at")[0])
        self.assertEqual(self.find("#one").get_attribute("value"), "older")
        self.assertEqual(len(self.text("#parts .legend li")), 4)
        older.click()
        self.wait(lambda: self.text("#iou .at") == [""])
        newer.click()
        self.wait(lambda: "step 2" in self.text("#iou .at")[0])

    def test_zoom_log_and_smoothing(self):
        self.expected += r"|points out of Y bounds"   # dygraphs says so where values are zoomed
        poster = Poster(self.daemon, "zoomed")
        for step in range(40):
            poster.post(step)
        self.open()
        self.wait(lambda: self.pixels("#total") > 100)
        plain = self.pixels("#total")
        everything, parts = self.last_place("#total"), self.last_place("#parts")
        plot = self.find("#total .plot")
        ActionChains(self.browser).move_to_element(plot).move_by_offset(-300, 0).click_and_hold().move_by_offset(
            300, 3).release().perform()
        self.wait(lambda: self.last_place("#total") < everything)
        self.assertLess(self.last_place("#positives"), everything, "the charts are not zoomed together")
        ActionChains(self.browser).double_click(plot).perform()
        self.wait(lambda: (self.last_place("#total"), self.last_place("#parts")) == (everything, parts))
        labels = self.text("#total .dygraph-axis-label-y")
        for reset in (self.find("#zoom-reset").click, ActionChains(self.browser).double_click(plot).perform):
            ActionChains(self.browser).move_to_element_with_offset(plot, 0, -80).click_and_hold().move_by_offset(
                2, 80).release().perform()
            self.wait(lambda: self.text("#total .dygraph-axis-label-y") != labels)
            reset()
            self.wait(lambda: self.text("#total .dygraph-axis-label-y") == labels)
        self.find("#zoom-in").click()
        self.wait(lambda: self.last_place("#total") < everything)
        self.find("#zoom-out").click()
        self.wait(lambda: self.last_place("#total") == everything)
        self.find("#log").click()
        self.wait(lambda: self.text("#total .dygraph-axis-label-y") != labels or self.pixels("#total") != plain)
        self.find("#log").click()
        self.wait(lambda: self.pixels("#total") == plain)
        self.script("smooth.value = 0.9; smooth.dispatchEvent(new Event('input'))")
        self.wait(lambda: self.pixels("#total") != plain)
        self.assertRegex(self.text("#total .value")[0], r"^[0-9.]+ \([0-9.]+\)$")

    def test_a_daemon_that_stops_and_comes_back(self):
        self.expected += r"|ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET"
        data = tempfile.TemporaryDirectory()
        self.addCleanup(data.cleanup)
        first = lossd.Daemon("--data-dir", data.name)
        Poster(first, "survives").post(7)
        self.browser.get("http://127.0.0.1:%d/" % first.port)
        self.wait(lambda: self.shows("survives", 7))
        trouble = self.find("#trouble")
        self.assertFalse(trouble.is_displayed())
        first.__exit__(None, None, None)
        self.wait(lambda: "does not answer" in trouble.text)
        self.assertEqual(trouble.get_attribute("role"), "alert")
        self.assertEqual(self.root("link"), "lost")
        self.assertTrue(self.shows("survives", 7))  # what is known stays
        self.picture("trouble")
        with lossd.Daemon("--data-dir", data.name, "--listen", "127.0.0.1:%d" % first.port) as second:
            self.wait(lambda: self.root("link") == "live", 15)
            self.assertFalse(trouble.is_displayed())
            self.assertIn("answers again", self.text("#news")[0])
            Poster(second, "survives").post(8)
            self.wait(lambda: self.shows("survives", 8))
            self.browser.get("about:blank")

    def test_it_asks_only_for_what_is_new_and_not_when_hidden(self):
        Poster(self.daemon, "quiet").post(1)
        self.open()
        self.wait(lambda: self.shows("quiet", 1))
        self.requests()
        time.sleep(4.2)
        asked = self.requests()
        self.assertTrue(2 <= len(asked) <= 3, asked)
        self.assertEqual({status for _, status in asked}, {304}, asked)
        self.assertEqual({path for path, _ in asked}, {"/v1/runs?limit=1000"}, asked)
        self.window("minimized")
        self.wait(lambda: self.script("return document.visibilityState") == "hidden")
        self.requests()
        Poster(self.daemon, "quiet").post(2)
        time.sleep(3.5)
        self.assertEqual(self.requests("/"), [])
        self.assertTrue(self.shows("quiet", 1))
        self.window("normal")
        self.wait(lambda: self.shows("quiet", 2))

    def test_keys_alone(self):
        poster = Poster(self.daemon, "keys")
        for step in range(3):
            poster.post(step)
        self.open()
        self.wait(lambda: self.shows("keys", 2))
        reached = []
        for _ in range(40):
            ActionChains(self.browser).send_keys(Keys.TAB).perform()
            name, outline = self.script("""
                const e = document.activeElement, style = getComputedStyle(e);
                return [e.id || (e.closest("figure")?.id ?? e.className ?? e.tagName), style.outlineStyle + style.outlineWidth];""")
            if name in reached:
                break
            reached.append(name)
            self.assertEqual(outline, "solid3px", name)
        wanted = ["skip", "pause", "theme", "filter", "log", "smooth", "zoom-in", "zoom-out", "zoom-reset", "total",
                  "positives", "unmatched", "one", "parts", "stage"]
        self.assertEqual([name for name in reached if name in wanted], wanted)
        self.script("document.querySelector('#total .plot').focus()")
        ActionChains(self.browser).send_keys(Keys.HOME, Keys.ARROW_RIGHT).perform()
        self.wait(lambda: self.text("#total .at") == ["step 1"])
        step = self.daemon.get("/v1/runs/keys/steps").json()["steps"][1]
        self.lossd_near(step["total"], re.match(r"step 1: keys ([0-9.]+)$", self.text("#news")[0]).group(1))
        self.assertEqual(self.text("#positives .at"), ["step 1"])
        unnamed = self.script("""
            return [...document.querySelectorAll("button, input, select, [tabindex='0']")].filter((e) =>
                e.checkVisibility() && !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
                  || document.getElementById(e.getAttribute("aria-labelledby")))).map((e) => e.outerHTML);""")
        self.assertEqual(unnamed, [])
        self.script("document.getElementById('pause').focus()")
        ActionChains(self.browser).send_keys(Keys.SPACE).perform()
        self.wait(lambda: self.find("#pause").get_attribute("aria-pressed") == "true")

    def test_phone_and_dark(self):
        for i in range(3):
            poster = Poster(self.daemon, "a-run-with-a-very-long-name-%d-%s" % (i, "x" * 34))
            for step in range(4):
                poster.post(step)
        self.view(390, 844)
        self.open("#runs=%s" % ",".join(row["name"] for row in self.daemon.get("/v1/runs").json()["runs"]))
        self.wait(lambda: len(self.numbers()) == 3)
        self.no_sideways_scrolling()
        self.picture("phone", whole=True)
        self.view(1366, 900, dark=True)
        self.wait(lambda: self.pixels("#total", DARK) > 5 and self.pixels("#total") == 0)
        dark = self.script("return getComputedStyle(document.documentElement).backgroundColor")
        self.assertLess(max(int(n) for n in re.findall(r"\d+", dark)[:3]), 64)
        self.picture("dark", whole=True)
        self.find("#theme").send_keys("Light")
        self.wait(lambda: self.pixels("#total") > 5)
        light = self.script("return getComputedStyle(document.documentElement).backgroundColor")
        self.assertGreater(min(int(n) for n in re.findall(r"\d+", light)[:3]), 200)

    def test_names_are_text(self):
        """No name is markup, and the address cannot make one."""
        answer = self.daemon.post("/v1/loss?run=%3Cb%3E&step=1", lossd.bccd_bytes(), lossd.SAFETENSORS)
        self.problem(answer, 422)
        self.open("#runs=%3Cimg%20src=x%3E,<b>x</b>")
        self.assertEqual(self.root("state"), "none")

    def test_throughput_and_latency(self):
        with Poster(self.daemon, "busy"):
            self.open()
            self.wait(lambda: all(value != "–" for chart in ("#throughput", "#latency")
                                  for value in self.text(chart + " .value") or ["–"]))
            images, requests = (float(value) for value in self.text("#throughput .value"))
            self.near(images, 2 * requests, .01)
            self.assertGreater(requests, 1)
            p95, median, mean = (float(value.split()[0]) for value in self.text("#latency .value"))
            self.assertTrue(0 < median <= p95 and mean > 0, (p95, median, mean))

    def test_a_real_training(self):
        """Recorded step by step by PyTorch on the daemon's gradients; the picture of README.md, on request."""
        path = os.environ.get("SCREENSHOT")
        done = subprocess.run(["/usr/bin/python3", RECORD, self.url(""), "240" if path else "12"], capture_output=True,
                              text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        names = [row["name"] for row in self.daemon.get("/v1/runs").json()["runs"]]
        self.assertEqual(len(names), 3)
        self.view(1040, 700)
        self.open("#runs=%s&one=%s&smooth=0.8" % (",".join(names), names[-1]))
        self.wait(lambda: len(self.numbers()) == 3 and self.pixels("#total") > 20)
        for name in names:
            steps = self.daemon.get("/v1/runs/%s/steps" % name).json()["steps"]
            self.assertLess(steps[-1]["total"], steps[0]["total"])
            self.lossd_near(steps[-1]["total"], self.numbers()[name][2])
        self.no_sideways_scrolling()
        self.picture("light", whole=True)
        if path:
            self.picture("", path=os.path.join(lossd.ROOT, path))


if __name__ == "__main__":
    unittest.main()
