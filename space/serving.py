"""The model is opened, the page is built, and a web server is started on it."""

import sys
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import uploads
import words
from gate import UploadGate
from handlers import Handlers
from layout import CSS, KEPT_SECONDS, OWN_QUESTION, lay_out, theme
from starlette.middleware import Middleware

from neurolm_hf.answering import open_model
from neurolm_hf.cpu import make_cpu_fast


TITLE = "Ask an EEG recording"
# Visitors whose recordings are held at a time, and events that wait.
MAX_VISITORS = 30
MAX_WAITING = 20
# Gradio's method that makes a file at hand of whatever a request names as one.
_FETCH = "async_move_resource_to_block_cache"
NO_MODEL = (
    "This page has no model to ask. Whoever runs it sets the environment variable NEUROLM_MODEL to a model's folder "
    "or its id on the Hub."
)


def serve(source: str, upload_folder: Path) -> None:
    """Serves the page until the process ends.

    Args:
        source: the model's folder or Hub id; where it is empty, or cannot be opened, the page says so.
        upload_folder: where the web server puts uploads; made where it is not there.
    """
    upload_folder.mkdir(parents=True, exist_ok=True)
    make_cpu_fast()
    page = build_page(source, upload_folder)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    # what Gradio would also do on a word of the environment is said here, one by one
    page.launch(
        share=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        max_file_size=uploads.MAX_BYTES,
        state_session_capacity=MAX_VISITORS,
        show_error=False,
        ssr_mode=False,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(UploadGate, upload_folder=upload_folder)]},
        theme=theme(),
        css=CSS,
    )


def build_page(source: str, upload_folder: Path) -> gr.Blocks:
    """The page for a model. Arguments as in `serve`."""
    try:
        if not source:
            raise ValueError(NO_MODEL)
        model = open_model(source)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.HTML(words.introduction() + words.notice(NO_MODEL))
        return page
    pipe = model.model.as_pipeline(model.processor, device="cpu")
    tasks = pipe.model.config.tasks or []
    name = Path(source).name if Path(source).is_dir() else source
    introduction = words.introduction(name, [task["name"] for task in tasks])
    choices = [(task["question"].removeprefix("Question: "), task["name"]) for task in tasks]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as page:
        parts = lay_out(introduction, [*choices, ("A question of my own", OWN_QUESTION)])
        setattr(parts.files, _FETCH, _uploaded_only)
        Handlers(pipe, parts, upload_folder).connect()
        page.unload(_forgetting(page))
    return page


async def _uploaded_only(path: str | Path | None) -> str | None:
    """In place of Gradio's, which would fetch the addresses that a forged request names as files."""
    if path is None or "://" in str(path):
        raise gr.Error("Only what was uploaded here is read.")
    return str(path)


def _forgetting(page: gr.Blocks) -> Callable[[gr.Request], None]:
    """What is done when a visitor closes the page, in place of Gradio's hour of keeping the session's state."""

    def forget(request: gr.Request) -> None:
        if request.session_hash:
            page.state_holder.delete_state(request.session_hash)

    return forget
