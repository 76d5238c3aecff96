"""What both plug-ins are built on: changes to a live model that are taken out again exactly.

A plug never listens to a leaf layer. LoRA wraps a linear layer and quantisers replace it, after the plug was put in; a
hook on the layer that was there would then miss the adapter, act twice, or be gone, without an error. A plug therefore
takes hold of modules that nobody replaces (attention, block, model) and of the attention interface
(`attention_plug.py`). Where a value passes nowhere else, `FollowedHook` holds on to a place in a module instead of the
layer that happens to lie there.
"""

import itertools
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

# Plugs are put in and taken out, and hooks move, by one thread at a time.
PLUG_LOCK = threading.RLock()


class ConfigOverlay:
    """An object with some attributes of its own; every other one is the target's, as it is at that moment."""

    def __init__(self, target: Any, **attributes: Any):
        self._target = target
        for name, value in attributes.items():  # one by one, as Dynamo can trace
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not here; copying and pickling ask for special names before anything is here.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_target"], name)


class MarkedHook:
    """A hook that can be told from those of others, also in a copy of the module it is on."""

    def __init__(self, place: str, hook: Callable):
        self.place = place
        self.hook = hook

    def __call__(self, *args: Any) -> Any:
        return self.hook(*args)


class FollowedHook:
    """A hook on whatever module lies at a path of its parent, also after that module was replaced.

    This object is a forward pre-hook of the parent: at each call it looks whether the hook sits where it should, and
    moves it if not. That happens while a model is traced, too, so that a model may be compiled right after it was
    changed.

    Args:
        parent: the module that is called.
        path: of the followed module, from the parent.
        hook: for `register_forward_pre_hook` (`before`) or `register_forward_hook`.
    """

    def __init__(self, parent: nn.Module, path: str, hook: Callable, before: bool = False):
        self.parent = parent
        self.path = path
        self.hook = MarkedHook(f"{'before' if before else 'after'} {path}", hook)
        self.before = before
        self.look_anew()

    def look_anew(self) -> None:
        """Begin without a module: a new hook, or the copy of one."""
        self.number = next(NUMBERS)
        FOLLOWED[self.number] = self
        self.child_id: int | None = None  # not the module itself, which compiled code could not compare
        self.watch: weakref.ref | None = None

    def __call__(self, parent: nn.Module, args: tuple) -> None:
        if id(self.parent.get_submodule(self.path)) != self.child_id:
            move_hook(self.number)

    def move(self) -> None:
        """Put the hook on the module that is there now."""
        with PLUG_LOCK:
            child = self.parent.get_submodule(self.path)
            if id(child) == self.child_id:  # another thread was faster
                return
            self.remove()
            register = child.register_forward_pre_hook if self.before else child.register_forward_hook
            register(self.hook)
            # A module that dies may leave its address to the one that takes its place.
            self.watch = weakref.ref(child, partial(forget_child, weakref.ref(self)))
            self.child_id = id(child)

    def remove(self) -> None:
        """Take the hook from everything below the parent, copies of it included."""
        for module in self.parent.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key, hook in list(hooks.items()):
                    if isinstance(hook, MarkedHook) and hook.place == self.hook.place:
                        del hooks[key]
        self.child_id = self.watch = None

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("number", "child_id", "watch")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.look_anew()


# By number, since Dynamo takes constants alone to what it does not trace.
FOLLOWED: weakref.WeakValueDictionary[int, FollowedHook] = weakref.WeakValueDictionary()
NUMBERS = itertools.count()


@torch.compiler.assume_constant_result
def move_hook(number: int) -> bool:
    """`FollowedHook.move`, at once, also while the modules are being traced."""
    FOLLOWED[number].move()
    return True


def forget_child(followed: weakref.ref, child: weakref.ref) -> None:
    if (hook := followed()) is not None and hook.watch is child:
        hook.child_id = None


class Plug:
    """The changes that were made to a model, and what takes each of them back."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], Any]] = []

    def before(self, module: nn.Module, hook: Callable, **options: bool) -> None:
        self.undo.append(module.register_forward_pre_hook(hook, **options).remove)

    def after(self, module: nn.Module, hook: Callable, **options: bool) -> None:
        self.undo.append(module.register_forward_hook(hook, **options).remove)

    def follow(self, parent: nn.Module, path: str, hook: Callable, before: bool = False) -> None:
        """A hook on the module at `path` of `parent`, whichever that is when the parent is called."""
        followed = FollowedHook(parent, path, hook, before)
        self.undo.append(followed.remove)
        self.before(parent, followed)
        followed.move()

    def replace_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Give an instance another attribute."""
        self.undo.append(partial(restore_attribute, module, name, getattr(module, name), name in module.__dict__))
        setattr(module, name, value)

    def unplug(self) -> None:
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()


def restore_attribute(module: nn.Module, name: str, value: Any, own: bool) -> None:
    """`own`: the instance had the attribute; otherwise it has its class's."""
    if own:
        setattr(module, name, value)
    else:
        delattr(module, name)


def find_in_table(module: nn.Module, table: dict[str, Any]) -> str | None:
    """The name in the table that the module's class has, or a class that it derives from (as those of FSDP do)."""
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in table), None)


def find_one_in_table(model: nn.Module, table: dict[str, Any], what: str) -> nn.Module:
    """The one module of `model`, which may be itself, whose class is in the table.

    Raises:
        ValueError: if there is none or more than one; `what` is what could have been added.
    """
    found = [module for module in model.modules() if find_in_table(module, table)]
    if len(found) != 1:
        count = f"has {len(found)} of them" if found else "is or has none of them"
        raise ValueError(
            f"{what} can be added to {', '.join(table)}, or to a model around one; {type(model).__name__} {count}."
        )
    return found[0]
