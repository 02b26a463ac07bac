"""A headless Chromium driven over its DevTools socket: what it fetched, what it complained of, what it shows."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

_NAMES = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root in a container, where Chromium's own sandbox cannot start
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_DEADLINE = 60.0  # seconds, for one answer of the browser


def find() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `events` holds everything the browser said unasked, in order."""

    def __init__(self, socket: Any, session: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1000)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser one thing and wait for its answer."""
        number = next(self._numbers)
        _send(self._socket, number, method, params, self._session)
        while (message := json.loads(self._socket.recv())).get("id") != number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        found: dict[str, Any] = message["result"]
        return found

    def open(self, path: Path) -> None:
        """Show a file and wait until it has loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._socket.recv()))
        self.ask("document.readyState")  # what the browser said before this answer has been said

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; the page itself may not run any."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def look(self, width: int, height: int, *, scheme: str = "light", media: str = "screen") -> None:
        """Set the window's size in CSS pixels, the colour scheme, and screen or print."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def click(self, selector: str) -> None:
        """Scroll an element into sight and press the mouse in its middle, as a person does."""
        query = json.dumps(selector)
        x, y = self.ask(
            f"(() => {{const e = document.querySelector({query}); e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press Enter or Tab."""
        code = {"Enter": 13, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        found = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(found["data"])

    def fetched(self) -> list[str]:
        """Every address the page asked for since it was opened, its own excepted."""
        found = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in found if params.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """What a developer would see in the console."""
        told = []
        for event in self.events:
            if event.get("method") == "Log.entryAdded":
                told.append(event["params"]["entry"]["text"])
            if event.get("method") in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown"}:
                told.append(json.dumps(event["params"]))
        return told


@contextmanager
def browser(executable: str, home: Path) -> Iterator[Tab]:
    """Start Chromium with its profile in `home`, give one tab, and end it."""
    command = [executable, *_FLAGS, f"--user-data-dir={home}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield from _tab(_address(process))
        finally:
            process.terminate()
            process.communicate(timeout=_DEADLINE)


def _address(process: subprocess.Popen[str]) -> str:
    told = []
    for line in process.stderr or ():
        if line.startswith("DevTools listening on "):
            return line.removeprefix("DevTools listening on ").strip()
        told.append(line)
    raise RuntimeError("Chromium did not start:\n" + "".join(told))


def _tab(address: str) -> Iterator[Tab]:
    socket = websocket.create_connection(address, timeout=_DEADLINE, suppress_origin=True, max_size=None)
    try:
        target = _once(socket, 1, "Target.createTarget", {"url": "about:blank"})["targetId"]
        session = _once(socket, 2, "Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        yield Tab(socket, session)
    finally:
        socket.close()


def _once(socket: Any, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    _send(socket, number, method, params, None)
    while (message := json.loads(socket.recv())).get("id") != number:
        pass
    found: dict[str, Any] = message["result"]
    return found


def _send(socket: Any, number: int, method: str, params: dict[str, Any], session: str | None) -> None:
    message = {"id": number, "method": method, "params": params}
    socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
