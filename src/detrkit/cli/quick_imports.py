"""Imports of torch and what rests on it in two thirds of their time.

torchvision and timm load torch's compiler (``torch._dynamo``: two thousand modules of torch, sympy and triton) for two
functions that hardly anybody calls, and every operator of ours to say that it is not to be compiled. In a command
something stands in its place that has these functions, and loads the compiler when anything else is asked of it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from detrkit.collection import without_collection

__all__ = ["quick_imports"]

_COMPILER = "torch._dynamo"
_UTILS = "torch._dynamo.utils"


@contextmanager
def quick_imports() -> Iterator[None]:
    """Block for imports: no search for cycles among a million objects that stay; the compiler is loaded when needed."""
    _stand_in()
    with without_collection():
        yield


class _Later(ModuleType):
    """Stands for a module that is loaded when an attribute is asked for that this does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _leave()
        return getattr(importlib.import_module(self.__name__), name)


class _Whole(MetaPathFinder, Loader):
    """Finds the parts of the compiler while something stands in its place: all of it is loaded, each part once."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{_COMPILER}."):
            return None
        _leave()
        module = importlib.import_module(name)
        self._spec, module.__spec__ = module.__spec__, None  # else Python would take it, and load the part again
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _stand_in() -> None:
    package = find_spec("torch")
    if _COMPILER in sys.modules or package is None:
        return
    compiler, utils = _Later(_COMPILER), _Later(_UTILS)
    vars(compiler).update(
        __path__=[f"{place}/_dynamo" for place in package.submodule_search_locations or ()],
        utils=utils,
        disable=_disable,
        assume_constant_result=_assume_constant_result,
    )
    vars(utils)["is_compile_supported"] = _is_compile_supported
    sys.modules[_COMPILER], sys.modules[_UTILS] = compiler, utils
    sys.meta_path.insert(0, _Whole())


def _leave() -> None:
    """Remove what stands in the place of the compiler: the next import of it is a real one."""
    for name in (_COMPILER, _UTILS):
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Whole)]


def _is_compile_supported(device_type: str) -> Any:
    return importlib.import_module(_UTILS).is_compile_supported(device_type)


def _assume_constant_result(fn: Any) -> Any:
    """As ``torch._dynamo`` marks a function."""
    fn._dynamo_marked_constant = True
    return fn


def _disable(fn: Callable[..., Any] | None = None, *options: Any, **named: Any) -> Any:
    """``torch._dynamo.disable`` for a function: it is disabled from its first call on with the compiler loaded."""
    if fn is None:
        return functools.partial(_disable_later, options=options, named=named)
    return _disable_later(fn, options=options, named=named)


def _disable_later(fn: Callable[..., Any], *, options: tuple[Any, ...], named: dict[str, Any]) -> Callable[..., Any]:
    @functools.cache
    def disabled() -> Callable[..., Any]:
        found: Callable[..., Any] = importlib.import_module(_COMPILER).disable(fn, *options, **named)
        return found

    @functools.wraps(fn)
    def call(*arguments: Any, **keywords: Any) -> Any:
        compiler = sys.modules.get(_COMPILER)
        loaded = compiler is not None and not isinstance(compiler, _Later)  # else nothing is compiled
        return (disabled() if loaded else fn)(*arguments, **keywords)

    return call
