"""The Space: `python app.py` serves a page on which a recording is uploaded, looked at and asked about.

Environment variables: NEUROLM_MODEL, a model's folder or Hub id; GRADIO_TEMP_DIR, where uploads are received (where it
is not set, a new folder that is removed at the end); Gradio's own, such as GRADIO_SERVER_PORT.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Settles what Gradio and matplotlib read from the environment, which is before they are imported, and serves."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["MPLBACKEND"] = "Agg"
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="neurolm-space-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
        # whoever stops a server sends this, which would end the process without what is registered
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from serving import serve

    serve(os.environ.get("NEUROLM_MODEL", ""), Path(os.environ["GRADIO_TEMP_DIR"]))


if __name__ == "__main__":
    main()
