"""What a model is asked about an image as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from patchdrive.readers.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """A question with its possible answers.

    Raises:
        ModelError: there is no class, or one twice.
    """

    name: str
    """As it is called in results."""
    classes: tuple[str, ...]
    """What may be answered."""
    many: bool = False
    """True where each class is there or not by itself; False where exactly one of them is right."""

    def __post_init__(self) -> None:
        if not self.name or not self.classes or len(set(self.classes)) < len(self.classes):
            raise ModelError(f"an answer has a name, and classes of different names; got {self.name!r} and {list(self.classes)}")
