"""Class names: where a network's names come from, and which index a name refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from whycam.errors import WhycamError, near_misses

ClassesLike = Sequence[str] | Mapping[int, str]


@dataclass
class ClassNames:
    """The names of a network's classes.

    Attributes:
        names: index → name; empty if no names are known.
        complete: whether every output has a name, as in a list of names; a mapping may name only some outputs.
        network: the network's name in error messages.
        used: whether a name was looked up.
    """

    names: Mapping[int, str]
    complete: bool = True
    network: str = "the model"
    used: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, model: nn.Module, classes: ClassesLike | None = None) -> ClassNames:
        """The names in ``classes``, or else the model's own names.

        A model's own names are its attribute ``class_names`` (`whycam.load` sets it), or ``config.id2label``, which
        transformers' models have.

        Args:
            model: the network, unwrapped.
            classes: names in the order of the logits, or a mapping of indices to names.

        Raises:
            WhycamError: ``classes`` are not names.
        """
        network = type(model).__name__
        if classes is not None:
            return cls(_checked(classes), not isinstance(classes, Mapping), network)
        model_classes = getattr(model, "class_names", None)
        if model_classes is None:
            model_classes = getattr(getattr(model, "config", None), "id2label", None)
        if model_classes is None:
            return cls({}, network=network)
        # The user's model may have an attribute of that name with another meaning: ignore it.
        try:
            return cls(_checked(model_classes), not isinstance(model_classes, Mapping), network)
        except WhycamError:
            return cls({}, network=network)

    def index(self, name: str) -> int:
        """The index of the class called ``name``; see `class_index`.

        Raises:
            WhycamError: no class or several classes match, or no names are known.
        """
        if not self.names:
            raise WhycamError(
                f"target {name!r} is a class name, but {self.network} does not say what its classes are called: "
                "pass classes=spec.classes (or a list of names), or give the class's index"
            )
        self.used = True
        return class_index(name, self.names)

    def check(self, outputs: int) -> None:
        """Check the names against the number of outputs, if a name was looked up.

        A list has to name every output; every index of a mapping has to exist.

        Raises:
            WhycamError: the names do not fit.
        """
        if not self.used:
            return
        if self.complete and len(self.names) != outputs:
            raise WhycamError(
                f"{len(self.names)} class names are known, but {self.network} has {outputs} outputs: "
                "pass classes= in the order of its outputs"
            )
        invalid = [index for index in self.names if not 0 <= index < outputs]
        if invalid:
            raise WhycamError(
                f"class {self.names[invalid[0]]!r} is said to be output {invalid[0]}, but {self.network} has {outputs} "
                "outputs, counted from 0: pass classes= with the right indices"
            )


def class_index(name: str, classes: ClassesLike) -> int:
    """The index of a class that is given by its name, or by its index as a string.

    An exact match goes first, then a match that ignores case, then a match with one of several names that commas
    separate ("tench" in "tench, Tinca tinca", as in ImageNet's labels).

    Raises:
        WhycamError: no class matches (similar names are listed), or several do.
    """
    names = _checked(classes)
    wanted = name.strip().casefold()
    for matches in (
        [index for index, known in names.items() if known == name],
        [index for index, known in names.items() if known.casefold() == wanted],
        [index for index, known in names.items() if wanted in _parts(known)],
    ):
        if len(matches) > 1:
            raise WhycamError(f"class {name!r} stands for {', '.join(map(str, matches))}: give the index that is meant")
        if matches:
            return matches[0]
    if name.isdecimal() and int(name) in names:
        return int(name)
    known = [*names.values(), *(part for known in names.values() if "," in known for part in _parts(known))]
    raise WhycamError(f"unknown class {name!r}{near_misses(wanted, known)}")


def _parts(name: str) -> list[str]:
    return [part.strip().casefold() for part in name.split(",")]


def _checked(classes: object) -> Mapping[int, str]:
    if isinstance(classes, Sequence) and not isinstance(classes, str) and all(isinstance(n, str) for n in classes):
        return dict(enumerate(classes))
    if isinstance(classes, Mapping) and all(isinstance(i, int) and isinstance(n, str) for i, n in classes.items()):
        return classes
    raise WhycamError("classes are names in the order of the logits, or a mapping of indices to names")
