"""Execute one notebook with papermill: ``python -m tokencutseg.report.execute ARGUMENTS``, as `notebooks` starts it.

Prints "cell" as each code cell starts and the error, in one line, when one fails; the exit status is then 1. Ends, and
its kernel with it, on SIGTERM and when standard input is closed: when the process that started it has died.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback

import papermill


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # unbuffered: a lock held by this thread would stop the interpreter from exiting
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(15)  # more than a kernel needs to shut down; one that hangs ends when its parent is gone
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an exception, on whose way up the kernel is shut down
    threading.Thread(target=_end_with_parent, daemon=True).start()
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options["start_timeout"] = 600  # papermill's 60 s are too few on a busy machine
    options["store_widget_state"] = False  # stills stand in for widgets
    try:
        papermill.execute_notebook(
            **json.loads(sys.argv[1]), **options, on_cell_execute=lambda **_: print("cell", flush=True)
        )
    except Exception as error:  # of the notebook or of papermill: the runner says it
        traceback.print_exc()
        name, text = type(error).__name__, str(error)
        if isinstance(error, papermill.PapermillExecutionError):
            name, text = error.ename, error.evalue
        text = "the kernel died (killed, or out of memory)" if name == "DeadKernelError" else f"{name}: {text}"
        print(" ".join(text.split()))
        sys.exit(1)
