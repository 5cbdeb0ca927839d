"""Runs a call in a folder and a process of its own, and lists the rules that it breaks."""

import contextlib
import fnmatch
import hashlib
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from checks.odd_calls.calls import Call

LIMIT_SEC = 200
# More memory than these calls need. A call that asks for all there is must be refused before.
LIMIT_BYTES = 8 * 2**30
# Lines on stderr that are not errors: progress, and warnings.
_PROGRESS = re.compile(
    r"\r|\S+ +\d+/\d+ |\S+ +\d+ \S+ in [\d.]+ s|k-means of|making|(coding|embedding|judging|reading|estimating|generating|clustering|fitting|tokeniz)|"
    r"(comparing|continuing|cutting|drawing|measuring)|.* not listed in|WARNING:|\d+ clips of|musiclm: the (model |step |prompt .* is longer)"
)


class Running:
    """A call at work, in a fork of this process."""

    def __init__(self, call: Call, folder: Path, fixtures: Path):
        """Runs `call` in `folder`, which is new, with copies of those folders of `fixtures` that the call names."""
        self.call, self.folder, self.began = call, folder, time.monotonic()
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        for name in ("clips", "work", "bundle", "passages"):
            if any(word.split("/")[0] == name for word in call.argv):
                shutil.copytree(fixtures / name, self.home / name, symlinks=True)
        with contextlib.chdir(self.home):
            call.make()
        self.before = snapshot(self.home)
        self.pid = os.fork()
        if not self.pid:
            self._work()

    def _work(self) -> None:
        status = 1
        try:
            os.setpgid(0, 0)
            os.chdir(self.home)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o644), number)
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
            from musiclm_jax.cli.main import main

            main(list(self.call.argv))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(status)

    def has_ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.monotonic() - self.began > LIMIT_SEC:
            os.killpg(self.pid, signal.SIGKILL)
            pid, status = os.waitpid(self.pid, 0)
        if not pid:
            return False
        self.status = os.waitstatus_to_exitcode(status)
        self.seconds = time.monotonic() - self.began
        self.out, self.err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        return True

    def broken_rules(self) -> list[str]:
        call, found = self.call, []
        if self.seconds > LIMIT_SEC:
            found.append(f"was still at work after {LIMIT_SEC} s")
        if "Traceback" in self.err + self.out:
            found.append("a traceback")
        if self.status not in call.right:
            found.append(f"status {self.status}")
        lines = [line for line in self.err.split("\n") if line.strip() and not _PROGRESS.match(line)]
        if self.status == 2:
            name = (call.names if call.names is not None else call.argv[-1]).strip()
            if len(lines) != 1 or not lines[0].startswith("musiclm: "):
                found.append(f"{len(lines)} lines of error")
            elif name.replace("-", "").lower() not in lines[0].replace("-", "").replace("_", "").lower():
                found.append(f"does not name {name!r}")
        elif lines and self.status == 0:
            found.append("lines of error, and status 0")
        if self.status != 0:
            after = snapshot(self.home)
            changed = [name for name in sorted({*self.before, *after}) if self.before.get(name) != after.get(name)]
            changed = [name for name in changed if not any(fnmatch.fnmatch(name, pattern) for pattern in call.may)]
            if changed:
                found.append(f"writes or changes {', '.join(map(ascii, changed[:4]))}")
        return found


def snapshot(folder: Path) -> dict[str, tuple]:
    """What is in `folder`, by name: the kind, and the contents or the target."""
    found = {}
    for at, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(at, name)
            relative = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if os.path.islink(path):
                found[relative] = ("link", os.readlink(path))
            elif os.path.isfile(path):
                size = os.path.getsize(path)
                found[relative] = ("file", size, hashlib.md5(Path(os.fsdecode(path)).read_bytes() if size < 2**22 else b"").hexdigest())
            else:
                found[relative] = ("other", os.lstat(path).st_mode)
    return found
