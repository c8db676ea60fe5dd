"""A config: one frozen assignment of a template's knobs.

Default, search, log replay and hand-written schedules all produce this one value (the idea is tinygrad's `Opt`).
"""

from __future__ import annotations

import ast

import msgspec

KnobValue = int | str
# Named outside the class: inside it, `int` and `str` are the methods below.
Text = str
Knobs = tuple[tuple[str, KnobValue], ...]


class Config(msgspec.Struct, frozen=True):
    """`template` names the schedule template; `knobs` are (name, value) pairs sorted by name."""

    template: Text
    knobs: Knobs = ()

    @staticmethod
    def of(template: Text, **knobs: KnobValue) -> Config:
        """Config from keyword arguments."""
        return Config(template, tuple(sorted(knobs.items())))

    @staticmethod
    def parse(text: Text) -> Config:
        """The config that `str` wrote. Raises ValueError for anything else."""
        try:
            call = ast.parse(text, mode="eval").body
            if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Config.of" or len(call.args) != 1:
                raise ValueError
            knobs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            template = ast.literal_eval(call.args[0])
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"{text!r} is no config") from error
        if not isinstance(template, str) or not all(isinstance(value, int | str) for value in knobs.values()):
            raise ValueError(f"{text!r} is no config")
        return Config.of(template, **knobs)

    def __getitem__(self, knob: Text) -> KnobValue:
        for name, value in self.knobs:
            if name == knob:
                return value
        raise KeyError(knob)

    def int(self, knob: Text) -> int:
        """Value of an integer knob."""
        value = self[knob]
        if not isinstance(value, int):
            raise TypeError(f"knob '{knob}' of {self.template} is {value!r}, not an integer")
        return value

    def str(self, knob: Text) -> Text:
        """Value of a string knob."""
        value = self[knob]
        if not isinstance(value, str):
            raise TypeError(f"knob '{knob}' of {self.template} is {value!r}, not a string")
        return value

    def replace(self, **knobs: KnobValue) -> Config:
        """A copy with some knobs changed."""
        return Config.of(self.template, **{**dict(self.knobs), **knobs})

    def __str__(self) -> Text:
        """Python that makes this config again, to be pasted."""
        return f"Config.of({', '.join([repr(self.template), *(f'{k}={v!r}' for k, v in self.knobs)])})"
