"""A headless Chromium on an MLflow server of its own: for tests, and for the screenshots of the docs.

    python -m tests.browser DATABASE FOLDER NAME=PATH…

opens each PATH of MLflow's UI, such as ``#/experiments/1/runs``, and saves FOLDER/NAME.png.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests

TRAINING = "workflowType=machine_learning"  # what MLflow's UI opens in Model training by
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (  # nothing of it needs, or tries, a network
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1900,1200",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def missing() -> str:
    """Why there is no browser here; "" if there is one."""
    names = [name for name in _CHROMIUM if shutil.which(name)]
    if not names or not shutil.which("chromedriver"):
        return "chromium and chromedriver are not installed"
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        return "selenium is not installed"
    return ""


@contextmanager
def server(uri: str, folder: Path) -> Iterator[str]:
    """The address of an MLflow server of the database ``uri``; it ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        with ended_at_last(process.pid):  # its workers too
            address = f"http://127.0.0.1:{port}"
            until(lambda: _answers(address, process), what="MLflow's server answers")
            yield address
    process.wait()


@contextmanager
def ended_at_last(group: int) -> Iterator[None]:
    """The process group is killed at the end of the block, or when this process ends, by SIGKILL too: then
    the pipe closes that the watching shell reads."""
    watch = ["sh", "-c", 'read -r _; kill -s KILL -- "-$0" 2>/dev/null', str(group)]
    watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        watcher.communicate()


def _answers(address: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "MLflow's server ended"
    try:
        return requests.get(f"{address}/health", timeout=5, proxies={"http": ""}).ok
    except requests.RequestException:
        return False


def until(condition: Callable[[], Any], *, what: str, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.1)


class Browser:
    """A window on the UI at ``address``; as a context."""

    def __init__(self, address: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = next(path for name in _CHROMIUM if (path := shutil.which(name)))
        for argument in _ARGUMENTS:
            options.add_argument(argument)
        self._address = address
        # Chromium is in the process group of the driver.
        service = Service(shutil.which("chromedriver"), popen_kw={"start_new_session": True})
        self._driver = webdriver.Chrome(options=options, service=service)
        self._end = ExitStack()
        self._end.enter_context(ended_at_last(service.process.pid))
        self._end.callback(self._driver.quit)
        # The panel of the assistant would cover what is to be read; a user closes it once.
        self._driver.get(address)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def open(self, path: str, *, shows: Sequence[str] = ()) -> str:
        """The text of a page, once all of ``shows`` stands on it, frames included."""
        joint = "&" if "?" in path else "?"
        self._driver.get("about:blank")  # between two addresses of one page, the UI keeps what was chosen
        self._driver.get(f"{self._address}/{path}{joint}{TRAINING}")
        text = ""

        def found() -> bool:
            nonlocal text
            text = self._text()
            return all(each in text for each in shows)

        try:
            until(found, what=str(shows), limit_s=30)
        except AssertionError as fault:
            lacks = [each for each in shows if each not in text]
            raise AssertionError(f"{path} does not show {lacks}, but: {text}") from fault
        return text

    def _text(self) -> str:
        read = "return document.body ? document.body.innerText : ''"
        parts = [str(self._driver.execute_script(read))]
        for frame in self._driver.find_elements("tag name", "iframe"):
            try:
                self._driver.switch_to.frame(frame)
                parts.append(str(self._driver.execute_script(read)))
            except Exception as fault:  # it was replaced meanwhile
                parts.append(type(fault).__name__)
            finally:
                self._driver.switch_to.default_content()
        return "\n".join(parts).replace("\xa0", " ")

    def close_assistant(self) -> None:
        """The panel at the right goes, as it does where a user closes it."""
        for button in self._driver.find_elements("css selector", "button[aria-label*='lose']"):
            if button.is_displayed():
                button.click()

    def screenshot(self, path: Path) -> None:
        self._driver.save_screenshot(str(path))


def main(database: str, folder: str, *pages: str) -> None:
    with server(database, Path(folder)) as address, Browser(address) as browser:
        for page in pages:
            name, path = page.split("=", 1)
            browser.open(path)
            time.sleep(5)  # charts move into place
            browser.close_assistant()
            time.sleep(1)
            browser.screenshot(Path(folder, f"{name}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
