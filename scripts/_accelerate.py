"""accelerate's launcher, which at a SIGTERM has its processes stop in their own time instead of killing them.

    python scripts/_accelerate.py launch --config_file FILE [...] scripts/train.py [...]

It asks them by SIGUSR1, which they ignore until they can answer it: hence again and again, until they have ended. It
then ends as they did; what else it is sent it takes as ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psutil

ASK_S = 0.5


def main() -> int:
    asked = threading.Event()
    threading.Thread(target=pass_on, args=(asked,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # what it starts begins by ignoring it too
    os.environ.setdefault(
        "PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT"
    )  # torchrun's own, less TERM
    try:
        from accelerate.commands.accelerate_cli import main as accelerate
    except ModuleNotFoundError as error:
        print(
            f"error: {error}; {sys.executable} needs: pip install -r requirements.txt",
            file=sys.stderr,
        )
        return 2
    accelerate()
    return 0


def pass_on(asked: threading.Event) -> None:
    asked.wait()
    while True:
        for child in psutil.Process().children():
            try:
                child.send_signal(signal.SIGUSR1)
            except psutil.NoSuchProcess:
                continue
        time.sleep(ASK_S)


if __name__ == "__main__":
    sys.exit(main())
