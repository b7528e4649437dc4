"""What a model is asked about an image as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from patchdrive.readers.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """A question with its possible answers.

    Raises:
        ModelError: there is no class, or one twice, or the name is no word.
    """

    name: str
    """As it is called in results."""
    classes: tuple[str, ...]
    """What may be answered."""
    many: bool = False
    """True where each class is there or not by itself; False where exactly one of them is right."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ModelError(f"an answer's name is a word of letters, digits and _, got {self.name!r}")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ModelError(f"answer {self.name!r} has classes of different names, got {list(self.classes)}")
