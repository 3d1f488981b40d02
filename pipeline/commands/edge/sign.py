"""The command `ferry sign`: put one's name to a bundle."""

from typing import TYPE_CHECKING

import click

from serving.commands.options import MODEL, limit_options
from serving.console import PATH, allow_option, json_option, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("bundle", type=MODEL)
@click.option(
    "--key",
    metavar="PRIVATE.pem",
    type=PATH,
    required=True,
    help="Your P-256 private key, in PEM and without a password.",
)
@allow_option
@limit_options
@json_option
def sign(bundle: "Path", key: "Path", as_json: bool) -> None:
    """Sign a bundle, so that a device can tell who made it.

    BUNDLE is a folder, or its name in bundles/. It must pass `ferry verify`, and gets a file more,
    model.sig, in the format of OpenSSF model signing, which covers every other file. `ferry verify
    --key`, `python runner.py selftest --key` and the package model-signing check it.

    Whatever changes the bundle makes it void, so sign last, and a copy: `dvc repro` makes what it
    finds altered in bundles/ anew.

    `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes a key, which stays secret;
    `openssl ec -in key.pem -pubout -out pub.pem` writes its public half, which goes to the devices,
    by another way than the bundles.

    Example: ferry sign release/mnist-cnn --key key.pem
    """
    from serving.bundles.signing import sign as work

    report = work(bundle, key)
    text = (
        f"{report.bundle} is signed: {report.num_files} files, digest {report.digest}\n"
        f"by the key whose public half has the sha256 {report.key_sha256}"
    )
    show(report, as_json=as_json, text=text)
