"""The command that prints a script for shell completion."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from mvccstore.cli.output import emit, emit_json
from mvccstore.cli.session import json_option, wants_json

COMPLETE_VARIABLE = "_MVCCSTORE_COMPLETE"


@click.command(short_help="Print a script for shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete commands, options, and keys of the store.

    \b
    bash: mvccstore completion bash > ~/.local/share/bash-completion/completions/mvccstore
    zsh:  mvccstore completion zsh > "${fpath[1]}/_mvccstore"
    fish: mvccstore completion fish > ~/.config/fish/completions/mvccstore.fish

    JSON: one object with shell, script.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(click.get_current_context().find_root().command, {}, "mvccstore", COMPLETE_VARIABLE)
    # Not `made.source()`: click's own for bash looks for a bash to run first.
    script = ShellComplete.source(made)
    if wants_json():
        emit_json({"shell": shell, "script": script})
    else:
        emit(script)
