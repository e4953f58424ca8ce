# SPDX-License-Identifier: Apache-2.0
"""Runs, and the disk they are on: what is found at the start, what fails later; nothing acknowledged is lost."""
import hashlib
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import lossd  # noqa: E402
from recorded import FILE, SLOW, TINY, Case, all_steps, body, numbers, row, target  # noqa: E402

ROOT = unittest.skipUnless(os.geteuid() == 0, "needs root, to run the daemon as another user")


class Starts(Case):
    """What is found at the start: used, or refused with a reason and left alone."""
    FLAGS = None

    def setUp(self):
        self.home = tempfile.TemporaryDirectory(prefix="lossd-")
        self.addCleanup(self.home.cleanup)
        os.chmod(self.home.name, 0o755)
        self.data = os.path.join(self.home.name, "data")
        self.file = os.path.join(self.data, FILE)

    def prepared(self, n=40, clean=True):
        """A directory with a run, left by a daemon that ended well, or not."""
        daemon = lossd.Daemon("--data-dir", self.data)
        self.fill("prepared", range(n), daemon)
        self.assertEqual(daemon.stop(), 0) if clean else daemon.kill()

    def contents(self):
        out = {}
        for name in os.listdir(self.data):
            with open(os.path.join(self.data, name), "rb") as file:
                data = file.read()
            if data and not name.endswith("-shm"):   # an index of the log, made anew whenever it is opened
                out[name] = hashlib.sha256(data).hexdigest()
        return out

    def refused(self, code, text, *flags, **options):
        """It says why, in one line, and changes nothing."""
        before = self.contents()
        begin = time.monotonic()
        with self.assertRaises(RuntimeError) as failure:
            lossd.Daemon("--data-dir", self.data, *flags, **options)
        self.assertLess(time.monotonic() - begin, 8)
        self.assertRegex(str(failure.exception), r"\(exit %d\): stdout ''" % code)
        self.assertRegex(str(failure.exception), text)
        self.assertIn(FILE if os.path.exists(self.file) else "data directory", str(failure.exception))
        self.assertEqual(self.contents(), before)

    def damage(self, at, data):
        with open(self.file, "r+b") as out:
            out.seek(at)
            out.write(data)

    def test_R06_header_garbage(self):
        self.prepared()
        self.damage(0, b"not a database, whatever its name says" * 30)
        self.refused(65, r"not a database.*left as it is.*\.recover.*--data-dir")
        self.refused(65, "not a database")   # nor the next time
        shutil.rmtree(self.data)
        self.prepared(clean=False)
        self.damage(0, b"not a database, whatever its name says" * 30)
        with lossd.Daemon("--data-dir", self.data) as daemon:   # all of it is in the log
            self.assertEqual(len(all_steps(daemon, "prepared")), 40)

    def test_R06_page_garbage(self):
        for clean in (True, False):
            self.prepared(1500 if clean else 900, clean=clean)
            size = os.path.getsize(self.file)
            self.assertGreater(size, 8 * 4096)
            sound = shutil.copytree(self.data, self.data + ".sound")
            for at in (4096, 2 * 4096, size - 4096):
                with self.subTest(clean, at=at):
                    shutil.rmtree(self.data)
                    shutil.copytree(sound, self.data)
                    self.damage(at, os.urandom(4096))
                    if clean:
                        self.refused(65, r"malformed.*left as it is.*\.recover.*--data-dir")
                        self.refused(65, "malformed")
                        continue
                    try:   # what is in the log may replace it
                        with lossd.Daemon("--data-dir", self.data) as daemon:
                            self.assertEqual(len(all_steps(daemon, "prepared")), 900)
                    except RuntimeError:
                        self.refused(65, "malformed")
            shutil.rmtree(self.data)
            shutil.rmtree(sound)

    def test_R06_truncated(self):
        self.prepared(1500)
        os.truncate(self.file, os.path.getsize(self.file) // 2)
        self.refused(65, "malformed")
        os.truncate(self.file, 10)
        self.refused(65, "not a database")
        os.truncate(self.file, 0)   # an empty database
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.assertEqual(self.names(daemon), [])
            self.record("new", 1, daemon=daemon)

    def test_R06_truncated_log(self):
        """What the log has lost is lost; what is left is whole."""
        self.prepared(200, clean=False)
        log = self.file + "-wal"
        os.truncate(log, os.path.getsize(log) * 2 // 3)
        with lossd.Daemon("--data-dir", self.data) as daemon:
            rows = all_steps(daemon, "prepared")
            self.assertIn(len(rows), range(20, 200))
            self.assertEqual(self.describe("prepared", daemon)["steps"], len(rows))
            for r in rows:
                want = row(self.good(daemon.post("/v1/loss", body(r["step"] % 50))))
                self.assertEqual(numbers(r), want)
            self.record("prepared", 500, daemon=daemon)

    def test_R06_missing_table(self):
        self.prepared()
        with sqlite3.connect(self.file) as db:
            db.execute("DROP TABLE chunk")
        db.close()
        self.refused(65, "malformed")

    def test_L13_newer_version(self):
        for clean in (True, False):
            with self.subTest(clean):
                self.prepared(clean=clean)
                db = sqlite3.connect(self.file)
                with db:
                    db.execute("PRAGMA user_version = 99")
                if not clean:   # it is in the log
                    shutil.copytree(self.data, self.data + ".copy")
                db.close()
                if not clean:
                    shutil.rmtree(self.data)
                    os.rename(self.data + ".copy", self.data)
                self.refused(65, "newer version.*99.*left as it is.*--data-dir")
                with sqlite3.connect(self.file) as db:
                    db.execute("PRAGMA user_version = 1")
                db.close()
                with lossd.Daemon("--data-dir", self.data) as daemon:
                    self.assertEqual(len(all_steps(daemon, "prepared")), 40)
                shutil.rmtree(self.data)

    @ROOT
    def test_R07_not_ours(self):
        self.prepared()
        for data, file in ((0o555, 0o444), (0o755, 0o644), (0o755, 0o600), (0o700, 0o600), (0, 0)):
            with self.subTest(data="%o" % data, file="%o" % file):
                os.chmod(self.data, data)
                os.chmod(self.file, file)
                self.refused(73, "--data-dir", user=65532)
        os.chmod(self.data, 0o755)
        os.chmod(self.file, 0o644)
        for path in (self.data, self.file):
            os.chown(path, 65532, 65532)
        with lossd.Daemon("--data-dir", self.data, user=65532) as daemon:
            self.record("prepared", 99, daemon=daemon)

    @ROOT
    def test_L11_a_directory_that_is_not_ours(self):
        """Nothing was recorded in it, so there is nothing to lose: losses are answered, and records are refused."""
        os.mkdir(self.data, 0o755)
        self.refused(73, "--data-dir", user=65532)   # unless it seems to be meant for runs
        with open(os.path.join(self.data, "something"), "w"):
            pass
        with lossd.Daemon("--data-dir", self.data, user=65532) as daemon:
            self.problem(daemon.post(target("a", 1), TINY), 503, "store_unavailable")
            self.compute(daemon)
            self.assertEqual(self.names(daemon), [])
            os.chown(self.data, 65532, 65532)
            self.record("a", 1, daemon=daemon)   # without a restart

    def test_R07_a_directory_in_its_place(self):
        os.makedirs(os.path.join(self.file, "x"))
        with self.assertRaisesRegex(RuntimeError, r"exit 73.*%s" % FILE):
            lossd.Daemon("--data-dir", self.data)
        self.assertEqual(os.listdir(self.data), [FILE])

    def test_L09_two_daemons(self):
        """The directory is one's own as soon as a run is in it."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("first", 1, daemon=daemon)
            self.assertEqual(sorted(n for n in os.listdir(self.data) if "runs" not in n), [])
            stop, done = threading.Event(), [0]

            def client():
                while not stop.is_set():
                    self.record("first", done[0], daemon=daemon)
                    done[0] += 1

            def second():
                try:
                    for _ in range(3):
                        begin = time.monotonic()
                        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--data-dir", self.data)
                        self.assertEqual((status, out, err.count("\n")), (75, "", 1), err)
                        self.assertLess(time.monotonic() - begin, 3 if SLOW else 1)
                        self.assertRegex(err, "another daemon uses the data directory.*" + re.escape(self.data))
                finally:
                    stop.set()

            lossd.together([client, second])
            self.assertEqual(self.describe("first", daemon)["steps"], done[0])
        with lossd.Daemon("--data-dir", self.data) as daemon:   # nothing is left of a lock
            self.assertEqual(self.names(daemon), ["first"])

    def test_L09_two_daemons_from_the_beginning(self):
        with lossd.Daemon("--data-dir", self.data) as one, lossd.Daemon("--data-dir", self.data) as two:
            self.record("mine", 1, daemon=one)
            self.problem(two.post(target("theirs", 1), TINY), 503, "store_unavailable", "another daemon")
            self.compute(two)
            one.stop()
            self.assertTrue(lossd.until(lambda: two.post(target("theirs", 1), TINY).status == 200, 5))
            self.assertEqual(self.names(two), ["mine", "theirs"])

    def test_L11_a_link(self):
        """It leads to a directory, which two daemons do not share under two names."""
        place, link = os.path.join(self.home.name, "place"), os.path.join(self.home.name, "link")
        os.symlink(place, link)
        with lossd.Daemon("--data-dir", link) as daemon:
            self.problem(daemon.post(target("a", 1), TINY), 503, "store_unavailable")   # nothing is made behind it
            os.mkdir(place, 0o700)
            self.record("a", 1, daemon=daemon)
            for name in (place, link):
                status, out, err = lossd.command("--listen", "127.0.0.1:0", "--data-dir", name)
                self.assertEqual((status, out, err.count("\n")), (75, "", 1), err)
        self.assertEqual(sorted(os.listdir(place)), [FILE])
        with lossd.Daemon("--data-dir", place) as daemon:
            self.assertEqual(self.names(daemon), ["a"])

    def test_L11_made_when_it_is_needed(self):
        with lossd.Daemon("--data-dir", self.data + "/") as daemon:
            self.assertEqual(self.names(daemon), [])
            self.problem(daemon.delete("/v1/runs/x"), 404, "unknown_run")
            self.unknown("x", daemon)
            self.compute(daemon)
            self.assertFalse(os.path.exists(self.data))
            self.record("x", 0, daemon=daemon)
            self.assertEqual(os.stat(self.data).st_mode & 0o777, 0o700)

    def test_L08_again_and_again(self):
        """Restarted under load on the same port: what was acknowledged stays."""
        times = int(os.environ.get("RESTARTS", "20"))
        acknowledged, stop = [set() for _ in range(4)], threading.Event()
        daemon = lossd.Daemon("--data-dir", self.data)
        port = daemon.port

        def client(i):
            step = i
            while not stop.is_set():
                try:
                    with lossd.Connection(port) as connection:
                        while not stop.is_set():
                            answer = connection.request("POST", target("again", step), TINY)
                            if answer.status == 200:
                                acknowledged[i].add(step)
                                step += 4
                            else:
                                self.problem(answer, 503, "draining")
                except (OSError, lossd.Closed):
                    time.sleep(0.005)

        def restart():
            nonlocal daemon
            try:
                for turn in range(times):
                    before = len(acknowledged[0])
                    self.assertTrue(lossd.until(lambda: len(acknowledged[0]) > before + 3))
                    self.assertEqual(daemon.stop(), 0, daemon.log()[-2000:])
                    self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])
                    begin = time.monotonic()
                    daemon = lossd.Daemon("--data-dir", self.data, "--listen", "127.0.0.1:%d" % port)
                    self.assertLess(time.monotonic() - begin, 10 if SLOW else 2)
            finally:
                stop.set()

        lossd.together([lambda i=i: client(i) for i in range(4)] + [restart])
        with daemon:
            steps = {r["step"] for r in all_steps(daemon, "again")}
            want = set().union(*acknowledged)
            self.assertLessEqual(want, steps)
            self.assertLessEqual(len(steps - want), 4)
            self.assertEqual(sorted(os.listdir(self.data)), [FILE, FILE + "-shm", FILE + "-wal"])


class Faults(Case):
    """What fails while it runs: records are refused with the reason, all else goes on, and it works again by itself."""
    FLAGS = None

    def setUp(self):
        self.home = tempfile.TemporaryDirectory(prefix="lossd-")
        self.addCleanup(self.home.cleanup)
        self.data = os.path.join(self.home.name, "data")
        self.file = os.path.join(self.data, FILE)

    def refused(self, daemon, status, code, text=None):
        answer = daemon.post(target("refused", 1), TINY)
        self.problem(answer, status, code, text)
        if status == 503:
            self.assertRegex(answer.header("Retry-After") or "", r"^[1-9]\d*$")
        self.compute(daemon)

    def ready(self, daemon, status, seconds=8):
        self.assertTrue(lossd.until(lambda: daemon.get("/readyz").status == status, seconds), daemon.log()[-500:])

    def warnings(self, daemon):
        return [line for line in daemon.log().splitlines() if "event=store" in line]

    def locked(self):
        other = sqlite3.connect(self.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        self.addCleanup(other.close)
        return other

    def test_R05_locked(self):
        """Past the time that a backup may take; nobody else waits, whoever waits for the disk."""
        with lossd.Daemon("--data-dir", self.data, "--workers", "1", "--queue-limit", "4") as daemon:
            self.record("a", 1, daemon=daemon)
            self.good(daemon.post("/v1/loss", TINY))
            other = self.locked()
            stop, slowest = threading.Event(), [0, 0]

            def recorder(i):
                answer = daemon.post(target("locked", i), TINY)
                self.problem(answer, 503, "store_busy", "lock")
                self.assertRegex(answer.header("Retry-After") or "", r"^[1-9]\d*$")

            def computer():
                time.sleep(0.3)   # they all wait
                while not stop.is_set():
                    for i, ask in enumerate((lambda: daemon.post("/v1/loss", TINY),
                                             lambda: daemon.get("/v1/runs/a/steps"))):
                        begin = time.monotonic()
                        self.good(ask())
                        slowest[i] = max(slowest[i], time.monotonic() - begin)
                    self.assertEqual(daemon.get("/readyz").status, 200)

            def recorders():
                try:
                    begin = time.monotonic()
                    lossd.together([lambda i=i: recorder(i) for i in range(6)])
                    self.assertLess(time.monotonic() - begin, 15)
                finally:
                    stop.set()

            lossd.together([recorders, computer])
            self.assertLess(max(slowest), 1.0, slowest)
            other.execute("ROLLBACK")
            self.record("a", 2, daemon=daemon)
            self.assertEqual(self.names(daemon), ["a"])

    def test_R05_memory_while_locked(self):
        """Whoever waits for the disk holds the answer only, streamed or not: there is room to compute."""
        batch = lossd.bccd()
        bodies = [lossd.bccd_bytes(), batch.safetensors(order=("boxes", "conf", "counts", "labels", "loc"))]
        with lossd.Daemon("--data-dir", self.data, "--memory-limit", "32M") as daemon:
            self.record("a", 1, daemon=daemon)

            def held():
                return int(re.search(r"^lossd_inflight_bytes (\d+)", daemon.get("/metrics").body.decode(), re.M)[1])

            for data in bodies:
                other, waiting = self.locked(), []

                def recorder(i):
                    waiting.append(i)
                    self.problem(daemon.post(target("locked", i), data), 503, "store_busy", "lock")

                def computer():
                    self.assertTrue(lossd.until(lambda: len(waiting) == 3, 1, 0.001))
                    self.assertTrue(lossd.until(lambda: 0 < held() < 1 << 20, 20 if SLOW else 1.5), held())

                lossd.together([computer] + [lambda i=i: recorder(i) for i in range(3)])
                other.execute("ROLLBACK")
            self.assertTrue(lossd.until(lambda: held() == 0), held())

    def test_R05_first_read_while_locked(self):
        """It does not wait for who records, either."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.good(daemon.post(target("a", 1), TINY))
            other = self.locked()

            def record():
                self.problem(daemon.post(target("a", 2), TINY), 503, "store_busy", "lock")

            def read():
                time.sleep(0.3)
                begin = time.monotonic()
                self.assertEqual(len(all_steps(daemon, "a")), 1)
                self.assertLess(time.monotonic() - begin, 1.0)

            lossd.together([record, read])
            other.execute("ROLLBACK")

    def test_R05_delete_while_locked(self):
        """Who reads does not wait for who deletes."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("a", 1, daemon=daemon)
            other = self.locked()

            def delete():
                self.problem(daemon.delete("/v1/runs/a"), 503, "store_busy", "lock")

            def read():
                time.sleep(0.3)
                begin = time.monotonic()
                self.good(daemon.get("/v1/runs/a"))
                self.assertLess(time.monotonic() - begin, 1.0)

            lossd.together([delete, read])
            other.execute("ROLLBACK")
            self.assertEqual(daemon.delete("/v1/runs/a").status, 204)
            self.problem(daemon.delete("/v1/runs/a"), 404, "unknown_run")
            self.unknown("a", daemon)

    def test_R05_a_short_lock(self):
        """Is waited for."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("a", 1, daemon=daemon)
            other = sqlite3.connect(self.file, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")

            def release():
                time.sleep(0.4)
                other.execute("ROLLBACK")
                return time.monotonic()

            def recorded_at():
                self.record("a", 2, daemon=daemon)
                return time.monotonic()

            released, at = lossd.together([release, recorded_at])
            other.close()
            self.assertGreater(at, released)

    def test_R05_deadline_while_locked(self):
        """504: nobody knows whether it will be recorded; the same step again is."""
        with lossd.Daemon("--data-dir", self.data, "--request-timeout", "1") as daemon:
            self.record("a", 1, daemon=daemon)
            other = self.locked()
            begin = time.monotonic()
            self.problem(daemon.post(target("late", 1), TINY), 504, "timeout")
            self.problem(daemon.delete("/v1/runs/a"), 504, "timeout")
            self.assertLess(time.monotonic() - begin, 6)
            self.compute(daemon)
            other.execute("ROLLBACK")
            self.record("late", 1, daemon=daemon)
            self.assertEqual(self.describe("late", daemon)["steps"], 1)

    def test_L02_stopped_while_locked(self):
        daemon = lossd.Daemon("--data-dir", self.data, "--drain-timeout", "1")
        self.record("a", 1, daemon=daemon)
        self.locked()
        answers = []

        def client(i):
            try:
                answers.append(daemon.post(target("a", 10 + i), TINY))
            except (lossd.Closed, OSError):
                pass

        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        begin = time.monotonic()
        daemon.signal()
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - begin, 6)
        for thread in threads:
            thread.join()
        for answer in answers:
            self.problem(answer, 503, "store_busy draining")
        self.assertIsNone(lossd.SANITIZER.search(daemon.log()), daemon.log()[-3000:])

    def test_R09_a_reader_elsewhere(self):
        """A backup that reads for long holds nobody up."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.fill("a", range(30), daemon)
            other = sqlite3.connect(self.file, isolation_level=None)
            other.execute("BEGIN")
            self.assertEqual(other.execute("SELECT count(*) FROM step").fetchone(), (30,))
            self.fill("a", range(30, 330), daemon)
            self.assertEqual(other.execute("SELECT count(*) FROM step").fetchone(), (30,))
            other.close()
            self.assertEqual(len(all_steps(daemon, "a")), 330)

    def full(self, daemon, make_full, make_room):
        """507 while there is no room; history can be read, and losses are answered."""
        self.fill("kept", range(20), daemon)
        rows = all_steps(daemon, "kept")
        make_full()
        acknowledged = set()
        for step in range(3000):
            answer = daemon.post(target("filling", step), TINY)
            if answer.status != 200:
                self.problem(answer, 507, "store_full", "full")
                break
            acknowledged.add(step)
        self.assertEqual(answer.status, 507)
        self.refused(daemon, 507, "store_full")
        self.ready(daemon, 200, 1)
        self.assertEqual(all_steps(daemon, "kept"), rows)
        if acknowledged:
            self.assertEqual({r["step"] for r in all_steps(daemon, "filling")}, acknowledged)
        make_room()
        self.assertTrue(lossd.until(lambda: daemon.post(target("again", 1), TINY).status == 200, 5))
        self.assertEqual(all_steps(daemon, "kept"), rows)
        return acknowledged

    def test_R04_size_limit(self):
        """Of files (RLIMIT_FSIZE), as EDQUOT and EFBIG say it."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            unlimited = resource.RLIM_INFINITY

            def limit():
                size = os.path.getsize(self.file + "-wal") + (200 << 10)
                resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, unlimited))

            self.full(daemon, limit, lambda: resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE,
                                                              (unlimited, unlimited)))
            names = self.names(daemon)
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.assertEqual(self.names(daemon), names)

    def test_R04_full_disk(self):
        with tempfile.TemporaryDirectory() as home:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "lossd-test", home],
                              stderr=subprocess.DEVNULL).returncode:
                self.skipTest("no tmpfs can be mounted here")
            filler = os.path.join(home, "filler")

            def fill():
                with open(filler, "wb") as out:
                    try:
                        while True:
                            os.write(out.fileno(), b"x" * 1024)
                    except OSError:
                        pass

            try:
                daemon = lossd.Daemon("--data-dir", os.path.join(home, "data"))
                self.full(daemon, fill, lambda: os.unlink(filler))
                db = sqlite3.connect(os.path.join(home, "data", FILE))
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()   # later it would make room
                db.close()
                fill()
                self.refused(daemon, 507, "store_full")
                for _ in range(2):   # what the log takes is given back once
                    fill()
                    os.truncate(filler, os.path.getsize(filler) - (160 << 10))
                    answer = daemon.post(target("squeezed", 1), TINY)
                self.problem(answer, 507, "store_full")   # so much is kept for what makes room
                self.assertEqual(daemon.delete("/v1/runs/kept").status, 204)
                os.unlink(filler)
                self.record("kept", 1, daemon=daemon)
                names = self.names(daemon)
                lines = self.warnings(daemon)   # one for each change, not for each refusal
                self.assertLess(len(lines), 12, lines)
                fill()
                daemon.kill()   # full, and killed
                with lossd.Daemon("--data-dir", os.path.join(home, "data")) as daemon:   # starts on a full disk
                    self.assertEqual(self.names(daemon), names)
                    self.refused(daemon, 507, "store_full")
                    os.unlink(filler)
                    self.record("kept", 2, daemon=daemon)
            finally:
                subprocess.run(["umount", "-l", home], check=True)

    def test_R04_runs_fill_their_disk(self):
        """Nothing else is on it: deleting a run makes room, again and again."""
        with tempfile.TemporaryDirectory() as home:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "lossd-test", home],
                              stderr=subprocess.DEVNULL).returncode:
                self.skipTest("no tmpfs can be mounted here")
            try:
                with lossd.Daemon("--data-dir", os.path.join(home, "data")) as daemon:
                    for name in "abc":
                        step = 0
                        while daemon.post(target(name, step), TINY).status == 200:
                            step += 1
                        self.assertGreater(step, 100)
                        self.refused(daemon, 507, "store_full")
                        self.assertEqual(daemon.delete("/v1/runs/" + name).status, 204)
                        self.assertTrue(lossd.until(lambda: daemon.post(target("kept", 1), TINY).status == 200, 10))
            finally:
                subprocess.run(["umount", "-l", home], check=True)

    def test_R08_deleted_or_moved(self):
        for what in ("file", "directory", "moved", "replaced"):
            with self.subTest(what), lossd.Daemon("--data-dir", self.data) as daemon:
                self.record("a", 1, daemon=daemon)
                self.ready(daemon, 200)
                aside = self.file + ".aside"
                if what == "directory":
                    shutil.rmtree(self.data)
                elif what == "file":
                    os.unlink(self.file)
                else:
                    os.rename(self.file, aside)
                if what == "replaced":
                    shutil.copy(aside, self.file)
                self.refused(daemon, 503, "store_unavailable", "moved or deleted")
                self.ready(daemon, 503)   # somebody looks, whether or not there are records
                self.problem(daemon.get("/v1/runs"), 503, "store_unavailable")
                self.problem(daemon.get("/v1/runs/a"), 503, "store_unavailable")
                self.problem(daemon.delete("/v1/runs/a"), 503, "store_unavailable")
                self.compute(daemon)
                self.assertEqual(len(self.warnings(daemon)), 1)
                if what in ("moved", "replaced"):
                    os.rename(aside, self.file)
                    if what == "moved":
                        self.ready(daemon, 200)
                    self.record("a", 2, daemon=daemon)
                    self.assertEqual(self.describe("a", daemon)["steps"], 2)
            shutil.rmtree(self.data, ignore_errors=True)

    def test_R08_noticed_without_a_record(self):
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.record("a", 1, daemon=daemon)
            os.unlink(self.file)
            self.ready(daemon, 503)
            self.compute(daemon)

    def test_R06_damaged_while_it_runs(self):
        """It is noticed by whoever reads or writes; nothing more is written, and nothing is deleted."""
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.fill("a", range(100), daemon)
            daemon.stop()
        db = sqlite3.connect(self.file)   # more than is kept in memory
        with db:
            columns = [r[1] for r in db.execute("PRAGMA table_info(step)")]
            for i in range(1, 300):
                values = ", ".join("step + %d" % (100 * i) if c == "step" else c for c in columns)
                db.execute("INSERT INTO step SELECT %s FROM step WHERE step < 100" % values)
            db.execute("UPDATE run SET steps = 30000, last_step = 29999, unsealed = 30000")
        db.close()
        with lossd.Daemon("--data-dir", self.data) as daemon:
            self.assertEqual(len(all_steps(daemon, "a")), 30000)
            size = os.path.getsize(self.file)
            self.assertGreater(size, 4 << 20)
            with open(self.file, "r+b") as out:
                for at in range(16 * 4096, size // 4096 * 4096, 4096):
                    out.seek(at)
                    out.write(b"\xa5" * 4096)
            self.assertEqual(daemon.get("/readyz").status, 200)
            answer = daemon.get("/v1/runs/a/steps?limit=1000&after=15000")
            self.problem(answer, 503, "store_unavailable", "malformed")
            self.refused(daemon, 503, "store_unavailable", "damaged|malformed")
            self.ready(daemon, 503)
            self.compute(daemon)
            time.sleep(0.1)
            self.assertEqual(daemon.get("/readyz").status, 503)   # and it stays so
            with open(self.file, "rb") as file:
                left = file.read()
        with open(self.file, "rb") as file:
            self.assertEqual(hashlib.sha256(file.read()).digest(), hashlib.sha256(left).digest())
        with self.assertRaisesRegex(RuntimeError, "exit 65"):
            lossd.Daemon("--data-dir", self.data)

    def test_L11_no_place(self):
        for data in ("/nonexistent/lossd-data", "/proc/lossd", "/dev/null/data"):
            with self.subTest(data), lossd.Daemon("--data-dir", data) as daemon:
                self.ready(daemon, 200, 1)
                for _ in range(2):
                    self.refused(daemon, 503, "store_unavailable", "data directory")
                    self.ready(daemon, 200, 1)
                self.assertEqual(self.good(daemon.get("/v1/runs")), {"runs": [], "next": None})
                self.unknown("refused", daemon)
                self.problem(daemon.delete("/v1/runs/refused"), 404, "unknown_run")
                self.assertEqual(len(self.warnings(daemon)), 1)

    def test_L11_a_file_for_a_place(self):
        with open(self.data, "w"):
            pass
        status, out, err = lossd.command("--listen", "127.0.0.1:0", "--data-dir", self.data)
        self.assertEqual((status, out), (73, ""), err)
        self.assertRegex(err, "^lossd: [^\n]*%s\" is a file; name another --data-dir\n$" % re.escape(self.data))

    def test_L11_a_place_that_comes_later(self):
        parent = os.path.join(self.home.name, "later")
        with lossd.Daemon("--data-dir", os.path.join(parent, "data")) as daemon:
            self.refused(daemon, 503, "store_unavailable")
            os.mkdir(parent)
            self.record("a", 1, daemon=daemon)
            self.ready(daemon, 200)


if __name__ == "__main__":
    unittest.main()
