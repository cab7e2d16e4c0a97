"""How the page looks: its components, from top to bottom, and its style. What they do is in `handlers`."""

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr
import uploads
import visit


# Seconds that a visit's recording is kept after it was last changed, and an upload that nobody came back for.
KEPT_SECONDS = 20 * 60
OWN_QUESTION = "own"
AS_WRITTEN = "as the file says"


@dataclass(frozen=True)
class Parts:
    """The components that events read and write, in the order of the page."""

    opened: gr.State
    asked_about: gr.State
    files: gr.File
    unit: gr.Dropdown
    rest: gr.Button
    arithmetic: gr.Button
    upload_notice: gr.HTML
    found: gr.Column
    report: gr.HTML
    asking: gr.Column
    traces: gr.HTML
    earlier: gr.Button
    start: gr.Slider
    later: gr.Button
    choice: gr.Radio
    own: gr.Column
    question: gr.Textbox
    answers: gr.Textbox
    ask: gr.Button
    ask_notice: gr.HTML
    answered: gr.Column
    heading: gr.HTML
    probabilities: gr.Label
    tokens: gr.HTML
    maps: gr.HTML


def lay_out(introduction: str, choices: Sequence[tuple[str, str]]) -> Parts:
    """Puts the components onto the page that is being built.

    Args:
        introduction: HTML above everything.
        choices: (what is asked, its task or `OWN_QUESTION`).
    """
    opened = gr.State(None, time_to_live=KEPT_SECONDS)
    # where the window of the answer that is shown begins, and what it was asked
    asked_about = gr.State(None)
    gr.HTML(introduction)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            files = gr.File(label="A recording", file_count="multiple", height=170, elem_id="files")
        with gr.Column(scale=2, min_width=300):
            unit = gr.Dropdown(
                [AS_WRITTEN, "uV", "mV", "V"], value=AS_WRITTEN, label="Unit of its values", info="Before you upload."
            )
            with gr.Row():
                rest = gr.Button("Example: at rest", size="sm", min_width=120)
                arithmetic = gr.Button("Example: calculating", size="sm", min_width=120)
    gr.HTML(
        f'<p class="small">{uploads.FORMATS} At most {uploads.MAX_BYTES // uploads.MEGABYTE} MB and '
        f"{visit.MAX_SECONDS // 60} minutes. The file is deleted as soon as it has been read; its signal is "
        f"forgotten when you close the page, or {KEPT_SECONDS // 60} minutes after you opened it. The examples are "
        "made up by a simulation.</p>"
    )
    upload_notice = gr.HTML(elem_id="upload-notice")
    with gr.Column(visible=False) as found:
        report = gr.HTML(elem_id="report")
        with gr.Column() as asking:
            gr.HTML('<h2 class="step">Pick a window</h2>')
            traces = gr.HTML(elem_id="traces")
            start = gr.Slider(0, 1, step=1, label="The window starts at (s)", elem_id="start", buttons=[])
            with gr.Row():
                earlier = gr.Button("◀ Earlier", min_width=120, size="md", elem_id="earlier")
                later = gr.Button("Later ▶", min_width=120, size="md", elem_id="later")
            gr.HTML('<h2 class="step">Ask</h2>')
            choice = gr.Radio(list(choices), value=choices[0][1], show_label=False, container=False, elem_id="choice")
            with gr.Column(visible=choices[0][1] == OWN_QUESTION) as own, gr.Row():
                question = gr.Textbox(
                    label="Your question", placeholder="Is this person asleep?", max_length=visit.MAX_CHARACTERS
                )
                answers = gr.Textbox(
                    label="Answers to choose from",
                    placeholder="Yes, No",
                    info="Parted by commas, or a line each.",
                    lines=2,
                    max_length=visit.MAX_ANSWERS * visit.MAX_CHARACTERS,
                )
            ask = gr.Button("Ask about this window", variant="primary", elem_id="ask")
            ask_notice = gr.HTML(elem_id="ask-notice")
            with gr.Column(visible=False, elem_id="answered") as answered:
                heading = gr.HTML(elem_id="heading")
                probabilities = gr.Label(show_label=False, elem_id="probabilities")
                maps = gr.HTML(elem_id="maps")
                tokens = gr.HTML(elem_id="tokens")
    return Parts(
        opened, asked_about, files, unit, rest, arithmetic, upload_notice, found, report, asking, traces, earlier,
        start, later, choice, own, question, answers, ask, ask_notice, answered, heading, probabilities, tokens, maps,
    )  # fmt: skip


# Fonts of the visitor's own machine: nothing is loaded from elsewhere.
_FONT = ("system-ui", "sans-serif")
_MONOSPACED = ("ui-monospace", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's plainest theme, with fonts that are there."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, font=_FONT, font_mono=_MONOSPACED
    ).set(
        button_primary_background_fill="#0072B2",
        button_primary_background_fill_hover="#005a8d",
        button_primary_background_fill_dark="#0072B2",
        button_primary_text_color="white",
        body_text_color_subdued="#475569",
        body_text_color_subdued_dark="#a8b3c4",
        block_label_text_color="#475569",
        block_info_text_color="#475569",
    )


CSS = """
.gradio-container { max-width: 60rem !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
.prose p, .prose li, .small { line-height: 1.5; overflow-wrap: anywhere; }
.prose h1 { font-size: 1.7rem; margin: .5rem 0; } .prose h2, h2.step { font-size: 1.25rem; margin: 1rem 0 .5rem; }
.prose h3 { font-size: 1.05rem; margin: 1rem 0 .25rem; }
.small { font-size: .875rem; color: var(--body-text-color-subdued); }
.facts ul { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; padding: 0;
  margin: 0 0 .75rem !important; }
.facts li { background: var(--background-fill-secondary); border-radius: 1rem; padding: .1rem .75rem; margin: 0; }
.notice, .odd { border-left: .25rem solid #D55E00; background: color-mix(in srgb, #D55E00 10%, transparent);
  padding: .6rem .9rem; margin: .5rem 0; line-height: 1.5; overflow-wrap: anywhere; }
.odd { border-color: #E69F00; background: color-mix(in srgb, #E69F00 12%, transparent); }
.odd ul { margin: .25rem 0 0; padding-left: 1.2rem; }
.prose details { margin: .4rem 0; } .prose summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
.figure { display: block; width: 100%; max-width: 46rem; margin: 0 auto; background: #fff; border-radius: .4rem; }
.beside { margin-top: .75rem; display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: .75rem; }
.prose .scroll { overflow-x: auto; }
.prose table { border-collapse: collapse; border: 0 !important; font-size: .875rem; width: 100%; margin: .5rem 0; }
.prose th, .prose td { padding: .25rem .6rem; border: 0; border-bottom: 1px solid var(--border-color-primary);
  text-align: left; }
.prose .numbers td, .prose .numbers thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.prose caption { text-align: left; color: var(--body-text-color-subdued); padding: .3rem 0; }
"""
