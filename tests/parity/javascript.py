"""Transformers.js in node and in a headless Chromium: vectors of texts, by student, precision and way of asking.

Both run `js/encode.mjs`. Nothing of it reaches a network: in node remote models are off, and the page, Transformers.js,
its WebAssembly and the students all come from a server of this process; Chromium resolves no other name.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

JS = Path(__file__).parent / "js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: What `encode.mjs` takes and gives.
Jobs = Mapping[str, Mapping[str, Any]]
Found = dict[str, dict[str, dict[str, Any]]]


def missing_packages() -> str | None:
    """Why Transformers.js cannot be had here, or None."""
    if shutil.which("node") is None:
        return "node is not installed"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, version.removeprefix("v").split(".")[:2])) < (20, 9):
        return f"node is {version}, and the packages need 20.9"
    if not (JS / "node_modules" / ".package-lock.json").is_file():  # npm writes it last
        return "npm packages are not installed: ./run test installs them where npm is"
    return None


def browser() -> str | None:
    """The Chromium of this machine, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def encode_in_node(models: Path, jobs: Jobs, scratch: Path) -> Found:
    """`models` holds the student folders that `jobs` names."""
    students, vectors = scratch / "students.json", scratch / "vectors.json"
    students.write_text(json.dumps(jobs), encoding="utf-8")
    command = ["node", "node.mjs", str(models), str(students), str(vectors)]
    done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: Found = json.loads(vectors.read_text(encoding="utf-8"))
    return found


def encode_in_chromium(models: Path, jobs: Jobs, scratch: Path) -> Found:
    """`models` holds the student folders that `jobs` names."""
    answered = threading.Event()
    answers: list[Any] = []
    handler = partial(_Handler, models=models, jobs=jobs, answers=answers, answered=answered)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium = browser()
        assert chromium is not None
        command = [
            chromium,
            "--headless",
            "--no-sandbox",  # Chromium refuses to start as root with it, and containers are root
            "--disable-gpu",
            "--disable-dev-shm-usage",  # a container's is too small
            "--no-first-run",
            "--js-flags=--liftoff-only",  # optimising 27 MB of WebAssembly takes longer than tiny models run
            f"--user-data-dir={scratch / 'chromium'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"http://127.0.0.1:{server.server_port}/page.html",
        ]
        log = scratch / "chromium.log"
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                assert answered.wait(timeout=120), (
                    f"the page did not answer:\n{log.read_text(errors='replace')[-2000:]}"
                )
            finally:
                process.terminate()
                server.shutdown()
    (found,) = answers
    assert "error" not in found, found["error"]
    return found


class _Handler(SimpleHTTPRequestHandler):
    """Serves the page, the packages and the students, and takes the vectors."""

    extensions_map: ClassVar[dict[str, str]] = {
        ".html": "text/html",
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".json": "application/json",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def __init__(self, *args: Any, models: Path, jobs: Jobs, answers: list[Any], answered: threading.Event) -> None:
        self.models, self.jobs, self.answers, self.answered = models, jobs, answers, answered
        super().__init__(*args, directory=str(JS))

    def translate_path(self, path: str) -> str:
        if path.startswith("/models/"):
            return str(self.models) + path.removeprefix("/models").partition("?")[0]
        return super().translate_path(path)

    def do_GET(self) -> None:
        if self.path != "/students.json":
            return super().do_GET()
        body = json.dumps(self.jobs).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.answered.set()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""
