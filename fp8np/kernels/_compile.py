"""What `_jit` needs of Numba: imported when something has to be compiled, and by nothing else.

An entry with all the native functions that it calls becomes one piece of LLVM code, is optimized once, as a whole, and becomes one
object, which `_objects` keeps. Numba's own way, a library for each function with two wrappers for callers from Python and C, all of
them optimized and made machine code on their own before they are linked into their callers, takes twice as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numba.extending
from llvmlite import ir
from numba.core import compiler, cpu, event, registry, typing
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys
from numba.core.typing.templates import make_concrete_template
from numba.extending import lower_builtin, models, register_model, type_callable

from fp8np.kernels import _jit, _vector
from fp8np.kernels._cache import kept_in
from fp8np.kernels._cpu import target

__all__ = ["dispatcher", "intrinsic_type", "object_code", "part", "part_type"]

# error_model="numpy": a division by zero gives inf instead of a check that raises, which would block vectorisation.
# nogil: kernels own no shared state, so threads of fp8np's own pool run them side by side.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

# FP8NP_CPU stands for another CPU, so everything is compiled for that one. Otherwise Numba's choice is not touched.
if (_target := target()) is not None:
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = _target


def dispatcher(function: Callable[..., Any], fastmath: bool | set[str]) -> Any:
    """A function that Numba compiles for the arrays it is called with, and keeps.

    Numba's own cache key sees neither the callees in other files, nor the options, nor globals (Numba issues 1833, 6845): therefore
    the fingerprint in the name of the directory.
    """
    directory = kept_in()
    # Numba reads CACHE_DIR only while it decorates; setting it for longer would move the caches of other libraries.
    config: Any = numba.config
    before = config.CACHE_DIR
    try:
        if directory is not None:
            config.CACHE_DIR = str(directory)
        return numba.njit(function, cache=directory is not None, fastmath=fastmath, **_OPTIONS)
    except RuntimeError:
        # Numba finds no file to stamp the cache with (a package imported from a zip): go on without.
        return numba.njit(function, fastmath=fastmath, **_OPTIONS)
    finally:
        config.CACHE_DIR = before


# -- parts of entries -------------------------------------------------------------------------------------------------


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """The code of a function as it was written down: what becomes of it is decided in the entry that it is linked into."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def add_linking_library(self, library: Any) -> None:
        # Counting references to arrays is linked into everything, whether it has arrays or not.
        if library is not rtsys.library:
            super().add_linking_library(library)


class _Entry(_Part):
    """All the code of an entry, of which one function is seen from outside."""

    symbol = ""

    def _optimize_final_module(self) -> None:
        for found in (self._final_module.functions, self._final_module.global_variables):
            for value in found:
                if not value.is_declaration and value.name != self.symbol:
                    value.linkage = "internal"
        JITCodeLibrary._optimize_final_module(self)


# Passes about what native functions have not got: closures, arrays, functions that are overloaded by inlining.
_NOT_NEEDED = {"inline_closure_likes", "inline_inlinables", "inline_overloads", "nopython_rewrites", "ir_legalization"}


class _PartCompiler(compiler.CompilerBase):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        state = self.state
        if state.library is None:
            state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        # Nobody calls a part through Numba, which knows compiled functions by a built-in of their own: any will do.
        state.targetctx.get_executable = lambda library, description, environment: [].append
        builder = compiler.DefaultPassBuilder
        passes = compiler.PassManager("native")
        for step in (builder.define_untyped_pipeline, builder.define_typed_pipeline, builder.define_nopython_lowering_pipeline):
            passes.passes += [(kind, text) for kind, text in step(state).passes if kind.name() not in _NOT_NEEDED]
        passes.finalize()
        return [passes]


class _PartType(numba.types.Dispatcher):  # type: ignore[misc]
    """As Numba's type of a compiled function, but compiled once for integers, and not for each that is written in a call."""

    def get_call_type(self, context: Any, arguments: Any, named: Any) -> Any:
        plain = numba.types.unliteral
        return super().get_call_type(context, tuple(map(plain, arguments)), {name: plain(kind) for name, kind in named.items()})


register_model(_PartType)(models.OpaqueModel)
# No counting of references: there are no arrays.
_PART_OPTIONS = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}


def part(function: Callable[..., Any]) -> Any:
    """A function that compiled functions call."""
    return numba.njit(function, fastmath={"contract"}, pipeline_class=_PartCompiler, **_PART_OPTIONS)


def part_type(made: Any) -> Any:
    """Numba's type of a `part`."""
    return _PartType(made)


@contextlib.contextmanager
def _faster(typed: Any, context: Any) -> Iterator[None]:
    """Spares Numba a third of its work while it compiles an entry."""
    # It imports all of its modules again at every call of an overloaded function. Only what known modules define meanwhile is new.
    context.refresh()
    context.load_additional_registries = lambda: [context.install_registry(known) for known in list(context._registries)]
    # It tries all that an operator can mean, arrays first, for the same few types again and again.
    resolve = typed.resolve_function_type

    def remembered(function: Any, arguments: Any, named: Any) -> Any:
        key = getattr(function, "typing_key", None)
        plain = tuple(map(numba.types.unliteral, arguments))
        if not (getattr(key, "__module__", "") == "_operator" or isinstance(key, _jit.Intrinsic)) or not _are_plain(plain):
            return resolve(function, arguments, named)
        if (id(function), plain) not in _resolved:
            _resolved[id(function), plain] = resolve(function, plain, named), function
        return _resolved[id(function), plain][0]

    typed.resolve_function_type = remembered
    try:
        yield
    finally:
        del typed.resolve_function_type, context.load_additional_registries


# By identity, since comparing Numba's types takes long; each keeps its function, so that no other gets its number.
_resolved: dict[Any, tuple[Any, Any]] = {}


def _are_plain(kinds: tuple[Any, ...]) -> bool:
    return all(isinstance(kind, (numba.types.Number, numba.types.Boolean, _Vector)) for kind in kinds)


@global_compiler_lock  # type: ignore[untyped-decorator]
def object_code(function: Callable[..., None], symbol: str) -> bytes:
    """The object code of a function of integers (int64) that gives nothing, to be called as C's ``void symbol(int64_t, ...)``."""
    typed, context = registry.cpu_target.typing_context, registry.cpu_target.target_context
    flags = compiler.Flags()
    cpu.CPUTargetOptions.parse_as_flags(flags, {**_PART_OPTIONS, "nopython": True, "fastmath": {"contract"}})
    flags.no_compile = True
    library = _Entry(context.codegen(), symbol)
    library.symbol = symbol
    integers = (numba.types.int64,) * function.__code__.co_argcount
    with _faster(typed, context):
        made = compiler.compile_extra(typed, context, function, integers, numba.types.void, flags, {}, library, _PartCompiler)
    description = made.fndesc
    module = context.create_module(symbol)
    inner = ir.Function(module, context.call_conv.get_function_type(description.restype, description.argtypes), description.llvm_func_name)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(integers)), symbol)
    builder = ir.IRBuilder(outer.append_basic_block())
    # It cannot fail, so its status is of no interest.
    context.call_conv.call_function(builder, inner, description.restype, description.argtypes, outer.args)
    builder.ret_void()
    library.add_ir_module(module)
    library.finalize()
    final = library._final_module
    unknown = [f.name for f in final.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if unknown:
        raise RuntimeError(f"{symbol} calls {', '.join(unknown)}: an entry may call nothing but native functions")
    return bytes(library.codegen._tm.emit_object(final))


# -- types and operators ----------------------------------------------------------------------------------------------


class _Vector(numba.types.Type):  # type: ignore[misc]
    def __init__(self, name: str, element: Any) -> None:
        super().__init__(name)
        self.element = element


class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(vector.element, _vector.LANES))


register_model(_Vector)(_VectorModel)
_VECTORS = {name: _Vector(name, element) for name, element in _vector.ELEMENTS.items()}


def _type(name: str) -> Any:
    return _VECTORS[name] if name in _VECTORS else getattr(numba.types, name)


def _operator(operator: Any, emitters: dict[str, Callable[..., Any]], result: str | None) -> None:
    kinds = {_type(name): emit for name, emit in emitters.items()}

    def typer(context: Any) -> Any:
        return lambda x, y: (x if result is None else _type(result)) if x == y and x in kinds else None

    type_callable(operator)(typer)
    for kind, emit in kinds.items():

        def lower(context: Any, builder: Any, signature: Any, values: Any, emit: Any = emit) -> Any:
            return emit(builder, *values)

        lower_builtin(operator, kind, kind)(lower)


for _row in _vector.OPERATORS:
    _operator(*_row)


def intrinsic_type(function: _jit.Intrinsic) -> Any:
    """Numba's type of an intrinsic, which it calls from now on."""
    signature = typing.signature(_type(function.result), *map(_type, function.parameters))

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        made = function.emit(builder, *values)
        return context.get_dummy_value() if made is None else made

    registry.cpu_target.target_context.insert_func_defn([(lower, function, signature.args)])
    return numba.types.Function(make_concrete_template(function.emit.__name__, function, [signature]))


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _prefer_512_bits(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows no attributes with a value; its set of attributes prints what is in it.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), generate


# Inlined, because the attribute is that of the function which the intrinsic stands in.
@numba.extending.overload(_jit.wide_vectors, inline="always")  # type: ignore[untyped-decorator]
def _wide_vectors() -> Any:
    return lambda: _prefer_512_bits()


# -- who watches ------------------------------------------------------------------------------------------------------


class _Listener(event.Listener):  # type: ignore[misc]
    """Tells of array kernels, which Numba compiles for itself; not of what is compiled on the way to one."""

    def __init__(self) -> None:
        self._depth = 0

    def on_start(self, found: Any) -> None:
        if self._depth == 0:
            self._tell(found, False)
        self._depth += 1

    def on_end(self, found: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._tell(found, True)

    def _tell(self, found: Any, done: bool) -> None:
        function = found.data["dispatcher"].py_func
        if function.__module__.startswith("fp8np."):
            _jit.tell(function, done)


event.register("numba:compile", _Listener())
