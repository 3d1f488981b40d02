"""The command `ferry demo`: the page of a web bundle, on this machine alone."""

from typing import TYPE_CHECKING

import click

from serving.commands.options import MODEL
from serving.console import json_option, note, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("bundle", type=MODEL)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(min=0, max=65535),
    default=8000,
    show_default=True,
    help="Port of 127.0.0.1 to serve the page at; 0 for any that is free.",
)
@json_option
def demo(bundle: "Path", port: int, as_json: bool) -> None:
    """Serve the page of BUNDLE, until Ctrl-C.

    BUNDLE is a folder that `ferry bundle NAME --target web` made. In its page a person draws,
    photographs or writes what the model shall answer, and the browser runs the model. Every byte of
    the folder is checked first.

    On this machine alone: others cannot open the page. For them, copy the folder to any server of
    static files.

    Example: ferry demo bundles/digits-cnn.web
    """
    from serving.edge.demo import serving

    with serving(bundle, port) as (server, address):
        show({"url": address}, as_json=as_json, text=address)
        note("Ctrl-C ends it")
        server.serve_forever()
