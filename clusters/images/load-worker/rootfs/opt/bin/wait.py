"""What a pod does until it is told what to run: nothing, as process 1, which ends when asked and buries its dead."""

import os
import signal
import sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGCHLD, lambda *_: None)  # or pause would sleep on
while True:
    signal.pause()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
