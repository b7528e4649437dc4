"""Every error patchdrive raises on purpose: one small tree, each message naming the rule, the value and the way out."""

from __future__ import annotations


class PatchdriveError(Exception):
    """Something the user can understand and mend; anything else that escapes is a bug."""


class FormatError(PatchdriveError):
    """A source is not something we can open: unknown, unsupported, or broken beyond its index."""


class ReadError(PatchdriveError):
    """A source opened, but these pixels cannot be decoded."""


class StalledError(ReadError):
    """A source does not answer any more."""


class SourceChangedError(PatchdriveError):
    """A source is not the file any more that was opened: what was read of it before and after does not go together."""


class WindowError(PatchdriveError):
    """A window is empty, or overhangs the level it is read from."""


class ResolutionError(PatchdriveError):
    """A pixel size is unknown, absurd, or finer than the source holds."""


class ModelError(PatchdriveError):
    """A model cannot be loaded, is unsafe to load, or does not fit the image."""


class SettingsError(PatchdriveError):
    """The settings of a run contradict each other or the image."""


class BudgetError(PatchdriveError):
    """The memory budget cannot hold the smallest unit of work; the message says how much would."""


class StoreError(PatchdriveError):
    """A result store holds another run, is in use, or is damaged."""
