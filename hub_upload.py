"""What seeklet puts on the Hub, from the command line: `python hub_upload.py --help`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from seeklet.finetune.publish.command import publish
from seeklet.finetune.publish.verify_command import verify
from seeklet.modeling import SeekletError

app = typer.Typer(
    help="Put together what goes to the Hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command()(publish)
app.command()(verify)


@app.command()
def kernels(
    out: Annotated[Path, typer.Option(help="Where the repository goes: a new folder, or one written before.")],
    name: Annotated[str, typer.Option(help="Its name: lower-case words joined by dashes.")] = "seeklet-kernels",
    version: Annotated[int, typer.Option(help="The version of its kernels, which layers name.", min=1)] = 1,
) -> None:
    """Write a kernel repository that the kernels library loads from a folder or from the Hub."""
    from seeklet.finetune.publish.kernels import assemble_kernel_repository

    assemble_kernel_repository(out, name, version)
    typer.echo(f"The kernel repository is in {out}; kernels.get_local_kernel loads it")


def main() -> None:
    """Run the command line: 0 when it worked, 1 where `verify` finds a difference, 2 on a user's mistake.

    Without a sub-command it publishes.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("publish", "verify", "kernels", "--help"):
        arguments = ["publish", *arguments]
    try:
        app(args=arguments)
    # A seeklet error may be an OSError, too, and says more than the system does.
    except (SeekletError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from None
    except OSError as error:
        typer.echo(f"{error.filename or 'the system said'}: {error.strerror or error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
