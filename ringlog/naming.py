"""Which known name somebody may have meant: for the messages about names that are none."""

from __future__ import annotations

from collections.abc import Iterable

# Of difflib's ratio, which is 0.67 for one wrong letter of three.
NEAR = 0.65


def nearest(name: str, known: Iterable[str], near: float = NEAR) -> str | None:
    """The known name that is most like `name`, if any is like it; capital letters, `-` and `_` do not count."""
    import difflib  # here, since a process that makes no mistake need not load it

    folded = {_folded(each): each for each in known}
    swapped = [each for each in folded if sorted(each) == sorted(_folded(name))]
    if swapped:  # two letters exchanged
        return folded[swapped[0]]
    found = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=near)
    return folded[found[0]] if found else None


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """`, did you mean NEAREST?` to be put behind a message; `otherwise` where no name is near."""
    found = nearest(name, known)
    return otherwise if found is None else f", did you mean {found}?"
