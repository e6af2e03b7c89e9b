"""Classes by name: where a network's class names come from, and which index a name stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from whycam.errors import WhycamError, near_misses

ClassesLike = Sequence[str] | Mapping[int, str]


@dataclass
class ClassNames:
    """What a network's classes are called.

    Attributes:
        names: index → name; empty where nothing is known.
        whole: whether they name every output, as a list of names does; a mapping may name some of them.
        network: what the network is called in an error.
        used: whether a name was looked up.
    """

    names: Mapping[int, str]
    whole: bool = True
    network: str = "the model"
    used: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, model: nn.Module, given: ClassesLike | None = None) -> ClassNames:
        """The names that were given, or else the model's own.

        Those are its attribute ``class_names`` (`whycam.load` sets it), or ``config.id2label``, as the models of
        transformers have it.

        Args:
            model: the network, unwrapped.
            given: names in the order of the logits, or a mapping of indices to names.

        Raises:
            WhycamError: ``given`` holds something else than names.
        """
        network = type(model).__name__
        if given is not None:
            return cls(_checked(given), not isinstance(given, Mapping), network)
        own = getattr(model, "class_names", None)
        if own is None:
            own = getattr(getattr(model, "config", None), "id2label", None)
        # A model's attribute of that name may be anything: what is no list of names is not ours to complain about.
        try:
            return cls(_checked(own) if own is not None else {}, not isinstance(own, Mapping), network)
        except WhycamError:
            return cls({}, network=network)

    def index(self, name: str) -> int:
        """The index of the class called ``name``; see `class_index`.

        Raises:
            WhycamError: there is no such class or there are several, or no names are known at all.
        """
        if not self.names:
            raise WhycamError(
                f"target {name!r} is a class name, but {self.network} does not say what its classes are called: "
                "pass classes=spec.classes (or a list of names), or give the class's index"
            )
        self.used = True
        return class_index(name, self.names)

    def check(self, outputs: int) -> None:
        """Once names were used: a list has to name every output, a mapping no output that there is not.

        Raises:
            WhycamError: there are not.
        """
        if not self.used:
            return
        if self.whole and len(self.names) != outputs:
            raise WhycamError(
                f"{len(self.names)} class names are known, but {self.network} has {outputs} outputs: "
                "pass classes= in the order of its outputs"
            )
        stray = [index for index in self.names if not 0 <= index < outputs]
        if stray:
            raise WhycamError(
                f"class {self.names[stray[0]]!r} is said to be output {stray[0]}, but {self.network} has {outputs} "
                "outputs, counted from 0: pass classes= with the right indices"
            )


def class_index(name: str, classes: ClassesLike) -> int:
    """A class given by name, or by its index written out.

    The name as it is comes first, then in any case, then one of several that a comma separates ("tench" of
    "tench, Tinca tinca", as ImageNet's labels are written).

    Raises:
        WhycamError: there is none such (near misses are listed), or the name stands for several.
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
