"""The start-up hook, in interpreters of its own and with a stand-in for nnunetv2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET_MS = 5.0
TIMED = """
import os, sys, time  # these are there before any start-up file is read
before = set(sys.modules)
start = time.perf_counter()
import nnunet_ext._startup; nnunet_ext._startup.register()
print(1000 * (time.perf_counter() - start), *sorted(set(sys.modules) - before))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a tiny nnunetv2: the look-up function and a module that has bound it."""
    utilities = tmp_path / "nnunetv2" / "utilities"
    utilities.mkdir(parents=True)
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    (utilities / "__init__.py").touch()
    (utilities / "find_class_by_name.py").write_text(
        "def recursive_find_python_class(folder, class_name, current_module, base_folder=None, verbose=False):\n"
        "    return 'built-in' if class_name == 'BuiltIn' else None\n"
    )
    (utilities / "user.py").write_text(
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
    )
    return tmp_path


def python(code: str, *paths: Path, site: bool = False, **environment: str) -> str:
    """Run code in a new interpreter that reads no site directory; returns what it prints, with what went to stderr."""
    prelude = f"import sys; sys.path[:0] = {[str(p) for p in (ROOT, *paths)]!r}\n"
    flags = [] if site else ["-S"]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COVERAGE_PROCESS_START")} | environment
    command = [sys.executable, "-I", *flags, "-c", prelude + code]
    return subprocess.run(
        command, text=True, check=True, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout.strip()


def test_start_up_costs_less_than_the_budget_and_imports_next_to_nothing() -> None:
    runs = [python(TIMED).split() for _ in range(10)]
    assert min(float(run[0]) for run in runs) < BUDGET_MS
    for _, *modules in runs:
        assert set(modules) == {"__future__", "nnunet_ext", "nnunet_ext._startup"}


def test_the_start_up_files_say_what_the_module_offers() -> None:
    assert (ROOT / "nnunet_ext.pth").read_text() == "import nnunet_ext._startup; nnunet_ext._startup.register()\n"
    assert (ROOT / "nnunet_ext.start").read_text() == "nnunet_ext._startup:register\n"
    code = [line for line in (ROOT / "nnunet_ext" / "_startup.py").read_text().splitlines() if line.strip()]
    assert len(code) < 75, "people must be able to read it at a glance"


HOOKED = """
import nnunet_ext._startup as s
s.register(); s.register(); s.register()
assert sys.meta_path.count(s._FINDER) == 1 and s.is_waiting()
assert not any(m.startswith("nnunetv2") for m in sys.modules)
import nnunetv2.utilities.user as user
import nnunetv2.utilities.find_class_by_name as module
assert not s.is_waiting(), "the finder must be gone after its one hit"
assert type(module.__loader__).__name__ == type(module.__spec__.loader).__name__ == "SourceFileLoader"
assert module.__spec__.cached and module.__file__.endswith("find_class_by_name.py")
from nnunet_ext import lookup
assert lookup.is_installed() and user.find is module.recursive_find_python_class
s.register()
assert user.find is module.recursive_find_python_class, "wrapped once only"
assert user.find("folder", "BuiltIn", current_module="nnunetv2.imageio", verbose=True) == "built-in"
assert user.find("folder", "Other", "nnunetv2.imageio") is None
print("done")
"""


def test_hook_waits_wraps_and_leaves(fake: Path) -> None:
    assert python(HOOKED, fake) == "done"


LATE = """
import nnunetv2.utilities.user as user
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as mine
original = mine
import nnunet_ext.lookup as lookup
assert not lookup.is_installed()
lookup.install(); lookup.install()
assert lookup.is_installed()
assert mine is user.find is sys.modules["nnunetv2.utilities.find_class_by_name"].recursive_find_python_class
assert mine.__name__ == mine.__wrapped__.__name__ == "recursive_find_python_class"
assert not hasattr(mine.__wrapped__, "__wrapped__"), "wrapped once only"
print("done")
"""


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_late_registration_reaches_every_module_that_has_the_function(fake: Path, disabled: str) -> None:
    assert python(LATE, fake, NNUNET_EXT_DISABLE_STARTUP=disabled) == "done"


@pytest.mark.parametrize(("value", "active"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_opt_out(value: str, active: bool) -> None:
    code = "import nnunet_ext._startup as s; s.register(); print(s.is_waiting())"
    assert python(code, NNUNET_EXT_DISABLE_STARTUP=value) == str(active)


def test_the_environment_is_not_changed() -> None:
    code = "import os; b = dict(os.environ), sys.path[:]; import nnunet_ext._startup as s; s.register()\n"
    assert python(code + "print(b == (dict(os.environ), sys.path))") == "True"


def test_a_broken_package_does_not_break_nnunet(fake: Path) -> None:
    code = "import nnunet_ext._startup as s; s.register(); sys.modules['nnunet_ext.lookup'] = None\n"
    out = python(code + "from nnunetv2.utilities.user import find; print(find('', 'BuiltIn', None))", fake)
    assert re.fullmatch(r"nnunet_ext could not add its names to nnU-Net: .*\nbuilt-in", out)


def test_without_nnunet_imports_fail_as_always() -> None:
    code = "import nnunet_ext._startup as s; s.register()\ntry:\n import nnunetv2.utilities.find_class_by_name\n"
    assert python(code + "except ModuleNotFoundError as e: print(e.name, s.is_waiting())") == "nnunetv2 True"


def test_this_environment_has_it_active() -> None:
    """The development environment itself is an installation: the start-up file must be read, also with ``-I``."""
    code = "import nnunet_ext._startup as s; print(s.is_waiting(), 'torch' in sys.modules, 'nnunetv2' in sys.modules)"
    assert python(code, site=True) == "True False False"
