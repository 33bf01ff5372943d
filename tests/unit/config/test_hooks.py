"""A user's own code, named as `module:function`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from herl_megatron.config.hooks import (
    check_call,
    check_options,
    is_hook,
    load_hook,
    name_problem,
)

SOURCE = """
from functools import partial
from typing import Literal

CAP = 2.0


def scaled(inputs, *, scale: float, power: int = 1, kind: Literal["up", "down"] = "up"):
    return inputs * scale**power


def whatever(inputs, **options: float):
    return inputs


def untyped(inputs, scale=1.0):
    return inputs


def strange(inputs, scale: "Unknown" = 1.0):
    return inputs


def of_objects(inputs, *, tensor: memoryview):
    return inputs


part = partial(scaled, scale=1.0)


async def later(inputs):
    return inputs


class Method:
    def __init__(self, prompts, *, top: int = 1):
        self.top = top
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules, where the test runs; its modules are forgotten afterwards."""
    (tmp_path / "my_hooks_of_test.py").write_text(SOURCE)
    (tmp_path / "exits_of_test.py").write_text("import sys\n\nsys.exit('bye')\n")
    (tmp_path / "broken_of_test.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.endswith("_of_test"):
            del sys.modules[name]


def test_a_name_of_ours_is_no_hook() -> None:
    assert is_hook("my_losses:cispo")
    assert not is_hook("token_mean")


@pytest.mark.parametrize("name", ["", "a", "a:", ":f", "a.py:f g", "dir/a:f", "a:b:c", "a..b:f"])
def test_what_is_no_name(name: str) -> None:
    assert "module:function" in name_problem(name)


def test_a_function_beside_us_is_found(folder: Path) -> None:
    hook = load_hook("algorithm.loss", "my_hooks_of_test:scaled")
    assert hook.call(3.0, scale=2.0, power=3) == 24.0
    assert (hook.module, hook.file) == (
        "my_hooks_of_test",
        str(folder / "my_hooks_of_test.py"),
    )


def test_another_folder_than_the_working_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ValueError, match="cannot import 'my_hooks_of_test'"):
        load_hook("k", "my_hooks_of_test:scaled")
    assert load_hook("k", "my_hooks_of_test:scaled", folder=str(folder)).call(1, scale=5) == 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_of_test:f", "k: cannot import 'nowhere_of_test'.*PYTHONPATH"),
        ("my_hooks_of_test:scaleed", "has no 'scaleed'; did you mean 'scaled'"),
        ("my_hooks_of_test:CAP", "is a float, which cannot be called"),
        ("my_hooks_of_test:part", "is an object of partial; name a function or a class"),
        ("exits_of_test:f", "failed at .*exits_of_test.py:3: SystemExit: bye"),
        ("broken_of_test:f", "failed at .*broken_of_test.py:2: ZeroDivisionError"),
        ("not a module:f", "not of the form module:function"),
    ],
)
def test_what_cannot_be_loaded(folder: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_hook("k", name)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("scaled", ["inputs", "more"], r"called with \(inputs, more\) but takes \(inputs\)"),
        ("whatever", ["inputs"], r"takes \*\*options: "),
        ("later", ["inputs"], "is an async function"),
    ],
)
def test_what_cannot_be_called_so(folder: Path, name: str, arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_call(load_hook("k", f"my_hooks_of_test:{name}"), arguments)


def test_what_can_be_called_so(folder: Path) -> None:
    check_call(load_hook("k", "my_hooks_of_test:scaled"), ["inputs"])
    check_call(load_hook("k", "my_hooks_of_test:Method"), ["prompts"])
    check_call(load_hook("k", "my_hooks_of_test:later"), ["inputs"], coroutine=True)
    with pytest.raises(ValueError, match="not an async function"):
        check_call(load_hook("k", "my_hooks_of_test:scaled"), ["inputs"], coroutine=True)


def test_options_have_the_types_of_the_signature(folder: Path) -> None:
    scaled = load_hook("k", "my_hooks_of_test:scaled")
    checked = check_options(scaled, "k_options", {"scale": 2, "kind": "down"}, after=1)
    assert checked == {"scale": 2.0, "kind": "down"}
    assert type(checked["scale"]) is float
    method = load_hook("k", "my_hooks_of_test:Method")
    assert check_options(method, "k_options", {"top": 4}, after=1) == {"top": 4}
    assert method.call([], top=4).top == 4


def test_all_wrong_options_are_said_at_once(folder: Path) -> None:
    scaled = load_hook("k", "my_hooks_of_test:scaled")
    with pytest.raises(ValueError) as said:
        check_options(
            scaled, "k_options", {"power": 1.5, "sclae": 2.0, "kind": "sideways"}, after=1
        )
    text = str(said.value)
    assert "k_options has no 'scale', which my_hooks_of_test:scaled needs" in text
    assert "no use for 'sclae'" in text and "takes scale, power, kind" in text
    assert "k_options.power is 1.5" in text
    assert "k_options.kind is 'sideways'" in text and "'up' or 'down'" in text


@pytest.mark.parametrize("given", [True, "2.0"])
def test_a_bool_or_a_text_is_no_number(folder: Path, given: bool | str) -> None:
    scaled = load_hook("k", "my_hooks_of_test:scaled")
    with pytest.raises(ValueError, match="k_options.scale is"):
        check_options(scaled, "k_options", {"scale": given}, after=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("untyped", "options without a type: scale; annotate them"),
        ("strange", "has a type that cannot be read .*Unknown"),
        ("of_objects", "no value of a configuration is a .*memoryview"),
    ],
)
def test_options_that_cannot_be_checked(folder: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_options(load_hook("k", f"my_hooks_of_test:{name}"), "k_options", {}, after=1)
