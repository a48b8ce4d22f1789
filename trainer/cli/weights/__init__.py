"""trainer weights: what model files are, and other files made out of them. One file a verb."""

from typer import Typer

from trainer.cli.weights.convert import convert
from trainer.cli.weights.extract import extract
from trainer.cli.weights.inspect import inspect
from trainer.cli.weights.merge import merge
from trainer.cli.weights.resize import resize

app = Typer(no_args_is_help=True, help="Look into model files, and convert, merge, extract and resize them.")


@app.callback()
def weights() -> None:
    """Look into model files, and convert, merge, extract and resize them."""


for verb in (inspect, convert, merge, extract, resize):
    app.command(verb.__name__)(verb)
