"""accelerate's launcher, except that a SIGTERM lets its processes stop in their own time.

    python scripts/_accelerate.py launch --config_file FILE [...] scripts/train.py [...]

It asks them by SIGUSR1, again and again until they end, since they ignore it until they can
answer, and then ends with their status. Other signals have their usual effect.
"""

from __future__ import annotations

import contextlib
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
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by the processes until they answer
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT")  # torchrun's, less TERM
    try:
        from accelerate.commands.accelerate_cli import main as accelerate
    except ModuleNotFoundError as error:
        advice = f"{sys.executable} needs: pip install -r requirements.txt"
        print(f"error: {error}; {advice}", file=sys.stderr)
        return 2
    accelerate()
    return 0


def pass_on(asked: threading.Event) -> None:
    asked.wait()
    while True:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGUSR1)
        time.sleep(ASK_S)


if __name__ == "__main__":
    sys.exit(main())
