"""What the package's syntax trees must not hold: nothing that runs code out of files, and no commands made of text."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "trainer"
FILES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "xmlrpc", "telnetlib"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "execfile", "breakpoint",
    "torch.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "os.system", "os.popen", "os.execv", "os.spawnl", "subprocess.getoutput", "subprocess.getstatusoutput",
    "tempfile.mktemp", "os.tempnam", "numpy.load", "np.load", "pandas.read_pickle",
    "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive",
}  # fmt: skip
FORBIDDEN_WORDS = {"trust_remote_code", "custom_pipeline", "allow_pickle", "shell"}  # unless they are False
FORBIDDEN_NAMES = {"LOAD_TRUNCATED_IMAGES", "extractall", "weights_only", "UnsafeLoader", "FullLoader", "expandvars"}
HOSTS = ("from_pretrained",)  # each call must say that it stays on this disk


@cache
def trees() -> list[tuple[Path, ast.AST]]:
    return [(file.relative_to(PACKAGE), ast.parse(file.read_text(encoding="utf-8"))) for file in FILES]


def named(node: ast.expr) -> str:
    """`a.b.c` of the expression, as far as it is names."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(file: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (f"{where} imports {name}" for name in imported(node) if is_forbidden(name))
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NAMES:
            yield f"{where} says {node.attr}"
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield f"{where} says {node.id}"
        elif isinstance(node, ast.Call):
            yield from faults_of_call(where, node)
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            words = [key.value for key, value in pairs if isinstance(key, ast.Constant) and not is_false(value)]
            yield from (f"{where} sets {word}" for word in words if word in FORBIDDEN_WORDS)


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [name.name for name in node.names]
    return names if isinstance(node, ast.Import) else [f"{node.module}.{name}" for name in names]


def is_forbidden(name: str) -> bool:
    return name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS


def faults_of_call(where: str, call: ast.Call) -> Iterator[str]:
    if named(call.func) in FORBIDDEN_CALLS:
        yield f"{where} calls {named(call.func)}"
    for word in call.keywords:
        if word.arg in FORBIDDEN_WORDS and not is_false(word.value):
            yield f"{where} passes {word.arg}"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_nothing_in_the_package_runs_what_a_file_holds() -> None:
    assert [fault for file, tree in trees() for fault in faults(file, tree)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "from torch import load, save\nfrom os import system",
        "eval(text)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "Auto.from_pretrained(name, trust_remote_code=asked)",
        "wishes = {'trust_remote_code': True}",
        "archive.extractall(folder)",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
    ],
)
def test_each_fault_is_found(code: str) -> None:
    assert list(faults(Path("tried.py"), ast.parse(code)))


def test_what_is_loaded_by_other_libraries_stays_on_this_disk() -> None:
    """Every `from_pretrained` says local_files_only, itself or by the words that it is given."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node.func).endswith(HOSTS):
                said = {word.arg for word in node.keywords}
                assert "local_files_only" in said or None in said, f"{file}:{node.lineno}"


def test_processes_are_started_without_a_shell_and_by_lists() -> None:
    starters = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output")
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node.func) in starters:
                assert isinstance(node.args[0], (ast.List, ast.Name)), f"{file}:{node.lineno}"
                assert not isinstance(node.args[0], ast.JoinedStr)


def test_patterns_come_from_the_code() -> None:
    """No expression out of data is run as a pattern: they are texts of ours, tables of ours, or escaped."""
    ours = {
        "adapters/parts.py": "pattern",  # of the family's table `adaptable`
        "adapters/sizes.py": "pattern",
        "adapters/full.py": "|",
        "families/new_words.py": "Spelling.pattern",  # escaped there
        "families/spelling.py": "Spelling.pattern",
    }
    verbs = {"compile", "match", "search", "fullmatch", "sub", "split", "findall", "finditer", "subn"}
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node.func) in {f"re.{verb}" for verb in verbs}:
                pattern = node.args[0]
                written = isinstance(pattern, ast.Constant) or made_of_ours(pattern)
                assert written or file.as_posix() in ours, f"{file}:{node.lineno}"


def made_of_ours(pattern: ast.expr) -> bool:
    """Whether a pattern is put together of our texts, constants and escaped words."""
    if isinstance(pattern, ast.JoinedStr):
        parts = [part.value for part in pattern.values if isinstance(part, ast.FormattedValue)]
        return all(made_of_ours(part) for part in parts)
    if isinstance(pattern, ast.Name):
        return pattern.id.isupper()
    if isinstance(pattern, ast.Call):
        return named(pattern.func) == "re.escape" or (
            named(pattern.func).endswith("join") and all(made_of_ours(part) for part in pattern.args)
        ) or (isinstance(pattern.func, ast.Attribute) and isinstance(pattern.func.value, ast.Constant)
              and all(made_of_ours(part) for part in pattern.args))  # fmt: skip
    return False


def test_no_name_for_temporary_files_can_be_foreseen() -> None:
    """Nothing is written under a fixed name in the folder that all users share."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert '"/tmp' not in text, file
