"""Change of the class of existing objects to one that computes the same in another way."""

from torch import nn


def change_class(thing: object, new: type) -> None:
    """Make `thing` an instance of `new`, a subclass or a base of its class; what it holds stays.

    Raises TypeError for any other class.
    """
    old = type(thing)
    if not (issubclass(new, old) or issubclass(old, new)):
        raise TypeError(f"change_class: new is {new.__name__}; expected a subclass or a base of {old.__name__}")
    thing.__class__ = new


def change_classes(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """`change_class` of every module in `module` whose class is `old` itself; the inverse has the two exchanged.

    Parameters, buffers, hooks and names stay.
    """
    for inner in module.modules():
        if type(inner) is old:
            change_class(inner, new)
