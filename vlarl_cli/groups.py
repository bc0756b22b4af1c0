"""Groups of commands. Their help is plain text: brackets stay, and no width cuts it short."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter


class _Group(TyperGroup):
    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Writes each command's first paragraph whole."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, _summary(one.help or "")) for name, one in commands.items() if one]
            )


def _summary(text: str) -> str:
    return " ".join(cleandoc(text).partition("\n\n")[0].split())


def command_group(purpose: str, name: str | None = None) -> typer.Typer:
    """A group of commands; without one of them it shows its help."""
    return typer.Typer(
        name=name,
        help=purpose,
        cls=_Group,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
