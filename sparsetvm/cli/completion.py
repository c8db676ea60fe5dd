"""`sparsetvm completion`."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  sparsetvm completion bash >> ~/.bash_completion
    zsh:   sparsetvm completion zsh > a file named _sparsetvm in a folder of $fpath
    fish:  sparsetvm completion fish > ~/.config/fish/completions/sparsetvm.fish
    """
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    if completion is None:
        ctx.fail(f"click knows no completion for {shell}")
    click.echo(completion(ctx.find_root().command, {}, "sparsetvm", "_SPARSETVM_COMPLETE").source())
