"""Every error code of the source, with the literal messages and cures beside it. Found by reading the syntax.

A code leaves through a parameter or field called `code`: of `Problem`, `Rule`, `Finding` and the functions that make
them. Where such an argument is a literal, the message and the cure of the same call are collected with it; a variable
is looked up in its function and module. Tuples and dictionaries that pair a code with its sentences count too, and so
does an enumeration of codes.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("api", "operator", "trainer")
CODE = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*|[A-Z][a-z]+")
NO_CODE = re.compile(r"int|ExitCode")  # types of parameters called `code` that hold another kind of code
GAP = "…"  # stands for a value that is known only when the error occurs
MESSAGES = ("message", "says")
CURES = ("cure", "pod_cure")  # of a record by failure category
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Entry:
    """What the source has on one code.

    Attributes:
        pairs: (message, cure) of each place that uses the code; either may be empty where it is no literal.
    """

    pairs: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, messages: list[str], cures: list[str]) -> None:
        """Add what one place has; each message goes with each cure."""
        for message in messages or [""]:
            for cure in cures or [""]:
                self.pairs[_without_names(message), _without_names(cure)] = None

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The pairs without those that another pair says with more."""
        kept = [pair for pair in self.pairs if any(pair)]
        return [one for one in kept if all(one) or not any(two != one and _covers(two, one) for two in kept)]


def _without_names(text: str) -> str:
    """Return a text with a gap for each {name} that is filled in later."""
    return _one_gap(re.sub(r"\{[a-z_]+\}", GAP, text))


def _covers(two: tuple[str, str], one: tuple[str, str]) -> bool:
    return all(not part or part == other for part, other in zip(one, two, strict=True))


@dataclass
class Codes:
    """The codes of the source.

    Attributes:
        entries: code -> what stands beside it.
        unknown: text of an expression that is used as a code and whose values the syntax does not show -> its place; of
            a method that several classes have, the argument that each of them would take for the code.
    """

    entries: dict[str, Entry]
    unknown: dict[tuple[str, ...], str]


@dataclass
class _Module:
    """One source file, and where each of its nodes stands."""

    path: Path
    tree: ast.Module

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """Node -> the node that it is a part of."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def functions(self) -> set[str]:
        """Names of the functions and classes that the file defines itself."""
        return {node.name for node in ast.walk(self.tree) if isinstance(node, Function | ast.ClassDef)}

    @cached_property
    def imports(self) -> dict[str, list[str]]:
        """Name -> the modules from which the file imports it."""
        found: dict[str, list[str]] = defaultdict(list)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for one in node.names:
                    found[one.name].append(node.module)
        return found

    def imported(self, name: str) -> Iterator[Path]:
        """The files and packages that a name may be imported from, without suffix."""
        for module in self.imports.get(name, ()):
            yield from (ROOT / source / module.replace(".", "/") for source in SOURCES)

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """A node and all that it is a part of."""
        at: ast.AST | None = node
        while at is not None:
            yield at
            at = self.parents.get(at)

    def statement(self, node: ast.AST) -> ast.AST:
        """The statement that a node is a part of."""
        return next(one for one in self.around(node) if isinstance(one, ast.stmt))

    def scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        """The functions around a node, the nearest first, then the module."""
        yield from (one for one in self.around(node) if isinstance(one, Function | ast.Module))


@dataclass(frozen=True)
class _Sink:
    """A function or class through which a code leaves."""

    path: Path
    parameters: list[str]
    is_method: bool = False


def read(root: Path = ROOT) -> Codes:
    """Return every code of the source below `root`."""
    paths = [path for source in SOURCES for path in sorted((root / source).rglob("*.py"))]
    return _Reader([_Module(path, ast.parse(path.read_text("utf-8"))) for path in paths]).read()


class _Reader:
    """Reads all modules; a sink is a function or class with a parameter `code`."""

    def __init__(self, modules: list[_Module]) -> None:
        self._modules = modules
        self._entries: dict[str, Entry] = defaultdict(Entry)
        self._unknown: dict[tuple[str, ...], str] = {}
        self._enums = dict(_enumerations(modules))
        self._sinks: dict[str, list[_Sink]] = defaultdict(list)
        for module in modules:
            for name, sink in _sinks(module):
                self._sinks[name].append(sink)

    def read(self) -> Codes:
        """Return what all modules have."""
        for name, members in self._enums.items():
            if name.endswith("Code"):
                for code in members.values():
                    self._entries[code].add([], [])
        for module in self._modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call):
                    self._call(module, node)
                elif isinstance(node, ast.Tuple):
                    self._tuple(module, node)
                elif isinstance(node, ast.Dict):
                    self._dict(module, node)
        return Codes(dict(self._entries), self._unknown)

    def _call(self, module: _Module, call: ast.Call) -> None:
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        named = {one.arg: one.value for one in call.keywords}
        tried = [ast.unparse(part) for part in call.args if isinstance(part, ast.Starred)]
        sinks = self._sinks_of(module, call.func, name)
        for parameters in sinks:
            given = {**dict(zip(parameters, call.args, strict=False)), **named}
            code = given.get("code")
            if code is None or isinstance(code, ast.Starred):
                continue
            if codes := [text for text in self._texts(module, code) if CODE.fullmatch(text)]:
                messages = [text for part in MESSAGES for text in self._texts(module, given.get(part))]
                cures = self._texts(module, given.get("cure") or given.get("hint"))
                for one in codes:
                    self._entries[one].add(messages, cures)
                return
            tried.append(ast.unparse(code))
        # a code that is handed on is read at the place where it comes from
        if sinks and tried and not any(re.fullmatch(r"(.*\.)?code", text) for text in tried):
            self._unknown.setdefault(tuple(tried), f"{module.path.name}:{call.lineno}")

    def _sinks_of(self, module: _Module, function: ast.expr, name: str) -> list[list[str]]:
        """Return the parameters of what a call may mean: a method, or a function of this module or of an import."""
        sinks = self._sinks.get(name, [])
        if isinstance(function, ast.Name) and name in module.functions:
            return [one.parameters for one in sinks if one.path == module.path]
        if isinstance(function, ast.Name):
            homes = list(module.imported(name))  # a package may pass on what one of its modules defines
            return [one.parameters for one in sinks if any(one.path.with_suffix("").is_relative_to(h) for h in homes)]
        return [one.parameters for one in sinks if one.is_method]

    def _tuple(self, module: _Module, node: ast.Tuple) -> None:
        """Read a tuple (code, ..., message, cure), or (category, code, message)."""
        texts = [self._texts(module, part) for part in node.elts]
        match node.elts:
            case [ast.Constant(value=str() as code), _, *_] if 3 <= len(texts) <= 4 and CODE.fullmatch(code):
                if all(_is_prose(text) for part in texts[-2:] for text in part) and (texts[-2] or texts[-1]):
                    self._entries[code].add(*texts[-2:])
            case [ast.Attribute() | ast.Name(), _, ast.JoinedStr()] if all(map(_is_prose, texts[2])):
                for code in texts[1]:
                    if CODE.fullmatch(code):
                        self._entries[code].add(texts[2], [])

    def _dict(self, module: _Module, node: ast.Dict) -> None:
        """Read {"code": code, "message": ..., "hint": ...}, {code: (message, cure)} and {Code.MEMBER: cure}."""
        given = {key.value: value for key, value in zip(node.keys, node.values, strict=True) if _is_text(key)}
        if "code" in given:
            for code in self._texts(module, given["code"]):
                if CODE.fullmatch(code):
                    cures = self._texts(module, given.get("hint"))
                    self._entries[code].add(self._texts(module, given.get("message")), cures)
        for key, value in zip(node.keys, node.values, strict=True):
            match key, value:
                case ast.Constant(value=str() as code), ast.Tuple(elts=[one, two]) if CODE.fullmatch(code):
                    message, cure = self._texts(module, one), self._texts(module, two)
                    if message and cure and all(map(_is_prose, (*message, *cure))):
                        self._entries[code].add(message, cure)
                case ast.Attribute(value=ast.Name(id=name), attr=attr), _ if name.endswith(("Code", "Category")):
                    fields = (
                        [one.value for one in value.keywords if one.arg in CURES] if isinstance(value, ast.Call) else []
                    )
                    texts = [text for part in fields or [value] for text in self._texts(module, part)]
                    cures = [text for text in texts if _is_prose(text)]
                    if cures and (member := self._enums.get(name, {}).get(attr)):
                        self._entries[member].add([], cures)

    def _texts(self, module: _Module, node: ast.expr | None, depth: int = 0) -> list[str]:
        """Every text that an expression can be, as far as literals show it."""
        deeper = depth + 1
        if node is None or depth > 4:
            return []
        match node:
            case ast.Constant(value=str() as text):
                return [text]
            case ast.JoinedStr(values=parts):
                return [_one_gap("".join(part.value if isinstance(part, ast.Constant) else GAP for part in parts))]
            case ast.IfExp(body=body, orelse=orelse):
                return [*self._texts(module, body, deeper), *self._texts(module, orelse, deeper)]
            case ast.BoolOp(values=values):
                return [text for value in values for text in self._texts(module, value, deeper)]
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                before, after = self._texts(module, left, deeper) or [GAP], self._texts(module, right, deeper) or [GAP]
                return [_one_gap(one + two) for one in before for two in after]
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if attr in self._enums.get(name, {}):
                return [self._enums[name][attr]]
            case ast.Call(func=ast.Attribute(attr="format", value=template)):
                return [_one_gap(re.sub(r"\{[^}]*\}", GAP, text)) for text in self._texts(module, template, deeper)]
            case ast.Name(id=name):
                return self._named(module, node, name, deeper)
        return []

    @staticmethod
    def _before(module: _Module, use: ast.expr, values: list[ast.expr]) -> list[ast.expr]:
        """Return the last value that is set before a use in a block around it; else all that are set before it."""
        around = {id(one) for one in module.around(use)}
        earlier = [value for value in values if value.lineno < use.lineno]
        certain = [value for value in earlier if id(module.parents[module.statement(value)]) in around]
        after = [value for value in earlier if certain and value.lineno > certain[-1].lineno]
        return [certain[-1], *after] if certain else earlier

    def _named(self, module: _Module, node: ast.expr, name: str, depth: int) -> list[str]:
        for scope in module.scopes(node):
            values = list(_assigned(scope, name))
            if isinstance(scope, Function):
                values = self._before(module, node, values)
            if values:
                return list(dict.fromkeys(text for one in values for text in self._texts(module, one, depth)))
            if isinstance(scope, Function) and name in _parameters(scope):
                return []
        return []


def _is_prose(text: str) -> bool:
    return " " in text or text == GAP


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _one_gap(text: str) -> str:
    return re.sub(rf"{GAP}(\s*{GAP})+", GAP, text)


def _assigned(scope: ast.AST, name: str) -> Iterator[ast.expr]:
    """What a name is set to in a scope: by assignment, or as a column of the literal tuples that a loop runs over."""
    for node in ast.walk(scope) if isinstance(scope, Function) else ast.iter_child_nodes(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.AugAssign(target=ast.Name(id=target)) if target == name:
                continue
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from (
                    value
                    for target, value in zip(targets, values, strict=False)
                    if isinstance(target, ast.Name) and target.id == name
                )
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                yield value
            case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
                yield value


def _parameters(function: Function) -> list[str]:
    arguments = function.args
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _sinks(module: _Module) -> Iterator[tuple[str, _Sink]]:
    """Name and parameters of every function and class through which a code leaves."""
    for node in ast.walk(module.tree):
        if isinstance(node, Function) and node.name != "__init__":
            given = _parameters(node)
            is_method = given[:1] in (["self"], ["cls"])
            if _is_code(_annotations(node).get("code")):
                yield node.name, _Sink(module.path, given[is_method:], is_method)
        elif isinstance(node, ast.ClassDef):
            fields = {
                one.target.id: one.annotation
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            }
            if _is_code(fields.get("code")):
                yield node.name, _Sink(module.path, list(fields))
            for one in node.body:
                if isinstance(one, Function) and one.name == "__init__" and _is_code(_annotations(one).get("code")):
                    yield node.name, _Sink(module.path, _parameters(one)[1:])


def _annotations(function: Function) -> dict[str, ast.expr | None]:
    arguments = function.args
    return {one.arg: one.annotation for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


def _is_code(annotation: ast.expr | None) -> bool:
    if isinstance(annotation, ast.BinOp):  # str | None
        annotation = annotation.left
    return annotation is not None and NO_CODE.fullmatch(ast.unparse(annotation)) is None


def _enumerations(modules: list[_Module]) -> Iterator[tuple[str, dict[str, str]]]:
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and any("StrEnum" in ast.unparse(base) for base in node.bases):
                yield (
                    node.name,
                    {
                        one.targets[0].id: one.value.value
                        for one in node.body
                        if isinstance(one, ast.Assign)
                        and isinstance(one.targets[0], ast.Name)
                        and isinstance(one.value, ast.Constant)
                        and isinstance(one.value.value, str)
                    },
                )
